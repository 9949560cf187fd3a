"""Tables whose columns are row keys: what the report printed, and what people and spreadsheets write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lm_scale.report import tables
from lm_scale.report.ingest import UnreadableError, csv_rows
from lm_scale.report.rows import KEYS, MEANINGS, Row

WRITTEN = (
    "name,owner,micro_batch,tokens_per_s,torch_compile,offload,peak_device_bytes,eval_loss\n"
    "base,Anna,16,32104.5,true,none,22025342976,3.776\n"
    'zero1,"Lee, B.",16,,false,optimizer_cpu,20.5 GiB,\n'
)


@pytest.fixture
def table(tmp_path: Path) -> Any:
    def write(content: str | bytes, name: str = "runs.csv") -> Path:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def rows(path: Path) -> list[Row]:
    assert csv_rows.recognises(path)
    return [reading.row for reading in csv_rows.read(path)]


def test_a_line_is_a_run_with_typed_values(table: Any) -> None:
    base, zero1 = rows(table(WRITTEN))
    assert (base.name, base.owner, base.micro_batch, base.tokens_per_s) == ("base", "Anna", 16, 32104.5)
    assert (base.torch_compile, base.offload, base.peak_device_bytes) == (True, "none", 22_025_342_976)
    assert (zero1.owner, zero1.torch_compile, zero1.peak_device_bytes) == ("Lee, B.", False, 22_011_707_392)
    assert (base.source, zero1.source) == ("csv", "csv")


def test_an_empty_cell_is_not_known(table: Any) -> None:
    zero1 = rows(table(WRITTEN))[1]
    assert (zero1.tokens_per_s, zero1.eval_loss, zero1.steps, zero1.world_size) == (None,) * 4


@pytest.mark.parametrize(
    "encode",
    [
        lambda text: b"\xef\xbb\xbf" + text.encode(),
        lambda text: text.replace("\n", "\r\n").encode(),
        lambda text: text.encode("utf-16"),
        lambda text: text.replace('"Lee, B."', "Lee").replace(",", ";").encode(),
        lambda text: text.replace('"Lee, B."', "Lee").replace(",", "\t").encode(),
        lambda text: b"sep=,\r\n" + text.encode(),
    ],
    ids=["bom", "crlf", "utf-16", "semicolons", "tabs", "excel"],
)
def test_spreadsheets_write_the_same_table(table: Any, encode: Any) -> None:
    expected = rows(table(WRITTEN))
    found = rows(table(encode(WRITTEN)))
    for row in (*expected, *found):
        row.owner = None
    assert found == expected


def test_what_the_report_printed_is_read_back(table: Any) -> None:
    row = Row(name="run", source="lm_scale", steps=12, runtime_s=3.5, steps_per_s=12 / 3.5, torch_compile=False)
    row.started_at, row.seed, row.learning_rate, row.offload = "2026-01-01T12:00:10.000+00:00", 0, 1e-4, "none"
    row.flag("too_few_steps", "2 steps")
    row.flag("differs_seed", "of the table that it stood in")
    (again,) = rows(table(tables.to_csv([row]) + "\n"))
    different = {key for key in KEYS if getattr(again, key) != getattr(row, key)}
    assert different == {"source", "path", "flags"}
    assert again.flags == [{"code": "too_few_steps", "message": MEANINGS["too_few_steps"]}]


def test_what_is_relative_to_another_tables_baseline_is_not_read(table: Any) -> None:
    (row,) = rows(table("name,speedup,efficiency,delta_loss,steps\na,2.0,0.9,-0.1,5\n"))
    assert (row.speedup, row.efficiency, row.delta_loss, row.steps) == (None, None, None, 5)


def test_what_follows_from_the_table_is_filled_in(table: Any) -> None:
    (row,) = rows(table("name,steps,runtime_s,global_batch\na,100,50,64\n"))
    assert (row.samples_seen, row.samples_per_s) == (6400, 128.0)


@pytest.mark.parametrize(
    ("key", "cell", "value"),
    [
        ("steps", "12.0", 12),  # pandas, beside unknown ones
        ("torch_compile", "TRUE", True),
        ("eval_loss", '"0,98"', 0.98),  # no thousands separator can be meant
        ("learning_rate", "1e-4", 1e-4),
        ("steps", "<NA>", None),
        ("eval_loss", "nan", None),
        ("model", "-", None),
    ],
)
def test_a_cell_is_read_as_it_was_meant(table: Any, key: str, cell: str, value: Any) -> None:
    (row,) = rows(table(f"name,{key},seed\na,{cell},1\n"))
    assert getattr(row, key) == value


@pytest.mark.parametrize(
    ("key", "cell"),
    [
        ("steps", "many"),
        ("steps", "-3"),
        ("steps", "1.5"),
        ("steps", '"1,764"'),
        ("tokens_per_s", '"1,234"'),
        ("tokens_per_s", "fast"),
        ("torch_compile", "maybe"),
        ("peak_device_bytes", "20 GB"),
        ("started_at", "yesterday"),
        ("flags", "no_such_flag"),
    ],
)
def test_a_wrong_cell_is_one_line_and_not_known(table: Any, key: str, cell: str) -> None:
    path = table(f"name,{key},seed\na,{cell},1\nb,,2\n")
    readings, problems = csv_rows.read_with_problems(path)
    assert [reading.row.seed for reading in readings] == [1, 2]
    assert getattr(readings[0].row, key) in (None, [])
    (problem,) = problems
    assert problem.startswith(f"{path}:2: {key}: ")
    assert "\n" not in problem


def test_an_unknown_column_is_left_out_and_the_nearest_key_named(table: Any) -> None:
    path = table("name,tokens per s,steps\na,5,7\n")
    readings, problems = csv_rows.read_with_problems(path)
    assert readings[0].row.steps == 7
    assert problems == [f"{path}: tokens per s: no row key, left out; did you mean tokens_per_s?"]


def test_the_last_cell_of_a_table_that_was_cut_off_is_not_believed(table: Any) -> None:
    path = table("name,seed,steps\na,1,1764\nb,2,17")
    readings, problems = csv_rows.read_with_problems(path)
    assert [(reading.row.name, reading.row.steps) for reading in readings] == [("a", 1764), ("b", None)]
    assert "line end" in problems[0]


def test_cut_at_any_byte_each_value_is_true_or_null(table: Any) -> None:
    whole = {row.name: row for row in rows(table(WRITTEN))}
    for end in range(len(WRITTEN)):
        path = table(WRITTEN[:end])
        try:
            readings = csv_rows.read(path)
        except UnreadableError as problem:
            assert "\n" not in str(problem)  # noqa: PT017
            continue
        for reading in readings:
            true = whole.get(reading.row.name) or Row(name=reading.row.name, source="csv")
            said = {key for key in KEYS if getattr(reading.row, key) not in (None, [])} - {"name", "source", "path"}
            assert all(getattr(reading.row, key) == getattr(true, key) for key in said), end


@pytest.mark.parametrize(
    "content",
    [b"", b"\x00\x01\x02\xff" * 50, b"a,b\n1,2\n", b"just a line of text\n", b"step,train_loss,grad_norm\n1,2.0,3.0\n"],
    ids=["empty", "binary", "foreign", "text", "series"],
)
def test_what_is_no_table_of_runs_is_not_recognised(table: Any, content: bytes) -> None:
    assert not csv_rows.recognises(table(content))


def test_a_run_without_a_name_is_called_by_its_line(table: Any) -> None:
    assert [row.name for row in rows(table("steps,seed\n5,1\n6,2\n"))] == ["runs:2", "runs:3"]


def test_a_line_with_more_cells_than_columns_is_left_out(table: Any) -> None:
    path = table("name,steps,seed\na,1,2,3\nb,4,5\n")
    readings, problems = csv_rows.read_with_problems(path)
    assert [reading.row.name for reading in readings] == ["b"]
    assert problems == [f"{path}:2: 4 cells under 3 columns, left out"]
