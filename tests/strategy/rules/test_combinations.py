"""Combinations of settings: what is said, how severely, and what is left alone."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from launches import CONFIGS
from proof_cases import ADAM, BASE, BF16, CPU, adam, base, scheduler, zero

from lm_scale.strategy import known
from lm_scale.strategy.rules import check, combinations, effective, optimizer
from lm_scale.strategy.rules.findings import Finding, Setting
from lm_scale.strategy.rules.optimizer import signature

UNKNOWN = Setting()
SUBJECTS = (combinations, optimizer, effective)


def found(document: dict[str, Any], setting: Setting = UNKNOWN) -> dict[str, Finding]:
    return {one.rule: one for subject in SUBJECTS for one in subject.findings(document, setting)}


def errors(document: dict[str, Any], setting: Setting = UNKNOWN) -> list[str]:
    return [f"{one.path}: {one.rule}" for one in check(document, setting) if one.severity == "error"]


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.json")), ids=lambda path: str(path.stem))
@pytest.mark.parametrize("device", [None, "cpu", "gpu"])
def test_the_shipped_strategies_have_no_error(path: Any, device: Any) -> None:
    assert errors(json.loads(path.read_text(encoding="utf-8")), Setting(2, device)) == []


@pytest.mark.parametrize("rule", ["fp16-on-cpu", "super-offload-cuda", "zeropp-on-cpu", "deepcompile-cuda", "gds-cuda"])
def test_what_only_a_gpu_can_is_an_error_on_a_cpu_alone(rule: str) -> None:
    document = base(
        fp16={"enabled": True},
        compile={"deepcompile": True},
        aio={"use_gds": True},
        zero_optimization={
            "stage": 3,
            "offload_optimizer": {**CPU, "super_offload": True},
            "zero_quantized_weights": True,
        },
    )
    assert found(document, Setting(device="cpu"))[rule].severity == "error"
    assert found(document)[rule].severity == "note"
    assert rule not in found(document, Setting(device="gpu"))


def test_a_partition_over_more_ranks_than_divide_the_world() -> None:
    document = zero(3, zero_hpz_partition_size=4)
    assert found(document, Setting(world_size=6))["hpz-world-size"].fix == "use one of 2, 3, 6"
    assert "hpz-world-size" not in found(document, Setting(world_size=8))
    assert "hpz-world-size" not in found(document, Setting(world_size=2))  # DeepSpeed takes min(4, 2)
    assert "hpz-world-size" not in found(document)


def test_a_pipeline_is_sure_only_where_the_file_asks_for_stages() -> None:
    two = base(pipeline={"stages": 2}, zero_optimization={"stage": 2})
    maybe = base(pipeline={"pipe_partitioned": True}, zero_optimization={"stage": 2})
    assert found(two)["pipeline-zero"].severity == "error"
    assert found(maybe)["pipeline-zero"].severity == "warning"
    assert "pipeline-zero" not in found(base(pipeline={}, zero_optimization={"stage": 2}))
    assert "pipeline-zero" not in found(base(pipeline={"stages": 2}, zero_optimization={"stage": 1}))


def test_clipping_of_a_pipeline_without_zero() -> None:
    assert "pipeline-clipping" in found(base(pipeline={"stages": 2}))
    assert "pipeline-clipping" not in found(base(pipeline={"stages": 2}, gradient_clipping=0.0))
    assert "pipeline-clipping" not in found(base(pipeline={"stages": 2}, zero_optimization={"stage": 1}))
    assert "pipeline-clipping" not in found(base(pipeline={"stages": 2}, bf16=BF16))


def test_one_precision_is_as_good_as_another() -> None:
    assert "precision-both" not in found(base(bf16=BF16, fp16={"enabled": False}))
    assert "precision-both" not in found(base(bf16={"enabled": "auto"}, fp16={"enabled": "auto"}))
    assert "precision-both" in found(base(bfloat16=BF16, fp16={"enabled": True}))
    assert found(base(bf16=BF16, bfloat16=BF16))["bfloat16-ignored"].severity == "warning"


def test_a_fixed_loss_scale_leaves_the_dynamic_keys_without_effect() -> None:
    fixed = {"enabled": True, "loss_scale": 128, "min_loss_scale": 0}
    assert "loss-scale-range" not in found(base(fp16=fixed))
    assert found(base(fp16=fixed))["loss-scale-fixed"].path == "fp16.min_loss_scale"


def test_master_weights_in_bf16_stand_where_deepspeed_takes_them() -> None:
    weights = {**BF16, "bf16_master_weights_and_grads": True}
    own = {"type": "AdamW", "params": {"lr": 1e-3}}
    offloaded = {"stage": 2, "offload_optimizer": CPU}
    states = base(bf16={**weights, "bf16_optimizer_states": True}, zero_optimization={"stage": 2})
    assert errors(base(bf16=weights, optimizer=own, zero_optimization=offloaded)) == []
    assert errors(states) == []
    assert errors(base(bf16=weights, zero_optimization=offloaded)) == [
        "bf16.bf16_master_weights_and_grads: master-weights-offload"
    ]


@pytest.mark.parametrize(("at", "device", "said"), [(1, "none", True), (1, "cpu", False), (2, "none", False)])
def test_the_memory_of_bf16_optimizer_is_that_of_stage_1_without_offload(at: int, device: str, said: bool) -> None:
    document = base(
        bf16=BF16,
        data_types={"grad_accum_dtype": "fp32"},
        zero_optimization={"stage": at, "offload_optimizer": {"device": device}},
    )
    assert ("bf16-optimizer-memory" in found(document)) is said


def test_old_names_of_offload_count_as_offload() -> None:
    assert found(zero(0, cpu_offload=True))["offload-optimizer-stage0"].path == "zero_optimization.cpu_offload"
    assert found(zero(2, cpu_offload_param=True))["offload-param-below-3"].path == "zero_optimization.cpu_offload_param"
    assert "offload-param-below-3" not in found(zero(2, cpu_offload_param=False))


def test_a_path_beside_another_device_than_nvme() -> None:
    one = found(zero(3, offload_optimizer={"device": "cpu", "nvme_path": "~/swap"}))
    assert one["nvme-path-unused"].severity == one["nvme-tilde"].severity == "warning"
    assert "nvme-path-unused" not in found(zero(3, offload_optimizer={"device": "cpu", "nvme_path": None}))
    assert "nvme-path-missing" not in found(zero(3, offload_param={"device": "nvme", "nvme_path": "auto"}))


def test_untested_optimizers_pass_where_the_file_allows_them() -> None:
    sgd = {"type": "SGD", "params": {"lr": 0.1}}
    assert errors(base(optimizer=sgd, zero_allow_untested_optimizer=True, zero_optimization={"stage": 2})) == []
    assert errors(base(optimizer=sgd)) == []


def test_dividing_before_the_sum_is_for_all_reduce() -> None:
    stage_2 = {"stage": 2, "reduce_scatter": False}
    assert errors(base(prescale_gradients=True, zero_optimization=stage_2)) == []
    assert errors(base(prescale_gradients=True, zero_optimization={"stage": 1})) == []
    both = found(base(prescale_gradients=True, gradient_predivide_factor=2.0))
    assert both["predivide-ignored"].severity == "warning"


def test_a_block_of_stage_0_does_nothing() -> None:
    assert "zero-keys-stage0" in found(zero(0, overlap_comm=True))
    assert "zero-keys-stage0" not in found(zero(0))
    assert "zero-keys-stage0" not in found(zero(1, overlap_comm=True))


def test_adam_without_decay_is_the_same_as_adamw() -> None:
    parameters = {**ADAM["params"], "weight_decay": 0.0}
    assert found(base(optimizer={"type": "Adam", "params": parameters}))["adam-is-adamw"].severity == "note"
    asked = {**ADAM["params"], "adam_w_mode": True}
    assert found(base(optimizer={"type": "Adam", "params": asked}))["adam-is-adamw"].severity == "note"
    parameters = {**parameters, "adam_w_mode": False}
    assert "adam-is-adamw" not in found(base(optimizer={"type": "Adam", "params": parameters}))


def test_the_signature_is_that_of_the_class_that_will_be_built() -> None:
    """`set_grad_none` is FusedAdam's, `fused` torch's; DeepSpeedCPUAdam has neither."""
    own = {"type": "AdamW", "params": {}}
    assert "set_grad_none" in signature(base(optimizer=own))
    assert "set_grad_none" not in signature(base(optimizer=own, zero_optimization={"stage": 2, "cpu_offload": True}))
    assert "fused" in signature(base())
    assert "fused" not in signature(base(optimizer=own))
    assert signature(base(optimizer={"type": "adamw8bit"})) == {}


@pytest.mark.parametrize(
    ("written", "meant"),
    [("adaw", "AdamW"), ("FusedAdam", "AdamW"), ("DeepSpeedCPUAdam", "AdamW"), ("sgd", "SGD"), ("Lambb", "Lamb")],
)
def test_a_misspelt_optimizer_has_the_nearest_name(written: str, meant: str) -> None:
    one = found(base(optimizer={"type": written, "params": {}}))["optimizer-unknown"]
    assert f'"{meant}"' in one.fix


@pytest.mark.parametrize("written", ["OneBitAdam", "onebitlamb", "ZeroOneAdam"])
def test_removed_optimizers_are_told_from_unknown_ones(written: str) -> None:
    assert found(base(optimizer={"type": written}))["optimizer-removed"].severity == "error"
    assert "optimizer-unknown" not in found(base(optimizer={"type": written}))


def test_every_single_letter_typo_of_a_parameter_is_an_error_with_its_mend() -> None:
    """Of the optimizers and schedulers of DeepSpeed's own, by their signatures."""
    wrong: list[str] = []
    for name in ("AdamW", "Lion", "Lamb", "Adagrad", "Muon"):
        document = base(optimizer={"type": name, "params": {}})
        wrong += _missed(document, ("optimizer", "params"), list(signature(document)), "optimizer-parameter-unknown")
    for name in ("WarmupLR", "WarmupDecayLR", "WarmupCosineLR", "OneCycle", "LRRangeTest"):
        keys = list(known.table()["schedulers"][name]["parameters"])
        wrong += _missed(scheduler(name), ("scheduler", "params"), keys, "scheduler-parameter-unknown")
    assert wrong == []


