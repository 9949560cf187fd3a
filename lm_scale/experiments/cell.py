"""One cell of a comparison: a run started from outside, watched, ended when it must be, and its outcome kept.

The run's own record says how it ended; the launcher's exit status does not (`deepspeed` ends with 0 when a signal
killed its helper). What the record cannot say any more is written here: that the run hung, died, or never began.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from lm_scale import records
from lm_scale.arguments import EXIT_USER_ERROR, PretrainArguments, UserError
from lm_scale.experiments import processes
from lm_scale.experiments.watch import Line, Watch, clock

POLL_S = 0.2
GRACE_S = 20.0
LEFTOVER_S = 5.0
FINISHED = ("completed", "budget")
"""The statuses of a run that did what was asked of it."""


@dataclass(frozen=True)
class Cell:
    """One run to be: its directory is `folder / name`, and what the launcher prints is kept beside it."""

    name: str
    ds_config: str
    folder: Path
    command: tuple[str, ...]
    environment: dict[str, str]

    @property
    def directory(self) -> Path:
        return self.folder / self.name

    @property
    def log(self) -> Path:
        return self.folder / f"{self.name}.launcher.log"


@dataclass(frozen=True)
class Outcome:
    """How a cell ended: the launcher's exit status, the record's status, and the line that says why."""

    exit_status: int
    status: str
    error: str | None


def command(world_size: int, device: str, words: Sequence[str]) -> tuple[str, ...]:
    """What starts `lm_scale.pretrain` with the arguments `words` on `world_size` ranks of this machine.

    DeepSpeed ignores CUDA_VISIBLE_DEVICES as soon as it is told a number of devices, so the devices are named to it.
    Its host file is left aside: a comparison stays on this machine.

    Raises:
        UserError: CUDA_VISIBLE_DEVICES does not number the devices.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    which = ["--num_gpus", str(world_size)]
    if device == "gpu" and visible:
        devices = visible.split(",")[:world_size]
        if not all(one.strip().isdigit() for one in devices):
            raise UserError(f"CUDA_VISIBLE_DEVICES={visible}: deepspeed takes device numbers alone; write 0,1,...")
        which = ["--include", f"localhost:{','.join(one.strip() for one in devices)}"]
    launcher = [sys.executable, "-m", "deepspeed.launcher.runner", "--hostfile", os.devnull]
    return (*launcher, *which, "--master_port", str(_free_port()), "--module", "lm_scale.pretrain", *words)


def words(arguments: PretrainArguments, leave_out: Sequence[str] = ()) -> list[str]:
    """The command-line words that give `pretrain` these arguments; what stands at its default is not said."""
    said = []
    for field in dataclasses.fields(PretrainArguments):
        value = getattr(arguments, field.name)
        if field.name in leave_out or value is None or value == field.default or value == []:
            continue
        for one in value if isinstance(value, list) else [value]:
            said.append(f"--{field.name}={str(one).lower() if isinstance(one, bool) else one}")
    return said


def run(cell: Cell, timeout_s: float, stream: IO[str], label: str) -> Outcome:
    """Run the cell to its end, showing its progress on `stream`; its directory exists afterwards.

    It is `hung` after `timeout_s` seconds. Interrupted itself, it ends the run, keeps its record and passes the
    interrupt on. No process of the cell lives when it returns or raises.

    Raises:
        KeyboardInterrupt: passed on.
    """
    begun, created_at = time.monotonic(), records.now()
    watch, line = Watch(cell.directory, cell.log), Line(stream, label)
    process = processes.start(cell.command, cell.log, cell.environment)
    status: str | None = None
    try:
        while process.poll() is None and time.monotonic() - begun <= timeout_s:
            line.draw(watch.describe(), time.monotonic() - begun)
            time.sleep(POLL_S)
        if process.poll() is None and _recorded_status(cell.directory) not in FINISHED:
            status = "hung"
        if process.poll() is not None:
            processes.wait_for_all(process, LEFTOVER_S)
    except KeyboardInterrupt:
        status = "interrupted"
        raise
    finally:
        processes.end(process, GRACE_S)
        reason = f"no end within {clock(timeout_s)}; ended by compare" if status == "hung" else None
        outcome = _settle(cell, process, status, reason, created_at)
        progress = watch.describe() if outcome.error is None else outcome.error
        line.end(f"{outcome.status}  {progress}", time.monotonic() - begun)
    return outcome


