"""Weights & Biases as a mirror of the record: the same names, never the source, and never the end of a run."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Mirror:
    """Repeats records to W&B, offline where there is no login. After its first failure it says so and is silent."""

    def __init__(self, directory: Path, header: dict[str, Any], warn: Callable[[str], None]) -> None:
        self._warn = warn
        self._run: Any = None
        self.url: str | None = None
        self._guard(lambda: self._start(directory, header))

    def log(self, kind: str, values: dict[str, Any]) -> None:
        """One record: numbers and texts under `kind/name`, at its step."""
        if self._run is not None:
            named = {f"{kind}/{name}": value for name, value in values.items() if name != "step" and value is not None}
            self._guard(lambda: self._run.log(named, step=values.get("step")))

    def finish(self, status: str) -> None:
        """Close the mirror; W&B's own exit code is 0 for a run that reached its end."""
        if self._run is not None:
            self._guard(lambda: self._run.finish(exit_code=int(status not in ("completed", "budget"))))

    def _start(self, directory: Path, header: dict[str, Any]) -> None:
        import wandb

        # Asking for the login loads wandb's settings, after which the environment is not read again.
        offline = "WANDB_MODE" not in os.environ and wandb.api.api_key is None
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "lm-scale"),
            name=header["name"],
            dir=directory,
            config=header,
            mode="offline" if offline else None,
            settings=wandb.Settings(console="off", init_timeout=30),
        )
        self.url = self._run.url or None

    def _guard(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # whatever a tracker raises must not cost the run anything
            self._run = None
            self._warn(f"wandb: {type(error).__name__}: {error}; the run goes on without it")
