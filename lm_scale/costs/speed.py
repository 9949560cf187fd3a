"""Seconds of a step and what bounds them: products, memory, network, host link, NVMe. No torch.

A roofline (Williams et al. 2009) over what a step does: products at a share of the device's peak; attention at a lower
one; what lies between products at a share of the memory's rate, since it is read and written and hardly computed on;
collectives on the slowest link that they cross. Overlapped traffic costs what exceeds the time it may hide behind.

Shares are fitted on published measurements with an even id and checked on the others (`tests/bench/fit_plan.py`,
`bench_plan.py`); those of Turing, Ada and the CPU are taken from their neighbours, no row measures them.
"""

from __future__ import annotations

from dataclasses import dataclass

from lm_scale.costs.activations import layer_bytes_per_token
from lm_scale.costs.flops import mean_context
from lm_scale.costs.machines import Device
from lm_scale.costs.setup import Setup
from lm_scale.costs.wire import Traffic, traffic, wire_bytes

PRODUCT_SHARE = {
    "volta": 0.58,
    "turing": 0.5,
    "ampere": 0.75,
    "ada": 0.7,
    "hopper": 0.69,
    "blackwell": 0.83,
    "cpu": 0.9,
}
"""Of the dense peak that large products reach, by generation. Hopper and later slow their clocks down under load."""

LOW_PRECISION_SHARE = 0.9
"""Of that share what fp8 and fp4 products reach: scaling, casts, transposes."""

ATTENTION_SHARE = {
    "volta": 0.2,
    "turing": 0.2,
    "ampere": 0.63,
    "ada": 0.6,
    "hopper": 0.27,
    "blackwell": 0.45,
    "cpu": 0.5,
}
"""Of the share of products what attention reaches: FlashAttention 2 and its kin, on Volta and Turing single
products."""

NEWEST_ATTENTION_SHARE = 0.6
"""Of the dense peak what FlashAttention 3 reaches on Hopper and 4 on Blackwell, forward and backward together."""

MISALIGNED_SHARE = 0.58
"""Of the share of products what remains where a rank's width is no multiple of 64 elements, or a head's no multiple of
8: the tiles of the tensor cores are cut (NVIDIA, Matrix Multiplication Background User's Guide, section 4)."""

TRAFFIC_PASSES = 12.7
"""How often an activation that is saved is read or written in all, forward and backward."""

MEMORY_SHARE = 0.8
NVLINK_SHARE = 0.72
LINK_SHARE = 0.6
"""Of a link's rate what collectives reach, over NVLink and over everything else."""

HOP_S = 1.7e-6
"""Latency of one hop of a ring, of which a collective over w ranks has w - 1."""

LAUNCH_S = 1.2e-3
"""Host time to start one pass of one layer in eager mode, some fifty kernels; the backward pass counts as two."""

COMPILED_LAUNCH = 0.4
"""Of that time what remains for compiled blocks."""

HOOK_S = 1.8e-3
"""Host time that stage 3 adds to a pass of a layer: hooks around each module fetch and release parameters."""

HOST_ADAM_BYTES = 30
"""Host memory that one parameter's Adam reads and writes: gradient, master, two moments, and the 16-bit copy."""


@dataclass(frozen=True)
class Speed:
    """A step in seconds, whole and by what takes them; `bound` names the largest.

    `required_link_bytes_per_s` is the rate of the slowest link above which traffic would hide behind computation, or,
    where nothing overlaps, would take a tenth of it; None without traffic.
    """

    step_s: float
    parts: dict[str, float]
    bound: str
    tokens_per_s: float
    tokens_per_s_per_rank: float
    model_flops_per_token: float
    wire_bytes: dict[str, int]
    required_link_bytes_per_s: float | None


def model_flops_per_token(setup: Setup) -> float:
    """See `flops.flops_per_token`: products 6 P, attention 12 L c w with c the mean context."""
    return 6 * setup.dims.matmul_parameters + 12 * _attended(setup) * setup.dims.width


def predict_speed(setup: Setup, device: Device) -> Speed:
    """The step of the slowest rank."""
    compute, memory = _compute_seconds(setup, device)
    bubble = 1 + (setup.pipeline_stages - 1) / (setup.grad_accum * setup.virtual_stages)
    launch = 0.0 if setup.on_cpu else _launch_seconds(setup)
    working = (compute + memory) * bubble
    # The device works through what the host has started; in DeepSpeed's pipeline each exchange waits for both.
    waiting = setup.pipeline_stages > 1 and setup.engine == "deepspeed" and not setup.compiled
    waits = launch * bubble if waiting else max(0.0, launch * bubble - working)
    parts = {"compute": compute * bubble, "memory": memory * bubble, "launch": waits}
    working += parts["launch"]
    sent = traffic(setup)
    seconds = {one: _collective_seconds(one, setup, device) for one in sent}
    hidden = sum(time for one, time in seconds.items() if one.overlapped)
    cover = _cover(setup, working)
    parts["network"] = sum(seconds.values()) - hidden + max(0.0, hidden - cover)
    for name, time in _optimizer_seconds(setup, device).items():
        parts[name] = parts.get(name, 0.0) + time
    step_s = sum(parts.values())
    tokens_per_s = setup.global_tokens / step_s
    bound = max(parts, key=lambda name: parts[name])
    return Speed(
        step_s, parts, bound, tokens_per_s, tokens_per_s / setup.world_size, model_flops_per_token(setup),
        wire_bytes(setup), _required_rate(sent, cover, working),
    )  # fmt: skip