def _missed(document: dict[str, Any], place: tuple[str, str], keys: list[str], rule: str) -> list[str]:
    missed = []
    for key in keys:
        for at in range(len(key)):
            typo = key[:at] + key[at + 1 :]
            if not typo or typo in keys:
                continue
            changed = copy.deepcopy(document)
            changed[place[0]]["params"] = {typo: 1}
            one = found(changed).get(rule)
            if one is None or (len(key) > 3 and key not in one.fix):
                missed.append(f"{document[place[0]]['type']}: {typo}")
    return missed


@pytest.mark.parametrize("name", ["WarmupLR", "WarmupDecayLR", "WarmupCosineLR"])
def test_only_a_linear_warm_up_goes_without_a_word(name: str) -> None:
    assert "warmup-log" in found(scheduler(name, total_num_steps=9000))
    assert "warmup-log" in found(scheduler(name, total_num_steps=9000, warmup_type="log"))
    assert "warmup-log" not in found(scheduler(name, total_num_steps=9000, warmup_type="linear"))


def test_a_parameter_of_another_scheduler_is_told_from_a_typo() -> None:
    one = found(scheduler("WarmupCosineLR", total_num_steps=9, warmup_max_lr=1e-3))["scheduler-parameter-unknown"]
    assert "but of WarmupLR" in one.message
    assert "the optimizer's own lr" in one.fix


