"""Megatron's iteration lines become rows; the samples' numbers are formulas (`samples/megatron_log`)."""

from __future__ import annotations

import re
import statistics
from pathlib import Path

import pytest
from damaged_logs import untrue

from lm_scale.report.ingest import Reading, console, megatron_log
from lm_scale.report.rows import Row

SAMPLES = Path(__file__).parents[1] / "samples" / "megatron_log"
LOGS = sorted(SAMPLES.glob("*.log"))


def reading(path: Path) -> Reading:
    return megatron_log.read(console.read(path))[-1]


def row(name: str) -> Row:
    return reading(SAMPLES / f"{name}.log").row


def codes(of: Row) -> set[str]:
    return {flag["code"] for flag in of.flags}


def edited(tmp_path: Path, name: str, *changes: tuple[str, str]) -> Row:
    text = (SAMPLES / f"{name}.log").read_text()
    for pattern, replacement in changes:
        text, count = re.subn(pattern, replacement, text, flags=re.MULTILINE)
        assert count, pattern
    path = tmp_path / f"{name}.log"
    path.write_text(text)
    return reading(path).row


def iteration_s(iteration: int) -> float:
    """What an iteration of the samples took."""
    return (3.0 if iteration <= 3 else 0.5) + 0.01 * (iteration % 7)


def test_arguments_become_the_configuration() -> None:
    stated = row("megatron_lm")
    assert (stated.world_size, stated.data_parallel, stated.tensor_parallel, stated.pipeline_stages) == (4, 2, 2, 1)
    assert (stated.micro_batch, stated.grad_accum, stated.global_batch, stated.seq_len) == (4, 2, 16, 512)
    assert (stated.precision, stated.activation_checkpointing, stated.seed) == ("fp16", True, 1234)
    assert (stated.optimizer, stated.learning_rate, stated.lr_schedule) == ("adam", 1e-4, "cosine")
    assert (stated.engine, stated.strategy) == ("torch", "megatron_dp2_tp2_pp1")


def test_skipped_iterations_are_no_steps() -> None:
    done = row("megatron_lm")
    assert (done.status, done.planned_steps, done.steps, done.skipped_steps) == ("completed", 100, 98, 2)
    assert (done.samples_seen, done.tokens_seen) == (98 * 16, 98 * 16 * 512)


def test_the_runtime_is_the_sum_of_the_iterations() -> None:
    done = row("megatron_lm")
    spent = sum(map(iteration_s, range(1, 101)))
    assert done.runtime_s == pytest.approx(spent, rel=1e-4)
    assert done.samples_per_s == pytest.approx(98 * 16 / spent, rel=1e-4)


def test_step_time_and_tokens_leave_out_intervals_with_warm_up() -> None:
    """9 completed iterations of 98 are warm-up: 11, since 2 were skipped. So 2 intervals of 10 go."""
    done = row("megatron_lm")
    means = [statistics.fmean(map(iteration_s, range(last - 9, last + 1))) for last in range(30, 101, 10)]
    assert done.step_s == pytest.approx(statistics.median(means), rel=1e-3)
    assert done.tokens_per_s == pytest.approx(16 * 512 / statistics.fmean(means), rel=1e-3)
    assert done.tokens_per_s_per_rank == pytest.approx(done.tokens_per_s / 4)
    assert done.step_s_iqr is None  # of averages


def test_one_line_an_iteration_gives_the_spread_of_the_steps() -> None:
    times = [round(iteration_s(one), 2) for one in range(4, 31)]  # the first 3 of 30 are warm-up
    lower, _, upper = statistics.quantiles(times, n=4, method="inclusive")
    done = row("megatron_deepspeed")
    assert (done.step_s, done.step_s_iqr) == (pytest.approx(statistics.median(times)), pytest.approx(upper - lower))


def test_the_loss_is_the_mean_of_the_last_tenth() -> None:
    assert row("megatron_lm").train_loss == pytest.approx(statistics.fmean(4 + 6 / one for one in range(91, 101)))
    assert row("megatron_deepspeed").train_loss == pytest.approx(statistics.fmean(4 + 6 / one for one in (28, 29, 30)))


def test_seconds_are_no_milliseconds() -> None:
    assert row("megatron_deepspeed").runtime_s == pytest.approx(sum(map(iteration_s, range(1, 31))), rel=1e-3)


def test_a_growing_batch_is_no_batch_but_its_samples_count() -> None:
    growing = row("megatron_deepspeed")
    assert (growing.global_batch, growing.samples_seen) == (None, 10 * 16 + 20 * 32)


def test_neox_names_its_arguments_otherwise() -> None:
    neox = row("gpt_neox")
    assert (neox.engine, neox.micro_batch, neox.grad_accum, neox.global_batch) == ("deepspeed", 4, 2, 32)
    assert (neox.precision, neox.steps, neox.samples_seen, neox.tokens_seen) == ("bf16", 50, 1600, 1600 * 2048)


def test_only_the_validation_after_training_is_the_eval_loss() -> None:
    assert row("megatron_lm").eval_loss == 4.75
    assert row("megatron_deepspeed").eval_loss == 4.3125
    assert row("gpt_neox").eval_loss == 4.25
    evals = reading(SAMPLES / "megatron_lm.log").evals
    assert [(one.step, one.final) for one in evals] == [(50, False), (100, False), (100, True)]


def test_the_peak_is_of_all_model_parallel_ranks_and_in_mib(tmp_path: Path) -> None:
    peak = row("megatron_lm")
    assert peak.peak_device_bytes == int(2464.3408203125 * 2**20)
    assert peak.peak_reserved_bytes == 2576 * 2**20
    assert "peak_uncertain" in codes(peak)
    assert edited(tmp_path, "megatron_lm", (r"^\[Rank 0\] \(after.*\n", "")).peak_device_bytes is None


