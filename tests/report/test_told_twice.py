"""One run that its console, W&B and its output folder tell is one row; two runs that tell the same are two."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lm_scale.report import Report, metrics, read

SAMPLES = Path(__file__).parent / "samples"
SCRIPT = """
import os, signal, sys, time, torch, wandb
from transformers import Qwen3Config, Qwen3ForCausalLM, Trainer, TrainerCallback, TrainingArguments
torch.set_num_threads(1)

class End(TrainerCallback):
    def __init__(self, kind): self.kind = kind
    def on_step_end(self, args, state, control, **kwargs):
        time.sleep(0.05 * (self.kind == "again"))
        if state.global_step == 9 and self.kind == "kill":
            time.sleep(1.5)
            os.kill(os.getpid(), signal.SIGKILL)

def train(kind):
    torch.manual_seed(0)
    data = [{"input_ids": x, "labels": x} for x in torch.randint(0, 64, (100, 16))]
    arguments = TrainingArguments(
        output_dir="out", per_device_train_batch_size=4, gradient_accumulation_steps=2, seed=7, max_steps=12,
        use_cpu=True, logging_steps=2, save_strategy="steps", save_steps=4, report_to=["wandb"], learning_rate=1e-3)
    print(arguments, flush=True)
    print("World size:", 1, flush=True)
    config = Qwen3Config(vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1, head_dim=8,
                         num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=64)
    model = Qwen3ForCausalLM(config)
    trainer = Trainer(model, arguments, train_dataset=data, eval_dataset=data[:8], callbacks=[End(kind)])
    result = trainer.train()
    trainer.save_metrics("train", result.metrics)
    trainer.save_state()
    trainer.save_metrics("eval", trainer.evaluate())
    wandb.finish()

children = []
for kind in sys.argv[1:]:  # one process each, of one start of Python
    child = os.fork()
    if child == 0:
        os.chdir(kind)
        log = os.open("console.log", os.O_WRONLY | os.O_CREAT)
        os.dup2(log, 1), os.dup2(log, 2)
        train(kind)
        sys.stdout.flush()
        os._exit(0)
    children.append(child)
sys.exit([os.waitpid(child, 0)[1] for child in children] != [0, 0, signal.SIGKILL])
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trainers with W&B offline, their consoles in a file: `whole`, `again` with the same losses, and `kill`."""
    base = tmp_path_factory.mktemp("trained")
    (base / "script").write_text(SCRIPT, encoding="utf-8")
    environment = {**os.environ, "WANDB_MODE": "offline", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    kinds = ("whole", "again", "kill")
    for kind in kinds:
        (base / kind).mkdir()
    command = [sys.executable, "-u", str(base / "script"), *kinds]
    done = subprocess.run(command, cwd=base, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    return base


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    """The runs' files, to be moved about."""
    shutil.copytree(trained, tmp_path / "runs", symlinks=True, ignore=shutil.ignore_patterns("script"))
    return tmp_path / "runs"


def told(path: Path) -> tuple[Report, list[str]]:
    report = read([path])
    return report, [row.source for row in report.rows]


def test_console_wandb_and_output_folder_are_one_row_of_the_exact_source(folder: Path) -> None:
    report, sources = told(folder / "whole")
    assert (sources, report.problems) == (["hf_trainer_state"], [])
    row = report.rows[0]
    (console,) = read([folder / "whole/console.log"]).rows
    (alone,) = read([folder / "whole/out"]).rows
    assert (alone.host, console.host, console.learning_rate, console.world_size) == (None, None, 1e-3, 1)
    assert row.train_loss == alone.train_loss
    assert row.host  # only W&B knows it
    assert (row.steps, row.samples_seen, row.status) == (12, 96, "completed")
    assert not {"overlapping_run", "source_disagrees", "several_runs"} & {flag["code"] for flag in row.flags}
    frame = metrics(folder / "whole")
    steps = frame[frame.kind == "step"]
    assert steps.step.tolist() == [2, 4, 6, 8, 10, 12]
    assert steps.elapsed_s.notna().all()  # W&B's, beside the state's losses


@pytest.mark.parametrize("where", ["wandb inside", "console inside", "both inside", "no output folder"])
def test_it_does_not_matter_where_the_sources_lie(folder: Path, where: str) -> None:
    whole = folder / "whole"
    if where in ("wandb inside", "both inside"):
        shutil.move(whole / "wandb", whole / "out/wandb")
    if where in ("console inside", "both inside"):
        shutil.move(whole / "console.log", whole / "out/train.log")
    if where == "no output folder":
        shutil.rmtree(whole / "out")
    report, sources = told(whole)
    assert sources == ["wandb_offline" if where == "no output folder" else "hf_trainer_state"]
    assert (report.rows[0].steps, report.problems) == (12, [])
    assert report.rows[0].host


def test_a_killed_run_is_one_row_by_its_losses_up_to_the_checkpoint(folder: Path) -> None:
    shutil.rmtree(folder / "kill/wandb")
    report, sources = told(folder / "kill")
    assert sources == ["hf_trainer_state"]
    assert (report.rows[0].steps, report.rows[0].status) == (None, None)


def test_a_run_repeated_with_the_same_losses_is_another_run(folder: Path) -> None:
    shutil.rmtree(folder / "kill")
    assert told(folder)[1] == ["hf_trainer_state"] * 2
    for kind in ("whole", "again"):
        shutil.rmtree(folder / kind / "wandb")
    assert told(folder)[1] == ["hf_trainer_state"] * 2  # told apart by their runtimes
    shutil.rmtree(folder / "again/out")
    (folder / "whole/console.log").unlink()
    assert sorted(told(folder)[1]) == ["hf_trainer_log", "hf_trainer_state"]


def test_what_two_sources_say_in_unlike_ways_is_flagged_and_stays(folder: Path) -> None:
    log = folder / "whole/console.log"
    log.write_bytes(
        re.sub(rb"(?m)^per_device_train_batch_size=4,$", b"per_device_train_batch_size=8,", log.read_bytes())
    )
    (row,) = read([folder / "whole"]).rows
    assert row.micro_batch == 4
    said = [flag["message"] for flag in row.flags if flag["code"] == "source_disagrees"]
    assert any(message.startswith("micro_batch: 4 in ") for message in said)


def test_a_console_without_wandb_joins_its_output_folder_by_what_both_logged(tmp_path: Path) -> None:
    shutil.copytree(SAMPLES / "trainer_state/fsdp2", tmp_path / "fsdp2")
    shutil.copy(SAMPLES / "trainer_log/fsdp2.log", tmp_path / "console.log")
    shutil.copy(SAMPLES / "trainer_log/ddp.log", tmp_path)  # another run of the same script
    report, sources = told(tmp_path)
    assert sorted(sources) == ["hf_trainer_log", "hf_trainer_state"]
    row = next(row for row in report.rows if row.source == "hf_trainer_state")
    assert (row.name, row.train_loss) == ("fsdp2", 4.319584736457238)
    assert "source_disagrees" not in {flag["code"] for flag in row.flags}
