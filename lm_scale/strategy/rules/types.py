"""Types and values: what DeepSpeed refuses, what it takes for something else, and what it accepts and trips over later.

Blocks that are pydantic models convert what they can (`coercion.py`) and refuse the rest when the file is read. All
other keys are taken as they come: a text counts as true where a switch is read, and breaks a calculation.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from lm_scale.strategy import known
from lm_scale.strategy.rules.coercion import EXPECTED, converted_for, json_type, out_of_bounds, truth
from lm_scale.strategy.rules.findings import Finding, Place, Setting, Severity
from lm_scale.strategy.rules.reading import AUTO, Document, nearest

RULE = "wrong-type"
NO_BOOLEAN = ("loss_scale", "loss_scale_window", "min_loss_scale")
"""Of `fp16`: validators of their own, which take no truth value and no text but digits (precision_config.py:110)."""
TEXT_LISTS = ("classes", "names", "name_suffixes")
"""Of `leaf_module`: one text stands for a list of one (runtime/zero/leaf_module_config.py)."""
ELSEWHERE = (
    ("train_batch_size",),
    ("train_micro_batch_size_per_gpu",),
    ("gradient_accumulation_steps",),
    ("communication_data_type",),
    ("seq_parallel_communication_data_type",),
    ("data_types", "grad_accum_dtype"),
    ("data_types", "param_dtype"),
    ("data_types", "buffer_dtype"),
    ("torch_autocast", "dtype"),
    ("gradient_allreduce_op",),
    ("checkpoint", "tag_validation"),
    ("checkpoint", "writer", "type"),
    ("checkpoint", "writer", "data_parallel"),
    ("checkpoint", "parallel_write", "pipeline_stage"),
    ("pipeline", "pipe_partitioned"),
    ("pipeline", "grad_partitioned"),
    ("pipeline", "stages"),
    ("pipeline", "partition_method"),
    ("optimizer", "type"),
    ("scheduler", "type"),
    ("scheduler", "params"),
)
"""Keys whose values other rules judge whole: batch, precision, loop, zero, optimizer, scheduler."""
NO_NULL = (
    ("gradient_allreduce_op",),
    ("checkpoint", "tag_validation"),
    ("checkpoint", "parallel_write", "pipeline_stage"),
    ("torch_autocast", "dtype"),
    ("torch_autocast", "lower_precision_safe_modules"),
    ("data_types", "keep_in_fp32_modules"),
    ("autotuning", "results_dir"),
    ("autotuning", "exps_dir"),
)
"""Keys of plain dicts where `null` is refused when the file is read; elsewhere it is taken, or counts as absent."""
TEXTS = (("torch_autocast", "lower_precision_safe_modules"), ("data_types", "keep_in_fp32_modules"))
"""Lists whose elements are checked to be texts."""
CONVERTED = ("min_batch_size", "max_batch_size", "max_tokens")
"""Of `dynamic_batching`: passed through `int()` (runtime/data_pipeline/config.py:101)."""
INTEGER_OR = ("wall_clock_breakdown", "flops_profiler.enabled")
"""Switches joined by `|` (runtime/config.py:533): a TypeError for all but truth values and whole numbers."""


def findings(document: Document, setting: Setting) -> Iterator[Finding]:
    """Every value that is not what its key takes, block by block in the file's order. `"auto"` is `auto.py`'s."""
    yield from _block((), document)


def _block(place: Place, value: dict[str, Any]) -> Iterator[Finding]:
    within = known.block(place)
    if within is None:
        return
    for name, inner in value.items():
        here, key = (*place, name), within.keys.get(name)
        if inner is None and here in NO_NULL:
            yield _finding(here, inner, "error", "DeepSpeed refuses null here", "delete it")
        elif key is not None and not _is_auto(inner) and here not in ELSEWHERE:
            yield from _strict(key, here, inner) if within.strict else _lax(key, here, inner)
        if isinstance(inner, dict):
            yield from _block(here, inner)


def _is_auto(value: Any) -> bool:
    return isinstance(value, str) and value.lower() == AUTO


def _finding(place: Place, value: Any, severity: Severity, message: str, fix: str = "") -> Finding:
    return Finding(place, value, severity, RULE, message, fix)


# Blocks that are pydantic models


def _strict(key: known.Key, place: Place, value: Any) -> Iterator[Finding]:
    if not key.types:
        why = "DeepSpeed refuses every JSON value here: it takes a Python object"
        yield _finding(place, value, "error", why, "delete it")
        return
    if place[-2:-1] == ("leaf_module",) and place[-1] in TEXT_LISTS and isinstance(value, str):
        return
    if key.name == "leaf_module" and value is None:
        return
    expected = _expected(key)
    try:
        taken = converted_for(key, value)
        if place[0] == "fp16" and place[-1] in NO_BOOLEAN:
            taken = _loss_scaling(place[-1], value, taken)
    except ValueError:
        why = f"DeepSpeed refuses {_shown(value)}: it takes {expected}"
        yield _finding(place, value, "error", why, _mend(key, value))
        return
    broken = out_of_bounds(key, taken)
    if broken:
        why = f"DeepSpeed refuses {_shown(value)}: it takes values {broken}"
        yield _finding(place, value, "error", why, _mend(key, value))
        return
    wrong = _not_offered(key, taken)
    if wrong is not None:
        why = f"DeepSpeed refuses {_shown(wrong)}: it takes {_offers(key)}"
        yield _finding(place, value, "error", why, _choose(key, wrong))
        return
    elements = _elements(place, value)
    if elements is not None:
        yield _finding(place, value, "error", f"DeepSpeed refuses {_shown(elements)} in the list: it takes texts")
    elif json_type(taken) != json_type(value) and not isinstance(value, int | float):
        why = f"a text, which DeepSpeed takes for {_shown(taken)}; Hugging Face compares the text itself"
        yield _finding(place, value, "note", why, f"write {_shown(taken)}, without quotes")
    elif isinstance(value, bool) and not isinstance(taken, bool):
        yield _finding(place, value, "warning", f"DeepSpeed takes it for {taken}", f"write {expected}")


def _loss_scaling(name: str, value: Any, taken: Any) -> Any:
    """The three keys of `fp16` that have validators of their own. Raises ValueError where these refuse."""
    if isinstance(value, bool) or not math.isfinite(taken):
        raise ValueError
    if name != "loss_scale" and isinstance(value, str):
        int(value)
    return taken


def _not_offered(key: known.Key, taken: Any) -> Any:
    """The value, or the list's element, that is none of the choices; None where all are."""
    if not key.choices or taken is None:
        return None
    if "int" in key.types and isinstance(taken, int):
        return None
    for one in taken if isinstance(taken, list) else [taken]:
        if one not in key.choices:
            return one
    return None


