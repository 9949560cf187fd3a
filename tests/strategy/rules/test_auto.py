"""`"auto"`: what the rules say of it is what Trainer, Accelerate and DeepSpeed do."""

from __future__ import annotations

from typing import Any

import pytest
from auto_and_batch_worker import PARSED, STARTED, answers

from lm_scale.strategy.load import get, put, walk
from lm_scale.strategy.rules import auto
from lm_scale.strategy.rules.findings import Finding, Setting


def found(document: dict[str, Any]) -> dict[str, Finding]:
    return {finding.path: finding for finding in auto.findings(document, Setting())}


def test_trainer_fills_what_the_rules_say_it_fills() -> None:
    filled = answers()["trainer"][0]["filled"]
    assert [path for path, value in walk(filled) if value == "auto"] == []
    # of hidden size 64; the warm-up, rate and sizes are those that Trainer's arguments were given
    expected = {
        "train_batch_size": 6,
        "gradient_clipping": 0.75,
        "optimizer.params.weight_decay": 0.25,
        "scheduler.params.warmup_max_lr": 2e-3,
        "scheduler.params.warmup_num_steps": 5,
        "scheduler.params.total_num_steps": 100,
        "bf16.enabled": False,
        "zero_optimization.reduce_bucket_size": 64 * 64,
        "zero_optimization.stage3_prefetch_bucket_size": 3686,
        "zero_optimization.stage3_param_persistence_threshold": 640,
    }
    assert {path: get(filled, path) for path in expected} == expected


def test_below_stage_3_trainer_leaves_the_sizes_that_nothing_reads_there() -> None:
    left = answers()["trainer"][0]["below_stage_3"]
    assert left == {"stage": 2, "reduce_bucket_size": 64 * 64, "stage3_prefetch_bucket_size": "auto"}
    message = found({"zero_optimization": left})["zero_optimization.stage3_prefetch_bucket_size"].message
    assert "Trainer leaves it below stage 3" in message


def test_a_filled_key_is_a_note_and_accelerates_own_a_warning() -> None:
    document: dict[str, Any] = {}
    for place in (*auto.FILLED, *auto.ACCELERATE):
        put(document, ".".join(place), "auto")
    findings = found(document)
    assert {findings[".".join(place)].severity for place in auto.FILLED} == {"note"}
    assert {findings[".".join(place)].rule for place in auto.ACCELERATE} == {"auto-accelerate-only"}
    assert {findings[".".join(place)].severity for place in auto.ACCELERATE} == {"warning"}


def test_accelerate_fills_what_trainer_does_not() -> None:
    filled = answers()["accelerate"][0]
    for place in auto.ACCELERATE:
        assert get(filled, ".".join(place)) != "auto"
    assert get(filled, "zero_optimization.stage") == 2
    assert (filled["steps_per_print"], filled["overlap_comm"]) == ("inf", "auto")


def test_what_deepspeed_makes_of_auto_is_what_the_rules_say() -> None:
    values = [value for value, _ in zip(answers()["parsed"], PARSED, strict=True)]
    taken = {path: value for (_, path), value in zip(PARSED, values, strict=True)}
    assert taken == {
        "bfloat16_config.enabled": False,
        "float16_config.enabled": False,
        "zero_config.stage": 0,
        "zero_config.reduce_bucket_size": 500_000_000,
        "zero_config.prefetch_bucket_size": 50_000_000,
        "zero_config.param_persistence_threshold": 100_000,
        "zero_config.overlap_comm": False,
        "zero_config.offload_optimizer.device": "none",
        "zero_config.offload_param.device": "none",
        "gradient_clipping": "auto",
        "dump_state": "auto",
        "prescale_gradients": "auto",
    }
    said = {path: finding.message for document, _ in PARSED for path, finding in found(document).items()}
    assert "silently takes false" in said["bf16.enabled"]
    assert "stage 0" in said["zero_optimization.stage"]
    assert "silently takes its default" in said["zero_optimization.overlap_comm"]
    assert "counts as true" in said["dump_state"]


def test_where_bare_deepspeed_dies_of_auto() -> None:
    outcomes = dict(zip([repr(case) for case in STARTED], answers()["started"], strict=True))
    assert outcomes.pop(repr(STARTED[0])) == "trains"
    assert set(outcomes.values()) == {"TypeError", "ValueError", "AssertionError", "ValidationError"}
    messages = {".".join(place): fate for place, (_, fate) in auto.FILLED.items()}
    for (path, value), outcome in zip(STARTED, answers()["started"], strict=True):
        if path in messages and value == "auto":
            assert outcome in messages[path]


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("steps_per_print", "auto", "TypeError at the first step"),
        ("micro_batch_size_per_gpu", "auto", "no key of this name"),
        ("wall_clock_breakdown", "auto", "counts as true"),
        ("zero_optimization.overlap_comm", "auto", "silently takes its default"),
        ("zero_optimization.sub_group_size", "auto", "silently takes its default, 1000000000"),
        ("bfloat16.enabled", "auto", "silently takes its default"),
        ("optimizer.type", "auto", "takes the text itself"),
        ("optimizer.params.momentum", "auto", "takes the text itself"),
        ("bf16.enabled", "Auto", "nobody reads 'Auto'"),
    ],
)
def test_what_nobody_fills_is_an_error(path: str, value: str, words: str) -> None:
    document: dict[str, Any] = {}
    put(document, path, value)
    finding = found(document)[path]
    assert (finding.severity, finding.rule) == ("error", "auto-not-filled")
    assert words in finding.message


@pytest.mark.parametrize(
    "path",
    ["data_types.keep_in_fp32_modules", "zero_optimization.zenflow.select_strategy", "_comment", "autotuning.fast"],
)
def test_where_auto_is_a_value_or_a_remark_nothing_is_said(path: str) -> None:
    document: dict[str, Any] = {}
    put(document, path, "auto")
    assert found(document) == {}
