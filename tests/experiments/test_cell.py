"""A run from outside, with real processes: what it leaves when it ends well, badly, never, or not by itself."""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from lm_scale import records
from lm_scale.arguments import PretrainArguments, UserError, parse
from lm_scale.experiments import cell
from lm_scale.experiments.cell import Cell

REPOSITORY = Path(__file__).parents[2]
BEGIN = """
import os, signal, subprocess, sys, time
from pathlib import Path
from lm_scale.records import Writer, process_identity, now
folder = Path(sys.argv[1])
def begin():
    return Writer.create(folder, {"process": process_identity(sys.argv), "schedule": {"planned_steps": 3}}, {})
def grandchild(code):
    child = subprocess.Popen([sys.executable, "-c", code])
    (folder.parent / "grandchild").write_text(str(child.pid))
    return child
"""
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"


@pytest.fixture
def make_cell(tmp_path: Path) -> Any:
    """A cell that runs the script instead of a launcher."""

    def make(script: str) -> Cell:
        json = tmp_path / "zero1.json"
        json.write_text('{"zero_optimization": {"stage": 1}}')
        folder = tmp_path / "comparison"
        folder.mkdir()
        command = (sys.executable, "-c", BEGIN + script, str(folder / "zero1"))
        return Cell("zero1", str(json), folder, command, {**os.environ, "PYTHONPATH": str(REPOSITORY)})

    return make


def run(one: Cell, timeout_s: float = 60) -> tuple[cell.Outcome, str]:
    shown = io.StringIO()
    return cell.run(one, timeout_s, shown, "[1/1] zero1"), shown.getvalue()


def header(one: Cell) -> records.Header:
    return records.read(one.directory).header


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def grandchild_of(one: Cell) -> int:
    return int((one.folder / "grandchild").read_text())


def test_the_record_says_how_a_run_ended(make_cell: Any) -> None:
    one = make_cell(
        "w = begin(); w.append('step', step=3, loss=7.5, tokens=1000, step_s=0.5)\n"
        "w.update(status='completed'); sys.exit(1)"
    )
    outcome, shown = run(one)
    assert outcome == cell.Outcome(exit_status=1, status="completed", error=None)
    assert shown.splitlines()[-1].startswith("[1/1] zero1  completed  step 3/3  loss 7.500  2,000 tokens/s  0:0")


def test_a_launcher_that_ends_with_0_does_not_hide_a_dead_run(make_cell: Any) -> None:
    one = make_cell("begin(); print('x exits with return code = -9', flush=True)")
    outcome, _ = run(one)
    assert (outcome.exit_status, outcome.status) == (0, "crashed")
    assert header(one)["status"] == "crashed"
    assert header(one)["last_error"] == (
        f"a rank was ended by SIGKILL, as the system does when memory runs out; see {one.log}"
    )
    assert header(one)["finished_at"]


def test_a_refusal_before_the_run_began_is_a_row_with_its_line(make_cell: Any) -> None:
    one = make_cell("print('error: zero1.json: x: unknown key', file=sys.stderr); sys.exit(2)")
    outcome, _ = run(one)
    assert (outcome.status, outcome.error) == ("rejected", "zero1.json: x: unknown key")
    assert (header(one)["status"], header(one)["strategy"]["name"]) == ("rejected", "zero1")
    assert (one.directory / "ds_config.json").is_file()


def test_a_death_before_the_run_began_is_a_crash_with_its_exception(make_cell: Any) -> None:
    one = make_cell("raise RuntimeError('no such luck')")
    outcome, _ = run(one)
    assert (outcome.status, header(one)["status"]) == ("crashed", "crashed")
    assert outcome.error == f"RuntimeError: no such luck (all of it in {one.log})"


def test_a_run_past_its_time_is_hung_and_nothing_of_its_tree_lives(make_cell: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(cell, "GRACE_S", 1.0)
    one = make_cell(f"begin(); grandchild({STUBBORN!r}).wait()")
    outcome, shown = run(one, timeout_s=3)
    assert outcome.status == header(one)["status"] == "hung"
    assert header(one)["last_error"] == "no end within 0:03; ended by compare"
    assert is_gone(grandchild_of(one))
    assert "hung" in shown


def test_a_run_that_says_interrupted_when_it_is_ended_for_hanging_is_hung(make_cell: Any) -> None:
    one = make_cell(
        "w = begin(); signal.signal(signal.SIGTERM, lambda *_: (w.update(status='interrupted'), sys.exit(130)))\n"
        "time.sleep(600)"
    )
    assert run(one, timeout_s=3)[0].status == header(one)["status"] == "hung"


def test_what_a_launcher_leaves_behind_is_ended(make_cell: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(cell, "LEFTOVER_S", 0.5)
    one = make_cell("begin().update(status='completed'); grandchild('import time; time.sleep(600)')")
    assert run(one)[0].status == "completed"
    assert is_gone(grandchild_of(one))


def test_work_that_follows_the_launcher_within_seconds_is_not_cut_off(make_cell: Any) -> None:
    one = make_cell(
        "begin().update(status='completed')\n"
        'grandchild(f\'import time; time.sleep(1); open({str(folder / "late")!r}, "w")\')'
    )
    run(one)
    assert (one.directory / "late").exists()


def test_an_interrupt_ends_the_tree_keeps_the_record_and_is_passed_on(make_cell: Any) -> None:
    # A shell that starts the suite in the background has it ignore SIGINT; Python then raises no KeyboardInterrupt.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    one = make_cell("begin(); grandchild('import time; time.sleep(600)').wait()")

    def interrupt() -> None:
        while not (one.folder / "grandchild").exists():
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            run(one)
    finally:
        signal.signal(signal.SIGINT, before)
    thread.join()
    assert is_gone(grandchild_of(one))
    assert header(one)["status"] == "interrupted"


def test_the_words_for_a_cell_give_the_same_arguments_back() -> None:
    typed = [
        *("--override=a.b=1", '--override=c={"d": 2}', "--learning_rate=3e-05", "--no_save", "--bf16=false"),
        *("--sample_prompt=-def f(x):\n  ", "--budget=30m", "--dataset=wikimedia/wikipedia:20231101.ru"),
    ]
    arguments = parse(PretrainArguments, typed, "pretrain", "")
    said = cell.words(arguments)
    assert parse(PretrainArguments, said, "pretrain", "") == arguments
    assert len(said) == len(typed)
    assert cell.words(PretrainArguments()) == []


def test_the_launcher_is_told_the_devices_that_are_visible(monkeypatch: Any) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6")
    assert "localhost:4,5" in cell.command(2, "gpu", [])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-1234")
    with pytest.raises(UserError, match="CUDA_VISIBLE_DEVICES=MIG-1234"):
        cell.command(1, "gpu", [])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    words = cell.command(3, "gpu", ["--model=tiny"])
    assert words[words.index("--num_gpus") + 1] == "3"
    assert words[-3:] == ("--module", "lm_scale.pretrain", "--model=tiny")
