"""Writes the sample folders beside this file by really training with Hugging Face's Trainer; see README.md.

    python make_samples.py OUT stopped early epochs resumed    # one process
    python make_samples.py OUT stopped_old                     # the same under transformers 4.57
    torchrun --nproc_per_node 2 make_samples.py OUT ddp zero1  # two CPU ranks

Each folder gets a `counted.json`: what the training loop was seen to do, counted by hand and not by Trainer.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import (
    EarlyStoppingCallback,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

KINDS: dict[str, dict[str, Any]] = {
    "stopped": {"num_train_epochs": 5, "include_num_input_tokens_seen": True},
    "stopped_old": {"num_train_epochs": 5},
    "early": {"max_steps": 60, "load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "eval_steps": 3,
              "save_steps": 3, "learning_rate": 10.0},
    "epochs": {"num_train_epochs": 2},
    "resumed": {"max_steps": 12},
    "ddp": {"max_steps": 12},
    "zero1": {"max_steps": 12, "bf16": True, "deepspeed": {
        "train_micro_batch_size_per_gpu": "auto", "gradient_accumulation_steps": "auto", "train_batch_size": "auto",
        "bf16": {"enabled": "auto"}, "zero_optimization": {"stage": 1}}},
}  # fmt: skip
KEPT = ("README.md", "config.json", "trainer_state.json", "training_args.bin", "counted.json")


class CountingTrainer(Trainer):  # type: ignore[misc]
    """Counts the samples of every forward pass that training makes."""

    samples = 0

    def training_step(self, model: Any, inputs: dict[str, Any], *rest: Any) -> Any:
        self.samples += len(inputs["input_ids"])
        return super().training_step(model, inputs, *rest)


class StopAfterSeven(TrainerCallback):  # type: ignore[misc]
    """A budget that ends after seven steps."""

    def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        control.should_training_stop = state.global_step >= 7


def train(folder: Path, kind: str, keep: bool = False) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    ids = torch.randint(0, 64, (25 if kind == "epochs" else 64, 16))
    samples = [{"input_ids": row, "labels": row} for row in ids]
    common = {"eval_steps": 4, "save_steps": 4, "learning_rate": 1e-3, "lr_scheduler_type": "cosine", "seed": 7}
    arguments = TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=2, gradient_accumulation_steps=2, report_to=[],
        logging_steps=2, eval_strategy="steps", use_cpu=True, **{**common, **KINDS[kind]},
    )  # fmt: skip
    callbacks = {
        "stopped": [StopAfterSeven()],
        "stopped_old": [StopAfterSeven()],
        "early": [EarlyStoppingCallback(1)],
    }.get(kind)
    trainer = CountingTrainer(
        model=LlamaForCausalLM(config), args=arguments, train_dataset=samples, eval_dataset=samples[:8],
        callbacks=callbacks,
    )  # fmt: skip
    result = trainer.train(resume_from_checkpoint=str(folder / "checkpoint-8") if kind == "resumed" else None)
    if keep:  # its checkpoints are all that the run that resumes needs
        return
    trainer.save_model()
    trainer.save_metrics("train", result.metrics)
    trainer.save_state()
    evaluated = trainer.evaluate()
    trainer.save_metrics("eval", evaluated)
    trainer.create_model_card()
    if arguments.process_index == 0:
        counted = {
            "steps": result.global_step,
            "samples": trainer.samples * arguments.world_size,
            "eval_loss": evaluated["eval_loss"],
            "parameters": sum(parameter.numel() for parameter in LlamaForCausalLM(config).parameters()),
        }
        (folder / "counted.json").write_text(json.dumps(counted) + "\n")
        _strip(folder)


def _strip(folder: Path) -> None:
    """Keep what describes the run: no weights, and of the checkpoints the last one's state and settings."""
    checkpoints = sorted(folder.glob("checkpoint-*"), key=lambda one: int(one.name.split("-")[1]))
    for checkpoint in checkpoints[:-1]:
        shutil.rmtree(checkpoint)
    for file in [*folder.rglob("*")]:
        if file.is_file() and file.name not in KEPT and not file.name.endswith("_results.json"):
            file.unlink()
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()


if __name__ == "__main__":
    torch.set_num_threads(1)
    os.chdir(sys.argv[1])
    for word in sys.argv[2:]:
        if "zero" in word:
            import deepspeed

            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        if word == "resumed":
            KINDS["resumed_first"] = KINDS["resumed"]
            train(Path(word), "resumed_first", keep=True)
        train(Path(word), word)
