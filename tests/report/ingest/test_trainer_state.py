"""Output folders of Hugging Face's Trainer, against what the training loop was seen to do (samples/trainer_state)."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from lm_scale.report.ingest import Reading, UnreadableError, trainer_state

SAMPLES = Path(__file__).parents[1] / "samples" / "trainer_state"
KINDS = ("stopped", "stopped_old", "early", "epochs", "resumed", "ddp", "zero1")


def read(path: Path) -> Reading:
    assert trainer_state.recognises(path)
    (reading,) = trainer_state.read(path)
    return reading


def codes(reading: Reading) -> dict[str, str]:
    return {flag["code"]: flag["message"] for flag in reading.row.flags}


def results(kind: str) -> dict[str, Any]:
    return json.loads((SAMPLES / kind / "all_results.json").read_text())  # type: ignore[no-any-return]


@pytest.fixture
def copy(tmp_path: Path) -> Any:
    """A copy of a sample that a test may change."""
    return lambda kind: Path(shutil.copytree(SAMPLES / kind, tmp_path / kind))


def edit(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file; one that becomes None is removed."""
    values = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))


@pytest.mark.parametrize("kind", KINDS)
def test_steps_samples_and_loss_are_those_that_were_counted(kind: str) -> None:
    counted = json.loads((SAMPLES / kind / "counted.json").read_text())
    row = read(SAMPLES / kind).row
    assert row.name == kind
    assert row.source == "hf_trainer_state"
    assert row.steps == counted["steps"]
    if kind == "resumed":  # the script counted the second training alone, steps 9 to 12
        assert row.samples_seen == counted["samples"] + 8 * 4
    else:
        assert row.samples_seen == counted["samples"]
    assert row.eval_loss == pytest.approx(counted["eval_loss"], rel=1e-6)
    assert row.params == counted["parameters"]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "resumed"])
def test_rates_count_what_was_completed_in_the_runtime(kind: str) -> None:
    counted = json.loads((SAMPLES / kind / "counted.json").read_text())
    row = read(SAMPLES / kind).row
    runtime_s = results(kind)["train_runtime"]
    assert row.runtime_s == runtime_s
    assert row.steps_per_s == pytest.approx(counted["steps"] / runtime_s)
    assert row.samples_per_s == pytest.approx(counted["samples"] / runtime_s)


def test_rates_of_planned_work_are_flagged_where_trainer_gives_them() -> None:
    # transformers 4.57: 5 epochs of 64 samples over the runtime, of which 28 samples were done
    assert results("stopped_old")["train_samples_per_second"] * results("stopped_old")["train_runtime"] > 300
    assert "7 of 80 steps" in codes(read(SAMPLES / "stopped_old"))["planned_not_completed"]
    assert "planned_not_completed" not in codes(read(SAMPLES / "stopped"))


def test_fsdp2_is_told_by_its_configuration_and_not_taken_for_ddp() -> None:
    row = read(SAMPLES / "fsdp2").row
    assert (row.engine, row.strategy, row.world_size, row.steps) == ("torch", "fsdp_full_shard", 2, 26)
    assert row.samples_seen == 51 * 4 * 2  # 403 samples on two ranks, filled up to 51 batches of 4 on each


def test_the_settings_stand_in_the_row() -> None:
    row = read(SAMPLES / "zero1").row
    assert (row.engine, row.strategy, row.zero_stage, row.offload) == ("deepspeed", "zero1", 1, "none")
    assert (row.world_size, row.data_parallel, row.micro_batch, row.grad_accum, row.global_batch) == (2, 2, 2, 2, 8)
    assert (row.precision, row.seed, row.learning_rate, row.lr_schedule) == ("bf16", 7, 1e-3, "cosine")
    assert (row.optimizer, row.device, row.model) == ("adamw_torch_fused", "cpu", "llama")
    assert (row.torch_compile, row.activation_checkpointing) == (False, False)


