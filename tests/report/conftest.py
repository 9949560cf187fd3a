"""Real run directories with known numbers, written by the writer that runs use."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lm_scale.records import Header, Writer, process_identity

MakeRun = Callable[..., Path]


def header(name: str, **changes: Any) -> Header:
    """A complete header; `changes` replaces keys of a section, or a whole key where the value is no dict."""
    base: Header = {
        "status": "completed",
        "created_at": "2026-01-01T12:00:00.000+00:00",
        "started_at": "2026-01-01T12:00:10.000+00:00",
        "finished_at": "2026-01-01T12:01:00.000+00:00",
        "process": {**process_identity(["pretrain"]), "host": "node-1"},
        "strategy": {
            "name": name,
            "ds_config": f"{name}.json",
            "engine": "deepspeed",
            "zero_stage": 0,
            "offload": "none",
        },
        "layout": {"world_size": 2, "nodes": 1, "data_parallel": 2, "pipeline_stages": 1, "tensor_parallel": 1},
        "batch": {"micro_batch": 4, "grad_accum": 2, "global_batch": 16, "seq_len": 64, "packing": True},
        "numerics": {
            "precision": "fp32",
            "reduction_precision": "fp32",
            "master_weights": False,
            "activation_checkpointing": False,
            "torch_compile": False,
            "attn_implementation": "sdpa",
            "loss": "chunked",
        },
        "model": {"name": "mini", "params": 5_000_000, "flops_per_token": 30_000_000},
        "data": {"dataset": "builtin:python", "tokenizer": "bpe-8192", "fingerprint": "abc"},
        "optimizer": {"type": "AdamW", "learning_rate": 5e-4},
        "schedule": {"type": "cosine", "planned_steps": 12},
        "seed": 42,
        "hardware": {"device": "cpu", "device_memory_bytes": None, "device_peak_flops_per_s": 1e11},
        "predicted": {"peak_host_bytes": 123},
    }
    for key, value in changes.items():
        base[key] = {**base[key], **value} if isinstance(value, dict) and isinstance(base.get(key), dict) else value
    return base


def step(number: int, **changes: Any) -> dict[str, Any]:
    """A step of 1 second, 16 samples, 1024 tokens of which 1000 carry a label."""
    return {
        **{"step": number, "elapsed_s": float(number), "step_s": 1.0, "loss": 8.0, "grad_norm": 1.5, "lr": 1e-4},
        **{"samples": 16, "tokens": 1024, "useful_tokens": 1000, "skipped": False, "compiled": False},
        **{"peak_device_bytes": None, "peak_reserved_bytes": None, "peak_host_bytes": 1000 + number},
        **changes,
    }


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Writes the run `name` with these steps and other records, and header keys as changed; returns its folder."""

    def make(
        name: str,
        steps: list[dict[str, Any]],
        *,
        others: list[dict[str, Any]] | None = None,
        folder: str = "runs",
        **changes: Any,
    ) -> Path:
        path = tmp_path / folder / name
        writer = Writer.create(path, header(name, **changes), {"zero_optimization": {"stage": 0}})
        for values in steps:
            writer.append("step", **values)
        for values in others or []:
            writer.append(**values)
        return path

    return make


@pytest.fixture
def steps() -> Callable[[int], list[dict[str, Any]]]:
    return lambda count: [step(number) for number in range(1, count + 1)]


def report_command(*words: str | Path, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """The real command."""
    repository = Path(__file__).parents[2]
    return subprocess.run(
        [sys.executable, "-m", "lm_scale.report", *map(str, words)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(repository), **environment},
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=60,
    )


@pytest.fixture
def command() -> Callable[..., subprocess.CompletedProcess[str]]:
    return report_command


@pytest.fixture
def one_step() -> Callable[..., dict[str, Any]]:
    return step
