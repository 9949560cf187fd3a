"""Fit the constants of `costs.speed` and `costs.memory` on the published measurements with an even id.

    python tests/bench/fit_plan.py ROWS.json

A coordinate search on the mean over sources of the mean absolute logarithm of predicted over measured, each row's
bounded by `WORST`, so that neither a large source nor a wrong row decides. Prints the constants; nothing is written.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench_plan import fitted
from published import capacity_of, device_of, measured_bytes, memory_kind, setup_of

from lm_scale.costs import memory, speed

WORST = 0.7
STEPS = (1.25, 0.8, 1.06, 0.94)
SPEED = (
    "PRODUCT_SHARE.volta", "PRODUCT_SHARE.ampere", "PRODUCT_SHARE.hopper", "PRODUCT_SHARE.blackwell",
    "LOW_PRECISION_SHARE", "MISALIGNED_SHARE", "NEWEST_ATTENTION_SHARE", "ATTENTION_SHARE.volta",
    "ATTENTION_SHARE.ampere", "ATTENTION_SHARE.hopper", "ATTENTION_SHARE.blackwell",
    "TRAFFIC_PASSES", "NVLINK_SHARE", "LINK_SHARE", "HOP_S", "LAUNCH_S", "HOOK_S",
)  # fmt: skip
MEMORY = ("CONTEXT_BYTES", "COMMUNICATOR_BYTES", "FRAGMENTS")
HIGHEST = {
    "PRODUCT_SHARE": 0.9,
    "ATTENTION_SHARE": 1.0,
    "LOW_PRECISION_SHARE": 0.9,
    "NVLINK_SHARE": 0.9,
    "LINK_SHARE": 0.9,
}


def get(module: Any, name: str) -> float:
    """A constant, or one entry of a table."""
    table, _, key = name.partition(".")
    value = getattr(module, table)
    return float(value[key] if key else value)


def put(module: Any, name: str, value: float) -> None:
    """Set it."""
    table, _, key = name.partition(".")
    if key:
        getattr(module, table)[key] = value
    else:
        setattr(module, table, value)


def search(module: Any, names: tuple[str, ...], loss: Callable[[], float]) -> float:
    """Multiply each constant by each step in turn for as long as anything helps; the loss that is left."""
    best = loss()
    improved = True
    while improved:
        improved = False
        for name in names:
            for step in STEPS:
                before = get(module, name)
                after = min(before * step, HIGHEST.get(name.split(".")[0], math.inf))
                put(module, name, after)
                found = loss()
                if found < best - 1e-5:
                    best, improved = found, True
                else:
                    put(module, name, before)
    return best


def mean_of_sources(errors: list[tuple[str, float]]) -> float:
    """The mean over sources of the mean bounded error."""
    groups: dict[str, list[float]] = {}
    for source, error in errors:
        groups.setdefault(source, []).append(min(abs(error), WORST))
    return sum(sum(group) / len(group) for group in groups.values()) / len(groups)


def main(argv: list[str]) -> int:
    """Fit and print."""
    rows = json.loads(Path(argv[0]).read_text(encoding="utf-8"))
    chosen = [(row, setup_of(row), device_of(row)) for row in rows if fitted(row) and row["trust"] != "low"]
    known = [(row, setup, device) for row, setup, device in chosen if setup is not None and device is not None]

    def speed_loss() -> float:
        return mean_of_sources(
            [
                (row["source"], math.log(speed.predict_speed(setup, device).tokens_per_s_per_rank / measured))
                for row, setup, device in known
                if (measured := row["tokens_per_s_per_gpu"])
            ]
        )

    def memory_loss() -> float:
        errors = []
        for row, setup, device in known:
            measured = measured_bytes(row) if row["outcome"].startswith("ok") else None
            if measured:
                found = memory.predict_memory(setup, capacity_of(row, device))
                kinds = {"process": found.process, "reserved": found.reserved, "allocated": found.device}
                errors.append((row["source"], math.log(kinds[memory_kind(row)] / measured)))
        return mean_of_sources(errors)

    for module, names, loss in ((speed, SPEED, speed_loss), (memory, MEMORY, memory_loss)):
        before = loss()
        after = search(module, names, loss)
        print(f"{module.__name__}: {before:.4f} -> {after:.4f}")
        for name in names:
            print(f"  {name} = {get(module, name):.4g}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
