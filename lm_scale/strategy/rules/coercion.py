"""What DeepSpeed's pydantic models take for a value of each type: pydantic's coercions from JSON, and no more."""

from __future__ import annotations

import math
import re
from typing import Any

from lm_scale.strategy.known import Key

TRUE = ("1", "on", "t", "true", "y", "yes")
FALSE = ("0", "off", "f", "false", "n", "no")
WHOLE = re.compile(r"\s*[+-]?\d+(_\d+)*(\.0+)?\s*", re.ASCII)
LARGEST_FLOAT = 2**63
"""From here on pydantic takes a float for no integer."""

EXPECTED = {
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "str": "a text",
    "list": "a list",
    "dict": "a block",
    "null": "null",
}


def converted(kind: str, value: Any) -> Any:
    """The value as pydantic makes it of `value` for one JSON type.

    Raises:
        ValueError: pydantic refuses it.
    """
    if kind == "any" or (kind == "null" and value is None):
        return value
    if kind in ("bool", "int", "float"):
        return {"bool": _bool, "int": _int, "float": _float}[kind](value)
    if isinstance(value, {"str": str, "list": list, "dict": dict}.get(kind, ())):
        return value
    raise ValueError


def converted_for(key: Key, value: Any) -> Any:
    """The same for a key: the first of its types that fits, and an enum's or a Literal's value.

    Raises:
        ValueError: none of its types takes the value.
    """
    kinds = key.types
    if kinds == ("choice",):
        return _int(value) if isinstance(key.choices[0], int) else converted("str", value)
    exact = [kind for kind in kinds if kind == json_type(value)]
    for kind in [*exact, *kinds]:
        try:
            return converted(kind, value)
        except ValueError:
            continue
    raise ValueError


def json_type(value: Any) -> str:
    """The JSON type of a value, as the table of known keys names it."""
    if isinstance(value, dict):
        return "dict"
    names = {bool: "bool", int: "int", float: "float", str: "str", list: "list", type(None): "null"}
    return names[type(value)]


def truth(text: str) -> bool | None:
    """What a text says that was meant as a switch; None where it says neither. `True,`: pasted Python read as Hjson."""
    plain = re.split("[,#]", text, maxsplit=1)[0].strip().lower()
    if plain in TRUE:
        return True
    return False if plain in (*FALSE, "none", "null", "disabled", "") else None


def _bool(value: Any) -> bool:
    if isinstance(value, str):
        if value.lower() in (*TRUE, *FALSE):
            return value.lower() in TRUE
    elif isinstance(value, int | float) and value in (0, 1):
        return bool(value)
    raise ValueError


def _int(value: Any) -> int:
    if isinstance(value, float) and value.is_integer() and abs(value) < LARGEST_FLOAT:
        return int(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, str) and WHOLE.fullmatch(value):
        return int(value.partition(".")[0].replace("_", ""))
    raise ValueError


def _float(value: Any) -> float:
    if isinstance(value, bool | int | float):
        return float(value)
    if isinstance(value, str):
        return float(value)
    raise ValueError


def out_of_bounds(key: Key, value: Any) -> str:
    """The bound that a number breaks, in words; empty where it keeps them all."""
    if not key.bounds or not isinstance(value, int | float):
        return ""
    kept = {
        "ge": lambda bound: value >= bound,
        "gt": lambda bound: value > bound,
        "le": lambda bound: value <= bound,
        "lt": lambda bound: value < bound,
    }
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    if math.isnan(value) or not all(kept[name](bound) for name, bound in key.bounds.items()):
        return " and ".join(f"{words[name]} {bound:g}" for name, bound in key.bounds.items())
    return ""
