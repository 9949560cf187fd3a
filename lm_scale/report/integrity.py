"""What a finished row cannot mean: numbers that contradict one another, or that no run can have. Flags them.

A value stays as the source gives it, with two exceptions that their flags say: a rate that is seconds a step is turned
round, and a model's size under the name of a peak is left out.
"""

from __future__ import annotations

import collections
from collections.abc import Sequence

from lm_scale.report.rates import ratio
from lm_scale.report.rows import Row

TOLERANCE = 0.05
"""Rates are often printed with three digits, and small ones with fewer."""

MEASURES = ("samples_per_s", "tokens_per_s", "step_s", "peak_device_bytes", "peak_reserved_bytes", "peak_host_bytes")
CONDITIONS = (
    *("strategy", "zero_stage", "offload", "world_size", "micro_batch", "grad_accum", "seq_len", "precision", "model"),
    *("activation_checkpointing", "device"),
)
"""Rows that differ in one of these cannot all measure the same to the last digit."""

UNLIKE_ROWS = 3
NAMES_SHOWN = 5


def check(rows: Sequence[Row]) -> None:
    """Flag each row's contradictions and the columns that do not move. A second call adds nothing."""
    for row in rows:
        _inverted_rate(row)
        _samples(row)
        _rates(row)
        _flops(row)
        _memory(row)
    for key in MEASURES:
        _constant(rows, key)


def _inverted_rate(row: Row) -> None:
    """`steps_per_s` that is really seconds a step, against what the rest of the row says of the rate."""
    true = ratio(row.steps, row.runtime_s) or ratio(row.samples_per_s, row.global_batch) or ratio(1, row.step_s)
    given = row.steps_per_s
    if given and true and not _near(given, true) and _near(1 / given, true):
        row.steps_per_s = 1 / given
        _flag(row, "inverted_rate", f"{given:.4g} steps/s is {given:.4g} s a step")


