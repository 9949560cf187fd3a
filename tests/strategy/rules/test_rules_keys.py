"""Unknown keys are reported with what was meant, at every level; DeepSpeed does what the lint says of the others."""

from __future__ import annotations

import json
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from deepspeed_config import BATCH, put, verdicts

from lm_scale.strategy import known
from lm_scale.strategy.rules import keys
from lm_scale.strategy.rules.findings import Finding, Setting

WILD = Path(__file__).parents[3].parent / "shared" / "wild_configs"
ZERO = "zero_optimization"


def findings(document: dict[str, Any]) -> list[Finding]:
    return list(keys.findings(document, Setting()))


def only(document: dict[str, Any], path: str) -> Finding:
    found = [one for one in findings(document) if one.path == path]
    assert len(found) == 1, found
    return found[0]


def typos(name: str) -> Iterator[str]:
    """Every deletion and transposition, and at every position one insertion and one substitution."""
    for i in range(len(name) + 1):
        letter = string.ascii_lowercase[(7 * i + len(name)) % 26]
        yield name[:i] + letter + name[i:]
        if i < len(name):
            yield name[:i] + name[i + 1 :]
            yield name[:i] + letter + name[i + 1 :]
            yield name[:i] + name[i + 1 : i + 2] + name[i] + name[i + 2 :]


@pytest.mark.parametrize("block", [block for block in known.blocks().values() if not block.open], ids=lambda b: b.place)
def test_every_typo_of_every_key_is_reported_with_the_right_name(block: known.Block) -> None:
    within = tuple("0" if key == "*" else key for key in block.place)
    for name in block.keys:
        for typo in typos(name):
            if not typo or typo in block.keys:
                continue
            document: Any = {typo: 1}
            for key in reversed(within):
                document = [document] if key == "0" and block.place[-2] == "layer_specs" else {key: document}
            found = only(document, ".".join((*within, typo)))
            assert found.severity == "error"
            assert ".".join((*within, name)) in found.fix, (typo, found.fix)


@pytest.mark.parametrize(
    ("path", "fix"),
    [
        ("reduce_bucket_size", "move it to zero_optimization.reduce_bucket_size"),
        ("stage3_prefetch_bucket_sise", "did you mean zero_optimization.stage3_prefetch_bucket_size?"),
        (f"{ZERO}.gradient_clipping", "move it to the top level, as gradient_clipping"),
        (f"{ZERO}.offload_optimizer.max_in_cpu", "move it to zero_optimization.offload_param.max_in_cpu"),
        (f"{ZERO}.cpu_offload_params", "today zero_optimization.offload_param?"),
        ("aio.thread_count", "did you mean aio.intra_op_parallelism?"),
        ("gradient_accumulation_dtype", "did you mean data_types.grad_accum_dtype?"),
        ("zero_stage", "did you mean zero_optimization.stage?"),
        ("offload_param_device", "did you mean zero_optimization.offload_param.device?"),
        ("zeroOptimization", "did you mean zero_optimization?"),
        ("optimizer.weight_decay", "move it to optimizer.params.weight_decay"),
        ("scheduler.warmup_num_steps", "move it to scheduler.params.warmup_num_steps"),
        ("max_grad_norm", "did you mean gradient_clipping?"),
        ("fp16.opt_level", "DeepSpeed's fp16 has one way; delete it"),
        ("checkpoint.tag_validation_mode", "did you mean checkpoint.tag_validation?"),
        ("pipeline.pipeline_parallel_size", "did you mean pipeline.stages?"),
        ("learning_rate", "did you mean optimizer.params.lr?"),
        ("checkpoint.save_best", "delete it"),
        ("bf16.loss_scale", "bf16 needs no loss scaling; delete it"),
        ("wandb.entity", "did you mean wandb.team?"),
    ],
)
def test_what_was_meant_by_name_and_place(path: str, fix: str) -> None:
    found = only(put(tuple(path.split(".")), 1), path)
    assert (found.rule, found.severity) == ("unknown-key", "error")
    assert fix in found.fix


def test_a_removed_key_comes_with_what_replaces_it() -> None:
    assert only(put(("amp", "enabled"), True), "amp").fix == "turn on bf16, fp16 or torch_autocast instead"
    assert only(put(("sparse_attention", "mode"), "fixed"), "sparse_attention").fix == "delete it"


def test_keys_of_a_document_within_a_document() -> None:
    found = only({"deepspeed_config": {"zero_optimization": {"stage": 2}, "train_batch_size": 8}}, "deepspeed_config")
    assert found.fix == "its keys belong at the top level; move them there"


