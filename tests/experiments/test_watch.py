"""How far a run is, read while it is being written."""

from __future__ import annotations

import io
from pathlib import Path

from lm_scale.experiments.watch import Line, Watch, clock
from lm_scale.records import Writer


def test_progress_is_of_the_newest_whole_record(tmp_path: Path) -> None:
    log, run = tmp_path / "launcher.log", tmp_path / "run"
    watch = Watch(run, log)
    assert watch.describe() == "starting"
    log.write_text("[2026-01-01 00:00:00] [INFO] chatter\ntokenizing  10 %\rtokenizing  55 %\n[INFO] more chatter\n")
    assert watch.describe() == "starting  tokenizing  55 %"
    writer = Writer.create(run, {"schedule": {"planned_steps": 40, "budget_s": 90.0}}, {})
    writer.append("step", step=11, loss=8.25, tokens=1024, step_s=0.5, elapsed_s=20.0)
    assert watch.describe() == "step 11/40  loss 8.250  2,048 tokens/s  0:20 of 1:30"
    with open(run / "metrics.jsonl", "ab") as file:
        file.write(b'{"kind": "step", "step": 12, "loss"')
        file.flush()
        assert watch.describe().startswith("step 11/40")
        file.write(b': 8.0, "tokens": 1024, "step_s": 0.25, "elapsed_s": 21.5}\n{"kind": "eval", "step": 12}\n')
        file.flush()
    assert watch.describe() == "step 12/40  loss 8.000  4,096 tokens/s  0:21 of 1:30"


def test_a_loss_that_is_not_a_number_is_left_out(tmp_path: Path) -> None:
    writer = Writer.create(tmp_path / "run", {}, {})
    writer.append("step", step=1, loss=float("nan"), tokens=10, step_s=1.0)
    assert Watch(tmp_path / "run", tmp_path / "log").describe() == "step 1  10 tokens/s"


def test_without_a_terminal_the_line_is_plain_and_rare() -> None:
    stream = io.StringIO()
    line = Line(stream, "[2/5] zero1")
    line.draw("step 1", 1.0)
    line.draw("step 2", 2.0)
    line.end("completed", 3.0)
    assert stream.getvalue() == "[2/5] zero1  step 1  0:01\n[2/5] zero1  completed  0:03\n"


def test_durations_read_like_a_clock() -> None:
    assert [clock(s) for s in (0, 59.9, 61, 3599, 3600, 7325)] == [
        "0:00",
        "0:59",
        "1:01",
        "59:59",
        "1:00:00",
        "2:02:05",
    ]
