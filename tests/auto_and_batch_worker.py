"""What DeepSpeed, Hugging Face's Trainer and Accelerate do with batch keys, `"auto"` and files: asked in one process.

Run as a script it prints a JSON object, a list of answers for each of the tables below, in their order.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import json
import logging
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

T, M, A = "train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"

BATCHES: list[tuple[dict[str, Any], int]] = [
    ({}, 1),
    ({A: 4}, 2),
    ({M: None, A: 1}, 1),
    ({T: 32}, 4),
    ({T: 30}, 4),
    ({T: 2}, 4),
    ({M: 4}, 2),
    ({M: 4, T: None}, 3),
    ({M: 4, A: 3}, 2),
    ({T: 32, M: 4}, 2),
    ({T: 32, M: 4}, 3),
    ({T: 32, M: 5}, 1),
    ({T: 2, M: 4}, 1),
    ({T: 32, A: 4}, 2),
    ({T: 32, A: 5}, 2),
    ({T: 4, A: 8}, 1),
    ({T: 20_000, M: 20, A: 100}, 10),
    ({T: 20_000, M: 20, A: 100}, 8),
    ({T: 20_000, M: 20, A: 100}, 20),
    ({T: 32.0}, 2),
    ({T: 32.5}, 2),
    ({T: "32"}, 1),
    ({M: "4"}, 1),
    ({T: [4]}, 1),
    ({M: 0}, 1),
    ({M: -1}, 1),
    ({T: 8, A: 0}, 1),
    ({T: 8, M: False}, 1),
    ({T: "auto"}, 1),
    ({M: "auto"}, 1),
    ({M: 4, A: "auto"}, 1),
    ({T: "auto", M: 1, A: 2}, 1),
]
"""A document and its data-parallel ranks -> the triple (micro, accumulation, total), or the exception's name."""

ACCEPTED_NONSENSE: list[tuple[dict[str, Any], int]] = [({M: 2.5}, 2), ({M: 2, A: 1.5}, 2), ({T: True}, 1)]
"""Batches that DeepSpeed calculates with and no step can have."""

FILES = [
    b'{"train_batch_size": 8}',
    b'\xef\xbb\xbf{"train_batch_size": 8}',
    b"{train_batch_size: 8 # a comment\r\n}",
    b'{"train_batch_size": 8,}',
    b"train_batch_size: 8\n",
    b'{"train_batch_size": 8, "train_batch_size": 8}',
    b'{"train_batch_size": 8, "zero_optimization": {"stage": 1, "stage": 2}}',
    b'{"train_batch_size": 8, "a": 1e999}',
    b'{"train_batch_size": 8, "a": /* open',
    b'{"train_batch_size": ]}',
    b'{"train_batch_size": 8, "dump_state": True,\n}',
    b'{"train_batch_size": 8, "a": ' + b"[" * 2000 + b"]" * 2000 + b"}",
    b"\xff\xfe{\x00}\x00",
    b"[8]",
]
"""The bytes of a file -> whether DeepSpeed starts from it, and whether Trainer's reader does; exceptions' names."""

PARSED: list[tuple[dict[str, Any], str]] = [
    ({"bf16": {"enabled": "auto"}}, "bfloat16_config.enabled"),
    ({"fp16": {"enabled": "auto"}}, "float16_config.enabled"),
    ({"bfloat16": {"enabled": "auto"}}, "bfloat16_config.enabled"),
    ({"zero_optimization": {"stage": "auto"}}, "zero_config.stage"),
    ({"zero_optimization": {"reduce_bucket_size": "auto"}}, "zero_config.reduce_bucket_size"),
    ({"zero_optimization": {"stage3_prefetch_bucket_size": "auto"}}, "zero_config.prefetch_bucket_size"),
    ({"zero_optimization": {"stage3_param_persistence_threshold": "auto"}}, "zero_config.param_persistence_threshold"),
    ({"zero_optimization": {"overlap_comm": "auto"}}, "zero_config.overlap_comm"),
    (
        {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "auto"}}},
        "zero_config.offload_optimizer.device",
    ),
    ({"zero_optimization": {"stage": 3, "offload_param": {"device": "auto"}}}, "zero_config.offload_param.device"),
    ({"gradient_clipping": "auto"}, "gradient_clipping"),
    ({"dump_state": "auto"}, "dump_state"),
    ({"prescale_gradients": "auto"}, "prescale_gradients"),
]
"""A document -> what DeepSpeed's configuration then holds at a path, as JSON."""

STARTED: list[tuple[str, Any]] = [
    ("wall_clock_breakdown", False),
    ("steps_per_print", "auto"),
    ("gradient_clipping", "auto"),
    ("optimizer.params.lr", "auto"),
    ("optimizer.params.betas", "auto"),
    ("optimizer.params.eps", "auto"),
    ("optimizer.params.weight_decay", "auto"),
    ("scheduler", {"type": "WarmupLR", "params": {"warmup_min_lr": "auto"}}),
    ("scheduler", {"type": "WarmupLR", "params": {"warmup_max_lr": "auto"}}),
    ("scheduler", {"type": "WarmupLR", "params": {"warmup_num_steps": "auto"}}),
    ("scheduler", {"type": "WarmupDecayLR", "params": {"total_num_steps": "auto", "warmup_num_steps": 1}}),
    ("wall_clock_breakdown", "auto"),
    ("communication_data_type", "auto"),
    ("optimizer.type", "auto"),
    ("zero_optimization.stage", "AUTO"),
]
"""A key of a JSON that otherwise trains, and its value -> `trains`, or the name of the exception within three steps."""


