"""Hand-written notes beside logs: `notes.csv` (run, key, value) says what a log does not."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_scale.report import cells
from lm_scale.report.derive import derive
from lm_scale.report.ingest import Reading, UnreadableError
from lm_scale.report.rows import KEYS

HEADER = ["run", "key", "value"]
NOT_NOTED = ("name", "source", "path", "flags", "speedup", "efficiency", "delta_loss")
"""Keys that a run has from elsewhere."""

TOLERANCE = 1e-3
"""Two numbers that differ by less say the same: a note is rounded."""


@dataclass(frozen=True)
class _Note:
    """A note and where it stands."""

    where: str
    run: str
    key: str
    value: Any


def recognises(path: Path) -> bool:
    """A table whose header is that of notes, or nearly: `apply` then says what is wrong with it."""
    try:
        return len(set(cells.read_table(path).header) & set(HEADER)) >= 2
    except UnreadableError:
        return False


def apply(readings: Sequence[Reading], path: Path) -> list[str]:
    """Fill what the rows do not know from the notes in `path`, and what follows from it. Returns a line a problem.

    A row that takes a note has the flag `from_notes`; a note against what its source says is not taken, and the row has
    the flag `source_disagrees`. A note of an unknown run or key, or with a bad value, is a problem.
    """
    try:
        table = cells.read_table(path)
    except UnreadableError as error:
        return [str(error)]
    if table.header != HEADER:
        return [f"{path}: the header is {','.join(table.header)}; it must be {','.join(HEADER)}"]
    problems: list[str] = []
    named: dict[str, list[Reading]] = {}
    for reading in readings:
        named.setdefault(reading.row.name, []).append(reading)
    notes = [note for number, line in table.lines if (note := _note(f"{path}:{number}", line, named, problems))]
    for reading in readings:
        own = [note for note in notes if note.run == reading.row.name]
        if own:
            _apply_to(reading, _agreed(own, problems), path.name)
    return problems


def _note(where: str, line: Sequence[str], named: dict[str, list[Reading]], problems: list[str]) -> _Note | None:
    """The note of one line, or a problem."""
    if len(line) != len(HEADER):
        problems.append(f"{where}: {len(line)} cells, a note has {len(HEADER)}: {','.join(HEADER)}")
        return None
    run, key, text = line
    if run not in named:
        problems.append(f"{where}: {run}: no such run{cells.nearest(run, list(named)) or _some(list(named))}")
    elif len(named[run]) > 1:
        problems.append(f"{where}: {run}: {len(named[run])} runs have this name; a note needs one that is unique")
    elif key not in KEYS:
        problems.append(f"{where}: {key}: no row key{cells.nearest(key)}")
    elif key in NOT_NOTED:
        problems.append(f"{where}: {key}: cannot be noted")
    else:
        try:
            return _Note(where, run, key, cells.value(key, text))
        except ValueError as error:
            problems.append(f"{where}: {error}")
    return None


def _some(names: Sequence[str]) -> str:
    return f"; there are {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}" if names else ""


def _agreed(notes: Sequence[_Note], problems: list[str]) -> dict[str, Any]:
    """The notes of one run by key, without those that contradict another."""
    agreed: dict[str, Any] = {}
    contradicted = set()
    for note in notes:
        if note.value is None:
            continue
        if note.key in agreed and not _same(agreed[note.key], note.value):
            problems.append(f"{note.where}: {note.run}: {note.key}: noted as {agreed[note.key]} and as {note.value}")
            contradicted.add(note.key)
        agreed.setdefault(note.key, note.value)
    return {key: value for key, value in agreed.items() if key not in contradicted}


def _apply_to(reading: Reading, values: dict[str, Any], file: str) -> None:
    row = reading.row
    without = dataclasses.replace(row, flags=list(row.flags))
    derive(without, reading.steps)
    taken = []
    for key, value in values.items():
        stated = getattr(row, key)
        if stated is None:
            setattr(row, key, value)
            taken.append(key)
        elif not _same(stated, value):
            row.flag("source_disagrees", f"{key}: the source says {stated}, {file} says {value}: not taken")
    if not taken:
        return
    derive(row, reading.steps)
    follows = [key for key in KEYS if getattr(without, key) is None and getattr(row, key) is not None]
    follows = [key for key in follows if key not in taken]
    row.flag("from_notes", f"{', '.join(taken)} from {file}" + (f"; {', '.join(follows)} from it" if follows else ""))


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, float) or (isinstance(one, int) and isinstance(other, int) and max(one, other) > 1 << 20):
        return math.isclose(one, other, rel_tol=TOLERANCE)
    return bool(one == other)