def test_a_run_shorter_than_its_warm_up() -> None:
    assert "total-below-warmup" in found(scheduler("WarmupDecayLR", total_num_steps=100, warmup_num_steps=200))
    assert "total-below-warmup" in found(scheduler("WarmupDecayLR", total_num_steps=999))
    assert "total-below-warmup" not in found(scheduler("WarmupDecayLR", total_num_steps=1000))


def test_a_rate_that_the_scheduler_agrees_with_is_no_finding() -> None:
    assert "lr-vs-warmup-max-lr" not in found(scheduler("WarmupLR"))
    assert "lr-vs-warmup-max-lr" not in found(scheduler("WarmupLR", warmup_max_lr=1e-3))
    automatic = base(optimizer=adam(lr="auto"), scheduler={"type": "WarmupLR", "params": {"warmup_max_lr": "auto"}})
    assert "lr-vs-warmup-max-lr" not in found(automatic)


def test_half_precision_and_default_buckets_are_told_in_bytes() -> None:
    """5e8 elements x 2 bytes in bf16, twice while reduction overlaps backward."""
    document = base(bf16=BF16, zero_optimization={"stage": 2, "overlap_comm": True})
    assert "2,000,000,000 bytes" in found(document)["bucket-default"].message
    assert "bucket-default" not in found(zero(2, reduce_bucket_size=1000))
    assert "bucket-default" not in found(base())


