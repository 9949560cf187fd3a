"""The rows as a table: for a terminal, as Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import sys
from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console, ConsoleDimensions
from rich.table import Table
from rich.text import Text

from lm_scale.arguments import UserError
from lm_scale.report import Report, layouts, select
from lm_scale.report.display import markdown
from lm_scale.report.layouts import Column
from lm_scale.report.rows import KEYS, Row
from lm_scale.report.select import Part, Selection

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")
"""A text that begins with one of these is a formula to a spreadsheet."""


def chosen_keys(columns: str | None, layout: str = "compact") -> tuple[str, ...]:
    """The row keys in a `--columns A,B`; without one those of the layout, which for the compact one are all.

    Raises:
        UserError: a name is no row key.
    """
    if columns is None:
        return layouts.HOMEWORK_KEYS if layout == "homework" else KEYS
    keys = tuple(name.strip() for name in columns.split(",") if name.strip())
    if not keys:
        raise UserError("--columns: no row key given")
    return tuple(select.known_key("--columns", key) for key in keys)


def to_json(rows: Sequence[Row], keys: Sequence[str] = KEYS) -> str:
    """A list of objects, one a row; what is not known is null."""
    return json.dumps([_values(row, keys) for row in rows], indent=2, ensure_ascii=False, allow_nan=False)


def to_csv(rows: Sequence[Row], keys: Sequence[str] = KEYS) -> str:
    """A header and a line a row; what is not known is empty, flags are their codes joined by `;`.

    A text that a spreadsheet would take for a formula gets an apostrophe before it.
    """
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(keys)
    for row in rows:
        writer.writerow([_csv_value(value) for value in _values(row, keys).values()])
    return file.getvalue().rstrip("\n")


def to_markdown(shown: Report | Selection, keys: Sequence[str] | None = None, layout: str = "compact") -> str:
    """The table of `layout` and its notes, or the table of `keys`; a table a group, under its name."""
    selection = _selection(shown)
    columns = _columns(selection.rows, keys, layout)
    lines = []
    for part in selection.parts:
        lines += ["", f"**{markdown(_title(part))}**", ""] if part.title else []
        lines += [
            _markdown_line([markdown(column.name) for column in columns]),
            _markdown_line(["---" if column.left else "---:" for column in columns]),
            *(_markdown_line([markdown(column.text(row)) for column in columns]) for row in part.rows),
        ]
    notes = selection.notes if keys else layouts.notes(selection, layout)
    return "\n".join([*lines, *([""] if notes else []), *(f"- {markdown(note)}" for note in notes)]).lstrip("\n")


def print_terminal(shown: Report | Selection, keys: Sequence[str] | None = None, layout: str = "compact") -> None:
    """The table of `layout` and its notes, or the table of `keys`, on stdout; a table a group, under its name.

    A pipe gets the full width and no colour. In a terminal too narrow for all columns the spare ones are left out, and
    a layout that has none gets short heads and cells of several lines, both of which is said; a table that still does
    not fit is wrapped by the terminal, its numbers whole.
    """
    selection = _selection(shown)
    console = Console(highlight=False) if sys.stdout.isatty() else Console(width=10_000, highlight=False)
    columns = _columns(selection.rows, keys, layout)
    widths = {column.title: _width(column, selection.rows) for column in columns}
    hidden: list[str] = []
    for spare in sorted(columns, key=lambda column: -column.spare):
        if spare.spare and _total(widths, columns) > console.width:
            columns.remove(spare)
            hidden.append(spare.name)
    notes = list(selection.notes) if keys else layouts.notes(selection, layout)
    if hidden:
        notes.append(f"left out at this width: {', '.join(hidden)} (a pipe or --format md shows all)")
    narrow = _total(widths, columns) > console.width and all(column.short for column in columns)
    if narrow:
        heads = [f"{column.short}: {column.name}" for column in columns if column.short != column.name]
        notes.insert(0, f"at this width {', '.join(heads)}")
        columns = [dataclasses.replace(column, title=column.short) for column in columns]
        widths = _narrow_widths(columns, selection.rows, console.width)
    console.size = ConsoleDimensions(max(console.width, _total(widths, columns, 1 if narrow else 2)), console.height)
    for part in selection.parts:
        if part.title:
            console.print(Text(f"\n{_title(part)}", style="bold"))
        console.print(_table(part, columns, widths, narrow))
    for note in notes:
        console.print(Text(note, style="dim"), soft_wrap=True)


def _selection(shown: Report | Selection) -> Selection:
    return select.everything(shown) if isinstance(shown, Report) else shown


def _columns(rows: Sequence[Row], keys: Sequence[str] | None, layout: str) -> list[Column]:
    if keys is not None:
        return layouts.of_keys(keys)
    return layouts.homework(rows) if layout == "homework" else layouts.compact(rows)


def _title(part: Part) -> str:
    return f"{part.title} (baseline {part.baseline.name})"


def _width(column: Column, rows: Sequence[Row]) -> int:
    """What the column takes in every part, so that all parts stand under one another."""
    return max(cell_len(text) for text in (*column.title.split("\n"), *map(column.text, rows)))


def _total(widths: dict[str, int], columns: Sequence[Column], gap: int = 2) -> int:
    """The width of the table: each column, and the `gap` characters between it and the next."""
    return sum(widths[column.title] for column in columns) + gap * len(columns)


def _narrow_widths(columns: Sequence[Column], rows: Sequence[Row], total: int) -> dict[str, int]:
    """Numbers are whole; the columns that fold give way from the right as far as they can."""
    widths = {column.title: _width(column, rows) for column in columns}
    for column in reversed(columns):
        excess = max(_total(widths, columns, 1) - total, 0)
        if column.folded:
            widths[column.title] = max(widths[column.title] - excess, min(column.folded, widths[column.title]))
    return widths


def _table(part: Part, columns: Sequence[Column], widths: dict[str, int], narrow: bool) -> Table:
    """A narrow one has one character between its columns and no line below its head."""
    table = Table(box=None if narrow else SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for column in columns:
        justify, width = "left" if column.left else "right", widths[column.title]
        wraps = narrow and column.folded > 0
        table.add_column(
            Text(column.title, style="underline" if narrow else ""),
            justify=justify,  # type: ignore[arg-type]
            no_wrap=not wraps,
            overflow="fold",
            min_width=width,
            max_width=width if wraps else None,
        )
    for row in part.rows:
        style = {"completed": "green", "budget": "green", "running": "cyan", None: ""}.get(row.status, "red")
        texts = [Text(column.text(row), style=style if column.title == "status" else "") for column in columns]
        table.add_row(*texts, style="bold" if row is part.baseline else "")
    return table


def _markdown_line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _values(row: Row, keys: Sequence[str]) -> dict[str, Any]:
    values = dataclasses.asdict(row)
    return {key: values[key] for key in keys}


def _csv_value(value: Any) -> Any:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return ";".join(flag["code"] for flag in value)
    if isinstance(value, str) and value.startswith(FORMULA_STARTS):
        return f"'{value}"
    return value
