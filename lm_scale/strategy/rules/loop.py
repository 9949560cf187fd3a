"""What goes around the optimizer: pipeline, parallel layouts, printing, profiling, checkpoints, recomputation."""

from __future__ import annotations

from collections.abc import Iterator

from lm_scale.strategy.rules.findings import Finding, Setting, Severity
from lm_scale.strategy.rules.reading import (
    AUTO,
    ZERO,
    Document,
    finding,
    has_auto,
    number,
    offload,
    on,
    pipeline_stages,
    precision,
    raw,
    stage,
    value,
)

RECOMPUTATION = "activation_checkpointing"


def findings(document: Document, setting: Setting) -> Iterator[Finding]:
    yield from _pipeline(document)
    yield from _printing(document)
    yield from _sequence_parallel(document)
    yield from _tensor_parallel(document)
    yield from _accumulation(document)
    yield from _compilation(document, setting)
    yield from _recomputation(document)
    yield from _checkpoint(document)
    yield from _aio(document, setting)


def _pipeline(document: Document) -> Iterator[Finding]:
    """A pipeline is sure where `pipeline.stages` asks for one; a block alone speaks of one that the code may build."""
    stages, at = pipeline_stages(document), stage(document)
    if stages is None:
        return
    severity: Severity = "error" if stages > 1 else "warning"
    if at is not None and at >= 2:
        why = f"ZeRO stage {at} does not go with a pipeline; DeepSpeed refuses to start one"
        yield finding(document, (ZERO, "stage"), severity, "pipeline-zero", why, "set it to 1, or delete the pipeline")
    timed = on(document, "wall_clock_breakdown") or on(document, "flops_profiler", "enabled")
    if timed and raw(document, "steps_per_print") is None:
        why = "a pipeline with wall_clock_breakdown fails after its first step where steps_per_print is not set"
        yield finding(document, ("steps_per_print",), severity, "pipeline-steps-per-print", why, "set it, say to 10")
    for key in ("pipe_partitioned", "grad_partitioned"):
        stated = raw(document, "pipeline", key)
        if stated is not None and not isinstance(stated, bool):
            why = "DeepSpeed refuses anything but true and false here"
            yield finding(document, ("pipeline", key), severity, "pipeline-switch", why, "write true or false")
    if at == 0 and stages > 1 and not _clipping_off(document) and precision(document) in (None, "fp32"):
        why = (
            "in fp32 without ZeRO DeepSpeed clips a pipeline by the norm of its first stage alone (clip_grad_norm_ in "
            "runtime/utils.py counts no other); lm-scale counts them all"
        )
        fix = "use ZeRO stage 1 where another program runs the file"
        yield finding(document, ("gradient_clipping",), "note", "pipeline-clipping", why, fix)


def _clipping_off(document: Document) -> bool:
    stated = number(document, "gradient_clipping")
    return stated is not None and stated <= 0


def _printing(document: Document) -> Iterator[Finding]:
    if number(document, "steps_per_print") == 0:
        why = "DeepSpeed divides by it at every step and fails at the first; Trainer and Accelerate overwrite it"
        fix = "delete it to print nothing, or write the number of steps between lines"
        severity: Severity = "warning" if has_auto(document) else "error"
        yield finding(document, ("steps_per_print",), severity, "steps-per-print-zero", why, fix)
    if on(document, "flops_profiler", "enabled") and not on(document, "wall_clock_breakdown"):
        why = "turns wall_clock_breakdown on too, which waits for the device at every phase: the run gets slower"
        place = ("flops_profiler", "enabled")
        yield finding(document, place, "note", "profiler-forces-timers", why, "turn it off when you measure speed")
    elif on(document, "wall_clock_breakdown"):
        why = "waits for the device around every phase, so the run gets slower"
        yield finding(
            document, ("wall_clock_breakdown",), "note", "timers-synchronize", why, "turn it off when you measure speed"
        )


def _sequence_parallel(document: Document) -> Iterator[Finding]:
    size = number(document, "sequence_parallel_size")
    if size is not None and size > 1 and value(document, "data_parallel_size") is None:
        why = (
            "without data_parallel_size DeepSpeed builds no mesh for it: it only divides the world size of the batch "
            "by it, unless the code passes its own groups (Accelerate does)"
        )
        fix = f"add data_parallel_size: the world size over {size:g}"
        yield finding(document, ("sequence_parallel_size",), "warning", "sequence-parallel-mesh", why, fix)


