"""The batch triple: micro-batch, accumulation and global batch, any of which the others give."""

from __future__ import annotations

from dataclasses import dataclass

from lm_scale.arguments import UserError

DEFAULT_MICRO_BATCH = 8


@dataclass(frozen=True)
class Batch:
    """`global_batch = micro_batch * grad_accum * data_parallel`, all in samples."""

    micro_batch: int
    grad_accum: int
    data_parallel: int

    @property
    def global_batch(self) -> int:
        return self.micro_batch * self.grad_accum * self.data_parallel


def solve(micro: int | None, accum: int | None, total: int | None, data_parallel: int) -> Batch:
    """The whole triple from those of its members that are given.

    With the global batch alone, the micro-batch is the largest divisor of a rank's share up to the default. With
    nothing, it is the default without accumulation.

    Raises:
        UserError: no whole numbers fit; it names the ones nearby that do.
    """
    for name, value in (("micro-batch", micro), ("gradient accumulation", accum), ("global batch", total)):
        if value is not None and value < 1:
            raise UserError(f"{name} {value}: must be at least 1")
    if total is None:
        return Batch(micro or DEFAULT_MICRO_BATCH, accum or 1, data_parallel)
    if total % data_parallel:
        raise UserError(
            f"global batch {total} does not divide over {data_parallel} ranks; {_nearby(total, data_parallel)}"
        )
    share = total // data_parallel
    if micro is None and accum is None:
        micro = max(size for size in range(1, DEFAULT_MICRO_BATCH + 1) if share % size == 0)
    if micro is None:
        assert accum is not None
        if share % accum:
            raise UserError(
                f"global batch {total} is no multiple of {accum} accumulated micro-batches on {data_parallel} ranks; "
                f"{_nearby(total, accum * data_parallel)}"
            )
        micro = share // accum
    if share % micro:
        raise UserError(
            f"global batch {total} is no multiple of micro-batch {micro} on {data_parallel} ranks; "
            f"{_nearby(total, micro * data_parallel)}"
        )
    if accum is not None and micro * accum != share:
        raise UserError(
            f"global batch {total} is not micro-batch {micro} x accumulation {accum} x {data_parallel} ranks "
            f'= {micro * accum * data_parallel}; change one of them or leave it at "auto"'
        )
    return Batch(micro, share // micro, data_parallel)


def _nearby(total: int, unit: int) -> str:
    below = total // unit * unit
    return f"use {below} or {below + unit}" if below else f"use {unit}"
