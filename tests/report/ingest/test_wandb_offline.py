"""W&B's folders, from scripts and Trainers that really log to W&B offline, here and with the installed version."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from launches import CONFIGS, TINY, Launch

from lm_scale.report.ingest import Reading, UnreadableError, wandb_offline
from lm_scale.report.ingest import lm_scale as own_runs
from lm_scale.report.rates import Step

BARE = """
import os, signal, sys, wandb
run = wandb.init(project="p", name="bare", config={"lr": 0.1, "batch_size": 8, "seed": 3})
for step in range(10, 310, 10):
    run.log({"loss": 5 - step / 100, "step": step, "note": "x" * int(sys.argv[2])})
run.log({"val_loss": 1.5, "step": 300})
if sys.argv[1] == "kill":
    import time
    time.sleep(1)
    os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[1] == "raise":
    raise MemoryError("no room")
"""

TRAINER = """
import json, sys, torch, wandb
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments
data = [{"input_ids": x, "labels": x} for x in torch.randint(0, 64, (100, 16))]

class Stop(TrainerCallback):
    def __init__(self, kind): self.kind = kind
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 7:
            if self.kind == "raise": raise RuntimeError("boom")
            control.should_training_stop = self.kind == "stop"

truth = {}
for kind in ("whole", "stop", "raise"):
    arguments = TrainingArguments(
        output_dir="out", run_name=kind, per_device_train_batch_size=4, gradient_accumulation_steps=2, seed=7,
        num_train_epochs=1, logging_steps=3, eval_strategy="steps", eval_steps=5, save_strategy="no", report_to="wandb",
        use_cpu=True, learning_rate=1e-3, disable_tqdm=True)
    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=32, vocab_size=64, n_positions=16))
    trainer = Trainer(model, arguments, train_dataset=data, eval_dataset=data[:8], callbacks=[Stop(kind)])
    code = 0
    try:
        trainer.train()
        trainer.evaluate()
    except RuntimeError:
        code = 1
    wandb.finish(exit_code=code)
    truth[kind] = {"steps": trainer.state.global_step, "log": trainer.state.log_history,
                   "params": sum(p.numel() for p in model.parameters())}
json.dump(truth, open("truth.json", "w"))
"""


def run_script(text: str, folder: Path, *words: str) -> list[Path]:
    """Run a script that logs to W&B offline in `folder`; its runs' folders in the order of their start."""
    script = folder / "script.py"
    script.write_text(text, encoding="utf-8")
    environment = {**os.environ, "WANDB_MODE": "offline", "WANDB_SILENT": "true", "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, str(script), *words], cwd=folder, env=environment, capture_output=True, timeout=200)
    return sorted((folder / "wandb").glob("offline-run-*"))


def one(path: Path) -> Reading:
    (reading,) = wandb_offline.read(path)
    return reading


def codes(reading: Reading) -> set[str]:
    return {flag["code"] for flag in reading.row.flags}


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_script(BARE, tmp_path_factory.mktemp("bare"), "end", "0")[0]


@pytest.fixture(scope="module")
def trainers(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Reading], dict[str, Any], dict[str, Path]]:
    folder = tmp_path_factory.mktemp("trainer")
    folders = run_script(TRAINER, folder)
    readings = {one(path).row.name: one(path) for path in folders}
    truth = json.loads((folder / "truth.json").read_text(encoding="utf-8"))
    return readings, truth, {one(path).row.name: path for path in folders}


def ends(log: list[dict[str, Any]]) -> dict[str, Any]:
    return next(entry for entry in log if "train_loss" in entry)


def test_a_finished_trainer_run_has_trainers_own_numbers(trainers: Any) -> None:
    readings, truth, _ = trainers
    row, log = readings["whole"].row, truth["whole"]["log"]
    assert (row.status, row.steps, row.planned_steps) == ("completed", truth["whole"]["steps"], 13)  # 100 / 8, up
    assert (row.micro_batch, row.grad_accum, row.world_size, row.global_batch) == (4, 2, 1, 8)
    assert row.samples_seen == 100  # the thirteenth step has only half a batch left
    assert row.runtime_s == ends(log)["train_runtime"]
    assert row.train_loss == pytest.approx(ends(log)["train_loss"])
    assert row.eval_loss == pytest.approx(log[-1]["eval_loss"])
    assert (row.params, row.device, row.strategy) == (truth["whole"]["params"], "cpu", "single")
    assert {"train_loss_whole_run", "evaluation_in_runtime", "no_step_times"} <= codes(readings["whole"])
    assert "log_incomplete" not in codes(readings["whole"])


