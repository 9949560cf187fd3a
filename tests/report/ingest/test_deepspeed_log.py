"""What bare DeepSpeed prints becomes rows that can be believed: logs of real runs (`samples/deepspeed_log`)."""

from __future__ import annotations

import datetime
import itertools
import re
import statistics
from pathlib import Path

import pytest
from damaged_logs import untrue

from lm_scale.report.ingest import Reading, console, deepspeed_log
from lm_scale.report.rows import Row

SAMPLES = Path(__file__).parents[1] / "samples" / "deepspeed_log"
LOGS = sorted(SAMPLES.glob("*.log"))


def reading(path: Path) -> Reading:
    return deepspeed_log.read(console.read(path))[-1]


def row(name: str) -> Row:
    return reading(SAMPLES / f"{name}.log").row


def codes(of: Row) -> set[str]:
    return {flag["code"] for flag in of.flags}


def edited(tmp_path: Path, name: str, *changes: tuple[str, str]) -> Row:
    """The row of a sample with lines changed."""
    text = (SAMPLES / f"{name}.log").read_text()
    for pattern, replacement in changes:
        text, count = re.subn(pattern, replacement, text, flags=re.MULTILINE)
        assert count, pattern
    path = tmp_path / f"{name}.log"
    path.write_text(text)
    return reading(path).row


def stamps(name: str) -> list[datetime.datetime]:
    """When each step was printed, read here in another way than by the reader."""
    lines = [line for line in (SAMPLES / f"{name}.log").read_text().splitlines() if re.search(r"\] step=[1-9]", line)]
    return [datetime.datetime.strptime(line[1:24], "%Y-%m-%d %H:%M:%S,%f") for line in lines]


def test_the_configuration_is_what_the_engine_resolved() -> None:
    stated = row("zero2_breakdown")
    assert (stated.engine, stated.strategy, stated.zero_stage, stated.offload) == ("deepspeed", "zero2", 2, "none")
    assert (stated.world_size, stated.nodes, stated.data_parallel) == (2, 1, 2)
    assert (stated.pipeline_stages, stated.tensor_parallel) == (1, 1)
    assert (stated.micro_batch, stated.grad_accum, stated.global_batch) == (4, 2, 16)
    assert (stated.precision, stated.optimizer, stated.learning_rate) == ("fp32", "AdamW", 0.001)


def test_offload_and_bf16_are_told() -> None:
    stated = row("zero3_offload")
    assert (stated.strategy, stated.offload) == ("zero3", "optimizer_cpu+param_cpu")
    assert (stated.precision, stated.master_weights) == ("bf16", True)


def test_parameters_are_not_offloaded_below_stage_3(tmp_path: Path) -> None:
    assert edited(tmp_path, "zero3_offload", (r"\.\.\. stage=3 ", "... stage=2 ")).offload == "optimizer_cpu"


def test_a_scheduler_with_its_own_peak_sets_the_learning_rate() -> None:
    assert (row("zero1").learning_rate, row("zero1").lr_schedule) == (0.002, "WarmupLR")


def test_stages_of_a_pipeline_are_no_data_parallel_ranks() -> None:
    stated = row("pipeline")
    assert (stated.world_size, stated.pipeline_stages, stated.data_parallel, stated.tensor_parallel) == (2, 2, 1, 1)
    assert (stated.global_batch, stated.params) == (16, 4 * (64 * 64 + 64))


def test_steps_and_samples_of_a_log_that_prints_each_step() -> None:
    done = row("zero1")
    assert (done.status, done.steps, done.skipped_steps, done.samples_seen) == ("completed", 24, 0, 24 * 8)


def test_between_the_printed_steps_nobody_knows_the_last_one(tmp_path: Path) -> None:
    assert row("pipeline").steps is None
    assert "log_incomplete" in codes(row("pipeline"))
    assert row("zero2_breakdown").steps == 12  # the breakdown is printed at each step


def test_steps_that_loss_scaling_skipped_are_no_steps(tmp_path: Path) -> None:
    skipping = edited(tmp_path, "zero1", (r"skipped=0, lr=\[0\.00(2|17)", r"skipped=3, lr=[0.00\1"))
    assert (skipping.steps, skipping.skipped_steps, skipping.samples_seen) == (21, 3, 21 * 8)


def test_rates_are_by_the_clock_and_not_deepspeeds_own() -> None:
    times = stamps("zero1")
    assert len(times) == 24
    warm = times[2 - 1 :]  # 10 % of 24, and at least 2
    spent = (warm[-1] - warm[0]).total_seconds()
    measured = row("zero1")
    assert measured.samples_per_s == pytest.approx(8 * (len(warm) - 1) / spent)
    seconds = [(b - a).total_seconds() for a, b in itertools.pairwise(warm)]
    assert measured.step_s == pytest.approx(statistics.median(seconds))
    claimed = float(re.findall(r"RunningAvgSamplesPerSec=([\d.]+)", (SAMPLES / "zero1.log").read_text())[-1])
    assert claimed > 1.5 * measured.samples_per_s  # each step waited 20 ms outside DeepSpeed's timer
    assert {"rates_of_part", "rate_contradicts_runtime"} <= codes(measured)
    assert measured.runtime_s is None  # nothing says when training began


def test_the_spread_of_averages_is_not_the_steps() -> None:
    assert row("zero2_breakdown").step_s is not None
    assert row("zero2_breakdown").step_s_iqr is None
    assert row("zero1").step_s_iqr is not None


