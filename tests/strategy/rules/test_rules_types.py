"""Every value of every key: the lint refuses what DeepSpeed refuses, and nothing that it takes."""

from __future__ import annotations

from typing import Any

import pytest
from deepspeed_config import put, verdicts_and_values

from lm_scale.strategy import known
from lm_scale.strategy.rules import check, types
from lm_scale.strategy.rules.findings import Finding, Place, Setting

VALUES: list[Any] = [
    *(None, True, False, 0, 1, 2, -1, 7, 0.0, 1.0, 0.5, -0.5, 1.5, 5e8, 1e300),
    *("", "true", "True,", "false", "off", "2", "2.0", "1_0", "5e8", "1.5", "abc", "cpu", "nan"),
    *([], [1], ["abc"], ["z1"], {}),
]
COMBINATIONS = (
    "Partial offloading",
    "is only supported with ZeRO",
    "compute_grad_norm=false",
    "GDS currently only supported",
    "must be specified",
    "cannot be empty",
)
"""Refusals of a value beside others: the subject of other rules, and of no key's type."""
Case = tuple[Place, Any]


def findings(document: dict[str, Any]) -> list[Finding]:
    return list(types.findings(document, Setting()))


TAKEN_FOR = [
    ("dump_state", "false", "dump_state", "false"),  # a text that is not empty counts as true
    ("gradient_clipping", "1.0", "gradient_clipping", "1.0"),  # test_proofs.py has the TypeError at the first step
    ("zero_optimization.stage", "2", "zero_config.stage", 2),
    ("zero_optimization.stage", True, "zero_config.stage", 1),
    ("zero_optimization.reduce_bucket_size", "2.0", "zero_config.reduce_bucket_size", 2),
    ("zero_optimization.overlap_comm", "off", "zero_config.overlap_comm", False),
    ("zero_optimization.cpu_offload", True, "zero_config.offload_optimizer.device", "cpu"),
    ("zero_optimization.stage3_max_live_parameters", 5.0, "zero_config.max_live_parameters", 5),
    ("bfloat16.enabled", True, "bfloat16_config.enabled", True),
]
"""What DeepSpeed makes of a value: path, value, attribute of its configuration, and what that holds."""
Told = list[tuple[Case, dict[str, Any], str | None]]


@pytest.fixture(scope="module")
def answers() -> tuple[Told, list[Any]]:
    """DeepSpeed on each key of each block with each of the values: thousands of documents, one process."""
    blocks = [block for place, block in known.blocks().items() if "*" not in place and not block.open]
    cases = [(key.place, value) for block in blocks for key in block.keys.values() for value in VALUES]
    documents = [put(place, value) for place, value in cases]
    probes = [(put(tuple(path.split(".")), value), attribute) for path, value, attribute, _ in TAKEN_FOR]
    verdicts, values = verdicts_and_values(documents, probes)
    return list(zip(cases, documents, verdicts, strict=True)), values


@pytest.fixture(scope="module")
def told(answers: tuple[Told, list[Any]]) -> Told:
    return answers[0]


def test_what_deepspeed_takes_a_value_for(answers: tuple[Told, list[Any]]) -> None:
    for (path, value, _, expected), found in zip(TAKEN_FOR, answers[1], strict=True):
        assert (found, type(found)) == (expected, type(expected)), (path, value)


def test_what_deepspeed_refuses_is_an_error(told: Told) -> None:
    missed = []
    for case, document, verdict in told:
        if verdict is None or any(words in verdict for words in COMBINATIONS):
            continue
        if not any(one.severity == "error" for one in check(document, Setting())):
            missed.append((case, verdict))
    assert missed == []


def test_what_a_strict_block_takes_is_no_error(told: Told) -> None:
    wrong = [
        (case, one.message)
        for case, document, verdict in told
        if verdict is None and (block := known.block(case[0][:-1])) is not None and block.strict
        for one in findings(document)
        if one.severity == "error"
    ]
    assert wrong == []


def test_one_fault_is_one_error_of_the_value(told: Told) -> None:
    """Other rules that judge values judge them alone."""
    for (place, value), document, _ in told:
        assert len(findings(document)) <= 1, (place, value)


@pytest.mark.parametrize(
    ("path", "value", "severity", "words"),
    [
        ("gradient_clipping", "1.0", "error", "write 1, without quotes"),
        ("gradient_clipping", None, "error", "fails at the first step"),
        ("gradient_clipping", {"enabled": True}, "error", "a block is no number"),
        ("wall_clock_breakdown", "false", "error", "write false, without quotes"),
        ("dump_state", "false", "error", "this one for true"),
        ("dump_state", "True,", "warning", "write true, without quotes"),
        ("zero_optimization.reduce_bucket_size", "5e8", "error", "write 500000000, without quotes"),
        ("zero_optimization.reduce_bucket_size", 1.5, "error", "a whole number"),
        ("zero_optimization.reduce_bucket_size", 0, "error", "above 0"),
        ("zero_optimization.stage", 4, "error", "it takes 0, 1, 2, 3"),
        ("zero_optimization.stage", "2", "note", "write 2, without quotes"),
        ("zero_optimization.stage", True, "warning", "takes it for 1"),
        ("zero_optimization.overlap_comm", "True,  # fast", "error", "write true, without quotes"),
        ("zero_optimization.offload_param.device", "gpu", "error", '"none", "cpu", "nvme"'),
        ("zero_optimization.offload_param", "cpu", "error", "a block"),
        ("fp16.min_loss_scale", 0.5, "error", "the default is 1"),
        ("fp16.loss_scale", True, "error", "a number"),
        ("bf16", True, "error", "no block"),
        ("compile.passes", ["z2"], "error", '"z1"'),
        ("aio.block_size", "1MB", "error", "a whole number"),
        ("flops_profiler.profile_step", 1.5, "warning", "whole number"),
    ],
)
def test_what_it_says(path: str, value: Any, severity: str, words: str) -> None:
    (found,) = findings(put(tuple(path.split(".")), value))
    assert (found.path, found.severity, found.rule) == (path, severity, "wrong-type")
    assert words in f"{found.message} | {found.fix}"


@pytest.mark.parametrize("value", [5e8, 500000000, "auto"])
def test_sizes_as_people_write_them(value: Any) -> None:
    assert findings(put(("zero_optimization", "reduce_bucket_size"), value)) == []
