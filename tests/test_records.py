"""The run directory: a header that is never half written, records that survive a kill, and honest reading."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lm_scale.records import RecordError, Writer, find, process_identity, read


def make(folder: Path, name: str = "run", **header: object) -> Writer:
    return Writer.create(
        folder / name, {"process": process_identity(["test"]), **header}, {"zero_optimization": {"stage": 1}}
    )


def test_what_was_written_is_read(tmp_path: Path) -> None:
    writer = make(tmp_path, seed=3)
    writer.append("step", step=1, loss=2.5)
    writer.append("sample", step=1, text="nan\nline")
    writer.update(status="completed", seed=4)
    run = read(tmp_path / "run")
    assert (run.status, run.header["seed"], run.header["name"]) == ("completed", 4, "run")
    assert [step["loss"] for step in run.of("step")] == [2.5]
    assert run.of("sample")[0]["text"] == "nan\nline"


def test_numbers_that_json_cannot_hold_come_back(tmp_path: Path) -> None:
    make(tmp_path).append("step", step=1, loss=math.nan, grad_norm=math.inf)
    for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    step = read(tmp_path / "run").of("step")[0]
    assert math.isnan(step["loss"])
    assert step["grad_norm"] == math.inf


def test_a_taken_name_is_not_touched(tmp_path: Path) -> None:
    make(tmp_path, seed=1)
    with pytest.raises(FileExistsError):
        make(tmp_path, seed=2)
    assert read(tmp_path / "run").header["seed"] == 1


def test_a_line_cut_off_by_a_kill_is_left_out(tmp_path: Path) -> None:
    writer = make(tmp_path)
    writer.append("step", step=1, loss=2.0)
    with open(tmp_path / "run" / "metrics.jsonl", "a") as file:
        file.write('{"kind": "step", "st')
    assert len(read(tmp_path / "run").of("step")) == 1


def test_damage_in_the_middle_is_an_error_that_names_the_line(tmp_path: Path) -> None:
    make(tmp_path)
    (tmp_path / "run" / "metrics.jsonl").write_text('{"kind": "step"}\nnot json\n{"kind": "step"}\n')
    with pytest.raises(RecordError, match=r"metrics\.jsonl:2"):
        read(tmp_path / "run")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": 999}', '{"name": "x"}'])
def test_a_bad_header_is_one_clear_error(tmp_path: Path, text: str) -> None:
    make(tmp_path)
    (tmp_path / "run" / "run.json").write_text(text)
    with pytest.raises(RecordError, match=r"run\.json"):
        read(tmp_path / "run")


def test_running_without_a_process_is_crashed(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from lm_scale.records import Writer, process_identity\n"
        "Writer.create(Path(sys.argv[1]), {'process': process_identity([])}, {})\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "gone")], check=True, timeout=60)
    gone = read(tmp_path / "gone")
    assert gone.header["status"] == "running"
    assert gone.status == "crashed"
    assert gone.last_error
    make(tmp_path, "mine")
    assert read(tmp_path / "mine").status == "running"


def test_a_recycled_pid_is_another_process(tmp_path: Path) -> None:
    writer = make(tmp_path)
    identity = process_identity([])
    writer.update(process={**identity, "pid_started": identity["pid_started"] - 1})
    assert read(tmp_path / "run").status == "crashed"


def test_another_hosts_run_counts_as_gone_after_a_long_silence(tmp_path: Path) -> None:
    writer = make(tmp_path)
    writer.update(process={**process_identity([]), "host": "elsewhere"})
    assert read(tmp_path / "run").status == "running"
    for file in (tmp_path / "run").iterdir():
        os.utime(file, (0, 0))
    assert read(tmp_path / "run").status == "crashed"


def test_the_first_error_is_the_cause(tmp_path: Path) -> None:
    writer = make(tmp_path)
    writer.append("event", event="error", rank=1, message="disk full")
    writer.append("event", event="error", rank=0, message="connection closed by peer")
    assert read(tmp_path / "run").last_error == "disk full"


def test_going_on_drops_the_work_that_is_done_again(tmp_path: Path) -> None:
    writer = make(tmp_path)
    for step in range(1, 6):
        writer.append("step", step=step, loss=float(step))
    writer.append("event", event="error", message="killed")
    Writer.reopen(tmp_path / "run", 3).append("step", step=4, loss=40.0)
    run = read(tmp_path / "run")
    assert [step["loss"] for step in run.of("step")] == [1.0, 2.0, 3.0, 40.0]
    assert run.status == "running"
    assert run.last_error is None
    assert [event["dropped_steps"] for event in run.of("event") if event["event"] == "resumed"] == [2]


def test_runs_are_found_below_a_folder(tmp_path: Path) -> None:
    make(tmp_path, "b")
    make(tmp_path / "deeper", "a")
    assert [path.name for path in find(tmp_path)] == ["b", "a"]
    assert find(tmp_path / "b") == [tmp_path / "b"]


def test_a_run_killed_after_running_out_of_memory_says_so(tmp_path: Path) -> None:
    """Only the first rank writes the header; when another runs out of memory it may be killed before it can."""
    writer = make(tmp_path)
    writer.append("event", event="error", rank=1, message="OutOfMemoryError: 80 GiB", status="oom")
    writer.update(process={**process_identity([]), "pid_started": -1})
    assert read(tmp_path / "run").status == "oom"
    assert read(tmp_path / "run").last_error == "OutOfMemoryError: 80 GiB"
