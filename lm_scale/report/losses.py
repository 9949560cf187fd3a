"""Loss differences between two runs at equal steps, equal tokens and equal time, from the series of both."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from lm_scale.report.ingest import Reading
from lm_scale.report.rates import ratio

WINDOW = 0.1
"""The share of the way to the compared point over which training losses are averaged."""


@dataclass(frozen=True)
class Curve:
    """A run's losses along one axis (steps, tokens or seconds), ascending, in nats a token.

    `points` and `losses` are of training, `weights` their labels (1 each where one is not known); `evaluations` maps
    a point to the loss of an evaluation there.
    """

    points: list[float]
    losses: list[float]
    weights: list[int]
    evaluations: dict[float, float]

    def reach(self) -> float | None:
        """The furthest point with a loss of either kind."""
        return max([*self.points[-1:], *self.evaluations], default=None)

    def smoothed(self, point: float) -> float | None:
        """The mean training loss, weighted by labels, over the last tenth of the way to `point`; None without any."""
        first, end = bisect_right(self.points, (1 - WINDOW) * point), bisect_right(self.points, point)
        weights = self.weights[first:end]
        weighted = zip(self.losses[first:end], weights, strict=True)
        mean = ratio(sum(loss * weight for loss, weight in weighted), sum(weights))
        return mean if mean is not None and math.isfinite(mean) else None


@dataclass(frozen=True)
class Curves:
    """The losses of one run along the three axes; an axis of which the source knows nothing is empty."""

    steps: Curve
    tokens: Curve
    seconds: Curve


def curves(reading: Reading) -> Curves:
    """The losses that a run's series hold, along each axis that is known for them."""
    done = [step for step in reading.steps if not step.skipped]
    losses = [step.loss for step in done]
    labels = [step.useful_tokens or 0 for step in done]
    weights = labels if all(labels) else [1] * len(done)
    evals = reading.evals
    return Curves(
        _curve([step.step for step in done], losses, weights, [(one.step, one.loss) for one in evals]),
        _curve(tokens_seen(reading), losses, weights, [(one.tokens_seen, one.loss) for one in evals]),
        _curve([step.elapsed_s for step in done], losses, weights, [(one.elapsed_s, one.loss) for one in evals]),
    )


def difference(mine: Curve, theirs: Curve) -> float | None:
    """My loss minus theirs at the furthest point that both reached, in nats a token.

    Evaluations are compared where both have one at exactly that point, else the training losses as `Curve.smoothed`
    gives them: the last tenth of the way there, which both must have been logged in. A run that logs every tenth step
    is so compared with one that logs every step; what is left is noise of the batches, as in any training loss.
    """
    reached = mine.reach(), theirs.reach()
    if reached[0] is None or reached[1] is None:
        return None
    point = min(reached[0], reached[1])
    if point in mine.evaluations and point in theirs.evaluations:
        return mine.evaluations[point] - theirs.evaluations[point]
    my_loss, their_loss = mine.smoothed(point), theirs.smoothed(point)
    return my_loss - their_loss if my_loss is not None and their_loss is not None else None


def tokens_seen(reading: Reading) -> list[int | None]:
    """The tokens trained on up to and with each step of the series that was not skipped.

    Summed where the series holds every step from the first; where it holds only some, a step's number times the
    tokens of a step, which a run that skipped steps does not follow.
    """
    return _seen(reading, [step.tokens for step in reading.steps if not step.skipped], reading.row.seq_len)


def samples_seen(reading: Reading) -> list[int | None]:
    """The samples trained on up to and with each step that was not skipped, found as `tokens_seen` finds tokens."""
    return _seen(reading, [step.samples for step in reading.steps if not step.skipped], 1)


def _seen(reading: Reading, each: Sequence[int | None], per_sample: int | None) -> list[int | None]:
    gapless = all(step.step == number for number, step in enumerate(reading.steps, 1))
    if gapless and None not in each:
        return list(accumulate(size or 0 for size in each))
    row, done = reading.row, [step for step in reading.steps if not step.skipped]
    if row.global_batch is None or per_sample is None or row.skipped_steps:
        return [None] * len(done)
    return [step.step * row.global_batch * per_sample for step in done]


def _curve(
    points: Sequence[float | None],
    losses: Sequence[float | None],
    weights: Sequence[int],
    evaluations: Sequence[tuple[float | None, float | None]],
) -> Curve:
    return Curve(
        *_ascending(points, losses, weights),
        {at: loss for at, loss in evaluations if at is not None and loss is not None and math.isfinite(loss)},
    )


def _ascending(
    points: Sequence[float | None], losses: Sequence[float | None], weights: Sequence[int]
) -> tuple[list[float], list[float], list[int]]:
    """The places in the series that know point and loss, those alone that lie beyond every earlier one."""
    kept: tuple[list[float], list[float], list[int]] = [], [], []
    furthest = -math.inf
    for point, loss, weight in zip(points, losses, weights, strict=True):
        if point is not None and loss is not None and point > furthest:
            furthest = point
            kept[0].append(point)
            kept[1].append(loss)
            kept[2].append(weight)
    return kept
