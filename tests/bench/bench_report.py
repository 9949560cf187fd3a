"""What the report costs: `--help`, 12 logs, and 1,000 runs of 1,000 steps, each in a process of its own.

    python tests/bench/bench_report.py [RUNS [STEPS]]

The runs are copies of one that the writer of run directories writes; the logs are the samples of Trainer's consoles,
each repeated until it is as long as half an hour of training.

Prints seconds and the peak resident memory of each command.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from lm_scale.records import Writer, process_identity

REPOSITORY = Path(__file__).parents[2]
SAMPLES = REPOSITORY / "tests/report/samples/trainer_log"
LOG_BYTES = 200_000


def write_runs(folder: Path, runs: int, steps: int) -> None:
    """`runs` directories of `steps` steps, all with names, learning rates and start times of their own."""
    header = {
        "status": "completed",
        "process": {**process_identity(["pretrain"]), "host": "node"},
        "strategy": {"name": "zero2", "engine": "deepspeed", "zero_stage": 2, "offload": "none"},
        "layout": {"world_size": 8, "nodes": 1, "data_parallel": 8, "pipeline_stages": 1, "tensor_parallel": 1},
        "batch": {"micro_batch": 8, "grad_accum": 2, "global_batch": 128, "seq_len": 512, "packing": True},
        "numerics": {"precision": "bf16", "master_weights": True, "torch_compile": False},
        "model": {"name": "mini", "params": 5_000_000, "flops_per_token": 30_000_000},
        "schedule": {"type": "cosine", "planned_steps": steps},
    }
    writer = Writer.create(folder / "first", header, {})  # type: ignore[arg-type]
    for number in range(1, steps + 1):
        writer.append(
            "step",
            **{"step": number, "elapsed_s": 0.3 * number, "step_s": 0.3 + number % 7 / 1000, "loss": 9 - number / 200},
            **{"grad_norm": 1.0, "lr": 1e-4, "samples": 128, "tokens": 65536, "useful_tokens": 65000, "skipped": False},
            **{"compiled": False, "peak_device_bytes": 10**10, "peak_reserved_bytes": 11 * 10**9},
        )
    written = json.loads((folder / "first/run.json").read_text(encoding="utf-8"))
    metrics = (folder / "first/metrics.jsonl").read_bytes()
    for number in range(1, runs):
        path = folder / f"run-{number:04}"
        path.mkdir()
        start = f"2026-{1 + number // 600:02}-{1 + number // 24 % 25:02}T{number % 24:02}:00:00+00:00"
        changes = {"name": path.name, "created_at": start, "started_at": start, "seed": number}
        (path / "run.json").write_text(json.dumps({**written, **changes}), encoding="utf-8")
        (path / "metrics.jsonl").write_bytes(metrics)


def write_logs(folder: Path, logs: int) -> None:
    """Trainer's consoles with the middle of their bar repeated."""
    folder.mkdir()
    samples = sorted(SAMPLES.glob("*.log"))
    for number in range(logs):
        data = samples[number % len(samples)].read_bytes()
        head, middle, tail = data[: len(data) // 2], data[len(data) // 2 : -2000], data[-2000:]
        repeats = max((LOG_BYTES - len(data)) // max(len(middle), 1), 0)
        (folder / f"{number:02}-{samples[number % len(samples)].name}").write_bytes(
            head + middle * (1 + repeats) + tail
        )


def measure(what: str, *words: str) -> None:
    began = time.perf_counter()
    command = [sys.executable, "-m", "lm_scale.report", *words]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - began
    cpu = usage.ru_utime + usage.ru_stime
    print(
        f"{what}: {wall:.2f} s ({cpu:.2f} s of CPU), {usage.ru_maxrss / 1024:.0f} MiB, status {status >> 8}", flush=True
    )


def main(runs: int = 1000, steps: int = 1000) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "runs").mkdir()
        write_logs(folder / "logs", 12)
        measure("--help", "--help")
        measure("12 logs", str(folder / "logs"))
        write_runs(folder / "runs", runs, steps)
        measure(f"{runs} runs of {steps} steps", str(folder / "runs"))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
