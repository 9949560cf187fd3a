"""What frameworks print goes to the run's log, whole, whoever prints it: Python, C++ and compilers alike.

File descriptors 1 and 2 are replaced, so nothing escapes. Until the run directory exists the text is kept in a
temporary file; then `sed`, a process of its own, prefixes each line with the rank and appends it to `log.txt`: it
writes the last words of a rank that died in C++, which a thread of that rank could not.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import IO


class Capture:
    """A context in which descriptors 1 and 2 are the log, and `terminal` is what was stderr before."""

    def __init__(self, rank: int) -> None:
        self._rank = rank

    def __enter__(self) -> Capture:
        sys.stdout.flush()
        sys.stderr.flush()
        self._saved = [os.dup(1), os.dup(2)]
        self.terminal: IO[str] = os.fdopen(os.dup(2), "w", encoding="utf-8", errors="replace", buffering=1)
        self._early = tempfile.TemporaryFile()
        self._prefixer: subprocess.Popen[bytes] | None = None
        self._redirect(self._early.fileno())
        return self

    def attach(self, log: Path) -> None:
        """From now on to `log`, which also gets what was printed so far."""
        self._flush()
        ignored = signal.signal(signal.SIGTERM, signal.SIG_IGN)  # inherited: the prefixer outlives the launcher's kill
        interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)
        with open(log, "ab") as file:
            self._prefixer = subprocess.Popen(
                ["sed", "-u", f"s/^/[rank {self._rank}] /"],
                stdin=subprocess.PIPE,
                stdout=file,
                stderr=subprocess.DEVNULL,
            )
        signal.signal(signal.SIGTERM, ignored)
        signal.signal(signal.SIGINT, interrupt)
        pipe = self._prefixer.stdin
        assert pipe is not None
        self._early.seek(0)
        shutil.copyfileobj(self._early, pipe)
        pipe.flush()
        self._redirect(pipe.fileno())
        pipe.close()
        self._early.close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._flush()
        for target, saved in zip((1, 2), self._saved, strict=True):
            os.dup2(saved, target)
            os.close(saved)
        self.terminal.flush()
        if self._prefixer is not None:
            # On a timeout a child of ours still holds the pipe; the log stays open for it.
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._prefixer.wait(timeout=5)
        elif not self._early.closed:
            self._early.close()

    def early_text(self) -> str:
        """What was printed before there was a log."""
        self._flush()
        self._early.seek(0)
        return self._early.read().decode(errors="replace")

    def _redirect(self, descriptor: int) -> None:
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)

    def _flush(self) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
