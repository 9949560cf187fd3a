"""One W&B run as it was found, in its folder or on W&B's servers, before anything is made of it."""

from __future__ import annotations

import datetime
from dataclasses import dataclass, field
from typing import Any

from lm_scale.report.rows import Row

NOT_FINITE = {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": float("-inf")}


@dataclass
class Recorded:
    """One W&B run as it was found.

    `history` holds the logged rows in their order, keys of nested values joined by dots; `whole` says that nothing is
    missing from it and that the run ended; `own_steps` that the script itself numbered its rows (`_step`).
    """

    source: str
    name: str
    path: str
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    metadata: dict[str, Any] = field(default_factory=dict)
    whole: bool = False
    own_steps: bool = False
    status: str | None = None
    last_error: str | None = None
    owner: str | None = None
    url: str | None = None
    run_id: str | None = None
    host: str | None = None
    started_at: datetime.datetime | None = None
    runtime_s: float | None = None


def log_incomplete(row: Row, step: int | None) -> None:
    """Flag a row of which the source shows the beginning only, up to `step`."""
    far = "before the first step" if step is None else f"at step {step}"
    of = f" of {row.planned_steps}" if row.planned_steps is not None and step is not None else ""
    row.flag("log_incomplete", f"the records stop {far}{of}")


def number(value: Any) -> float | None:
    """A logged number, nan and inf included as W&B spells them."""
    if isinstance(value, str):
        return NOT_FINITE.get(value)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def finite(value: float | None) -> float | None:
    """`value`, or None where it is infinite or not a number."""
    return value if value is not None and abs(value) < float("inf") else None
