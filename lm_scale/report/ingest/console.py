"""What was printed to a console, whoever printed it: bytes of any encoding -> segments of text; time stamps in them.

A progress bar rewrites its line with carriage returns, so that one line of a log holds hundreds of states and, after
the last of them, whatever was printed next. A segment is what stands between two line ends or carriage returns.
"""

from __future__ import annotations

import codecs
import datetime
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lm_scale.report.ingest import UnreadableError

ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])|[\x00\x07\x08\x1b]")
"""ANSI control sequences (ECMA-48: CSI, OSC and two-letter ones) and the control characters that terminals swallow."""

WANDB_RUN = re.compile(r"/runs/(\w+)\s*$|\b(?:offline-)?run-\d{8}_\d{6}-([\w-]+)")
"""W&B's own lines: the run's address, and the folder that it is saved to."""
CONTROLS = frozenset(range(32)) - frozenset(b"\t\n\v\f\r\x08\x07\x1b")
HEAD_BYTES = 65536
BLANKS = b"\0\r\n\t "
BINARY_SHARE = 0.02
"""More of these than this among the first bytes, and it is no text."""

MOMENTS = (
    (re.compile(r"(\d{4})-(\d\d)-(\d\d)[ T](\d\d):(\d\d):(\d\d)(?:[.,](\d{1,6}))?(Z|[+-]\d\d:?\d\d)?"), "ymd"),
    (re.compile(r"(?<!\d)(\d\d)/(\d\d)/(\d{4}) (\d\d):(\d\d):(\d\d)()()"), "mdy"),  # transformers' examples
)


@dataclass(slots=True)
class Segment:
    """`text` without colours; `line` counts from 1; `ended`: a line end follows, no carriage return."""

    text: str
    line: int
    ended: bool


@dataclass(frozen=True)
class Console:
    """A log as text, in its order."""

    path: Path
    segments: list[Segment]


def read(path: Path) -> Console:
    """The log in `path`.

    Raises:
        UnreadableError: it cannot be opened, is empty, or is no text.
    """
    try:
        with open(path, "rb") as file:
            data = _head(file.read(HEAD_BYTES), path) + file.read()
    except OSError as error:
        raise UnreadableError(f"{path}: {error.strerror}") from None
    if not data.strip(BLANKS):
        raise UnreadableError(f"{path}: empty")
    text = decode(data)
    if text is None:
        raise UnreadableError(f"{path}: binary, not a text log")
    return Console(path, list(_segments(text)))


def head(path: Path) -> str:
    """The beginning of the text in `path`.

    Raises:
        UnreadableError: it cannot be opened, is empty, or is no text.
    """
    try:
        with open(path, "rb") as file:
            data = _head(file.read(HEAD_BYTES), path)
    except OSError as error:
        raise UnreadableError(f"{path}: {error.strerror}") from None
    return decode(data) or ""


def _head(data: bytes, path: Path) -> bytes:
    """`data`, the file's first bytes, unless they are binary: found out before a checkpoint is read whole."""
    if data.strip(BLANKS) and decode(data) is None:
        raise UnreadableError(f"{path}: binary, not a text log")
    return data


def wandb_runs(segments: Sequence[Segment]) -> list[str]:
    """The ids of the W&B runs that W&B says it logs to, in their order."""
    ids = []
    for segment in segments:
        if ("/runs/" in segment.text or "run-" in segment.text) and "wandb" in segment.text:
            ids += [found[1] or found[2] for found in WANDB_RUN.finditer(segment.text.rstrip())]
    return list(dict.fromkeys(ids))


def decode(data: bytes) -> str | None:
    """The text of `data`, or None where it is none.

    UTF-16 is told by its mark or by its zero bytes; everything else is read as UTF-8. In an 8-bit encoding the letters
    beyond ASCII are lost then, and no pattern of a log needs them.
    """
    for mark, encoding in ((codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be")):
        if data.startswith(mark):
            return data[len(mark) :].decode(encoding, errors="replace")
    head = data[:HEAD_BYTES]
    for zeros, encoding in ((head[1::2], "utf-16-le"), (head[::2], "utf-16-be")):
        if len(head) >= 4 and zeros.count(0) > 0.7 * len(zeros) and head.count(0) < 0.6 * len(head):
            return data.decode(encoding, errors="replace")
    # A file that was cut off by a crash may end in a run of zeros: they are no letters and no sign of a binary.
    letters = head.replace(b"\0", b"") if head.rstrip(b"\0").count(0) == 0 else head
    if sum(byte in CONTROLS for byte in letters) > BINARY_SHARE * len(letters) or not letters:
        return None
    return data.decode("utf-8-sig", errors="replace")


def moment(text: str) -> datetime.datetime | None:
    """The first time stamp in `text`; one without an offset has none, since a log does not say its time zone."""
    for pattern, order in MOMENTS:
        found = pattern.search(text)
        if found is None:
            continue
        year, month, day = found.group(1, 2, 3) if order == "ymd" else found.group(3, 1, 2)
        fraction = (found[7] or "").ljust(6, "0")
        try:
            time = datetime.datetime(
                int(year), int(month), int(day), int(found[4]), int(found[5]), int(found[6]), int(fraction)
            )
            return time.replace(tzinfo=_zone(found[8]))
        except ValueError:
            return None
    return None


def _zone(text: str | None) -> datetime.timezone | None:
    if not text:
        return None
    if text == "Z":
        return datetime.UTC
    minutes = int(text[1:3]) * 60 + int(text[-2:])
    return datetime.timezone(datetime.timedelta(minutes=minutes if text[0] == "+" else -minutes))


def _segments(text: str) -> Iterator[Segment]:
    lines = text.replace("\r\n", "\n").split("\n")
    for number, line in enumerate(lines, start=1):
        if "\x1b" in line or "\x08" in line or "\0" in line or "\x07" in line:
            line = ESCAPES.sub("", line)
        *states, last = line.split("\r")
        for state in states:
            if state and not state.isspace():
                yield Segment(state, number, ended=False)
        if number < len(lines):
            yield Segment(last, number, ended=True)
        elif last:  # the file ends within this line: it may have been cut anywhere
            yield Segment(last, number, ended=False)