def test_the_points_of_a_trainer_run_are_those_that_it_logged(trainers: Any) -> None:
    readings, truth, _ = trainers
    logged = [entry for entry in truth["whole"]["log"] if "loss" in entry]
    assert [(point.step, point.loss) for point in readings["whole"].steps] == [(e["step"], e["loss"]) for e in logged]
    assert [point.step for point in readings["whole"].evals] == [5, 10, 13, 13]  # its own last one, and the script's
    assert [point.final for point in readings["whole"].evals] == [False, False, False, True]


def test_a_trainer_run_that_was_stopped_counts_what_it_did(trainers: Any) -> None:
    readings, truth, _ = trainers
    row = readings["stop"].row
    assert (row.steps, row.planned_steps, row.samples_seen, row.status) == (7, 13, 56, None)
    assert row.samples_per_s == pytest.approx(56 / ends(truth["stop"]["log"])["train_runtime"])


def test_a_trainer_run_that_failed_has_no_totals(trainers: Any) -> None:
    row = trainers[0]["raise"].row
    assert row.status == "crashed"
    assert (row.steps, row.runtime_s, row.train_loss, row.eval_loss, row.samples_seen) == (None,) * 5
    assert ("log_incomplete", "the records stop at step 6") in {(flag["code"], flag["message"]) for flag in row.flags}


def test_a_script_of_any_kind_gives_only_what_is_unambiguous(bare: Path) -> None:
    reading = one(bare)
    row = reading.row
    assert (row.name, row.status, row.learning_rate, row.seed, row.source) == (
        "bare",
        "completed",
        0.1,
        3,
        "wandb_offline",
    )
    assert (row.steps, row.micro_batch, row.global_batch, row.runtime_s) == (None,) * 4
    assert [(point.step, point.loss) for point in reading.steps] == [(s, 5 - s / 100) for s in range(10, 310, 10)]
    assert row.train_loss == pytest.approx((2.2 + 2.1 + 2.0) / 3)  # the last tenth of 30 points
    assert row.eval_loss == 1.5
    assert row.started_at is not None
    assert row.finished_at is not None
    assert row.started_at <= row.finished_at


def said(step: Step) -> list[Any]:
    """What both records of a step hold; the run's own has the time at which it was written too."""
    return [getattr(step, name) for name in Step.__struct_fields__]


def test_the_mirror_of_an_own_run_says_what_its_record_does(pretrain: Launch, tmp_path: Path) -> None:
    words = ("--ds_config", str(CONFIGS / "zero1.json"), *TINY, "--max_steps", "8", "--no_save", "--sample_tokens", "0")
    done = pretrain(*words, "--output_dir", str(tmp_path), "--run_name", "own", "--report_to", "wandb")
    assert done.returncode == 0, done.stderr
    (own,) = own_runs.read(tmp_path / "own")
    assert own.row.status == "completed"
    (folder,) = (tmp_path / "own" / "wandb").glob("offline-run-*")
    mirrored = one(folder)
    free = ("source", "path", "started_at", "finished_at", "last_record_at", "mfu", "peak_device_bytes")
    for key, value in dataclasses.asdict(own.row).items():
        assert key in free or getattr(mirrored.row, key) == value, key
    assert [said(step) for step in mirrored.steps] == [said(step) for step in own.steps]
    assert mirrored.evals == own.evals


def test_a_log_alone_says_what_its_folder_does(bare: Path, tmp_path: Path) -> None:
    (log,) = bare.glob("*.wandb")
    copy = tmp_path / "any.wandb"
    copy.write_bytes(log.read_bytes())
    rows = [dataclasses.replace(one(path).row, path=None) for path in (bare, log, copy)]
    assert wandb_offline.recognises(copy)
    assert rows[0] == rows[1] == rows[2]


def test_the_link_to_the_latest_run_is_no_second_run(bare: Path) -> None:
    assert wandb_offline.recognises(bare)
    assert (bare.parent / "latest-run").resolve() == bare.resolve()
    assert not wandb_offline.recognises(bare.parent / "latest-run")
    assert not wandb_offline.recognises(bare.parent)


