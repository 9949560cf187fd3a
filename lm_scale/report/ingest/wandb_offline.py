"""Rows from the folders that W&B leaves beside a training script: `wandb/run-<time>-<id>/`, `wandb/offline-run-.../`.

The log `run-<id>.wandb` holds everything and is enough; `files/` repeats parts of it where the run was online or wandb
is old (`config.yaml`, `wandb-summary.json`, `wandb-metadata.json`, `output.log`) and is enough too. What only `files/`
has is the run's end, as far as it says it: `wandb-summary.json` is written last.
"""

from __future__ import annotations

import datetime
import json
import re
from pathlib import Path
from typing import Any

from lm_scale.report.ingest import Reading, UnreadableError, console, ending, wandb_log, wandb_runs
from lm_scale.report.ingest.wandb_log import Log
from lm_scale.report.ingest.wandb_values import Recorded, number

FOLDER = re.compile(r"(?:offline-)?run-\d{8}_\d{6}-(?P<id>.+)")
INTERRUPT = 255
"""The exit code that wandb's hook gives a run that `KeyboardInterrupt` ended."""


def recognises(path: Path) -> bool:
    """Whether `path` is a run's folder or its log; a link to a folder (`latest-run`) is not, as its target is one."""
    if path.suffix == ".wandb":
        return path.is_file()
    if path.is_symlink() or not path.is_dir():
        return False
    known = FOLDER.fullmatch(path.name) or (path / "files/wandb-summary.json").exists()
    return bool(known) or _log_file(path) is not None


def read(path: Path) -> list[Reading]:
    """The one run of a folder or of a log; of a log that stands in its run's folder, that of the folder.

    Raises:
        UnreadableError: there is nothing in it that can be read.
    """
    folder = path if path.is_dir() else path.parent if FOLDER.fullmatch(path.parent.name) else None
    file = path if folder is None else path if path.suffix == ".wandb" and not path.is_dir() else _log_file(folder)
    problem: UnreadableError | None = None
    log = Log()
    if file is not None:
        try:
            log = wandb_log.read(file)
        except UnreadableError as error:
            problem = error
    files = folder / "files" if folder is not None else None
    config = _config(files / "config.yaml") if files else {}
    summary = _json(files / "wandb-summary.json") if files else {}
    metadata = _json(files / "wandb-metadata.json") if files else {}
    if log.run is None and not config and not summary:
        raise problem or UnreadableError(f"{path}: the run's record was cut off before its first entry")
    run = Recorded(
        source="wandb_offline",
        name=_name(path, file, folder, log),
        path=str(path),
        config=log.config or config,
        summary=log.summary if log.ended else {**log.summary, **summary},
        history=log.history,
        metadata={**metadata, **log.metadata},
        whole=log.ended,
        own_steps=log.own_steps,
        run_id=_run_id(file, folder, log),
    )
    _describe(run, log)
    _ending(run, log, files, path)
    try:
        return [wandb_runs.reading(run)]
    except ValueError as error:
        raise UnreadableError(f"{path}: {error}") from None


def _log_file(folder: Path) -> Path | None:
    return next(iter(sorted(folder.glob("run-*.wandb"))), None)


def _name(path: Path, file: Path | None, folder: Path | None, log: Log) -> str:
    if log.run is not None and (log.run.display_name or log.run.run_id):
        return str(log.run.display_name or log.run.run_id)
    return (folder or file or path).name.removesuffix(".wandb")


def _run_id(file: Path | None, folder: Path | None, log: Log) -> str | None:
    if log.run is not None and log.run.run_id:
        return str(log.run.run_id)
    named = FOLDER.fullmatch(folder.name) if folder is not None else None
    return named["id"] if named else file.stem.removeprefix("run-") if file is not None else None


def _describe(run: Recorded, log: Log) -> None:
    """Where and when: from the log, and the start from the metadata where there is no log."""
    host, start = run.metadata.get("host"), run.metadata.get("startedAt")
    run.host = host if isinstance(host, str) and host else None
    if log.run is not None:
        run.host = log.run.host or run.host
        run.owner = log.run.entity or None
        if log.run.HasField("start_time"):
            seconds = log.run.start_time.seconds + log.run.start_time.nanos / 1e9
            run.started_at = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    elif isinstance(start, str):
        try:
            run.started_at = datetime.datetime.fromisoformat(start)
        except ValueError:
            run.started_at = None
    if run.started_at is not None and run.started_at.tzinfo is None:
        run.started_at = run.started_at.replace(tzinfo=datetime.UTC)
    if run.started_at is not None and log.last_stamp is not None:
        run.runtime_s = max(log.last_stamp - run.started_at.timestamp(), 0.0)
    runtime = number(log.exit.runtime) if log.ended else None
    if runtime is not None and not log.run.resumed:  # a resumed run's runtime counts what was before
        run.runtime_s = max(runtime, run.runtime_s or 0.0)


def _ending(run: Recorded, log: Log, files: Path | None, path: Path) -> None:
    """How the run ended: by W&B's exit record, and for a failed one by what its console says."""
    if not log.ended:
        return
    if log.exit.exit_code == 0:
        run.status = "completed"
        return
    text = "".join(log.texts)
    if not text.strip() and files is not None and (files / "output.log").is_file():
        text = (files / "output.log").read_text(encoding="utf-8", errors="replace")
    lines = [console.Segment(line, number, ended=True) for number, line in enumerate(text.splitlines(), start=1)]
    shown = ending.failure(console.Console(path, lines))
    run.status = (shown.status if shown else None) or "crashed"
    if log.exit.exit_code == INTERRUPT:
        run.status = "interrupted"
    run.last_error = shown.message if shown else f"exit code {log.exit.exit_code}"


def _json(path: Path) -> dict[str, Any]:
    """A JSON object, or nothing where it is missing or was cut off."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _config(path: Path) -> dict[str, Any]:
    """`config.yaml`: under each key a `value`. Nothing where it is missing or anything in it is damaged, since a lost
    line puts a value under another key."""
    import yaml

    class Strict(yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader):  # type: ignore[misc]
        """Refuses a key that stands twice, of which YAML would take the last."""

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            keys = [key.value for key, _ in node.value]
            if len(set(keys)) != len(keys):
                raise yaml.constructor.ConstructorError(None, None, "a key stands twice", node.start_mark)
            mapping: dict[Any, Any] = super().construct_mapping(node, deep)
            return mapping

    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=Strict)
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    if not isinstance(values, dict):
        return {}
    plain = {key: value for key, value in values.items() if key not in ("wandb_version", "_wandb")}
    if any(not isinstance(value, dict) or set(value) - {"desc"} != {"value"} for value in plain.values()):
        return {}
    return {str(key): value["value"] for key, value in plain.items()}
