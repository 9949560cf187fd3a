"""What Hugging Face's Trainer prints of a run: its log dicts, its result blocks, and how exactly it printed a number.

transformers before 5 prints `{'loss': 3.0483, ...}` in full; 5 prints four significant digits as text
(`{'loss': '3.048'}`); `log_metrics` prints a block with four decimals and clock times. The finest of them is taken.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

from lm_scale.report.ingest import dumps
from lm_scale.report.ingest.console import Segment

BLOCK_LINE = re.compile(
    r"^\s+(train_runtime|train_loss|train_samples_per_second|eval_loss|num_input_tokens_seen)\s+=\s+([\d:.,]+)$"
)
START = re.compile(r"\| *0/\d+ \[00:00<")
CLOCK = re.compile(r"(?:(\d+) days?, )?(\d+):(\d\d):(\d\d(?:\.\d+)?)")


@dataclass(frozen=True)
class Measure:
    """A printed number and the unit of its last digit."""

    value: float
    unit: float


@dataclass(frozen=True)
class Event:
    """One dict or block line of the segment `index`; `kind`: `log` (a training loss), `train` (the result), `eval`."""

    index: int
    kind: str
    values: dict[str, Any]


def events(segments: Sequence[Segment]) -> Iterator[Event]:
    """Log dicts and result blocks in their order; a dict within a dict is one of its own."""
    for index, segment in enumerate(segments):
        if "{" in segment.text:
            for found in dumps.dicts(segment.text):
                yield from (Event(index, kind, values) for values in nested(found) if (kind := event_kind(values)))
        elif segment.ended and " = " in segment.text and (match := BLOCK_LINE.match(segment.text)):
            yield Event(index, "eval" if match[1] == "eval_loss" else "train", {match[1]: match[2]})


def trainings(segments: list[Segment]) -> list[list[Segment]]:
    """The log cut where another training starts: at the settings, or the bar, that follow a training's result."""
    cuts: list[int] = []
    ended = 0
    for index, segment in enumerate(segments):
        text = segment.text
        if "'train_runtime'" in text and "'train_loss'" in text:
            ended = index
        elif ended and ("Running training *****" in text or "TrainingArguments(" in text):
            cuts.append(index)
            ended = 0
        elif ended and "'loss':" in text:
            start = next((at for at in range(index, ended, -1) if START.search(segments[at].text)), None)
            cuts += [start] if start is not None else []  # without one it is another rank, which is later
            ended = 0 if start is not None else ended
    return [segments[start:end] for start, end in zip([0, *cuts], [*cuts, len(segments)], strict=True)]


def measure(value: Any) -> Measure | None:
    """A number as it was printed, as Python or text; None where it is none or not finite.

    A clock time (`0:30:01.24`) becomes seconds, the middle of those that it is cut from.
    """
    if isinstance(value, bool) or value is None:
        return None
    text = repr(value) if isinstance(value, int | float) else str(value)
    clock = CLOCK.fullmatch(text)
    if clock:
        days, hours, minutes, seconds = clock.groups()
        whole = (int(days or 0) * 24 + int(hours)) * 3600 + int(minutes) * 60
        unit = 10.0 ** -len(seconds.partition(".")[2])
        return Measure(round(whole + float(seconds) + unit / 2, 6), unit)
    try:
        number = Decimal(text.replace(",", "") if re.fullmatch(r"\d{1,3}(,\d{3})+(\.\d+)?", text) else text)
    except InvalidOperation:
        return None
    if not number.is_finite():
        return None
    exponent = number.as_tuple().exponent
    assert isinstance(exponent, int)
    return Measure(float(number), 10.0**exponent)


def finest(values: Sequence[Measure]) -> float | None:
    """The one with the most digits; None where there is none, or where two differ by more than their rounding."""
    if not values:
        return None
    best = min(values, key=lambda one: one.unit)
    agree = all(abs(one.value - best.value) <= 0.51 * (one.unit + best.unit) for one in values)
    return best.value if agree else None


def number(value: Any) -> float | None:
    """A printed loss, `nan` and `inf` included."""
    try:
        return None if isinstance(value, bool) or value is None else float(value)
    except (TypeError, ValueError):
        return None


def event_kind(values: dict[str, Any]) -> str | None:
    """What a dict is: a training's result, an evaluation's, a log of its losses, or nothing that Trainer logs."""
    if "train_runtime" in values and "train_loss" in values:  # with `include_num_input_tokens_seen` a log has the first
        return "train"
    if "eval_loss" in values:
        return "eval"
    return "log" if "loss" in values and ("epoch" in values or "learning_rate" in values) else None


def nested(values: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A dict and the dicts in it."""
    yield values
    for value in values.values():
        if isinstance(value, dict):
            yield from nested(value)