def _elements(place: Place, value: Any) -> Any:
    """An element that is no text in a list of texts."""
    if place[-2:-1] == ("leaf_module",) and isinstance(value, list):
        return next((one for one in value if not isinstance(one, str)), None)
    return None


# Keys that DeepSpeed reads from plain dicts


def _lax(key: known.Key, place: Place, value: Any) -> Iterator[Finding]:
    kind = json_type(value)
    if place == ("expert_parallel",) and value is True:
        yield _finding(place, value, "error", "DeepSpeed fails on it: it takes a block", 'write {"enabled": true, ...}')
    elif not key.types or kind in key.types or (kind == "int" and "float" in key.types):
        yield from _lax_choice(key, place, value)
    elif key.block or "dict" in key.types:
        why = f"{_shown(value)} is no block: DeepSpeed refuses it, or fails where it looks into it"
        yield _finding(place, value, "error", why, "write it as {...}, or delete it")
    elif "bool" in key.types:
        yield from _switch(key, place, value)
    elif "int" in key.types or "float" in key.types:
        yield from _number(key, place, value)
    elif value is not None:
        why = f"{_shown(value)} is not {_expected(key)}; DeepSpeed does not check it and fails where it uses it"
        yield _finding(place, value, "error", why, _mend(key, value))


def _lax_choice(key: known.Key, place: Place, value: Any) -> Iterator[Finding]:
    if key.choices and isinstance(value, str) and value.lower() not in {str(one).lower() for one in key.choices}:
        why = f"DeepSpeed knows no such value: it takes {_offers(key)}"
        yield _finding(place, value, "error", why, _choose(key, value))
    elif place == ("data_types", "keep_in_fp32_modules") and isinstance(value, str):
        why = 'DeepSpeed refuses it: it takes "auto" or a list of name patterns'
        yield _finding(place, value, "error", why, f'write ["{value}"]')
    elif place in TEXTS and isinstance(value, list) and not all(isinstance(one, str) for one in value):
        yield _finding(place, value, "error", "DeepSpeed refuses it: it takes a list of texts")