def test_one_process_and_two_without_deepspeed_are_single_and_ddp() -> None:
    single, ddp = read(SAMPLES / "epochs").row, read(SAMPLES / "ddp").row
    assert (single.engine, single.strategy, single.zero_stage, single.world_size) == ("torch", "single", None, 1)
    assert (ddp.engine, ddp.strategy, ddp.zero_stage, ddp.world_size) == ("torch", "ddp", None, 2)


def test_a_run_that_did_all_its_steps_is_completed_and_one_that_was_stopped_is_not() -> None:
    assert read(SAMPLES / "ddp").row.status == "completed"
    stopped = read(SAMPLES / "stopped").row
    assert (stopped.status, stopped.steps, stopped.planned_steps) == (None, 7, 80)


def test_evaluation_on_the_way_is_out_of_step_time() -> None:
    history = json.loads((SAMPLES / "ddp" / "trainer_state.json").read_text())["log_history"]
    seconds = sum(entry["eval_runtime"] for entry in history if "eval_runtime" in entry)
    reading = read(SAMPLES / "ddp")
    assert reading.row.step_s == pytest.approx((results("ddp")["train_runtime"] - seconds) / 12)
    assert "evaluation_in_runtime" in codes(reading)


def test_tokens_are_those_that_trainer_tracked() -> None:
    row = read(SAMPLES / "stopped").row
    assert row.tokens_seen == 28 * 16
    assert row.tokens_per_s == pytest.approx(28 * 16 / 7 / (row.step_s or 0))


def test_the_runtime_of_a_resumed_run_is_not_the_whole_one() -> None:
    reading = read(SAMPLES / "resumed")
    assert reading.row.runtime_s is None
    assert reading.row.train_loss is None
    assert reading.row.steps_per_s == pytest.approx(4 / results("resumed")["train_runtime"], rel=1e-3)
    assert "last 4 of 12" in codes(reading)["resumed"]


def test_the_loaded_best_model_is_the_one_that_was_evaluated_last() -> None:
    reading = read(SAMPLES / "early")
    history = json.loads((SAMPLES / "early" / "trainer_state.json").read_text())["log_history"]
    on_the_way = [entry["eval_loss"] for entry in history if "eval_loss" in entry]
    assert [one.loss for one in reading.evals] == [*on_the_way, reading.row.eval_loss]
    assert [one.final for one in reading.evals] == [False, False, True]
    assert reading.row.eval_loss == on_the_way[0]  # the first was the best


def test_the_series_are_the_logged_points() -> None:
    reading = read(SAMPLES / "ddp")
    assert [point.step for point in reading.steps] == [2, 4, 6, 8, 10, 12]
    assert [one.step for one in reading.evals] == [4, 8, 12]
    assert all(point.loss and point.learning_rate and point.grad_norm for point in reading.steps)


def test_a_checkpoint_alone_does_not_show_the_end(copy: Any) -> None:
    folder = copy("stopped")
    for file in folder.glob("*.json"):
        file.unlink()
    reading = read(folder)
    row = reading.row
    totals = (row.steps, row.runtime_s, row.samples_seen, row.train_loss, row.grad_norm, row.eval_loss, row.step_s)
    assert totals == (None,) * 7
    assert codes(reading)["log_incomplete"] == "checkpoint-4/trainer_state.json stops at step 4 of 80"
    assert [point.step for point in reading.steps] == [2, 4]
    assert (row.planned_steps, row.global_batch, row.params) == (80, 4, 4656)


def test_a_checkpoint_of_a_training_that_stopped_there_shows_its_steps() -> None:
    reading = read(SAMPLES / "early" / "checkpoint-6")  # early stopping was decided before it was saved
    assert (reading.row.steps, reading.row.samples_seen, reading.row.runtime_s) == (6, 24, None)
    assert "log_incomplete" not in codes(reading)


