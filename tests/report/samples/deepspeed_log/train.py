"""A bare DeepSpeed script: a tiny model, and the engine's own lines alone. `train.py JSON STEPS [HOW IT ENDS]`."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from typing import Any

import deepspeed
import torch
from deepspeed.pipe import LayerSpec, PipelineModule

COMMON = {"steps_per_print": 1, "log_level": "info", "train_micro_batch_size_per_gpu": 4}
WARMUP = {"type": "WarmupLR", "params": {"warmup_max_lr": 0.002, "warmup_num_steps": 5}}
CPU = {"device": "cpu"}


def adam(lr: float) -> dict[str, Any]:
    return {"type": "AdamW", "params": {"lr": lr, "torch_adam": True}}


CONFIGS: dict[str, dict[str, Any]] = {
    "z1.json": {**COMMON, "optimizer": adam(0.001), "zero_optimization": {"stage": 1}, "scheduler": WARMUP},
    "z2.json": {
        **{**COMMON, "steps_per_print": 2, "gradient_accumulation_steps": 2, "wall_clock_breakdown": True},
        **{"optimizer": adam(0.001), "zero_optimization": {"stage": 2}},
    },
    "z3.json": {
        **{**COMMON, "train_micro_batch_size_per_gpu": 2, "bf16": {"enabled": True}, "optimizer": adam(0.0003)},
        **{"zero_force_ds_cpu_optimizer": False},
        "zero_optimization": {"stage": 3, "offload_optimizer": CPU, "offload_param": CPU},
    },
    "pipe.json": {
        **{**COMMON, "steps_per_print": 2, "gradient_accumulation_steps": 4},
        **{"optimizer": adam(0.001), "zero_optimization": {"stage": 1}},
    },
}


def main(path: str, steps: int, ending: str = "done") -> None:
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed()
    torch.manual_seed(0)
    rank = int(os.environ["RANK"])
    layers = [LayerSpec(torch.nn.Linear, 64, 64) for _ in range(4)]
    if ending == "pipeline":
        net = PipelineModule(layers, num_stages=2, loss_fn=torch.nn.functional.mse_loss)
    else:
        net = torch.nn.Sequential(*[layer.build() for layer in layers])
    engine, *_ = deepspeed.initialize(model=net, model_parameters=list(net.parameters()), config=CONFIGS[path])
    dtype = torch.bfloat16 if engine.bfloat16_enabled() else torch.float32
    x = torch.randn(engine.train_micro_batch_size_per_gpu(), 64, dtype=dtype)

    def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        while True:
            yield x, x

    data = batches()
    for step in range(1, steps + 1):
        time.sleep(0.02)  # a loader's wait
        if ending == "pipeline":
            engine.train_batch(data)
            continue
        for _ in range(engine.gradient_accumulation_steps()):
            engine.backward(torch.nn.functional.mse_loss(engine(x), x))
            engine.step()
        if ending == "exception" and rank == 1 and step == steps:
            raise RuntimeError("the data of rank 1 ran out")
        if ending == "kill" and rank == 1 and step == steps:
            os.kill(os.getpid(), 9)


if __name__ == "__main__":
    words = [word for word in sys.argv[1:] if not word.startswith("--local_rank")]
    main(words[0], int(words[1]), *words[2:])
