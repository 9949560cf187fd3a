"""Bytes of activations: what the forward pass saves for the backward pass, layer by layer. No torch.

Derived by listing the tensors that autograd saves in transformers 5.23's blocks (and in fused ones), as Korthikanti et
al. 2022 do for Megatron's GPT (arXiv:2205.05198, section 4, whose 34 sbh + 5 a s^2 b is the GPT-2 line below with
dropout). All sizes are of one token of one layer, in bytes; c is the size of an activation.

With `full` checkpointing one input a layer is kept, and one layer at a time is there whole while it is recomputed.
`selective` is torchtitan's default: of a layer's products every second one, and attention's output, are kept.
"""

from __future__ import annotations

from lm_scale.costs.head import chunked_loss_bytes
from lm_scale.costs.items import Item, Place, item
from lm_scale.costs.setup import Setup

_FP32 = 4


def layer_bytes_per_token(setup: Setup) -> float:
    """What one layer saves of one token, tensor parallelism applied."""
    dims, c = setup.dims, setup.compute_bytes
    shared = setup.tensor_parallel
    whole = shared if setup.sequence_parallel else 1  # norms and residuals are split by sequence, or repeated
    norms = 2 * (_norm_bytes(setup) + dims.dropout * dims.hidden) / whole  # and the masks of both residual dropouts
    if setup.sequence_parallel:
        norms += 2 * c * dims.hidden  # the inputs of both column-wise products, gathered over the sequence
    attention = _attention_bytes(setup) / shared
    return norms + attention + _feed_forward_bytes(setup) * c / shared + (dims.experts > 1) * c * dims.hidden / whole


def _norm_bytes(setup: Setup) -> float:
    """One norm and the input of the product after it.

    transformers' RMSNorm: the input in fp32 (the residual itself in an fp32 run), the scaled input, the output. A fused
    or compiled one, and a layer norm: input and output.
    """
    h, c = setup.dims.hidden, setup.compute_bytes
    if setup.dims.rms_norm and setup.fused_kernels == "none" and not setup.compiled:
        return (_FP32 + 2 * c) * h
    return 2 * c * h


def _attention_bytes(setup: Setup) -> float:
    """Query, key, value, output; norms of query and key; scores and softmax where attention is not fused."""
    dims, c = setup.dims, setup.compute_bytes
    w, kv = dims.width, dims.key_value_width
    size = float(c * (2 * w + 2 * kv))
    if dims.query_key_norm:
        size += (w + kv) * (c if setup.compiled else _FP32 + c)
    if setup.eager_attention:
        size += dims.heads * setup.seq_len * _score_bytes(setup)
    else:
        size += _FP32 * dims.heads  # a fused kernel keeps the logarithm of each row's sum
    return size


def _score_bytes(setup: Setup) -> int:
    """Of one attention score: its softmax (in fp32 and cast back for Llama's kin), dropout's mask and result."""
    c = setup.compute_bytes
    softmax = _FP32 + c if setup.dims.rms_norm and c < _FP32 else c
    return softmax + (c + 1 if setup.dims.dropout else 0)


def _feed_forward_bytes(setup: Setup) -> float:
    """In activations. Gated: gate, up, the activated gate, their product; fused kernels and compilers keep three.

    Ungated: the product and its GELU; transformers' GPT-2 writes GELU in single operations that keep three more.
    """
    dims = setup.dims
    width = dims.intermediate * dims.active_experts
    if dims.gated:
        return (3 if setup.compiled or setup.fused_kernels == "all" else 4) * width
    return (5 if dims.eager_gelu and not setup.compiled and setup.fused_kernels == "none" else 2) * width


def _selective_bytes_per_token(setup: Setup) -> float:
    """Input, query and value products, attention's output, gate (or first) and last product of a layer."""
    dims, c = setup.dims, setup.compute_bytes
    return c * (3 * dims.hidden + dims.width + dims.key_value_width + dims.intermediate) / setup.tensor_parallel


def backward_bytes_per_token(setup: Setup) -> float:
    """Gradients of activations that the backward pass of one layer holds at once: three of the feed-forward's width."""
    dims, c = setup.dims, setup.compute_bytes
    width = dims.intermediate * dims.active_experts
    size = c * (3 if dims.gated else 2) * width + 2 * c * dims.hidden
    if setup.fused_kernels == "all":  # two of the three are written over what was saved
        size = c * (width + 3 * dims.hidden)
    gathered = 2 * c * dims.hidden if setup.sequence_parallel else 0
    if setup.eager_attention:
        size += dims.heads * setup.seq_len * 2 * c
    return size / setup.tensor_parallel + gathered


