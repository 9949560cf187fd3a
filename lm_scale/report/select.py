"""Which rows are shown, in which order and groups. It hides rows and changes no number of those it shows.

The exceptions are asked for: `merge` makes rows of several runs, and groups have baselines of their own.
"""

from __future__ import annotations

import difflib
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from lm_scale.arguments import UserError
from lm_scale.report import Report, relate
from lm_scale.report.ingest import Reading
from lm_scale.report.merge import MEASURES, conditions, merge
from lm_scale.report.rows import KEYS, Row, kinds

COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    **{"=": operator.eq, "!=": operator.ne},
    **{">": operator.gt, "<": operator.lt, ">=": operator.ge, "<=": operator.le},
}
RANKING_KEYS = (*MEASURES, "speedup", "efficiency", "delta_loss")
"""Keys that a reader takes an order by as a ranking."""


@dataclass(frozen=True)
class Part:
    """Rows that stand together, the one that they are measured against, and what they have in common."""

    rows: list[Row]
    baseline: Row
    title: str | None = None


@dataclass(frozen=True)
class Selection:
    """The parts of the table in their order, and what must be said of the choice."""

    parts: list[Part]
    baseline_given: bool
    notes: list[str] = field(default_factory=list)

    @property
    def rows(self) -> list[Row]:
        return [row for part in self.parts for row in part.rows]


@dataclass(frozen=True)
class Condition:
    """One `--filter`: a row key, a comparison and the value to compare with."""

    key: str
    comparison: str
    value: Any

    def passes(self, row: Row) -> bool:
        """Whether the row fulfils it. An unknown value equals `null` alone, and is neither above nor below anything."""
        value = getattr(row, self.key)
        if self.key == "flags":
            return (self.value in {flag["code"] for flag in value}) == (self.comparison == "=")
        if self.comparison not in ("=", "!=") and value is None:
            return False
        return COMPARISONS[self.comparison](value, self.value)


def everything(report: Report) -> Selection:
    """All rows of the report, as they were read."""
    return Selection([Part(report.rows, report.baseline)], report.baseline_given)


def select(
    report: Report,
    filters: Sequence[str] = (),
    sort: str | None = None,
    group_by: str | None = None,
    merged: bool = False,
) -> Selection:
    """The rows of `report` that pass all `filters`, merged, grouped and sorted.

    Rows are merged first; then each group of `group_by` takes its own baseline, unless one was given; then rows are
    hidden (a baseline may be) and sorted, unknown values last in either direction. Groups stand in the order of their
    first rows.

    Raises:
        UserError: a filter, key or value is malformed.
    """
    chosen = check(filters, sort, group_by)
    readings = merge(report.readings) if merged else report.readings
    reference = _reference(report, readings, merged)
    groups: dict[Any, list[Reading]] = {}
    for reading in readings:
        groups.setdefault(getattr(reading.row, group_by) if group_by else None, []).append(reading)
    own_baselines = group_by is not None and not report.baseline_given
    parts = []
    for value, group in groups.items():
        base = _default(group) if own_baselines else reference
        if merged or own_baselines:
            relate.compare(group, base)
        rows = [reading.row for reading in group if all(one.passes(reading.row) for one in chosen)]
        if sort is not None:
            rows = _sorted(rows, sort.removeprefix("-"), descending=sort.startswith("-"))
        title = f"{group_by}: {'-' if value is None else value}" if group_by else None
        if rows or not group_by:
            parts.append(Part(rows, base.row, title))
    return Selection(parts, report.baseline_given, _notes(parts, sort, len(readings)))


def check(filters: Sequence[str], sort: str | None, group_by: str | None) -> list[Condition]:
    """The conditions of all filters, once it is known that every key is one.

    Raises:
        UserError: a filter, key or value is malformed.
    """
    if sort is not None:
        known_key("--sort", sort.removeprefix("-"))
    if group_by is not None and known_key("--group_by", group_by) == "flags":
        raise UserError("--group_by flags: a row can have several; use --filter flags=CODE")
    return [condition(text) for text in filters]


def condition(text: str) -> Condition:
    """A `KEY=VALUE`, `!=`, `>`, `<`, `>=` or `<=` of a `--filter`; the value `null` is what is not known.

    Raises:
        UserError: it is none, the key is no row key, or the value is not of the key's type.
    """
    parts = re.fullmatch(r"\s*(\w+)\s*(!=|>=|<=|=|>|<)\s*(.*?)\s*", text)
    if not parts:
        raise UserError(f"--filter {text}: no comparison; write KEY=VALUE, with =, !=, <, <=, > or >= between them")
    key, comparison, value = parts.groups()
    kind = float if kinds()[known_key("--filter", key)] in (int, float) else kinds()[key]
    ordered = comparison not in ("=", "!=")
    if ordered and (kind in (bool, list) or value == "null"):
        raise UserError(f"--filter {text}: {key if value != 'null' else 'null'} has no order; use = or !=")
    if value == "null" and kind is not list:
        return Condition(key, comparison, None)
    if kind is bool and value in ("true", "false"):
        return Condition(key, comparison, value == "true")
    try:
        return Condition(key, comparison, float(value) if kind is float else _text(kind, value))
    except ValueError:
        expected = "a number" if kind is float else "true or false"
        raise UserError(f"--filter {text}: {value!r} is not {expected}, as {key} is") from None


def known_key(option: str, key: str) -> str:
    """The row key `key`, which `option` gives.

    Raises:
        UserError: it is none; the message starts with `option`.
    """
    if key not in KEYS:
        near = difflib.get_close_matches(key, KEYS, n=1)
        meant = f"did you mean {near[0]}? " if near else ""
        raise UserError(f"{option} {key}: no such row key; {meant}there are {', '.join(KEYS)}")
    return key


def _text(kind: type, value: str) -> str:
    if kind is bool:
        raise ValueError
    return value


def _reference(report: Report, readings: Sequence[Reading], merged: bool) -> Reading:
    """The reading of the report's baseline, or of the merged row that it is in."""
    if merged and not report.baseline_given:
        return _default(readings)
    if merged:
        return next(one for one in readings if conditions(one.row) == conditions(report.baseline))
    return next(one for one in readings if one.row is report.baseline)


def _default(readings: Sequence[Reading]) -> Reading:
    row = relate.default_baseline([reading.row for reading in readings])
    return next(reading for reading in readings if reading.row is row)


def _sorted(rows: Sequence[Row], key: str, descending: bool) -> list[Row]:
    known = [row for row in rows if getattr(row, key) is not None]
    if key == "flags":
        known.sort(key=lambda row: len(row.flags), reverse=descending)
    else:
        known.sort(key=lambda row: getattr(row, key), reverse=descending)
    return [*known, *(row for row in rows if getattr(row, key) is None)]


def _notes(parts: Sequence[Part], sort: str | None, read: int) -> list[str]:
    rows = [row for part in parts for row in part.rows]
    notes = [] if len(rows) == read else [f"{len(rows)} of {read} rows: the others do not pass --filter"]
    unlike = [row for row in rows if relate.UNRANKED_CODES & {flag["code"] for flag in row.flags}]
    if sort is not None and sort.removeprefix("-") in RANKING_KEYS and unlike:
        notes.append(
            f"sorted by {sort}, which is no ranking: {len(unlike)} of {len(rows)} rows ran under other conditions or "
            "have numbers in doubt (see their flags)"
        )
    return notes
