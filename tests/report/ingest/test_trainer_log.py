"""Trainer's console logs against what the same runs counted, and the homework's six where they are at hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from damaged_logs import untrue

from lm_scale.report.ingest import Reading, console, trainer_log

SAMPLES = Path(__file__).parent.parent / "samples/trainer_log"
COUNTED = json.loads((SAMPLES / "counted.json").read_text())
HOMEWORK = Path(__file__).parents[4] / "shared/homework"
TRUTH = {
    "train_runtime_s": "runtime_s",
    "steps_completed": "steps",
    "true_steps_per_s": "steps_per_s",
    "true_s_per_step": "step_s",
    "true_samples_per_s": "samples_per_s",
    "effective_batch": "global_batch",
    "planned_steps_one_epoch": "planned_steps",
    "micro_batch_per_gpu": "micro_batch",
    "activation_checkpointing_effective": "activation_checkpointing",
    **{key: key for key in ("samples_seen", "world_size", "grad_accum", "zero_stage", "precision", "params")},
    **{key: key for key in ("torch_compile", "optimizer", "train_loss", "eval_loss", "wandb_url")},
}
"""The keys of `truth.json` and the row's."""
EVALUATED = {
    "evaluations": [0.0299, 0.0287, 0.025, 0.0293, 0.0205, 0.0211],
    "evaluations_4.46": [0.0084, 0.0088, 0.0089, 0.0077, 0.008],
}
"""Seconds of the evaluations on the way, as Trainer printed them."""
needs_homework = pytest.mark.skipif(not HOMEWORK.is_dir(), reason="../shared/homework is not beside the checkout")


def read(path: Path) -> Reading:
    log = console.read(path)
    assert trainer_log.recognises(log)
    (reading,) = trainer_log.read(log)
    return reading


def codes(reading: Reading) -> set[str]:
    return {flag["code"] for flag in reading.row.flags}


@pytest.mark.parametrize("name", sorted(COUNTED))
def test_a_real_run_has_the_numbers_that_it_counted(name: str) -> None:
    row, counted = read(SAMPLES / f"{name}.log").row, COUNTED[name]
    ranks = 2 if name in ("ddp", "fsdp2") else 1
    assert (row.steps, row.world_size, row.micro_batch, row.grad_accum) == (counted["steps"], ranks, 4, 2)
    short_epochs = {"evaluations": 806, "without_bar": None, "ddp": None, "fsdp2": None}  # of 403; coarse; repeated
    assert row.global_batch == 8 * ranks
    assert row.samples_seen == short_epochs.get(name, counted["steps"] * 8)
    assert row.runtime_s == pytest.approx(counted["train"]["train_runtime"], rel=1e-3)
    assert row.train_loss == pytest.approx(counted["train"]["train_loss"], rel=1e-4)
    assert row.eval_loss == pytest.approx(counted["eval"]["eval_loss"], rel=1e-4)
    assert (row.engine, row.strategy) == ("torch", {"ddp": "ddp", "fsdp2": "fsdp_full_shard"}.get(name, "single"))
    assert (row.params, row.precision, row.learning_rate if row.learning_rate else 5e-5) == (5168, "fp32", 5e-5)
    assert (row.seq_len, row.tokens_per_s) == (None, None)  # the log does not say how long a sample is


@pytest.mark.parametrize(("name", "planned"), [("stopped", 102), ("stopped_4.46", 100), ("stopped_4.38", 100)])
def test_a_run_stopped_by_its_clock_is_no_completed_one(name: str, planned: int) -> None:
    row = read(SAMPLES / f"{name}.log").row
    assert (row.status, row.steps, row.planned_steps) == ("budget", 33, planned)


def test_a_loop_of_its_own_whose_bar_counts_micro_batches_is_counted_in_steps() -> None:
    counted = json.loads((SAMPLES / "own_loops.json").read_text())["own_loop"]
    reading = read(SAMPLES / "own_loop.log")  # 120 micro-batches on the bar, 4 a step
    row = reading.row
    assert (row.steps, row.planned_steps, row.samples_seen) == (counted["steps"], counted["steps"], counted["samples"])
    assert row.samples_per_s == pytest.approx(counted["samples"] / counted["runtime_s"], rel=1e-3)
    assert "micro_step_bar" in codes(reading)
    assert [point.step for point in reading.steps] == [5, 10, 15, 20, 25, 30]


def test_ranks_that_all_print_are_one_training_with_no_loss_of_a_single_rank() -> None:
    counted = json.loads((SAMPLES / "own_loops.json").read_text())["own_loop_ddp"]
    reading = read(SAMPLES / "own_loop_ddp.log")
    row = reading.row
    assert (row.steps, row.world_size, row.global_batch) == (counted["steps"], 2, 32)
    assert (row.train_loss, reading.steps) == (None, [])  # each rank logged its own losses
    assert row.runtime_s in (None, pytest.approx(counted["runtime_s"], rel=2e-3))


def test_text_that_was_buffered_apart_from_the_bar_is_not_placed_by_it() -> None:
    reading = read(SAMPLES / "buffered.log")  # six losses stand together, under the bar's 32nd step
    true = {5: 4.324, 10: 4.316, 15: 4.319, 20: 4.322, 25: 4.325, 30: 4.319}
    assert reading.steps
    assert all(point.loss == true[point.step] for point in reading.steps)
    assert reading.row.status == "budget"


def test_steps_faster_than_the_bar_is_drawn_are_placed_where_they_were_logged() -> None:
    assert [point.step for point in read(SAMPLES / "fast.log").steps] == [2, 4, 6, 8, 10, 12]


