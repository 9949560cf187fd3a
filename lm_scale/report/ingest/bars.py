"""The states of tqdm's progress bars in a console's text, and which of the bars is the training's.

A bar without description counts something out of a total: Hugging Face's Trainer draws one over its optimizer steps and
one over the batches of each evaluation, and both look alike.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from lm_scale.report.ingest.console import Segment

STATE = re.compile(
    r"(?P<head>[^|%\r]*?)(?P<percent>\d{1,3})%\|[^|]*\| *(?P<count>\d+)/(?P<total>\d+) "
    r"\[(?P<elapsed>\d+(?::\d\d){1,2})<(?P<left>[\d:?]+), *(?P<rate>[\d.?]+) ?(?P<unit>\w+/\w+)[^\]]*\]"
)
"""tqdm's default format (`tqdm.std.tqdm.format_meter`): `  6%|▌   | 1764/30314 [30:00<8:00:16,  1.01s/it]`."""


@dataclass(slots=True)
class State:
    """One state of a bar; `index` is its segment's, `rest` what is printed after it on the same line."""

    index: int
    line: int
    count: int
    total: int
    elapsed_s: int
    per_second: bool
    rest: str


def states(segments: Sequence[Segment]) -> list[State]:
    """Every state of every bar without description, in their order."""
    found = []
    for index, segment in enumerate(segments):
        if "%|" not in segment.text:
            continue
        matches = list(STATE.finditer(segment.text))
        for position, match in enumerate(matches):
            if match["head"].strip() or not match["unit"].endswith(("/it", "it/s")):
                continue
            end = matches[position + 1].start() if position + 1 < len(matches) else len(segment.text)
            found.append(
                State(
                    index=index,
                    line=segment.line,
                    count=int(match["count"]),
                    total=int(match["total"]),
                    elapsed_s=_seconds(match["elapsed"]),
                    per_second=match["unit"] == "it/s",
                    rest=segment.text[match.end() : end],
                )
            )
    return found


def training_total(found: Sequence[State], segments: Sequence[Segment], logged: Sequence[int]) -> int | None:
    """The total of the bar under which the training logged, None where no bar is clearly that.

    `logged` are the indices of the segments in which training losses stand. Most often the bar's last state before it
    is on its own line; where the text was buffered apart from the bar it is the last state at all, which is the
    training's most of the time, since an evaluation's bar is drawn and gone between two of them.
    """
    near: Counter[int] = Counter()
    loose: Counter[int] = Counter()
    position = 0
    for index in sorted(logged):
        while position < len(found) and found[position].index <= index:
            position += 1
        if position == 0:
            continue
        last = found[position - 1]
        (near if last.line == segments[index].line else loose)[last.total] += 1
    ranked = (near or loose).most_common(2)
    if not ranked or (len(ranked) > 1 and ranked[0][1] == ranked[1][1]):
        return None
    return ranked[0][0]


def _seconds(clock: str) -> int:
    seconds = 0
    for part in clock.split(":"):
        seconds = seconds * 60 + int(part)
    return seconds
