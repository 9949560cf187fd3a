"""Runs of one strategy under the same conditions as one row: the median of what they measured, and its spread."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from typing import Any

from lm_scale.report.ingest import Reading
from lm_scale.report.rates import Eval, Step
from lm_scale.report.relate import RELATIVE_CODES
from lm_scale.report.rows import Row

CONDITIONS = (
    *("owner", "source", "engine", "strategy", "zero_stage", "offload", "world_size", "nodes", "data_parallel"),
    *("pipeline_stages", "tensor_parallel", "micro_batch", "grad_accum", "global_batch", "seq_len", "packing"),
    *("precision", "reduction_precision", "master_weights", "activation_checkpointing", "torch_compile"),
    *("attn_implementation", "loss", "model", "params", "dataset", "data_fingerprint", "tokenizer", "optimizer"),
    *("learning_rate", "lr_schedule", "planned_steps", "device"),
)
"""What runs must share to be one row; what one knows and another does not is no agreement. The seed may differ."""

MEASURES = (
    *("steps", "skipped_steps", "runtime_s", "step_s", "step_s_iqr", "steps_per_s", "samples_per_s", "tokens_per_s"),
    *("tokens_per_s_per_rank", "useful_tokens_per_s", "samples_seen", "tokens_seen", "train_loss", "eval_loss"),
    *("eval_bits_per_byte", "grad_norm", "peak_device_bytes", "peak_reserved_bytes", "peak_host_bytes"),
    *("model_flops_per_s", "mfu", "link_bytes_per_s"),
)

SPREADS = ("tokens_per_s", "samples_per_s", "step_s", "eval_loss")

FAILED = ("interrupted", "diverged", "oom", "crashed", "hung", "rejected")
"""Statuses of a run whose numbers are not averaged in."""


def conditions(row: Row) -> tuple[Any, ...]:
    """What the row's run shares with every run that it may be merged with; of an unknown strategy, the row alone."""
    if row.strategy is None:
        return (row.name,)
    return tuple(getattr(row, key) for key in CONDITIONS)


def merge(readings: Sequence[Reading]) -> list[Reading]:
    """One reading for the runs of each strategy under the same conditions, in the order of their first ones.

    Measures are medians over the runs that did not fail and know them; a whole number, of two middle ones the lower.
    `<measure>_spread` is the largest minus the smallest. `runs` counts the runs in the medians, `failed_runs` the
    others; a row of failed runs alone has no measures. A single run is its own row. The keys that compare with a
    baseline are left to `relate.compare`.
    """
    alike: dict[tuple[Any, ...], list[Reading]] = {}
    for reading in readings:
        alike.setdefault(conditions(reading.row), []).append(reading)
    return [_merged(same) for same in alike.values()]


def _merged(same: Sequence[Reading]) -> Reading:
    worked = [reading for reading in same if reading.row.status not in FAILED]
    shown = (worked or same)[0]
    if len(same) == 1:
        single = dataclasses.replace(shown.row, runs=len(worked), failed_runs=1 - len(worked))
        return Reading(single, shown.steps, shown.evals)
    rows, members = [reading.row for reading in worked], [reading.row for reading in same]
    row = Row(name=f"{members[0].name} +{len(members) - 1}", source=shown.row.source)
    for field in dataclasses.fields(Row):
        key = field.name
        if key in MEASURES:
            setattr(row, key, _median([getattr(one, key) for one in rows]))
        elif key not in ("name", "flags") and len({getattr(one, key) for one in members}) == 1:
            setattr(row, key, getattr(shown.row, key))
    for key in SPREADS:
        known = [value for one in rows if (value := getattr(one, key)) is not None]
        setattr(row, f"{key}_spread", max(known) - min(known) if len(known) > 1 else None)
    row.status = shown.row.status
    row.last_error = next((one.last_error for one in members if one.last_error), None)
    row.runs, row.failed_runs = len(worked), len(same) - len(worked)
    _flag(row, members)
    return Reading(row, _median_steps(worked), _median_evals(worked))


def _flag(row: Row, members: Sequence[Row]) -> None:
    """Every flag of a member, once, with how many of the runs have it."""
    messages: dict[str, list[str]] = {}
    for member in members:
        for code, message in {flag["code"]: flag["message"] for flag in member.flags}.items():
            messages.setdefault(code, []).append(f"{member.name}: {message}")
    for code, said in messages.items():
        if code not in RELATIVE_CODES:
            row.flag(code, f"{len(said)} of {len(members)} runs: {said[0]}")


def _median(values: Sequence[Any]) -> Any:
    known = [value for value in values if value is not None]
    if not known:
        return None
    return statistics.median_low(known) if isinstance(known[0], int) else statistics.median(known)


def _median_steps(readings: Sequence[Reading]) -> list[Step]:
    """The steps that every run completed, each with the median of what was measured at it."""
    by_step = [{step.step: step for step in reading.steps if not step.skipped} for reading in readings]
    shared = set.intersection(*(set(steps) for steps in by_step)) if by_step else set()
    keys = [name for name in Step.__struct_fields__ if name not in ("step", "skipped", "compiled")]
    merged = []
    for number in sorted(shared):
        steps = [steps[number] for steps in by_step]
        values = {key: _median_of_all([getattr(step, key) for step in steps]) for key in keys}
        merged.append(Step(number, compiled=any(step.compiled for step in steps), **values))
    return merged


def _median_evals(readings: Sequence[Reading]) -> list[Eval]:
    """The evaluations after a step that every run had one after, each with the medians."""
    by_step = [{evaluation.step: evaluation for evaluation in reading.evals} for reading in readings]
    shared = set.intersection(*(set(evals) for evals in by_step)) if by_step else set()
    keys = [field.name for field in dataclasses.fields(Eval) if field.name not in ("step", "final")]
    merged = []
    for number in sorted(step for step in shared if step is not None):
        evals = [evals[number] for evals in by_step]
        values = {key: _median_of_all([getattr(one, key) for one in evals]) for key in keys}
        merged.append(Eval(number, final=all(one.final for one in evals), **values))
    return merged


def _median_of_all(values: Sequence[Any]) -> Any:
    """The median where all know the value: a series must not change hands from one point to the next."""
    return None if None in values else _median(values)
