"""Where the optimizer and the weights go: offload to the CPU or NVMe, ZenFlow, SuperOffload."""

from __future__ import annotations

from collections.abc import Iterator

from lm_scale.strategy import known
from lm_scale.strategy.rules.findings import Finding, Setting, Severity
from lm_scale.strategy.rules.reading import (
    AUTO,
    ZERO,
    Document,
    block,
    finding,
    number,
    off,
    offload,
    on,
    raw,
    stage,
    value,
)

OPTIMIZER = (ZERO, "offload_optimizer")
ZENFLOW = (ZERO, "zenflow")


def findings(document: Document, setting: Setting) -> Iterator[Finding]:
    yield from _stages(document)
    yield from _old_names(document)
    yield from _nvme(document)
    yield from _ratio(document)
    yield from _client_optimizer(document)
    yield from _super_offload(document, setting)
    if isinstance(raw(document, *ZENFLOW), dict):
        yield from _zenflow(document, setting)


def _stages(document: Document) -> Iterator[Finding]:
    at = stage(document)
    if at is None:
        return
    device, place = offload(document, "param")
    if device != "none" and at < 3:
        why = f"DeepSpeed ignores it at stage {at}: the weights stay whole on every device"
        fix = f"set stage to 3, or delete {place[1]}"
        yield finding(document, place, "error", "offload-param-below-3", why, fix)
    device, place = offload(document, "optimizer")
    if device != "none" and at == 0:
        why = "nothing is offloaded without ZeRO; DeepSpeed only picks its slower CPU optimizer for it"
        fix = f"set stage to 1, 2 or 3, or delete {place[1]}"
        yield finding(document, place, "warning", "offload-optimizer-stage0", why, fix)
    if device == "nvme" and at in (1, 2):
        why = f"at stage {at} the optimizer goes to the CPU's memory: only stage 3 knows NVMe"
        yield finding(document, place, "warning", "nvme-below-3", why, 'set stage to 3, or write "device": "cpu"')
    if device != "none" and at in (1, 2) and off(document, ZERO, "contiguous_gradients"):
        why = "DeepSpeed turns it on regardless while the optimizer is offloaded"
        fix = "write true, or delete it"
        yield finding(document, (ZERO, "contiguous_gradients"), "warning", "contiguous-gradients-forced", why, fix)


def _old_names(document: Document) -> Iterator[Finding]:
    """An old name beside its new one: DeepSpeed's assertion counts presence, whatever the values are."""
    zero = block(document, ZERO)
    for old, new in (
        ("cpu_offload", "offload_optimizer"),
        ("cpu_offload_param", "offload_param"),
        ("stage3_gather_fp16_weights_on_model_save", "stage3_gather_16bit_weights_on_model_save"),
    ):
        other = next((name for name in (new, new.removeprefix("stage3_")) if zero.get(name, AUTO) != AUTO), None)
        if zero.get(old, AUTO) != AUTO and other is not None:
            why = f"the old name of {other}, which stands here too; DeepSpeed refuses the two together"
            yield finding(document, (ZERO, old), "error", "old-and-new-name", why, "delete it")
    if value(document, ZERO, "cpu_offload_use_pin_memory") is not None:
        why = "an old name without effect: pin_memory belongs into offload_optimizer and offload_param"
        fix = 'delete it; write "pin_memory" there'
        yield finding(document, (ZERO, "cpu_offload_use_pin_memory"), "warning", "pin-memory-ignored", why, fix)


