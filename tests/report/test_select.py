"""What --filter, --sort, --group_by and --merge show of the same runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lm_scale.report import Report
from lm_scale.report.ingest import Reading
from lm_scale.report.rates import Step
from lm_scale.report.relate import relate
from lm_scale.report.rows import Row
from lm_scale.report.select import select


def report(*rows: dict[str, Any], baseline: str | None = None, steps: Any = ()) -> Report:
    readings = [Reading(Row(**{"source": "csv", "name": f"run{n}", **row}), list(steps)) for n, row in enumerate(rows)]
    return Report(readings, relate(readings, baseline), bool(baseline), [])


def names(of: Report, **arguments: Any) -> list[str]:
    return [row.name for row in select(of, **arguments).rows]


@pytest.fixture
def three() -> Report:
    return report(
        {"name": "a", "precision": "bf16", "tokens_per_s": 10.0, "torch_compile": True, "owner": "anna"},
        {"name": "b", "precision": "fp32", "tokens_per_s": 30.0, "torch_compile": False, "owner": "boris"},
        {"name": "c", "tokens_per_s": None, "owner": "boris"},
        {"name": "d", "precision": "bf16", "tokens_per_s": 20.0, "owner": "boris"},
    )


@pytest.mark.parametrize(
    ("filters", "left"),
    [
        (["precision=bf16"], ["a", "d"]),
        (["precision!=bf16"], ["b", "c"]),
        (["tokens_per_s>10"], ["b", "d"]),
        (["tokens_per_s>=10", "tokens_per_s<=20"], ["a", "d"]),
        (["tokens_per_s<1e9"], ["a", "b", "d"]),
        (["torch_compile=true"], ["a"]),
        (["precision=null"], ["c"]),
        (["precision != null", "owner=boris"], ["b", "d"]),
        (["flags=differs_precision"], ["b"]),
        (["flags!=differs_precision"], ["a", "c", "d"]),
        (["owner=nobody"], []),
    ],
)
def test_filters_keep_the_rows_that_fulfil_all_of_them(three: Report, filters: list[str], left: list[str]) -> None:
    assert names(three, filters=filters) == left


def test_a_filter_changes_no_number_of_the_rows_it_shows(three: Report) -> None:
    shown = select(three, filters=["name!=a"])
    assert [row.speedup for row in shown.rows] == [3, None, 2]
    assert shown.parts[0].baseline.name == "a"


def test_unknown_values_come_last_in_either_order(three: Report) -> None:
    assert names(three, sort="tokens_per_s") == ["a", "d", "b", "c"]
    assert names(three, sort="-tokens_per_s") == ["b", "d", "a", "c"]


def test_an_order_of_unlike_rows_says_that_it_is_no_ranking(three: Report) -> None:
    assert select(three, sort="name").notes == []
    (note,) = select(three, sort="-tokens_per_s").notes
    assert note.startswith("sorted by -tokens_per_s, which is no ranking: 1 of 4 rows")
    assert select(three, sort="-tokens_per_s", filters=["precision=bf16"]).notes == [
        "2 of 4 rows: the others do not pass --filter"
    ]


def test_each_group_has_its_own_baseline(three: Report) -> None:
    parts = select(three, group_by="owner").parts
    assert [(part.title, part.baseline.name) for part in parts] == [("owner: anna", "a"), ("owner: boris", "b")]
    assert [row.speedup for row in parts[1].rows] == [1, None, pytest.approx(2 / 3)]
    assert [flag["code"] for flag in parts[1].rows[2].flags] == ["differs_precision"]
    assert parts[1].rows[0].flags == []


def test_a_given_baseline_is_that_of_every_group() -> None:
    rows = [{"owner": "anna", "tokens_per_s": 10.0}, {"owner": "boris", "tokens_per_s": 30.0}]
    parts = select(report(*rows, baseline="run0"), group_by="owner").parts
    assert [part.rows[0].speedup for part in parts] == [1, 3]


SAME = {"strategy": "zero1", "precision": "bf16", "status": "completed"}


def test_runs_of_one_strategy_become_their_medians_and_ranges() -> None:
    together = report(
        {**SAME, "tokens_per_s": 100.0, "peak_device_bytes": 5, "seed": 1, "eval_loss": 3.0},
        {**SAME, "tokens_per_s": 110.0, "peak_device_bytes": 8, "seed": 2},
        {**SAME, "tokens_per_s": 150.0, "peak_device_bytes": 7, "seed": 3, "eval_loss": 4.0},
        {**SAME, "tokens_per_s": 1.0, "status": "crashed", "last_error": "boom"},
        {**SAME, "precision": "fp32", "tokens_per_s": 55.0},
    )
    merged, other = select(together, merged=True).rows
    assert (merged.runs, merged.failed_runs, merged.status, merged.last_error) == (3, 1, "completed", "boom")
    assert (merged.tokens_per_s, merged.tokens_per_s_spread) == (110, 50)
    assert (merged.eval_loss, merged.eval_loss_spread) == (3.5, 1)
    assert (merged.peak_device_bytes, merged.seed, merged.precision) == (7, None, "bf16")
    assert merged.speedup == 1
    assert (other.runs, other.tokens_per_s, other.speedup) == (1, 55, 0.5)
    assert [flag["code"] for flag in other.flags] == ["differs_precision"]


def test_runs_of_which_one_does_not_say_a_condition_are_not_merged() -> None:
    assert len(select(report(SAME, {**SAME, "precision": None}), merged=True).rows) == 2
    assert len(select(report({}, {}), merged=True).rows) == 2  # not even their strategy is known


def test_failed_runs_alone_are_counted_and_measure_nothing() -> None:
    rows = [{**SAME, "status": "oom", "tokens_per_s": 9.0}] * 2
    (row,) = select(report(*rows), merged=True).rows
    assert (row.runs, row.failed_runs, row.status, row.tokens_per_s) == (0, 2, "oom", None)


def test_flags_of_merged_runs_say_how_many_have_them() -> None:
    of = report(SAME, SAME, SAME)
    of.rows[1].flag("device_shared", "process 7")
    (row,) = select(of, merged=True).rows
    assert row.flags == [{"code": "device_shared", "message": "1 of 3 runs: run1: process 7"}]


def test_a_baseline_stands_for_the_row_that_it_was_merged_into() -> None:
    of = report({"strategy": "zero0", "tokens_per_s": 20.0}, *[{**SAME, "tokens_per_s": 10.0}] * 2, baseline="run2")
    assert [row.speedup for row in select(of, merged=True).rows] == [2, 1]


def test_losses_of_merged_runs_are_compared_by_their_median() -> None:
    def run(strategy: str, loss: float) -> Reading:
        steps = [Step(n, loss=loss) for n in range(1, 6)]
        return Reading(Row(name=f"{strategy} {loss}", source="csv", strategy=strategy), steps)

    readings = [run("zero0", 4.0), run("zero1", 3.0), run("zero1", 5.0), run("zero1", 3.5)]
    _, merged = select(Report(readings, relate(readings), False, []), merged=True).rows
    assert merged.delta_loss_equal_steps == pytest.approx(-0.5)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--sort", "tokens"], "--sort tokens: no such row key; "),
        (["--sort", "-step"], "--sort step: no such row key; did you mean steps? "),
        (["--group_by", "ownr"], "--group_by ownr: no such row key; did you mean owner? "),
        (["--group_by", "flags"], "--group_by flags: a row can have several; use --filter flags=CODE"),
        (["--filter", "speed=1"], "--filter speed: no such row key; "),
        (["--filter", "precision"], "--filter precision: no comparison; write KEY=VALUE"),
        (["--filter", "steps>many"], "--filter steps>many: 'many' is not a number, as steps is"),
        (["--filter", "packing=maybe"], "--filter packing=maybe: 'maybe' is not true or false, as packing is"),
        (["--filter", "packing>true"], "--filter packing>true: packing has no order; use = or !="),
        (["--layout", "wide"], "--layout: invalid choice: 'wide'"),
    ],
)
def test_a_mistake_is_one_line_before_any_run_is_read(command: Any, words: list[str], said: str) -> None:
    done = command("gone", *words)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith(f"error: {said}")


def test_the_options_work_together_on_the_command_line(command: Any, make_run: Any, one_step: Any) -> None:
    for name, second in (("zero0", 2.0), ("zero1", 1.0), ("zero2", 4.0)):
        path: Path = make_run(name, [one_step(n, step_s=second) for n in range(1, 13)])
    words = ("--sort", "-tokens_per_s", "--filter", "strategy!=zero2", "--baseline", "zero0")
    rows = json.loads(command(path.parent, *words, "--format", "json", "--columns", "name,speedup").stdout)
    assert rows == [{"name": "zero1", "speedup": 2.0}, {"name": "zero0", "speedup": 1.0}]
    out = command(path.parent, "--group_by", "strategy", "--format", "md").stdout
    assert "**strategy: zero1 (baseline zero1)**" in out
