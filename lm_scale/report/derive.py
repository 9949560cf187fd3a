"""What follows from what a row knows: batch, rates, samples and tokens. Foreign formats get them here and only here."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from lm_scale.report import rates
from lm_scale.report.rates import Step, ratio
from lm_scale.report.rows import Row


def derive(row: Row, steps: Sequence[Step] = ()) -> None:
    """Fill keys that are None from the others, and leave every known one as it is. A second call does no more.

    `steps` are the run's own series, where the row's `step_s` was measured on it: its tokens/s then come from the same
    steps. A row without step times gets them from its whole runtime, and the flag `no_step_times`. With the flag
    `samples_contradict` samples are not steps times batch.
    """
    if row.data_parallel is None:
        row.data_parallel = _data_parallel(row)
    if row.global_batch is None:
        row.global_batch = _product(row.micro_batch, row.grad_accum, row.data_parallel)
    if row.samples_seen is None and not _flagged(row, "samples_contradict"):
        row.samples_seen = _product(row.steps, row.global_batch)
    if row.tokens_seen is None:
        row.tokens_seen = _product(row.samples_seen, row.seq_len)
    if row.steps_per_s is None:
        row.steps_per_s = ratio(row.steps, row.runtime_s)
    if row.samples_per_s is None:
        row.samples_per_s = ratio(row.samples_seen, row.runtime_s)
    if not _too_short(row):
        if row.step_s is None:
            _step_time_of_runtime(row)
        if row.tokens_per_s is None:
            row.tokens_per_s = _tokens_per_s(row, steps)
    if row.tokens_per_s_per_rank is None:
        row.tokens_per_s_per_rank = ratio(row.tokens_per_s, row.world_size)


def _data_parallel(row: Row) -> int | None:
    """Ranks over the model-parallel degrees, where both of these are known and divide them."""
    model_parallel = _product(row.pipeline_stages, row.tensor_parallel)
    if row.world_size is None or not model_parallel or row.world_size % model_parallel:
        return None
    return row.world_size // model_parallel


def _too_short(row: Row) -> bool:
    """An own run that measured at most 2 steps has no rates, and its runtime is no substitute for them."""
    return row.source == "lm_scale" or _flagged(row, "too_few_steps")


def _flagged(row: Row, code: str) -> bool:
    return any(flag["code"] == code for flag in row.flags)


def _step_time_of_runtime(row: Row) -> None:
    row.step_s = ratio(row.runtime_s, row.steps)
    if row.step_s is not None:
        row.flag("no_step_times", f"step time and tokens/s are {row.steps} steps over {row.runtime_s:.4g} s of runtime")


def _tokens_per_s(row: Row, steps: Sequence[Step]) -> float | None:
    """Tokens over the seconds that `step_s` was measured on: the steps', else a step's, else the whole runtime's."""
    if row.step_s is None or _flagged(row, "no_step_times"):
        return ratio(row.tokens_seen, row.runtime_s)
    tokens = _product(row.global_batch, row.seq_len)
    filled = [msgspec.structs.replace(step, tokens=step.tokens or tokens) for step in steps]
    measured = rates.rates(filled)
    if measured.step_s == row.step_s and measured.tokens_per_s is not None:
        return measured.tokens_per_s
    return ratio(tokens if tokens is not None else ratio(row.tokens_seen, row.steps), row.step_s)


def _product(*factors: int | None) -> int | None:
    known = [factor for factor in factors if factor is not None]
    return math.prod(known) if len(known) == len(factors) else None
