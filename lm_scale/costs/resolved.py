"""From a resolved strategy, the JSON exactly as it will run, to the setup that the cost formulas take. No torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from lm_scale.arguments import ModelArguments
from lm_scale.costs.head import chunk_rows
from lm_scale.costs.memory import predict_memory
from lm_scale.costs.setup import Checkpointing, Dimensions, Loss, Setup
from lm_scale.costs.shapes import model_shape
from lm_scale.costs.stages import stage_blocks
from lm_scale.strategy.load import get
from lm_scale.strategy.native import shard_group
from lm_scale.strategy.resolve import Strategy

_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
_LONG_NAMES = {
    "bfp16": "bf16",
    "bfloat16": "bf16",
    "float16": "fp16",
    "half": "fp16",
    "float32": "fp32",
    "float": "fp32",
}
_STATE_BYTES = {"sgd": 0, "lion": 4, "adagrad": 4, "muon": 4}
"""Bytes of fp32 state a parameter, by optimizer; Adam's kin hold two moments, 8."""

# DeepSpeed 0.19.8, runtime/zero/config.py.
_SIZES = {
    "reduce_bucket": ("reduce_bucket_size", 500_000_000),
    "prefetch_bucket": ("stage3_prefetch_bucket_size", 50_000_000),
    "persistence_threshold": ("stage3_param_persistence_threshold", 100_000),
    "max_live": ("stage3_max_live_parameters", 1_000_000_000),
    "max_reuse_distance": ("stage3_max_reuse_distance", 1_000_000_000),
    "sub_group": ("sub_group_size", 1_000_000_000),
    "secondary_ranks": ("zero_hpz_partition_size", 1),
}


def setup_of(
    strategy: Strategy,
    model: ModelArguments,
    dims: Dimensions,
    world_size: int,
    *,
    ranks_per_node: int,
    on_cpu: bool,
    engine: str = "deepspeed",
    master_weights: bool = True,
) -> Setup:
    """The setup of one run of `pretrain`.

    `master_weights` False is what torch's optimizer does on a model made in low precision: weights, gradients and
    moments all in it (no strategy of this project; the way many small runs are made).
    """
    document, compute = strategy.document, _BYTES[strategy.precision]
    deepspeed = engine == "deepspeed"
    stage, shards = (strategy.zero_stage, None) if deepspeed else _native(strategy, world_size)
    spread = strategy.layout
    method = str(get(document, "pipeline.partition_method", "flops"))
    blocks = stage_blocks(dims, spread.pipeline_stages, method) if spread.pipeline_stages > 1 else None
    stored = 4 if not deepspeed and master_weights else compute
    accumulation = _dtype_bytes(get(document, "data_types.grad_accum_dtype"), compute)
    moments = _moment_bytes(document)
    parameters: Mapping[str, Any] = get(document, "optimizer.params", {}) or {}
    return Setup(
        dims=dims,
        engine="deepspeed" if deepspeed else "torch",
        zero_stage=stage,
        world_size=world_size,
        ranks_per_node=ranks_per_node,
        tensor_parallel=spread.tensor_parallel,
        pipeline_stages=spread.pipeline_stages,
        stage_blocks=blocks,
        vocabulary_parallel=bool(get(document, "tensor_parallel.vocab_parallel_lm_head", False)),
        shard_ranks=shards,
        seq_len=model.seq_len,
        micro_batch=strategy.batch.micro_batch,
        grad_accum=strategy.batch.grad_accum,
        compute_bytes=compute,
        parameter_bytes=stored,
        gradient_bytes=stored,
        accumulation_bytes=accumulation if deepspeed else stored,
        reduction_bytes=_dtype_bytes(strategy.reduction_precision, compute),
        master_weights=master_weights and deepspeed,
        optimizer_bytes=moments if master_weights else moments * compute / 4,
        own_adam=moments == 8 and not parameters.get("torch_adam", False),
        foreach=not on_cpu and bool(parameters.get("torch_adam")) and not parameters.get("fused"),
        checkpointing=_checkpointing(strategy),
        eager_attention=model.attn_implementation == "eager",
        loss=_loss(model, master_weights),
        compiled=model.torch_compile,
        **_zero_optimization(get(document, "zero_optimization", {}), strategy.zero_stage),
        chunk_rows=chunk_rows(strategy.batch.micro_batch * model.seq_len, "cpu" if on_cpu else "cuda"),
        on_cpu=on_cpu,
        products=strategy.precision,
    )


