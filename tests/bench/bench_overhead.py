"""What lm-scale's loop costs beside a bare DeepSpeed loop and Hugging Face's Trainer: ratios of interleaved blocks.

Three engines stand in the same two processes, with the same model, weights, loss, text and resolved JSON; blocks of
a few steps of each follow one another, and each block of one is set against its neighbour of the other. The bare loop
is that of DeepSpeed's "Getting started": `deepspeed.initialize(training_data=...)`, then forward, backward, step.
lm-scale's block has all that a run has: metering, exchange, records, progress.

    python tests/bench/bench_overhead.py --pairs 12 > result.json
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--steps", type=int, default=5, help="steps of one block")
    parser.add_argument("--ds_config", default=str(ROOT / "ds_configs" / "zero2.json"))
    parser.add_argument("--model", default="mini")
    parser.add_argument("--seq_len", default="512")
    parser.add_argument("--micro_batch", default="4")
    parser.add_argument("--local_rank", help=argparse.SUPPRESS)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options)
        return
    with tempfile.TemporaryDirectory() as folder:
        launcher = str(Path(sys.executable).parent / "deepspeed")
        command = [launcher, "--num_gpus", "2", __file__, *sys.argv[1:], "--worker", folder]
        environment = {**os.environ, "DS_ACCELERATOR": "cpu"}
        subprocess.run(command, check=True, env=environment, stdout=sys.stderr)
        print(json.dumps(summary(json.loads((Path(folder) / "blocks.json").read_text()), options), indent=2))


def summary(blocks: dict[str, list[float]], options: argparse.Namespace) -> dict[str, Any]:
    """Ratios of times (below 1: lm-scale is faster), with their spread."""
    ours = blocks["lm_scale"]
    return {
        "settings": {key: value for key, value in vars(options).items() if key not in ("worker", "local_rank")},
        "step_s_median": {name: statistics.median(times) / options.steps for name, times in blocks.items()},
        **{
            f"lm_scale_over_{other}": spread([own / its for own, its in zip(ours, blocks[other], strict=True)])
            for other in ("bare", "trainer")
        },
    }


def spread(ratios: list[float]) -> dict[str, Any]:
    """Median, quartiles, and the 95 % interval of the median by the bootstrap (10,000 draws of a fixed generator)."""
    draw = random.Random(0)
    medians = sorted(statistics.median(draw.choices(ratios, k=len(ratios))) for _ in range(10_000))
    quartiles = statistics.quantiles(ratios, n=4)
    return {
        "pairs": len(ratios),
        "median": statistics.median(ratios),
        "quartiles": [quartiles[0], quartiles[2]],
        "median_95": [medians[249], medians[9749]],
        "all": ratios,
    }


def work(options: argparse.Namespace) -> None:
    """One rank: build the three, let Trainer drive, and run a block of the other two after each of its own."""
    from lm_scale.arguments import PretrainArguments, parse
    from lm_scale.data.tokens import prepare
    from lm_scale.engines.launch import Launch
    from lm_scale.engines.process import prepare_environment
    from lm_scale.models.presets import load_config
    from lm_scale.strategy.machine import detect
    from lm_scale.strategy.resolve import resolve
    from lm_scale.training.capture import Capture
    from lm_scale.training.progress import Progress

    words = ["--ds_config", options.ds_config, "--model", options.model, "--seq_len", options.seq_len]
    words += ["--per_device_train_batch_size", options.micro_batch, "--max_steps", "1", "--no_save"]
    words += ["--lr_scheduler_type", "constant", "--output_dir", options.worker, "--run_name", "ours"]
    arguments = parse(PretrainArguments, words, "bench", "")
    machine = detect()
    process = prepare_environment(machine)
    source = load_config(arguments.model)
    strategy = resolve(arguments, arguments, source.text_config.get("hidden_size"), process.world_size, machine)
    with Capture(process.rank) as capture, contextlib.ExitStack():
        progress = Progress(capture.terminal, visible=process.rank == 0)
        launch = Launch(arguments, machine, process, source, strategy, capture, progress)
        interleave(launch, prepare(arguments, None), options)


def interleave(launch: Any, data: Any, options: argparse.Namespace) -> None:
    import torch
    import torch.distributed as dist
    from transformers import Trainer, TrainerCallback, TrainingArguments

    from lm_scale.engines.session import begin, build_engine
    from lm_scale.pretrain import train
    from lm_scale.training.limits import StopRequest

    session = begin(launch, data)
    build_engine(session)
    bare = bare_loop(launch, data)
    stop = StopRequest()
    blocks: dict[str, list[float]] = {"lm_scale": [], "bare": [], "trainer": []}

    def timed(name: str, action: Any) -> None:
        dist.barrier()
        begin = time.perf_counter()
        action()
        dist.barrier()
        blocks[name].append(time.perf_counter() - begin)

    def ours() -> None:
        session.limits.planned_steps = session.first_step + options.steps
        session.first_step = train(session, stop).step

    def others() -> None:
        pair = [("lm_scale", ours), ("bare", lambda: bare(options.steps))]
        for name, action in pair if len(blocks["bare"]) % 2 else reversed(pair):
            timed(name, action)

    class Interleave(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step % options.steps == 0:
                dist.barrier()
                self.begin = time.perf_counter()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step % options.steps == 0:
                dist.barrier()
                blocks["trainer"].append(time.perf_counter() - self.begin)
                others()

    samples = samples_of(launch, data, options.steps * (options.pairs + 3))
    trainer = Trainer(
        model=mean_loss_module(launch, data),
        args=TrainingArguments(
            output_dir=f"{options.worker}/trainer",
            deepspeed=json.loads(json.dumps(launch.strategy.document)),
            use_cpu=True,
            max_steps=options.steps * (options.pairs + 1),
            per_device_train_batch_size=launch.strategy.batch.micro_batch,
            learning_rate=launch.strategy.learning_rate,
            weight_decay=launch.strategy.document["optimizer"]["params"]["weight_decay"],
            lr_scheduler_type="constant",
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
        ),
        train_dataset=samples,
        callbacks=[Interleave()],
    )
    torch.manual_seed(0)
    trainer.train()
    if dist.get_rank() == 0:  # the first block of each is warm-up
        measured = {name: times[1:] for name, times in blocks.items()}
        (Path(options.worker) / "blocks.json").write_text(json.dumps(measured))
    session.end("completed")
    dist.barrier()


def samples_of(launch: Any, data: Any, steps: int) -> list[dict[str, Any]]:
    """The samples as a data set for others' loaders: the same tokens."""
    import torch

    from lm_scale.data.batches import Samples

    samples = Samples(data.train, packing=True, seq_len=launch.arguments.seq_len)
    count = min(len(samples), steps * launch.strategy.batch.global_batch)
    import numpy as np

    batch = samples.read(np.arange(count))
    ids, labels = torch.from_numpy(batch.input_ids), torch.from_numpy(batch.labels)
    return [{"input_ids": i, "labels": own} for i, own in zip(ids, labels, strict=True)]


