"""`python -m lm_scale.lint`: every fault of every file in one pass, in words for people and in rows for programs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import hjson
import pytest
import yaml

from lm_scale.arguments import PretrainArguments
from lm_scale.strategy.load import walk
from lm_scale.strategy.machine import Machine
from lm_scale.strategy.resolve import resolve

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "ds_configs"
README = (ROOT / "README.md").read_text(encoding="utf-8")
KEYS = ["file", "line", "column", "path", "value", "severity", "rule", "message", "fix"]

FAULTY = """{
  "gradient_cliping": 0.5,
  "train_batch_size": 30,
  "train_micro_batch_size_per_gpu": 4,
  "steps_per_print": "auto",
  "steps_per_print": 10,
  "zero_optimization": {
    "stage": 1,
    "reduce_buket_size": 5,
    "offload_param": {"device": "cpu"}
  },
  "optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "momentum": 0.9}},
  "sparse_attention": {"mode": "fixed"}
}
"""


def lint(*words: str | Path, folder: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lm_scale.lint", *map(str, words)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, cwd=folder, env={**os.environ, **environment}
    )


def rows(*words: str | Path) -> list[dict[str, Any]]:
    done = lint(*words, "--format", "json")
    assert "Traceback" not in done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout, parse_constant=lambda name: pytest.fail(name))
    return found


@pytest.fixture
def faulty(tmp_path: Path) -> Path:
    path = tmp_path / "faulty.json"
    path.write_text(FAULTY)
    return path


def test_all_faults_are_found_in_one_pass_each_where_it_stands(faulty: Path) -> None:
    found = rows(faulty)
    assert all(list(row) == KEYS for row in found)
    errors = {(row["line"], row["path"]): row for row in found if row["severity"] == "error"}
    assert set(errors) == {
        (2, "gradient_cliping"),
        (3, "train_batch_size"),
        (6, "steps_per_print"),
        (9, "zero_optimization.reduce_buket_size"),
        (10, "zero_optimization.offload_param.device"),
        (12, "optimizer.params.momentum"),
        (13, "sparse_attention"),
    }
    assert errors[(9, "zero_optimization.reduce_buket_size")]["column"] == 5
    assert errors[(9, "zero_optimization.reduce_buket_size")]["value"] == 5
    assert "reduce_bucket_size" in errors[(9, "zero_optimization.reduce_buket_size")]["fix"]
    clipping = next(row for row in found if row["path"] == "gradient_clipping")
    assert (clipping["line"], clipping["value"]) == (1, None)


def test_for_people_it_is_a_line_a_problem_and_a_line_a_file(faulty: Path) -> None:
    done = lint(faulty, CONFIGS / "zero1.json")
    assert done.returncode == 1
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert any(line.startswith(f"error: {faulty}:2:3: gradient_cliping: ") for line in lines)
    assert "did you mean gradient_clipping?" in done.stdout
    assert not any(line.startswith("note: ") for line in lines)
    assert any(re.fullmatch(rf"{faulty}: 7 errors.*", line) for line in lines)
    assert any(re.fullmatch(rf"{CONFIGS}/zero1.json: no problem.*", line) for line in lines)
    assert lines[-1].startswith("2 files: 7 errors")
    assert [line for line in lint(faulty, "--notes").stdout.splitlines() if line.startswith("note: ")]


def test_a_clean_file_shows_what_counts_and_what_it_does_not_say(tmp_path: Path) -> None:
    document = {"train_micro_batch_size_per_gpu": 4, "optimizer": {"type": "AdamW", "params": {"lr": 1e-3}}}
    (tmp_path / "short.json").write_text(json.dumps(document | {"zero_optimization": {"stage": 2}}))
    done = lint(tmp_path / "short.json")
    assert done.returncode == 0
    shown = {line[2:].split()[0]: line for line in done.stdout.splitlines() if line[:2] in ("* ", "  ")}
    assert re.fullmatch(r"\* gradient_clipping +1.0", shown["gradient_clipping"])
    assert re.fullmatch(
        r"\* zero_optimization.reduce_bucket_size +5\d*(\.0)?", shown["zero_optimization.reduce_bucket_size"]
    )
    assert re.fullmatch(r"  zero_optimization.stage +2", shown["zero_optimization.stage"])
    assert len(done.stdout.splitlines()) < 25


def test_the_shipped_configs_have_no_error() -> None:
    found = rows(CONFIGS)
    assert {Path(row["file"]).name for row in found} == {path.name for path in CONFIGS.glob("*.json")}
    assert [row for row in found if row["severity"] == "error"] == []


def test_a_file_that_cannot_be_opened_does_not_keep_the_others_from_being_checked(faulty: Path) -> None:
    done = lint("nowhere.json", faulty)
    assert done.returncode == 2
    assert done.stderr.startswith("error: nowhere.json: No such file or directory")
    assert len(done.stderr.splitlines()) == 1
    assert "gradient_cliping" in done.stdout


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), "ds_configs missing"),
        (("--word_size", "2"), "did you mean --world_size?"),
        (("--world_size", "0", "x.json"), "must be at least 1"),
        (("--device", "tpu", "x.json"), "invalid choice"),
        (("--ds_config", "x.json", "y.json"), "plain words"),
        (("--override", "a", str(CONFIGS / "zero1.json")), "dotted.path=VALUE"),
    ],
)
def test_a_mistake_in_the_arguments_is_one_line(words: tuple[str, ...], expected: str) -> None:
    done = lint(*words)
    assert done.returncode == 2
    assert expected in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_world_size_and_overrides_decide_about_the_batch(tmp_path: Path) -> None:
    path = tmp_path / "batch.json"
    path.write_text('{"train_batch_size": 32, "train_micro_batch_size_per_gpu": 4}')
    assert [row["severity"] for row in rows(path) if row["rule"] == "batch"] == ["note"]
    assert [row for row in rows(path, "--world_size", "8") if row["rule"] == "batch"] == []
    assert [row["severity"] for row in rows(path, "--world_size", "3") if row["rule"] == "batch"] == ["error"]
    changed = ("--world_size", "3", "--override", "train_batch_size=36")
    assert [row for row in rows(path, *changed) if row["rule"] == "batch"] == []


@pytest.mark.parametrize(
    ("text", "rule", "line"),
    [
        (b"", "not-strict-json", 1),
        (b'{"a": 1,\n "b": ]}', "syntax", 2),
        (b"[1]", "syntax", 1),
        (b"\xff\xfe{", "syntax", 1),
        (b'{"a":' * 50_000, "syntax", None),
        (b'{\n# Python\n"dump_state": True,\n}', "unquoted", 3),
        (b'{"a": NaN\n}', "not-strict-json", None),
        (b'{"a": 1,\n"a": 2}', "duplicate-key", 2),
    ],
)
def test_a_damaged_file_is_rows_and_no_traceback(tmp_path: Path, text: bytes, rule: str, line: int | None) -> None:
    (tmp_path / "x.json").write_bytes(text)
    assert (rule, line) in {(row["rule"], row["line"]) for row in rows(tmp_path / "x.json")}


def test_any_key_is_printed_on_one_line(tmp_path: Path) -> None:
    path = tmp_path / "odd.json"
    path.write_text(json.dumps({"new\nline": 1, "esc\x1b[31m": 2, "half \ud83d": 3, "": 4, "a.b": 5, "größe": 1e999}))
    done = lint(path)
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert all(line.startswith(("error: ", "warning: ", f"{path}: ")) for line in lines)
    assert "\x1b" not in done.stdout
    assert "größe" in done.stdout
    assert {"new\nline", "half \ud83d", "a.b"} <= {row["path"] for row in rows(path)}


def test_resolved_is_the_json_that_runs_with_a_source_for_each_value() -> None:
    file = str(CONFIGS / "zero3.json")
    words = (file, "--resolved", "--world_size", "4", "--device", "gpu", "--model", "small", "--learning_rate", "2e-3")
    (row,) = rows(*words)
    arguments = PretrainArguments(ds_config=file, model="small", learning_rate=2e-3)
    machine = Machine("gpu", 1, True, "")
    expected = resolve(arguments, arguments, 512, 4, machine).document
    assert row["ds_config"] == expected
    assert row["sources"].keys() == {path for path, _ in walk(expected)}
    assert row["sources"]["optimizer.params.lr"] == "--learning_rate"
    text = lint(*words).stdout
    assert hjson.loads(text) == expected  # the comments are Hjson's: DeepSpeed reads what is printed
    assert re.search(r'"train_batch_size": 32, +# solved for 4 ranks', text)
    assert re.search(r"# zero_optimization.overlap_comm = true ", text)


def test_resolved_says_why_a_file_would_not_run(tmp_path: Path) -> None:
    """Here nothing is wrong with the file, and this project does not run it."""
    path = tmp_path / "x.json"
    path.write_text('{"train_micro_batch_size_per_gpu": 1, "torch_autocast": {"enabled": true, "dtype": "bfloat16"}}')
    done = lint(path, "--resolved")
    assert done.returncode == 1
    assert f"# not run: {path}: torch_autocast: " in done.stdout
    (row,) = rows(path, "--resolved")
    assert row["ds_config"] is None
    assert "torch_autocast" in row["refused"]


def test_on_another_deepspeed_errors_are_warnings_and_it_is_said_once(faulty: Path, tmp_path: Path) -> None:
    metadata = tmp_path / "deepspeed-99.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: deepspeed\nVersion: 99.0\n")
    done = lint(faulty, CONFIGS / "zero1.json", PYTHONPATH=f"{tmp_path}:{ROOT}")
    assert f"warning: {faulty}:2:3: gradient_cliping: " in done.stdout
    assert done.stdout.count("DeepSpeed 99.0 is installed") == 1
    # the text itself is wrong for any DeepSpeed
    assert [line for line in done.stdout.splitlines() if line.startswith("error: ")] == [
        line for line in done.stdout.splitlines() if "stands twice" in line
    ]


def test_the_readme_shows_what_is_printed(tmp_path: Path) -> None:
    document = """{
  "train_batch_size": 32,
  "train_micro_batch_size_per_gpu": 3,
  "gradient_cliping": 0.5,
  "optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "momentum": 0.9}},
  "zero_optimization": {"stage": 1, "reduce_buket_size": 5e7, "offload_param": {"device": "cpu"}}
}
"""
    (tmp_path / "two.json").write_text(document)
    shown = re.search(r"\$ python -m lm_scale.lint two.json --world_size 8\n(.*?)```", README, re.DOTALL)
    assert shown is not None
    done = lint("two.json", "--world_size", "8", folder=tmp_path, PYTHONPATH=str(ROOT))
    assert done.stdout == shown[1]


def test_it_imports_nothing_heavy() -> None:
    heavy = "{'torch', 'deepspeed', 'transformers', 'numpy', 'pandas'}"
    code = (
        f"import sys; from lm_scale.lint import main; main(sys.argv[1:]); print(sorted({heavy} & sys.modules.keys()))"
    )
    command = [sys.executable, "-c", code, str(CONFIGS / "zero1.json"), "--resolved"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, cwd=ROOT)
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_hook_starts_without_any_package_and_takes_the_usual_file_names(faulty: Path) -> None:
    (hook,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    script = ROOT / hook["entry"]
    assert (hook["language"], os.access(script, os.X_OK)) == ("script", True)
    bare = [sys.executable, "-I", "-S", str(script), str(faulty)]
    done = subprocess.run(bare, capture_output=True, text=True, timeout=60, cwd=faulty.parent)
    assert done.returncode == 1, done.stderr
    assert f"error: {faulty}:9:5: zero_optimization.reduce_buket_size: " in done.stdout
    takes = re.compile(hook["files"])
    usual = ("ds_config.json", "configs/ds_config_zero3.json", "deepspeed.json", "ds_configs/mine.json", "a/zero2.json")
    assert all(takes.search(name) for name in usual)
    others = ("package.json", "config.json", "data/nonzero.json", "ds_config.yaml", "tests/fields_1.json")
    assert not any(takes.search(name) for name in others)
