"""The eight shipped strategies, run once each by `compare` on two CPU ranks: what their records hold."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from launches import CONFIGS, STRATEGIES, has_libaio
from transformers import AutoModelForCausalLM, AutoTokenizer

from lm_scale import report
from lm_scale.records import Run

needs_libaio = pytest.mark.skipif(not has_libaio(), reason="NVMe offload needs libaio-dev")
each = pytest.mark.parametrize(
    "name", [pytest.param(n, marks=needs_libaio) if n == "zero3_nvme" else n for n in STRATEGIES]
)


def series(run: Run, key: str) -> list[float]:
    return [step[key] for step in run.of("step")]


@each
def test_it_completes_and_learns(strategies: dict[str, Run], name: str) -> None:
    run = strategies[name]
    losses = series(run, "loss")
    assert run.status == "completed"
    assert [step["step"] for step in run.of("step")] == list(range(1, 51))
    # A random model knows nothing: its loss is that of the uniform choice. Fifty steps take it well below.
    assert losses[0] == pytest.approx(math.log(run.header["model"]["vocab_size"]), abs=0.3)
    assert sum(losses[-5:]) / 5 < losses[0] - 1


@each
def test_every_step_has_the_loss_and_norm_of_zero0(strategies: dict[str, Run], name: str) -> None:
    """Where the pieces of a model lie must not move its numbers (fp32, 50 steps)."""
    assert series(strategies[name], "loss") == pytest.approx(series(strategies["zero0"], "loss"), rel=1e-5)
    assert series(strategies[name], "grad_norm") == pytest.approx(series(strategies["zero0"], "grad_norm"), rel=1e-5)


@each
def test_the_phases_make_up_the_step(strategies: dict[str, Run], name: str) -> None:
    for step in strategies[name].of("step"):
        phases = sum(step[f"{phase}_s"] for phase in ("data", "forward", "backward", "optimizer"))
        assert 0 < phases <= step["step_s"] * 1.001
        assert step["lag_s"] >= 0


@each
def test_tokens_and_samples_are_those_of_the_batch(strategies: dict[str, Run], name: str) -> None:
    run = strategies[name]
    assert run.header["batch"] == {"micro_batch": 2, "grad_accum": 2, "global_batch": 8, "seq_len": 64, "packing": True}
    assert {(step["samples"], step["tokens"], step["useful_tokens"]) for step in run.of("step")} == {(8, 512, 512)}


@each
def test_the_final_evaluation_is_recorded_and_equal(strategies: dict[str, Run], name: str) -> None:
    evals = strategies[name].of("eval")
    assert [evaluation["final"] for evaluation in evals] == [True]
    # Every token of the held-out text but the first is a label once.
    assert evals[0]["tokens"] == strategies[name].header["data"]["eval_tokens"] - 1
    assert evals[0]["loss"] == pytest.approx(strategies["zero0"].of("eval")[0]["loss"], rel=1e-5)
    assert 0 < evals[0]["bits_per_byte"] < evals[0]["loss"] / math.log(2)


@each
def test_the_weights_load_in_transformers_and_hold_the_evaluated_model(strategies: dict[str, Run], name: str) -> None:
    folder = strategies[name].path / "checkpoints" / "final"
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    reference = AutoModelForCausalLM.from_pretrained(strategies["zero0"].path / "checkpoints" / "final")
    assert sum(p.numel() for p in model.parameters()) == strategies[name].header["model"]["params"]
    ids = tokenizer("def main(argv):\n    return", return_tensors="pt")["input_ids"]
    assert tokenizer.decode(ids[0]) == "def main(argv):\n    return"
    difference = (model(ids).logits - reference(ids).logits).detach().abs().max()
    assert float(difference) < 1e-3


@each
def test_a_sample_is_in_the_record(strategies: dict[str, Run], name: str) -> None:
    (sample,) = strategies[name].of("sample")
    assert sample["prompt"]
    assert sample["text"]
    assert sample["text"] == strategies["zero0"].of("sample")[0]["text"]


@each
def test_the_executed_json_is_complete_and_is_what_the_file_says(strategies: dict[str, Run], name: str) -> None:
    executed = json.loads((strategies[name].path / "ds_config.json").read_text())
    shipped = json.loads((CONFIGS / f"{name}.json").read_text())
    assert "auto" not in json.dumps(executed)
    assert executed["zero_optimization"] == shipped["zero_optimization"]
    assert executed["optimizer"]["params"]["lr"] == 1e-3
    assert executed["train_batch_size"] == 8


@each
def test_the_log_holds_what_the_frameworks_said_of_both_ranks(strategies: dict[str, Run], name: str) -> None:
    # Not splitlines: a progress bar's carriage returns are no ends of lines.
    lines = (strategies[name].path / "log.txt").read_bytes().rstrip(b"\n").split(b"\n")
    assert all(line.startswith((b"[rank 0] ", b"[rank 1] ")) for line in lines)
    assert {line[:8] for line in lines} == {b"[rank 0]", b"[rank 1]"}


def test_partitioned_state_is_what_the_arithmetic_says(strategies: dict[str, Run]) -> None:
    """fp32, two ranks: 4 bytes a parameter each of weights, gradients and master weights, 8 of Adam's moments."""
    params = strategies["zero0"].header["model"]["params"]
    expected = {
        "zero0": {"parameters": 4, "master_weights": 0, "optimizer": 8, "gradients": 4},
        "zero1": {"parameters": 4, "master_weights": 2, "optimizer": 4},
        "zero2": {"parameters": 4, "master_weights": 2, "optimizer": 4},
        "zero3": {"parameters": 2, "master_weights": 2, "optimizer": 4, "gradients": 2},
    }
    for name, items in expected.items():
        for item, bytes_a_parameter in items.items():
            # A hundred bytes or so a tensor of padding and step counters.
            measured = strategies[name].header["state_bytes"][item]
            assert measured == pytest.approx(bytes_a_parameter * params, rel=0.01), (name, item)


def test_nothing_was_compiled_for_the_strategies_without_nvme(strategies: dict[str, Run]) -> None:
    for name, run in strategies.items():
        if name != "zero3_nvme":
            log = (run.path / "log.txt").read_text()
            assert "ninja" not in log
            assert "Building extension" not in log
            assert "Loading extension module" not in log


def test_the_table_has_a_row_a_strategy(strategies: dict[str, Run]) -> None:
    folder = strategies["zero0"].path.parent
    table = report.load([folder])
    assert list(table["strategy"]) == list(strategies)
    assert set(table["status"]) == {"completed"}
    assert (table["tokens_per_s"] > 0).all()
    assert table["peak_device_bytes"].isna().all()
    assert dict(zip(table["name"], table["zero_stage"], strict=True))["zero3_offload"] == 3
    assert dict(zip(table["name"], table["offload"], strict=True))["zero3_offload"] == "optimizer_cpu+param_cpu"
    for file in ("table.md", "table.csv", "table.json"):
        assert (folder / file).stat().st_size > 0
    printed = (folder / "stdout.txt").read_text()
    assert all(name in printed for name in strategies)


def test_the_run_directory_names_no_other_place(strategies: dict[str, Run], tmp_path: Path) -> None:
    """Copied elsewhere, a run still gives its row."""
    import shutil

    moved = tmp_path / "moved"
    shutil.copytree(strategies["zero1"].path, moved)
    before, after = report.load([strategies["zero1"].path]), report.load([moved])
    assert list(after["tokens_per_s"]) == list(before["tokens_per_s"])
    assert list(after["eval_loss"]) == list(before["eval_loss"])
