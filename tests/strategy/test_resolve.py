"""The JSON is the truth: what it says runs, arguments fill its gaps, and a contradiction is refused by both names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lm_scale.arguments import PretrainArguments, UserError, parse
from lm_scale.strategy.load import walk
from lm_scale.strategy.machine import Machine
from lm_scale.strategy.resolve import Strategy, fill_schedule, resolve

CPU = Machine("cpu", 2, False, "no native bf16")
BF16_CPU = Machine("cpu", 2, True, "amx")
A100 = Machine("gpu", 8, True, "compute capability 8.x")
V100 = Machine("gpu", 8, False, "compute capability 7.x")


def resolved(
    folder: Path, document: dict[str, Any] | str, *words: str, machine: Machine = CPU, ranks: int = 2, hidden: int = 256
) -> Strategy:
    path = folder / "strategy.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    arguments = parse(PretrainArguments, ["--ds_config", str(path), *words], "pretrain", "")
    return resolve(arguments, arguments, hidden, ranks, machine)


def test_nothing_is_left_at_auto_and_every_value_has_a_source(tmp_path: Path) -> None:
    strategy = resolved(
        tmp_path,
        {
            "train_batch_size": "auto",
            "train_micro_batch_size_per_gpu": "auto",
            "gradient_accumulation_steps": "auto",
            "gradient_clipping": "auto",
            "bf16": {"enabled": "auto"},
            "optimizer": {
                "type": "AdamW",
                "params": {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"},
            },
            "scheduler": {
                "type": "WarmupDecayLR",
                "params": {"total_num_steps": "auto", "warmup_num_steps": "auto", "warmup_max_lr": "auto"},
            },
            "zero_optimization": {
                "stage": 3,
                "reduce_bucket_size": "auto",
                "stage3_prefetch_bucket_size": "auto",
                "stage3_param_persistence_threshold": "auto",
            },
        },
    )
    fill_schedule(strategy, planned_steps=100, warmup_steps=5)
    leaves = dict(walk(strategy.document))
    assert "auto" not in leaves.values()
    assert leaves.keys() == strategy.sources.keys()
    # Hugging Face's formulas for hidden size 256
    assert leaves["zero_optimization.reduce_bucket_size"] == 65536
    assert leaves["zero_optimization.stage3_prefetch_bucket_size"] == 58982
    assert leaves["zero_optimization.stage3_param_persistence_threshold"] == 2560
    assert leaves["scheduler.params.total_num_steps"] == 100


def test_arguments_fill_auto_and_absent_keys(tmp_path: Path) -> None:
    strategy = resolved(
        tmp_path,
        {"optimizer": {"type": "AdamW", "params": {"lr": "auto"}}},
        *("--learning_rate", "0.003", "--per_device_train_batch_size", "4", "--train_batch_size", "32"),
    )
    assert strategy.learning_rate == 0.003
    assert strategy.document["gradient_accumulation_steps"] == 4
    assert strategy.sources["optimizer.params.lr"] == "--learning_rate"
    assert strategy.sources["train_micro_batch_size_per_gpu"] == "--per_device_train_batch_size"


def test_clipping_that_the_file_leaves_out_is_written_down(tmp_path: Path) -> None:
    """DeepSpeed 0.19.8 clips at 1.0 without being asked; the executed JSON says so."""
    assert resolved(tmp_path, {}).document["gradient_clipping"] == 1.0
    assert resolved(tmp_path, {"gradient_clipping": 0.0}).document["gradient_clipping"] == 0.0


@pytest.mark.parametrize(
    ("document", "words", "names"),
    [
        (
            {"train_micro_batch_size_per_gpu": 4},
            ["--per_device_train_batch_size", "2"],
            ["train_micro_batch_size_per_gpu", "--per_device"],
        ),
        (
            {"train_batch_size": 32},
            ["--train_batch_size", "16"],
            ["train_batch_size is 32", "--train_batch_size is 16"],
        ),
        (
            {"optimizer": {"type": "AdamW", "params": {"lr": 1e-4}}},
            ["--learning_rate", "5e-4"],
            ["optimizer.params.lr is 0.0001", "0.0005"],
        ),
        ({"gradient_clipping": 1.0}, ["--max_grad_norm", "0.5"], ["gradient_clipping", "--max_grad_norm"]),
        ({"bf16": {"enabled": True}}, ["--bf16", "false"], ["bf16.enabled is True", "--bf16 is False"]),
    ],
)  # fmt: skip
def test_a_contradiction_names_both(
    tmp_path: Path, document: dict[str, Any], words: list[str], names: list[str]
) -> None:
    with pytest.raises(UserError) as caught:
        resolved(tmp_path, document, *words)
    assert all(name in str(caught.value) for name in names)
    assert "\n" not in str(caught.value)


def test_an_override_is_the_way_to_differ_from_the_file(tmp_path: Path) -> None:
    strategy = resolved(
        tmp_path,
        {"zero_optimization": {"stage": 1}, "gradient_clipping": 1.0},
        *("--override", "zero_optimization.stage=2", "--override", "gradient_clipping=0.5"),
    )
    assert strategy.zero_stage == 2
    assert strategy.document["gradient_clipping"] == 0.5
    assert strategy.sources["zero_optimization.stage"] == "--override"


@pytest.mark.parametrize(
    ("bf16", "fp16", "machine", "precision"),
    [
        ("auto", "auto", A100, "bf16"),
        ("auto", "auto", V100, "fp16"),
        ("auto", "auto", CPU, "fp32"),
        ("auto", "auto", BF16_CPU, "bf16"),
        ("auto", None, V100, "fp32"),
        (None, None, A100, "fp32"),
        (False, None, A100, "fp32"),
        (True, None, CPU, "bf16"),
        (None, True, V100, "fp16"),
        (False, "auto", A100, "fp32"),
        (False, "auto", V100, "fp16"),
    ],
)
def test_precision(tmp_path: Path, bf16: Any, fp16: Any, machine: Machine, precision: str) -> None:
    blocks = {name: {"enabled": value} for name, value in (("bf16", bf16), ("fp16", fp16)) if value is not None}
    strategy = resolved(tmp_path, blocks, machine=machine)
    assert strategy.precision == precision
    assert strategy.precision_reason
    enabled = {name for name in ("bf16", "fp16") if strategy.document.get(name, {}).get("enabled")}
    assert enabled == ({precision} - {"fp32"})


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({"gradient_cliping": 1.0}, "gradient_cliping: unknown key, DeepSpeed would ignore it; did you mean gradient"),
        ({"zero_optimisation": {"stage": 2}}, "did you mean zero_optimization?"),
        ({"stage": 2}, "move it to zero_optimization.stage"),
        ({"optimizer": {"type": "AdamW", "parms": {}}}, "did you mean optimizer.params?"),
        ({"zero_optimization": {"stage": 2, "reduce_buket_size": 1}}, "DeepSpeed would refuse it; did you mean"),
        ({"zero_optimization": {"stage": 1, "offload_param": {"device": "cpu"}}}, "DeepSpeed ignores it at stage 1"),
        ({"elasticity": {"enabled": True}}, "DeepSpeed has removed it"),
        ({"zero_optimization": {"stage": 4}}, "zero_optimization.stage: DeepSpeed refuses 4"),
        ({"zero_optimization": {"stage": "auto"}}, '"auto" has no meaning here'),
        ({"bf16": {"enabled": True}, "fp16": {"enabled": True}}, "both on"),
        ({"fp16": {"enabled": True}}, "fp16 on a CPU"),
        ({"train_batch_size": "32"}, "no whole number"),
        ({"optimizer": {"type": "AdamW", "params": {"lr": "1e-3"}}}, "where AdamW computes with a number"),
        ('{"a": 1,\n "b": }', "strategy.json:2:7: not valid JSON"),
        ('{"train_batch_size": 8, "train_batch_size": 16}', "stands twice"),
        ("[]", "must hold a JSON object in braces, not a list"),
    ],
)  # fmt: skip
def test_what_would_not_run_as_written_is_refused_in_one_line(tmp_path: Path, document: Any, words: str) -> None:
    with pytest.raises(UserError) as caught:
        resolved(tmp_path, document)
    assert words in str(caught.value)
    assert "strategy.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_comment_key_is_no_fault_where_deepspeed_is_lax(tmp_path: Path) -> None:
    assert resolved(tmp_path, {"_comment": "why", "gradient_clipping": 0.7}).document["gradient_clipping"] == 0.7
    with pytest.raises(UserError, match="refuse"):
        resolved(tmp_path, {"zero_optimization": {"stage": 1, "_comment": "why"}})


def test_no_lint_insists_and_leaves_a_warning(tmp_path: Path) -> None:
    strategy = resolved(tmp_path, {"gradient_cliping": 1.0}, "--no_lint")
    assert any("gradient_cliping" in warning for warning in strategy.warnings)


@pytest.mark.parametrize("change", ["zero_optimization.stage", "=3", "gradient_clipping.deeper=1"])
def test_a_malformed_override_is_refused(tmp_path: Path, change: str) -> None:
    with pytest.raises(UserError, match="--override"):
        resolved(tmp_path, {"gradient_clipping": 1.0}, "--override", change)


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({"zero_optimization": True}, "zero_optimization: True is no block"),
        ({"bf16": True}, "bf16: true is no block"),
        ({"bf16": {"enabled": 1}}, 'write true, false or "auto"'),
        ({"optimizer": {"type": "AdamW", "params": []}}, "optimizer.params: a list is no block"),
        ({"zero_optimization": {"stage": 2, "cpu_offload": True}}, "offload_optimizer"),
        ({"gradient_clipping": "1.0"}, "is no number"),
        ({"torch_autocast": {"enabled": True}}, "torch_autocast"),
    ],
)
def test_forms_that_look_like_something_else_are_refused(tmp_path: Path, document: Any, words: str) -> None:
    with pytest.raises(UserError) as caught:
        resolved(tmp_path, document)
    assert words in str(caught.value)


def test_turning_bf16_off_where_it_is_native_does_not_turn_fp16_on(tmp_path: Path) -> None:
    blocks = {"bf16": {"enabled": "auto"}, "fp16": {"enabled": "auto"}}
    assert resolved(tmp_path, blocks, "--bf16", "false", machine=A100).precision == "fp32"


@pytest.mark.parametrize(("stated", "name"), [("bf16", "bf16"), ("fp32", "fp32"), (None, "fp32")])
def test_reduction_precision_has_the_rows_names(tmp_path: Path, stated: str | None, name: str) -> None:
    document = {"communication_data_type": stated} if stated else {}
    assert resolved(tmp_path, document).reduction_precision == name
