"""How a pipeline's stages divide a model: the blocks of each, by the method that the JSON names. No torch.

The row of layers is the embedding, the blocks, the last norm and the head. DeepSpeed divides its weights so that the
fullest and the emptiest stage differ least (runtime/utils.py, `partition_balanced`); `flops` weighs a layer by its
products, `parameters` by its parameters, `uniform` counts layers, and `type:` counts those that match.
"""

from __future__ import annotations

import math
from itertools import pairwise

from lm_scale.costs.setup import Dimensions


def stage_blocks(dims: Dimensions, stages: int, method: str = "flops") -> tuple[int, ...]:
    """Blocks of each stage."""
    table = dims.vocab_size * dims.hidden
    block = float(dims.layer_parameters)
    kind = method.lower()
    if kind == "flops":
        weights = [0.0, *[block] * dims.layers, 0.0, float(table)]
    elif kind == "uniform":
        weights = [1.0] * (dims.layers + 3)
    elif kind.startswith("type:"):
        weights = [0.0, *[1.0] * dims.layers, 0.0, 0.0]
    else:
        weights = [float(table), *[block] * dims.layers, float(dims.hidden), float(table)]
    bounds = _balanced(weights, stages)
    return tuple(max(0, min(end, dims.layers + 1) - max(start, 1)) for start, end in pairwise(bounds))


def _balanced(weights: list[float], parts: int) -> list[int]:
    """Bounds of `parts` runs of `weights` whose largest and smallest sums differ least; the last of equals."""
    sums = [0.0]
    for weight in weights:
        sums.append(sums[-1] + weight)
    count = len(weights)
    largest = [[math.inf] * (parts + 1) for _ in range(count + 1)]
    smallest = [[math.inf] * (parts + 1) for _ in range(count + 1)]
    place = [[0] * (parts + 1) for _ in range(count + 1)]
    cost = [[math.inf] * (parts + 1) for _ in range(count + 1)]
    largest[0][0] = 0.0
    for end in range(1, count + 1):
        for part in range(1, min(end, parts) + 1):
            for start in range(end):
                run = sums[end] - sums[start]
                most, least = max(largest[start][part - 1], run), min(smallest[start][part - 1], run)
                if most - least <= cost[end][part]:
                    cost[end][part], place[end][part] = most - least, start
                    largest[end][part], smallest[end][part] = most, least
    bounds = [count]
    for part in range(parts, 0, -1):
        bounds.append(place[bounds[-1]][part])
    return bounds[::-1]
