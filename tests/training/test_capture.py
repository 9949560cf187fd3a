"""What frameworks print reaches the log, each line under its rank, and the terminal stays clean."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

PROGRAM = """
import ctypes, os, sys
from pathlib import Path
from lm_scale.training.capture import Capture
with Capture(3) as capture:
    print("python, early")
    os.system("echo a child, early >&2")
    capture.attach(Path(sys.argv[1]))
    print("python, late")
    libc = ctypes.CDLL(None)
    libc.puts(b"from C")
    libc.fflush(None)
    print("shown", file=capture.terminal)
    if sys.argv[2:] == ["die"]:
        os.write(2, b"last words of C++\\n")
        os.abort()
print("after")
"""


def run(log: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", PROGRAM, str(log), *words], capture_output=True, text=True, timeout=60)


def test_everything_printed_is_in_the_log_under_its_rank(tmp_path: Path) -> None:
    done = run(tmp_path / "log.txt")
    assert (done.stdout, done.stderr) == ("after\n", "shown\n")
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert sorted(lines) == sorted(
        f"[rank 3] {text}" for text in ("python, early", "a child, early", "python, late", "from C")
    )


def test_the_last_words_of_a_rank_that_aborts_are_kept(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    assert run(log, "die").returncode < 0
    deadline = time.monotonic() + 10  # the prefixer is a process of its own: it may still be writing
    while "last words" not in log.read_text() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert "[rank 3] last words of C++" in log.read_text()
