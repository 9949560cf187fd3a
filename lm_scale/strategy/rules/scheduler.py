"""The scheduler block, checked against the signature of what DeepSpeed builds, and against the optimizer's rate."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lm_scale.strategy import known
from lm_scale.strategy.rules.findings import Finding, Setting
from lm_scale.strategy.rules.reading import AUTO, Document, block, finding, nearest, number, precision, raw, stage

NAME = ("scheduler", "type")
PARAMETERS = ("scheduler", "params")
LR = ("optimizer", "params", "lr")
WARMUPS = ("WarmupLR", "WarmupDecayLR", "WarmupCosineLR")
OWN = (*WARMUPS, "OneCycle", "LRRangeTest")
"""DeepSpeed's own; all others are torch's."""
LEAST = {
    "warmup_num_steps": 1,
    "cycle_first_step_size": 1,
    "cycle_second_step_size": 0,
    "lr_range_test_step_size": 1,
}
"""Lengths that the schedulers of DeepSpeed check (runtime/lr_schedules.py); the warm-up must be whole as well."""
RATES = ("warmup_max_lr", "total_num_steps", "cycle_min_lr", "cycle_max_lr")
"""Numbers without a numeric default."""


def findings(document: Document, setting: Setting) -> Iterator[Finding]:
    if not isinstance(raw(document, "scheduler"), dict):
        return
    name = raw(document, *NAME)
    if name is None:
        why = "missing: DeepSpeed then ignores the block, and the rate stays constant"
        yield finding(document, NAME, "error", "scheduler-type-missing", why, 'name it, for example "WarmupLR"')
        return
    table = known.table()["schedulers"]
    if name == AUTO:
        return
    if not isinstance(name, str) or name not in table:
        near = nearest(str(name), table)
        why = "no scheduler that DeepSpeed or torch knows; the engine does not start"
        fix = f'did you mean "{near}"?' if near else f"write one of {', '.join(OWN)}"
        yield finding(document, NAME, "error", "scheduler-unknown", why, fix)
        return
    if raw(document, "optimizer", "type") is None:
        why = "DeepSpeed ignores the scheduler unless an optimizer is named here or passed by the code"
        yield finding(document, ("scheduler",), "note", "scheduler-without-optimizer", why, "name the optimizer here")
    if raw(document, *PARAMETERS) is None:
        why = "missing: DeepSpeed passes nothing and fails when the engine starts"
        yield finding(document, PARAMETERS, "error", "scheduler-params-missing", why, 'add "params": {}, or fill it')
        return
    if table[name].get("torch") and _wrapped(document):
        why = "torch's schedulers take torch's optimizers alone, and DeepSpeed wraps its own around one here"
        fix = f"write one of {', '.join(OWN)}, or pass a scheduler in the code"
        yield finding(document, NAME, "error", "scheduler-of-torch", why + "; the engine does not start", fix)
    yield from _parameters(document, name, _signature(name))
    if name in WARMUPS:
        yield from _warmup(document, name)
    if name in ("WarmupLR", "WarmupDecayLR"):
        yield from _rate(document, name)
    elif name in ("OneCycle", "LRRangeTest") and number(document, *LR) is not None:
        why = f"has no effect: {name} sets the rate itself"
        yield finding(document, LR, "note", "scheduler-overrides-lr", why)


def _signature(name: str) -> dict[str, Any]:
    found: dict[str, Any] = known.table()["schedulers"][name]["parameters"]
    return found


def _wrapped(document: Document) -> bool:
    """Whether the scheduler is surely given one of DeepSpeed's optimizers: under ZeRO, or in half precision."""
    return bool(stage(document)) or precision(document) in ("bf16", "fp16")


