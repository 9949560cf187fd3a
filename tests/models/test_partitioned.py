"""ZeRO-3 on two ranks against one process: the same first weights, the same loss, the same gradients."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from launches import run_ranks

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
    done = run_ranks(str(WORKER), str(folder / "record.json"), threads=1)
    assert done.returncode == 0, done.stderr[-3000:]
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
