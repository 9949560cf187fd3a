"""What a series of steps says: throughput, step time, loss. The one place that turns steps into a row's numbers."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import msgspec

Number = TypeVar("Number", int, float)


class Step(msgspec.Struct, gc=False):
    """One attempted optimizer step over all ranks, or one point that a foreign log shows; None is what is not known.

    `samples`, `tokens` and `useful_tokens` are this step's own; `elapsed_s` counts from the start of training. A report
    holds a million of these: as structs they are decoded from a record and let go without Python touching each.
    """

    step: int
    elapsed_s: float | None = None
    step_s: float | None = None
    samples: int | None = None
    tokens: int | None = None
    useful_tokens: int | None = None
    loss: float | None = None
    grad_norm: float | None = None
    learning_rate: float | None = None
    skipped: bool = False
    compiled: bool = False


@dataclass(slots=True)
class Eval:
    """One evaluation after `step` steps: nats a token; `final` is the one of the trained model."""

    step: int | None
    loss: float | None
    elapsed_s: float | None = None
    tokens_seen: int | None = None
    bits_per_byte: float | None = None
    final: bool = False


@dataclass(frozen=True)
class Rates:
    """What the measured steps give; all but `measured` is None when at most 2 steps were measured."""

    measured: int
    step_s: float | None = None
    step_s_iqr: float | None = None
    tokens_per_s: float | None = None
    useful_tokens_per_s: float | None = None


def warmup_steps(completed: int) -> int:
    """Completed steps left out of the rates: the first 10 % (rounded down), at least 2, at most 10."""
    return min(max(completed // 10, 2), 10)


def rates(steps: Sequence[Step]) -> Rates:
    """Throughput and step time of the measured steps.

    Measured are the steps after the warm-up of `warmup_steps(completed)` completed ones that did not compile. A step
    that loss scaling skipped completed nothing: its seconds count, its tokens do not, and it is no step of the median.
    """
    completed = [step for step in steps if not step.skipped]
    warm = warmup_steps(len(completed))
    if len(completed) <= warm:
        return Rates(measured=0)
    window = [step for step in steps[steps.index(completed[warm - 1]) + 1 :] if not step.compiled]
    times = [step.step_s for step in window if not step.skipped and step.step_s is not None]
    if len(times) <= 2:
        return Rates(measured=len(times))
    lower, _, upper = statistics.quantiles(times, n=4, method="inclusive")
    spent = total([step.step_s for step in window])
    return Rates(
        measured=len(times),
        step_s=statistics.median(times),
        step_s_iqr=upper - lower,
        tokens_per_s=ratio(total([step.tokens for step in window if not step.skipped]), spent),
        useful_tokens_per_s=ratio(total([step.useful_tokens for step in window if not step.skipped]), spent),
    )


def train_loss(steps: Sequence[Step]) -> float | None:
    """The mean loss of the last 10 % of the completed steps (at least 1, at most 50), weighted by their labels.

    Nats a token; nan or inf where one of these losses is. Steps that do not say how many labels they had weigh alike.
    """
    known = [(step.loss, step.useful_tokens) for step in steps if not step.skipped and step.loss is not None]
    last = known[-min(max(len(known) // 10, 1), 50) :]
    if any(labels is None for _, labels in last):
        last = [(loss, 1) for loss, _ in last]
    return ratio(sum(loss * (labels or 0) for loss, labels in last), sum(labels or 0 for _, labels in last))


def not_finite(steps: Sequence[Step]) -> Step | None:
    """The first completed step whose loss is infinite or not a number."""
    return next((s for s in steps if not s.skipped and s.loss is not None and not math.isfinite(s.loss)), None)


def total(values: Sequence[Number | None]) -> Number | None:
    """The sum, or None where one of them is not known."""
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def ratio(over: float | None, under: float | None) -> float | None:
    """`over / under`, or None where one is not known or `under` is zero."""
    return over / under if over is not None and under else None
