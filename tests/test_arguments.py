"""Arguments: one parser for all commands, files of arguments, and mistakes in one line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lm_scale.arguments import CompareArguments, PretrainArguments, UserError, parse, seconds


def pretrain(*words: str) -> PretrainArguments:
    return parse(PretrainArguments, words, "pretrain", "")


def test_types_lists_and_flags() -> None:
    arguments = pretrain(
        "--max_steps",
        "3",
        "--learning_rate=1e-3",
        "--no_save",
        "--torch_compile",
        "false",
        "--override",
        "a=1",
        "--override",
        "b=2",
    )
    assert (arguments.max_steps, arguments.learning_rate) == (3, 1e-3)
    assert (arguments.no_save, arguments.torch_compile) == (True, False)
    assert arguments.override == ["a=1", "b=2"]


@pytest.mark.parametrize("name", ["arguments.yaml", "arguments.json"])
def test_the_command_line_wins_over_a_file_and_the_file_over_defaults(tmp_path: Path, name: str) -> None:
    as_yaml = "max_steps: 7\nseq_len: 64\noverride: [a=1, b=2]\nno_save: true\n"
    as_json = '{"max_steps": 7, "seq_len": 64, "override": ["a=1", "b=2"], "no_save": true}'
    (tmp_path / name).write_text(as_json if name.endswith(".json") else as_yaml)
    arguments = pretrain("--arguments", str(tmp_path / name), "--max_steps", "9")
    assert (arguments.max_steps, arguments.seq_len, arguments.override, arguments.no_save) == (
        9,
        64,
        ["a=1", "b=2"],
        True,
    )
    assert arguments.model == "mini"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--max_step", "3"], "--max_step: unknown argument; did you mean --max_steps?"),
        (["--batch-size=3"], "--batch-size: unknown argument"),
        (["--max_steps", "three"], "--max_steps: invalid int value"),
        (["--loss", "quick"], "--loss: invalid choice"),
        (["stray"], "stray: belongs to no argument"),
        (["--max_steps"], "--max_steps: expected one argument"),
        (["--no_save=perhaps"], "neither true nor false"),
        (["--no_save", "perhaps"], "perhaps: belongs to no argument"),
    ],
)
def test_a_mistake_is_named(words: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        pretrain(*words)
    assert message in str(caught.value)


@pytest.mark.parametrize("text", ["max_stepz: 3", "[1, 2]", "a: [", "max_steps: three"])
def test_a_mistake_in_a_file_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(UserError):
        pretrain("--arguments", str(tmp_path / "a.yaml"))


def test_positionals_are_required_where_a_command_needs_them() -> None:
    assert parse(CompareArguments, ["a.json", "b.json", "--max_steps", "3"], "compare", "").ds_configs == [
        "a.json",
        "b.json",
    ]
    with pytest.raises(UserError, match="ds_configs missing"):
        parse(CompareArguments, [], "compare", "")


@pytest.mark.parametrize(
    ("text", "value"), [("90s", 90), ("30m", 1800), ("2h", 7200), ("1h30m", 5400), ("45", 45), ("1.5m", 90)]
)
def test_durations(text: str, value: float) -> None:
    assert seconds(text, "--budget") == value


@pytest.mark.parametrize("text", ["", "abc", "-5s", "0", "5d", "3m2h"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(UserError):
        seconds(text, "--budget")


@pytest.mark.parametrize("command", ["pretrain", "lint", "compare", "report", "generate"])
def test_help_is_there_and_imports_nothing_heavy(command: str) -> None:
    code = (
        "import sys, runpy\n"
        f"sys.argv = ['{command}', '--help']\n"
        "try:\n"
        f"    runpy.run_module('lm_scale.{command}', run_name='__main__', alter_sys=True)\n"
        "except SystemExit as end:\n"
        "    heavy = sorted({'torch', 'deepspeed', 'transformers', 'datasets', 'pandas'} & sys.modules.keys())\n"
        "    sys.exit(f'imported {heavy}' if heavy else end.code)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "options:" in done.stdout


def test_a_flag_swallows_no_file_and_files_may_stand_anywhere() -> None:
    words = ["--no_save", "a.json", "--max_steps", "3", "b.json", "--torch_compile", "false"]
    arguments = parse(CompareArguments, words, "compare", "")
    assert arguments.ds_configs == ["a.json", "b.json"]
    assert (arguments.no_save, arguments.torch_compile, arguments.max_steps) == (True, False, 3)


def test_one_file_in_a_file_of_arguments_is_one(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("ds_configs: a.json\nmax_steps: 3\n")
    assert parse(CompareArguments, ["--arguments", str(tmp_path / "a.yaml")], "compare", "").ds_configs == ["a.json"]
