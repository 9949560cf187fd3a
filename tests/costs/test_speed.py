"""Traffic and time against numbers by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lm_scale.arguments import UserError
from lm_scale.costs.flops import model_flops_per_token
from lm_scale.costs.machines import parse
from lm_scale.costs.setup import Dimensions, Setup
from lm_scale.costs.shapes import model_shape
from lm_scale.costs.speed import model_flops_per_token as planned_flops_per_token
from lm_scale.costs.speed import predict_speed
from lm_scale.costs.wire import wire_bytes
from lm_scale.models.presets import load_config, preset_names

DIMS = Dimensions(
    layers=32,
    hidden=4096,
    heads=32,
    key_value_heads=32,
    head_dim=128,
    intermediate=11008,
    vocab_size=32000,
    parameters=6_738_415_616,
)
N = DIMS.parameters


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        (0, {"all_reduce": 2 * 3 / 4 * 2 * N}),
        (1, {"all_reduce": 2 * 3 / 4 * 2 * N, "all_gather": 3 / 4 * 2 * N}),
        (2, {"all_reduce": 3 * 2 * 3 / 4 * 2 * N, "all_gather": 3 / 4 * 2 * N}),
        (3, {"all_gather": 3 * 2 * 3 / 4 * 2 * N, "reduce_scatter": 3 * 3 / 4 * 2 * N}),
    ],
)
def test_wire_bytes_of_each_stage(stage: int, expected: dict[str, float]) -> None:
    """Four ranks, three micro-batches, bf16: rings send (w - 1) / w of a tensor, all-reduces twice that."""
    setup = Setup(dims=DIMS, zero_stage=stage, world_size=4, grad_accum=3, max_live=0)
    found = wire_bytes(setup)
    assert found.keys() == expected.keys()
    for name, size in expected.items():
        assert found[name] == pytest.approx(size, rel=0.03)  # stage 3 keeps the embedding whole: it is gathered once


def test_fsdp_in_a_pipeline_sends_its_parameters_once_a_step() -> None:
    """They and their gradients stay whole over all micro-batches, so that more of these send no more of them."""
    setup = Setup(dims=DIMS, engine="torch", zero_stage=3, world_size=16, pipeline_stages=2, grad_accum=2)
    few, many = wire_bytes(setup), wire_bytes(replace(setup, grad_accum=8))
    assert many["send"] == 4 * few["send"]
    assert all(many[name] == few[name] > 0 for name in ("all_gather", "reduce_scatter"))


@pytest.mark.parametrize("name", preset_names())
def test_flops_are_those_of_the_row(name: str) -> None:
    shape = model_shape(load_config(name).config)
    assert shape is not None
    setup = Setup(dims=Dimensions.of(shape), seq_len=512)
    assert planned_flops_per_token(setup) == pytest.approx(model_flops_per_token(shape, 512), rel=1e-9)


def test_a_slow_link_becomes_the_bound_and_the_required_rate_mends_it() -> None:
    setup = Setup(dims=DIMS, zero_stage=2, world_size=64, micro_batch=1, seq_len=2048, checkpointing="full")
    slow = predict_speed(setup, parse("h100,network=1"))
    assert slow.bound == "network"
    assert slow.required_link_bytes_per_s is not None
    wide = parse(f"h100,network={8 * slow.required_link_bytes_per_s / 1e9:.0f},peer=100000")
    assert predict_speed(setup, wide).bound == "compute"


def test_offload_is_bound_by_the_host_and_nvme_by_its_disks() -> None:
    setup = Setup(dims=DIMS, zero_stage=3, world_size=8, micro_batch=1, optimizer_device="cpu")
    device = parse("a100-80gb")
    assert predict_speed(setup, device).bound == "host"
    assert predict_speed(replace(setup, optimizer_device="nvme"), device).bound == "nvme"


def test_accumulation_pays_the_optimizer_once() -> None:
    setup = Setup(dims=DIMS, zero_stage=1, world_size=8, micro_batch=1, seq_len=2048)
    device = parse("a100-80gb")
    once, often = predict_speed(setup, device), predict_speed(replace(setup, grad_accum=8), device)
    assert often.step_s < 8 * once.step_s
    assert often.tokens_per_s > once.tokens_per_s


def test_a_pipeline_waits_for_its_ends() -> None:
    """(p - 1) / m of the work: four stages and eight micro-batches lose three eighths."""
    setup = Setup(dims=DIMS, world_size=4, pipeline_stages=4, grad_accum=8, engine="torch")
    deep = predict_speed(setup, parse("h100"))
    many = predict_speed(replace(setup, grad_accum=800), parse("h100"))
    assert deep.parts["compute"] / 8 == pytest.approx(many.parts["compute"] / 800 * (1 + 3 / 8) / (1 + 3 / 800))


def test_a_device_takes_numbers() -> None:
    device = parse("memory=48,tflops=150,network=12.5")
    assert device.memory_bytes == 48 * 2**30
    assert device.product_flops_per_s("bf16") == 150e12
    assert device.network == 12.5e9
    assert parse("H100,memory=40").memory_bytes == 40 * 2**30


@pytest.mark.parametrize("text", ["h10", "h100,speed=3", "h100,memory=big", ""])
def test_a_wrong_device_is_named(text: str) -> None:
    with pytest.raises(UserError, match="--device"):
        parse(text)
