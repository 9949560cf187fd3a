"""The run directory: its schema, its writer and its reader. Standard library only.

    run.json        the header, replaced atomically whenever it changes (`Header` documents its keys)
    ds_config.json  the DeepSpeed JSON exactly as executed
    metrics.jsonl   one JSON object a line: `kind` = step | eval | sample | event
    log.txt         what the frameworks said, each line prefixed by its rank
    checkpoints/    resumable checkpoints, and `final`, the trained weights as a Hugging Face directory

A directory is complete in itself: everything a report says of a run is read from these files.
"""

from __future__ import annotations

import datetime
import json
import math
import os
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SCHEMA_VERSION = 1

STATUSES = ("running", "completed", "budget", "interrupted", "diverged", "oom", "crashed", "hung", "rejected")

Header = dict[str, Any]
"""`run.json`. What is not known is null. Keys of schema 1:

schema, name, status, last_error
created_at, started_at, finished_at   ISO 8601 with offset; started_at is the begin of the first step
process      host, boot_id, pid, pid_started (clock ticks since boot), command (list of words)
arguments    pretrain's arguments as parsed
strategy     name, ds_config (path), engine, zero_stage, offload, sources {dotted path: where its value came from}
layout       world_size, nodes, data_parallel, pipeline_stages, tensor_parallel
batch        micro_batch, grad_accum, global_batch, seq_len, packing
numerics     precision, precision_reason, reduction_precision, master_weights, activation_checkpointing, torch_compile,
             attn_implementation, loss, loss_reason
model        name, params, vocab_size, tied_embeddings, config (transformers' own JSON), flops_per_token
data         dataset, tokenizer, fingerprint, train_docs, train_tokens, train_samples, eval_docs, eval_tokens
optimizer    type, learning_rate, weight_decay, params (as executed), decayed_params, undecayed_params (counts)
schedule     type, warmup_steps, planned_steps, budget_s
seed
versions     lm_scale, python, torch, deepspeed, transformers, datasets, tokenizers, numpy
hardware     device, device_count, device_memory_bytes, device_peak_flops_per_s, cpu, cpus, threads_per_rank,
             host_memory_bytes
git          commit, dirty (of the folder the command was started in)
state_bytes  parameters, gradients, master_weights, optimizer: live tensors of the fullest rank, by kind
predicted    flops_per_token, peak_device_bytes, peak_host_bytes: what was computed before step 1
warnings     list of one-line strings
wandb_url
resumed_from, resumed_step
"""


class RecordError(Exception):
    """A run directory cannot be read. The text is one line and names the file."""


@dataclass
class Run:
    """One run directory, read back."""

    path: Path
    header: Header
    records: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    @property
    def status(self) -> str:
        """The header's status, but `crashed` or `oom` where the process that was `running` is gone."""
        status = str(self.header.get("status"))
        if status == "running" and not is_alive(self):
            return self.died_of()
        return status

    def died_of(self) -> str:
        """What a run was that can no longer say it: `oom` where its first error was that, else `crashed`."""
        return str((self.first_error() or {}).get("status") or "crashed")

    @property
    def last_error(self) -> str | None:
        """One line: the header's, or the first error of any rank, since the others' follow from it."""
        if self.header.get("last_error"):
            return str(self.header["last_error"])
        error = self.first_error()
        if error is not None:
            return str(error["message"])
        return "the process ended without a word" if self.status == "crashed" else None

    def first_error(self) -> dict[str, Any] | None:
        """The first error event of any rank since the run was started or resumed."""
        first = None
        for event in self.of("event"):
            if event.get("event") == "resumed":
                first = None
            elif event.get("event") == "error" and first is None:
                first = event
        return first

    def of(self, kind: str) -> list[Any]:
        """The records of one kind (`step`, `eval`, `sample`, `event`) in the order in which they were written: dicts,
        or what the reader's `decode` made of them."""
        return self.records.get(kind, [])


