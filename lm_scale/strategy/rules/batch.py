"""The batch triple: whether DeepSpeed could complete it, on which world sizes, and the triples nearby that would do.

`train_batch_size == train_micro_batch_size_per_gpu * gradient_accumulation_steps * data-parallel ranks`, by floor
division where one is missing (`_configure_train_batch_size`, runtime/config.py). The world size is the data-parallel
ranks times the degrees of the other kinds of parallelism that the JSON names.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from lm_scale.strategy.batch import complete, divisors, nearest
from lm_scale.strategy.rules.findings import Finding, Setting, Severity
from lm_scale.strategy.source import AUTO

TOTAL, MICRO, ACCUM = "train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"
KEYS = {"micro": MICRO, "accum": ACCUM, "total": TOTAL}
DEGREES = (("pipeline", "stages"), ("tensor_parallel", "autotp_size"), ("sequence_parallel_size",))
"""Where the JSON names a number of ranks that share one micro-batch."""
LARGEST_PLAUSIBLE = 1_000_000_000


def findings(document: dict[str, Any], setting: Setting) -> Iterator[Finding]:
    wrong = [finding for key in KEYS.values() if (finding := _form(document, key))]
    yield from wrong
    if wrong:
        return
    stated = {name: value for name, key in KEYS.items() if (value := document.get(key)) not in (None, AUTO)}
    automatic = [key for key in KEYS.values() if document.get(key) == AUTO]
    if not automatic and "total" not in stated and "micro" not in stated:
        yield _missing(document)
        return
    if automatic and stated:
        yield _mixed(stated, automatic)
    degree = math.prod(_degree(document, place) for place in DEGREES)
    if setting.world_size is not None and setting.world_size % degree:
        place = next(place for place in DEGREES if _degree(document, place) > 1)
        message = f"{setting.world_size} ranks do not divide into {degree} that share a micro-batch"
        yield _finding(place, degree, "error", message, f"use a multiple of {degree} ranks")
        return
    if "total" in stated:
        ranks = None if setting.world_size is None else setting.world_size // degree
        yield from _total(stated, bool(automatic), ranks, degree)


def _finding(place: tuple[str, ...], value: Any, severity: Severity, message: str, fix: str = "") -> Finding:
    return Finding(place, value, severity, "batch", message, fix)


def _form(document: dict[str, Any], key: str) -> Finding | None:
    """A member that is no whole number above zero; `null` counts as absent, as for DeepSpeed."""
    value = document.get(key)
    if value is None or value == AUTO:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        fate = "takes it for 0 or 1" if isinstance(value, bool) else "ends in a TypeError"
        return _finding((key,), value, "error", f"no whole number: DeepSpeed {fate}", "write a whole number")
    if not math.isfinite(value) or value != int(value):
        message = "no whole number, although DeepSpeed would calculate with it"
        return _finding((key,), value, "error", message, "write a whole number")
    if value < 1:
        return _finding((key,), value, "error", "DeepSpeed refuses a batch below 1", "write a whole number above 0")
    if value > LARGEST_PLAUSIBLE:
        return _finding((key,), value, "error", "more samples than any step holds", "write what is meant")
    return None


def _missing(document: dict[str, Any]) -> Finding:
    alone = f"; {ACCUM} alone does not say it" if document.get(ACCUM) is not None else ""
    message = f"neither {TOTAL} nor {MICRO} is given{alone}: DeepSpeed refuses to start"
    fix = f'add "{MICRO}", a number, or "auto" where Hugging Face\'s Trainer or this project fills it'
    return _finding((MICRO,), None, "error", message, fix)


def _mixed(stated: dict[str, int], automatic: list[str]) -> Finding:
    """Trainer compares the numbers with its own arguments and raises ValueError where they differ."""
    name, value = next(iter(stated.items()))
    fixed = " and ".join(f"{KEYS[name]} {value}" for name, value in stated.items())
    message = f'a number beside {" and ".join(automatic)} "auto": Trainer starts only if its arguments say {fixed} too'
    fix = 'give it the same number, or set all of the batch to "auto"'
    return Finding((KEYS[name],), value, "note", "batch-mixed-auto", message, fix)


def _degree(document: dict[str, Any], place: tuple[str, ...]) -> int:
    node: Any = document
    for key in place:
        node = node.get(key) if isinstance(node, dict) else None
    return node if isinstance(node, int) and not isinstance(node, bool) and node > 1 else 1


def _total(stated: dict[str, int], automatic: bool, ranks: int | None, degree: int) -> Iterator[Finding]:
    """Whether the global batch can be met: on `ranks`, or on some number of them where that is not known."""
    total, micro, accum = (int(stated[name]) if name in stated else None for name in ("total", "micro", "accum"))
    assert total is not None
    unit = (micro or 1) * (accum or 1)
    given = f"{TOTAL} {total}" + "".join(
        f", {KEYS[name]} {stated[name]}" for name in ("micro", "accum") if name in stated
    )
    place = (TOTAL,)
    if ranks is not None:
        fits = total % (unit * ranks) == 0 if automatic else complete(micro, accum, total, ranks) is not None
        if not fits:
            arithmetic = f"{_product(micro, accum, ranks)} = {unit * ranks}" if unit > 1 else _ranks(ranks)
            relation = "is not" if micro and accum and not automatic else "is no multiple of"
            fix = f"use {_offers(nearest(micro, accum, total, ranks))}"
            yield _finding(place, total, "error", f"{total} {relation} {arithmetic}", fix)
        return
    if total % unit:
        fix = f"for one rank use {_offers(nearest(micro, accum, total, 1))}"
        yield _finding(place, total, "error", f"{given}: no world size fits", fix)
        return
    fitting = [total // unit] if micro and accum and not automatic else divisors(total // unit)
    sizes = [size * degree for size in fitting]
    if sizes != [1] or degree > 1:
        yield _finding(place, total, "note", f"{given}: fits {_listed(sizes)} alone; --world_size checks yours")


def _offers(values: list[tuple[str, int]]) -> str:
    """`train_batch_size 28 or 32, or gradient_accumulation_steps 4`."""
    members = dict.fromkeys(name for name, _ in values)
    offers = {one: " or ".join(str(value) for name, value in values if name == one) for one in members}
    return ", or ".join(f"{KEYS[name]} {text}" for name, text in offers.items())


def _ranks(number: int) -> str:
    return f"{number} rank{'s' if number != 1 else ''}"


def _product(micro: int | None, accum: int | None, ranks: int) -> str:
    parts = [f"micro-batch {micro}" if micro else "", f"accumulation {accum}" if accum else "", _ranks(ranks)]
    return " x ".join(part for part in parts if part)


def _listed(sizes: list[int]) -> str:
    """`world sizes 1, 2, 4 and 8`; of many the first six and the last."""
    if len(sizes) == 1:
        return f"world size {sizes[0]}"
    shown = [str(size) for size in (sizes if len(sizes) <= 8 else sizes[:6])]
    joint = "and" if len(sizes) <= 8 else "... and"
    return f"world sizes {', '.join(shown[:-1] if len(sizes) <= 8 else shown)} {joint} {sizes[-1]}"
