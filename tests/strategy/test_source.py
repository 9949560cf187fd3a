"""The text of a JSON: both readers' verdicts, what they read, and where it stands."""

from __future__ import annotations

import json
from pathlib import Path

import hjson
import pytest
from auto_and_batch_worker import FILES, answers

from lm_scale.strategy.problems import of_file
from lm_scale.strategy.rules.findings import Setting
from lm_scale.strategy.source import MOST_BYTES, Position, parse, read

SHIPPED = sorted((Path(__file__).parents[2] / "ds_configs").glob("*.json"))
WILD = sorted((Path(__file__).parents[3] / "shared" / "wild_configs").glob("[0-9]*.json"))

LOOSE = """# a comment
{
  stage: 2, 'quoted': "x # y"
\tbf16: {enabled: true} // another
  "list": [1, {deep: 3}]
  /* a
     block */ text: '''
    two
    lines'''
  python: True,
}
"""


def test_the_verdicts_are_those_of_deepspeed_and_trainer(tmp_path: Path) -> None:
    for data, (deepspeed, trainer) in zip(FILES, answers()["files"], strict=True):
        (tmp_path / "x.json").write_bytes(data)
        source = read(tmp_path / "x.json")
        refused_by_deepspeed = bool(source.unfit or source.hjson_fault or source.duplicates)
        assert (refused_by_deepspeed, bool(source.unfit or source.json_fault)) == (
            deepspeed != "reads",
            trainer != "reads",
        ), data


ABSENT = pytest.param(None, marks=pytest.mark.skip(reason="the collected JSONs are not on this machine"))


@pytest.mark.parametrize("path", [*SHIPPED, *(WILD or [ABSENT])], ids=lambda path: path and path.stem)
def test_a_document_is_what_its_reader_reads_and_every_key_has_a_place(path: Path) -> None:
    source = read(path)
    text = path.read_text()
    try:
        document = json.loads(text)
    except ValueError:
        document = hjson.loads(text)
        assert source.json_fault
    assert source.document == document
    lines = text.splitlines()
    for place, position in source.keys.items():
        assert lines[position.line - 1][position.column - 1 :].startswith((place[-1], f'"{place[-1]}"'))
    for place, position in source.values.items():
        assert position.column == 1 or not lines[position.line - 1][position.column - 1].isspace(), place


def test_hjson_is_read_as_deepspeed_reads_it_and_every_value_is_found() -> None:
    source = parse(LOOSE)
    assert source.document == hjson.loads(LOOSE)
    assert source.hjson_fault is None
    assert source.keys[("stage",)] == Position(3, 3)
    assert source.keys[("quoted",)] == Position(3, 13)
    assert source.keys[("bf16", "enabled")] == Position(4, 9)
    assert source.values[("list", "1", "deep")] == Position(5, 22)
    assert source.keys[("text",)] == Position(7, 15)
    assert source.unquoted == {("python",): "True,"}


def test_line_ends_and_a_byte_order_mark_move_nothing(tmp_path: Path) -> None:
    plain = b'{\n "a": {\n\t"b": 1}\n}'
    (tmp_path / "x.json").write_bytes(plain)
    expected = read(tmp_path / "x.json")
    assert expected.keys[("a", "b")] == Position(3, 2)
    for ends in (b"\r\n", b"\r"):
        (tmp_path / "x.json").write_bytes(plain.replace(b"\n", ends))
        assert read(tmp_path / "x.json") == expected
    (tmp_path / "x.json").write_bytes(b"\xef\xbb\xbf" + plain)
    marked = read(tmp_path / "x.json")
    assert (marked.document, marked.keys[("a", "b")]) == (expected.document, Position(3, 2))
    assert marked.json_fault


def test_an_absent_key_stands_where_its_block_begins() -> None:
    source = parse('{\n "a": {"b": 1}\n}')
    assert source.position(("a", "missing")) == Position(2, 7)
    assert source.position(("missing",)) == Position(1, 1)


def test_a_repeated_key_is_found_wherever_it_stands() -> None:
    source = parse('{"a": 1,\n "b": {"c": 1,\n "c": 2},\n "a": 3}')
    assert source.duplicates == [(("b", "c"), Position(3, 2)), (("a",), Position(4, 2))]
    assert source.document == {"a": 3, "b": {"c": 2}}  # as Python's json reads it


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "Expecting value"),
        (b"[1]", "not a list"),
        (b"7", "not a number"),
        (b'"text"', "not a string"),
        (b'{"a": NaN}', "NaN is no JSON"),
        (b'{"a": -Infinity}', "-Infinity is no JSON"),
        (b'{"a": ' + b"1" * 5000 + b"}", "limit"),
        (b'{"a":' * 50_000, "nested deeper"),
        (b'{"a":' * 300 + b"1" + b"}" * 300, "nested deeper"),
        (b"\xff\xfe{\x00}\x00", "UTF-16"),
        (b'{"name": "\xe9"}', "not UTF-8"),
        (b"x" * (MOST_BYTES + 1), "no DeepSpeed JSON"),
        (bytes(range(256)), "not UTF-8"),
    ],
)
def test_nonsense_is_one_clear_line(tmp_path: Path, data: bytes, words: str) -> None:
    (tmp_path / "x.json").write_bytes(data)
    source = read(tmp_path / "x.json")
    fault = source.unfit or source.json_fault
    assert fault
    assert words in fault.message
    assert "\n" not in fault.message


@pytest.mark.parametrize(
    ("name", "stage", "said"),
    [
        ("zero3", 2, True),
        ("ds_z3_offload_config", 2, True),
        ("ds_zero_stage_2", 1, True),
        ("stage3_offload", 0, True),
        ("zero3", 3, False),
        ("zero3_2gpu", 3, False),
        ("zero2to3", 1, False),
        ("zero2_3", 1, False),
        ("stage2_zero3", 1, False),
        ("zero10", 2, False),
        ("zero_1b", 2, False),
        ("lz4", 2, False),
        ("zero_offload", 2, False),
        ("zero3", "auto", False),
    ],
)
def test_a_name_that_says_another_stage_is_a_warning(tmp_path: Path, name: str, stage: int | str, said: bool) -> None:
    file = tmp_path / f"{name}.json"
    file.write_text(json.dumps({"train_batch_size": 1, "zero_optimization": {"stage": stage}}))
    found = [one for one in of_file(str(file), Setting()) if one.rule == "stage-in-name"]
    assert [(one.severity, one.path, one.line) for one in found] == [("warning", "zero_optimization.stage", 1)] * said


def test_an_unquoted_placeholder_is_to_be_filled_in(tmp_path: Path) -> None:
    file = tmp_path / "template.json"
    file.write_text('{\n"train_batch_size": BATCH,\n"steps_per_print": 10\n}')
    (one,) = [one for one in of_file(str(file), Setting()) if one.rule == "unquoted"]
    assert one.fix == "write what BATCH stands for"
