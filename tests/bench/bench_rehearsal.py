"""What a rehearsal costs, and how exactly it counts: `python tests/bench/bench_rehearsal.py`.

First seconds and touched memory of rehearsals beside what the rehearsed rank would hold; then the growth of live bytes
in one step by the rehearsal's count, beside torch's own allocator as its profiler reports it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "ds_configs"
CASES = (
    ("zero1", "mini", 64, 512),
    ("zero3", "mini", 1024, 512),
    ("zero1", "small", 1024, 512),
    ("zero3", "llama-7b", 64, 2048),
    ("zero0", "llama-7b", 1, 2048),
)


def costs() -> None:
    print(f"{'strategy':10}{'model':10}{'world':>6}{'seconds':>9}{'process MB':>12}{'rank MB':>10}{'skipped':>9}")
    for strategy, model, world_size, seq_len in CASES:
        words = ["--ds_config", str(CONFIGS / f"{strategy}.json"), "--model", model, "--world_size", str(world_size)]
        words += ["--seq_len", str(seq_len), "--per_device_train_batch_size", "1", "--bf16", "true"]
        begin = time.perf_counter()
        command = [sys.executable, "-m", "lm_scale.engines.rehearsal", *words]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
        seconds, found = time.perf_counter() - begin, json.loads(done.stdout)
        sizes = f"{found['peak_process_bytes'] / 1e6:12.0f}{found['peak_device_bytes'] / 1e6:10.0f}"
        print(f"{strategy:10}{model:10}{world_size:6}{seconds:9.1f}{sizes}{found['skipped_steps']:9}")


def exactness(strategy: str) -> None:
    from torch.profiler import ProfilerActivity, profile

    from lm_scale.arguments import parse
    from lm_scale.engines.deepspeed import DeepSpeedEngine
    from lm_scale.engines.rehearsal import world
    from lm_scale.engines.rehearsal.rehearse import Rehearsal
    from lm_scale.engines.rehearsal.setting import STEPS, RehearsalArguments, launch_of
    from lm_scale.strategy.machine import detect

    machine = detect()
    process = world.prepare_environment(machine, 0, 2)
    words = ["--ds_config", str(CONFIGS / f"{strategy}.json"), "--model", "mini", "--seq_len", "64", "--bf16", "false"]
    launch, vocab_size = launch_of(parse(RehearsalArguments, words, "rehearsal", ""), machine, process)
    world.join_fake_group(process)
    rehearsal = Rehearsal(launch, vocab_size, world.own_device(machine, None), touch=True)
    train_step = DeepSpeedEngine.train_step

    def profiled(engine: DeepSpeedEngine, *arguments: object) -> object:
        if rehearsal.step < STEPS:
            return train_step(engine, *arguments)  # type: ignore[arg-type]
        before = sum(rehearsal.timeline.held().values())
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            result = train_step(engine, *arguments)  # type: ignore[arg-type]
        events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
        live = peak = 0
        for event in sorted(events, key=lambda event: event.start_ns()):
            live += event.nbytes()
            peak = max(peak, live)
        phases = rehearsal.timeline.fullest()
        counted = max(phases[STEPS, name].peak_bytes for name in ("forward", "backward", "step")) - before
        print(f"{strategy:10}{peak:14,} by the allocator{counted:14,} counted{counted - peak:8,} more")
        return result

    DeepSpeedEngine.train_step = profiled  # type: ignore[assignment,method-assign]
    rehearsal.run(STEPS)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        exactness(sys.argv[1])
    else:
        os.environ["DS_ACCELERATOR"] = "cpu"
        costs()
        for name in ("zero0", "zero1", "zero2", "zero3"):
            done = subprocess.run([sys.executable, __file__, name], capture_output=True, text=True, check=True)
            print(done.stdout, end="")
