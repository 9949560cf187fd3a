"""Rows from a CSV whose columns are row keys: what `report --format csv` printed, or a table written by hand.

One line is one run. Speedup, efficiency and loss difference are not read: they are against a baseline that need not be
in the table. What cannot be read is said line by line, and its cell is not known.
"""

from __future__ import annotations

from pathlib import Path

from lm_scale.report import cells
from lm_scale.report.derive import derive
from lm_scale.report.ingest import Reading, UnreadableError, console
from lm_scale.report.rows import KEYS, MEANINGS, Row

SERIES = frozenset(("step", "epoch", "iteration", "iter", "global_step"))
"""Columns of a table that holds one run's course, a line a step."""

RELATIVE = frozenset(("speedup", "efficiency", "delta_loss"))
OWN = frozenset(("source", "path"))
"""Keys that are this file's and not the table's."""


def recognises(path: Path) -> bool:
    """A table with a `name`, or with two other row keys and no step."""
    try:
        header = cells.header(console.head(path))
    except UnreadableError:
        return False
    known = set(KEYS) & set(header)
    return ("name" in known and len(header) > 1) or (len(known) >= 2 and not SERIES & set(header))


def read(path: Path) -> list[Reading]:
    """The run of each line.

    Raises:
        UnreadableError: it is no table of row keys, or no line of it can be read.
    """
    return read_with_problems(path)[0]


def read_with_problems(path: Path) -> tuple[list[Reading], list[str]]:
    """The run of each line, and one line for each column and cell that was left out.

    Raises:
        UnreadableError: it is no table of row keys, or no line of it can be read.
    """
    table = cells.read_table(path)
    if table.cut and table.lines:
        table.lines[-1][1].pop()
    problems = [
        f"{path}: {name}: no row key, left out{cells.nearest(name)}" for name in table.header if name not in KEYS
    ]
    readings = []
    for number, line in table.lines:
        where = f"{path}:{number}"
        if len(line) > len(table.header):
            problems.append(f"{where}: {len(line)} cells under {len(table.header)} columns, left out")
        elif any(line):
            readings.append(Reading(_row(path, number, dict(zip(table.header, line, strict=False)), problems)))
    if table.cut and table.lines:
        problems.append(f"{path}: does not end with a line end: its last cell may be cut off and was left out")
    if not readings:
        raise UnreadableError(f"{path}: a table without a line that can be read")
    return readings, problems


def _row(path: Path, number: int, line: dict[str, str], problems: list[str]) -> Row:
    name = line.get("name")
    row = Row(
        name=name if name and name not in cells.UNKNOWN else f"{path.stem}:{number}", source="csv", path=str(path)
    )
    for key in KEYS:
        if key not in line or key == "name" or key in RELATIVE or key in OWN:
            continue
        try:
            if key == "flags":
                _add_flags(row, line[key])
            else:
                setattr(row, key, cells.value(key, line[key]))
        except ValueError as error:
            problems.append(f"{path}:{number}: {error}: left out")
    derive(row)
    return row


def _add_flags(row: Row, text: str) -> None:
    """The codes of the table's flags, without those that comparing the rows raises anew.

    Raises:
        ValueError: some are no codes; the others are added.
    """
    codes = [code.strip() for code in text.split(";") if code.strip() not in cells.UNKNOWN]
    for code in dict.fromkeys(codes):
        if code in MEANINGS and not code.startswith("differs_"):
            row.flag(code, MEANINGS[code])
    unknown = [code for code in codes if code not in MEANINGS]
    if unknown:
        raise ValueError(f"flags: {', '.join(unknown)}: no such code")
