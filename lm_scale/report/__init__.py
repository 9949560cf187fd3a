"""The report: rows from run directories, and what they say beside one another.

    import lm_scale.report
    table = lm_scale.report.load("runs")     # a DataFrame, one row a run

Never imports torch, deepspeed or transformers.
"""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lm_scale import records
from lm_scale.arguments import UserError
from lm_scale.report import ingest, relate
from lm_scale.report.ingest import lm_scale as own_runs
from lm_scale.report.rows import Row, kinds

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class Report:
    """The rows, the one that the others are measured against, and one line for each run that could not be read."""

    rows: list[Row]
    baseline: Row
    baseline_given: bool
    problems: list[str]


def read(paths: Sequence[str | Path], baseline: str | None = None) -> Report:
    """The runs at and below `paths`: paths in their order, the runs of a folder as they were created.

    Raises:
        UserError: a path does not exist, there is no run that can be read, or `baseline` names none or several.
    """
    found: list[Row] = []
    problems: list[str] = []
    seen: set[Path] = set()
    for path in map(Path, paths):
        if not path.exists():
            raise UserError(f"{path}: no such run or folder")
        directories = [run for run in records.find(path) if run.resolve() not in seen]
        seen.update(run.resolve() for run in directories)
        below = []
        for directory in directories:
            try:
                below.append(own_runs.read(directory))
            except ingest.UnreadableError as problem:
                problems.append(str(problem))
        found += sorted(below, key=_creation)
    where = ", ".join(map(str, paths))
    if not found and problems:
        raise UserError(f"{where}: no run can be read: {problems[0]}")
    if not found:
        raise UserError(f"{where}: no runs (a run is a folder with a run.json)")
    reference = relate.relate(found, baseline)
    return Report(found, reference, bool(baseline), problems)


def load(paths: str | Path | Iterable[str | Path] = "runs", baseline: str | None = None) -> pandas.DataFrame:
    """The runs at and below `paths` as a DataFrame: one row a run, the columns of `rows.Row`, nothing rounded.

    Columns have nullable types (Int64, Float64, boolean, string); `flags` holds lists of {code, message}. A run that
    cannot be read is left out with a warning.

    Raises:
        UserError: a path does not exist, there is no run that can be read, or `baseline` names none or several.
    """
    import pandas

    report = read([paths] if isinstance(paths, str | os.PathLike) else list(paths), baseline)
    for problem in report.problems:
        warnings.warn(problem, stacklevel=2)
    names = {int: "Int64", float: "Float64", bool: "boolean", str: "string", list: "object"}
    values = [dataclasses.asdict(row) for row in report.rows]
    columns = {key: pandas.Series([row[key] for row in values], dtype=names[kind]) for key, kind in kinds().items()}
    return pandas.DataFrame(columns)


def _creation(row: Row) -> tuple[bool, float, str]:
    created = relate.moment(row.created_at or row.started_at)
    return created is None, created.timestamp() if created else 0.0, row.name
