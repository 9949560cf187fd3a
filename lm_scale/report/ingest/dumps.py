"""Settings that a script prints: Python dicts in a line, and the `name=value,` lines of a dataclass's repr."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lm_scale.report.ingest.console import Segment

PAIR = re.compile(r"""['"](\w+)['"]: ?('[^']*'|"[^"]*"|[^,{}\[\]'"]+)(?=[,}])""")
ASSIGNMENT = re.compile(r"^\s*(\w+)=(.*?),?\s*$")
NOT_FINITE = re.compile(r"(?<=: )(-?nan|-?inf)(?=[,}])")
SIGNS = re.compile(r"""\\.|[{}'"]""")
"""What can open, close or quote; an escaped letter is none of it."""
LONGEST = 200_000


def dicts(text: str) -> Iterator[dict[str, Any]]:
    """The Python dicts printed in `text` that are whole, outermost first; of one that holds more than literals only its
    plain pairs. `nan` and `inf` become floats. A dict whose end was cut off is none, those whole within it are."""
    start = text.find("{")
    while 0 <= start < len(text):
        end = _closing(text, start)
        if end is None:  # cut off, or no dict: what stands within may still be whole
            start = text.find("{", start + 1)
            continue
        found = _dict(text[start : end + 1])
        if found is not None:
            yield found
        start = text.find("{", end + 1)


def assignments(segments: Sequence[Segment]) -> Iterator[tuple[str, Any]]:
    """The `name=value,` lines: the name, and the value as Python where it is a literal, else as text.

    A line that the file's end cuts off is left out.
    """
    for segment in segments:
        if segment.ended and "=" in segment.text and (match := ASSIGNMENT.match(segment.text)):
            yield match[1], _literal(match[2])


def merged(dumps: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any], set[str]]:
    """The values that no two dumps contradict, and the names of those that some do."""
    values: dict[str, Any] = {}
    contradicted: set[str] = set()
    for dump in dumps:
        for name, value in dump.items():
            if name in values and not _same(values[name], value):
                contradicted.add(name)
            values.setdefault(name, value)
    return {name: value for name, value in values.items() if name not in contradicted}, contradicted


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, str) and isinstance(other, str):
        return one.rpartition(".")[2].lower() == other.rpartition(".")[2].lower()  # SchedulerType.LINEAR and linear
    return bool(one == other)


def _dict(text: str) -> dict[str, Any] | None:
    if len(text) > LONGEST:
        return None
    try:
        value = ast.literal_eval(NOT_FINITE.sub(r"'\1'", text))
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        pairs = {name: _literal(value) for name, value in PAIR.findall(text)}
        return pairs or None
    return value if isinstance(value, dict) and all(isinstance(name, str) for name in value) else None


def _literal(text: str) -> Any:
    if text in ("nan", "inf", "-inf"):
        return float(text)
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        return text


def _closing(text: str, start: int) -> int | None:
    """Where the brace at `start` is closed, braces in quotes aside."""
    depth, quote = 0, ""
    for match in SIGNS.finditer(text, start):
        sign = match[0]
        if quote:
            if sign == quote:
                quote = ""
        elif sign in "'\"":
            quote = sign
        elif sign == "{":
            depth += 1
        elif sign == "}":
            depth -= 1
            if depth == 0:
                return match.start()
    return None
