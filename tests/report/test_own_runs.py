"""What a run directory becomes: every number of a row, against values worked out by hand."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from lm_scale.report import read
from lm_scale.report.rows import Row


def row_of(path: Any) -> Row:
    (row,) = read([path]).rows
    return row


def test_throughput_is_tokens_over_seconds_of_the_steps_after_warm_up(make_run: Any, one_step: Any) -> None:
    # 12 steps: warm-up is max(12 // 10, 2) = 2. The other ten take 1, 1, 1, 1, 2, 2, 2, 2, 3, 5 s: 20 s in all.
    times = [9.0, 9.0, 1.0, 1.0, 1.0, 1.0, 2.0, 2.0, 2.0, 2.0, 3.0, 5.0]
    clock = [sum(times[: n + 1]) + 1 for n in range(12)]  # 1 s of evaluation on the way: 39 s
    run = make_run("zero0", [one_step(n + 1, step_s=times[n], elapsed_s=clock[n]) for n in range(12)])
    row = row_of(run)
    assert row.tokens_per_s == pytest.approx(10 * 1024 / 20)
    assert row.useful_tokens_per_s == pytest.approx(10 * 1000 / 20)
    assert row.tokens_per_s_per_rank == pytest.approx(256)
    assert row.step_s == 2.0  # of 1 1 1 1 2 2 2 2 3 5
    assert row.step_s_iqr == pytest.approx(1.0)  # quartiles at positions 2.25 and 6.75: 1 and 2
    assert row.runtime_s == pytest.approx(39)
    assert row.steps == 12
    assert row.steps_per_s == pytest.approx(12 / 39)
    assert row.samples_per_s == pytest.approx(12 * 16 / 39)
    assert row.samples_seen == 192
    assert row.tokens_seen == 12288
    assert row.model_flops_per_s == pytest.approx(512 * 30e6)
    assert row.mfu == pytest.approx(512 * 30e6 / (1e11 * 2))


@pytest.mark.parametrize(("completed", "left_out"), [(5, 2), (29, 2), (30, 3), (99, 9), (100, 10), (300, 10)])
def test_warm_up_is_a_tenth_between_2_and_10_steps(make_run: Any, one_step: Any, completed: int, left_out: int) -> None:
    times = [50.0] * left_out + [0.5] * (completed - left_out)
    run = make_run("zero0", [one_step(n + 1, step_s=time) for n, time in enumerate(times)])
    assert row_of(run).tokens_per_s == pytest.approx(2048)


def test_a_run_of_at_most_2_measured_steps_has_no_rates_but_keeps_what_it_did(make_run: Any, steps: Any) -> None:
    row = row_of(make_run("zero0", steps(4)))  # 2 of warm-up, 2 measured
    assert (row.tokens_per_s, row.step_s, row.step_s_iqr, row.mfu, row.tokens_per_s_per_rank) == (None,) * 5
    assert row.steps == 4
    assert row.samples_per_s == pytest.approx(16)
    assert [flag["code"] for flag in row.flags] == ["too_few_steps"]
    assert row_of(make_run("zero1", steps(5))).tokens_per_s == pytest.approx(1024)


def test_steps_that_compiled_are_left_out_of_the_rates_alone(make_run: Any, one_step: Any) -> None:
    slow = {1: 30.0, 2: 1.0, 6: 60.0}
    run = make_run("zero0", [one_step(n, step_s=slow.get(n, 2.0), compiled=n in (1, 6)) for n in range(1, 11)])
    row = row_of(run)
    assert row.tokens_per_s == pytest.approx(512)
    assert row.step_s == 2.0
    assert row.steps == 10


def test_a_skipped_step_is_no_step_but_its_time_was_spent(make_run: Any, one_step: Any) -> None:
    # Steps 1 and 2 are the warm-up; of the six measured attempts of 1 s two were skipped by loss scaling.
    run = make_run("zero0", [one_step(n, skipped=n in (4, 5), step_s=1.0, loss=float(n)) for n in range(1, 9)])
    row = row_of(run)
    assert (row.steps, row.skipped_steps) == (6, 2)
    assert row.tokens_per_s == pytest.approx(4 * 1024 / 6)
    assert row.samples_seen == 6 * 16
    assert row.steps_per_s == pytest.approx(6 / 8)


def test_train_loss_is_the_mean_of_the_last_tenth_weighted_by_labels(make_run: Any, one_step: Any) -> None:
    # 20 steps: the last two count, with 100 and 300 labels.
    losses = {19: (4.0, 100), 20: (2.0, 300)}
    written = []
    for number in range(1, 21):
        loss, labels = losses.get(number, (9.0, 1000))
        written.append(one_step(number, loss=loss, useful_tokens=labels, grad_norm=number / 10))
    row = row_of(make_run("zero0", written))
    assert row.train_loss == pytest.approx((4 * 100 + 2 * 300) / 400)
    assert row.grad_norm == pytest.approx(2.0)


def test_eval_loss_is_of_the_final_evaluation_only(make_run: Any, steps: Any) -> None:
    early = {"kind": "eval", "step": 6, "loss": 6.5, "bits_per_byte": 2.5, "final": False}
    final = {"kind": "eval", "step": 12, "loss": 5.5, "bits_per_byte": 2.1, "final": True}
    row = row_of(make_run("zero0", steps(12), others=[early, final]))
    assert (row.eval_loss, row.eval_bits_per_byte) == (5.5, 2.1)
    assert row_of(make_run("zero1", steps(12), others=[early])).eval_loss is None


def test_peaks_are_maxima_over_all_steps_and_unknown_ones_stay_unknown(make_run: Any, one_step: Any) -> None:
    run = make_run("zero0", [one_step(n, peak_host_bytes=peak) for n, peak in enumerate([5, 9, 7], 1)])
    row = row_of(run)
    assert row.peak_host_bytes == 9
    assert row.peak_device_bytes is None
    assert row.peak_reserved_bytes is None


def test_a_crashed_run_is_a_row_with_its_error(make_run: Any, steps: Any) -> None:
    error = {"kind": "event", "event": "error", "rank": 1, "message": "RuntimeError: boom"}
    dead = {"host": __import__("socket").gethostname(), "boot_id": "another boot", "pid": 1}
    row = row_of(make_run("zero0", steps(6), others=[error], status="running", finished_at=None, process=dead))
    assert (row.status, row.last_error, row.steps) == ("crashed", "RuntimeError: boom", 6)
    assert row.finished_at is None
    assert row.tokens_per_s == pytest.approx(1024)


def test_a_line_that_a_kill_cut_off_is_left_out(make_run: Any, steps: Any) -> None:
    run = make_run("zero0", steps(6))
    with open(run / "metrics.jsonl", "ab") as file:
        file.write(b'{"kind": "step", "step": 7, "tok')
    assert row_of(run).steps == 6


def test_a_loss_that_is_not_a_number_is_unknown_and_flagged(make_run: Any, one_step: Any) -> None:
    run = make_run("zero0", [one_step(n, loss=math.nan if n > 3 else 8.0) for n in range(1, 6)], status="diverged")
    row = row_of(run)
    assert row.train_loss is None
    assert ("loss_not_finite", "the loss was nan at step 4") in [(f["code"], f["message"]) for f in row.flags]


def test_a_shared_device_and_a_resumed_run_are_flagged(make_run: Any, steps: Any) -> None:
    shared = {"kind": "event", "event": "device_shared", "rank": 0, "message": "process 77 holds 3 GiB of cuda:0"}
    row = row_of(make_run("zero0", steps(12), others=[shared], resumed_from="older", resumed_step=5))
    assert {f["code"]: f["message"] for f in row.flags} == {
        "device_shared": "process 77 holds 3 GiB of cuda:0",
        "resumed": "resumed from its checkpoint of step 5",
    }


def test_a_peak_that_the_run_exceeded_is_not_believed(make_run: Any, steps: Any) -> None:
    # 1024 tokens/s x 30e6 FLOPs on 2 ranks with a peak of 1e10 each: MFU 1.536.
    row = row_of(make_run("zero0", steps(12), hardware={"device_peak_flops_per_s": 1e10}))
    assert row.mfu == pytest.approx(1.536)
    assert [flag["code"] for flag in row.flags] == ["mfu_above_1"]


def test_a_run_that_never_began_knows_nothing_but_its_status(make_run: Any) -> None:
    path = make_run("zero0", [], status="rejected", last_error="zero0.json: gradient_cliping: unknown key")
    (path / "run.json").write_text(json.dumps({"schema": 1, "name": "zero0", "status": "rejected"}))
    row = row_of(path)
    assert (row.status, row.steps, row.runtime_s, row.tokens_per_s, row.micro_batch) == (
        "rejected",
        0,
        None,
        None,
        None,
    )


@pytest.mark.parametrize(
    ("section", "value", "said"),
    [
        ("batch", {"seq_len": "long"}, "seq_len: 'long' is no int"),
        ("model", "mini", "run.json: model: 'mini' is no object"),
        ("started_at", "yesterday", "Invalid isoformat string: 'yesterday'"),
    ],
)
def test_a_header_that_is_not_what_the_schema_says_is_named_and_left_out(
    make_run: Any, steps: Any, section: str, value: Any, said: str
) -> None:
    good = make_run("zero0", steps(6))
    bad = make_run("zero1", steps(6))
    damaged = json.loads((bad / "run.json").read_text())
    damaged[section] = value
    (bad / "run.json").write_text(json.dumps(damaged))
    report = read([good.parent])
    assert [row.name for row in report.rows] == ["zero0"]
    assert report.problems == [f"{bad}: {said}"]
