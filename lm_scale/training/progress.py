"""What a run shows while it runs: a start-up summary and one bar (plain lines where there is no terminal)."""

from __future__ import annotations

import time
from typing import IO, Any

from tqdm import tqdm

from lm_scale.training.limits import Limits

PLAIN_LINE_EVERY_S = 10.0


class Progress:
    """Rank 0's view of the run on the terminal; the other ranks' shows nothing."""

    def __init__(self, stream: IO[str], visible: bool) -> None:
        self._stream = stream
        self._visible = visible
        self._bar: tqdm[Any] | None = None
        self._last_line = 0.0
        self._limits: Limits | None = None

    def say(self, line: str) -> None:
        """One line, above the bar."""
        if not self._visible:
            return
        if self._bar is not None:
            self._bar.write(line, file=self._stream)
        else:
            print(line, file=self._stream, flush=True)

    def begin(self, limits: Limits, first_step: int, every: int) -> None:
        """The loop starts after `first_step` steps; the bar moves every `every` steps."""
        self._limits = limits
        self._every = every
        if self._visible and self._stream.isatty():
            self._bar = tqdm(
                total=limits.planned_steps, initial=first_step, file=self._stream, dynamic_ncols=True, unit="step"
            )

    def step(self, values: dict[str, Any]) -> None:
        """Show a finished step, from its record."""
        if not self._visible or self._limits is None:
            return
        step, loss = values["step"], values["loss"]
        rate = values["tokens"] / values["step_s"] if values["step_s"] > 0 else float("nan")
        left = self._left(values)
        if self._bar is not None:
            if step % self._every == 0 or step == self._limits.planned_steps:
                self._bar.set_postfix_str(f"loss {loss:.3f}, {rate:,.0f} tokens/s{left}", refresh=False)
                self._bar.update(step - self._bar.n)
        elif time.monotonic() - self._last_line > PLAIN_LINE_EVERY_S or step == self._limits.planned_steps:
            self._last_line = time.monotonic()
            of = f"/{self._limits.planned_steps}" if self._limits.planned_steps else ""
            print(f"step {step}{of}  loss {loss:.3f}  {rate:,.0f} tokens/s{left}", file=self._stream, flush=True)

    def end(self) -> None:
        """Leave the bar as it stands."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _left(self, values: dict[str, Any]) -> str:
        assert self._limits is not None
        if self._limits.budget_s is None:
            return ""
        left = max(0, round(self._limits.budget_s - values["elapsed_s"]))
        return f", {left // 60}:{left % 60:02d} of the budget left"


def human_bytes(count: float) -> str:
    """`count` in the largest unit of 1024 that keeps it at least 1."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.3g} TiB"
