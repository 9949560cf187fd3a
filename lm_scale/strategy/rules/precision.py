"""Number types: bf16 and fp16, loss scaling, master weights, accumulation and communication in less than fp32."""

from __future__ import annotations

from collections.abc import Iterator

from lm_scale.strategy.rules.findings import Finding, Setting, Severity
from lm_scale.strategy.rules.reading import (
    DTYPES,
    ZERO,
    Document,
    dtype,
    finding,
    half_block,
    number,
    offload,
    on,
    precision,
    raw,
    stage,
    value,
)

DYNAMIC_ONLY = ("initial_scale_power", "loss_scale_window", "hysteresis", "consecutive_hysteresis", "min_loss_scale")


def findings(document: Document, setting: Setting) -> Iterator[Finding]:
    yield from _which(document, setting)
    yield from _loss_scale(document)
    yield from _master_weights(document)
    yield from _names(document)
    yield from _accumulation(document)
    yield from _autocast(document)


def _which(document: Document, setting: Setting) -> Iterator[Finding]:
    bf16 = half_block(document)
    if on(document, bf16, "enabled") and on(document, "fp16", "enabled"):
        why = f"{bf16} and fp16 are both on; DeepSpeed refuses to start"
        fix = f"turn fp16 off, or turn {bf16} off if the device multiplies no bf16"
        yield finding(document, ("fp16", "enabled"), "error", "precision-both", why, fix)
    if raw(document, "bf16") is not None and raw(document, "bfloat16") is not None:
        severity: Severity = "warning" if raw(document, "bf16") == raw(document, "bfloat16") else "error"
        why = "bf16 stands beside it, and DeepSpeed then never looks at bfloat16, its old name"
        yield finding(document, ("bfloat16",), severity, "bfloat16-ignored", why, "delete it; bf16 alone counts")
    if on(document, "fp16", "enabled") and setting.device != "gpu":
        severity = "error" if setting.device == "cpu" else "note"
        why = "DeepSpeed refuses fp16 on a CPU, unless it has native fp16 products (AMX-FP16)"
        fix = "use bf16 or fp32 there"
        yield finding(document, ("fp16", "enabled"), severity, "fp16-on-cpu", why, fix)


def _loss_scale(document: Document) -> Iterator[Finding]:
    if not on(document, "fp16", "enabled"):
        return
    fixed = number(document, "fp16", "loss_scale")
    if fixed:
        for key in DYNAMIC_ONLY:
            if value(document, "fp16", key) is not None:
                why = f"has no effect: loss_scale {fixed:g} is fixed, and this steers the dynamic one"
                fix = "set loss_scale to 0 for dynamic scaling, or delete this key"
                yield finding(document, ("fp16", key), "note", "loss-scale-fixed", why, fix)
        return
    for key, default in (("min_loss_scale", 1), ("loss_scale_window", 1000)):
        least = number(document, "fp16", key)
        if least is not None and least <= 0:
            why = "DeepSpeed refuses it: must be above 0 while loss scaling is dynamic (loss_scale 0)"
            yield finding(document, ("fp16", key), "error", "loss-scale-range", why, f"write {default}, the default")


def _master_weights(document: Document) -> Iterator[Finding]:
    """Master weights in half precision need the CPU's Adam; bf16 ones may stay on the device with bf16 states."""
    fp16_weights = ("fp16", "fp16_master_weights_and_grads")
    bf16_weights = ("bf16", "bf16_master_weights_and_grads")
    bf16_states = ("bf16", "bf16_optimizer_states")
    at = stage(document)
    is_on = {place: on(document, *place) for place in (fp16_weights, bf16_weights, bf16_states)}
    for place in is_on:
        if is_on[place] and at == 0:
            why = "DeepSpeed refuses it without ZeRO"
            fix = "set zero_optimization.stage to 1, 2 or 3, or turn it off"
            yield finding(document, place, "error", "master-weights-stage0", why, fix)
    if is_on[fp16_weights] and is_on[bf16_weights]:
        why = "DeepSpeed refuses it together with bf16_master_weights_and_grads"
        yield finding(document, fp16_weights, "error", "master-weights-both", why, "keep the one of your precision")
    if is_on[bf16_states] and not is_on[bf16_weights]:
        why = "DeepSpeed refuses it without bf16_master_weights_and_grads"
        yield finding(document, bf16_states, "error", "master-weights-missing", why, "turn that on too")
    device, _ = offload(document, "optimizer")
    for place in (fp16_weights, bf16_weights):
        on_device = place == bf16_weights and is_on[bf16_states] and device == "none"
        if is_on[place] and at and not on_device and not _cpu_adam(document, device):
            why = "DeepSpeed refuses it without offload_optimizer and its own CPU Adam"
            fix = 'set zero_optimization.offload_optimizer.device to "cpu" and use AdamW without torch_adam'
            if place == bf16_weights:
                fix += ", or turn bf16_optimizer_states on without offload"
            yield finding(document, place, "error", "master-weights-offload", why, fix)