def _zero_optimization(block: Mapping[str, Any], stage: int) -> dict[str, Any]:
    """What the JSON's block of that name sets, with DeepSpeed's defaults."""
    sizes = {field: int(block.get(key, default)) for field, (key, default) in _SIZES.items()}
    return {
        **sizes,
        "overlap_comm": bool(block.get("overlap_comm", stage == 3)),
        "contiguous_gradients": bool(block.get("contiguous_gradients", True)),
        "optimizer_device": _place(block, "offload_optimizer", stage, 1),
        "parameter_device": _place(block, "offload_param", stage, 3),
    }


def predicted_bytes(
    strategy: Strategy,
    model: ModelArguments,
    config: Mapping[str, Any],
    world_size: int,
    *,
    ranks_per_node: int,
    on_cpu: bool,
    engine: str = "deepspeed",
    loss: str | None = None,
) -> tuple[int | None, int | None]:
    """(`predicted_device_bytes`, `predicted_host_bytes`) of a run's row: the fullest rank at its peak.

    Device bytes are those that the allocator hands out, as `peak_device_bytes`; None on a CPU. Host bytes are anonymous
    memory, as `peak_host_bytes`. Both are None for a model family without closed forms. `config` is transformers' own
    with the vocabulary that was built; `loss` is how the loss is computed in fact, where `--loss auto` was given.
    """
    shape = model_shape(config)
    if shape is None:
        return None, None
    setup = setup_of(
        strategy,
        model if loss is None else dataclasses.replace(model, loss=loss),
        Dimensions.of(shape),
        world_size,
        ranks_per_node=ranks_per_node,
        on_cpu=on_cpu,
        engine=engine,
    )
    memory = predict_memory(setup)
    return (None if on_cpu else memory.device), memory.host


def _native(strategy: Strategy, world_size: int) -> tuple[int, int | None]:
    """(stage, ranks that share state; None for all) of FSDP's kin of a stage (`engines.native`).

    Stages 1 and 2 keep parameters whole from forward to backward, 3 frees them. Stage 0 is DDP, below fp32 FSDP over
    groups of one rank, which keeps the fp32 weights.
    """
    if world_size == 1:
        return 0, None
    if strategy.zero_stage == 0:
        return (0, None) if strategy.precision == "fp32" else (2, 1)
    return (3 if strategy.zero_stage == 3 else 2), shard_group(strategy.document)


def _dtype_bytes(name: Any, default: int) -> int:
    text = str(name).lower() if name else ""
    return _BYTES.get(_LONG_NAMES.get(text, text), default)


def _moment_bytes(document: Mapping[str, Any]) -> float:
    kind = str(get(dict(document), "optimizer.type", "AdamW")).lower()
    if kind == "sgd" and get(dict(document), "optimizer.params.momentum", 0):
        return 4
    return _STATE_BYTES.get(kind, 8)


def _loss(model: ModelArguments, master_weights: bool) -> Loss:
    """This project compiles the model without its loss; whoever trains without master weights compiles the whole."""
    if model.loss == "full" and model.torch_compile and not master_weights:
        return "fused"
    kinds: dict[str, Loss] = {"full": "full", "liger": "liger"}
    return kinds.get(model.loss, "chunked")


def _checkpointing(strategy: Strategy) -> Checkpointing:
    return "full" if strategy.activation_checkpointing else "none"


def _place(block: Mapping[str, Any], key: str, stage: int, least: int) -> Literal["device", "cpu", "nvme"]:
    place = str((block.get(key) or {}).get("device", "none"))
    if stage < least or place not in ("cpu", "nvme"):
        return "device"
    return "nvme" if place == "nvme" else "cpu"
