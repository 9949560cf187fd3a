"""The batch triple: micro-batch, accumulation and global batch, any of which the others give."""

from __future__ import annotations

import math
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


def complete(micro: int | None, accum: int | None, total: int | None, ranks: int) -> tuple[int, int, int] | None:
    """The triple as DeepSpeed completes it (`_set_batch_related_parameters`, runtime/config.py), or None if it refuses.

    Any two members give the third by floor division, one alone goes without accumulation; then
    `total == micro * accum * ranks` must hold with all of them above zero.
    """
    if total is None and micro is None:
        return None
    if total is None:
        assert micro is not None
        total = micro * (accum or 1) * ranks
    if accum is None:
        accum = total // micro // ranks if micro else 1
    if micro is None:
        micro = total // ranks // accum if accum else 0
    whole = min(micro, accum, total) > 0 and total == micro * accum * ranks
    return (micro, accum, total) if whole else None


def nearest(micro: int | None, accum: int | None, total: int, ranks: int) -> list[tuple[str, int]]:
    """By member (`micro`, `accum`, `total`), the values each of which alone mends a triple that does not fit.

    A member that is None stays free. The total comes with its nearest fitting values below and above.
    """
    unit = (micro or 1) * (accum or 1) * ranks
    fixed = micro is not None and accum is not None
    totals = [unit] if fixed else sorted({total // unit * unit, (total // unit + 1) * unit} - {0})
    found = [("total", value) for value in totals]
    for name, own, other in (("micro", micro, accum), ("accum", accum, micro)):
        if own is not None and total % ((other or 1) * ranks) == 0:
            share = total // ((other or 1) * ranks)
            fitting = [share] if fixed else divisors(share)
            found.append((name, min(fitting, key=lambda size: abs(size - own))))
    return found


def divisors(number: int) -> list[int]:
    """All divisors of a number above zero, ascending."""
    small = [size for size in range(1, math.isqrt(number) + 1) if number % size == 0]
    return sorted({*small, *(number // size for size in small)})