def test_the_pipelines_losses_are_in_the_series() -> None:
    text = (SAMPLES / "pipeline.log").read_text()
    losses = [float(loss) for loss in re.findall(r"^steps: \d+ loss: ([\d.]+)", text, re.MULTILINE)]
    steps = reading(SAMPLES / "pipeline.log").steps
    assert [step.loss for step in steps] == losses
    assert [step.step for step in steps] == [2, 4, 6, 8, 10, 12]


def test_a_ranks_exception_is_the_rows_error() -> None:
    crashed = row("exception")
    assert (crashed.status, crashed.steps) == ("crashed", 5)
    assert crashed.last_error == "RuntimeError: the data of rank 1 ran out"


def test_a_killed_rank_is_a_crash_though_the_launcher_stops_the_others() -> None:
    killed = row("kill")
    assert (killed.status, killed.steps) == ("crashed", 7)
    assert "-9" in (killed.last_error or "")


def test_memory_of_a_process_is_no_devices() -> None:
    assert row("zero1").peak_device_bytes is None
    assert "peak_uncertain" in codes(row("zero1"))


def test_the_peak_is_in_gib_and_rank_0s(tmp_path: Path) -> None:
    """The accelerator's line as DeepSpeed 0.10 prints it."""
    gpu = edited(
        tmp_path,
        "zero1",
        (
            r"^(.* \[launch\.py:\d+:main\] dist_world_size=2)$",
            r"\1\n[INFO] Setting ds_accelerator to cuda (auto detect)",
        ),
        (r"(global_step=9,.*)MaxMemAllocated=[\d.]+GB", r"\1MaxMemAllocated=38.49GB"),
    )
    assert gpu.peak_device_bytes == round(38.49 * 2**30)
    assert "peak_uncertain" in codes(gpu)


def test_a_log_that_stops_has_no_totals_and_says_where(tmp_path: Path) -> None:
    text = (SAMPLES / "zero1.log").read_text()
    path = tmp_path / "cut.log"
    path.write_text(text[: text.index("step=13,")])
    cut = reading(path)
    assert [cut.row.status, cut.row.steps, cut.row.step_s, cut.row.samples_per_s] == [None] * 4
    (flag,) = [flag for flag in cut.row.flags if flag["code"] == "log_incomplete"]
    assert "step 12 is the last one shown" in flag["message"]
    assert cut.steps[-1].step == 12


def test_steps_from_a_checkpoint_on_have_no_totals(tmp_path: Path) -> None:
    """The engine counts on where the timer begins again."""
    resumed = edited(tmp_path, "zero1", (r"\[Rank 0\] step=(\d+),", r"[Rank 0] step=1\1,"))
    assert (resumed.steps, resumed.samples_per_s) == (None, None)


def test_the_last_of_several_runs_is_the_row(tmp_path: Path) -> None:
    path = tmp_path / "two.log"
    path.write_text((SAMPLES / "zero1.log").read_text() + (SAMPLES / "kill.log").read_text())
    last = reading(path).row
    assert (last.steps, last.status) == (7, "crashed")
    assert "several_runs" in codes(last)


def test_two_engines_in_one_process_are_not_mixed(tmp_path: Path) -> None:
    """As in reinforcement learning: an actor and a critic, each with its batch, print in turn."""
    text = (SAMPLES / "zero1.log").read_text()
    dump = "\n".join(line for line in text.splitlines() if ":print]" in line).replace(
        "train_batch_size ............. 8", "train_batch_size ............. 64"
    )
    start = text.index("[Rank 0] step=1,")
    head = text.rindex("\n", 0, start)
    path = tmp_path / "two_engines.log"
    path.write_text(f"{text[:head]}\n{dump}{text[head:]}")
    both = reading(path).row
    assert (both.global_batch, both.samples_seen) == (None, None)
    assert "source_disagrees" in codes(both)


@pytest.mark.parametrize(
    "line",
    [
        # DeepSpeed 0.7 (2022), 0.10 (2023), 0.12 (2023), from public logs.
        "[2022-08-29 06:58:56,176] [INFO] [timer.py:198:stop] 0/20, RunningAvgSamplesPerSec=232.7340551694273, "
        "CurrSamplesPerSec=227.48090316379353, MemAllocated=0.36GB, MaxMemAllocated=15.06GB",
        "[2023-08-02 00:41:17,935] [INFO] [logging.py:96:log_dist] [Rank 0] step=10, skipped=10, lr=[0.0001], "
        "mom=[(0.9, 0.999)]",
        "[2023-11-07 01:55:23,714] [INFO] [timer.py:260:stop] epoch=0/micro_step=40/global_step=10, "
        "RunningAvgSamplesPerSec=25.025771473496132, CurrSamplesPerSec=25.704280480541442, MemAllocated=4.32GB, "
        "MaxMemAllocated=38.49GB",
    ],
)
def test_lines_of_older_versions_are_known(tmp_path: Path, line: str) -> None:
    path = tmp_path / "old.log"
    path.write_text(f"{line}\n")
    assert deepspeed_log.recognises(console.read(path))


def test_a_trainers_log_is_left_to_its_reader(tmp_path: Path) -> None:
    path = tmp_path / "trainer.log"
    path.write_text((SAMPLES / "zero1.log").read_text() + "{'loss': 2.5, 'grad_norm': 1.0, 'epoch': 0.1}\n")
    assert not deepspeed_log.recognises(console.read(path))


@pytest.mark.parametrize("log", LOGS, ids=lambda log: log.stem)
def test_a_damaged_log_says_nothing_untrue(log: Path, tmp_path: Path) -> None:
    assert not untrue(log, tmp_path, deepspeed_log.recognises, deepspeed_log.read)
