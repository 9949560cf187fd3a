"""Which parameters weight decay reaches."""

from __future__ import annotations

from typing import Any

import torch


def parameter_groups(module: torch.nn.Module, weight_decay: float | None) -> list[dict[str, Any]]:
    """Matrices, which decay, and norms and biases, which do not. `weight_decay` None leaves it to the optimizer."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    shapes = [getattr(p, "ds_shape", p.shape) for p in parameters]
    matrices: dict[str, Any] = {"params": [p for p, shape in zip(parameters, shapes, strict=True) if len(shape) > 1]}
    if weight_decay is not None:
        matrices["weight_decay"] = weight_decay
    vectors = {
        "params": [p for p, shape in zip(parameters, shapes, strict=True) if len(shape) <= 1],
        "weight_decay": 0.0,
    }
    return [group for group in (matrices, vectors) if group["params"]]


def decay_counts(groups: list[dict[str, Any]]) -> dict[str, int]:
    """How many parameters weight decay reaches (`decayed_params`), and how many it leaves out (`undecayed_params`)."""
    counts = [sum(getattr(p, "ds_numel", p.numel()) for p in group["params"]) for group in groups]
    return {"decayed_params": counts[0], "undecayed_params": sum(counts[1:])}
