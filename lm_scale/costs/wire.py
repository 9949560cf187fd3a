"""Bytes that one rank sends a step, by collective, and how many collectives there are. No torch.

A ring over w ranks sends, of a tensor of S bytes, (w - 1) / w S for an all-gather or a reduce-scatter and twice that
for an all-reduce; every rank sends as much (Patarasuk & Yuan 2009). What is sent how often at each stage: Rajbhandari
et al. 2020 (arXiv:1910.02054, section 7), and deepspeed 0.19.8: stage 1 reduces at the end of an accumulation, stages
2 and 3 after every micro-batch; stages 1 and 2 by all-reduce (`use_multi_rank_bucket_allreduce`, true by default),
whatever `reduce_scatter` says; stage 3 gathers for the forward pass and, of what it has released, for the backward
pass. Exact but for padding and norms.
"""

from __future__ import annotations

from dataclasses import dataclass

from lm_scale.costs.buffers import gathered_elements
from lm_scale.costs.setup import Setup


@dataclass(frozen=True)
class Traffic:
    """Of one step and rank: bytes sent and operations, by collective.

    `overlapped` runs beside computation; `rings` is how many groups of one node do the same at once, over one network.
    """

    name: str
    bytes: float
    operations: float
    ranks: int
    overlapped: bool = False
    within_node: bool = False
    rings: int = 1


def traffic(setup: Setup) -> list[Traffic]:
    """All collectives of a step that move parameters, gradients or activations."""
    return [one for one in (*_data_parallel(setup), *_model_parallel(setup)) if one.bytes > 0 and one.ranks > 1]


def wire_bytes(setup: Setup) -> dict[str, int]:
    """Bytes one rank sends a step, by collective."""
    total: dict[str, int] = {}
    for one in traffic(setup):
        total[one.name] = total.get(one.name, 0) + round(one.bytes)
    return total


def _data_parallel(setup: Setup) -> list[Traffic]:
    w = setup.data_parallel * setup.context_parallel
    if w == 1:
        return []
    n, t, times = setup.rank_parameters, setup.rank_trainable, setup.grad_accum
    own = min(setup.parameter_bytes, setup.compute_bytes)
    shards = setup.partition_ranks
    ring, shard_ring = (w - 1) / w, (shards - 1) / shards
    per_bucket = max(1.0, t / max(1, setup.reduce_bucket))
    gradients = setup.reduction_bytes * t
    if setup.zero_stage == 0:
        count = per_bucket if setup.engine == "deepspeed" else setup.gradient_bytes * t / 25e6
        return [Traffic("all_reduce", 2 * ring * gradients, count, w, overlapped=setup.engine == "torch")]
    if setup.zero_stage in (1, 2) and setup.engine == "deepspeed":
        rounds = times if setup.zero_stage == 2 else 1
        return [
            Traffic("all_reduce", 2 * ring * gradients * rounds, per_bucket * rounds, w, setup.overlap_comm),
            *_replicas(setup, gradients / shards),
            Traffic("all_gather", shard_ring * setup.parameter_bytes * t, per_bucket, shards),
        ]
    gathers = 1.0 if setup.zero_stage == 2 else 2.0
    if setup.engine == "torch" and setup.pipeline_stages > 1:  # parameters and gradients stay whole over a step
        gathers, times = 1.0, 1
    if setup.zero_stage == 3 and setup.engine == "deepspeed":
        gathers -= min(1.0, gathered_elements(setup) / n)  # what is still whole is not gathered again
    deepspeed = setup.engine == "deepspeed"
    units = setup.dims.layers + 1
    near = []
    if (
        deepspeed and (group := setup.secondary_ranks) > 1
    ):  # hpZ gathers for the backward pass within a group, a node by its size
        count = (gathers - 1) * times
        inside = group <= setup.ranks_per_node
        near = [Traffic("all_gather", count * (group - 1) / group * own * n, count * units, group, within_node=inside)]
        gathers = 1.0
    return [
        *near,
        Traffic("all_gather", gathers * times * shard_ring * own * n, gathers * times * units, shards, not deepspeed),
        Traffic("reduce_scatter", times * shard_ring * gradients, times * units, shards, True),
        *_replicas(setup, gradients / shards * times),
    ]


def _replicas(setup: Setup, gradients: float) -> list[Traffic]:
    """A hybrid layout reduces its shards among the replicas too."""
    replicas = setup.data_parallel * setup.context_parallel // setup.partition_ranks
    if replicas <= 1:
        return []
    rings = min(setup.partition_ranks, setup.ranks_per_node)
    return [Traffic("all_reduce", 2 * (replicas - 1) / replicas * gradients, 8, replicas, True, rings=rings)]


def _model_parallel(setup: Setup) -> list[Traffic]:
    """Tensor parallelism: two all-reduces a layer and pass (Shoeybi et al. 2019, section 3); one pass more if
    recomputed.

    A pipeline passes each micro-batch's activations on and their gradients back; context parallelism gathers keys and
    values of every layer.
    """
    size = setup.compute_bytes * setup.dims.hidden * setup.tokens * setup.grad_accum
    passes = 3 if setup.checkpointing == "full" else 2
    found = []
    if (t := setup.tensor_parallel) > 1:
        layers = setup.stage_layers
        sent = 2 * (t - 1) / t * size * 2 * passes * layers
        count = 2 * passes * layers * setup.grad_accum
        found.append(Traffic("tensor_all_reduce", sent, count, t, setup.overlap_tensor, within_node=True))
    if setup.pipeline_stages > 1:
        found.append(Traffic("send", 2 * size, 2 * setup.grad_accum, 2, overlapped=True))
    if (c := setup.context_parallel) > 1:
        keys = 2 * setup.dims.key_value_width / setup.dims.hidden * size * (c - 1) * passes * setup.stage_layers
        count = passes * setup.stage_layers * setup.grad_accum
        found.append(Traffic("context_all_gather", keys, count, c, overlapped=True, within_node=True))
    return found