def _switch(key: known.Key, place: Place, value: Any) -> Iterator[Finding]:
    """A switch of a lax block: whatever stands there counts by its truth in Python."""
    if ".".join(place) in INTEGER_OR:
        if not isinstance(value, int):
            why = f"DeepSpeed fails on {_shown(value)} when it reads the file: it takes true and false"
            yield _finding(place, value, "error", why, _mend(key, value))
        return
    if isinstance(value, str):
        meant = truth(value)
        counts = "true" if value else "false"
        if meant is bool(value):
            why = f"a text, and it counts as {counts} only because DeepSpeed takes any text that is not empty for true"
            yield _finding(place, value, "warning", why, f"write {counts}, without quotes")
        else:
            why = f"a text: DeepSpeed takes any that is not empty for true, this one for {counts}"
            yield _finding(place, value, "error", why, _mend(key, value))
    elif value is None:
        if key.default is True:
            yield _finding(place, value, "warning", "null counts as false here, and the default is true", "write false")
    elif isinstance(value, list | dict) or value not in (0, 1):
        counts = "true" if value else "false"
        yield _finding(place, value, "warning", f"no truth value; it counts as {counts}", f"write {counts}")


def _number(key: known.Key, place: Place, value: Any) -> Iterator[Finding]:
    """A number of a lax block: nothing converts it, `CONVERTED` aside."""
    if place[-2:-1] == ("dynamic_batching",) and place[-1] in CONVERTED:
        try:
            int(value)
        except (TypeError, ValueError):
            why = f"DeepSpeed fails on {_shown(value)} when it reads the file: it takes a whole number"
            yield _finding(place, value, "error", why, _mend(key, value))
        return
    if isinstance(value, bool):
        yield _finding(
            place, value, "warning", f"no number: DeepSpeed calculates with {int(value)}", "write the number"
        )
    elif isinstance(value, float):
        if not value.is_integer():
            why = "no whole number, and DeepSpeed does not round it"
            yield _finding(place, value, "warning", why, "write a whole number")
    elif value is None and place != ("gradient_clipping",):
        why = "null is no number, and DeepSpeed does not put its default in its place"
        yield _finding(place, value, "warning", why, "delete it")
    else:
        step = "at the first step" if place == ("gradient_clipping",) else "where it calculates with it"
        why = f"{_shown(value)} is no number: DeepSpeed accepts it and fails {step}"
        yield _finding(place, value, "error", why, _mend(key, value))


# Words


def _shown(value: Any) -> str:
    """A value as JSON, short."""
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "a block"
    if isinstance(value, str):
        return f'the text "{value[:40]}"'
    return (
        {True: "true", False: "false", None: "null"}[value] if value is None or isinstance(value, bool) else f"{value}"
    )


def _expected(key: known.Key) -> str:
    if key.types == ("choice",):
        return _offers(key)
    return " or ".join(EXPECTED[kind] for kind in key.types if kind in EXPECTED)


def _offers(key: known.Key) -> str:
    return ", ".join(f'"{one}"' if isinstance(one, str) else str(one) for one in key.choices)


def _choose(key: known.Key, value: Any) -> str:
    near = nearest(value, [str(one) for one in key.choices]) if isinstance(value, str) else ""
    return f'did you mean "{near}"?' if near else f"write one of {_offers(key)}"


def _mend(key: known.Key, value: Any) -> str:
    """What to write instead, where the value shows what was meant; else the kind of value."""
    if "bool" in key.types and isinstance(value, str) and truth(value) is not None:
        return f"write {str(truth(value)).lower()}, without quotes"
    if ("int" in key.types or "float" in key.types) and isinstance(value, str):
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if math.isfinite(number) and ("float" in key.types or number.is_integer()):
            return f"write {int(number) if number.is_integer() else number}, without quotes"
    default = "" if key.default is known.MISSING or key.default is None else f"; the default is {_shown(key.default)}"
    return f"write {_expected(key)}{default}"
