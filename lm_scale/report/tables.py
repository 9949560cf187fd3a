"""The rows as a table: for a terminal, as Markdown, CSV and JSON. The only place that rounds, and only for people."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
import string
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lm_scale.arguments import UserError
from lm_scale.report import Report
from lm_scale.report.rows import KEYS, MEANINGS, Row, kinds

UNKNOWN = "-"
UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


@dataclass(frozen=True)
class Column:
    """A column for people: what stands over it, what a row says, and whether a narrow terminal can do without it."""

    title: str
    text: Callable[[Row], str]
    left: bool = False
    spare: bool = False


def chosen_keys(columns: str | None) -> tuple[str, ...]:
    """The row keys in a `--columns A,B`; all of them without one.

    Raises:
        UserError: a name is no row key.
    """
    if columns is None:
        return KEYS
    keys = tuple(name.strip() for name in columns.split(",") if name.strip())
    for key in keys:
        if key not in KEYS:
            raise UserError(f"--columns {key}: no such row key; there are {', '.join(KEYS)}")
    if not keys:
        raise UserError("--columns: no row key given")
    return keys


def to_json(rows: Sequence[Row], keys: Sequence[str] = KEYS) -> str:
    """A list of objects, one a row; what is not known is null."""
    return json.dumps([_values(row, keys) for row in rows], indent=2, ensure_ascii=False, allow_nan=False)


def to_csv(rows: Sequence[Row], keys: Sequence[str] = KEYS) -> str:
    """A header and a line a row; what is not known is empty, flags are their codes joined by `;`."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(keys)
    for row in rows:
        writer.writerow([_csv_value(value) for value in _values(row, keys).values()])
    return file.getvalue().rstrip("\n")


def to_markdown(report: Report, keys: Sequence[str] | None = None) -> str:
    """The compact table and its legend, or the table of `keys`."""
    columns = _columns(report, keys)
    lines = [
        _markdown_line([_markdown(column.title.replace("\n", " ")) for column in columns]),
        _markdown_line(["---" if column.left else "---:" for column in columns]),
        *(_markdown_line([_markdown(column.text(row)) for column in columns]) for row in report.rows),
    ]
    notes = [] if keys else ["", *(f"- {_markdown(note)}" for note in _notes(report))]
    return "\n".join([*lines, *notes])


def print_terminal(report: Report, keys: Sequence[str] | None = None) -> None:
    """The compact table and its legend, or the table of `keys`, on stdout.

    A pipe gets the full width and no colour. In a terminal too narrow for all columns the spare ones are left out,
    which is said; a table that still does not fit is wrapped by the terminal, its numbers whole.
    """
    console = Console(highlight=False) if sys.stdout.isatty() else Console(width=10_000, highlight=False)
    columns = _columns(report, keys)
    hidden: list[str] = []
    while _width(console, _table(report, columns)) > console.width:
        spare = next((column for column in columns if column.spare), None)
        if spare is None:
            break
        columns.remove(spare)
        hidden.append(spare.title.replace("\n", " ").strip())
    table = _table(report, columns)
    console.width = max(console.width, _width(console, table))
    console.print(table)
    notes = [] if keys else _notes(report)
    if hidden:
        notes.append(f"left out at this width: {', '.join(hidden)} (a pipe or --format md shows all)")
    for note in notes:
        console.print(Text(note, style="dim"), soft_wrap=True)


def _width(console: Console, table: Table) -> int:
    """What the table takes where nothing limits it."""
    return console.measure(table, options=console.options.update(max_width=10_000)).maximum


def _table(report: Report, columns: Sequence[Column]) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for column in columns:
        table.add_column(Text(column.title), justify="left" if column.left else "right", no_wrap=True)
    for row in report.rows:
        style = {"completed": "green", "budget": "green", "running": "cyan", None: ""}.get(row.status, "red")
        cells = [Text(column.text(row), style=style if column.title == "status" else "") for column in columns]
        table.add_row(*cells, style="bold" if row is report.baseline else "")
    return table