def test_a_stage_3_that_keeps_small_models_whole_says_so() -> None:
    assert "500,000,000 parameters" in found(zero(3))["reuse-keeps-weights"].message
    assert "reuse-keeps-weights" not in found(zero(3, stage3_max_reuse_distance=1e6))
    assert "reuse-keeps-weights" not in found(zero(2))


def test_values_after_defaults_are_marked_where_the_file_does_not_say_them() -> None:
    rows = {path: (value, source) for path, value, source in effective.effective(base(gradient_clipping=None))}
    assert rows["gradient_clipping"] == (1.0, "default")
    assert rows["optimizer.params.lr"] == (1e-3, "file")
    assert rows["optimizer.params.eps"] == (1e-8, "default")
    assert rows["precision"] == ("fp32", "default")


JUNK: list[Any] = [None, True, "x", "auto", 1.5, -1, 0, float("inf"), float("nan"), 10**400, [], [1], {}, {"a": 1}]


def test_no_value_whatever_breaks_the_lint() -> None:
    """Every known key at every junk value, in files of every stage."""
    documents = [zero(3), base(bf16=BF16, pipeline={"stages": 2}), scheduler("WarmupLR"), {}]
    places = [key.place for block in known.blocks().values() for key in block.keys.values() if "*" not in key.place]
    places += [("optimizer", "params", "lr"), ("optimizer", "params", "betas")]
    places += [("scheduler", "params", "warmup_num_steps"), ("scheduler", "params", "warmup_max_lr")]
    for number, place in enumerate(places):
        for junk in JUNK:
            document = copy.deepcopy(documents[number % len(documents)])
            node = document
            for key in place[:-1]:
                node = node[key] if isinstance(node.get(key), dict) else node.setdefault(key, {})
                assert isinstance(node, dict)
            node[place[-1]] = junk
            found(document, Setting(3, "cpu"))
            effective.effective(document)


def test_the_base_of_these_tests_is_sound() -> None:
    assert errors(BASE) == []


def test_a_typo_of_a_short_parameter_has_one_finding_with_its_name() -> None:
    document = base(optimizer={"type": "AdamW", "params": {"rl": "auto"}})
    told = [one for one in check(document, Setting()) if one.path == "optimizer.params.rl"]
    assert [(one.rule, one.fix) for one in told] == [("optimizer-parameter-unknown", "did you mean lr?")]


def test_printing_every_0_steps_fails_unless_trainer_overwrites_it() -> None:
    assert found(base(steps_per_print=0))["steps-per-print-zero"].severity == "error"
    for_trainer = base(steps_per_print=0, train_micro_batch_size_per_gpu="auto")
    assert found(for_trainer)["steps-per-print-zero"].severity == "warning"