def test_parameters_of_one_rank_are_not_the_models(tmp_path: Path) -> None:
    assert row("megatron_lm").params is None
    single = edited(
        tmp_path,
        "megatron_lm",
        (r"(world size: |world_size \.+ )4", r"\g<1>1"),
        (r"(data-parallel size: |data_parallel_size \.+ )2", r"\g<1>1"),
        (r"(?<!-)(tensor-model-parallel size: |tensor_model_parallel_size \.+ )2", r"\g<1>1"),
    )
    assert single.params == 62160000


def test_flops_that_the_log_claims_are_not_taken() -> None:
    assert [row(log.stem).model_flops_per_s for log in LOGS] == [None] * 3


def test_a_log_that_stops_has_no_totals_and_says_where(tmp_path: Path) -> None:
    text = (SAMPLES / "megatron_lm.log").read_text()
    path = tmp_path / "cut.log"
    path.write_text(text[: text.index("iteration       70/")])
    cut = reading(path)
    assert [cut.row.steps, cut.row.runtime_s, cut.row.step_s, cut.row.train_loss, cut.row.eval_loss] == [None] * 5
    assert "the log stops at step 60 of 100" in [flag["message"] for flag in cut.row.flags]
    assert cut.steps[-1].step == 60


def test_a_run_that_went_on_from_a_checkpoint_counts_its_own_steps(tmp_path: Path) -> None:
    resumed = edited(
        tmp_path,
        "megatron_lm",
        (r"^(\[before the start)", r"  successfully loaded checkpoint from ckpt [ t 1/2, p 1/1 ] at iteration 50\n\1"),
        (r"^.*iteration       [1-5]0/.*\n", ""),
    )
    assert (resumed.steps, resumed.samples_seen) == (50, 50 * 16)
    assert resumed.runtime_s == pytest.approx(sum(map(iteration_s, range(51, 101))), rel=1e-3)
    assert "resumed" in codes(resumed)


def test_a_run_that_leaves_at_its_interval_has_totals(tmp_path: Path) -> None:
    text = (SAMPLES / "megatron_lm.log").read_text()
    path = tmp_path / "left.log"
    end = text.index(" [", text.index("iteration       60/"))
    path.write_text(text[:end] + "[exiting program at iteration 60] datetime: 2025-04-13 23:50:00\n")
    left = reading(path).row
    assert (left.steps, left.planned_steps, left.status) == (58, 100, "budget")


def test_a_nan_loss_is_flagged(tmp_path: Path) -> None:
    diverged = edited(tmp_path, "megatron_lm", (r"(iteration      100/.*lm loss: )[\dE.+]+", r"\1nan"))
    assert diverged.train_loss is None
    assert "loss_not_finite" in codes(diverged)


def test_the_last_of_several_runs_is_the_row(tmp_path: Path) -> None:
    path = tmp_path / "two.log"
    path.write_text((SAMPLES / "megatron_lm.log").read_text() + (SAMPLES / "gpt_neox.log").read_text())
    last = reading(path).row
    assert (last.steps, last.global_batch) == (50, 32)
    assert "several_runs" in codes(last)


def test_deepspeeds_own_world_size_is_not_megatrons(tmp_path: Path) -> None:
    """Megatron-DeepSpeed prints both dumps; DeepSpeed counts data-parallel ranks alone."""
    dump = "[2024-01-01 00:00:00,000] [INFO] [config.py:967:print]   world_size ................... 2\n"
    dump += "[2024-01-01 00:00:00,000] [INFO] [config.py:967:print]   zero_optimization_stage ...... 1\n"
    both = edited(tmp_path, "megatron_lm", (r"^(\[before the start)", rf"{dump}\1"))
    assert (both.world_size, both.engine, both.zero_stage) == (4, "deepspeed", 1)
    assert "source_disagrees" not in codes(both)


@pytest.mark.parametrize(
    "line",
    [
        # Public logs: AMD's Primus (now/mean), srun's labels, ModelLink's misspelling.
        "[20251121 12:10:29][rank-31/32][INFO ] :  iteration    12125/   36000 | consumed samples:      3104000 |"
        " elapsed time per iteration (ms): 2701.3/2712.7 | global batch size:   256 | lm loss: 2.352391E+00 |",
        "[lrdn3321:3]: [2025-03-31 05:54:07] iteration       12125/  242204 | consumed samples:      3104000 |"
        " elapsed time per iteration (ms): 2701.3 | global batch size:   256 | lm loss: 2.352391E+00 |",
        " iteration  12125/50000 | consumed samples: 3104000 | consumed tokens:  11534336 | elapsed time per iteration"
        " (ms):  2701.3 | gloabl batch size:  256 | lm loss:  2.352391E+00 |",
    ],
)
def test_lines_of_other_versions_are_read(tmp_path: Path, line: str) -> None:
    path = tmp_path / "other.log"
    path.write_text(f"{line}\n")
    text = console.read(path)
    assert megatron_log.recognises(text)
    (point,) = megatron_log.read(text)[0].steps
    assert (point.step, point.step_s, point.samples, point.loss) == (12125, pytest.approx(2.7013), 256, 2.352391)


@pytest.mark.parametrize("log", LOGS, ids=lambda log: log.stem)
def test_a_damaged_log_says_nothing_untrue(log: Path, tmp_path: Path) -> None:
    assert not untrue(log, tmp_path, megatron_log.recognises, megatron_log.read)
