"""Who holds what: the tensors of a DeepSpeed engine, each with what it is for and where it lies.

The names are DeepSpeed's own (0.19.8): `runtime/zero/stage_1_and_2.py`, `stage3.py`, `bf16_optimizer.py` and
`runtime/swap_tensor/`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from lm_scale.engines.deepspeed import DeepSpeedEngine
from lm_scale.engines.rehearsal.timeline import Item, tensors
from lm_scale.strategy.resolve import Strategy

_ATTRIBUTES = {
    "grads_in_partition": "gradients",
    "all_grad_tensors": "gradients",
    "fp32_groups_gradients_flat": "gradients",
    "temp_grad_buffer_for_gpu_offload": "offload_buffers",
}
_HOST_ATTRIBUTES = {
    "param_groups_fp16_flat_cpu_memory": "parameters",
    "accumulated_grads_in_cpu": "gradients",
    "param_buffer_of_bit16_for_cpu_offload_groups": "offload_buffers",
    "temp_grad_buffer_for_cpu_offload": "offload_buffers",
}


def holdings(engine: DeepSpeedEngine, strategy: Strategy) -> Iterator[tuple[Item, torch.Tensor]]:
    """Every tensor that is held under a known name now; a storage may come twice, its first item counts."""
    offload = strategy.offload
    optimizer_where = "host" if "optimizer_" in offload else "device"
    where = {
        "parameters": "host" if "param_" in offload else "device",
        "gradients": optimizer_where,
        "master_weights": optimizer_where,
        "optimizer_states": optimizer_where,
    }
    optimizer: Any = engine._optimizer
    held = engine.held_tensors()
    for parameter in engine.model.parameters():  # whole gradients lie on the device, whatever is offloaded
        for gradient in (parameter.grad, getattr(parameter, "grad_accum", None)):
            if gradient is not None:
                yield Item("gradients", "device"), gradient
    for name, these in held.items():
        for tensor in these:
            yield Item(name, where[name]), tensor
    for parameter in engine.model.parameters():
        if hasattr(parameter, "ds_tensor"):
            yield Item("gathered_parameters", "device"), parameter.data
        if getattr(parameter, "ds_secondary_tensor", None) is not None:  # hpZ's copy within a group of ranks
            yield Item("secondary_parameters", "device"), parameter.ds_secondary_tensor
    for buffer in engine.loss_module.buffers():
        yield Item("buffers", "device"), buffer
    for bucket in getattr(optimizer, "ipg_buckets", {}).values():
        for tensor in tensors(bucket.buffer):
            yield Item("reduce_buckets", "device"), tensor
    for attributes, place in ((_ATTRIBUTES, "device"), (_HOST_ATTRIBUTES, "host")):
        for attribute, name in attributes.items():
            for tensor in _within(getattr(optimizer, attribute, None)):
                yield Item(name, place), tensor
    yield from _swap_buffers(engine)


def _within(value: Any) -> Iterator[torch.Tensor]:
    yield from tensors(list(value.values()) if isinstance(value, dict) else value)


def _swap_buffers(engine: DeepSpeedEngine) -> Iterator[tuple[Item, torch.Tensor]]:
    """What NVMe passes through, in host memory."""
    swapper = getattr(engine._optimizer, "optimizer_swapper", None)
    found = list(getattr(getattr(swapper, "swap_buffer_manager", None), "all_buffers", []))
    for swapper in {getattr(parameter, "nvme_swapper", None) for parameter in engine.model.parameters()}:
        found += [getattr(swapper, attribute, None) for attribute in ("buffers", "partitioned_swap_buffer")]
    for tensor in tensors(found):
        yield Item("swap_buffers", "host"), tensor
