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

from lm_scale.report import integrity, relate, series
from lm_scale.report.ingest import Reading, find
from lm_scale.report.rows import Row, kinds

if TYPE_CHECKING:
    import pandas


class NothingReadError(Exception):
    """There are sources, or folders of them, and no run could be read: one line, and one for each source."""

    def __init__(self, message: str, problems: list[str]) -> None:
        super().__init__(message)
        self.problems = problems


@dataclass(frozen=True)
class Report:
    """The runs, the row that the others are measured against, and one line for each source that gave no run."""

    readings: list[Reading]
    baseline: Row
    baseline_given: bool
    problems: list[str]

    @property
    def rows(self) -> list[Row]:
        """One row a run."""
        return [reading.row for reading in self.readings]


def read(paths: Sequence[str | Path], baseline: str | None = None) -> Report:
    """The runs at and below `paths`, related to a baseline and checked.

    A path is a run directory, a log or another source of `ingest`, a folder of them, or `wandb:entity/project`. They
    keep the order of the paths; the runs of a folder come as they were started.

    Raises:
        UserError: a path does not exist, or `baseline` names no run or several.
        NothingReadError: there is no run in any of them.
    """
    found = find.find(paths)
    where = ", ".join(map(str, paths))
    if not found.readings and found.problems:
        raise NothingReadError(f"{where}: no run can be read", found.problems)
    if not found.readings:
        raise NothingReadError(f"{where}: no runs (a run is a folder with a run.json, or another trainer's log)", [])
    reference = relate.relate(found.readings, baseline)
    integrity.check([reading.row for reading in found.readings])
    return Report(found.readings, reference, bool(baseline), found.problems)


def load(paths: str | Path | Iterable[str | Path] = "runs", baseline: str | None = None) -> pandas.DataFrame:
    """The runs at and below `paths` as a DataFrame: one row a run, the columns of `rows.Row`, nothing rounded.

    Columns have nullable types (Int64, Float64, boolean, string); `flags` holds lists of {code, message}. A source that
    cannot be read is left out with a warning.

    Raises:
        UserError: a path does not exist, or `baseline` names no run or several.
        NothingReadError: there is no run in any of them.
    """
    import pandas

    report = _read_with_warnings(paths, baseline)
    names = {int: "Int64", float: "Float64", bool: "boolean", str: "string", list: "object"}
    values = [dataclasses.asdict(row) for row in report.rows]
    columns = {key: pandas.Series([row[key] for row in values], dtype=names[kind]) for key, kind in kinds().items()}
    return pandas.DataFrame(columns)


def metrics(paths: str | Path | Iterable[str | Path] = "runs") -> pandas.DataFrame:
    """The series of the runs at and below `paths` as one long frame, a line a step or evaluation (`series.frame`).

    Raises:
        UserError: a path does not exist.
        NothingReadError: there is no run in any of them.
    """
    return series.frame(_read_with_warnings(paths).readings)


def _read_with_warnings(paths: str | Path | Iterable[str | Path], baseline: str | None = None) -> Report:
    report = read([paths] if isinstance(paths, str | os.PathLike) else list(paths), baseline)
    for problem in report.problems:
        warnings.warn(problem, stacklevel=3)
    return report