def _nvme(document: Document) -> Iterator[Finding]:
    at = stage(document)
    for kind in ("offload_optimizer", "offload_param"):
        place = (ZERO, kind, "nvme_path")
        device, path = value(document, ZERO, kind, "device"), value(document, *place)
        if device == "nvme" and raw(document, *place) is None and at in (None, 3):
            why = "missing; DeepSpeed accepts the file and fails when it looks for the drive"
            yield finding(document, place, "error", "nvme-path-missing", why, "name a folder on the NVMe drive")
        if isinstance(path, str) and path.startswith("~"):
            why = "~ is not expanded: DeepSpeed makes a folder of that name in the current one"
            severity: Severity = "error" if device == "nvme" else "warning"
            yield finding(document, place, severity, "nvme-tilde", why, "write the whole path")
        if path is not None and device not in ("nvme", None):
            why = f'has no effect: the device is "{device}"'
            yield finding(document, place, "warning", "nvme-path-unused", why, 'write "device": "nvme", or delete it')
    place = (*OPTIMIZER, "fast_init")
    if on(document, *place) and value(document, *OPTIMIZER, "device") == "nvme":
        if value(document, ZERO, "offload_param", "device") == "nvme":
            why = "DeepSpeed then trains on weights that it never read from the drive; lm-scale refuses it"
            yield finding(document, place, "error", "nvme-fast-init", why, "set it to false")
        else:
            why = "has no effect unless the weights are on NVMe too, and lm-scale refuses it"
            yield finding(document, place, "warning", "nvme-fast-init", why, "set it to false")
    elif on(document, *place):
        yield finding(document, place, "note", "nvme-fast-init", "has no effect without NVMe", "delete it")
    devices = {offload(document, "optimizer")[0], offload(document, "param")[0]}
    if block(document, "aio") and "nvme" not in devices:
        why = "the block steers NVMe offload alone, and nothing goes to NVMe here"
        yield finding(document, ("aio",), "note", "aio-unused", why, "delete it")


def _ratio(document: Document) -> Iterator[Finding]:
    ratio, at = number(document, *OPTIMIZER, "ratio"), stage(document)
    if ratio is None or not 0 <= ratio < 1:
        return
    place = (*OPTIMIZER, "ratio")
    if at is not None and at != 3:
        why = f"DeepSpeed offloads a part of the optimizer only at stage 3, and refuses it at stage {at}"
        yield finding(document, place, "error", "offload-ratio", why, "set stage to 3, or delete ratio")
    name = value(document, "optimizer", "type")
    other = isinstance(name, str) and name.lower() not in ("adam", "adamw")
    torch_adam = on(document, "optimizer", "params", "torch_adam")
    if at == 3 and value(document, *OPTIMIZER, "device") in ("cpu", "nvme") and (other or torch_adam):
        why = "a ratio below 1 works with DeepSpeed's own CPU Adam alone; it refuses to start"
        fix = "use AdamW without torch_adam, or delete ratio"
        yield finding(document, place, "error", "offload-ratio-optimizer", why, fix)


def _client_optimizer(document: Document) -> Iterator[Finding]:
    """Without an optimizer in the file the code brings one, and offload takes only DeepSpeed's CPU optimizers."""
    device, place = offload(document, "optimizer")
    named = isinstance(raw(document, "optimizer"), dict) and raw(document, "optimizer", "type") is not None
    forced = not off(document, "zero_force_ds_cpu_optimizer")
    if device == "none" or stage(document) == 0:
        return
    if named and not forced:
        why = "has no effect: it is for an optimizer that the code brings, and the file names one"
        yield finding(
            document, ("zero_force_ds_cpu_optimizer",), "note", "force-cpu-optimizer-unused", why, "delete it"
        )
    if named or not forced:
        return
    why = (
        "the file names no optimizer, and DeepSpeed refuses to offload one that the code brings, unless it is "
        "DeepSpeedCPUAdam or DeepSpeedCPULion (Hugging Face's Trainer sees to it)"
    )
    fix = 'add an optimizer block, or "zero_force_ds_cpu_optimizer": false'
    yield finding(document, place, "note", "offload-client-optimizer", why, fix)


def _super_offload(document: Document, setting: Setting) -> Iterator[Finding]:
    place, at = (*OPTIMIZER, "super_offload"), stage(document)
    if not on(document, *place):
        if value(document, *OPTIMIZER, "cpuadam_cores_perc") is not None:
            why = "has no effect without super_offload"
            yield finding(document, (*OPTIMIZER, "cpuadam_cores_perc"), "note", "super-offload-key", why, "delete it")
        return
    if at is not None and at != 3:
        why = f"DeepSpeed ignores it at stage {at}"
        yield finding(document, place, "error", "super-offload-below-3", why, "set stage to 3, or turn it off")
    elif setting.device != "gpu":
        severity: Severity = "error" if setting.device == "cpu" else "note"
        why = "SuperOffload runs on NVIDIA GPUs only; elsewhere DeepSpeed refuses to start"
        yield finding(document, place, severity, "super-offload-cuda", why, "turn it off there")


