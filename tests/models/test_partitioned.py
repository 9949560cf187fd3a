"""ZeRO-3 on two ranks against one process: the same first weights, the same loss, the same gradients."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

WORKER = Path(__file__).with_name("partitioned_worker.py")
MODELS = (
    "llama",
    "llama tied",
    "llama padded",
    "qwen3",
    "qwen3 tied",
    "gpt2",
    "gpt2 untied",
    "qwen3_moe",
    "mixtral tied",
    "qwen3 in bf16",
)


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("partitioned")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(WORKER.parents[2]), os.environ.get("PYTHONPATH", "")]),
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
        "WORLD_SIZE": "2",
        "LOCAL_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    processes = []
    for rank in range(2):
        with open(folder / f"rank{rank}.txt", "w") as log:
            environment = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            command = [sys.executable, str(WORKER), str(folder / "record.json")]
            processes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT))
    try:
        codes = [process.wait(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert codes == [0, 0], "\n".join((folder / f"rank{rank}.txt").read_text()[-3000:] for rank in range(2))
    return json.loads((folder / "record.json").read_text())


@pytest.mark.parametrize("model", MODELS)
def test_partitioned_weights_are_bit_by_bit_those_of_one_process(record: Any, model: str) -> None:
    assert record["initialized"][model] == []


@pytest.mark.parametrize("model", ["qwen3_moe", "gpt2"])
def test_a_directory_is_continued_in_parts(record: Any, model: str) -> None:
    assert record["continued"][model] == []


@pytest.mark.parametrize("model", ["qwen3", "qwen3 tied", "gpt2"])
def test_chunked_loss_of_a_partitioned_head(record: Any, model: str) -> None:
    result = record["loss"][model]
    assert result["loss 0"] < 1e-6
    assert result["loss 1"] < 1e-6
    assert result["gradients 0"] < 1e-5
    assert result["gradients 1"] < 1e-5
    assert result["gradient of an evaluation"] == 0
