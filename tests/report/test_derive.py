"""What follows from a row's known keys, against products and quotients worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest

from lm_scale.report.derive import derive
from lm_scale.report.rates import Step
from lm_scale.report.rows import Row

RUN: dict[str, Any] = {
    **{"world_size": 4, "pipeline_stages": 1, "tensor_parallel": 1, "micro_batch": 16, "grad_accum": 2},
    **{"steps": 50, "runtime_s": 200.0, "seq_len": 512},
}


def derived(steps: list[Step] | None = None, /, **values: Any) -> Row:
    row = Row(name="run", source="hf_trainer_log", **values)
    derive(row, steps or [])
    return row


def codes(row: Row) -> list[str]:
    return [flag["code"] for flag in row.flags]


def test_everything_follows_from_batch_steps_runtime_and_length() -> None:
    row = derived(**RUN)
    assert (row.data_parallel, row.global_batch) == (4, 128)
    assert (row.samples_seen, row.tokens_seen) == (6400, 3_276_800)
    assert (row.steps_per_s, row.samples_per_s, row.step_s) == (0.25, 32.0, 4.0)
    assert (row.tokens_per_s, row.tokens_per_s_per_rank) == (16_384.0, 4096.0)
    assert codes(row) == ["no_step_times"]


def test_a_second_call_changes_nothing() -> None:
    row, again = derived(**RUN), derived(**RUN)
    derive(again)
    assert row == again


def test_a_known_value_stays() -> None:
    row = derived(**RUN, global_batch=100, steps_per_s=0.5, step_s=3.0)
    assert (row.global_batch, row.samples_seen, row.steps_per_s, row.step_s) == (100, 5000, 0.5, 3.0)
    assert codes(row) == []


def test_nothing_follows_from_nothing() -> None:
    assert derived() == Row(name="run", source="hf_trainer_log")


@pytest.mark.parametrize("key", ["pipeline_stages", "tensor_parallel", "world_size", "micro_batch", "grad_accum"])
def test_without_one_of_its_factors_the_batch_is_not_known(key: str) -> None:
    row = derived(**{**RUN, key: None})
    assert (row.global_batch, row.samples_seen, row.samples_per_s, row.tokens_per_s) == (None,) * 4
    assert row.steps_per_s == 0.25


def test_model_parallel_ranks_share_a_batch() -> None:
    assert derived(**{**RUN, "pipeline_stages": 2}).global_batch == 64
    assert derived(**{**RUN, "pipeline_stages": 3}).data_parallel is None  # 4 ranks in 3 stages: one is wrong


def test_no_length_no_tokens() -> None:
    row = derived(**{**RUN, "seq_len": None})
    assert (row.tokens_seen, row.tokens_per_s, row.tokens_per_s_per_rank) == (None, None, None)
    assert row.samples_per_s == 32.0


def test_counted_tokens_need_no_length() -> None:
    row = derived(**{**RUN, "seq_len": None}, tokens_seen=1_000_000)
    assert row.tokens_per_s == 5000.0


def test_tokens_go_by_the_measured_step_where_there_is_one() -> None:
    row = derived(**RUN, step_s=2.0)  # half of the runtime was evaluation
    assert row.tokens_per_s == 128 * 512 / 2.0
    assert codes(row) == []


def test_tokens_come_from_the_steps_that_the_step_time_was_measured_on() -> None:
    # 12 steps, 2 of them warm-up: ten of 1 s and 3 s by turns, 20 s in all, median 2 s
    steps = [Step(n, step_s=9.0 if n < 3 else 1.0 if n % 2 else 3.0) for n in range(1, 13)]
    steps[-1].step_s = 5.0  # 22 s in all, median still 2 s
    row = derived(steps, **RUN, step_s=2.0)
    assert row.tokens_per_s == pytest.approx(10 * 128 * 512 / 22)


def test_too_few_measured_steps_are_not_replaced_by_the_runtime() -> None:
    row = Row(name="run", source="csv", **RUN)
    row.flag("too_few_steps", "")
    derive(row)
    assert (row.step_s, row.tokens_per_s) == (None, None)


def test_samples_that_are_not_steps_times_batch_are_not_multiplied() -> None:
    row = Row(name="run", source="hf_trainer_state", **RUN)
    row.flag("samples_contradict", "")
    derive(row)
    assert (row.samples_seen, row.samples_per_s, row.tokens_seen, row.tokens_per_s) == (None,) * 4