def activation_items(setup: Setup) -> list[Item]:
    """Activations of one micro-batch (of those in flight, in a pipeline), the layer at work, and the loss."""
    c, tokens, layers = setup.compute_bytes, setup.tokens, setup.stage_layers
    in_flight = 1 if setup.last_stage else min(setup.pipeline_stages, setup.grad_accum)
    saved = layer_bytes_per_token(setup)
    boundary = c * setup.dims.hidden / (setup.tensor_parallel if setup.sequence_parallel else 1)
    kept = {"none": saved, "full": boundary, "selective": _selective_bytes_per_token(setup)}[setup.checkpointing]
    if in_flight > 1 and setup.checkpointing != "none":
        layers += 1  # a pipeline keeps the stage's output too, until its gradient comes back
    place: Place = "host" if setup.activation_offload else "device"
    one = layers * tokens * kept
    label = f"{layers} layers x {tokens:,} tokens x {kept:,.0f} bytes"
    items = item("activations", in_flight * one, _in_flight(label, in_flight), "forward", "backward", where=place)
    items += item("activations left", (in_flight - 1) * one, "of other micro-batches", "reduce", where=place)
    if setup.checkpointing != "none":
        size = tokens * (saved - (kept if setup.checkpointing == "selective" else 0))
        items += item("recomputed layer", size, f"{tokens:,} tokens x {size / tokens:,.0f} bytes", "backward", "reduce")
    size = tokens * backward_bytes_per_token(setup)
    items += item("activation gradients", size, "one layer's widest moment", "backward", "reduce")
    if setup.grad_accum == 1 and setup.zero_stage < 3 and setup.trainable is None:
        head = setup.dims.vocab_size * setup.dims.hidden // setup.vocabulary_ranks
        items += item("head gradient", setup.gradient_bytes * head, "the first of the gradients", "backward")
    return items + loss_items(setup) if setup.pipeline_stages == 1 or setup.last_stage else items


def loss_items(setup: Setup) -> list[Item]:
    """The logits and what their loss holds, on the rank that has the head.

    full: three fp32 tensors of tokens x vocabulary (`head.full_loss_bytes`) and, in a lower precision, their gradient
    in it. low_precision: the same in the model's precision (transformers before 4.45 for GPT-2's kin). fused: a
    compiled or fused loss: logits and their gradient in the model's precision and one fp32 tensor; in_place: without
    that one. liger and chunked hold a chunk.
    """
    tokens, c = setup.tokens, setup.compute_bytes
    vocabulary = setup.dims.vocab_size // setup.vocabulary_ranks
    logits = tokens * vocabulary
    if setup.loss in ("chunked", "liger"):
        head = setup.compute_bytes
        rows = min(setup.chunk_rows, tokens)
        if setup.loss == "liger":  # chunks of about tokens x hidden / vocabulary rows, the head's gradient in fp32
            rows = max(1, min(tokens, tokens * setup.dims.hidden // max(vocabulary, 1)))
            rows = 1 << (rows - 1).bit_length()
        size = chunked_loss_bytes(tokens, vocabulary, setup.dims.hidden, head, rows)
        return item("loss", size, f"logits of {rows:,} tokens, gradients of head and states", "forward")
    copies = {"full": 3 * _FP32, "fused": 2 * c + _FP32, "low_precision": 3 * c, "in_place": 2 * c}[setup.loss]
    items = item("logits and loss", logits * copies, f"{copies} bytes x {tokens:,} tokens x {vocabulary:,}", "forward")
    return items


def whole_logits_bytes(setup: Setup) -> int:
    """The largest tensor of the loss: all logits in fp32, where the loss makes them."""
    if setup.loss not in ("full", "fused") or (setup.pipeline_stages > 1 and not setup.last_stage):
        return 0
    return _FP32 * setup.tokens * (setup.dims.vocab_size // setup.vocabulary_ranks)


def _in_flight(label: str, count: int) -> str:
    return label if count == 1 else f"{label} x {count} micro-batches in flight"
