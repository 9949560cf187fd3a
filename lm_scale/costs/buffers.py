"""Bytes of what an engine holds besides state: reduction buckets, gathered parameters, exchange buffers. No torch.

Sources: deepspeed 0.19.8, stage_1_and_2.py: 1422-1443, 3256-3280 (buckets); stage3.py: 780 (bucket);
partitioned_param_coordinator.py: 453-485 (prefetch), 655-664 (reuse); torch 2.13, distributed/fsdp. Error: the buckets
are exact; what stage 3 has gathered at the peak depends on the order of modules and is known to about one layer.
"""

from __future__ import annotations

from lm_scale.costs.items import PASSES, TRAINING, Item, item
from lm_scale.costs.setup import Setup
from lm_scale.costs.states import is_bf16_optimizer


def buffer_items(setup: Setup) -> list[Item]:
    """Items of one rank's buckets and gathered parameters; none for a single process without ZeRO."""
    if setup.engine == "torch":
        return _fsdp(setup) if setup.zero_stage in (2, 3) else []
    if setup.zero_stage == 0:
        return _flattened(setup) if setup.data_parallel > 1 else []
    if setup.zero_stage == 3:
        return _zero3(setup)
    if is_bf16_optimizer(setup):
        return _flat_cast(setup)
    return _buckets(setup)


def touched_bucket(setup: Setup) -> int:
    """Elements of a reduction bucket that are ever written: on a CPU the rest of it takes no memory."""
    return min(setup.reduce_bucket, setup.rank_trainable)


def _flattened(setup: Setup) -> list[Item]:
    """Gradients are copied into one flat tensor of up to 5e8 elements to reduce them (engine.py: 3795-3839)."""
    size = setup.accumulation_bytes * min(setup.rank_trainable, 500_000_000)
    return item("flattened gradients", size, "up to 5e8 elements at a time", "reduce")


def _flat_cast(setup: Setup) -> list[Item]:
    """BF16_Optimizer's fp32 gradients are one flat tensor, longer than a bucket, so that nothing divides or copies it;
    it is cast as a whole to the type that it is reduced in (bf16_optimizer.py: 196, 541; engine.py: 3795-3801)."""
    if setup.data_parallel == 1 or setup.reduction_bytes == setup.accumulation_bytes:
        return []
    size = setup.reduction_bytes * setup.rank_trainable
    return item("cast gradients", size, f"{setup.reduction_bytes} T: all of them, in the reduction's type", "reduce")


def _buckets(setup: Setup) -> list[Item]:
    """Stages 1 and 2: made anew for each backward pass, whole, two of them where communication overlaps."""
    if not setup.contiguous_gradients or setup.gradient_bytes == 0:
        return []
    elements = touched_bucket(setup) if setup.on_cpu else setup.reduce_bucket
    count = 2 if setup.overlap_comm and setup.pipeline_stages == 1 else 1
    if setup.on_cpu and setup.reduce_bucket >= setup.rank_trainable:
        count = 1
    size = count * elements * setup.reduction_bytes
    label = f"{count} x {setup.reduction_bytes} x {elements:,} elements"
    items = item("reduction buckets", size, label, *PASSES)
    if setup.partition_ranks > 1:
        copy = touched_bucket(setup) * setup.reduction_bytes
        if setup.optimizer_device != "device":
            largest = setup.dims.vocab_size * setup.dims.hidden
            size = setup.parameter_bytes * largest
            label = f"{setup.parameter_bytes} x the largest parameter, on its way to the host"
            items += item("gradient staging", size, label) + item("gradient staging", size, label, where="host")
        if setup.reduction_bytes != setup.parameter_bytes:
            items += item("bucket cast", copy, "the bucket in the reduction's type", "backward", "reduce")
    return items


def gathered_elements(setup: Setup) -> float:
    """Parameters that stage 3 has whole at the turn from the forward to the backward pass.

    Every module that is fetched prefetches up to `prefetch_bucket` elements more, so that what is whole grows until
    `max_live` stops it; and a parameter whose use in the backward pass the prefetch has already seen is not released
    (451-485, 637-644). Without prefetch those stay whose next use is within `max_reuse_distance`: at the end of the
    forward pass, the last half of that distance. The largest module comes to either when it is not among them.
    """
    n = setup.rank_parameters
    largest = setup.dims.vocab_size * setup.dims.hidden / setup.tensor_parallel
    kept = setup.max_live if setup.prefetch_bucket > 0 else setup.max_reuse_distance / 2
    return min(n, max(kept, min(kept, n) + largest if kept < n else n))


def persistent_elements(setup: Setup) -> int:
    """Parameters small enough to stay whole: norms and biases, well under 1 % of a model, at the default threshold."""
    per_layer = 2 * setup.dims.hidden + (2 * setup.dims.head_dim if setup.dims.query_key_norm else 0)
    if setup.persistence_threshold < setup.dims.hidden:
        per_layer = 0
    return per_layer * setup.dims.layers + (setup.dims.hidden if per_layer else 0)


def _zero3(setup: Setup) -> list[Item]:
    b = setup.compute_bytes if setup.parameter_bytes > setup.compute_bytes else setup.parameter_bytes
    elements = touched_bucket(setup) if setup.on_cpu else setup.reduce_bucket
    size = elements * setup.reduction_bytes
    items = item("reduction bucket", size, f"{setup.reduction_bytes} x {elements:,} elements", *TRAINING)
    copy = min(setup.reduce_bucket, setup.rank_trainable) * setup.reduction_bytes
    items += item("reduce-scatter copy", copy, "the bucket in the order of the ranks", "backward", "reduce")
    largest = setup.dims.vocab_size * setup.dims.hidden
    if largest > setup.reduce_bucket and setup.trainable is None:
        items += item(
            "largest gradient", 2 * b * largest, "longer than the bucket: whole, and a copy to scatter", "backward"
        )
    gathered = gathered_elements(setup) - (persistent := persistent_elements(setup))
    items += item("persistent parameters", b * persistent, "parameters at most persistence_threshold long")
    label = "max_live_parameters and the largest module, at most all"
    return items + item("gathered parameters", b * max(0, gathered), label, *PASSES)


def _fsdp(setup: Setup) -> list[Item]:
    """FSDP: the layer at work and the next one whole, the root (embedding, head) from forward to backward.

    In the backward pass a layer's gradient is whole before it is scattered, and so is the root's.
    """
    if setup.data_parallel * setup.context_parallel == 1:
        return []
    c, n = setup.compute_bytes, setup.rank_parameters
    layer = setup.dims.layer_parameters / setup.tensor_parallel
    root = setup.dims.embedding_parameters / setup.tensor_parallel
    trained = setup.rank_trainable / n
    if setup.pipeline_stages > 1:  # kept whole over all micro-batches of a step, and so are the gradients
        items = item("gathered parameters", c * n, f"{c} N: whole for all micro-batches of the pipeline", *PASSES)
        label = f"{setup.gradient_bytes} T: whole until the last micro-batch"
        return items + item("whole gradients", setup.gradient_bytes * setup.rank_trainable, label, *PASSES)
    if setup.zero_stage == 2:
        items = item("gathered parameters", c * n, f"{c} N: kept for the backward", *PASSES)
    else:
        items = item("gathered parameters", c * (2 * layer + root), "two layers and the root", *PASSES)
    size = setup.gradient_bytes * (layer + root) * trained
    label = "one layer's and the root's, before they are scattered"
    return items + item("whole gradients", size, label, "backward", "reduce")
