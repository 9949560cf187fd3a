"""A command and everything it starts, in a session of its own, so that nothing of it outlives the one who asked for it.

A launcher that is killed leaves its ranks behind (`deepspeed` installs no handler on one node, facts section 5), so the
whole session is ended, not the process that was started. Linux alone: sessions are read from /proc.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lm_scale.arguments import UserError

POLL_S = 0.1


def printed_json(command: Sequence[str], blame: str) -> Any:
    """What a command of this project prints as JSON; it is waited for.

    Raises:
        UserError: it failed; `blame` and the last line that it said, as an error of its own.
    """
    done = subprocess.run(list(command), capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise UserError(f"{blame}: {last.removeprefix('error: ').removeprefix(f'{blame}: ')}")
    return json.loads(done.stdout)


def start(command: Sequence[str], log: Path, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start `command` in a new session; what it and its children print goes to `log`.

    Raises:
        OSError: the command or the log cannot be opened.
    """
    with open(log, "ab") as file:
        return subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            start_new_session=True,
        )


def members(session: int) -> list[int]:
    """The living processes of a session; a zombie has ended and only waits to be collected."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                fields = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
            except OSError:  # it ended in between
                continue
            if fields[0] not in "ZX" and int(fields[3]) == session:  # fields 3 and 6 of proc_pid_stat(5)
                found.append(int(entry))
    return found


def wait_for_all(process: subprocess.Popen[bytes], limit_s: float) -> None:
    """Give what `process` started at most `limit_s` seconds to end by itself."""
    deadline = time.monotonic() + limit_s
    while members(process.pid) and time.monotonic() < deadline:
        process.poll()
        time.sleep(POLL_S)


def end(process: subprocess.Popen[bytes], grace_s: float) -> None:
    """End the whole session of `process`: SIGTERM, and SIGKILL for what still lives after `grace_s` seconds.

    A second interrupt while it waits skips the rest of the grace. Returns when nothing of the session lives.
    """
    try:
        _signal(process.pid, signal.SIGTERM)
        wait_for_all(process, grace_s)
    finally:
        while members(process.pid):
            _signal(process.pid, signal.SIGKILL)
            time.sleep(POLL_S)
        process.wait()


def _signal(session: int, number: signal.Signals) -> None:
    for pid in members(session):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
