"""The shipped JSONs: a variant is the base and one difference."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lm_scale.strategy.load import walk
from lm_scale.strategy.rules import check
from lm_scale.strategy.rules.findings import Setting

FOLDER = Path(__file__).parents[2] / "ds_configs"

ZERO1 = {"zero_optimization.stage", "zero_optimization.reduce_bucket_size"}
ZERO3 = ZERO1 | {
    "zero_optimization.stage3_prefetch_bucket_size",
    "zero_optimization.stage3_param_persistence_threshold",
    "zero_optimization.stage3_max_live_parameters",
    "zero_optimization.stage3_max_reuse_distance",
}
OPTIMIZER_CPU = {"zero_optimization.offload_optimizer.device", "zero_optimization.offload_optimizer.pin_memory"}
PARAM_CPU = {"zero_optimization.offload_param.device", "zero_optimization.offload_param.pin_memory"}

DIFFERENCES = {
    "zero0": set(),
    "zero1": ZERO1,
    "zero2": ZERO1,
    "zero3": ZERO3,
    "zero3_hpz": ZERO3 | {"zero_optimization.zero_hpz_partition_size"},
    "pipeline2": {"pipeline.stages", "pipeline.partition_method"},
    "pipeline2_zero1": ZERO1 | {"pipeline.stages", "pipeline.partition_method"},
    "tp2": {"tensor_parallel.autotp_size"},
    "tp2_zero1": ZERO1 | {"tensor_parallel.autotp_size"},
    "zero2_offload": ZERO1 | OPTIMIZER_CPU,
    "zero3_offload": ZERO3 | OPTIMIZER_CPU | PARAM_CPU,
    "zero2_activation_checkpointing": ZERO1
    | {"activation_checkpointing.partition_activations", "activation_checkpointing.cpu_checkpointing"},
}


def leaves(name: str) -> dict[str, object]:
    return dict(walk(json.loads((FOLDER / f"{name}.json").read_text())))


@pytest.mark.parametrize("name", DIFFERENCES)
def test_a_strategy_differs_from_zero0_only_in_what_its_name_is_about(name: str) -> None:
    base, own = leaves("zero0"), leaves(name)
    assert {key for key in base | own if base.get(key) != own.get(key)} == DIFFERENCES[name]


def test_nvme_differs_from_zero3_in_its_drive_alone() -> None:
    base, own = leaves("zero3"), leaves("zero3_nvme")
    changed = {key for key in base | own if base.get(key) != own.get(key)}
    assert changed
    assert all(
        key.startswith(("aio.", "zero_optimization.offload_optimizer.", "zero_optimization.sub_group"))
        for key in changed
    )


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.json")), ids=lambda path: path.stem)
def test_it_has_no_error_on_any_device(path: Path) -> None:
    document = json.loads(path.read_text())
    for setting in (Setting(), Setting(2, "cpu"), Setting(64, "gpu")):
        assert [finding for finding in check(document, setting) if finding.severity == "error"] == []


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.json")), ids=lambda path: path.stem)
def test_batch_rate_decay_and_precision_are_left_to_the_run(path: Path) -> None:
    auto = {key for key, value in walk(json.loads(path.read_text())) if value == "auto"}
    assert auto == {
        "train_batch_size",
        "train_micro_batch_size_per_gpu",
        "gradient_accumulation_steps",
        "bf16.enabled",
        "fp16.enabled",
        "optimizer.params.lr",
        "optimizer.params.weight_decay",
    }
