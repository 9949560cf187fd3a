"""What the tables show to people and programs: the homework's columns, the compact ones, and what is not known."""

from __future__ import annotations

import csv
from typing import Any

import pytest

from lm_scale.report import Report, tables
from lm_scale.report.ingest import Reading
from lm_scale.report.relate import relate
from lm_scale.report.rows import Row
from lm_scale.report.select import select

GIB = 2**30


def report(*rows: dict[str, Any]) -> Report:
    readings = [Reading(Row(**{"source": "hf_trainer_log", "name": f"run{n}", **row})) for n, row in enumerate(rows)]
    return Report(readings, relate(readings), False, [])


def table(markdown: str) -> list[dict[str, str]]:
    """The rows of the first Markdown table, by its titles."""
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return [dict(zip((name.strip() for name in head), row, strict=True)) for row in rows]


ZERO1 = {
    **{"name": "DeepSpeed_1", "engine": "deepspeed", "strategy": "zero1", "zero_stage": 1, "offload": "none"},
    **{"world_size": 2, "precision": "bf16", "micro_batch": 16, "grad_accum": 4, "global_batch": 128, "steps": 877},
    **{"runtime_s": 1801.2, "steps_per_s": 0.4869, "samples_per_s": 62.32, "samples_seen": 112256},
    **{"eval_loss": 4.82744, "device": "NVIDIA A100"},
}
FSDP = {
    **{"name": "FSDP_4", "engine": "torch", "strategy": "fsdp_full_shard", "offload": "optimizer_cpu+param_cpu"},
    **{"world_size": 2, "samples_per_s": 31.07, "peak_device_bytes": 60 * GIB},
}


def test_the_homework_layout_has_its_columns() -> None:
    first, second = table(tables.to_markdown(report(ZERO1, FSDP), layout="homework"))
    assert first == {
        **{"run": "DeepSpeed_1", "devices": "2 x NVIDIA A100", "world size": "2", "mode": "DeepSpeed ZeRO-1"},
        **{"precision": "bf16", "per-device batch": "16", "accumulation": "4", "effective batch": "128"},
        **{"it/s": "0.4869", "samples/s": "62.32", "samples seen": "112,256", "steps": "877", "runtime s": "1801.2"},
        **{"eval loss": "4.8274", "memory": "-", "flags": ""},
    }
    assert (second["devices"], second["mode"], second["memory"]) == ("2", "FSDP full_shard, cpu offload", "60.0 GiB")


def test_the_homework_layout_keeps_every_column_in_a_narrow_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "dumb")
    cards = {"device": None}  # with a device's name no 120 columns are enough
    tables.print_terminal(report({**ZERO1, **cards}, {**FSDP, **cards}), layout="homework")
    head, *lines = capsys.readouterr().out.splitlines()
    heads = "run dev ws mode prec b/dev acc eff it/s smp/s seen steps s eval mem flags"
    assert " ".join(head.split()) == heads
    notes = next(number for number, line in enumerate(lines) if line.startswith("at this width dev: devices, ws: "))
    assert max(map(len, [head, *lines[:notes]])) <= 120
    shown = " ".join(" ".join(lines[:notes]).split())
    for whole in ("0.4869", "62.32", "112,256", "1801.2", "4.8274", "60.0 GiB"):
        assert whole in shown


def test_the_homework_layout_gives_programs_the_row_keys_behind_its_columns(
    command: Any, make_run: Any, steps: Any
) -> None:
    done = command(make_run("zero0", steps(12)), "--layout", "homework", "--format", "csv")
    (row,) = csv.DictReader(done.stdout.splitlines())
    assert (row["global_batch"], row["steps"], row["samples_seen"], row["runtime_s"]) == ("16", "12", "192", "12.0")
    assert "tokens_per_s" not in row


def test_logs_that_do_not_know_their_tokens_are_shown_by_samples() -> None:
    text = tables.to_markdown(report(ZERO1, FSDP))
    first, second = table(text)
    assert (first["samples/s"], second["samples/s"]) == ("62.3", "31.1")
    assert second["r"] == "0.50"
    assert not any(title.startswith("tokens/s") for title in first)
    assert "\n- r: samples/s over those of DeepSpeed_1 " in text
    (unknown,) = (line for line in text.splitlines() if line.startswith("- known of no run: "))
    assert {"spread", "MFU", "train loss"} <= set(unknown.removeprefix("- known of no run: ").split(", "))


def test_the_compact_layout_shows_memory_as_allocated_reserved_and_share_of_the_card() -> None:
    known = {"peak_device_bytes": 30 * GIB, "peak_reserved_bytes": 40 * GIB, "device_memory_bytes": 80 * GIB}
    rates = {"tokens_per_s": 1000.0, "tokens_per_s_per_rank": 500.0, "step_s": 2.0, "step_s_iqr": 0.1, "mfu": 0.414}
    (row,) = table(tables.to_markdown(report({**known, **rates, "strategy": "zero1"})))
    assert (row["device GiB"], row["reserved GiB"], row["of the card"]) == ("30.0", "40.0", "50%")
    assert (row["tokens/s a rank"], row["spread"], row["step ms"], row["MFU"]) == ("500", "5.0%", "2,000", "41%")


def test_a_merged_rows_spread_is_the_range_of_its_runs() -> None:
    same = {"strategy": "zero1", "tokens_per_s_per_rank": 1.0}
    of = report(*({**same, "tokens_per_s": rate} for rate in (90.0, 100.0, 110.0)), {**same, "status": "oom"})
    text = tables.to_markdown(select(of, merged=True))
    (row,) = table(text)
    assert (row["runs"], row["spread"]) == ("3 (+1 failed)", "20%")
    assert "highest minus lowest rate over their median" in text


@pytest.mark.parametrize("start", ["=", "+", "-", "@"])
def test_a_text_that_a_spreadsheet_would_execute_is_guarded_in_csv(start: str) -> None:
    row = Row(name=f"{start}cmd()", source="csv", delta_loss=-0.25)
    written = next(csv.DictReader(tables.to_csv([row]).splitlines()))
    assert (written["name"], written["delta_loss"]) == (f"'{start}cmd()", "-0.25")


def test_groups_stand_under_one_another_in_the_terminal(capsys: Any) -> None:
    rows = [{"owner": owner, "strategy": "zero1", "tokens_per_s": 10.0**power} for owner, power in (("a", 1), ("b", 6))]
    tables.print_terminal(select(report(*rows), group_by="owner"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "owner: a (baseline run0)"
    heads = [line for line in lines if line.startswith("run ")]
    assert len(heads) == 2
    assert heads[0] == heads[1]