def test_planned_samples_over_the_runtime_are_not_believed() -> None:
    reading = read(SAMPLES / "stopped_4.46.log")  # Trainer printed 188.45 samples/s; 33 x 8 samples took 4.277 s
    assert reading.row.samples_per_s == pytest.approx(264 / 4.277, rel=1e-3)
    assert "planned_not_completed" in codes(reading)


@pytest.mark.parametrize("name", ["evaluations", "evaluations_4.46"])
def test_evaluations_on_the_way_are_no_step_time_and_not_the_final_one(name: str) -> None:
    reading = read(SAMPLES / f"{name}.log")
    assert [(one.step, one.final) for one in reading.evals][:4] == [(20, False), (40, False), (60, False), (80, False)]
    assert "evaluation_in_runtime" in codes(reading)
    seconds = sum(EVALUATED[name])
    expected = (COUNTED[name]["train"]["train_runtime"] - seconds) / COUNTED[name]["steps"]
    assert reading.row.step_s == pytest.approx(expected, rel=1e-3)


def test_the_series_holds_the_logged_points_at_their_steps() -> None:
    points = read(SAMPLES / "stopped_4.46.log").steps
    assert [point.step for point in points] == [5, 10, 15, 20, 25, 30]
    assert points[0].loss == pytest.approx(4.6109, abs=0.01)


def test_out_of_memory_on_one_rank_is_the_runs_end() -> None:
    row = read(SAMPLES / "ddp_out_of_memory.log").row
    assert (row.status, row.steps, row.world_size) == ("oom", 21, 2)
    assert str(row.last_error).startswith("torch.OutOfMemoryError: CUDA out of memory")


def test_an_exception_is_the_runs_end_and_leaves_no_result() -> None:
    row = read(SAMPLES / "exception.log").row
    assert (row.status, row.last_error) == ("crashed", "RuntimeError: boom at a step")
    assert (row.steps, row.runtime_s, row.train_loss, row.eval_loss) == (20, None, None, None)


def test_a_log_that_just_stops_says_how_far_it_shows_and_no_total() -> None:
    reading = read(SAMPLES / "killed.log")
    row = reading.row
    assert (row.status, row.steps, row.samples_seen, row.steps_per_s) == (None, None, None, None)
    assert (row.planned_steps, row.micro_batch) == (102, 4)
    (flag,) = [flag for flag in row.flags if flag["code"] == "log_incomplete"]
    assert "20 of 102" in flag["message"]


@pytest.mark.parametrize("form", ["crlf", "utf-16", "powershell", "colours", "marked"])
def test_the_form_of_the_text_does_not_matter(tmp_path: Path, form: str) -> None:
    text = (SAMPLES / "stopped.log").read_bytes().decode()
    data = {
        "crlf": text.replace("\n", "\r\n").encode(),
        "utf-16": text.encode("utf-16"),
        "powershell": text.replace("\n", "\r\n").encode("utf-16"),
        "colours": text.replace("{'loss'", "\x1b[1;34m{'loss'\x1b[0m").encode(),
        "marked": b"\xef\xbb\xbf" + text.encode(),
    }[form]
    (tmp_path / "stopped.log").write_bytes(data)
    row = read(tmp_path / "stopped.log").row
    assert (row.steps, row.runtime_s, row.status) == (33, 4.399, "budget")


def test_two_trainings_in_one_log_are_two_rows(tmp_path: Path) -> None:
    both = (SAMPLES / "stopped.log").read_bytes() + (SAMPLES / "evaluations.log").read_bytes()
    (tmp_path / "both.log").write_bytes(both)
    readings = trainer_log.read(console.read(tmp_path / "both.log"))
    assert [(one.row.name, one.row.steps) for one in readings] == [("both:1", 33), ("both:2", 102)]
    assert all("several_runs" in codes(one) for one in readings)


def test_a_script_and_a_configuration_are_no_logs(tmp_path: Path) -> None:
    for text in (
        "args = TrainingArguments(\n    per_device_train_batch_size=4,\n    learning_rate=1e-4,\n)\n",
        '{"per_device_train_batch_size": 4, "train_runtime": 3}',
        "per_device_train_batch_size=4\nexport per_device_train_batch_size\n",
    ):
        (tmp_path / "text").write_text(text)
        assert not trainer_log.recognises(console.read(tmp_path / "text"))


@pytest.mark.parametrize(
    "name",
    [
        "stopped",
        "stopped_4.46",
        "stopped_4.38",
        "evaluations",
        "ddp_out_of_memory",
        "exception",
        "buffered",
        "cp1251",
        "fsdp2",
    ],
)
def test_a_damaged_log_says_nothing_untrue(tmp_path: Path, name: str) -> None:
    assert (
        untrue(SAMPLES / f"{name}.log", tmp_path, trainer_log.recognises, trainer_log.read, cases=60, rounding=2e-3)
        == []
    )


@needs_homework
@pytest.mark.parametrize("number", range(6))
def test_the_homeworks_logs_say_what_is_true(number: int) -> None:
    truth: dict[str, Any] = json.loads((HOMEWORK / "truth.json").read_text())[number]
    row = read(HOMEWORK / truth["log"]).row
    for theirs, ours in TRUTH.items():
        value, expected = getattr(row, ours), truth[theirs]
        if isinstance(expected, float):
            assert value == pytest.approx(expected, rel=1e-4), ours
        else:
            assert value == expected, ours
    assert row.peak_device_bytes is None  # the size of the model, which the log has, is no peak


@needs_homework
@pytest.mark.parametrize("name", ["Baseline_1_GPU", "DeepSpeed_1_v2", "DeepSpeed_3", "FSDP_full_shard_v4"])
def test_a_damaged_log_of_the_homework_says_nothing_untrue(tmp_path: Path, name: str) -> None:
    assert untrue(HOMEWORK / f"{name}.log", tmp_path, trainer_log.recognises, trainer_log.read, cases=25) == []
