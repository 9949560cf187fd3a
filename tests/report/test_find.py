"""Folders as they are: logs among sources, weights, images and much else."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

SAMPLES = Path(__file__).parent / "samples"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A log among what lies around it: 30 scripts, 12 weights, an empty file and an image."""
    folder = tmp_path / "project"
    (folder / "src").mkdir(parents=True)
    shutil.copy(SAMPLES / "trainer_log/stopped.log", folder)
    for number in range(30):
        (folder / f"src/module_{number}.py").write_text("import torch\n", encoding="utf-8")
    for number in range(12):
        (folder / f"model-{number}.safetensors").write_bytes(bytes(range(256)) * 40)
    (folder / "empty.log").touch()
    (folder / "curve.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(256)))
    return folder


def test_many_files_that_say_nothing_for_one_reason_are_one_line(command: Any, project: Path) -> None:
    done = command(project, "--columns", "name,steps", "--format", "csv")
    assert (done.returncode, done.stdout) == (0, "name,steps\nstopped,33\n")
    lines = done.stderr.splitlines()
    assert len(lines) == 3
    assert f"warning: left out: {project / 'empty.log'}: empty" in lines
    assert any(f"{project}: 13 files such as curve.png: binary" in line for line in lines)
    assert any("30 files such as src/module_0.py: no run" in line for line in lines)


def test_a_file_that_was_asked_for_is_always_named(command: Any, project: Path) -> None:
    asked = sorted(project.glob("*.safetensors"))
    done = command(*asked, project / "stopped.log")
    assert done.returncode == 0
    assert [line.split(": ")[2] for line in done.stderr.splitlines()] == [str(path) for path in asked]


def test_a_trainers_folder_with_its_models_files_is_one_row_and_no_warning(command: Any, tmp_path: Path) -> None:
    shutil.copytree(SAMPLES / "trainer_state/stopped", tmp_path / "run")
    (tmp_path / "run/tokenizer.json").write_text("{}", encoding="utf-8")
    (tmp_path / "run/vocab.txt").write_text("a\nb\n", encoding="utf-8")
    (tmp_path / "run/runs").mkdir()
    (tmp_path / "run/runs/events.out.tfevents.1").write_bytes(bytes(range(256)))
    done = command(tmp_path, "--columns", "name,steps", "--format", "csv")
    assert (done.stdout, done.stderr) == ("name,steps\nrun,7\n", "")