def _columns(report: Report, keys: Sequence[str] | None) -> list[Column]:
    if keys is not None:
        return [_key_column(key) for key in keys]
    by_strategy = len({row.strategy for row in report.rows if row.strategy}) == len(report.rows)
    memory_key, memory_title, unit = _memory(report.rows)
    marks = _marks(report.rows)
    return [
        Column("strategy", lambda row: _clean(row.strategy), left=True)
        if by_strategy
        else Column("run", lambda row: _clean(row.name), left=True),
        Column("ranks", lambda row: _whole(row.world_size)),
        Column("micro\nx accum", _batch, spare=True),
        Column("tokens/s", lambda row: _number(row.tokens_per_s)),
        Column("tokens/s\na rank", lambda row: _number(row.tokens_per_s_per_rank), spare=True),
        Column("step ms\nmedian", lambda row: _number(row.step_s, 1000)),
        Column("\nIQR", lambda row: _number(row.step_s_iqr, 1000), spare=True),
        Column(memory_title, lambda row: _number(getattr(row, memory_key), 1 / 1024**unit)),
        Column("r", lambda row: _fixed(row.speedup, 2)),
        Column("eff", lambda row: _fixed(row.efficiency, 2), spare=True),
        Column("train\nloss", lambda row: _fixed(row.train_loss, 4), spare=True),
        Column("eval\nloss", lambda row: _fixed(row.eval_loss, 4)),
        Column("status", lambda row: _clean(row.status), left=True),
        Column("flags", lambda row: ",".join(dict.fromkeys(marks[f["code"]] for f in row.flags)), left=True),
    ]


def _key_column(key: str) -> Column:
    kind = kinds()[key]
    return Column(key, lambda row: _any(key, getattr(row, key)), left=kind in (str, list))


def _notes(report: Report) -> list[str]:
    """What stands under the table: what r refers to, how the rates are meant, what went wrong, what the flags mean."""
    why = "" if report.baseline_given else " (the first run with a throughput; --baseline NAME takes another)"
    if report.baseline.tokens_per_s is None:
        why = " (which has none)"
    notes = [
        f"r: tokens/s over those of {_clean(report.baseline.name)}{why}; eff: r over the ratio of the ranks",
        "rates and step times are of the steps after warm-up; memory is the highest peak of any rank",
    ]
    failed = [row for row in report.rows if row.last_error]
    notes += [f"{_clean(row.name)}: {_clean(row.status)}: {_clean(row.last_error)}" for row in failed]
    notes += [f"{mark} {code}: {MEANINGS[code]}" for code, mark in _marks(report.rows).items()]
    return notes


def _marks(rows: Sequence[Row]) -> dict[str, str]:
    """A letter for each flag code that occurs, in the order of `MEANINGS`."""
    present = {flag["code"] for row in rows for flag in row.flags}
    return dict(zip((code for code in MEANINGS if code in present), string.ascii_letters, strict=False))


def _memory(rows: Sequence[Row]) -> tuple[str, str, int]:
    """The key, title and power of 1024 of the memory column: device memory where any run knows it, else the host's."""
    key, title = "peak_host_bytes", "host"
    if any(row.peak_device_bytes is not None for row in rows):
        key, title = "peak_device_bytes", "device"
    known = [size for row in rows if (size := getattr(row, key)) is not None]
    unit = _unit(max(known)) if known else 0
    return key, f"{title}\n{UNITS[unit] if known else 'memory'}", unit


def _unit(size: float) -> int:
    """The largest power of 1024 with a name that leaves at least 1."""
    return next((power for power in range(len(UNITS) - 1) if size < 1024 ** (power + 1)), len(UNITS) - 1)


def _batch(row: Row) -> str:
    return UNKNOWN if row.micro_batch is None else f"{row.micro_batch} x {_whole(row.grad_accum)}"


def _whole(value: int | None) -> str:
    return UNKNOWN if value is None else f"{value:,}"


def _fixed(value: float | None, digits: int) -> str:
    return UNKNOWN if value is None else f"{value:.{digits}f}"


def _number(value: float | None, scale: float = 1) -> str:
    """At least three significant digits; what is too small for two decimals says so instead of looking like zero."""
    if value is None:
        return UNKNOWN
    scaled = value * scale
    if abs(scaled) >= 100 or scaled == 0:
        return f"{scaled:,.0f}"
    return f"{scaled:#.3g}".rstrip(".") if abs(scaled) >= 0.01 else "<0.01"


def _any(key: str, value: Any) -> str:
    """The value of any key for people."""
    if value is None:
        return UNKNOWN
    if isinstance(value, list):
        return ",".join(flag["code"] for flag in value) or UNKNOWN
    if isinstance(value, bool):
        return str(value).lower()
    if key.endswith("_bytes"):
        unit = _unit(value)
        return f"{_number(value, 1 / 1024**unit)} {UNITS[unit]}"
    if isinstance(value, int):
        return str(value) if key == "seed" else f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4f}" if key.endswith("_loss") else f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    return _clean(value)


def _clean(text: str | None) -> str:
    """One line without control characters: what a file says must not steer the terminal."""
    if text is None:
        return UNKNOWN
    return "".join(letter if letter.isprintable() else " " for letter in text).strip() or UNKNOWN


def _markdown(text: str) -> str:
    escaped = re.sub(r"([\\|*`\[\]]|(?<!\w)_|_(?!\w))", r"\\\1", text)
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


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
    return value
