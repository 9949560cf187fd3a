"""ZeRO: what its stages take, ignore and refuse, but for offload (`offload.py`)."""

from __future__ import annotations

from collections.abc import Iterator

from lm_scale.strategy.rules.findings import Finding, Setting, Severity
from lm_scale.strategy.rules.reading import (
    ZERO,
    Document,
    block,
    dtype,
    finding,
    number,
    off,
    offload,
    on,
    precision,
    raw,
    stage,
    value,
)

STAGE_3_SWITCHES = ("zero_quantized_weights", "zero_quantized_nontrainable_weights", "zero_quantized_gradients")
STAGE_3_KEYS = ("sub_group_size", "memory_efficient_linear", "leaf_module", "save_muon_momentum_buffer_in_memory")
"""Beside all that begin with `stage3_`: read at stage 3 alone, and harmless below."""
STAGE_12_KEYS = (
    "round_robin_gradients",
    "use_multi_rank_bucket_allreduce",
    "allgather_partitions",
    "allgather_bucket_size",
    "ignore_unused_parameters",
    "parameter_alignment",
)
"""What the stage-3 optimizer is not given (`_configure_zero_optimizer`, runtime/engine.py)."""


def findings(document: Document, setting: Setting) -> Iterator[Finding]:
    yield from _stage(document)
    at = stage(document)
    if at is not None:
        yield from _other_stages(document, at)
        yield from _zeropp(document, at, setting)
        yield from _optimizer_of(document, at)
        yield from _scaling(document, at)
    yield from _allreduce(document, at)
    yield from _grad_norm(document, at)


def _stage(document: Document) -> Iterator[Finding]:
    zero = raw(document, ZERO)
    if isinstance(zero, bool):
        why = f"an old form; DeepSpeed takes it for stage {int(zero)}"
        fix = f'write {{"stage": {int(zero)}}}, with the stage that you mean'
        yield finding(document, (ZERO,), "warning", "zero-boolean", why, fix)
    elif isinstance(zero, dict) and zero and "stage" not in zero:
        why = "missing: DeepSpeed runs without ZeRO, and the rest of the block has no effect"
        yield finding(document, (ZERO, "stage"), "warning", "stage-missing", why, "name the stage: 1, 2 or 3")


def _other_stages(document: Document, at: int) -> Iterator[Finding]:
    """Keys that this stage does not read, or refuses."""
    zero = block(document, ZERO)
    if at == 0 and set(zero) - {"stage"} and "stage" in zero:
        why = "stage 0 is no ZeRO at all: nothing else in the block has an effect"
        yield finding(
            document, (ZERO, "stage"), "note", "zero-keys-stage0", why, "set it to 1, 2 or 3, or delete the rest"
        )
    for key in zero:
        if at < 3 and (key.startswith("stage3_") or key in STAGE_3_KEYS):
            why = f"it acts at stage 3 only, and this is stage {at}"
            yield finding(document, (ZERO, key), "note", "stage3-keys-below-3", why, "delete it, or set stage to 3")
        elif at == 3 and key in STAGE_12_KEYS:
            yield finding(document, (ZERO, key), "note", "stage2-key", "it acts at stages 1 and 2 only", "delete it")
    if at and on(document, ZERO, "legacy_stage1"):
        why = "the old stage 1 is gone; DeepSpeed refuses to start"
        yield finding(document, (ZERO, "legacy_stage1"), "error", "legacy-stage1", why, "delete it")
    if at == 3 and on(document, ZERO, "elastic_checkpoint"):
        why = "stage 3 has no elastic checkpoints any more: the first save fails"
        fix = "delete it; universal checkpoints change the number of ranks"
        yield finding(document, (ZERO, "elastic_checkpoint"), "error", "elastic-checkpoint", why, fix)
    odd = number(document, ZERO, "allgather_bucket_size")
    if at in (1, 2) and odd is not None and odd % 2:
        why = "DeepSpeed refuses an odd number of elements"
        place = (ZERO, "allgather_bucket_size")
        yield finding(document, place, "error", "allgather-bucket-odd", why, f"write {odd + 1:g}")


def _zeropp(document: Document, at: int, setting: Setting) -> Iterator[Finding]:
    switched = [key for key in STAGE_3_SWITCHES if on(document, ZERO, key)]
    ranks = number(document, ZERO, "zero_hpz_partition_size")
    if at < 3:
        for key in [*switched, *(["zero_hpz_partition_size"] if ranks is not None and ranks > 1 else [])]:
            why = f"DeepSpeed ignores it at stage {at}: ZeRO++ is a part of stage 3"
            yield finding(document, (ZERO, key), "error", "zeropp-below-3", why, "set stage to 3, or delete it")
        return
    for key in switched:
        if setting.device != "gpu":
            severity: Severity = "error" if setting.device == "cpu" else "note"
            why = "DeepSpeed quantizes with CUDA kernels; on a CPU it fails"
            yield finding(document, (ZERO, key), severity, "zeropp-on-cpu", why, "turn it off there")
    if "zero_quantized_gradients" in switched and off(document, ZERO, "reduce_scatter"):
        why = "quantized gradients need reduce_scatter; DeepSpeed refuses to start"
        yield finding(document, (ZERO, "reduce_scatter"), "error", "zeropp-reduce-scatter", why, "set it to true")
    world = setting.world_size
    if ranks is not None and world is not None and ranks > 1 and world % min(ranks, world):
        why = f"does not divide the world size {world}; DeepSpeed refuses to start"
        near = [size for size in range(2, world + 1) if world % size == 0]
        fix = f"use one of {', '.join(map(str, near))}"
        yield finding(document, (ZERO, "zero_hpz_partition_size"), "error", "hpz-world-size", why, fix)