def _tensor_parallel(document: Document) -> Iterator[Finding]:
    size = number(document, "tensor_parallel", "autotp_size")
    for name in ("tp", "tensor_parallel"):
        place = ("tensor_parallel", name, "tp_size")
        other = number(document, *place)
        if size is not None and size > 1 and other is not None and other not in (1, size):
            why = f"autotp_size beside it says {size:g}; DeepSpeed refuses two sizes"
            yield finding(document, place, "error", "tensor-parallel-sizes", why, "delete it")


def _accumulation(document: Document) -> Iterator[Finding]:
    place = ("managed_gradient_accumulation",)
    if raw(document, *place) is not False:
        return
    against = {
        "overlap_comm below stage 2": on(document, ZERO, "overlap_comm") and stage(document) in (0, 1),
        "a pipeline": (pipeline_stages(document) or 0) > 1,
        "DeepCompile": on(document, "compile", "deepcompile"),
    }
    for name in [name for name, is_so in against.items() if is_so]:
        why = f"DeepSpeed refuses false here together with {name}"
        fix = "set zero_optimization.overlap_comm to false" if "overlap" in name else "delete it"
        yield finding(document, place, "error", "unmanaged-accumulation", why, fix)


def _compilation(document: Document, setting: Setting) -> Iterator[Finding]:
    if on(document, "compile", "deepcompile") and setting.device != "gpu":
        severity: Severity = "error" if setting.device == "cpu" else "note"
        why = "DeepCompile runs on CUDA alone; elsewhere nothing is compiled"
        yield finding(document, ("compile", "deepcompile"), severity, "deepcompile-cuda", why, "turn it off there")
    experts = ("compile", "autoep_non_moe")
    if on(document, *experts):
        against = {
            "DeepCompile": on(document, "compile", "deepcompile"),
            "ZeRO stage 3": stage(document) == 3,
            "an offloaded optimizer": offload(document, "optimizer")[0] != "none",
            "offloaded weights": offload(document, "param")[0] != "none",
            "tensor parallelism": (number(document, "tensor_parallel", "autotp_size") or 0) > 1,
            "a pipeline": (pipeline_stages(document) or 0) > 1,
        }
        for name in [name for name, is_so in against.items() if is_so]:
            why = f"DeepSpeed refuses it together with {name}"
            yield finding(document, experts, "error", "autoep-compile", why, "turn it off")


def _recomputation(document: Document) -> Iterator[Finding]:
    """What `deepspeed.checkpointing.configure` asserts, which a script may call; else the block has no effect."""
    place = (RECOMPUTATION, "contiguous_memory_optimization")
    if not on(document, *place):
        return
    if not on(document, RECOMPUTATION, "partition_activations"):
        why = "needs partition_activations, and deepspeed.checkpointing.configure() fails without"
        fix = "set partition_activations to true, or this to false"
        yield finding(document, place, "warning", "act-ckpt-partition", why, fix)
    if not raw(document, RECOMPUTATION, "number_checkpoints"):
        why = "missing: contiguous_memory_optimization needs it, and deepspeed.checkpointing.configure() fails without"
        fix = "write the number of checkpointed layers, or set contiguous_memory_optimization to false"
        yield finding(document, (RECOMPUTATION, "number_checkpoints"), "warning", "act-ckpt-number", why, fix)


def _checkpoint(document: Document) -> Iterator[Finding]:
    """Values of the `checkpoint` block, which DeepSpeed reads by hand and compares in upper case."""
    for place, allowed in (
        (("checkpoint", "tag_validation"), ("Ignore", "Warn", "Fail")),
        (("checkpoint", "writer", "type"), ("FAST", "PYTHON", "MOCK")),
        (("checkpoint", "writer", "data_parallel"), ("REPLICA", "SOCKET", "MACHINE")),
    ):
        stated = raw(document, *place)
        if stated is not None and not (isinstance(stated, str) and stated.upper() in {one.upper() for one in allowed}):
            why = f"DeepSpeed refuses it: it takes {', '.join(allowed)}"
            yield finding(document, place, "error", "checkpoint-value", why, f'write "{allowed[0]}", or delete it')
    place = ("checkpoint", "parallel_write", "pipeline_stage")
    stated = raw(document, *place)
    if stated is not None and stated not in (True, False):
        why = "DeepSpeed refuses anything but true and false"
        yield finding(document, place, "error", "checkpoint-value", why, "write true or false")


def _aio(document: Document, setting: Setting) -> Iterator[Finding]:
    stated = raw(document, "aio", "use_gds")
    if stated and stated != AUTO and setting.device != "gpu":
        severity: Severity = "error" if setting.device == "cpu" else "note"
        why = "GPUDirect storage is CUDA's; elsewhere DeepSpeed refuses to start"
        yield finding(document, ("aio", "use_gds"), severity, "gds-cuda", why, "set it to false there")
