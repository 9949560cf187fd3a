"""The optimizer block, checked against the signature of what DeepSpeed builds from it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from lm_scale.strategy import known
from lm_scale.strategy.rules import scheduler
from lm_scale.strategy.rules.findings import Finding, Setting
from lm_scale.strategy.rules.reading import (
    AUTO,
    Document,
    block,
    finding,
    nearest,
    number,
    off,
    offload,
    on,
    raw,
    stage,
)

OPTIMIZER = ("optimizer",)
NAME = ("optimizer", "type")
PARAMETERS = ("optimizer", "params")
REMOVED = ("onebitadam", "zerooneadam", "onebitlamb")
"""The 1-bit optimizers, gone from DeepSpeed 0.19 (https://github.com/deepspeedai/DeepSpeed/issues/8489)."""
FORMER = {
    "cpuadam": "AdamW",
    "deepspeedcpuadam": "AdamW",
    "fusedadam": "AdamW",
    "fusedlamb": "Lamb",
    "fusedlion": "Lion",
}
"""Classes that DeepSpeed picks by itself behind the names of the JSON."""

RANGES = {
    "lr": (0, math.inf, "of 0 or more"),
    "eps": (0, math.inf, "of 0 or more"),
    "weight_decay": (0, math.inf, "of 0 or more"),
    "betas": (0, 1, "of 0 or more and below 1"),
}


def findings(document: Document, setting: Setting) -> Iterator[Finding]:
    """Of the optimizer block and of the scheduler block, which drives it."""
    stated = raw(document, *OPTIMIZER)
    if stated is None:
        yield from _missing(document)
    elif isinstance(stated, dict):
        name = raw(document, *NAME)
        if name is None:
            why = "missing: DeepSpeed then builds no optimizer and ignores the block"
            yield finding(document, NAME, "error", "optimizer-type-missing", why, 'name it, for example "AdamW"')
        elif name != AUTO:
            yield from _named(document, name)
    yield from scheduler.findings(document, setting)


def signature(document: Document) -> dict[str, Any]:
    """The parameters of the optimizer that DeepSpeed builds, with their defaults; empty where the name is unknown.

    DeepSpeed's own optimizers have one signature on the device, another on the CPU for offload, a third as torch's.
    """
    name = raw(document, *NAME)
    told = _told(name) if isinstance(name, str) else None
    if told is None:
        return {}
    variants = told["variants"]
    which = "offload" if offload(document, "optimizer")[0] != "none" else "device"
    if on(document, *PARAMETERS, "torch_adam") and "torch" in variants:
        which = "torch"
    return {**told.get("own", {}), **variants.get(which, variants["device"])}


def _told(name: str) -> dict[str, Any] | None:
    """What the table knows of an optimizer; DeepSpeed's own in any case, torch's in their own spelling."""
    table = known.table()["optimizers"]
    lower = table.get(name.lower())
    found: dict[str, Any] | None = lower if lower and not lower.get("torch") else table.get(name)
    return found


def _missing(document: Document) -> Iterator[Finding]:
    at = stage(document)
    without = {
        0: "fails at the first backward",
        1: "refuses to start",
        2: "refuses to start",
        3: "silently builds an engine for inference, which cannot train",
    }
    fate = f", or else DeepSpeed {without[at]}" if at is not None else ""
    why = f"none in the file: the code must pass one to deepspeed.initialize{fate}"
    yield finding(document, OPTIMIZER, "note", "optimizer-missing", why, "name one here, or see that the code does")


def _named(document: Document, name: Any) -> Iterator[Finding]:
    if not isinstance(name, str) or _told(name) is None:
        if isinstance(name, str) and name.lower() in REMOVED:
            why = f"{name} was removed from DeepSpeed with the other 1-bit optimizers; the engine does not start"
            replacement = "Lamb" if "lamb" in name.lower() else "AdamW"
            yield finding(document, NAME, "error", "optimizer-removed", why, f'write "{replacement}"')
            return
        text = str(name)
        near = FORMER.get(text.lower()) or nearest(text, known.table()["optimizers"])
        why = "no optimizer that DeepSpeed can build: neither one of its own nor one of torch.optim"
        fix = f'did you mean "{_proper(near)}"?' if near else 'write "AdamW", or pass your own optimizer in the code'
        yield finding(document, NAME, "error", "optimizer-unknown", why, fix)
        return
    yield from _parameters(document, name)
    yield from _adam(document, name)
    if name.lower().startswith("mu") and name.lower() != "muon":
        why = f"{name} comes from the package mup, which must be installed"
        yield finding(document, NAME, "note", "optimizer-package", why, "pip install mup")
    scale = number(document, "fp16", "loss_scale")
    if name.lower() == "lamb" and scale:
        why = "DeepSpeed refuses Lamb with a fixed loss scale"
        place = ("fp16", "loss_scale")
        yield finding(document, place, "error", "lamb-loss-scale", why, "set it to 0 for dynamic scaling")


def _proper(name: str) -> str:
    """The usual spelling of DeepSpeed's own names."""
    return {"adam": "Adam", "adamw": "AdamW", "adagrad": "Adagrad", "lion": "Lion", "lamb": "Lamb", "muon": "Muon"}.get(
        name, name
    )


def _parameters(document: Document, name: str) -> Iterator[Finding]:
    takes, told = signature(document), _told(name) or {}
    torch_adam = on(document, *PARAMETERS, "torch_adam") and "torch" in told["variants"]
    offloads = offload(document, "optimizer")[0] != "none"
    reserved = told.get("reserved", {}).get("offload" if offloads and not torch_adam else "device", [])
    for key, given in block(document, *PARAMETERS).items():
        place = (*PARAMETERS, key)
        if key == "max_grad_norm":
            why = "DeepSpeed refuses it here"
            fix = f"delete it, and write gradient_clipping {given} at the top level"
            yield finding(document, place, "error", "optimizer-max-grad-norm", why, fix)
        elif key in reserved:
            why = f"DeepSpeed passes it to {name} itself, and fails on a second one"
            fix = "write adam_w_mode" if key == "adamw_mode" else "delete it"
            yield finding(document, place, "error", "optimizer-parameter-unknown", why, fix)
        elif key not in takes:
            near = nearest(key, takes)
            ignored = told.get("open", False)
            why = f"no parameter of {name}{' with torch_adam' if torch_adam else ' on the CPU' if offloads else ''}; "
            why += "DeepSpeed ignores it" if ignored else "the engine does not start"
            fix = f"did you mean {near}?" if near else "delete it"
            yield finding(document, place, "error", "optimizer-parameter-unknown", why, fix)
        else:
            yield from _parameter_value(document, name, key, given, takes[key], torch_adam)
    for key, default in takes.items():
        if isinstance(default, dict) and default.get("required") and key not in block(document, *PARAMETERS):
            why = f"missing: {name} has no default for it; the engine does not start"
            yield finding(document, (*PARAMETERS, key), "error", "optimizer-parameter-missing", why, "write it")


def _parameter_value(
    document: Document, name: str, key: str, given: Any, default: Any, torch_adam: bool
) -> Iterator[Finding]:
    place = (*PARAMETERS, key)
    if key == "amsgrad" and given is True and not torch_adam and name.lower() in ("adam", "adamw", "lamb"):
        why = f"DeepSpeed's {name} has no AMSGrad; the engine does not start"
        fix = "set it to false" + (', or add "torch_adam": true' if name.lower() != "lamb" else "")
        yield finding(document, place, "error", "optimizer-amsgrad", why, fix)
    is_number = isinstance(default, int | float) and not isinstance(default, bool)
    if is_number and (given is None or (isinstance(given, str) and given != AUTO)):
        what = "null" if given is None else "a text"
        why = f"{what} where {name} computes with a number; it fails when the engine starts or at the first step"
        fix = (
            "write it without quotes"
            if isinstance(given, str) and _numeric(given)
            else f"write a number, say {default}"
        )
        yield finding(document, place, "error", "optimizer-parameter-type", why, fix)
    for one in given if isinstance(given, list) else [given]:
        allowed = RANGES.get(key)
        if (
            allowed
            and isinstance(one, int | float)
            and not isinstance(one, bool)
            and not allowed[0] <= one < allowed[1]
        ):
            why = f"out of range ({allowed[2]}): torch's optimizers refuse it, and DeepSpeed's own compute nonsense"
            yield finding(document, place, "error", "optimizer-range", why, f"write a number {allowed[2]}")
    if isinstance(default, list) and given != AUTO and not (isinstance(given, list) and len(given) == len(default)):
        why = f"{name} takes a list of {len(default)} numbers here"
        yield finding(document, place, "error", "optimizer-parameter-type", why, f"write {default}, the default")


def _numeric(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _adam(document: Document, name: str) -> Iterator[Finding]:
    lower, decay = name.lower(), number(document, *PARAMETERS, "weight_decay")
    no_adam_w = off(document, *PARAMETERS, "adam_w_mode")
    if lower == "adam" and not no_adam_w:
        why = "DeepSpeed's Adam is AdamW (the decay is decoupled from the gradient), unless adam_w_mode is false"
        fix = 'write "AdamW" if you mean that, else add "adam_w_mode": false to its params'
        asked = on(document, *PARAMETERS, "adam_w_mode")
        yield finding(document, NAME, "warning" if decay and not asked else "note", "adam-is-adamw", why, fix)
    if lower == "adamw" and no_adam_w:
        why = "has no effect: AdamW decouples the decay whatever this says"
        fix = 'write "type": "Adam" for the other one, or delete it'
        place = (*PARAMETERS, "adam_w_mode")
        yield finding(document, place, "warning", "adam-w-mode-ignored", why, fix)
    if lower in ("adam", "adamw") and raw(document, *PARAMETERS, "weight_decay") is None:
        default = signature(document).get("weight_decay", 0.0)
        why = f"absent: {default:g} here (DeepSpeed's Adam has 0, torch's AdamW 0.01)"
        yield finding(document, (*PARAMETERS, "weight_decay"), "note", "weight-decay-default", why, "write it")
    if "lr" not in block(document, *PARAMETERS):
        default = signature(document).get("lr")
        if isinstance(default, int | float):
            why = f"absent: {name} runs at {default:g}"
            yield finding(document, (*PARAMETERS, "lr"), "note", "lr-default", why, "write it")
