"""Learning rates as pure functions of how much of the run is done."""

from __future__ import annotations

import math


def learning_rate(shape: str, peak: float, progress: float, warmup: float) -> float:
    """The rate of the step that begins when the share `progress` of the run is done.

    The shapes are those of transformers' `get_scheduler` over a run of length one: a linear rise from 0 to `peak` over
    the share `warmup`, then a line to 0 (`linear`), half a cosine to 0 (`cosine`), or nothing (`constant_with_warmup`);
    `constant` has no rise either. With progress (k - 1) / steps and warm-up w / steps they are transformers' own values
    at step k, but for the rise: it is evaluated at the end of the step, so that no step has the rate 0.

    Args:
        shape: `linear`, `cosine`, `constant` or `constant_with_warmup`.
        peak: the highest rate.
        progress: the share done at the begin of the step, 0 to 1.
        warmup: the share of the run over which the rate rises, 0 to 1.
    """
    if shape == "constant":
        return peak
    if warmup > 0 and progress < warmup:
        return peak * progress / warmup
    if shape == "constant_with_warmup":
        return peak
    done = min(1.0, (progress - warmup) / (1 - warmup)) if warmup < 1 else 1.0
    if shape == "linear":
        return peak * (1 - done)
    if shape == "cosine":
        return peak * 0.5 * (1 + math.cos(math.pi * done))
    raise ValueError(f"unknown shape {shape!r}")