def mean_loss_module(launch: Any, data: Any) -> Any:
    """The same model with the same loss, as a mean over the micro-batch: what a loop of one's own would return."""
    import torch

    from lm_scale.models.build import build
    from lm_scale.models.loss import CausalLMLoss

    model, _ = build(launch.source, data.meta["vocab_size"], launch.arguments.seq_len, None, launch.arguments.seed)

    class MeanLoss(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = CausalLMLoss(model, "chunked")

        def forward(self, input_ids: torch.Tensor, labels: torch.Tensor, **_: Any) -> dict[str, torch.Tensor]:
            return {"loss": self.inner(input_ids, labels) / labels.numel()}

    return MeanLoss()


def bare_loop(launch: Any, data: Any) -> Any:
    """DeepSpeed's documented loop; returns a function that runs some steps of it."""
    import deepspeed

    module = mean_loss_module(launch, data)
    engine, _, loader, _ = deepspeed.initialize(
        model=module,
        model_parameters=module.parameters(),
        training_data=samples_of(launch, data, 200),
        config=json.loads(json.dumps(launch.strategy.document)),
        dist_init_required=False,
    )
    batches = iter(loader)

    def run(steps: int) -> None:
        for _ in range(steps):
            batch = next(batches)
            loss = engine(**batch)["loss"]
            engine.backward(loss)
            engine.step()

    return run


if __name__ == "__main__":
    main()
