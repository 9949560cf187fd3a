"""Rows beside one another: speedup, efficiency, loss difference, and what makes a comparison unlike."""

from __future__ import annotations

from typing import Any

import pytest

from lm_scale.arguments import UserError
from lm_scale.report import read


def at(second: int) -> str:
    return f"2026-01-01T12:00:{second:02d}.000+00:00"


def codes(row: Any) -> list[str]:
    return [flag["code"] for flag in row.flags]


@pytest.fixture
def two(make_run: Any, one_step: Any) -> Any:
    """zero0 on 2 ranks at 1024 tokens/s, then zero1 on 4 ranks at 3072 tokens/s, one after the other."""

    def make(**changes: Any) -> Any:
        final = [{"kind": "eval", "step": 6, "loss": loss, "final": True} for loss in (6.0, 5.75)]
        slow = make_run(
            *("zero0", [one_step(n) for n in range(1, 7)]),
            others=final[:1], created_at=at(0), started_at=at(1), finished_at=at(20),
        )  # fmt: skip
        quick = make_run(
            *("zero1", [one_step(n, step_s=1 / 3) for n in range(1, 7)]),
            **{"others": final[1:], "created_at": at(20), "started_at": at(21), "finished_at": at(40)}
            | {"layout": {"world_size": 4}, **changes},
        )
        return slow, quick

    return make


def test_speedup_efficiency_and_loss_difference(two: Any) -> None:
    slow, quick = read(two()).rows
    assert (slow.speedup, slow.efficiency, slow.delta_loss) == (1, 1, 0)
    assert quick.speedup == pytest.approx(3)
    assert quick.efficiency == pytest.approx(1.5)  # three times the throughput from twice the ranks
    assert quick.delta_loss == pytest.approx(-0.25)
    assert slow.flags == quick.flags == []


def test_another_baseline_by_run_or_strategy(two: Any) -> None:
    slow, _ = read(two(), baseline="zero1").rows
    assert slow.speedup == pytest.approx(1 / 3)
    assert slow.efficiency == pytest.approx(2 / 3)


def test_a_baseline_that_nothing_is_called_names_what_there_is(two: Any) -> None:
    with pytest.raises(UserError, match="--baseline zero9: no such run; there are zero0, zero1"):
        read(two(), baseline="zero9")


def test_a_strategy_that_several_runs_have_is_no_baseline(make_run: Any, steps: Any) -> None:
    runs = [make_run(name, steps(6), strategy={"name": "zero2"}) for name in ("a", "b")]
    with pytest.raises(UserError, match="--baseline zero2: 2 runs have this strategy; name one of a, b"):
        read(runs, baseline="zero2")
    assert read(runs, baseline="b").baseline.name == "b"


def test_without_a_baseline_it_is_the_first_run_with_a_throughput(make_run: Any, steps: Any) -> None:
    rejected = make_run("zero0", [], status="rejected", created_at=at(0))
    worked = make_run("zero1", steps(6), created_at=at(9))
    report = read([rejected, worked])
    assert report.baseline.name == "zero1"
    assert report.rows[0].speedup is None


@pytest.mark.parametrize(
    ("code", "changes"),
    [
        ("differs_precision", {"numerics": {"precision": "bf16"}}),
        ("differs_reduction_precision", {"numerics": {"reduction_precision": "bf16"}}),
        ("differs_compile", {"numerics": {"torch_compile": True}}),
        ("differs_checkpointing", {"numerics": {"activation_checkpointing": True}}),
        ("differs_master_weights", {"numerics": {"master_weights": True}}),
        ("differs_loss", {"numerics": {"loss": "full"}}),
        ("differs_attention", {"numerics": {"attn_implementation": "eager"}}),
        ("differs_global_batch", {"batch": {"global_batch": 32}}),
        ("differs_packing", {"batch": {"packing": False}}),
        ("differs_seq_len", {"batch": {"seq_len": 128}}),
        ("differs_learning_rate", {"optimizer": {"learning_rate": 3e-4}}),
        ("differs_optimizer", {"optimizer": {"type": "Lamb"}}),
        ("differs_lr_schedule", {"schedule": {"type": "linear"}}),
        ("differs_planned_steps", {"schedule": {"planned_steps": 6}}),
        ("differs_model", {"model": {"name": "small"}}),
        ("differs_data", {"data": {"dataset": "wiki.txt"}}),
        ("differs_data", {"data": {"fingerprint": "other"}}),
        ("differs_tokenizer", {"data": {"tokenizer": "gpt2", "fingerprint": "other"}}),
        ("differs_seed", {"seed": 7}),
        ("differs_device", {"hardware": {"device": "NVIDIA H100 80GB HBM3"}}),
    ],
)
def test_an_unlike_run_is_shown_and_flagged(two: Any, code: str, changes: dict[str, Any]) -> None:
    slow, quick = read(two(**changes)).rows
    assert codes(quick) == [code]
    assert slow.flags == []
    assert quick.speedup is not None


def test_what_one_side_does_not_know_is_no_difference(two: Any) -> None:
    _, quick = read(two(seed=None, numerics={"precision": None}, data={"fingerprint": None})).rows
    assert quick.flags == []


def test_runs_at_the_same_time_on_the_same_host_are_flagged_both(two: Any) -> None:
    slow, quick = read(two(started_at=at(19))).rows
    assert codes(slow) == codes(quick) == ["overlapping_run"]
    assert quick.flags[0]["message"] == "ran on node-1 at the same time as zero0"


def test_runs_on_different_hosts_do_not_overlap(two: Any) -> None:
    slow, quick = read(two(started_at=at(5), process={"host": "node-2"})).rows
    assert slow.flags == quick.flags == []


def test_a_crashed_run_overlaps_up_to_its_last_record(make_run: Any, steps: Any) -> None:
    """Its records were written just now, long after the other run's end; without them its end is not known."""
    other = make_run("zero0", steps(6))
    gone = {"status": "crashed", "finished_at": None}
    before = make_run("zero1", steps(6), **gone, started_at="2026-01-01T11:00:00+00:00")
    after = make_run("zero2", [], **gone, started_at="2026-01-01T11:00:00+00:00")
    assert [codes(row) for row in read([other, before]).rows] == [["overlapping_run"], ["overlapping_run"]]
    assert "overlapping_run" not in codes(read([other, after]).rows[1])


def test_runs_of_one_name_are_told_apart_by_their_folders(make_run: Any, steps: Any, tmp_path: Any) -> None:
    make_run("zero1", steps(6), folder="runs/first", created_at=at(1))
    make_run("zero1", steps(6), folder="runs/second", created_at=at(2))
    make_run("zero2", steps(6), folder="runs/second", created_at=at(3))
    report = read([tmp_path / "runs"], baseline="second/zero1")
    assert [row.name for row in report.rows] == ["first/zero1", "second/zero1", "zero2"]
