"""Formats that become rows, one file a format: `recognises` says whether a source is one, `read` gives its runs."""

from __future__ import annotations

from dataclasses import dataclass, field

from lm_scale.report.rates import Eval, Step
from lm_scale.report.rows import Row


class UnreadableError(Exception):
    """A source cannot become a row. The text is one line and names the file."""


@dataclass
class Reading:
    """What a source says of one run: its row, and the points of its training and of its evaluations in their order.

    `wandb_id` and `output_dir` (TrainingArguments') are what other sources of the same run may name too.
    """

    row: Row
    steps: list[Step] = field(default_factory=list)
    evals: list[Eval] = field(default_factory=list)
    wandb_id: str | None = None
    output_dir: str | None = None