def test_the_user_names_the_keys_of_open_blocks() -> None:
    document = put(("optimizer", "params", "anything"), 1) | put(("scheduler", "params", "at_all"), 1)
    assert findings(document) == []


CASES: dict[str, dict[str, Any]] = {
    "old alone": put((ZERO, "cpu_offload"), True) | {ZERO: {"stage": 2, "cpu_offload": True}},
    "old and new": BATCH | {ZERO: {"stage": 2, "cpu_offload": True, "offload_optimizer": {"device": "cpu"}}},
    "both names": BATCH | {ZERO: {"stage": 3, "prefetch_bucket_size": 1, "stage3_prefetch_bucket_size": 1}},
    "comment above": BATCH | {"_comment": "fast"},
    "comment in a lax block": put(("aio", "_comment"), "fast"),
    "comment in a strict block": put((ZERO, "_comment"), "fast"),
    "commented out": BATCH | {"_gradient_clipping": 0.5},
    "unknown above": BATCH | {"gradient_cliping": 0.5},
    "unknown in a lax block": put(("flops_profiler", "enable"), True),
    "unknown in a strict block": put((ZERO, "overlap_com"), True),
    "removed": put(("elasticity",), {}),
    "removed in zero": put((ZERO, "mics_shard_size"), 4),
    "curriculum without metrics": put((*keys.SAMPLING, "curriculum_learning"), {"enabled": True}),
    "batching without tokens": put((*keys.SAMPLING, "dynamic_batching"), {"enabled": True}),
    "inert": BATCH | {"disable_allgather": True, ZERO: {"stage": 1, "allgather_partitions": False}},
    "pipeline stages": put(("pipeline", "stages"), 2),
    "checkpointing": put(("activation_checkpointing",), {"partition_activations": True}),
    "the old name of bf16": put(("bfloat16", "enabled"), True),
}
SAID = {
    "old alone": (False, "note", "deprecated-key"),
    "old and new": (True, None, None),  # offload.py
    "both names": (True, "error", "key-twice"),
    "comment above": (False, "note", "comment-key"),
    "comment in a lax block": (False, "note", "comment-key"),
    "comment in a strict block": (True, "error", "comment-key"),
    "commented out": (False, "warning", "comment-key"),
    "unknown above": (False, "error", "unknown-key"),
    "unknown in a lax block": (False, "error", "unknown-key"),
    "unknown in a strict block": (True, "error", "unknown-key"),
    "removed": (True, "error", "removed-key"),
    "removed in zero": (True, "error", "removed-key"),
    "curriculum without metrics": (True, "error", "missing-key"),
    "batching without tokens": (True, "error", "missing-key"),
    "inert": (False, "warning", "inert-key"),
    "pipeline stages": (False, "note", "project-key"),
    "checkpointing": (False, "note", "checkpointing-inert"),
    "the old name of bf16": (False, "note", "deprecated-key"),
}
"""Whether DeepSpeed refuses the document, and what the lint says."""


@pytest.fixture(scope="module")
def told() -> dict[str, str | None]:
    return dict(zip(CASES, verdicts(list(CASES.values())), strict=True))


@pytest.mark.parametrize("name", CASES)
def test_deepspeed_does_what_the_lint_says(name: str, told: dict[str, str | None]) -> None:
    refuses, severity, rule = SAID[name]
    assert (told[name] is not None) == refuses, told[name]
    found = findings(CASES[name])
    assert {(one.severity, one.rule) for one in found} == ({(severity, rule)} if rule else set())
    assert all(("refuse" in one.message) == refuses for one in found if one.rule == "unknown-key")


@pytest.mark.skipif(not WILD.exists(), reason="the collected configuration files are not on this machine")
def test_files_as_people_keep_them() -> None:
    """Unknown and removed keys at just the places where a careful reader found them."""
    hjson = pytest.importorskip("hjson")
    for told in json.loads((WILD / "expected.json").read_text(encoding="utf-8")):
        document = hjson.loads((WILD / told["file"]).read_text(encoding="utf-8"))
        nested = {f"{block}.{key}" for block, names in told["unknown_nested"].items() for key in names}
        rules = ("unknown-key", "comment-key", "removed-key")
        found = {one.path for one in findings(document) if one.rule in rules}
        assert found == nested | set(told["unknown_top_level"]) | set(told["removed"]), told["file"]