@functools.cache
def answers() -> dict[str, list[Any]]:
    """This script's answers; the process runs once for all tests that ask."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, __file__], capture_output=True, text=True, timeout=300, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, list[Any]] = json.loads(done.stdout.splitlines()[-1])
    return found


class Ranks:
    """DeepSpeed asks this object for the data-parallel ranks instead of the process group."""

    def __init__(self, number: int) -> None:
        self.number = number

    def get_data_parallel_world_size(self) -> int:
        return self.number


def outcome(function: Any, *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except Exception as error:
        return type(error).__name__


def parsed(document: Any, ranks: int = 1) -> Any:
    from deepspeed.runtime.config import DeepSpeedConfig

    return DeepSpeedConfig(copy.deepcopy(document), mpu=Ranks(ranks))


def triple(document: dict[str, Any], ranks: int) -> list[Any]:
    found = parsed(document, ranks)
    return [found.train_micro_batch_size_per_gpu, found.gradient_accumulation_steps, found.train_batch_size]


def sequence_parallel_total() -> float:
    """The global batch of one rank with a micro-batch of 4 that it shares, by the JSON, with a second one."""
    from deepspeed.runtime.config import DeepSpeedConfig

    return float(DeepSpeedConfig({M: 4, A: 1, "sequence_parallel_size": 2}).train_batch_size)


def held(document: dict[str, Any], path: str) -> Any:
    node = parsed({M: 1, **document})
    for name in path.split("."):
        node = getattr(node, name)
    return getattr(node, "value", node)


def trains(path: str, value: Any) -> str:
    import deepspeed
    import torch

    document: dict[str, Any] = {
        M: 2,
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "torch_adam": True}},
        "zero_optimization": {"stage": 1, "reduce_bucket_size": 1000},
    }
    *blocks, key = path.split(".")
    node = document
    for block in blocks:
        node = node[block]
    node[key] = value
    model = torch.nn.Linear(4, 4)
    engine, *_ = deepspeed.initialize(model=model, config=document, model_parameters=model.parameters())
    for _ in range(3):
        engine.backward(engine(torch.ones(2, 4)).sum())
        engine.step()
    return "trains"


def both_read(data: bytes) -> list[str]:
    from accelerate.utils.deepspeed import HfDeepSpeedConfig

    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        Path(file.name).write_bytes(data)
        readers = (lambda: parsed(file.name) and "reads", lambda: HfDeepSpeedConfig(file.name) and "reads")
        return [outcome(reader) for reader in readers]


def filled_by_trainer() -> dict[str, Any]:
    """Every key that the rules say Trainer fills, each `"auto"`, after Trainer has filled them."""
    from transformers import LlamaConfig, TrainingArguments
    from transformers.integrations.deepspeed import HfTrainerDeepSpeedConfig

    from lm_scale.strategy.load import put
    from lm_scale.strategy.rules.auto import FILLED

    document: dict[str, Any] = {"zero_optimization": {"stage": 3}}
    for place in FILLED:
        put(document, ".".join(place), "auto")
    arguments = TrainingArguments(
        output_dir=tempfile.mkdtemp(),
        use_cpu=True,
        per_device_train_batch_size=3,
        gradient_accumulation_steps=2,
        learning_rate=2e-3,
        weight_decay=0.25,
        max_grad_norm=0.75,
        warmup_steps=5,
        report_to="none",
    )
    filling = HfTrainerDeepSpeedConfig(document)
    filling.trainer_config_process(arguments)
    filling.trainer_config_finalize(arguments, SimpleNamespace(config=LlamaConfig(hidden_size=64)), 100)
    filled: dict[str, Any] = filling.config
    mixed = HfTrainerDeepSpeedConfig({T: "auto", M: 7, A: "auto"})
    mixed.trainer_config_process(arguments)
    zero = {"stage": 2, "reduce_bucket_size": "auto", "stage3_prefetch_bucket_size": "auto"}
    below = HfTrainerDeepSpeedConfig({"zero_optimization": zero})
    below.trainer_config_process(arguments)
    below.trainer_config_finalize(arguments, SimpleNamespace(config=LlamaConfig(hidden_size=64)), 100)
    return {"filled": filled, "mixed": mixed.mismatches, "below_stage_3": below.config["zero_optimization"]}


def filled_by_accelerate() -> dict[str, Any]:
    from accelerate import DeepSpeedPlugin

    from lm_scale.strategy.load import put
    from lm_scale.strategy.rules.auto import ACCELERATE

    document: dict[str, Any] = {"overlap_comm": "auto", "steps_per_print": "auto"}
    for place in ACCELERATE:
        put(document, ".".join(place), "auto")
    filled: dict[str, Any] = DeepSpeedPlugin(hf_ds_config=document).deepspeed_config
    return filled | {"steps_per_print": str(filled["steps_per_print"])}


def main() -> None:
    address = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    os.environ.update(address, DS_ACCELERATOR="cpu")
    with contextlib.redirect_stdout(sys.stderr):
        import deepspeed
        import deepspeed.ops

        logging.disable(logging.CRITICAL)
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # it would be compiled, and is not used here
        deepspeed.init_distributed("gloo", init_method=f"file://{tempfile.mkdtemp()}/store", rank=0, world_size=1)
        found = {
            "batches": [outcome(triple, *case) for case in BATCHES],
            "sequence_parallel_total": [sequence_parallel_total()],
            "nonsense": [outcome(triple, *case) for case in ACCEPTED_NONSENSE],
            "files": [both_read(data) for data in FILES],
            "parsed": [outcome(held, *case) for case in PARSED],
            "started": [outcome(trains, *case) for case in STARTED],
            "trainer": [filled_by_trainer()],
            "accelerate": [filled_by_accelerate()],
        }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