def test_metrics_of_another_training_are_not_this_ones(copy: Any) -> None:
    folder = copy("stopped")
    (folder / "trainer_state.json").unlink()  # the checkpoint at step 4 is left, the metrics are those of step 7
    row = read(folder).row
    assert (row.steps, row.runtime_s, row.train_loss, row.eval_loss) == (None, None, None, None)


def test_metrics_alone_give_runtime_and_losses(copy: Any) -> None:
    folder = copy("stopped")
    shutil.rmtree(folder / "checkpoint-4")
    (folder / "trainer_state.json").unlink()
    row = read(folder).row
    assert row.runtime_s == results("stopped")["train_runtime"]
    assert row.train_loss == results("stopped")["train_loss"]
    assert (row.steps, row.samples_seen) == (None, None)


def test_a_train_runtime_in_a_log_entry_is_no_end_of_training(copy: Any) -> None:
    folder = copy("stopped")
    for file in folder.glob("*_results.json"):
        file.unlink()
    state = json.loads((folder / "trainer_state.json").read_text())
    history = [entry for entry in state["log_history"] if "train_loss" not in entry]
    assert "train_runtime" in history[-1]
    edit(folder / "trainer_state.json", log_history=history, stateful_callbacks=None)
    reading = read(folder)
    assert (reading.row.steps, reading.row.runtime_s) == (None, None)
    assert "log_incomplete" in codes(reading)


def test_the_model_card_alone_gives_the_batch(copy: Any) -> None:
    folder = copy("ddp")
    (folder / "training_args.bin").unlink()
    row = read(folder).row
    assert (row.world_size, row.micro_batch, row.grad_accum, row.global_batch) == (2, 2, 2, 8)
    assert (row.learning_rate, row.seed, row.optimizer) == (1e-3, 7, "adamw_torch_fused")
    assert row.engine is None  # a card says "multi-GPU" of DDP, FSDP and DeepSpeed alike


def test_what_the_card_leaves_out_is_one_only_where_the_total_shows_it(copy: Any) -> None:
    folder = copy("epochs")
    (folder / "training_args.bin").unlink()
    assert read(folder).row.world_size == 1  # 2 x 2 = total 4
    card = (folder / "README.md").read_text()
    (folder / "README.md").write_text(card.replace("- total_train_batch_size: 4\n", ""))
    row = read(folder).row
    assert (row.world_size, row.global_batch, row.samples_seen) == (None, None, None)


def test_contradicting_settings_are_not_known(copy: Any) -> None:
    folder = copy("ddp")
    edit(folder / "trainer_state.json", train_batch_size=8)
    reading = read(folder)
    assert reading.row.micro_batch is None
    assert "micro_batch: 8 in trainer_state.json, 2 in training_args.bin" in codes(reading)["source_disagrees"]


def test_rates_higher_than_the_learning_rate_say_that_another_schedule_ran(copy: Any) -> None:
    folder = copy("ddp")
    state = json.loads((folder / "trainer_state.json").read_text())
    state["log_history"][0]["learning_rate"] = 7e-3
    edit(folder / "trainer_state.json", log_history=state["log_history"])
    row = read(folder).row
    assert (row.learning_rate, row.lr_schedule) == (None, None)


def test_a_checkpoint_beyond_the_state_is_of_another_run(copy: Any) -> None:
    folder = copy("stopped")
    (folder / "checkpoint-4").rename(folder / "checkpoint-40")
    reading = read(folder)
    assert reading.row.steps == 7
    assert "checkpoint-40" in codes(reading)["several_runs"]


def test_a_loss_that_is_no_number_is_flagged(copy: Any) -> None:
    folder = copy("ddp")
    state = json.loads((folder / "trainer_state.json").read_text())
    state["log_history"][-3]["loss"] = float("nan")
    edit(folder / "trainer_state.json", log_history=state["log_history"])
    reading = read(folder)
    assert "step 12" in codes(reading)["loss_not_finite"]


