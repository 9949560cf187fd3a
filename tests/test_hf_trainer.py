"""Every shipped JSON is portable: Hugging Face's Trainer runs the same file, unchanged, on the same two CPU ranks."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from launches import CONFIGS, STRATEGIES, free_port, has_libaio


@pytest.fixture(scope="session")
def results() -> dict[str, dict[str, Any]]:
    """One launch for all: a Trainer after another in the same two processes."""
    chosen = [str(CONFIGS / f"{name}.json") for name in STRATEGIES if name != "zero3_nvme" or has_libaio()]
    launcher = str(Path(sys.executable).parent / "deepspeed")
    worker = str(Path(__file__).with_name("hf_trainer_worker.py"))
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    command = [launcher, "--num_gpus", "2", "--master_port", str(free_port()), worker, *chosen]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, env=environment)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    lines = [line.split(" ", 1)[1] for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    return {Path(result["path"]).stem: result for result in map(json.loads, lines)}


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_file_trains_in_trainer_at_its_own_stage(results: dict[str, dict[str, Any]], name: str) -> None:
    if name == "zero3_nvme" and not has_libaio():
        pytest.skip("NVMe offload needs libaio-dev")
    result = results[name]
    executed = json.loads((CONFIGS / f"{name}.json").read_text())
    assert result["stage"] == executed["zero_optimization"]["stage"]
    assert result["ranks"] == 2
    assert len(result["losses"]) == 3
    assert all(math.isfinite(loss) for loss in result["losses"])
    assert result["losses"][0] == pytest.approx(math.log(512), abs=0.2)
