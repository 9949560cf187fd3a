"""Numbers that contradict one another or that no run can have, each in a row as a CSV or a log would give it."""

from __future__ import annotations

from typing import Any

import pytest

from lm_scale.report.integrity import check
from lm_scale.report.rows import Row


def checked(**values: Any) -> Row:
    row = Row(**{"name": "zero1", "source": "csv", **values})
    check([row])
    return row


def codes(row: Row) -> list[str]:
    return [flag["code"] for flag in row.flags]


TRUE = {
    **{"steps": 691, "global_batch": 128, "samples_seen": 88448, "runtime_s": 1801.2486},
    **{"steps_per_s": 0.383623, "samples_per_s": 49.1037, "step_s": 2.6053, "planned_steps": 15157},
    **{"seq_len": 512, "tokens_seen": 45285376, "tokens_per_s": 25141.1, "world_size": 2, "mfu": 0.4},
    **{"engine": "deepspeed", "strategy": "zero3", "zero_stage": 3, "offload": "none", "precision": "bf16"},
    **{"params": 960_881_664, "optimizer": "adamw_torch", "peak_device_bytes": 36829 * 2**20},
}
"""A run that a log states truly; 45,285,376 tokens are 88,448 samples of 512."""


def test_a_true_row_has_no_flag() -> None:
    assert checked(**TRUE).flags == []


def test_a_row_that_knows_little_has_no_flag() -> None:
    assert checked(steps=10, samples_per_s=3.0, peak_device_bytes=5).flags == []


def test_samples_are_steps_times_batch() -> None:
    row = checked(**{**TRUE, "samples_seen": 88576, "samples_per_s": 49.17})
    assert row.flags == [
        {"code": "samples_contradict", "message": "88,576 samples, but 691 steps of 128 are 88,448"},
    ]


def test_the_incomplete_batch_at_the_end_of_an_epoch_is_no_contradiction() -> None:
    assert checked(steps=16, global_batch=64, samples_seen=1000).flags == []


def test_a_rate_of_planned_work_contradicts_the_runtime() -> None:
    """Trainer's own train_samples_per_second of that run: 1,077 over 1,801 s are 15,157 planned steps of 128."""
    row = checked(**{**TRUE, "samples_per_s": 1077.066})
    assert codes(row) == ["rate_contradicts_runtime"]
    assert "which is what was planned" in row.flags[0]["message"]
    assert row.samples_per_s == 1077.066


def test_tokens_a_second_that_the_runtime_cannot_hold_are_flagged() -> None:
    assert codes(checked(**{**TRUE, "tokens_per_s": 551_458.0})) == ["rate_contradicts_runtime"]


def test_a_rate_with_few_digits_is_no_contradiction() -> None:
    assert checked(steps=219, runtime_s=1804.7, steps_per_s=0.12).flags == []  # 0.1213


def test_seconds_a_step_under_the_name_of_steps_a_second_are_turned_round() -> None:
    row = checked(steps=691, runtime_s=1801.2486, steps_per_s=2.6)
    assert codes(row) == ["inverted_rate"]
    assert row.steps_per_s == pytest.approx(1 / 2.6)
    assert codes(checked(samples_per_s=49.1, global_batch=128, steps_per_s=2.61)) == ["inverted_rate"]


def test_a_rate_near_one_is_left_alone() -> None:
    row = checked(steps=1764, runtime_s=1800.46, steps_per_s=0.98)
    assert (row.flags, row.steps_per_s) == ([], 0.98)


def test_more_flops_than_the_device_can() -> None:
    row = checked(mfu=1.536, model_flops_per_s=3.072e10, world_size=2)
    assert row.flags == [{"code": "mfu_above_1", "message": "MFU 1.54 against a peak of 1e+10"}]


@pytest.mark.parametrize("peak", [1_921_763_328, 1_922_000_000, 3_843_526_656])
def test_a_models_size_is_no_peak(peak: int) -> None:
    row = checked(**{**TRUE, "peak_device_bytes": peak})  # 960,881,664 parameters of 2 and of 4 bytes
    assert (codes(row), row.peak_device_bytes) == (["model_size_not_peak"], None)


GIGA = {"params": 10**9, "optimizer": "AdamW", "offload": "none"}


@pytest.mark.parametrize(
    ("layout", "least"),
    [
        # bytes a parameter: weights + gradients + two states of Adam, of 2 bytes in bf16 and of 4 in fp32
        ({"engine": "torch", "strategy": "single", "world_size": 1, "precision": "bf16"}, 8 * 10**9),
        ({"engine": "torch", "strategy": "ddp", "world_size": 8, "precision": "fp32"}, 16 * 10**9),
        ({"engine": "deepspeed", "zero_stage": 1, "world_size": 4, "precision": "bf16"}, 3 * 10**9),
        ({"engine": "deepspeed", "zero_stage": 3, "world_size": 4, "precision": "bf16"}, 15 * 10**8),
        ({"engine": "torch", "strategy": "fsdp_full_shard", "world_size": 4, "precision": "fp32"}, 3 * 10**9),
    ],
)
def test_less_memory_than_weights_and_states_take_is_flagged(layout: dict[str, Any], least: int) -> None:
    assert codes(checked(**GIGA, **layout, peak_device_bytes=least - 1)) == ["memory_below_states"]
    assert checked(**GIGA, **layout, peak_device_bytes=least).flags == []


@pytest.mark.parametrize(
    "layout",
    [
        {"engine": "deepspeed", "zero_stage": 3, "world_size": 4, "offload": "param_cpu+optimizer_cpu"},
        {"engine": "deepspeed", "zero_stage": 3, "world_size": 4, "offload": None},
        {"engine": "torch", "strategy": "fsdp_full_shard", "offload": "none"},
        {"engine": "deepspeed", "zero_stage": 0, "world_size": 4, "offload": "none", "pipeline_stages": 4},
        {},
    ],
)
def test_where_the_layout_leaves_it_open_no_size_is_too_small(layout: dict[str, Any]) -> None:
    assert checked(params=10**9, optimizer="AdamW", precision="bf16", peak_device_bytes=10**6, **layout).flags == []


def test_a_measure_that_three_unlike_runs_share_was_hardly_measured() -> None:
    rows = [Row(name=f"zero{n}", source="csv", strategy=f"zero{n}", peak_device_bytes=7 * 2**30) for n in range(3)]
    check(rows)
    check(rows)
    assert [codes(row) for row in rows] == [["constant_measure"]] * 3
    assert rows[0].flags[0]["message"] == "peak_device_bytes 7516192768 as in zero1, zero2"


def test_runs_of_one_strategy_may_measure_the_same() -> None:
    rows = [Row(name=f"run{n}", source="csv", strategy="zero1", peak_device_bytes=7 * 2**30) for n in range(3)]
    check(rows)
    assert [row.flags for row in rows] == [[], [], []]