class Writer:
    """Writes one run directory. Every rank may append records; the first rank alone owns the header."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._metrics = open(path / "metrics.jsonl", "ab", buffering=0)  # noqa: SIM115 - open as long as the run

    @classmethod
    def create(cls, path: Path, header: Header, ds_config: dict[str, Any]) -> Writer:
        """Make the directory and its header with the status `running`.

        Raises:
            FileExistsError: the name is taken.
            OSError: the directory cannot be written.
        """
        path.mkdir(parents=True)
        (path / "ds_config.json").write_text(json.dumps(ds_config, indent=2) + "\n", encoding="utf-8")
        (path / "metrics.jsonl").touch()
        _replace(path / "run.json", {"schema": SCHEMA_VERSION, "name": path.name, "status": "running", **header})
        return cls(path)

    @classmethod
    def reopen(cls, path: Path, after_step: int, **changes: Any) -> Writer:
        """Go on in a run's directory from its checkpoint of `after_step`.

        Records of later steps belong to work that is done again, so they leave; an event keeps their number.
        """
        kept, dropped = [], 0
        for _, record in _lines(path / "metrics.jsonl", decode_line):
            later = record["kind"] != "event" and record.get("step", 0) > after_step
            dropped += later and record["kind"] == "step"
            if not later and not record.get("final"):
                kept.append(json.dumps(_plain(record)) + "\n")
        _replace_text(path / "metrics.jsonl", "".join(kept))
        writer = cls(path)
        writer.update(status="running", last_error=None, finished_at=None, **changes)
        writer.append("event", event="resumed", step=after_step, dropped_steps=dropped)
        return writer

    def update(self, **changes: Any) -> None:
        """Change keys of the header; a reader sees the old header or the new one, never half of one."""
        header = json.loads((self.path / "run.json").read_text(encoding="utf-8"))
        _replace(self.path / "run.json", {**header, **changes})

    def append(self, kind: str, **values: Any) -> None:
        """Add one record. It is one write to a file opened for appending, so that ranks cannot mix their lines."""
        record = {"kind": kind, "time": time.time(), **values}
        self._metrics.write(json.dumps(_plain(record)).encode() + b"\n")


def process_identity(command: list[str]) -> dict[str, Any]:
    """What `is_alive` needs to find this process again: host, boot, pid, and when the pid was given."""
    pid = os.getpid()
    return {
        "host": socket.gethostname(),
        "boot_id": _boot_id(),
        "pid": pid,
        "pid_started": _pid_started(pid),
        "command": command,
    }


def is_alive(run: Run) -> bool:
    """Whether the process that writes the run still exists.

    On another host that cannot be looked up; there a run that has written nothing for 15 minutes counts as gone.
    """
    process = run.header.get("process") or {}
    if process.get("host") == socket.gethostname():
        started = _pid_started(process.get("pid"))
        return process.get("boot_id") == _boot_id() and started is not None and started == process.get("pid_started")
    newest = max(file.stat().st_mtime for file in run.path.iterdir() if file.is_file())
    return time.time() - newest < 15 * 60


def decode_line(line: bytes) -> tuple[str, dict[str, Any]]:
    """The kind of a record and the record, of one line of `metrics.jsonl`.

    Raises:
        ValueError: it is no record.
    """
    record = json.loads(line)
    if not isinstance(record, dict) or not isinstance(record.get("kind"), str):
        raise ValueError("no record (an object with a kind)")
    if record["kind"] in ("step", "eval"):  # numbers alone: undo what `_plain` did
        record = {key: float(value) if value in ("nan", "inf", "-inf") else value for key, value in record.items()}
    return record["kind"], record


def read(path: Path, decode: Callable[[bytes], tuple[str, Any]] = decode_line) -> Run:
    """Read a run directory of any schema up to this one.

    A last line cut off by a kill is left out; a damaged line in the middle is an error. `decode` turns a line into its
    kind and its record, for a reader that wants other records than dicts.

    Raises:
        RecordError: there is no header, it is no JSON, or its schema is newer than this version.
    """
    try:
        header = json.loads((path / "run.json").read_text(encoding="utf-8"))
    except OSError as error:
        raise RecordError(f"{path / 'run.json'}: {error.strerror}") from None
    except ValueError as error:
        raise RecordError(f"{path / 'run.json'}: not valid JSON: {error}") from None
    if not isinstance(header, dict) or not isinstance(header.get("schema"), int):
        raise RecordError(f"{path / 'run.json'}: no run header (it has no schema)")
    if header["schema"] > SCHEMA_VERSION:
        raise RecordError(
            f"{path / 'run.json'}: schema {header['schema']} is newer than this version reads ({SCHEMA_VERSION})"
        )
    run = Run(path, header)
    for kind, record in _lines(path / "metrics.jsonl", decode):
        run.records.setdefault(kind, []).append(record)
    return run


def find(path: Path) -> list[Path]:
    """The run directories at or below `path`, sorted by name."""
    if (path / "run.json").is_file():
        return [path]
    return sorted(header.parent for header in path.rglob("run.json"))


def now() -> str:
    """The current time in ISO 8601 with its offset, to the millisecond."""
    return datetime.datetime.now().astimezone().isoformat(timespec="milliseconds")


def _replace(path: Path, value: Any) -> None:
    _replace_text(path, json.dumps(_plain(value), indent=2) + "\n")


def _replace_text(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _plain(value: Any) -> Any:
    """`value` as strict JSON: a number that is not finite becomes its name in a string, which JSON can hold."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    return value


def _lines(path: Path, decode: Callable[[bytes], tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    if not path.is_file():
        return
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            yield decode(line)
        except ValueError as error:
            if number == len(lines):  # no newline follows: the writer was killed in the middle of it
                return
            reason = "not valid JSON" if isinstance(error, json.JSONDecodeError) else str(error)
            raise RecordError(f"{path}:{number}: {reason}") from None


def _boot_id() -> str | None:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None


def _pid_started(pid: int | None) -> int | None:
    """When a process started, in clock ticks since boot; None if it has ended, waited for by its parent or not.

    Fields 3 (state) and 22 (start) of proc_pid_stat(5); the name before them may hold spaces and parentheses.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])