def _cpu_adam(document: Document, device: str) -> bool:
    """Whether DeepSpeed builds its CPU Adam, or the code may bring one (no optimizer in the file)."""
    name = value(document, "optimizer", "type")
    adam = not isinstance(name, str) or name.lower() in ("adam", "adamw")
    return device != "none" and adam and not on(document, "optimizer", "params", "torch_adam")


def _names(document: Document) -> Iterator[Finding]:
    """Names of number types that DeepSpeed does not know, and a weight type beside another precision."""
    for key in ("communication_data_type", "seq_parallel_communication_data_type"):
        name = value(document, key)
        if name is not None and not (isinstance(name, str) and name.lower() in ("fp16", "bf16", "fp32")):
            fix = f'write "{dtype(name)}"' if dtype(name) else 'write "fp16", "bf16" or "fp32"'
            why = "DeepSpeed refuses it: it takes fp16, bf16 and fp32 here"
            yield finding(document, (key,), "error", "dtype-unknown", why, fix)
    places = [("data_types", key) for key in ("grad_accum_dtype", "param_dtype", "buffer_dtype")]
    for place in [*places, ("torch_autocast", "dtype")]:
        name = value(document, *place)
        if name is not None and dtype(name) is None:
            why = f"no number type that DeepSpeed knows ({', '.join(DTYPES)}); it fails when the engine starts"
            yield finding(document, place, "error", "dtype-unknown", why, 'write "fp32", "bf16" or "fp16"')
    wanted, held = dtype(value(document, "data_types", "param_dtype")), precision(document)
    if wanted is not None and held is not None and wanted != held:
        why = f"contradicts the precision that is on, {held}; DeepSpeed refuses to start"
        fix = f"turn {wanted} on in its own block, or delete this key"
        yield finding(document, ("data_types", "param_dtype"), "error", "param-dtype", why, fix)


def _accumulation(document: Document) -> Iterator[Finding]:
    held, at = precision(document), stage(document)
    wire = value(document, "communication_data_type")
    if held == "bf16" and isinstance(wire, str) and wire.lower() == "fp16":
        why = "bf16 gradients are cast to fp16 on the wire: above 65,504 they become infinite, and nothing scales them"
        fix = 'write "bf16", or "fp32" for exact sums, or delete the key'
        yield finding(document, ("communication_data_type",), "warning", "communication-narrower", why, fix)
    place = ("data_types", "grad_accum_dtype")
    accumulated = dtype(value(document, *place))
    if accumulated is None or held is None or accumulated == held:
        return
    if at == 0:
        why = f"without ZeRO DeepSpeed accumulates in the model's own type, {held}, and refuses any other"
        fix = "set zero_optimization.stage to 1 or more, or delete this key"
        yield finding(document, place, "error", "grad-accum-dtype-stage0", why, fix)
    if at == 1 and held == "bf16" and accumulated == "fp32" and offload(document, "optimizer")[0] != "cpu":
        why = (
            "stage 1 in bf16 with fp32 accumulation runs DeepSpeed's BF16_Optimizer, which keeps a whole fp32 copy of "
            "the gradients on every rank (4 bytes a parameter, not divided): more than stage 2 takes"
        )
        yield finding(document, place, "warning", "bf16-optimizer-memory", why, "use stage 2, which divides them")


def _autocast(document: Document) -> Iterator[Finding]:
    if not on(document, "torch_autocast", "enabled"):
        return
    if on(document, ZERO, "zero_quantized_weights"):
        why = "DeepSpeed refuses quantized weights together with torch_autocast"
        place = (ZERO, "zero_quantized_weights")
        yield finding(document, place, "error", "autocast-quantized", why, "turn one of them off")
    held = precision(document)
    if held in ("bf16", "fp16"):
        why = f"{held} is on too: the weights are {held} already, and autocast only adds casts"
        fix = f"keep one: torch_autocast holds the weights in fp32, {held} holds them in {held}"
        yield finding(document, ("torch_autocast", "enabled"), "warning", "autocast-and-half", why, fix)
