"""One run as the cost formulas see it: the sizes of its model, its layout, its numerics and its buffers. No torch.

Everything that memory, traffic and time depend on, and nothing else: made from a resolved strategy (`lm_scale.plan`)
or from a published row (`tests/bench/bench_plan.py`), so that both go through the same formulas.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lm_scale.costs.shapes import ModelShape

Checkpointing = Literal["none", "full", "selective"]
Loss = Literal["full", "chunked", "liger", "fused", "low_precision", "in_place"]


@dataclass(frozen=True, kw_only=True)
class Dimensions:
    """The sizes of a decoder. `parameters` are all of them, a tied one once.

    `gated`: three matrices in the feed-forward block (SwiGLU), else two; `rms_norm`: Llama's norm, which transformers
    computes in fp32 step by step, else a fused layer norm; `eager_gelu`: GPT-2's GELU in transformers, written in
    single operations that each keep a tensor; `dropout`: masks of attention and of both residuals are kept; `experts`:
    feed-forward blocks of one layer, of which a token passes `active`.
    """

    layers: int
    hidden: int
    heads: int
    key_value_heads: int
    head_dim: int
    intermediate: int
    vocab_size: int
    parameters: int
    tied: bool = False
    gated: bool = True
    rms_norm: bool = True
    query_key_norm: bool = False
    eager_gelu: bool = False
    dropout: bool = False
    experts: int = 1
    active_experts: int = 1
    windows: tuple[int | None, ...] | None = None

    @property
    def width(self) -> int:
        """Of the queries of all heads."""
        return self.heads * self.head_dim

    @property
    def key_value_width(self) -> int:
        return self.key_value_heads * self.head_dim

    @property
    def embedding_parameters(self) -> int:
        """The embedding and, where it is not tied to it, the head."""
        return self.vocab_size * self.hidden * (1 if self.tied else 2)

    @property
    def layer_parameters(self) -> int:
        """Of one layer, positions and last norm spread over all of them."""
        return max(0, self.parameters - self.embedding_parameters) // self.layers

    @property
    def expert_parameters(self) -> int:
        """Of the experts of one layer, all of them; 0 for a dense model."""
        matrices = 3 if self.gated else 2
        return matrices * self.hidden * self.intermediate * self.experts if self.experts > 1 else 0

    @property
    def matmul_parameters(self) -> int:
        """Parameters that each token is multiplied by, the head included, norms and biases left out (under 1 %)."""
        feed_forward = (3 if self.gated else 2) * self.hidden * self.intermediate * self.active_experts
        attention = self.hidden * (2 * self.width + 2 * self.key_value_width)
        return self.layers * (attention + feed_forward) + self.vocab_size * self.hidden

    @staticmethod
    def of(shape: ModelShape) -> Dimensions:
        """The sizes of a model whose parameters are known."""
        return Dimensions(
            layers=shape.layers,
            hidden=shape.hidden,
            heads=shape.heads,
            key_value_heads=shape.key_value_heads,
            head_dim=shape.head_dim,
            intermediate=shape.intermediate,
            vocab_size=shape.vocab_size,
            parameters=shape.parameter_count,
            tied=shape.tied_embeddings,
            gated=shape.family != "gpt2",
            rms_norm=shape.family != "gpt2",
            query_key_norm=shape.family == "qwen3",
            eager_gelu=shape.family == "gpt2",
            windows=shape.windows,
        )


@dataclass(frozen=True, kw_only=True)
class Setup:
    """One run. Sizes are in bytes or in elements where the name says nothing else; degrees count ranks.

    `engine` deepspeed: ZeRO stage `zero_stage`; torch: stage 0 is one process or DDP, 2 and 3 are FSDP's SHARD_GRAD_OP
    and FULL_SHARD (FSDP2: 3). `shard_ranks` are the ranks over which partitioned state is split, None for all
    data-parallel ones (fewer under a hybrid layout). `virtual_stages` are the pieces of a pipeline stage that
    interleave; `last_stage` asks for the memory of the stage with the head in place of the first. `parameter_bytes` is
    the size of a stored parameter, `compute_bytes` that of an activation; `master_weights` is a separate fp32 copy.
    `fused_kernels` are those of the norms alone, or of the feed-forward block too, which then works in place.
    `newest_attention` is FlashAttention 3 or 4, made for one generation of devices. `optimizer_bytes` are those of the
    optimizer's state a parameter; `foreach` is torch's default loop over all tensors, which holds one extra copy;
    `own_adam` is DeepSpeed's fused Adam, for which it flattens. `secondary_ranks` share hpZ's second
    partition of the parameters.
    """

    dims: Dimensions
    engine: Literal["deepspeed", "torch"] = "deepspeed"
    zero_stage: int = 0
    world_size: int = 1
    ranks_per_node: int = 8
    tensor_parallel: int = 1
    pipeline_stages: int = 1
    virtual_stages: int = 1
    last_stage: bool = False
    stage_blocks: tuple[int, ...] | None = None
    context_parallel: int = 1
    expert_parallel: int = 1
    shard_ranks: int | None = None
    sequence_parallel: bool = False
    vocabulary_parallel: bool = True
    seq_len: int = 512
    micro_batch: int = 8
    grad_accum: int = 1
    compute_bytes: int = 2
    parameter_bytes: int = 2
    gradient_bytes: int = 2
    accumulation_bytes: int = 2
    reduction_bytes: int = 2
    master_weights: bool = True
    optimizer_bytes: float = 8
    foreach: bool = False
    own_adam: bool = True
    fused_backward: bool = False
    trainable: int | None = None
    checkpointing: Checkpointing = "none"
    activation_offload: bool = False
    eager_attention: bool = False
    newest_attention: bool = False
    loss: Loss = "full"
    compiled: bool = False
    fused_kernels: Literal["none", "norms", "all"] = "none"
    optimizer_device: Literal["device", "cpu", "nvme"] = "device"
    parameter_device: Literal["device", "cpu", "nvme"] = "device"
    reduce_bucket: int = 500_000_000
    overlap_comm: bool = True
    overlap_tensor: bool = False
    contiguous_gradients: bool = True
    prefetch_bucket: int = 50_000_000
    persistence_threshold: int = 100_000
    max_live: int = 1_000_000_000
    max_reuse_distance: int = 1_000_000_000
    sub_group: int = 1_000_000_000
    secondary_ranks: int = 1
    chunk_rows: int = 1024
    on_cpu: bool = False
    products: Literal["fp32", "tf32", "bf16", "fp16", "fp8", "fp4"] = "bf16"

    @property
    def data_parallel(self) -> int:
        return max(1, self.world_size // (self.tensor_parallel * self.pipeline_stages * self.context_parallel))

    @property
    def partition_ranks(self) -> int:
        """Ranks over which ZeRO or FSDP splits its state."""
        return self.shard_ranks or self.data_parallel * self.context_parallel

    @property
    def tokens(self) -> int:
        """Of one micro-batch on one rank."""
        return self.micro_batch * self.seq_len // self.context_parallel

    @property
    def global_tokens(self) -> int:
        """Of one step over all ranks."""
        return self.micro_batch * self.seq_len * self.grad_accum * self.data_parallel

    @property
    def stage_layers(self) -> int:
        """Layers of the pipeline stage that is looked at, the first or the last.

        Where `stage_blocks` does not say: as many in each, or, where they do not divide, balanced with embedding and
        head counted as a layer each.
        """
        if self.stage_blocks is not None:
            return self.stage_blocks[-1 if self.last_stage else 0]
        if self.dims.layers % self.pipeline_stages == 0:
            return self.dims.layers // self.pipeline_stages
        return max(1, -(-(self.dims.layers + 2) // self.pipeline_stages) - 1)

    @property
    def rank_parameters(self) -> int:
        """Parameters of a rank before ZeRO splits them: its pipeline stage over the tensor-parallel ranks.

        The first stage holds the embedding, the last the head, which for tied embeddings is a second copy of it.
        """
        tables = self.dims.embedding_parameters
        blocks = self.dims.parameters - tables
        if self.pipeline_stages > 1:
            tables = self.dims.vocab_size * self.dims.hidden
            blocks = self.stage_layers * self.dims.layer_parameters
        experts = self.stage_layers * self.dims.expert_parameters
        blocks -= experts - experts // self.expert_parallel
        return -(-blocks // self.tensor_parallel) - (-tables // self.vocabulary_ranks)

    @property
    def vocabulary_ranks(self) -> int:
        """Over how many ranks embedding and head are split."""
        return self.tensor_parallel if self.vocabulary_parallel else 1

    @property
    def rank_trainable(self) -> int:
        """Those of them that are trained (all, but for adapters)."""
        if self.trainable is None:
            return self.rank_parameters
        return min(self.rank_parameters, self.trainable // (self.tensor_parallel * self.pipeline_stages))