def _zenflow(document: Document, setting: Setting) -> Iterator[Finding]:
    at = stage(document)
    device, _ = offload(document, "optimizer")
    if at == 0:
        why = "DeepSpeed ignores ZenFlow without ZeRO, but for gradient_accumulation_steps, which it overwrites"
        yield finding(document, ZENFLOW, "error", "zenflow-stage0", why, "set stage to 1, 2 or 3, or delete zenflow")
    if device == "none" and at in (1, 2):
        why = "ZenFlow works on an offloaded optimizer alone; DeepSpeed refuses to start"
        fix = 'add "offload_optimizer": {"device": "cpu"}, or delete zenflow'
        yield finding(document, ZENFLOW, "error", "zenflow-offload", why, fix)
    if at == 3 and setting.device != "gpu":
        severity: Severity = "error" if setting.device == "cpu" else "note"
        why = "at stage 3 ZenFlow allocates on CUDA; elsewhere it fails"
        yield finding(document, ZENFLOW, severity, "zenflow-cuda", why, "delete it there")
    takes = known.table()["optimizers"]["adamw"]["variants"]["torch"]
    for key in [key for key in block(document, "optimizer", "params") if at in (1, 2) and key not in takes]:
        why = f"ZenFlow passes the optimizer's params on to torch's AdamW, which knows no {key}"
        yield finding(document, ("optimizer", "params", key), "error", "zenflow-parameter", why, "delete it")
    if on(document, *ZENFLOW, "offload") and not _overlaps(document, at):
        why = "ZenFlow's own offload needs overlap_comm, which is off; DeepSpeed refuses to start"
        yield finding(document, (*ZENFLOW, "offload"), "error", "zenflow-overlap", why, "set overlap_comm to true")
    interval = value(document, *ZENFLOW, "update_interval")
    every = interval if isinstance(interval, int) and not isinstance(interval, bool) else None
    accumulated = number(document, "gradient_accumulation_steps")
    if accumulated is not None and accumulated != every:
        why = f"ZenFlow overwrites it with its update_interval ({every or '0, as that is automatic'})"
        fix = f"write update_interval {accumulated:g} in zenflow, or delete this key"
        place = ("gradient_accumulation_steps",)
        yield finding(document, place, "error", "zenflow-accumulation", why, fix)
    yield from _zenflow_intervals(document, every)


def _overlaps(document: Document, at: int | None) -> bool:
    """`overlap_comm` as it will be: its default is true at stage 3 alone."""
    if value(document, ZERO, "overlap_comm") is None:
        return at == 3 or at is None
    return on(document, ZERO, "overlap_comm")


def _zenflow_intervals(document: Document, update: int | None) -> Iterator[Finding]:
    strategy, selection = value(document, *ZENFLOW, "select_strategy"), number(document, *ZENFLOW, "select_interval")
    place = (*ZENFLOW, "select_interval")
    if strategy is None and selection is not None:
        why = "DeepSpeed refuses a number here while select_strategy is automatic"
        fix = 'write "select_strategy": "step" or "epoch", or delete this key'
        yield finding(document, place, "error", "zenflow-interval", why, fix)
    if strategy in ("step", "epoch") and selection is None:
        why = f'DeepSpeed refuses "auto" here beside select_strategy "{strategy}"'
        yield finding(document, place, "error", "zenflow-interval", why, "write a number of steps or epochs")
    if strategy == "step" and selection is not None and update is not None and selection < update:
        why = f"DeepSpeed refuses a selection more often than the update every {update} steps"
        yield finding(document, place, "error", "zenflow-interval", why, f"write {update} or more")