def test_a_killed_run_shows_how_far_it_is_known(tmp_path: Path) -> None:
    (folder,) = run_script(BARE, tmp_path, "kill", "3000")
    reading = one(folder)
    assert (reading.row.status, reading.row.train_loss, reading.row.finished_at) == (None, None, None)
    assert 0 < len(reading.steps) <= 30
    assert f"the records stop at step {reading.steps[-1].step}" in [flag["message"] for flag in reading.row.flags]


def test_a_run_killed_before_the_first_block_is_one_line(tmp_path: Path) -> None:
    (folder,) = run_script(BARE, tmp_path, "kill", "0")
    (log,) = folder.glob("run-*.wandb")
    log.write_bytes(log.read_bytes()[:7])  # what W&B's process has written by then, if it dies too
    with pytest.raises(UnreadableError, match="cut off before its first entry"):
        one(folder)


def test_an_exception_is_told_by_the_console_that_wandb_kept(tmp_path: Path) -> None:
    (folder,) = run_script(BARE, tmp_path, "raise", "0")
    assert (one(folder).row.status, one(folder).row.last_error) == ("oom", "MemoryError: no room")


def test_files_alone_are_enough_and_a_damaged_config_is_none(tmp_path: Path) -> None:
    """The files as an online run leaves them; lost lines must not put one argument's value under another's name."""
    folder = tmp_path / "run-20250101_120000-abcd1234"
    (folder / "files").mkdir(parents=True)
    arguments = {"gradient_accumulation_steps": 4, "logging_steps": 5, "lr_scheduler_type": "linear", "max_steps": 20}
    arguments |= {"num_train_epochs": 3, "per_device_train_batch_size": 2}
    lines = ["_wandb:", "    value: {}"] + [f"{key}:\n    value: {value}" for key, value in arguments.items()]
    config = "\n".join(lines) + "\n"
    (folder / "files" / "config.yaml").write_text(config, encoding="utf-8")
    summary = {"train/global_step": 12, "train/epoch": 0.5, "train_runtime": 100.0, "train_loss": 3.25}
    summary |= {"train_samples_per_second": 3.2, "train_steps_per_second": 0.2, "_step": 3}
    (folder / "files" / "wandb-summary.json").write_text(json.dumps(summary), encoding="utf-8")
    row = one(folder).row
    assert (row.steps, row.planned_steps, row.global_batch, row.world_size) == (12, 20, 16, 2)
    assert (row.samples_seen, row.samples_per_s, row.runtime_s) == (192, 1.92, 100.0)
    assert "planned_not_completed" in codes(one(folder))
    (folder / "files" / "config.yaml").write_text(
        config.replace("per_device_train_batch_size:\n", ""), encoding="utf-8"
    )
    assert (one(folder).row.micro_batch, one(folder).row.planned_steps) == (None, None)


def test_whatever_is_no_log_of_wandb_is_one_line(tmp_path: Path) -> None:
    for name, data in {"empty.wandb": b"", "text.wandb": b"hello\n", "other.wandb": bytes(range(256))}.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UnreadableError, match=name) as caught:
            one(tmp_path / name)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", ["cut", "flip"])
def test_a_damaged_log_gives_true_values_or_none(damage: str, bare: Path, trainers: Any, tmp_path: Path) -> None:
    """The file cut at any byte, or any byte of it changed: every value is the whole file's, or null."""
    chance = random.Random(20250101)
    for folder in (bare, *trainers[2].values()):
        (log,) = folder.glob("*.wandb")
        data, whole = log.read_bytes(), one(log)
        for _ in range(100):
            at = chance.randrange(len(data))
            copy = tmp_path / "copy.wandb"
            copy.write_bytes(data[:at] if damage == "cut" else data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :])
            try:
                reading = one(copy)
            except UnreadableError:
                continue
            free = ("name", "path", "flags", "last_record_at")
            for key, value in dataclasses.asdict(reading.row).items():
                assert key in free or value is None or value == getattr(whole.row, key), (key, at)
            shown = [(point.step, point.loss) for point in reading.steps]
            assert shown == [(point.step, point.loss) for point in whole.steps][: len(shown)]
