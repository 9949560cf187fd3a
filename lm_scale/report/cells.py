"""Tables that people and spreadsheets write: a file -> lines of cells, and a cell -> the value of a row key."""

from __future__ import annotations

import csv
import datetime
import difflib
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_scale.report.ingest import UnreadableError, console
from lm_scale.report.rows import KEYS, kinds

DELIMITERS = ",;\t"
UNKNOWN = frozenset(("", "-", "–", "NA", "N/A", "n/a", "NaN", "nan", "null", "None", "<NA>"))
"""Cells that say nothing. `none` is not among them: it is a value of `offload`."""

MAY_BE_NEGATIVE = frozenset(("train_loss", "eval_loss", "delta_loss"))
UNITS = {"B": 1, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3, "TiB": 1024**4}
NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")
DECIMAL_COMMA = re.compile(r"[+-]?(\d+,(?!\d{3}$)\d+|0,\d+)")
"""What cannot be a thousands separator: 1,234 might be one and is no number here."""


@dataclass(frozen=True)
class Table:
    """A header and the lines below it, each with its number in the file.

    `cut`: the last line has no end, so that nobody knows whether its last cell is whole.
    """

    header: list[str]
    lines: list[tuple[int, list[str]]]
    cut: bool


def read_table(path: Path) -> Table:
    """The table in `path`: separated by comma, semicolon or tab, in UTF-8 or UTF-16, with a byte order mark or without.

    Raises:
        UnreadableError: it cannot be opened, is empty, or is no text.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UnreadableError(f"{path}: {error.strerror}") from None
    text = console.decode(data) if data.strip() else ""
    if not text:
        raise UnreadableError(f"{path}: {'empty' if text == '' else 'binary, not a table'}")
    skipped = int(_excels_own(text))
    text = text.partition("\n")[2] if skipped else text
    delimiter = _delimiter(text)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
    try:
        lines = [(reader.line_num + skipped, [cell.strip() for cell in cells]) for cells in reader]
    except csv.Error as error:
        raise UnreadableError(f"{path}:{reader.line_num + skipped}: no table: {error}") from None
    unended = not text.endswith(("\n", "\r")) or text.count('"') % 2 == 1
    cut = unended and bool(lines) and any(lines[-1][1])
    lines = [(number, cells) for number, cells in lines if any(cells)]
    if not lines:
        raise UnreadableError(f"{path}: empty")
    return Table([name.lower() for name in lines[0][1]], lines[1:], cut)


def header(text: str) -> list[str]:
    """The names in the first line of a table, of which `text` is the beginning; nothing where it has none."""
    lines = [line for line in text.splitlines()[:8] if line.strip(f"{DELIMITERS} ")]
    lines = lines[1:] if lines and _excels_own(lines[0]) else lines
    if not lines:
        return []
    try:
        cells = next(csv.reader(lines, delimiter=_delimiter(lines[0]), skipinitialspace=True), [])
    except csv.Error:
        return []
    return [cell.strip().lower() for cell in cells]


def _excels_own(text: str) -> bool:
    """Whether the text begins with the line in which Excel names the delimiter."""
    return bool(re.fullmatch(r"sep=.", text.partition("\n")[0].strip()))


def _delimiter(text: str) -> str:
    header = text.partition("\n")[0]
    return max(DELIMITERS, key=header.count)


def value(key: str, text: str) -> Any:
    """What the cell `text` says of the row key `key`; None where it says nothing.

    A size may have a unit (`20.5 GiB`), a decimal may have a comma where no thousands separator can be meant.

    Raises:
        ValueError: it is no value of this key; the text says what one is.
    """
    text = text.strip()
    if text in UNKNOWN:
        return None
    kind = kinds()[key]
    if kind is bool:
        return _truth(key, text)
    if kind is int:
        return _bytes(key, text) if key.endswith("_bytes") else _whole(key, text)
    if kind is float:
        number = _number(text)
        if number is None or (number < 0 and key not in MAY_BE_NEGATIVE):
            raise ValueError(f"{key}: {text!r} is no number; write it like 0.98")
        return number
    if key.endswith("_at"):
        return _moment(key, text)
    return text


def nearest(name: str, known: Sequence[str] = KEYS) -> str:
    """`; did you mean ...?` for a name that is none of `known`, or nothing."""
    near = difflib.get_close_matches(name.lower().replace(" ", "_"), known, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _truth(key: str, text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError(f"{key}: {text!r} is neither true nor false")
    return text.lower() == "true"


def _whole(key: str, text: str) -> int:
    if not re.fullmatch(r"\d+(\.0*)?", text):  # pandas writes whole numbers beside unknown ones as 12.0
        raise ValueError(f"{key}: {text!r} is no whole number; write it like 12000")
    return int(text.partition(".")[0])


def _bytes(key: str, text: str) -> int:
    match = re.fullmatch(r"(.*?)\s*([A-Za-z]+)?", text)
    number = _number(match[1]) if match else None
    unit = (match[2] or "B") if match else ""
    if number is None or number < 0 or unit not in UNITS:
        raise ValueError(f"{key}: {text!r} is no size; write bytes, or a unit of {', '.join(UNITS)}")
    return round(number * UNITS[unit])


def _number(text: str) -> float | None:
    if DECIMAL_COMMA.fullmatch(text):
        text = text.replace(",", ".")
    return float(text) if NUMBER.fullmatch(text) else None


def _moment(key: str, text: str) -> str:
    try:
        datetime.datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{key}: {text!r} is no time; write it like 2026-01-31T18:30:00+01:00") from None
    return text
