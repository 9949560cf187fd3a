"""A `run-<id>.wandb` file: the records that W&B's process wrote, in a log with the framing of LevelDB.

wandb read it back with `wandb.sdk.internal.datastore` until it moved that into its compiled service (0.31 has no
reader for Python), so the framing, which has stayed the same, is read here, and its contents with wandb's own protobuf
classes. The format is https://github.com/google/leveldb/blob/main/doc/log_format.md with a file header of 7 bytes and
CRC-32 instead of CRC-32C.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lm_scale.report.ingest import UnreadableError

HEADER = struct.pack("<4sHB", b":W&B", 0xBEE1, 0)
FRAME = struct.Struct("<IHB")
"""Before each piece: CRC-32 over its type and its bytes, its length, its type."""
BLOCK_BYTES = 32768
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4

Texts = dict[tuple[str, ...], str]
"""Values as JSON by the names on the way to them; most are replaced before the end, where they are parsed."""


@dataclass
class Log:
    """What the records say; `ended` where the one that closes the run is among them, and so everything before it.

    `summary` is as of the last row of the history where the file does not reach the end: the values that go with a row
    are written before it, one by one. `texts` is the console.
    """

    run: Any = None
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    metadata: dict[str, Any] = field(default_factory=dict)
    texts: list[str] = field(default_factory=list)
    last_stamp: float | None = None
    exit: Any = None
    own_steps: bool = False

    @property
    def ended(self) -> bool:
        return self.exit is not None


def read(path: Path) -> Log:
    """The records up to the end of the file or up to the first damage in it.

    Raises:
        UnreadableError: the file cannot be opened, is none of W&B's, or the installed wandb cannot parse its records.
    """
    try:
        from google.protobuf.json_format import MessageToDict
        from google.protobuf.message import DecodeError
        from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]
    except ImportError as error:
        raise UnreadableError(f"{path}: the installed wandb cannot read its own files: {error}") from None
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UnreadableError(f"{path}: {error.strerror}") from None
    if not data.startswith(HEADER):
        raise UnreadableError(f"{path}: no W&B log: it does not begin as one")
    log = Log()
    config: Texts = {}
    summary: Texts = {}
    pending: Texts = {}
    for frame in _frames(data):
        record = Record()
        try:
            record.ParseFromString(frame)
            kind = record.WhichOneof("record_type")
            if kind == "summary":
                _apply(pending, record.summary)
            elif kind == "environment":
                log.metadata |= MessageToDict(record.environment, preserving_proto_field_name=True)
            else:
                _take(log, config, kind, record)
        except (DecodeError, ValueError):  # a newer wandb wrote it, or a checksum was right by chance
            break
        if kind == "history" or log.ended:
            summary = dict(pending)
    try:
        log.config, log.summary = _parsed(config), _parsed(summary)
    except ValueError as error:
        raise UnreadableError(f"{path}: damaged: {error}") from None
    return log


def _take(log: Log, config: Texts, kind: str | None, record: Any) -> None:
    """Add one record to `log`; records of other kinds say nothing of the run."""
    if kind == "run":
        log.run = record.run
        _apply(config, record.run.config)
    elif kind == "config":
        _apply(config, record.config)
    elif kind == "history":
        items = record.history.item
        values = json.loads(f"[{','.join(item.value_json for item in items)}]")
        names = (".".join(item.nested_key) or item.key for item in items)
        log.history.append({"_step": record.history.step.num, **dict(zip(names, values, strict=True))})
    elif kind == "output_raw" or kind == "output":
        log.texts.append(getattr(record, kind).line)
    elif kind == "stats":
        log.last_stamp = record.stats.timestamp.seconds + record.stats.timestamp.nanos / 1e9
    elif kind == "telemetry":
        log.own_steps = log.own_steps or record.telemetry.feature.set_step_log
    elif kind == "exit":
        log.exit = record.exit


def _apply(values: Texts, changes: Any) -> None:
    """Put the updates of a config or summary record into `values`, and take its removals out."""
    for item in changes.update:
        values[tuple(item.nested_key) or (item.key,)] = item.value_json
    for item in changes.remove:
        gone = tuple(item.nested_key) or (item.key,)
        for path in [path for path in values if path[: len(gone)] == gone]:
            del values[path]


def _parsed(texts: Texts) -> dict[str, Any]:
    """The values as nested dicts; a later value of an outer name replaces what was below it."""
    values: dict[str, Any] = {}
    for (*above, last), text in texts.items():
        inner = values
        for name in above:
            if not isinstance(inner.get(name), dict):
                inner[name] = {}
            inner = inner[name]
        inner[last] = json.loads(text)
    return values


def _frames(data: bytes) -> Iterator[bytes]:
    """The records' bytes, up to the first piece that is cut off or whose checksum is wrong."""
    position, pieces = len(HEADER), b""
    while True:
        left = BLOCK_BYTES - position % BLOCK_BYTES
        if left < FRAME.size:
            position += left
        if position + FRAME.size > len(data):
            return
        checksum, length, kind = FRAME.unpack_from(data, position)
        piece = data[position + FRAME.size : position + FRAME.size + length]
        expected = zlib.crc32(piece, zlib.crc32(bytes([kind])))
        if len(piece) < length or checksum != expected or (kind in (FULL, FIRST)) != (not pieces):
            return
        position += FRAME.size + length
        pieces += piece
        if kind in (FULL, LAST):
            yield pieces
            pieces = b""
