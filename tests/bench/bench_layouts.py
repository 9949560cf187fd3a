"""Layouts beside their yardsticks, as ratios of interleaved blocks of steps in the same two processes.

pipeline   two stages against two data-parallel replicas (ZeRO-1) on the same global batch, and the bound of it:
           micro-batches / (micro-batches + stages - 1) of the bubble, times the balance of the stages' products
torch      `--engine torch` against a hand-written DDP loop and a hand-written FSDP2 loop

python tests/bench/bench_layouts.py --pairs 12 > result.json
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path += [str(ROOT), str(ROOT / "tests")]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--model", default="small")
    parser.add_argument("--seq_len", type=int, default=256)
    parser.add_argument("--micro_batch", type=int, default=2)
    parser.add_argument("--micro_batches", type=int, default=8, help="of a pipeline's step")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options)
        return
    from launches import run_ranks

    with tempfile.TemporaryDirectory() as folder:
        done = run_ranks(__file__, *sys.argv[1:], "--worker", folder, ranks=2, timeout=3000, threads=1)
        if done.returncode:
            sys.exit(done.stderr[-4000:])
        measured = json.loads((Path(folder) / "measured.json").read_text())
    print(json.dumps(summary(measured, options), indent=2))


def summary(measured: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """Ratios of speeds: above 1 the first named is faster."""
    seconds, balance = measured["seconds"], measured["balance"]
    bubble = options.micro_batches / (options.micro_batches + 1)
    pipeline = spread(seconds["data_parallel"], seconds["pipeline"])
    return {
        "settings": {key: value for key, value in vars(options).items() if key != "worker"},
        "step_s_median": {name: statistics.median(times) for name, times in seconds.items()},
        "pipeline_over_data_parallel": pipeline,
        "bubble_bound": bubble,
        "balance": balance,
        "pipeline_share_of_bound": pipeline["median"] / (bubble * balance),
        "pipeline_idle_share": statistics.median(measured["idle_share"]),
        "torch_over_hand_written_ddp": spread(seconds["hand_ddp"], seconds["torch_ddp"]),
        "torch_over_hand_written_fsdp2": spread(seconds["hand_fsdp2"], seconds["torch_fsdp2"]),
    }


def spread(slower: list[float], faster: list[float]) -> dict[str, Any]:
    """Median of the pairs' ratios and its 95 % interval by the bootstrap (10,000 draws of a fixed generator)."""
    ratios = [one / other for one, other in zip(slower, faster, strict=True)]
    draw = random.Random(0)
    medians = sorted(statistics.median(draw.choices(ratios, k=len(ratios))) for _ in range(10_000))
    return {"pairs": len(ratios), "median": statistics.median(ratios), "median_95": [medians[249], medians[9749]]}


