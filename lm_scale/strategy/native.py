"""A DeepSpeed JSON in the terms of native PyTorch: what of it DDP and FSDP2 can express, and what not. No torch."""

from __future__ import annotations

from typing import Any

from lm_scale.arguments import UserError
from lm_scale.strategy.load import Document, get
from lm_scale.strategy.resolve import Strategy

_DEEPSPEED_ONLY = ("lion", "lamb", "muon", "muadam", "muadamw", "musgd")
_DEEPSPEED_PARAMETERS = ("torch_adam", "adam_w_mode", "fp32_optimizer_states", "bias_correction", "set_grad_none")
_INEXPRESSIBLE = {
    "zero_optimization.zero_quantized_weights": "quantized gathers",
    "zero_optimization.zero_quantized_gradients": "quantized reductions",
    "zero_optimization.zenflow": "ZenFlow",
    "zero_optimization.offload_optimizer.super_offload": "SuperOffload",
    "compile.deepcompile": "DeepCompile",
    "bf16.bf16_master_weights_and_grads": "master weights in bf16",
    "bf16.bf16_optimizer_states": "optimizer states in bf16",
    "data_types.grad_accum_dtype": "a precision of accumulation beside that of the reduction",
    "gradient_predivide_factor": "a division of the gradients before the reduction",
}
_NEUTRAL = (None, False, 1, 1.0)


def check_expressible(strategy: Strategy) -> None:
    """See that `--engine torch` can run this JSON.

    Raises:
        UserError: it asks for what native PyTorch does not have; the message names the key.
    """
    document = strategy.document
    for key, what in _INEXPRESSIBLE.items():
        if get(document, key) not in _NEUTRAL:
            raise _refusal(strategy, key, f"native PyTorch has no counterpart to {what}")
    for block in ("offload_optimizer", "offload_param"):
        if get(document, f"zero_optimization.{block}.device") == "nvme":
            raise _refusal(strategy, f"zero_optimization.{block}.device", "native PyTorch does not offload to NVMe")
    if strategy.layout.pipeline_stages > 1:
        raise _refusal(strategy, "pipeline.stages", "native PyTorch runs data-parallel layouts here")
    if strategy.layout.tensor_parallel > 1:
        raise _refusal(strategy, "tensor_parallel.autotp_size", "native PyTorch runs data-parallel layouts here")
    if strategy.precision == "fp16":
        raise _refusal(strategy, "fp16.enabled", "FSDP2 has no loss scaling; use bf16 or fp32")
    optimizer(document, strategy)
    shards = shard_group(document)
    if shards and strategy.batch.data_parallel % shards:
        key = "zero_optimization.zero_hpz_partition_size"
        raise _refusal(strategy, key, f"{shards} does not divide {strategy.batch.data_parallel} ranks")


def optimizer(document: Document, strategy: Strategy | None = None) -> tuple[str, dict[str, Any]]:
    """The class of `torch.optim` with the mathematics of DeepSpeed's optimizer of that name: its name and arguments.

    DeepSpeed's Adam is AdamW unless `adam_w_mode` is false, and without `torch_adam` its weight decay is 0 by default
    (`deepspeed/runtime/engine.py`, `_configure_basic_optimizer`; `deepspeed/ops/adam/fused_adam.py`). A name that
    DeepSpeed does not know is torch's already.

    Raises:
        UserError: torch has no such optimizer, or it cannot do what a parameter asks for.
    """
    name = str(get(document, "optimizer.type"))
    stated = dict(get(document, "optimizer.params") or {})
    if name.lower() in _DEEPSPEED_ONLY:
        raise _refusal(strategy, "optimizer.type", f"{name} is DeepSpeed's own; native PyTorch runs AdamW, SGD, ...")
    if name.lower() == "adagrad":
        return "Adagrad", stated
    if name.lower() not in ("adam", "adamw"):
        return name, stated
    if stated.get("bias_correction", True) is False:
        raise _refusal(strategy, "optimizer.params.bias_correction", "torch's Adam always corrects its bias")
    decoupled = name.lower() == "adamw" or stated.get("adam_w_mode", True)
    if not stated.get("torch_adam", False):
        stated = {"weight_decay": 0.0, "fused": True, **stated}
    parameters = {key: value for key, value in stated.items() if key not in _DEEPSPEED_PARAMETERS}
    return ("AdamW" if decoupled else "Adam"), parameters


def shard_group(document: Document) -> int | None:
    """Ranks over which stage 3 splits parameters where hpZ asks for fewer than all; None where it does not."""
    size = get(document, "zero_optimization.zero_hpz_partition_size", 1)
    return size if get(document, "zero_optimization.stage") == 3 and isinstance(size, int) and size > 1 else None


def _refusal(strategy: Strategy | None, key: str, reason: str) -> UserError:
    place = f"{strategy.path}: " if strategy else ""
    return UserError(f"{place}{key}: {reason}; use --engine deepspeed")
