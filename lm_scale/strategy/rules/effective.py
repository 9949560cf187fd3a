"""What runs where the file says nothing: the values after DeepSpeed's defaults, and those that surprise."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lm_scale.strategy import known
from lm_scale.strategy.rules import optimizer, scheduler
from lm_scale.strategy.rules.findings import Finding, Place, Setting
from lm_scale.strategy.rules.reading import (
    AUTO,
    ZERO,
    Document,
    dtype,
    finding,
    number,
    offload,
    on,
    precision,
    raw,
    stage,
    value,
)

BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
CLIPPING = ("gradient_clipping",)
BUCKET = (ZERO, "reduce_bucket_size")
REUSE = (ZERO, "stage3_max_reuse_distance")
ACCUMULATED = ("data_types", "grad_accum_dtype")
STAGE_3_SIZES = (
    "stage3_prefetch_bucket_size",
    "stage3_param_persistence_threshold",
    "stage3_max_live_parameters",
    "stage3_max_reuse_distance",
    "sub_group_size",
)

Effective = tuple[str, Any, str]
"""A dotted path, the value that counts, and where it comes from."""


def findings(document: Document, setting: Setting) -> Iterator[Finding]:
    yield from _clipping(document)
    held, at = precision(document), stage(document)
    if held == "fp32" and not on(document, "torch_autocast", "enabled"):
        why = "nothing turns half precision on: weights, gradients and products are fp32"
        fix = 'add "bf16": {"enabled": true} if the device multiplies bf16'
        yield finding(document, ("bf16", "enabled"), "note", "precision-fp32", why, fix)
    if held == "bf16" and value(document, *ACCUMULATED) is None and at is not None:
        steps = number(document, "gradient_accumulation_steps")
        sums = "sums over ranks" if steps == 1 else f"{f'{steps:g}' if steps else 'all'} micro-batches and over ranks"
        why = f"absent: gradients are summed in bf16 too ({sums}), with 8 bits of mantissa"
        fix = 'set it to "fp32" at stage 2 or 3, at 4 bytes a parameter' if at else "use ZeRO to choose another"
        yield finding(document, ACCUMULATED, "note", "bf16-accumulation", why, fix)
    if at and raw(document, *BUCKET) is None:
        size = int(_default(BUCKET))
        held_bytes = _bucket_bytes(document, size)
        in_bytes = f" = {held_bytes:,} bytes a rank" if held_bytes else ""
        why = f"absent: {size:,} elements{in_bytes}, however small the model is"
        fix = "write a size below the model's number of parameters"
        yield finding(document, BUCKET, "note", "bucket-default", why, fix)
    if at == 3:
        distance = number(document, *REUSE)
        distance = _default(REUSE) if distance is None else distance
        if raw(document, *REUSE) != AUTO and distance >= _default(REUSE):
            why = (
                f"{distance:,.0f} elements: weights used again within that distance are not released, so a model below "
                f"some {distance / 2:,.0f} parameters stays whole on every device after the first step"
            )
            fix = "write less than the model's number of parameters to have them released"
            yield finding(document, REUSE, "note", "reuse-keeps-weights", why, fix)


def effective(document: Document) -> list[Effective]:
    """Everything that matters, after defaults, in the order in which one asks for it.

    The source is `file`, `default` (DeepSpeed's), `"auto"` (to be filled; bare DeepSpeed takes the default) or the rule
    by which another value gives it.
    """
    held, at = precision(document), stage(document)
    rows: list[Effective] = [
        ("precision", held or "auto", "file" if held and held != "fp32" else '"auto"' if held is None else "default"),
        _row(document, CLIPPING),
        _row(document, (ZERO, "stage"), at),
    ]
    if held == "fp16":
        fixed = number(document, "fp16", "loss_scale")
        power = number(document, "fp16", "initial_scale_power")
        power = 16 if power is None else power
        scale = fixed or f"dynamic, from 2^{power:g}"
        rows.append(("fp16.loss_scale", scale, "default" if fixed is None else "file"))
    accumulated = dtype(value(document, *ACCUMULATED))
    rows.append((".".join(ACCUMULATED), accumulated or held or AUTO, "file" if accumulated else "the precision"))
    named = value(document, "communication_data_type")
    rows.append(("communication_data_type", named or held or AUTO, "file" if named else "the precision"))
    if at:
        rows += _zero(document, at)
    return rows + _rates(document)


def _zero(document: Document, at: int) -> list[Effective]:
    place, size, source = _row(document, BUCKET)
    rows: list[Effective] = [(place, size, source)]
    elements = number({ZERO: {"reduce_bucket_size": size}}, *BUCKET)
    held_bytes = None if elements is None else _bucket_bytes(document, int(elements))
    if held_bytes is not None:
        rows.append(("bucket bytes a rank", held_bytes, "reduce_bucket_size"))
    stated = value(document, ZERO, "overlap_comm")
    rows.append((f"{ZERO}.overlap_comm", at == 3 if stated is None else stated, "stage" if stated is None else "file"))
    for kind in ("optimizer", "param"):
        device, where = offload(document, kind)
        written = raw(document, *where) is not None
        rows.append((f"{ZERO}.offload_{kind}.device", device, "file" if written else "default"))
    if at == 3:
        rows += [_row(document, (ZERO, key)) for key in STAGE_3_SIZES]
    return rows


def _rates(document: Document) -> list[Effective]:
    rows: list[Effective] = []
    takes = optimizer.signature(document)
    if takes:
        name = raw(document, *optimizer.NAME)
        adam_w = name.lower() == "adam" and raw(document, *optimizer.PARAMETERS, "adam_w_mode") is not False
        rows.append(("optimizer.type", "AdamW" if adam_w else name, "DeepSpeed's Adam" if adam_w else "file"))
    for key in ("lr", "weight_decay", "betas", "eps"):
        if key in takes:
            rows.append(_row(document, (*optimizer.PARAMETERS, key), takes[key]))
    name = raw(document, *scheduler.NAME)
    told = known.table()["schedulers"].get(name) if isinstance(name, str) else None
    for key, default in (told or {}).get("parameters", {}).items():
        if key != "last_batch_iteration":
            rows.append(_row(document, (*scheduler.PARAMETERS, key), default))
    return rows


def _row(document: Document, place: Place, default: Any = None) -> Effective:
    """The value at a place, or else its default: the one given, or the table's."""
    stated = raw(document, *place)
    if stated is None:
        return ".".join(place), _default(place) if default is None else default, "default"
    return ".".join(place), stated, '"auto"' if stated == AUTO else "file"


def _default(place: Place) -> Any:
    """DeepSpeed's default, from the table; None where it has none."""
    key = known.key(place)
    return None if key is None or key.default is known.MISSING else key.default


def _bucket_type(document: Document) -> str | None:
    """The number type of the buckets that gradients are reduced in; None where the precision is open.

    At stage 3 that of the wire (stage3.py:780), below that of the gradients as they are accumulated
    (`_gradient_reduction_buffer_dtype`, stage_1_and_2.py).
    """
    held, at = precision(document), stage(document)
    if at == 3:
        return dtype(value(document, "communication_data_type")) or held
    accumulated = dtype(value(document, *ACCUMULATED)) if at == 1 else None
    return accumulated or held


def _bucket_bytes(document: Document, elements: int) -> int | None:
    """Bytes of the buckets; None where their type is open. Two below stage 3 while reduction overlaps backward.

    They are as large as the setting says, whatever the model's size (stage_1_and_2.py:3256-3280, stage3.py:780-784).
    """
    kind = _bucket_type(document)
    overlaps = on(document, ZERO, "overlap_comm") and stage(document) in (1, 2)
    return elements * BYTES[kind] * (2 if overlaps else 1) if kind in BYTES else None


def _clipping(document: Document) -> Iterator[Finding]:
    if raw(document, *CLIPPING) is None and "gradient_clipping" not in document:
        why = f"absent: DeepSpeed clips gradients at norm {_default(CLIPPING)} all the same (older releases did not)"
        fix = "write 1.0 if you mean it, 0 for no clipping"
        yield finding(document, CLIPPING, "warning", "clip-default", why, fix)
    stated = number(document, *CLIPPING)
    if stated is not None and stated < 0:
        why = "DeepSpeed takes anything not above 0 for no clipping"
        yield finding(document, CLIPPING, "warning", "clip-negative", why, "write 0, or the norm that you mean")
