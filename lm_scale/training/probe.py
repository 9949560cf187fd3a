"""Rates of the machine, measured in the process that trains on it."""

from __future__ import annotations

import time

import torch
import torch.distributed as dist

SIZE = 1024


def matrix_product_flops_per_s(dtype: torch.dtype) -> float:
    """FLOP/s of one rank in a square matrix product on the CPU while all ranks do the same: what its peak is here.

    The best of a few repetitions of about a tenth of a second in all; the slowest rank's best.
    """
    left, right = torch.randn(SIZE, SIZE, dtype=dtype), torch.randn(SIZE, SIZE, dtype=dtype)
    best = float("inf")
    begin = time.perf_counter()
    while time.perf_counter() - begin < 0.1 or best == float("inf"):
        before = time.perf_counter()
        left @ right
        best = min(best, time.perf_counter() - before)
    rate = torch.tensor(2 * SIZE**3 / best, dtype=torch.float64)
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(rate, op=dist.ReduceOp.MIN)
    return float(rate)