@pytest.mark.parametrize("content", ["", "[]", '{"log_history": [', "\x00\x01", '{"a": 1, "a": 2}'])
def test_a_damaged_state_is_one_line_that_names_the_file(copy: Any, content: str) -> None:
    folder = copy("ddp")
    (folder / "trainer_state.json").write_text(content)
    with pytest.raises(UnreadableError) as problem:
        trainer_state.read(folder)
    assert str(folder / "trainer_state.json") in str(problem.value)
    assert "\n" not in str(problem.value)


def test_a_folder_without_a_training_is_not_one(tmp_path: Path) -> None:
    assert not trainer_state.recognises(tmp_path)
    (tmp_path / "all_results.json").write_text('{"accuracy": 0.5}')
    with pytest.raises(UnreadableError):
        trainer_state.read(tmp_path)


MEASURED = (
    "steps",
    "runtime_s",
    "samples_seen",
    "tokens_seen",
    "train_loss",
    "eval_loss",
    "steps_per_s",
    "samples_per_s",
)
"""Keys that stay true when something is lost, up to the digits that Trainer keeps."""

STATED = (
    *("micro_batch", "grad_accum", "global_batch", "world_size", "precision", "strategy", "engine", "zero_stage"),
    *("seed", "learning_rate", "optimizer", "planned_steps", "grad_norm", "data_parallel", "params"),
)


def false_values(folder: Path, truth: dict[str, Any]) -> dict[str, Any]:
    """What the row of a damaged folder says that is neither true nor null."""
    try:
        row = read(folder).row
    except UnreadableError as problem:
        return {} if "\n" not in str(problem) else {"problem": str(problem)}
    said = {key: getattr(row, key) for key in (*MEASURED, *STATED) if getattr(row, key) is not None}
    return {key: value for key, value in said.items() if not same(value, truth[key])}


def same(value: Any, true: Any) -> bool:
    return bool(value == (pytest.approx(true, rel=1e-3) if isinstance(true, float) else true))


@pytest.mark.parametrize("kind", ["stopped_old", "epochs", "zero1"])
def test_what_is_left_of_damaged_files_is_true(copy: Any, kind: str) -> None:
    row = read(SAMPLES / kind).row
    truth = {key: getattr(row, key) for key in (*MEASURED, *STATED)}
    folder, chance = copy(kind), random.Random(kind)
    files = [file for file in folder.iterdir() if file.name != "counted.json"]
    for _ in range(250):
        file = chance.choice(files)
        data = file.read_bytes()
        if file.suffix == ".bin" or chance.random() < 0.5:
            cut = chance.randrange(len(data))
            file.write_bytes(data[:cut])
            what = f"{file.name} cut at {cut}"
        else:
            lines = data.splitlines(keepends=True)
            dropped = set(chance.sample(range(len(lines)), max(len(lines) // 10, 1)))
            file.write_bytes(b"".join(line for number, line in enumerate(lines) if number not in dropped))
            what = f"{file.name} without lines {sorted(dropped)}"
        assert not false_values(folder, truth), what
        file.write_bytes(data)


@pytest.mark.parametrize("kind", ["stopped_old", "epochs", "resumed"])
def test_a_state_without_one_of_its_keys_says_less_and_nothing_else(copy: Any, kind: str) -> None:
    row = read(SAMPLES / kind).row
    truth = {key: getattr(row, key) for key in (*MEASURED, *STATED)}
    folder = copy(kind)
    for name in ("trainer_state.json", "all_results.json", "config.json"):
        text = (folder / name).read_text()
        for key in json.loads(text):
            edit(folder / name, **{key: None})
            assert not false_values(folder, truth), f"{name} without {key}"
            edit(folder / name, **{key: "?"})
            assert not false_values(folder, truth), f"{name} with {key} = ?"
            (folder / name).write_text(text)
