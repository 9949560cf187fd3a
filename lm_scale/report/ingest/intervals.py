"""Logs that print every n steps: between two such lines lie n step times at once. Intervals -> rates and loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lm_scale.report import rates
from lm_scale.report.rows import Row, typed


@dataclass(frozen=True, slots=True)
class Interval:
    """The steps after step `after` up to step `until`, those that loss scaling skipped included.

    `completed` counts those it did not skip, `samples` are theirs, `loss` is their mean.
    """

    after: int
    until: int
    seconds: float | None = None
    completed: int = 0
    samples: int | None = None
    loss: float | None = None


@dataclass(frozen=True)
class Measured:
    """What the intervals after the warm-up give; rates are None with at most 2 steps measured or an unknown time."""

    steps: int
    step_s: float | None = None
    step_s_iqr: float | None = None
    steps_per_s: float | None = None
    samples_per_s: float | None = None


def measure(intervals: Sequence[Interval], untimed: int = 0) -> Measured:
    """Rates of the intervals that hold no step of the warm-up (`rates.warmup_steps`), each weighted by its steps.

    `untimed` steps were completed before the first interval. The spread of averages is less than that of the steps, so
    there is none unless every interval is one step.
    """
    warm = rates.warmup_steps(untimed + sum(one.completed for one in intervals))
    window, completed = [], untimed
    for one in intervals:
        if completed >= warm and one.seconds is not None:
            window.append(one)
        completed += one.completed
    steps = sum(one.completed for one in window)
    if steps <= 2:
        return Measured(steps)
    spent = rates.total([one.seconds for one in window])
    times = sorted((one.seconds / (one.until - one.after), one.completed) for one in window if one.seconds is not None)
    single = all(one.until - one.after == 1 for one in window)
    return Measured(
        steps=steps,
        step_s=_quantile(times, 0.5),
        step_s_iqr=_quantile(times, 0.75) - _quantile(times, 0.25) if single else None,
        steps_per_s=rates.ratio(steps, spent),
        samples_per_s=rates.ratio(rates.total([one.samples for one in window]), spent),
    )


def fill(row: Row, measured: Measured) -> None:
    """Write the rates into the row; tokens need its sequence length."""
    row.step_s, row.step_s_iqr = measured.step_s, measured.step_s_iqr
    row.steps_per_s, row.samples_per_s = measured.steps_per_s, measured.samples_per_s
    if measured.samples_per_s is not None and row.seq_len is not None:
        row.tokens_per_s = measured.samples_per_s * row.seq_len
        row.tokens_per_s_per_rank = rates.ratio(row.tokens_per_s, row.world_size)
    if measured.step_s is None:
        row.flag("too_few_steps", f"{measured.steps} steps were measured after warm-up; rates need 3")


def train_loss(intervals: Sequence[Interval]) -> float | None:
    """The mean loss of the last 10 % of the steps (at least 1, at most 50), in whole intervals; None if not finite."""
    wanted = min(max(sum(one.completed for one in intervals) // 10, 1), 50)
    total, steps = 0.0, 0
    for one in reversed(intervals):
        if steps >= wanted:
            break
        if one.completed and one.loss is None:
            return None
        total += (one.loss or 0.0) * one.completed
        steps += one.completed
    return typed("loss", total / steps, float) if steps else None


def not_finite(row: Row, intervals: Sequence[Interval]) -> None:
    """Flag the first loss that is infinite or not a number."""
    broken = next((one for one in intervals if one.loss is not None and not math.isfinite(one.loss)), None)
    if broken:
        row.flag("loss_not_finite", f"the loss was {broken.loss} at step {broken.until}")


def _quantile(times: Sequence[tuple[float, int]], share: float) -> float:
    """The inclusive quantile of (value, weight) pairs in rising order, as if each value stood there `weight` times."""
    position = share * (sum(weight for _, weight in times) - 1)
    lower, upper = _at(times, math.floor(position)), _at(times, math.ceil(position))
    return lower + (upper - lower) * (position - math.floor(position))


def _at(times: Sequence[tuple[float, int]], index: int) -> float:
    for value, weight in times:
        if index < weight:
            return value
        index -= weight
    return times[-1][0]
