"""Which runs stand at and below a path: every folder and file is recognised by what is in it, not by its name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from lm_scale.arguments import UserError
from lm_scale.report import notes, same_run
from lm_scale.report.ingest import (
    Reading,
    UnreadableError,
    console,
    csv_rows,
    deepspeed_log,
    megatron_log,
    trainer_log,
    trainer_state,
    wandb_api,
    wandb_offline,
)
from lm_scale.report.ingest import lm_scale as own_runs
from lm_scale.report.relate import moment

FOLDER_FORMATS = (own_runs, wandb_offline, trainer_state)
CONSOLE_FORMATS = (trainer_log, megatron_log, deepspeed_log)
"""Asked in their order: under Trainer and Megatron, DeepSpeed prints its own lines too."""
NOTES = "notes.csv"
PRODUCTS = ("table.csv", "table.json", "table.md")
"""What `compare` writes beside its run directories."""
SAID_SINGLY = 10
"""So many files below one folder are named one by one, if they cannot be read for the same reason."""


@dataclass
class Found:
    """The runs, and one line for each source that gave none."""

    readings: list[Reading] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def find(paths: Sequence[str | Path]) -> Found:
    """The runs at and below `paths`, each once; what cannot be read is a problem's line and costs no other run.

    Sources of one run become one reading (`same_run`). Below a folder many files that say nothing for one reason are
    one line.

    Raises:
        UserError: a path does not exist.
    """
    found = Found()
    seen: set[Path] = set()
    for path in paths:
        if wandb_api.recognises(str(path)):
            _take(found, partial(wandb_api.read, str(path)))
            continue
        start = Path(path)
        if not start.exists():
            raise UserError(f"{path}: no such run, log or folder")
        below = _below(start, seen)
        found.readings += sorted(below.readings, key=_creation)
        found.problems += below.problems
    found.readings = same_run.joined(found.readings)
    return found


def _below(start: Path, seen: set[Path]) -> Found:
    """The runs at and below one path, without the sources in `seen`, which gets them."""
    below = Found()
    noted: list[Path] = []
    unread: list[UnreadableError] = []
    for source, quiet in _sources(start):
        if source.resolve() in seen:
            continue
        seen.add(source.resolve())
        if source.name == NOTES and notes.recognises(source):
            noted.append(source)
            continue
        try:
            below.readings += _read(source, below.problems)
        except UnreadableError as problem:
            unread += [] if quiet else [problem]
    below.problems += _said(start, unread)
    for reading in below.readings:
        reading.row.owner = reading.row.owner or _owner(start, reading)
    for file in noted:
        beside = [reading for reading in below.readings if _is_below(reading, file.parent)]
        below.problems += notes.apply(beside, file)
    return below


def _said(start: Path, unread: Sequence[UnreadableError]) -> list[str]:
    """A line for each source that could not be read, or one for all of a kind where those are many."""
    reasons: dict[str, list[str]] = {}
    for problem in unread:
        file, _, reason = str(problem).rpartition(": ")
        reasons.setdefault(reason, []).append(file)
    said = []
    for reason, files in reasons.items():
        if len(files) <= SAID_SINGLY:
            said += [f"{file}: {reason}" for file in files]
        else:
            said.append(f"{start}: {len(files)} files such as {Path(files[0]).relative_to(start)}: {reason}")
    return said


def _sources(path: Path, quiet: bool = False) -> Iterator[tuple[Path, bool]]:
    """The folders and files that may each be a source, those of a folder in the order of their names; `quiet`: nothing
    is said of one that is none.

    Not entered: hidden folders, links to folders, and the folders that are a run themselves, except that a Trainer's
    output folder may hold its console log and its W&B run, among much that is neither.
    """
    if not path.is_dir() or any(one.recognises(path) for one in FOLDER_FORMATS):
        yield path, quiet
        if not path.is_dir() or not trainer_state.recognises(path) or own_runs.recognises(path):
            return
        quiet = True
    children = sorted(path.iterdir())
    own = {child.name for child in children if own_runs.recognises(child)}
    for child in children:
        if child.name.startswith(".") or (child.is_symlink() and child.is_dir()):
            continue
        if path.name == "wandb" and not wandb_offline.recognises(child):
            continue  # W&B's own logs, and its links to the latest run
        if own and (child.name in PRODUCTS or child.name.removesuffix(".launcher.log") in own - {child.name}):
            continue  # what `compare` and the launcher leave beside the runs
        if quiet and trainer_state.is_part(child):
            continue
        if child.is_dir():
            yield from _sources(child, quiet)
        elif child.is_file():
            yield child, quiet


def _read(path: Path, problems: list[str]) -> list[Reading]:
    """The runs of one source; cells of a CSV that say nothing are lines of `problems`.

    Raises:
        UnreadableError: it is none, or is damaged.
    """
    if path.is_dir():
        read: Callable[[Path], list[Reading]] = next(one.read for one in FOLDER_FORMATS if one.recognises(path))
        return read(path)
    if wandb_offline.recognises(path):
        return wandb_offline.read(path)
    if csv_rows.recognises(path):
        readings, cells = csv_rows.read_with_problems(path)
        problems += cells
        return readings
    text = console.read(path)
    for console_format in CONSOLE_FORMATS:
        if console_format.recognises(text):
            read_text: Callable[[console.Console], list[Reading]] = console_format.read
            readings = read_text(text)
            ids = console.wandb_runs(text.segments)
            if len(ids) == len(readings):
                for reading, wandb_id in zip(readings, ids, strict=True):
                    reading.wandb_id = wandb_id
            return readings
    raise UnreadableError(f"{path}: no run (no log, table or folder of a known format)")


def _take(found: Found, read: Callable[[], list[Reading]]) -> None:
    try:
        found.readings += read()
    except UnreadableError as problem:
        found.problems.append(str(problem))


def _owner(start: Path, reading: Reading) -> str | None:
    """The folder directly below the path that was given, of a run that does not stand in the path itself."""
    if reading.row.path is None or not start.is_dir():
        return None
    below = Path(reading.row.path).relative_to(start).parts
    return below[0] if len(below) > 1 else None


def _is_below(reading: Reading, folder: Path) -> bool:
    return reading.row.path is not None and Path(reading.row.path).resolve().is_relative_to(folder.resolve())


def _creation(reading: Reading) -> tuple[bool, float]:
    created = moment(reading.row.created_at or reading.row.started_at)
    return created is None, created.timestamp() if created else 0.0
