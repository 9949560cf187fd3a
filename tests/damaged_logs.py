"""Logs as they are found: cut off anywhere, or with a tenth of their lines lost; and what a reader says of them.

`DAMAGED_CASES=10000 bash launch/test.sh -k damaged` reads as many forms of every log.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

from lm_scale.report.ingest import Reading, UnreadableError, console
from lm_scale.report.ingest.console import Console
from lm_scale.report.rows import KEYS

NOT_COMPARED = {"flags", "last_error", "started_at", "finished_at", "last_record_at"}
"""Words about the log, and the time stamps next to an event: what is left may have another."""


def damaged(data: bytes, cases: int, seed: int) -> Iterator[bytes]:
    """In turn cut off at a byte, with each line lost by a chance of a tenth, begun at a byte, and with a tenth of the
    lines lost in a row."""
    draw = random.Random(seed)
    lines = data.splitlines(keepends=True)
    tenth = max(len(lines) // 10, 1)
    for case in range(cases):
        if case % 4 == 0:
            yield data[: draw.randrange(1, len(data))]
        elif case % 4 == 1:
            yield b"".join(line for line in lines if draw.random() > 0.1)
        elif case % 4 == 2:
            yield data[draw.randrange(1, len(data)) :]
        else:
            start = draw.randrange(len(lines))
            yield b"".join(lines[:start] + lines[start + tenth :])


def untrue(
    log: Path,
    folder: Path,
    recognises: Callable[[Console], bool],
    read: Callable[[Console], list[Reading]],
    cases: int = 150,
    rounding: float = 0.0,
) -> list[str]:
    """What the reader says of damaged forms of `log` that it does not say of the whole: `key: said, true`.

    `rounding`: the relative difference of numbers that a log prints more than once, with more and with fewer digits.
    """
    whole = read(console.read(log))[-1].row
    found = []
    cases = int(os.environ.get("DAMAGED_CASES", cases))
    for number, data in enumerate(damaged(log.read_bytes(), cases, seed=len(log.stem))):
        path = folder / log.name
        path.write_bytes(data)
        try:
            text = console.read(path)
        except UnreadableError:
            continue
        if not recognises(text):
            continue
        row = read(text)[-1].row
        for key in KEYS:
            said, true = getattr(row, key), getattr(whole, key)
            same = isinstance(said, float) and isinstance(true, float) and abs(said - true) <= rounding * abs(true)
            if said not in (None, true) and not same and key not in NOT_COMPARED and key != "path":
                found.append(f"case {number}: {key}: {said}, {true}")
    return found
