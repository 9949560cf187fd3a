"""The shipped table of known keys is what the installed DeepSpeed gives, and holds where DeepSpeed reads documents."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lm_scale.strategy import known
from lm_scale.strategy.known import MISSING, Block, Key, Place

sys.path.append(str(Path(__file__).parents[1] / "strategy" / "rules"))
from deepspeed_config import BATCH, put
from deepspeed_config import told as ask

SHIPPED = Path(known.__file__).parent / "known_keys.json"
OF_TORCH = ("torch_version", "optimizers", "schedulers")
SHARED = Path(__file__).parents[2].parent / "shared" / "deepspeed_known_keys.json"
LATER = (
    "data_efficiency.data_routing.random_ltd.",  # the engine and its layers
    "data_efficiency.data_sampling.curriculum_learning.",  # the sampler
    "data_efficiency.data_sampling.dynamic_batching.",  # its loader
    "pipeline.",  # the pipeline engine, and this project
    "tensor_parallel.partition_config.",  # the engine, where it shards the model
    "sequence_parallel_size",  # deepspeed.initialize
    "data_parallel_size",
)
"""Keys that nothing asks for while DeepSpeed reads the file, and others do afterwards."""


@pytest.fixture(scope="module")
def generated() -> str:
    environment = os.environ | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "lm_scale.engines.known_keys"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_the_shipped_table_is_the_generated_one(generated: str) -> None:
    shipped = SHIPPED.read_text(encoding="utf-8")
    if known.table()["torch_version"] == torch.__version__.partition("+")[0]:
        assert generated == shipped
    else:  # torch's own optimizers and schedulers change with its release
        ours, theirs = json.loads(shipped), json.loads(generated)
        assert {name: ours[name] for name in ours if name not in OF_TORCH} == {
            name: theirs[name] for name in theirs if name not in OF_TORCH
        }


def closed() -> list[Block]:
    """The blocks of the table that have one place and keys of their own."""
    return [block for place, block in known.blocks().items() if "*" not in place and not block.open]


def acceptable(key: Key) -> bool:
    """Whether the default of a key alone is a document that stands: `null` and the batch are no settings."""
    return key.default is not MISSING and key.default is not None


def everything(place: Place = ()) -> dict[str, Any]:
    """All blocks that are no pydantic models, empty."""
    inner = [(*place, name) for name, key in known.blocks()[place].keys.items() if key.block]
    lax = [one for one in inner if one in known.blocks() and not known.blocks()[one].strict]
    return {one[-1]: {} if known.blocks()[one].open else everything(one) for one in lax}


@pytest.fixture(scope="module")
def answers() -> tuple[dict[tuple[str, Place], str | None], set[str]]:
    """DeepSpeed on each block with an unknown key, on each key with its default, and on what it refuses; and the places
    that it asks for in documents with all blocks."""
    cases: dict[tuple[str, Place], Any] = {}
    for block in closed():
        cases["unknown", block.place] = put((*block.place, "no_such_key"), 1)
        for key in block.keys.values():
            if acceptable(key):
                cases["default", key.place] = put(key.place, key.default)
    for dotted in known.table()["removed"]:
        place = tuple(dotted.split("."))
        cases["removed", place] = put(place, {})
    for key in known.blocks()["zero_optimization",].keys.values():
        if key.alias:
            cases["both names", key.place] = BATCH | {
                "zero_optimization": {key.name: key.default, key.alias: key.default}
            }
    full = everything() | BATCH | {"expert_parallel": {"enabled": False}}
    full |= {"optimizer": {"type": "None", "params": {}}, "scheduler": {"type": "None", "params": {}}}
    verdicts, lookups = ask(list(cases.values()), [full, BATCH | {"zero_optimization": True}])
    return dict(zip(cases, verdicts, strict=True)), {place for asked in lookups for place in asked}


@pytest.fixture(scope="module")
def told(answers: tuple[dict[tuple[str, Place], str | None], set[str]]) -> dict[tuple[str, Place], str | None]:
    return answers[0]


def of(told: dict[tuple[str, Place], str | None], kind: str) -> dict[Place, str | None]:
    return {place: verdict for (what, place), verdict in told.items() if what == kind}


def test_strict_blocks_refuse_an_unknown_key_and_the_others_ignore_it(told: dict[Any, str | None]) -> None:
    refuses = {place: verdict is not None for place, verdict in of(told, "unknown").items()}
    assert refuses == {block.place: block.strict for block in closed()}


def test_every_key_is_taken_with_the_default_of_the_table(told: dict[Any, str | None]) -> None:
    defaults = of(told, "default")
    assert len(defaults) > 200
    assert {place: verdict for place, verdict in defaults.items() if verdict} == {}


def test_removed_keys_are_refused_with_the_message_of_the_table(told: dict[Any, str | None]) -> None:
    for place, verdict in of(told, "removed").items():
        assert verdict == f"DeepSpeedConfigError: {known.removed(place)}"


def test_two_names_of_one_setting_are_refused_together(told: dict[Any, str | None]) -> None:
    assert all("Extra inputs" in str(verdict) for verdict in of(told, "both names").values())
    assert len(of(told, "both names")) > 10


def test_deepspeed_asks_for_the_keys_of_the_table_and_no_others(answers: tuple[Any, set[str]]) -> None:
    """A second derivation: documents that note what is asked of them, against the walk over the sources."""
    asked = answers[1] - {"optimizer.params.max_grad_norm"}  # of an open block
    table = {".".join(key.place) for block in closed() for key in block.keys.values()}
    assert asked - table - set(known.table()["removed"]) == set()
    of_dicts = {".".join(key.place) for block in closed() if not block.strict for key in block.keys.values()}
    assert {place for place in of_dicts - asked if not place.startswith(LATER)} == set()


def test_only_these_keys_are_read_by_nothing() -> None:
    """By name over all sources; the other inert keys are remarks with their evidence."""
    found = {
        ".".join(key.place) for block in closed() for key in block.keys.values() if key.inert.startswith("nothing")
    }
    assert found == {
        "disable_allgather",
        "data_efficiency.enabled",
        "weight_quantization.q_type",
        "zero_optimization.allgather_partitions",
    }


@pytest.mark.skipif(not SHARED.exists(), reason="the table made by hand is not on this machine")
def test_a_table_made_by_hand_has_the_same_keys() -> None:
    """But for this project's two keys, and two that have a default and no reader."""
    hand = json.loads(SHARED.read_text(encoding="utf-8"))
    ours = {place: set(block.keys) for place, block in known.blocks().items()}
    assert set(hand["known"]) == ours[()]
    assert {**hand["removed_raise"], **hand["removed_zero_raise"]}.keys() == {
        place.rpartition(".")[2] for place in known.table()["removed"]
    }
    ours["pipeline",] -= {"stages", "partition_method", "partition", "seed_layers"}
    for dotted, told in (hand["strict_blocks"] | hand["lax_blocks"]).items():
        assert set(told["fields"]) == ours[tuple(dotted.split("."))], dotted


def test_signatures_are_those_of_the_classes() -> None:
    """A few, by hand from DeepSpeed's and torch's documentation."""
    optimizers, schedulers = known.table()["optimizers"], known.table()["schedulers"]
    assert optimizers["adamw"]["variants"]["device"]["betas"] == [0.9, 0.999]
    assert "fused" in optimizers["adam"]["variants"]["torch"]
    assert "fused" not in optimizers["adam"]["variants"]["device"]
    assert optimizers["SGD"]["variants"]["device"]["momentum"] == 0
    assert schedulers["WarmupDecayLR"]["parameters"]["total_num_steps"] == {"required": True}
    assert schedulers["WarmupLR"]["parameters"]["warmup_type"] == "log"
    assert schedulers["WarmupDecayLR"]["parameters"]["warmup_max_lr"] == 0.001
