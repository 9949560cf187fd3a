"""Hand-written notes beside logs: what they fill, what they may not change, what is wrong with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lm_scale.report import notes
from lm_scale.report.ingest import Reading
from lm_scale.report.rows import Row

LOGGED: dict[str, Any] = {"source": "hf_trainer_log", "steps": 100, "runtime_s": 50.0, "global_batch": 64}


@pytest.fixture
def apply(tmp_path: Path) -> Any:
    """Applies notes to the runs a and b; returns both rows and the problems."""

    def run(text: str, **changes: Any) -> tuple[Row, Row, list[str]]:
        path = tmp_path / "notes.csv"
        path.write_text(text)
        readings = [Reading(Row(name=name, **{**LOGGED, **changes})) for name in ("a", "b")]
        return readings[0].row, readings[1].row, notes.apply(readings, path)

    return run


def message(row: Row, code: str) -> str:
    (found,) = [flag["message"] for flag in row.flags if flag["code"] == code]
    return found


def test_a_note_fills_what_its_run_does_not_say(apply: Any) -> None:
    a, b, problems = apply("run,key,value\na,peak_device_bytes,21005 MiB\na,model,qwen\na,torch_compile,true\n")
    assert (a.peak_device_bytes, a.model, a.torch_compile) == (21005 * 1024 * 1024, "qwen", True)
    assert message(a, "from_notes") == "peak_device_bytes, model, torch_compile from notes.csv"
    assert (b.peak_device_bytes, b.flags) == (None, [])
    assert problems == []


def test_from_a_noted_length_tokens_follow(apply: Any) -> None:
    a, _, _ = apply("run,key,value\na,seq_len,512\na,world_size,2\n")
    assert (a.tokens_seen, a.tokens_per_s, a.tokens_per_s_per_rank) == (3_276_800, 65_536.0, 32_768.0)
    assert "tokens_per_s" in message(a, "from_notes").partition("; ")[2]


@pytest.mark.parametrize(
    ("text", "size"),
    [("20.5 GiB", 22_011_707_392), ("21005 MiB", 22_025_338_880), ("1024", 1024), ("1.5KiB", 1536)],
)
def test_a_size_may_have_a_unit(apply: Any, text: str, size: int) -> None:
    assert apply(f"run,key,value\na,peak_device_bytes,{text}\n")[0].peak_device_bytes == size


def test_a_note_against_the_source_is_not_taken(apply: Any) -> None:
    a, _, problems = apply("run,key,value\na,steps,120\n")
    assert a.steps == 100
    assert message(a, "source_disagrees") == "steps: the source says 100, notes.csv says 120: not taken"
    assert problems == []


def test_a_note_that_says_the_same_changes_nothing(apply: Any) -> None:
    a, _, problems = apply("run,key,value\na,steps,100\na,runtime_s,50.01\n")
    assert (a.flags, a.runtime_s, problems) == ([], 50.0, [])


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("c,steps,5", "c: no such run; there are a, b"),
        ("a,peak_devices_bytes,5", "peak_devices_bytes: no row key; did you mean peak_device_bytes?"),
        ("a,seed,many", "seed: 'many' is no whole number"),
        ("a,peak_device_bytes,20 GB", "peak_device_bytes: '20 GB' is no size"),
        ("a,name,z", "name: cannot be noted"),
        ("a,seed", "2 cells, a note has 3"),
        ("a,seed,5,6", "4 cells, a note has 3"),
    ],
)
def test_a_wrong_note_is_one_line_and_costs_no_other(apply: Any, tmp_path: Path, line: str, said: str) -> None:
    a, _, problems = apply(f"run,key,value\n{line}\na,model,qwen\n")
    (problem,) = problems
    assert problem.startswith(f"{tmp_path / 'notes.csv'}:2: ")
    assert said in problem
    assert a.model == "qwen"


def test_two_notes_that_contradict_each_other_are_both_not_taken(apply: Any) -> None:
    a, _, problems = apply("run,key,value\na,seed,1\na,seed,2\n")
    assert a.seed is None
    assert "noted as 1 and as 2" in problems[0]


def test_a_note_needs_a_name_that_one_run_has(tmp_path: Path) -> None:
    path = tmp_path / "notes.csv"
    path.write_text("run,key,value\na,seed,1\n")
    readings = [Reading(Row(name="a", **LOGGED)), Reading(Row(name="a", **LOGGED))]
    (problem,) = notes.apply(readings, path)
    assert "2 runs have this name" in problem
    assert [reading.row.seed for reading in readings] == [None, None]


def test_the_last_note_needs_no_line_end(apply: Any) -> None:
    assert apply("run,key,value\na,seed,12")[0].seed == 12


@pytest.mark.parametrize("content", [b"", b"\x00\xff\x01\x02" * 40, b"run,key\na,b\n", b"name,value\na,1\n"])
def test_notes_that_cannot_be_read_are_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "notes.csv"
    path.write_bytes(content)
    row = Row(name="a", **LOGGED)
    (problem,) = notes.apply([Reading(row)], path)
    assert str(path) in problem
    assert "\n" not in problem
    assert row == Row(name="a", **LOGGED)


def test_notes_are_recognised_by_their_header(tmp_path: Path) -> None:
    path = tmp_path / "notes.csv"
    path.write_text("run,key,value\n")
    assert notes.recognises(path)
    path.write_text("name,steps,seed\n")
    assert not notes.recognises(path)