def reject(cell: Cell, error: str, stream: IO[str], label: str) -> Outcome:
    """The record of a run that is not started, since its JSON is refused; its directory exists afterwards."""
    _write_record(cell, "rejected", error, records.now())
    Line(stream, label).end(f"rejected  {error}", 0.0)
    return Outcome(EXIT_USER_ERROR, "rejected", error)


def _settle(
    cell: Cell, process: subprocess.Popen[bytes], status: str | None, reason: str | None, created_at: str
) -> Outcome:
    """Make the record say how the run ended where the run could not; `status` is what the watcher knows of it."""
    said = cell.log.read_text(encoding="utf-8", errors="replace")
    refusal = next((line for line in said.splitlines() if line.startswith("error: ")), None)
    if not (cell.directory / "run.json").is_file():
        rejected = process.returncode == EXIT_USER_ERROR and refusal is not None
        status = status or ("rejected" if rejected else "crashed")
        known = reason or (refusal or "").removeprefix("error: ")
        error: str | None = known or _last_words(said, process.returncode, cell.log)
        _write_record(cell, status, error, created_at)
        return Outcome(process.returncode, status, error)
    try:
        recorded = records.read(cell.directory)
    except records.RecordError as problem:
        return Outcome(process.returncode, "crashed", str(problem))
    if status == "hung" or recorded.header.get("status") == "running":
        error = reason or (
            None if status == "interrupted" else _last_error(recorded, said, process.returncode, cell.log)
        )
        changes: dict[str, Any] = {
            "status": status or recorded.died_of(),
            "last_error": error,
            "finished_at": records.now(),
        }
        records.Writer(cell.directory).update(**changes)
        return Outcome(process.returncode, changes["status"], error)
    return Outcome(process.returncode, recorded.status, recorded.last_error)


def _last_error(recorded: records.Run, said: str, exit_status: int, log: Path) -> str:
    """Why a run died that could not say so itself: its first error event, or what the launcher saw."""
    event = recorded.first_error()
    return str(event.get("message")) if event else _last_words(said, exit_status, log)


def _last_words(said: str, exit_status: int, log: Path) -> str:
    exceptions = re.findall(r"^(?:\[rank\d+\]: ?)?(\w[\w.]*(?:Error|Exception)\b.*)$", said, re.MULTILINE)
    if exceptions:
        return f"{exceptions[-1].strip()} (all of it in {log})"
    codes = [int(code) for code in re.findall(r"exits with return code = (-?\d+)", said)]
    if codes and codes[-1] < 0:
        name = signal.Signals(-codes[-1]).name
        hint = ", as the system does when memory runs out" if name == "SIGKILL" else ""
        return f"a rank was ended by {name}{hint}; see {log}"
    return f"the launcher ended with status {exit_status} and no record was closed; see {log}"


def _write_record(cell: Cell, status: str, error: str | None, created_at: str) -> None:
    """The directory of a run that never came to write its own."""
    try:
        config = json.loads(Path(cell.ds_config).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        config = {}
    header = {
        "status": status,
        "last_error": error,
        "created_at": created_at,
        "started_at": None,
        "finished_at": records.now(),
        "strategy": {"name": Path(cell.ds_config).stem, "ds_config": cell.ds_config},
        "process": {"host": socket.gethostname(), "command": list(cell.command)},
    }
    records.Writer.create(cell.directory, header, config)


def _recorded_status(directory: Path) -> str | None:
    try:
        return str(records.read(directory).header.get("status"))
    except records.RecordError:
        return None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