def work(options: argparse.Namespace) -> None:
    """One rank: all engines at once, a step of each in turn. The pipeline comes last: DeepSpeed keeps its groups."""
    import torch
    import torch.distributed as dist

    from lm_scale.engines.deepspeed import DeepSpeedEngine
    from lm_scale.engines.native import NativeEngine
    from lm_scale.engines.pipeline import PipelineEngine
    from lm_scale.engines.process import join_group
    from lm_scale.strategy.machine import Machine

    join_group(Machine("cpu", 2, False, "fp32 for this measurement"), "deepspeed")
    cpu, global_batch = torch.device("cpu"), options.micro_batch * options.micro_batches
    strategies = {
        name: resolved(name, global_batch, options) for name in ("zero0", "zero1", "zero3", "pipeline2_zero1")
    }
    engines: dict[str, Any] = {
        "data_parallel": DeepSpeedEngine(strategies["zero1"], lambda partition, gather: loss_module(options)),
        "torch_ddp": NativeEngine(strategies["zero0"], loss_module(options), cpu),
        "torch_fsdp2": NativeEngine(strategies["zero3"], loss_module(options), cpu),
    }
    steps = {
        name: engine_step(engine, options, global_batch // options.micro_batch // 2) for name, engine in engines.items()
    }
    steps |= {name: hand_written(name, options) for name in ("hand_ddp", "hand_fsdp2")}
    pipeline = PipelineEngine(strategies["pipeline2_zero1"], loss_module(options))
    steps["pipeline"] = engine_step(pipeline, options, options.micro_batches)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    idle: list[float] = []
    for pair in range(options.pairs + 1):
        for name in list(steps) if pair % 2 else list(steps)[::-1]:
            dist.barrier()
            begin = time.perf_counter()
            waited = steps[name]()
            dist.barrier()
            taken = time.perf_counter() - begin
            if pair:  # the first is warm-up
                seconds[name].append(taken)
                if waited is not None:
                    idle.append(waited / taken)
    shares: list[Any] = [None, None]
    dist.all_gather_object(shares, idle)
    if dist.get_rank() == 0:
        mean_idle = [sum(pair) / 2 for pair in zip(*shares, strict=True)]
        found = {"seconds": seconds, "idle_share": mean_idle, "balance": pipeline._pipe.balance()}
        (Path(options.worker) / "measured.json").write_text(json.dumps(found))
    dist.barrier()


def resolved(name: str, global_batch: int, options: argparse.Namespace) -> Any:
    from lm_scale.arguments import ModelArguments, StrategyArguments
    from lm_scale.strategy.machine import Machine
    from lm_scale.strategy.resolve import resolve

    path = str(ROOT / "ds_configs" / f"{name}.json")
    arguments = StrategyArguments(
        ds_config=path, train_batch_size=global_batch, per_device_train_batch_size=options.micro_batch
    )
    return resolve(arguments, ModelArguments(), None, 2, Machine("cpu", 2, False, "fp32 for this measurement"))


def loss_module(options: argparse.Namespace) -> Any:
    from lm_scale.models.build import build
    from lm_scale.models.loss import CausalLMLoss
    from lm_scale.models.presets import load_config

    model, _ = build(load_config(options.model), 8192, options.seq_len, None, 42)
    return CausalLMLoss(model, "chunked")


def micro_batches(options: argparse.Namespace, count: int) -> Any:
    import numpy as np

    from lm_scale.data.batches import Batch, StepBatches

    draw = np.random.default_rng(0)
    ids = draw.integers(0, 8192, (count, options.micro_batch, options.seq_len + 1))
    total = options.micro_batch * options.micro_batches
    return StepBatches([Batch(one[:, :-1], one[:, 1:]) for one in ids], total * options.seq_len, total, 0)


def engine_step(engine: Any, options: argparse.Namespace, count: int) -> Callable[[], float | None]:
    """A step of an engine; returns the seconds that its rank waited for other stages, None without stages."""
    from lm_scale.training.meter import PhaseClock

    batches = micro_batches(options, count)

    def step() -> float | None:
        clock = PhaseClock(engine.device)
        float(engine.train_step(batches, 1e-4, clock).loss_sum)
        idle = clock.seconds()["idle"]
        return idle or None

    return step


def hand_written(name: str, options: argparse.Namespace) -> Callable[[], None]:
    """The loop of PyTorch's own tutorials: DDP with `no_sync`, or `fully_shard` a block; clip, step, zero."""
    import torch
    import torch.distributed as dist
    from torch.distributed.fsdp import fully_shard
    from torch.nn.parallel import DistributedDataParallel

    module = loss_module(options)
    model: Any
    if name == "hand_ddp":
        model = DistributedDataParallel(module)
    else:
        for block in module.model.model.layers:
            fully_shard(block)
        model = fully_shard(module)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.1, fused=True)
    batches = micro_batches(options, options.micro_batches // 2)
    pairs = [(torch.from_numpy(one.input_ids), torch.from_numpy(one.labels)) for one in batches.micro_batches]

    def step() -> None:
        total = 0.0
        for number, (ids, labels) in enumerate(pairs, 1):
            last = number == len(pairs)
            if name == "hand_ddp" and not last:
                with model.no_sync():
                    loss = model(ids, labels) * (dist.get_world_size() / batches.label_count)
                    loss.backward()
            else:
                loss = model(ids, labels) * (dist.get_world_size() / batches.label_count)
                loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


if __name__ == "__main__":
    main()
