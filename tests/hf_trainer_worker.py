"""Trains each DeepSpeed JSON of the command line in Hugging Face's Trainer; the first rank prints a line a JSON."""

from __future__ import annotations

import json
import sys
import tempfile

import deepspeed
import torch
from transformers import AutoModelForCausalLM, Qwen3Config, Trainer, TrainingArguments
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def train(path: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            deepspeed=path,
            use_cpu=True,
            max_steps=3,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        config = Qwen3Config(
            vocab_size=512, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, head_dim=32,
        )  # fmt: skip
        model = AutoModelForCausalLM.from_config(config)
        ids = torch.randint(0, 512, (64, 32), generator=torch.Generator().manual_seed(0))
        samples = [{"input_ids": row, "labels": row} for row in ids]
        trainer = Trainer(model=model, args=arguments, train_dataset=samples)
        trainer.train()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        executed = trainer.model_wrapped
        stage = executed.zero_optimization_stage()
        if arguments.process_index == 0:
            print("RESULT", json.dumps({"path": path, "losses": losses, "stage": stage, "ranks": arguments.world_size}))
    unset_hf_deepspeed_config()


for word in sys.argv[1:]:
    if not word.startswith("--local_rank"):
        train(word)
