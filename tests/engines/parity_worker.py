"""One rank of `test_native.py`: trains each case of a JSON list for a few steps; rank 0 writes {case: step records}.

A case: `name, engine (deepspeed | torch), config (of the model), document (DeepSpeed JSON), samples (of the global
batch), fault`.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from lm_scale.arguments import ModelArguments, StrategyArguments
from lm_scale.data.batches import Batch, StepBatches
from lm_scale.engines.deepspeed import DeepSpeedEngine
from lm_scale.engines.native import NativeEngine
from lm_scale.engines.pipeline import PipelineEngine
from lm_scale.engines.process import join_group
from lm_scale.models.build import build
from lm_scale.models.loss import CausalLMLoss
from lm_scale.models.presets import ModelSource
from lm_scale.strategy.machine import Machine
from lm_scale.strategy.resolve import Strategy, resolve
from lm_scale.training.meter import PhaseClock

STEPS, MICRO_BATCH, SEQ_LEN = 6, 2, 32
CPU = Machine("cpu", 2, False, "fp32 for this test")


def resolved(case: dict[str, Any], folder: Path) -> Strategy:
    path = folder / f"{case['name']}-{dist.get_rank()}.json"
    path.write_text(json.dumps({"train_micro_batch_size_per_gpu": MICRO_BATCH, **case["document"]}))
    arguments = StrategyArguments(ds_config=str(path), train_batch_size=case["samples"])
    return resolve(arguments, ModelArguments(), None, dist.get_world_size(), CPU)


def batches(case: dict[str, Any], strategy: Strategy, step: int) -> StepBatches:
    """The global batch of a step, of which every rank takes its part; about one label in nine is missing."""
    generator = np.random.default_rng(step)
    ids = generator.integers(0, case["config"]["vocab_size"], (case["samples"], SEQ_LEN + 1))
    labels = np.where(generator.random(ids.shape) < 0.1, -100, ids)[:, 1:]
    if case["fault"] == "labels shifted":
        labels = np.roll(labels, 1, axis=-1)
    batch = strategy.batch
    parts = np.arange(case["samples"]).reshape(batch.grad_accum, batch.data_parallel, batch.micro_batch)
    mine = parts[:, strategy.layout.data_rank(dist.get_rank())]
    micro_batches = [Batch(ids[indices, :-1], labels[indices]) for indices in mine]
    if case["fault"] == "micro-batch dropped":
        micro_batches = micro_batches[:-1]
    return StepBatches(micro_batches, int((labels != -100).sum()), case["samples"], labels.size)


@contextlib.contextmanager
def planted(fault: str | None, module: CausalLMLoss) -> Iterator[None]:
    """The fault in the module or in torch, as a bug in an engine or a model would have it."""
    name, parameter = next((n, p) for n, p in module.named_parameters() if n.endswith("down_proj.weight"))
    if fault == "parameter not reduced":
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, [name])
    if fault == "gradient scaled twice":
        parameter.register_hook(lambda gradient: 2 * gradient)
    if fault != "mask leaks":
        yield
        return
    original = torch.nn.functional.scaled_dot_product_attention

    def unmasked(*args: Any, **kwargs: Any) -> torch.Tensor:
        return original(*args, **{**kwargs, "is_causal": False, "attn_mask": None})

    with mock.patch.object(torch.nn.functional, "scaled_dot_product_attention", unmasked):
        yield


def train(case: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    strategy = resolved(case, folder)
    source = ModelSource(case["name"], "config", folder, case["config"])

    def loss_module(partition: Any, gather: Any) -> CausalLMLoss:
        vocab = case["config"]["vocab_size"]
        model, _ = build(source, vocab, SEQ_LEN, None, 11, partition=partition, gather=gather)
        return CausalLMLoss(model, "chunked")

    steps = []
    with contextlib.ExitStack() as stack:
        engine: Any
        if case["engine"] == "torch":
            module = loss_module(None, None)
            if case["fault"]:
                stack.enter_context(planted(case["fault"], module))
            engine = NativeEngine(strategy, module, torch.device("cpu"))
        elif strategy.layout.pipeline_stages > 1:
            engine = PipelineEngine(strategy, loss_module(None, None))
            if case["fault"] == "DeepSpeed's own clipping":
                del engine._engine.clip_fp32_gradients
        else:
            engine = DeepSpeedEngine(strategy, loss_module)
        for step in range(1, STEPS + 1):
            batch = batches(case, strategy, step)
            result = engine.train_step(batch, strategy.learning_rate, PhaseClock(torch.device("cpu")))
            dist.all_reduce(result.loss_sum)
            steps.append({"loss": float(result.loss_sum) / batch.label_count, "grad_norm": result.grad_norm})
    return steps


if __name__ == "__main__":
    cases = json.loads(Path(sys.argv[1]).read_text())
    join_group(CPU, "deepspeed")
    record = {case["name"]: train(case, Path(sys.argv[1]).parent) for case in cases}
    if dist.get_rank() == 0:
        Path(sys.argv[2]).write_text(json.dumps(record))
    dist.barrier()
