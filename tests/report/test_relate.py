"""Rows beside one another: speedup, efficiency, loss difference, and what makes a comparison unlike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lm_scale.arguments import UserError
from lm_scale.report import read
from lm_scale.report.ingest import Reading
from lm_scale.report.rates import Eval, Step
from lm_scale.report.relate import relate
from lm_scale.report.rows import Row


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


def log(name: str, *, steps: Any = (), evals: Any = (), **values: Any) -> Reading:
    """What a foreign log says of a run."""
    return Reading(Row(name=name, source="hf_trainer_log", **values), list(steps), list(evals))


def test_runs_trained_on_unequal_amounts_of_text_are_flagged_where_their_losses_could_be_compared(
    make_run: Any, one_step: Any
) -> None:
    final = {"kind": "eval", "loss": 6.0, "final": True}
    runs = [
        make_run(
            *("zero0", [one_step(n) for n in range(1, 13)]),
            **{"others": [{**final, "step": 12}], "started_at": at(1), "finished_at": at(20), "created_at": at(0)},
        ),
        make_run(
            *("zero1", [one_step(n) for n in range(1, 7)]),
            **{"others": [{**final, "step": 6}], "started_at": at(21), "finished_at": at(40), "created_at": at(21)},
        ),
    ]
    long, short = read(runs).rows
    assert long.flags == []
    assert short.flags == [
        {"code": "differs_tokens", "message": "tokens_seen 6144, the baseline zero0 has 12288"}  # 1024 a step
    ]


def test_logs_without_a_sequence_length_are_compared_by_samples() -> None:
    logs = [log("a", samples_per_s=20.0, world_size=1), log("b", samples_per_s=30.0, world_size=2)]
    assert relate(logs).name == "a"
    assert (logs[1].row.speedup, logs[1].row.efficiency) == (1.5, 0.75)


@pytest.mark.parametrize("seq_len", [None, 1024])
def test_samples_of_another_or_an_unknown_length_are_no_measure_of_speed(seq_len: int | None) -> None:
    logs = [log("a", samples_per_s=20.0, seq_len=512), log("b", samples_per_s=30.0, seq_len=seq_len)]
    relate(logs)
    assert logs[1].row.speedup is None


def test_losses_at_equal_steps_tokens_and_time() -> None:
    """a: 100 steps of 2 s and 1000 tokens, loss 10 - step / 20. b: twice the tokens and time a step, half the loss."""
    a = [Step(n, elapsed_s=2.0 * n, tokens=1000, loss=10 - n / 20) for n in range(1, 101)]
    b = [Step(n, elapsed_s=4.0 * n, tokens=2000, loss=5 - n / 20) for n in range(1, 81)]
    logs = [log("a", steps=a), log("b", steps=b)]
    relate(logs)
    row = logs[1].row
    # Both did step 80: the mean over steps 73 to 80 is that at 76.5, where b is 5 lower.
    assert row.delta_loss_equal_steps == pytest.approx(-5)
    # a ends at 100,000 tokens and 200 s, where b is at step 50: a's steps 91 to 100 against b's 46 to 50.
    assert row.delta_loss_equal_tokens == pytest.approx((5 - 48 / 20) - (10 - 95.5 / 20))
    assert row.delta_loss_equal_time == pytest.approx((5 - 48 / 20) - (10 - 95.5 / 20))
    assert row.delta_loss is None


def test_evaluations_at_the_compared_step_win_over_training_losses() -> None:
    steps = [Step(n, loss=4.0) for n in range(1, 21)]
    logs = [
        log("a", steps=steps, evals=[Eval(10, 3.0), Eval(20, 2.5, final=True)]),
        log("b", steps=steps[:10], evals=[Eval(10, 3.25, final=True)]),
    ]
    relate(logs)
    assert logs[1].row.delta_loss_equal_steps == 0.25


def test_loss_lines_every_tenth_step_know_their_tokens_by_the_batch_and_nothing_of_the_time() -> None:
    batch = {"global_batch": 8, "seq_len": 100}
    sparse = [Step(n, loss=5 - n / 100) for n in range(10, 201, 10)]
    dense = [Step(n, loss=5 - n / 100) for n in range(1, 201)]
    logs = [log("a", steps=sparse, **batch), log("b", steps=dense, **{**batch, "seq_len": 200})]
    relate(logs)
    row = logs[1].row
    # Equal steps: b's 181 to 200 against a's 190 and 200. Equal tokens: b's 91 to 100 against these.
    assert row.delta_loss_equal_steps == pytest.approx((5 - 1.905) - (5 - 1.95))
    assert row.delta_loss_equal_tokens == pytest.approx((5 - 0.955) - (5 - 1.95))
    assert row.delta_loss_equal_time is None


def test_a_diverged_run_has_no_loss_difference() -> None:
    steps = [Step(n, loss=float("nan") if n > 8 else 4.0) for n in range(1, 11)]
    logs = [log("a", steps=[Step(n, loss=4.0) for n in range(1, 11)]), log("b", steps=steps)]
    relate(logs)
    assert logs[1].row.delta_loss_equal_steps is None


def test_logs_of_one_folder_whose_times_overlap_may_have_shared_a_host() -> None:
    logs = [
        log("a", path="/x/a.log", started_at="2025-01-01T17:35:00", finished_at="2025-01-01T18:06:00"),
        log("b", path="/x/b.log", started_at="2025-01-01T17:41:00", finished_at="2025-01-01T18:12:00"),
        log("c", path="/x/c.log", started_at="2025-01-01T18:16:00", finished_at="2025-01-01T18:47:00"),
        log("d", path="/y/d.log", started_at="2025-01-01T17:41:00", finished_at="2025-01-01T18:12:00"),
    ]
    relate(logs)
    assert [codes(one.row) for one in logs] == [["overlapping_run"], ["overlapping_run"], [], []]
    said = logs[1].row.flags[0]["message"]
    assert said == "ran at the same time as a; neither log names its host: they may have shared it"


def test_runs_of_one_name_are_told_apart_by_their_owners() -> None:
    logs = [
        log("zero1", owner="anna", path="/class/anna/zero1.log", tokens_per_s=1.0),
        log("zero1", owner="boris", path="/class/boris/zero1.log", tokens_per_s=2.0),
        log("zero2", owner="boris", path="/class/boris/zero2.log"),
    ]
    assert relate(logs, "boris/zero1") is logs[1].row
    assert [one.row.name for one in logs] == ["anna/zero1", "boris/zero1", "zero2"]
    assert relate(logs, "boris/zero2") is logs[2].row


def test_rows_of_one_name_in_one_file_are_numbered() -> None:
    logs = [log("zero1", path="table.csv"), log("zero1", path="table.csv")]
    relate(logs)
    assert [one.row.name for one in logs] == ["zero1", "zero1 #2"]


HOMEWORK = Path(__file__).parents[3] / "shared" / "homework"


@pytest.mark.skipif(not HOMEWORK.is_dir(), reason="the homework's logs are not beside this checkout")
def test_the_homeworks_overlapping_logs_are_flagged_and_no_others() -> None:
    truth = {one["run_id"]: one for one in json.loads((HOMEWORK / "truth.json").read_text())}
    for row in read(sorted(HOMEWORK.glob("*.log"))).rows:
        beside = set(truth[row.name]["concurrent_runs_same_host"]) & truth.keys()
        said = [flag["message"] for flag in row.flags if flag["code"] == "overlapping_run"]
        assert [other for other in truth if any(f" {other};" in message for message in said)] == sorted(beside)
