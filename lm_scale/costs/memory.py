"""The memory of one rank: all items, their sum by phase, the peak, and what the allocator reserves. No torch.

Allocated bytes are derived. Three constants are not, and were fitted on published measurements with an even id
(`tests/bench/bench_plan.py` shows the error on the others): the context, the communicators, fragmentation.
`BLOCK_SHARE` was chosen with all rows in view that ran out of memory, so what fits is the planner's only claim that no
half judges.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from lm_scale.costs.activations import activation_items, whole_logits_bytes
from lm_scale.costs.buffers import buffer_items
from lm_scale.costs.items import PHASES, TRAINING, Item, Place, item, phase_bytes
from lm_scale.costs.setup import Setup
from lm_scale.costs.states import state_items

GIB = 2**30

CONTEXT_BYTES = int(0.6 * GIB)
"""CUDA's context and the libraries' workspaces, outside the allocator: 0.4 to 0.8 GiB on V100 to H100."""

COMMUNICATOR_BYTES = int(0.7 * GIB)
"""NCCL's buffers of one process group over several ranks; there is one without tensor or pipeline parallelism."""

FRAGMENTS = 0.06
"""Of all that is allocated: what fragmentation costs even where the allocator is short and returns what it can."""

BLOCK_SHARE = 0.5
"""Of the largest single tensor, the whole fp32 logits: the room that is free and too broken up to hold it."""

CPU_FRAMEWORK_BYTES = 290 * 2**20
"""Anonymous memory of a CPU rank without its tensors: Python, torch, transformers, DeepSpeed. Measured on runs of the
presets tiny, mini and small. Beside a GPU it is the least: the host's side of CUDA comes to it."""

CPU_COMPILER_BYTES = 75 * 2**20
"""torch's compiler, of which DeepSpeed's ZeRO optimizers load most (548 modules), on the same runs: 50 to 100 MiB."""

HEAP_SHARE = 0.35
"""Of the live tensors on a CPU what the C library's heap holds besides them: 0.25 to 0.45 on the same runs."""


@dataclass(frozen=True)
class Memory:
    """One rank's prediction in bytes. On a GPU `device` is what the allocator hands out; `reserved` what it takes from
    the driver; `process` adds the context: what nvidia-smi shows. On a CPU all is `host`."""

    items: tuple[Item, ...]
    device: int
    reserved: int
    process: int
    needed: int
    host: int
    nvme: int
    peak_phase: str


def predict_memory(setup: Setup, capacity: int | None = None) -> Memory:
    """The peak of one rank, the fullest where they differ. `capacity` is the device's memory, which bounds `reserved`.

    `needed` is the least that the process can run in: the allocator gives back cached blocks before it gives up.
    """
    if setup.pipeline_stages > 1 and not setup.last_stage:
        stages = (setup, replace(setup, last_stage=True))
        return max((_predict(stage, capacity) for stage in stages), key=lambda memory: (memory.needed, memory.host))
    return _predict(setup, capacity)


def _predict(setup: Setup, capacity: int | None) -> Memory:
    items = [*state_items(setup), *buffer_items(setup), *activation_items(setup)]
    if setup.on_cpu:
        items = [_moved(one) for one in items]
    if setup.zero_stage < 3:  # on a CPU this is before the engine's own init, in the same phase
        built = 4 * setup.dims.parameters - (phase_bytes(items, "host")["init"] if setup.on_cpu else 0)
        items += item("model as built", built, "4 bytes a parameter of the whole model, in fp32", "init", where="host")
    if setup.on_cpu:
        heap = HEAP_SHARE * max(phase_bytes(items, "host").values())
        items += item("heap", heap, f"{HEAP_SHARE:g} of the fullest phase, not given back to the system", where="host")
    items += item("framework", CPU_FRAMEWORK_BYTES, "Python, torch, transformers, DeepSpeed", where="host")
    if setup.compiled or (setup.engine == "deepspeed" and setup.zero_stage > 0):
        items += item("compiler", CPU_COMPILER_BYTES, "torch's, which ZeRO's optimizers load", where="host")
    held = phase_bytes(items)
    device = max(held.values())
    phase = max(PHASES, key=lambda name: held[name])
    context = 0 if setup.on_cpu else context_bytes(setup)
    block = whole_logits_bytes(setup)
    lasting = sum(one.bytes for one in items if one.where == "device" and one.phases >= TRAINING)
    reserved = _reserved(held, lasting)
    needed = round(max(_least(name, size, lasting, block) for name, size in held.items())) + context
    if capacity is not None:
        reserved = _bounded(reserved, needed - context, capacity - context)
    host = phase_bytes(items, "host")
    if setup.on_cpu:
        phase = max(PHASES, key=lambda name: host[name])
    nvme = max(phase_bytes(items, "nvme").values())
    context_item = item("context", context, "CUDA, cuBLAS, NCCL: outside the allocator")
    return Memory(
        tuple(items + context_item), device, reserved, reserved + context, needed, max(host.values()), nvme, phase
    )


def context_bytes(setup: Setup) -> int:
    """What a process holds outside the allocator."""
    degrees = (setup.data_parallel, setup.tensor_parallel, setup.pipeline_stages, setup.context_parallel)
    groups = sum(degree > 1 for degree in degrees)
    groups += groups > 1  # all ranks together
    groups += 3 * (setup.pipeline_stages > 1)  # with the stage before, with the one after, for tied embeddings
    return CONTEXT_BYTES + COMMUNICATOR_BYTES * groups


def _least(phase: str, held: int, lasting: int, block: int) -> float:
    """What a phase cannot do without. The passes make tensors of all sizes; the step few and alike, over what lasts."""
    if phase == "step":
        return held + FRAGMENTS * (held - lasting)
    return (held + (BLOCK_SHARE * block if phase == "forward" else 0)) * (1 + FRAGMENTS)


def _reserved(held: dict[str, int], lasting: int) -> int:
    """What the caching allocator ends up with.

    The passes and the step allocate tensors of other sizes, partly on other streams, so that free blocks of the one do
    not serve the other: what lasts, and the transients of both. (A share of reuse was fitted too, and came out as
    none.)
    """
    passes = max(held["forward"], held["backward"], held["reduce"], held["init"]) - lasting
    step = held["step"] - lasting
    return round((lasting + passes + step) * (1 + FRAGMENTS))


def _bounded(reserved: int, least: int, most: int) -> int:
    """What is reserved where the device is smaller than the allocator would like.

    It then returns all cached blocks to the driver and starts again, so that a later look finds something between the
    least that the run needs and all there is: the middle.
    """
    return reserved if reserved <= most else max(least, (least + most) // 2)


def _moved(one: Item) -> Item:
    """On a CPU the device is the host."""
    where: Place = "host" if one.where == "device" else one.where
    return Item(one.name, one.bytes, one.formula, one.phases, where)