def _samples(row: Row) -> None:
    """Never more samples than whole batches hold; fewer only by the incomplete ones at the ends of epochs.

    An own run has counted its samples step by step.
    """
    if row.source == "lm_scale" or row.samples_seen is None or row.steps is None or row.global_batch is None:
        return
    whole = row.steps * row.global_batch
    if row.samples_seen > whole or row.samples_seen < whole - max(row.global_batch, whole // 100):
        said = f"{row.samples_seen:,} samples, but {row.steps:,} steps of {row.global_batch:,} are {whole:,}"
        _flag(row, "samples_contradict", said)


def _rates(row: Row) -> None:
    """Rates over the whole runtime must give what was done in it, and a median step cannot exceed twice the mean."""
    said = []
    planned = row.planned_steps * row.global_batch if row.planned_steps and row.global_batch else None
    for rate, done, unit in (
        (row.samples_per_s, row.samples_seen, "samples"),
        (row.steps_per_s, row.steps, "steps"),
    ):
        if rate is not None and done is not None and row.runtime_s and not _near(rate * row.runtime_s, done):
            product = rate * row.runtime_s
            meant = planned if unit == "samples" else row.planned_steps
            plan = ", which is what was planned" if meant and _near(product, meant) else ""
            said.append(f"{rate:.4g} {unit}/s over {row.runtime_s:.4g} s are {product:,.0f}, not {done:,}{plan}")
    # Warm-up, evaluation and saving are in the runtime and out of the measured steps, hence the room.
    if row.tokens_per_s is not None and row.tokens_seen and row.runtime_s and row.source != "lm_scale":
        product = row.tokens_per_s * row.runtime_s
        if not 0.5 <= product / row.tokens_seen <= 3:
            given = f"{row.tokens_per_s:.4g} tokens/s over {row.runtime_s:.4g} s"
            said.append(f"{given} are {product:,.0f}, not {row.tokens_seen:,}")
    if row.step_s is not None and row.steps and row.runtime_s and row.step_s * row.steps > 2.1 * row.runtime_s:
        said.append(f"{row.steps:,} steps of {row.step_s:.4g} s do not fit into {row.runtime_s:.4g} s")
    if said:
        _flag(row, "rate_contradicts_runtime", "; ".join(said))


def _flops(row: Row) -> None:
    if row.mfu is None or row.mfu <= 1:
        return
    peak = ratio(row.model_flops_per_s, row.mfu * row.world_size) if row.world_size else None
    _flag(row, "mfu_above_1", f"MFU {row.mfu:.2f}" + (f" against a peak of {peak:.3g}" if peak else ""))


def _memory(row: Row) -> None:
    """A peak that is the size of the weights alone, or less than what must lie on the device at the same time."""
    if row.peak_device_bytes is None or row.params is None:
        return
    sizes = {"four": row.params * 4, "two": row.params * 2}
    alike = next((name for name, size in sizes.items() if abs(row.peak_device_bytes - size) <= 0.01 * size), None)
    if alike and row.source != "lm_scale":
        said = f"{row.peak_device_bytes:,} bytes are {row.params:,} parameters of {alike} bytes"
        _flag(row, "model_size_not_peak", said)
        row.peak_device_bytes = None
        return
    least = least_device_bytes(row)
    if least is not None and row.peak_device_bytes < least:
        said = f"{row.peak_device_bytes:,} bytes on the fullest device, but weights and states take at least {least:,}"
        _flag(row, "memory_below_states", said)


def least_device_bytes(row: Row) -> int | None:
    """What must lie on the fullest device when the optimizer steps: a lower bound, None where too little is known.

    Weights, gradients and optimizer states in the row's precision, shards divided by the data-parallel degree. Always
    the smaller of two readings: 16-bit states beside 16-bit weights (DeepSpeed keeps fp32), gradients only where
    nothing shards them, states only of a plain Adam. None with a pipeline or tensor parallelism, with parameters off
    the device, or where the source does not state the layout.
    """
    if row.params is None or (row.pipeline_stages or 1) > 1 or (row.tensor_parallel or 1) > 1:
        return None
    sharded = _sharded(row)
    ranks = row.data_parallel or row.world_size
    if sharded is None or (sharded and not ranks) or "param" in (row.offload or ""):
        return None
    width = 4 if row.precision == "fp32" else 2
    optimizer = (row.optimizer or "").lower()
    plain_adam = optimizer in ("adam", "adamw", "adamw_torch", "adamw_torch_fused", "fusedadam")
    states = 2 * width if plain_adam and "optimizer" not in (row.offload or "") else 0
    shard = ranks if sharded and ranks else 1
    weights = row.params * width // (shard if "weights" in sharded else 1)
    gradients = 0 if "gradients" in sharded else row.params * width
    return weights + gradients + row.params * states // (shard if "states" in sharded else 1)


def _sharded(row: Row) -> tuple[str, ...] | None:
    """What is split over the data-parallel ranks, or freed early (gradients from ZeRO-1 on); None: not stated."""
    strategy = row.strategy or ""
    if row.world_size == 1 and row.offload == "none":
        return ()
    if row.engine == "deepspeed" and row.zero_stage is not None and row.offload is not None:
        stages: tuple[tuple[str, ...], ...] = ((), ("states", "gradients"), ("states", "gradients"))
        return (*stages, ("states", "gradients", "weights"))[row.zero_stage]
    if row.engine == "torch" and strategy in ("ddp", "single"):
        return ()
    if strategy == "fsdp_full_shard" and row.offload == "none":
        return ("states", "gradients", "weights")
    if strategy == "fsdp_shard_grad_op" and row.offload == "none":
        return ("states", "gradients")
    return None


def _constant(rows: Sequence[Row], key: str) -> None:
    alike: dict[float, list[Row]] = collections.defaultdict(list)
    for row in rows:
        if (value := getattr(row, key)) is not None:
            alike[value].append(row)
    for value, same in alike.items():
        if len({tuple(getattr(row, condition) for condition in CONDITIONS) for row in same}) >= UNLIKE_ROWS:
            for row in same:
                others = [other.name for other in same if other is not row]
                more = f" and {len(others) - NAMES_SHOWN} more" if len(others) > NAMES_SHOWN else ""
                _flag(row, "constant_measure", f"{key} {value} as in {', '.join(others[:NAMES_SHOWN])}{more}")


def _near(one: float, other: float) -> bool:
    return abs(one - other) <= TOLERANCE * abs(other)


def _flag(row: Row, code: str, message: str) -> None:
    """Once, also where a reader of the source has raised it already; of constant columns once a column."""
    raised = {flag["code"] if flag["code"] != "constant_measure" else flag["message"] for flag in row.flags}
    if code not in raised and message not in raised:
        row.flag(code, message)
