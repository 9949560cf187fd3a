"""How a run ended that did not end well, as its console shows it: the first error of any rank, out of memory or not.

A launcher ends the other ranks after the first that fails, in words that look like a signal from outside: what it says
of itself (`Killing subprocess`, `closing signal SIGTERM`) is no cause, the return code that it names is one. Code 1 is
that of every uncaught exception, running out of memory among them, and -6 that of every abort: they tell no status.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from lm_scale.report.ingest.console import Console, Segment

OUT_OF_MEMORY = re.compile(
    r"OutOfMemoryError|(?:CUDA|HIP|XPU|NPU) out of memory|CUDA error: out of memory|DefaultCPUAllocator: .*allocate"
    r"|\boom[-_]kill|Out of memory: Killed|^MemoryError\b|OUT_OF_MEMORY",
    re.IGNORECASE,
)
INTERRUPTED = re.compile(
    r"^KeyboardInterrupt\b|DUE TO TIME LIMIT|CANCELLED AT|DUE TO PREEMPTION|SignalException: .* got signal: (?:15|2)\b"
    r"|Received SIGTERM|Main process received SIG(?:INT|TERM)|died with <Signals\.SIG(?:INT|TERM)"
)
HUNG = re.compile(r"Watchdog caught collective operation timeout|collective operation timeout: WorkNCCL")
KILLED = re.compile(
    r"^Killed$|Signal (?:7|9|11) \(SIG|Segmentation fault|Bus error|died with <Signals\.SIG(?:KILL|SEGV|BUS)"
    r"|: task \d+: (?:Killed|Segmentation fault)"
)
ABORTED = re.compile(r"core dumped|Signal 6 \(SIG|died with <Signals\.SIGABRT")
LAUNCHERS = re.compile(
    r"exits with return code = (-?\d+)\s*$|failed \(exitcode: (-?\d+)\) local_rank|returncode = (-?\d+)"
    r"|Exited with exit code (\d+)|returned non-zero exit status (\d+)\."
)
"""The first process that a launcher (DeepSpeed's, torchrun, srun, accelerate) saw fail."""
ELASTIC = re.compile(r"^\s*exitcode\s*: (-?\d+) \(pid")
ROOT_CAUSE = "Root Cause (first observed failure)"
"""torchrun lists every rank's end, those that it ended itself too, and the first one last."""
EXCEPTION = re.compile(r"^(?:\w+\.)*[A-Z]\w*(?:Error|Exception|Interrupt|Exit|Failure|Timeout)\b(?:: .*)?$")
FRAME = re.compile(r'^\s*File ".*", line \d+')
PEER = re.compile(r"Connection (?:closed|reset) by|remote process exited|remote worker|Broken pipe")
"""What a rank says of another that is gone; what ended that one is said elsewhere."""
TRACEBACK = "Traceback (most recent call last)"
RANK_PREFIX = re.compile(r"(?:^\s*|(?<=\]))(?:\[(?:rank|default)?\d+\]:?|\d+:|\[rank \d+\])\s?")
"""What launchers write before a rank's line: `[rank0]: `, `[default0]:`, `0: `; also right behind a bar's `it/s]`."""
WORDS = (
    *("error", "exception", "interrupt", "exit", "failure", "timeout", 'file "', "traceback", "memory", "oom", "alloc"),
    *("due to", "cancelled", "signal", "sigterm", "killed", "killing", "code", "fault", "root cause", "dumped", " sig"),
)
"""In lower case; a line without any of these says none of it, and most lines of a log are a bar's."""
LINE_LIMIT = 300
ORDER = ("oom", "interrupted", "hung", "crashed", "traceback", "killed", "aborted", "peer", "killing")
"""What is believed first. Of an interruption, a hang and an exception it is the earliest: the others may follow from
it. A rank's word that another is gone comes after the launcher's, which saw that one go."""
STATUS = {"killed": "crashed", "traceback": None, "aborted": None, "peer": None, "killing": None}


@dataclass(frozen=True)
class Failure:
    """What ended the run: `status` as in the run directory's schema, None where the log does not say which; the line
    that says it; where it stands."""

    status: str | None
    message: str
    line: int


@dataclass
class _Told:
    """The first failure of each kind, and the ranks in whose traceback we are; `lost`: a traceback has no end."""

    first: dict[str, Failure] = field(default_factory=dict)
    unfinished: set[str] = field(default_factory=set)
    lost: bool = False
    root_cause: bool = False

    def add(self, kind: str, message: str, line: int) -> None:
        self.first.setdefault(kind, Failure(STATUS.get(kind, kind), message, line))


def failure(console: Console, after: int = 0) -> Failure | None:
    """The first error at or after the line `after`; None where there is none.

    Running out of memory goes before other errors, since those of the other ranks follow from it, and an exception
    goes before the launcher's word that a process ended.
    """
    told = _Told()
    end = console.segments[-1] if console.segments else None
    for segment in console.segments:
        if segment.line >= after:
            lower = segment.text.lower()
            if any(word in lower for word in WORDS):
                _take(told, segment, cut=segment is end and not segment.ended)
    first = told.first
    if not (told.lost or told.unfinished):
        first.pop("traceback", None)
    elif "oom" not in first and "crashed" in first:
        return dataclasses.replace(first["crashed"], status=None)  # the error that was lost may be another
    kind = next((kind for kind in ORDER if kind in first), None)
    if kind is None:
        return None
    causes = [first[one] for one in ("interrupted", "hung", "crashed") if one in first]
    cause = min(causes, key=lambda one: one.line) if kind in ("interrupted", "hung", "crashed") else first[kind]
    # DeepSpeed's launcher says why it ended the ranks after it has.
    return dataclasses.replace(cause, line=min(cause.line, first.get("killing", cause).line))


def _take(told: _Told, segment: Segment, cut: bool) -> None:
    """Add what one line says; `cut`: the file ends within it."""
    prefix = RANK_PREFIX.search(segment.text) if "]" in segment.text or segment.text[:1].isdigit() else None
    rank = prefix[0].strip() if prefix else ""
    text = segment.text[prefix.end() if prefix else 0 :].rstrip()
    if FRAME.match(text):
        told.unfinished.add(rank)  # also of a traceback whose first line is missing
    if TRACEBACK in text:
        told.lost = told.lost or rank in told.unfinished
        told.unfinished.add(rank)
        told.add("traceback", "a traceback whose last line is missing", segment.line)
    elif "ChildFailedError" in text:
        told.unfinished.discard(rank)  # the launcher's own word that a rank failed
    elif kind := _kind(text, rank in told.unfinished):
        if kind == "crashed" and cut:  # the rest of the line may name another error
            told.first["traceback"] = Failure(None, _one_line(text), segment.line)
            return
        told.add(kind, _one_line(text), segment.line)
        if kind not in ("killed", "aborted"):
            told.unfinished.discard(rank)
    else:
        for kind, message in _launchers_word(told, text):
            told.add("aborted" if cut else kind, message, segment.line)  # of a code of -15, -1 may be all that is left


def _kind(text: str, in_traceback: bool) -> str | None:
    if text.startswith("    "):
        return None  # a line of the script, in a traceback
    if OUT_OF_MEMORY.search(text):
        return "oom"
    if INTERRUPTED.search(text):
        return "interrupted"
    if HUNG.search(text):
        return "hung"
    if in_traceback and "CalledProcessError" not in text and EXCEPTION.match(text):
        return "peer" if PEER.search(text) else "crashed"
    return "killed" if KILLED.search(text) else None


def _launchers_word(told: _Told, text: str) -> Iterator[tuple[str, str]]:
    """What a launcher says of a process that ended: the kind, and the words for it."""
    if ROOT_CAUSE in text:
        told.root_cause = True
    elif "Killing subprocess" in text:
        yield "killing", _one_line(text)
    elif found := LAUNCHERS.search(text):
        code = int(next(group for group in found.groups() if group is not None))
        if code:
            yield _kind_of_code(code), f"a process ended with return code {code}"
    elif found := ELASTIC.match(text):
        if told.root_cause:
            yield _kind_of_code(int(found[1])), f"a process ended with return code {found[1]}"
    elif ABORTED.search(text):
        yield "aborted", _one_line(text)


def _kind_of_code(code: int) -> str:
    """A signal's number with a minus, as Python has it, or 128 more than it, as a shell has it."""
    signal = -code if code < 0 else code - 128 if code > 128 else 0
    if signal in (2, 15):
        return "interrupted"
    return "aborted" if code == 1 or signal == 6 else "killed"


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= LINE_LIMIT else f"{line[: LINE_LIMIT - 3]}..."
