"""What only a GPU can show: device memory, mixed precision, MFU. Skipped, with the reason, where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from launches import CONFIGS

from lm_scale import report
from lm_scale.records import read

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA or AMD GPU")
SMALL = ("--model", "small", "--seq_len", "512", "--per_device_train_batch_size", "8", "--max_steps", "30", "--no_save")


def start(folder: Path, name: str, strategy: str, *words: str) -> None:
    """The real command on one GPU, without the CPU's environment."""
    import os
    import subprocess
    import sys

    environment = {key: value for key, value in os.environ.items() if key != "DS_ACCELERATOR"}
    command = [sys.executable, "-m", "lm_scale.pretrain", "--ds_config", str(CONFIGS / f"{strategy}.json"), *SMALL]
    command += ["--sample_tokens", "8", "--output_dir", str(folder), "--run_name", name, *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("strategy", ["zero0", "zero1", "zero2", "zero3", "zero2_offload", "zero3_offload"])
def test_a_strategy_runs_and_is_measured(tmp_path: Path, strategy: str) -> None:
    start(tmp_path, strategy, strategy)
    row = report.load([tmp_path]).iloc[0]
    assert row["status"] == "completed"
    assert row["precision"] in ("bf16", "fp16")
    assert 0 < row["peak_device_bytes"] <= row["peak_reserved_bytes"] <= row["device_memory_bytes"]
    assert row["tokens_per_s"] > 0
    losses = [step["loss"] for step in read(tmp_path / strategy).of("step")]
    assert losses[-1] < losses[0] - 1


def test_mfu_is_a_share_of_a_known_device(tmp_path: Path) -> None:
    start(tmp_path, "zero1", "zero1")
    row = report.load([tmp_path]).iloc[0]
    if read(tmp_path / "zero1").header["hardware"]["device_peak_flops_per_s"] is None:
        pytest.skip(f"the peak of {row['device']} is not in the table")
    assert 0 < row["mfu"] < 1


def test_fp16_scales_its_loss_and_learns(tmp_path: Path) -> None:
    start(tmp_path, "fp16", "zero2", "--fp16", "--bf16", "false")
    steps = read(tmp_path / "fp16").of("step")
    completed = [step for step in steps if not step["skipped"]]
    assert [step["step"] for step in completed] == list(range(1, 31))
    assert completed[-1]["loss"] < completed[0]["loss"] - 1


def test_recomputing_activations_takes_less_memory(tmp_path: Path) -> None:
    start(tmp_path, "zero2", "zero2")
    start(tmp_path, "recomputed", "zero2_activation_checkpointing")
    rows = report.load([tmp_path]).set_index("name")
    assert rows.loc["recomputed", "peak_device_bytes"] < rows.loc["zero2", "peak_device_bytes"]