def _parameters(document: Document, name: str, takes: dict[str, Any]) -> Iterator[Finding]:
    given = block(document, *PARAMETERS)
    for key in given:
        if key not in takes:
            near, owners = nearest(key, takes), [other for other in OWN if key in _signature(other)]
            why = f"no parameter of {name}{f', but of {owners[0]}' if owners else ''}; the engine does not start"
            fix = f"did you mean {near}?" if near and not owners else "delete it"
            if owners and name == "WarmupCosineLR" and key.endswith("_lr"):
                fix += "; WarmupCosineLR rises to the optimizer's own lr"
            yield finding(document, (*PARAMETERS, key), "error", "scheduler-parameter-unknown", why, fix)
    for key, default in takes.items():
        if isinstance(default, dict) and default.get("required") and key not in given:
            why = f"missing: {name} has no default for it; the engine does not start"
            yield finding(document, (*PARAMETERS, key), "error", "scheduler-parameter-missing", why, "write it")
    for key, stated in given.items():
        default = takes.get(key)
        numeric = key in RATES or (isinstance(default, int | float) and not isinstance(default, bool))
        if numeric and isinstance(stated, str) and stated != AUTO:
            why = f"a text where {name} computes with a number; it fails when the engine starts or at the first step"
            yield finding(document, (*PARAMETERS, key), "error", "scheduler-parameter-type", why, "write a number")
    for key, least in LEAST.items():
        stated = raw(document, *PARAMETERS, key)
        if key not in takes or stated is None or stated == AUTO:
            continue
        if isinstance(stated, str):
            continue
        whole = isinstance(stated, int) or (key != "warmup_num_steps" and isinstance(stated, float))
        if not whole or stated < least:
            why = f"DeepSpeed refuses it: {name} takes a whole number of steps, {least} or more"
            finite = isinstance(stated, int | float) and abs(stated) < 1e18  # neither NaN nor infinite
            fix = f"write {max(least, round(stated))}" if finite else "write a number"
            yield finding(document, (*PARAMETERS, key), "error", "scheduler-range", why, fix)


def _warmup(document: Document, name: str) -> Iterator[Finding]:
    place = (*PARAMETERS, "warmup_type")
    kind = raw(document, *place)
    if kind not in (None, AUTO, "log", "linear"):
        near = nearest(str(kind), ("log", "linear"))
        why = 'DeepSpeed knows "log" and "linear", and warms up logarithmically on any other word'
        yield finding(document, place, "warning", "warmup-type-unknown", why, f'write "{near or "linear"}"')
    elif kind != "linear":
        where = "absent: " if kind is None else ""
        why = (
            f"{where}the rate rises logarithmically: it is past half of its maximum after the square root of the "
            "warm-up's steps. The first step has the lowest rate, 0 by default"
        )
        yield finding(document, place, "note", "warmup-log", why, 'write "linear" for the usual straight line')
    total = number(document, *PARAMETERS, "total_num_steps")
    steps = number(document, *PARAMETERS, "warmup_num_steps")
    if total is not None and total < (1000 if steps is None else steps):
        warm = "1000, the default of warmup_num_steps" if steps is None else f"the warm-up's {steps:g}"
        why = f"fewer steps than {warm}: the run ends before the rate is at its maximum"
        fix = "write a shorter warmup_num_steps, or more steps here"
        yield finding(document, (*PARAMETERS, "total_num_steps"), "warning", "total-below-warmup", why, fix)
    low, high = number(document, *PARAMETERS, "warmup_min_lr"), number(document, *PARAMETERS, "warmup_max_lr")
    if low is not None and high is not None and low > high:
        why = f"above warmup_max_lr {high:g}: the rate falls during the warm-up"
        yield finding(document, (*PARAMETERS, "warmup_min_lr"), "warning", "warmup-falls", why, "swap the two")


def _rate(document: Document, name: str) -> Iterator[Finding]:
    """The scheduler's maximum is the rate that the run reaches; the optimizer's own is forgotten at the first step."""
    place = (*PARAMETERS, "warmup_max_lr")
    lr, stated, written = number(document, *LR), raw(document, *place), raw(document, *LR)
    high = number(document, *place)
    if stated is None and name == "WarmupDecayLR":
        default = _signature(name)["warmup_max_lr"]
        if lr is not None and lr != default:
            why = (
                f"absent: WarmupDecayLR rises to {default:g}, its default, and the optimizer's lr {lr:g} has no effect"
            )
            yield finding(document, place, "warning", "lr-vs-warmup-max-lr", why, f"write {lr:g}")
        elif written == AUTO or "optimizer" not in document:
            why = f"absent: WarmupDecayLR rises to {default:g}, its default, whatever the optimizer's lr is"
            yield finding(document, place, "warning", "lr-vs-warmup-max-lr", why, "write the rate that you mean")
    elif high is not None and lr is not None and lr != high:
        why = f"has no effect: the scheduler's warmup_max_lr {high:g} is the rate that the run reaches"
        fix = f"write {high:g} here, or {lr:g} there"
        yield finding(document, LR, "warning", "lr-vs-warmup-max-lr", why, fix)
