"""Samples that Trainer really trained on: where the batch does not divide the data, an epoch ends with less of one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from lm_scale.report.ingest import settings
from lm_scale.report.rows import Row

TOLERANCE = 1e-6
"""Of a count that was divided and multiplied back."""


def completed_samples(
    row: Row, epoch: float | None, history: Sequence[Mapping[str, Any]], size: tuple[float, float] | None
) -> int | None:
    """The samples of the row's steps, which ended at `epoch`; None where the sources do not tell.

    Within the first epoch every step is whole. After it, the micro-batches that were done follow from `epoch`, which
    Trainer computes as micro-batches over those of an epoch (transformers 5.23, trainer.py `_run_epoch`; `history` is
    its log). Over several ranks accelerate fills the last of them up with repeated samples; on one rank it is short, by
    what `size` says: the samples of an epoch and their possible error, None where nothing is short.
    """
    steps, micro_batch, data_parallel = row.steps, row.micro_batch, row.data_parallel
    if steps is None or row.global_batch is None or epoch is None:
        return None
    if epoch < 1:
        return steps * row.global_batch
    if not micro_batch or not data_parallel or row.global_batch % (micro_batch * data_parallel):
        return None
    grad_accum = row.global_batch // (micro_batch * data_parallel)
    points = [(steps, epoch), *((entry.get("step"), entry.get("epoch")) for entry in history)]
    per_epoch = _micro_batches_per_epoch(points, grad_accum)
    done = None if per_epoch is None else _count(epoch * per_epoch)
    missing = _missing(per_epoch, micro_batch, size) if data_parallel == 1 and size else 0
    if per_epoch is None or done is None or missing is None or not steps <= done <= steps * grad_accum:
        return None
    return done * micro_batch * data_parallel - done // per_epoch * missing


def _micro_batches_per_epoch(points: Sequence[tuple[Any, Any]], grad_accum: int) -> int | None:
    """Of one rank: the one number that puts every step where it stands in its epoch.

    With m micro-batches an epoch takes c = ceil(m / grad_accum) steps, and step s of epoch f stands at
    epoch f + (s - f c) grad_accum / m; hence (s - f) / epoch <= m / grad_accum <= s / epoch.
    """
    possible: set[int] | None = None
    for step, epoch in points:
        if not isinstance(step, int) or not isinstance(epoch, int | float) or not 0 < epoch < math.inf:
            continue
        full = math.floor(epoch)
        least, most = math.floor((step - full) / epoch), math.ceil(step / epoch) + 1
        if epoch == full and grad_accum > 1:  # an epoch's end says its steps, not its micro-batches
            continue
        fitting = (_fitting(step, epoch, in_steps, grad_accum) for in_steps in range(max(least, 1), most + 1))
        numbers = {number for number in fitting if number is not None}
        possible = numbers if possible is None else possible & numbers
    return possible.pop() if possible is not None and len(possible) == 1 else None


def _fitting(step: int, epoch: float, steps_per_epoch: int, grad_accum: int) -> int | None:
    full = math.floor(epoch)
    if epoch == full:
        return steps_per_epoch if step == full * steps_per_epoch else None
    number = _count((step - full * steps_per_epoch) * grad_accum / (epoch - full))
    return number if number is not None and number > 0 and math.ceil(number / grad_accum) == steps_per_epoch else None


def epoch_samples(row: Row, summary: Mapping[str, Any], arguments: Mapping[str, Any]) -> tuple[float, float] | None:
    """Samples of an epoch and their possible error: as Hugging Face's example scripts write them, or from Trainer's
    samples a second, which are those of all planned epochs of a run that did them.

    None where every micro-batch counts as whole: the loader drops the short one, or the run is planned in steps; then
    Trainer itself counts so ("may be slightly incorrect", trainer.py), and nothing says better.
    """
    stated = settings.whole(summary.get("train_samples"))
    if arguments.get("dataloader_drop_last") is True or (stated is None and settings.whole(arguments.get("max_steps"))):
        return None
    if stated is not None:
        return float(stated), 0.0
    runtime_s = settings.number(summary.get("train_runtime"))
    rate = settings.number(summary.get("train_samples_per_second"))
    epochs, by_epochs = settings.number(arguments.get("num_train_epochs")), arguments.get("max_steps") == -1
    if not runtime_s or not rate or not epochs or not by_epochs or row.steps != row.planned_steps:
        return 0.0, math.inf
    return rate * runtime_s / epochs, (0.0005 * runtime_s + 0.0001 * rate) / epochs


def _missing(per_epoch: int | None, micro_batch: int, size: tuple[float, float]) -> int | None:
    """Samples that an epoch's last micro-batch is short of; None where the size of the data set leaves that open."""
    possible = [
        number
        for number in range(micro_batch)
        if abs((per_epoch or 0) * micro_batch - number - size[0]) <= size[1] + TOLERANCE
    ]
    return possible[0] if len(possible) == 1 else None


def _count(value: float) -> int | None:
    """The whole number that `value` is but for rounding."""
    return round(value) if abs(value - round(value)) < TOLERANCE * max(1.0, value) else None
