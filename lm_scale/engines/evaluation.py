"""Batches on their way to a rank's device, and the loss on those of the held-out text."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist

from lm_scale.data.batches import Batch, EvalBatch
from lm_scale.engines.interface import EvalSums


def to_device(batch: Batch, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """`input_ids` and `labels`, (micro_batch, seq_len) each."""
    return tuple(  # type: ignore[return-value]
        torch.from_numpy(array).to(device, non_blocking=True) for array in (batch.input_ids, batch.labels)
    )


def eval_sums(module: Callable[..., Any], batches: Iterable[EvalBatch], device: torch.device) -> EvalSums:
    """The sums over all ranks; `module` maps `input_ids, labels` to the summed loss of a batch. Collective."""
    total = torch.zeros(3, dtype=torch.float64, device=device)
    with torch.no_grad():
        for batch in batches:
            total[0] += module(*to_device(batch, device))
            total[1] += batch.label_count
            total[2] += math.nan if batch.label_bytes is None else batch.label_bytes
    return over_ranks(total)


def over_ranks(own: torch.Tensor) -> EvalSums:
    """The sums of what every rank has: loss, labels and the bytes they cover, NaN where those are not known (fp64)."""
    if dist.get_world_size() > 1:
        dist.all_reduce(own)
    loss_sum, labels, covered = own.tolist()
    return EvalSums(loss_sum, int(labels), None if math.isnan(covered) else int(covered))