def _optimizer_of(document: Document, at: int) -> Iterator[Finding]:
    name = value(document, "optimizer", "type")
    if not isinstance(name, str):
        return
    tested = ("adam", "adamw", "adagrad", "lion", "muon")
    if at and name.lower() not in tested and not value(document, "zero_allow_untested_optimizer"):
        why = f"DeepSpeed refuses {name} under ZeRO, which it has not been tested with"
        fix = 'add "zero_allow_untested_optimizer": true at the top level, or use AdamW'
        yield finding(document, ("optimizer", "type"), "error", "zero-untested-optimizer", why, fix)
    if at == 3 and name.lower() == "muon" and not off(document, ZERO, "reduce_scatter"):
        why = "Muon at stage 3 needs whole gradients: DeepSpeed refuses it with reduce_scatter, which is on by default"
        yield finding(document, (ZERO, "reduce_scatter"), "error", "muon-reduce-scatter", why, "set it to false")
    if at == 3 and name.lower() == "muon" and on(document, ZERO, "zero_quantized_gradients"):
        why = "DeepSpeed refuses Muon with quantized gradients"
        place = (ZERO, "zero_quantized_gradients")
        yield finding(document, place, "error", "muon-quantized", why, "turn one of them off")


def _scaling(document: Document, at: int) -> Iterator[Finding]:
    """Dividing gradients before their sum, which reduce-scatter does not know."""
    summed, factor = value(document, "gradient_allreduce_op"), number(document, "gradient_predivide_factor")
    place = ("gradient_predivide_factor",)
    if at < 2 and on(document, "prescale_gradients") and factor is not None and factor != 1:
        why = "has no effect beside prescale_gradients, which divides by the number of ranks before the sum"
        yield finding(document, place, "warning", "predivide-ignored", why, "delete one of the two")
    if at < 2 or off(document, ZERO, "reduce_scatter") or (at == 2 and str(summed).lower() == "sum"):
        return
    why = f"DeepSpeed refuses it at stage {at} with reduce_scatter, which is on by default"
    fix = "delete it, or set zero_optimization.reduce_scatter to false"
    if on(document, "prescale_gradients"):
        yield finding(document, ("prescale_gradients",), "error", "prescale-reduce-scatter", why, fix)
    if factor is not None and factor != 1:
        yield finding(document, place, "error", "prescale-reduce-scatter", why, fix)


def _allreduce(document: Document, at: int | None) -> Iterator[Finding]:
    operation, place = value(document, "gradient_allreduce_op"), ("gradient_allreduce_op",)
    if operation is None:
        return
    if not isinstance(operation, str) or operation.lower() not in ("mean", "sum"):
        why = "DeepSpeed refuses it: gradients are reduced by mean or sum"
        yield finding(document, place, "error", "allreduce-operation", why, 'write "mean", the default')
    elif operation.lower() == "sum":
        against = {
            "stage 3": at == 3,
            "ZenFlow": isinstance(raw(document, ZERO, "zenflow"), dict),
            "DeepCompile": on(document, "compile", "deepcompile"),
        }
        for name in [name for name, is_on in against.items() if is_on]:
            why = f"DeepSpeed refuses a sum of gradients with {name}"
            yield finding(document, place, "error", "allreduce-sum", why, 'write "mean"')


def _grad_norm(document: Document, at: int | None) -> Iterator[Finding]:
    place = (ZERO, "compute_grad_norm")
    if not off(document, *place):
        return
    clipping = raw(document, "gradient_clipping")
    bf16_optimizer = (
        precision(document) == "bf16" and dtype(value(document, "data_types", "grad_accum_dtype")) == "fp32" and at == 1
    )
    device, _ = offload(document, "optimizer")
    against = {
        f"at stage {at}": at in (0, 3),
        "while gradients are clipped, at 1.0 by default": clipping is None,
        "while gradients are clipped": (number(document, "gradient_clipping") or 0) > 0,
        "with ZenFlow": isinstance(raw(document, ZERO, "zenflow"), dict),
        "with an offloaded optimizer": device != "none",
        "at stage 1 in bf16 with fp32 accumulation": bf16_optimizer and device != "cpu",
    }
    for when in [when for when, is_so in against.items() if is_so]:
        fix = "set gradient_clipping to 0, or delete this key" if "clipped" in when else "delete it"
        yield finding(document, place, "error", "grad-norm-needed", f"DeepSpeed needs the norm {when}", fix)
