"""The runs whose console logs stand beside this: Hugging Face's Trainer on a tiny GPT-2 and made-up tokens."""

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel, HfArgumentParser, Trainer, TrainerCallback, TrainingArguments


@dataclass
class Extra:
    stop_at: int = 0
    stop_note: str = ""
    die_at: int = 0
    die: str = ""
    sleep: float = 0.0


SIGNALS = {"kill": 9, "terminate": 15, "interrupt": 2, "segfault": 11}
arguments, extra = HfArgumentParser((TrainingArguments, Extra)).parse_args_into_dataclasses()


class Tokens(torch.utils.data.Dataset):
    def __len__(self):
        return 403

    def __getitem__(self, index):
        ids = torch.randint(0, 100, (16,), generator=torch.Generator().manual_seed(index))
        return {"input_ids": ids, "labels": ids}


class Ending(TrainerCallback):
    def on_train_begin(self, args, state, control, **rest):
        self.began = time.time()

    def on_step_end(self, args, state, control, **rest):
        time.sleep(extra.sleep)
        last = int(os.environ.get("RANK", "0")) == int(os.environ.get("WORLD_SIZE", "1")) - 1
        if state.global_step == extra.die_at and last:
            if extra.die in SIGNALS:
                os.kill(os.getpid(), SIGNALS[extra.die])
                time.sleep(30)
            if extra.die == "cpu_oom":
                torch.empty(2**50)
            if extra.die == "exit":
                raise SystemExit(3)
            if extra.die == "oom":
                raise torch.OutOfMemoryError(
                    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.14 GiB"
                )
            raise RuntimeError("boom at a step")
        if state.global_step == extra.stop_at:
            if extra.stop_note:
                print(f"{extra.stop_note} {time.time() - self.began:.2f}", flush=True)
            control.should_training_stop = True


if arguments.deepspeed:
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # would be compiled first
torch.manual_seed(0)
model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=16, n_head=2, vocab_size=100, n_positions=16))
print(arguments, flush=True)
print("World size:", os.environ.get("WORLD_SIZE", "1"), flush=True)
print(f"Model: {sum(p.numel() for p in model.parameters()):,} parameters, dtype={model.dtype}", flush=True)
trainer = Trainer(
    model=model,
    args=arguments,
    train_dataset=Tokens(),
    eval_dataset=torch.utils.data.Subset(Tokens(), range(40)),
    callbacks=[Ending()],
)
result = trainer.train()
trainer.log_metrics("train", result.metrics)
trainer.save_metrics("train", result.metrics)
evaluation = trainer.evaluate()
trainer.log_metrics("eval", evaluation)
trainer.save_state()
if arguments.process_index == 0:
    counted = {"steps": trainer.state.global_step, "train": result.metrics, "eval": evaluation}
    Path(arguments.output_dir, "counted.json").write_text(json.dumps(counted))
