"""The closed forms of memory against numbers that were derived elsewhere: the ZeRO paper's, Korthikanti's, by hand."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from lm_scale.costs.activations import layer_bytes_per_token
from lm_scale.costs.memory import predict_memory
from lm_scale.costs.setup import Dimensions, Setup
from lm_scale.costs.stages import stage_blocks

GPT2 = Dimensions(
    layers=24,
    hidden=2048,
    heads=16,
    key_value_heads=16,
    head_dim=128,
    intermediate=8192,
    vocab_size=50257,
    parameters=1_300_000_000,
    tied=True,
    gated=False,
    rms_norm=False,
)
STATES = ("parameters", "gradients", "master weights", "optimizer")


def state_bytes(setup: Setup) -> int:
    """What the ZeRO paper counts: 16-bit weights and gradients, fp32 masters and two moments."""
    items = predict_memory(setup).items
    return sum(one.bytes for one in items if one.name in STATES and "reduce" in one.phases)


@pytest.mark.parametrize(("stage", "gigabytes"), [(0, 120), (1, 31.4), (2, 16.6), (3, 1.88)])
def test_states_are_those_of_the_paper(stage: int, gigabytes: float) -> None:
    """Rajbhandari et al. 2020, figure 1: 7.5 billion parameters on 64 ranks."""
    dims = replace(GPT2, parameters=7_500_000_000)
    setup = Setup(dims=dims, zero_stage=stage, world_size=64)
    assert state_bytes(setup) / 1e9 == pytest.approx(gigabytes, rel=0.01)


def test_a_layer_saves_what_korthikanti_derives() -> None:
    """Korthikanti et al. 2022, equation 1: 34 s b h + 5 a s^2 b bytes a layer, dropout and unfused attention."""
    setup = Setup(dims=replace(GPT2, dropout=True), seq_len=1024, eager_attention=True)
    assert layer_bytes_per_token(setup) == 34 * GPT2.hidden + 5 * GPT2.heads * 1024


def test_tensor_parallelism_leaves_norms_and_residuals_whole() -> None:
    """The same, equation 2: 10 + 24 / t in place of 34."""
    setup = Setup(dims=replace(GPT2, dropout=True), seq_len=1024, eager_attention=True, tensor_parallel=8, world_size=8)
    assert layer_bytes_per_token(setup) == (10 + 24 / 8) * GPT2.hidden + 5 * GPT2.heads * 1024 / 8


def test_a_bucket_that_outgrows_the_model_is_whole_on_a_gpu_and_touched_on_a_cpu() -> None:
    def bucket(setup: Setup) -> int:
        return sum(one.bytes for one in predict_memory(setup).items if one.name == "reduction buckets")

    dims = replace(GPT2, parameters=100_000_000, layers=2, vocab_size=1000)
    setup = Setup(dims=dims, zero_stage=2, world_size=4, reduce_bucket=500_000_000)
    assert bucket(setup) == 2 * 2 * 500_000_000
    assert bucket(replace(setup, overlap_comm=False)) == 2 * 500_000_000
    assert bucket(replace(setup, on_cpu=True)) == 2 * 100_000_000


def test_stage_3_keeps_gathered_what_max_live_allows() -> None:
    """By hand: bf16, all of 100 million under the default of 1e9; then 10 million and the largest module."""

    def gathered(setup: Setup) -> int:
        items = predict_memory(setup).items
        return sum(one.bytes for one in items if one.name in ("gathered parameters", "persistent parameters"))

    dims = replace(GPT2, parameters=100_000_000, layers=2, vocab_size=1000)
    setup = Setup(dims=dims, zero_stage=3, world_size=4)
    assert gathered(setup) == 2 * 100_000_000
    assert gathered(replace(setup, max_live=10_000_000)) == 2 * (10_000_000 + 1000 * 2048)


def test_offload_moves_bytes_and_loses_none() -> None:
    """Masters and moments of ZeRO-3 lie on the device, on the host or on NVMe: 12 bytes a parameter, split over 8."""
    setup = Setup(dims=GPT2, zero_stage=3, world_size=8)
    names = ("master weights", "optimizer")
    for where in ("device", "cpu", "nvme"):
        items = predict_memory(replace(setup, optimizer_device=where)).items
        moved = [one for one in items if one.name in names]
        assert {one.where for one in moved} == {{"cpu": "host"}.get(where, where)}
        assert sum(one.bytes for one in moved) == pytest.approx(12 * GPT2.parameters / 8, rel=1e-6)


def test_checkpointing_keeps_one_input_a_layer() -> None:
    setup = Setup(dims=GPT2, checkpointing="full", micro_batch=4, seq_len=1024)
    kept = [one for one in predict_memory(setup).items if one.name == "activations"]
    assert sum(one.bytes for one in kept) == 24 * 4 * 1024 * 2048 * 2


def test_the_bf16_optimizer_holds_whole_fp32_gradients() -> None:
    """Stage 1 in bf16 with fp32 accumulation costs more than stage 2 (deepspeed/runtime/bf16_optimizer.py)."""
    setup = Setup(dims=GPT2, zero_stage=1, world_size=64, accumulation_bytes=4)
    whole = [one.bytes for one in predict_memory(setup).items if one.name == "accumulated gradients"]
    assert whole == [4 * GPT2.parameters]
    cast = [one.bytes for one in predict_memory(setup).items if one.name == "cast gradients"]
    assert cast == [2 * GPT2.parameters]  # one flat tensor, longer than a bucket, cast as a whole to be reduced
    assert predict_memory(setup).device > predict_memory(replace(setup, zero_stage=2)).device


def test_what_is_reserved_is_bounded_by_the_device() -> None:
    setup = Setup(dims=replace(GPT2, parameters=3_500_000_000), foreach=True, micro_batch=8)
    free = predict_memory(setup)
    bounded = predict_memory(setup, capacity=free.process - 2**30)
    assert free.device <= bounded.reserved < free.reserved
    assert bounded.device == free.device


def test_a_pipeline_is_divided_as_deepspeed_divides_it() -> None:
    """`partition_balanced` of the installed DeepSpeed on the same weights, the head's among them."""
    from deepspeed.runtime.utils import partition_balanced

    dims = replace(GPT2, layers=8, hidden=512, vocab_size=8192, parameters=27_796_992, intermediate=1408)
    for stages in (2, 3, 4):
        weights = [0.0, *[float(dims.layer_parameters)] * 8, 0.0, 8192.0 * 512]
        bounds = partition_balanced(weights, stages)
        expected = [max(0, min(end, 9) - max(start, 1)) for start, end in pairwise(bounds)]
        assert list(stage_blocks(dims, stages)) == expected


def test_the_first_stage_holds_the_embedding_and_more_micro_batches() -> None:
    """1F1B: the first of two stages has two micro-batches in flight, the last has one and the loss."""
    dims = replace(GPT2, vocab_size=1000, parameters=24 * 50_000_000 + 1000 * 2048)
    setup = Setup(dims=dims, world_size=2, pipeline_stages=2, grad_accum=8, micro_batch=1, loss="full", zero_stage=1)
    kept = {one.name: one.bytes for one in predict_memory(setup).items}
    assert kept["activations"] == 2 * 12 * 512 * layer_bytes_per_token(setup)
    assert kept["parameters"] == 2 * (12 * 50_000_000 + 1000 * 2048)
    wide = replace(
        setup, micro_batch=8, dims=replace(dims, vocab_size=500_000, parameters=24 * 50_000_000 + 500_000 * 2048)
    )
    assert "logits and loss" in {one.name for one in predict_memory(wide).items}
