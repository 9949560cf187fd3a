"""How a run ended that did not end well, as its console shows it: the first error of any rank, out of memory or not."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass

from lm_scale.report.ingest.console import Console

OUT_OF_MEMORY = re.compile(
    r"OutOfMemoryError|(?:CUDA|HIP|XPU|NPU) out of memory|CUDA error: out of memory|DefaultCPUAllocator: .*allocate"
    r"|\boom[-_]kill|Out of memory: Killed|^MemoryError\b|OUT_OF_MEMORY",
    re.IGNORECASE,
)
INTERRUPTED = re.compile(
    r"^KeyboardInterrupt\b|DUE TO TIME LIMIT|CANCELLED AT|DUE TO PREEMPTION|SignalException: .* got signal: (?:15|2)\b"
    r"|Received SIGTERM|Killing subprocess|returncode = -(?:2|15)\b|return code = -(?:2|15)\b"
)
HUNG = re.compile(r"Watchdog caught collective operation timeout|collective operation timeout: WorkNCCL")
KILLED = re.compile(
    r"^Killed$|Signal (?:9|11|6) \(SIG|exitcode\s*: -\d+|(?:return code|returncode) = -\d+|Segmentation fault"
    r"|exits with return code = [1-9]|Bus error|core dumped"
)
EXCEPTION = re.compile(r"^(?:\w+\.)*[A-Z]\w*(?:Error|Exception|Interrupt|Exit|Failure|Timeout)\b(?:: .*)?$")
FRAME = re.compile(r'^\s*File ".*", line \d+')
PEER = re.compile(r"Connection (?:closed|reset) by|remote process exited|remote worker|Broken pipe")
"""What a rank says of another that is gone; what ended that one is said elsewhere."""
TRACEBACK = "Traceback (most recent call last)"
RANK_PREFIX = re.compile(r"^\s*(?:\[(?:rank|default)?\d+\]:?|\d+:|\[rank \d+\])\s?")
"""What launchers write before a rank's line: `[rank0]: `, `[default0]:`, `0: `."""
LINE_LIMIT = 300


@dataclass(frozen=True)
class Failure:
    """What ended the run: `status` as in the run directory's schema, None where the log does not say which; the line
    that says it; where it stands."""

    status: str | None
    message: str
    line: int


def failure(console: Console, after: int = 0) -> Failure | None:
    """The first error at or after the line `after`; None where there is none.

    Running out of memory goes before other errors, since those of the other ranks follow from it, and an exception
    goes before the launcher's word that a process ended.
    """
    found: dict[str, Failure] = {}
    unfinished: set[str] = set()  # the ranks in whose traceback we are
    lost = False
    for segment in console.segments:
        if segment.line < after:
            continue
        prefix = RANK_PREFIX.match(segment.text)
        rank = prefix[0].strip() if prefix else ""
        text = segment.text[prefix.end() if prefix else 0 :].rstrip()
        if FRAME.match(text):
            unfinished.add(rank)  # also of a traceback whose first line is missing
        if TRACEBACK in text:
            lost = lost or rank in unfinished
            unfinished.add(rank)
            found.setdefault("traceback", Failure(None, "a traceback whose last line is missing", segment.line))
        elif "ChildFailedError" in text:
            unfinished.discard(rank)  # the launcher's own word that a rank failed
        elif kind := _kind(text, rank in unfinished):
            found.setdefault(kind, Failure(_status(kind), _one_line(text), segment.line))
            if kind != "killed":
                unfinished.discard(rank)
    order = ("oom", "interrupted", "hung", "crashed", "traceback", "peer", "killed")
    if (lost or unfinished) and "oom" not in found and "crashed" in found:
        return dataclasses.replace(found["crashed"], status=None)  # the error that was lost may be another
    first = next((found[kind] for kind in order if kind in found), None)
    if first is not None and "crashed" in found and first.status == "interrupted":
        # The launcher ends the other ranks after an error: theirs is the later word.
        return min(first, found["crashed"], key=lambda one: one.line)
    return first


def _kind(text: str, in_traceback: bool) -> str | None:
    if text.startswith("    "):
        return None  # a line of the script, in a traceback
    if OUT_OF_MEMORY.search(text):
        return "oom"
    if INTERRUPTED.search(text):
        return "interrupted"
    if HUNG.search(text):
        return "hung"
    if in_traceback and EXCEPTION.match(text):
        return "peer" if PEER.search(text) else "crashed"
    return "killed" if KILLED.search(text) else None


def _status(kind: str) -> str | None:
    return {"killed": "crashed", "peer": None}.get(kind, kind)


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= LINE_LIMIT else f"{line[: LINE_LIMIT - 3]}..."