def _cover(setup: Setup, working: float) -> float:
    """Work that overlapped traffic may hide behind: all of it where parameters are gathered, else the backward pass."""
    return working if setup.zero_stage == 3 else 0.6 * working


def _required_rate(sent: list[Traffic], cover: float, working: float) -> float | None:
    """Bytes a second at which overlapped traffic hides, and traffic that nothing overlaps takes a tenth of the work."""
    outer = [one for one in sent if not one.within_node]
    hidden = sum(one.bytes for one in outer if one.overlapped)
    serial = sum(one.bytes for one in outer if not one.overlapped)
    return max(hidden / cover, serial / (0.1 * working)) if outer else None


def _launch_seconds(setup: Setup) -> float:
    """Host time to start all passes of a step: forward one, backward two, recomputation one more."""
    passes = {"none": 3, "selective": 3.5, "full": 4}[setup.checkpointing]
    one = LAUNCH_S * (COMPILED_LAUNCH if setup.compiled else 1)
    if setup.zero_stage == 3 and setup.engine == "deepspeed":
        one += HOOK_S
    return passes * setup.stage_layers * setup.grad_accum * one


def _attended(setup: Setup) -> float:
    """Sum over the layers of the positions a token attends to on average."""
    windows = setup.dims.windows or (None,) * setup.dims.layers
    return sum(mean_context(setup.seq_len, window) for window in windows)


def _compute_seconds(setup: Setup, device: Device) -> tuple[float, float]:
    """Seconds of products and of what lies between them, on one rank, for all micro-batches of a step.

    Recomputation adds a forward pass of the layers: a third of forward and backward together.
    """
    dims = setup.dims
    share = setup.tensor_parallel * setup.pipeline_stages
    tokens = setup.tokens * setup.grad_accum
    again = {"none": 1.0, "selective": 1.15, "full": 4 / 3}[setup.checkpointing]
    head = 6 * dims.vocab_size * dims.hidden
    layers = 6 * dims.matmul_parameters - head
    trained = 1.0
    if setup.trainable is not None:  # the gradients of the frozen matrices, a third of all, are not computed
        trained, again = 2 / 3, 1 + (again - 1) * 3 / 2
    share_of_peak = PRODUCT_SHARE[device.generation]
    peak = device.product_flops_per_s(setup.products) * share_of_peak
    low = setup.products in ("fp8", "fp4")
    attention_peak = device.product_flops_per_s("bf16" if low else setup.products)
    usual = share_of_peak * ATTENTION_SHARE[device.generation]
    attention_peak *= NEWEST_ATTENTION_SHARE if setup.newest_attention else usual
    if low:
        peak *= LOW_PRECISION_SHARE
    if dims.hidden // setup.tensor_parallel % 64 or dims.head_dim % 8:
        peak *= MISALIGNED_SHARE
    attended = _attended(setup) * (2 if setup.eager_attention else 1)  # without a fused kernel the mask saves nothing
    products = tokens * trained * (layers * again + head) / share / peak
    products += tokens * 12 * attended * dims.width * again / share / attention_peak
    between = tokens * setup.stage_layers * layer_bytes_per_token(setup) * TRAFFIC_PASSES * again
    logits = tokens * dims.vocab_size / share * (4 if setup.loss in ("liger", "chunked", "fused") else 8) * 4
    return products, (between + logits) / (device.memory_rate * MEMORY_SHARE)


def _collective_seconds(one: Traffic, setup: Setup, device: Device) -> float:
    """A ring at the rate of its slowest link. The node's network carries a ring once, whatever the ranks in it."""
    rings = 1 if one.within_node else one.rings * setup.tensor_parallel
    rate = device.peer * (NVLINK_SHARE if device.nvlink else LINK_SHARE)
    if setup.world_size > setup.ranks_per_node and one.ranks * rings > setup.ranks_per_node:
        rate = min(rate, device.network * LINK_SHARE / rings)
    return one.bytes / rate + one.operations * (one.ranks - 1) * HOP_S


def _optimizer_seconds(setup: Setup, device: Device) -> dict[str, float]:
    """The optimizer: bound by the memory that it runs in; offloaded, also by the link to it."""
    split = setup.partition_ranks if setup.zero_stage else 1
    elements = setup.rank_trainable / split
    if setup.optimizer_device == "device":
        touched = 2 * setup.parameter_bytes + setup.gradient_bytes + 2 * setup.optimizer_bytes
        touched += 8 if setup.master_weights else 0
        return {"memory": elements * touched / (device.memory_rate * MEMORY_SHARE)}
    ranks = min(setup.ranks_per_node, setup.world_size)
    link = elements * (setup.parameter_bytes + setup.accumulation_bytes) / (device.host_link * LINK_SHARE)
    if setup.parameter_device != "device":
        link += 2 * setup.grad_accum * elements * setup.parameter_bytes / (device.host_link * LINK_SHARE)
    adam = elements * HOST_ADAM_BYTES * ranks / (device.host_memory_rate * MEMORY_SHARE)
    parts = {"host": link + adam}
    if setup.optimizer_device == "nvme":
        parts["nvme"] = elements * 2 * (4 + 4 + setup.optimizer_bytes) * ranks / device.nvme
    return parts
