"""Bytes of parameters, gradients, master weights and optimizer state on one rank, by ZeRO stage and engine. No torch.

N are the parameters of the rank (`Setup.rank_parameters`), T those that train, W the ranks that share them
(`Setup.partition_ranks`). Equal to the live tensors of a rehearsed rank to within 1 %
(`tests/test_plan.py`).

Sources: deepspeed 0.19.8 (file: line); Rajbhandari et al. 2020 (arXiv:1910.02054, section 3) for what each stage
splits. Error: padding, at most 2W elements a parameter group and, at stage 3, W a parameter.
"""

from __future__ import annotations

from lm_scale.costs.items import PASSES, TRAINING, Item, Place, item
from lm_scale.costs.setup import Setup

_FP32 = 4
_PLACES: dict[str, Place] = {"device": "device", "cpu": "host", "nvme": "nvme"}


def state_items(setup: Setup) -> list[Item]:
    """Items of the state that a step keeps and of the gradients that it makes."""
    if setup.engine == "torch":
        return _torch(setup)
    if is_bf16_optimizer(setup):
        return _bf16_optimizer(setup)
    if setup.zero_stage == 0:
        return _zero0(setup)
    if setup.zero_stage == 3:
        return _zero3(setup)
    return _zero12_offloaded(setup) if setup.optimizer_device != "device" else _zero12(setup)


def is_bf16_optimizer(setup: Setup) -> bool:
    """BF16_Optimizer: stage 1 in bf16 with fp32 accumulation and nothing offloaded, stage 0 in bf16 in a pipeline.

    Source: engine.py: 2305-2320.
    """
    if setup.engine != "deepspeed" or setup.products != "bf16" or setup.optimizer_device != "device":
        return False
    pipelined = setup.zero_stage == 0 and setup.pipeline_stages > 1
    return pipelined or (setup.zero_stage == 1 and setup.parameter_bytes < _FP32 == setup.accumulation_bytes)


def _torch(setup: Setup) -> list[Item]:
    """One process, DDP, or FSDP. A parameter is stored once, in fp32 (autocast, mixed precision) or in bf16."""
    n, t = setup.rank_parameters, setup.rank_trainable
    own, gradient = setup.parameter_bytes, setup.gradient_bytes
    ranks = setup.partition_ranks if setup.zero_stage in (2, 3) else 1
    place: Place = "host" if setup.parameter_device == "cpu" else "device"
    split = f" / {ranks}" if ranks > 1 else ""
    items = item("parameters", own * n / ranks, f"{own} N{split}", where=place)
    if setup.fused_backward:
        layer = gradient * setup.dims.layer_parameters
        items += item("gradients", layer, f"{gradient} bytes x one layer", "backward", "reduce")
    else:
        label = f"{gradient} T{split}"
        items += item("gradients", gradient * t / ranks, label, *_gradient_phases(setup), where=place)
    items += _optimizer(setup, t / ranks, f"T{split}", place)
    if setup.foreach and not setup.fused_backward:
        items += _foreach(setup, t / ranks, place)
    if setup.zero_stage == 0 and setup.data_parallel > 1:
        items += item("DDP buckets", gradient * t, f"{gradient} T: gradients lie in buckets a second time")
    if own > setup.compute_bytes and setup.zero_stage == 0:
        label = f"{setup.compute_bytes} N: weights cast for products"
        items += item("autocast copies", setup.compute_bytes * n, label, "forward")
    return items


def _zero0(setup: Setup) -> list[Item]:
    """All ranks hold everything. In fp32 torch's optimizer on the model; else FP16_Optimizer (engine.py: 2313).

    That one makes the optimizer's state when it is made itself. In a step it casts each gradient to fp32 and, under
    DeepSpeed's own Adam, joins all of them in one more tensor (fp16/fused_optimizer.py: 285; unfused_optimizer.py).
    """
    n, t, b = setup.rank_parameters, setup.rank_trainable, setup.parameter_bytes
    items = item("parameters", b * n, f"{b} N") + item("gradients", b * t, f"{b} T", *_gradient_phases(setup))
    if b == _FP32:
        return items + _optimizer(setup, t, "T") + _foreach(setup, t)
    items += item("master weights", _FP32 * t, "4 T")
    items += item("fp32 gradients", _FP32 * t, "4 T: cast one by one", "init", "step")
    items += item("flat gradients", _FP32 * t if setup.own_adam else 0, "4 T: joined", "step")
    items += item("first copies", b * t, f"{b} T", "init")
    state = setup.optimizer_bytes
    return items + item("optimizer", state * t, f"{state:g} T") + _foreach(setup, t)


def _zero12(setup: Setup) -> list[Item]:
    """Optimizer state split, at stage 2 gradients too (stage_1_and_2.py: 439-575, 937, 1243, 2184, 3117).

    The master weights are a copy even of an fp32 model (560). The engine first copies the parameters into one flat
    tensor, then makes a first fp32 gradient (937); each step makes a new one (3117).
    """
    n, t, b, share = setup.rank_parameters, setup.rank_trainable, setup.parameter_bytes, _share(setup)
    held = set(_gradient_phases(setup)) - {"step"}
    items = item("parameters", b * n, f"{b} N")
    if setup.zero_stage == 1:
        items += item("gradients", b * t, f"{b} T: whole until they are reduced", *held)
        if (a := setup.accumulation_bytes) != b:
            items += item("accumulated gradients", a * t, f"{a} T", *held)
        items += item("gradient partition", b * share, f"{b} T / W", "step")
    else:
        a = setup.accumulation_bytes
        items += item("gradients", a * share, f"{a} T / W", *held, "step")
    items += item("master weights", _FP32 * share, "4 T / W")
    flattened = b * t > _FP32 * share
    items += item("flattening", b * t if flattened else 0, f"{b} T: parameters copied into one tensor", "init")
    items += item("fp32 gradients", _FP32 * share, "4 T / W", "step", *(() if flattened else ("init",)))
    if b < _FP32:
        items += item("flat gradients", b * share, f"{b} T / W: joined before they are cast", "step")
    return items + _optimizer(setup, share, "T / W") + _foreach(setup, share)


def _zero12_offloaded(setup: Setup) -> list[Item]:
    """Stages 1 and 2 with the optimizer on the host, where its fp32 gradients stay (stage_1_and_2.py: 563, 653,
    1824)."""
    n, t, b, share = setup.rank_parameters, setup.rank_trainable, setup.parameter_bytes, _share(setup)
    items = item("parameters", b * n, f"{b} N")
    items += item("flattening", b * t, f"{b} T: parameters copied into one tensor", "init")
    if setup.zero_stage == 1:
        held = set(_gradient_phases(setup)) - {"step"}
        items += item("gradients", b * t, f"{b} T: whole until they are reduced", *held)
    items += item("master weights", _FP32 * share, "4 T / W", where="host")
    items += item("fp32 gradients", _FP32 * share, "4 T / W", *TRAINING, where="host")
    items += item("bit16 partition", b * share, f"{b} T / W: on its way back to the device", where="host")
    if setup.grad_accum > 1:
        a = setup.accumulation_bytes
        items += item("accumulated gradients", a * share, f"{a} T / W", *TRAINING, where="host")
    return items + _optimizer(setup, share, "T / W", "host")


def _bf16_optimizer(setup: Setup) -> list[Item]:
    """Whole accumulated gradients beside bf16 ones, only master weights and moments split (bf16_optimizer.py: 191)."""
    t, a, share = setup.rank_trainable, setup.accumulation_bytes, _share(setup)
    items = item("parameters", 2 * setup.rank_parameters, "2 N")
    items += item("accumulated gradients", a * t, f"{a} T: not split (BF16_Optimizer)")
    kept = TRAINING if setup.grad_accum > 1 else {"reduce", "step"}
    items += item("gradients", 2 * t, "2 T: added to the others after each backward", *kept)
    items += item("master weights", _FP32 * share, "4 T / W")
    return items + _optimizer(setup, share, "T / W") + _foreach(setup, share)


def _zero3(setup: Setup) -> list[Item]:
    """Everything split (stage3.py: 789, 906, 969, 1162, 2683); what is gathered for use is in `buffers`."""
    b, a = setup.parameter_bytes, setup.accumulation_bytes
    share = setup.rank_trainable / setup.partition_ranks
    optimizer, parameters = _PLACES[setup.optimizer_device], _PLACES[setup.parameter_device]
    size = b * setup.rank_parameters / setup.partition_ranks
    items = item("parameters", size, f"{b} N / W", where=parameters)
    if (ranks := setup.secondary_ranks) > 1 and setup.engine == "deepspeed":
        size = b * setup.rank_parameters / ranks
        items += item("secondary parameters", size, f"{b} N / {ranks}: hpZ's own part of each group", *TRAINING)
    gradients: Place = "device" if optimizer == "device" else "host"
    items += item("gradients", a * share, f"{a} T / W: one flat tensor, kept", *TRAINING, where=gradients)
    items += item("master weights", _FP32 * share, "4 T / W", where=optimizer)
    items += _optimizer(setup, share, "T / W", optimizer)
    group = share if optimizer == "host" else min(setup.sub_group, share)
    phases = {"init", *TRAINING} if optimizer == "host" else {"init", "step"}
    items += item("fp32 gradients", _FP32 * group, "4 bytes x one sub-group of T / W", *phases, where=gradients)
    if optimizer == "nvme":
        size = (2 * _FP32 + setup.optimizer_bytes) * group
        items += item("swap buffers", size, "masters, gradients, moments of one sub-group", where="host")
    if optimizer == "device":
        joined = a * group if a < _FP32 else 0
        items += item("flat gradients", joined, f"{a} bytes x one sub-group: joined before they are cast", "step")
        items += _foreach(setup, group)
    return items


def _share(setup: Setup) -> int:
    """A rank's part of the trained parameters, padded to an even number of elements (stage_1_and_2.py: 440)."""
    return -(-setup.rank_trainable // (2 * setup.partition_ranks)) * 2


def _optimizer(setup: Setup, elements: float, of: str, where: Place = "device") -> list[Item]:
    """The optimizer's state, made in its first step."""
    label = f"{setup.optimizer_bytes:g} {of}"
    return item("optimizer", setup.optimizer_bytes * elements, label, *TRAINING, where=where)


def _foreach(setup: Setup, elements: float, where: Place = "device") -> list[Item]:
    """torch.optim's default loop holds the root of the second moment of all tensors at once (adamw.py, foreach)."""
    size = setup.optimizer_bytes / 2 * elements if setup.foreach else 0
    return item("optimizer temporary", size, "one more moment, torch's foreach loop", "step", where=where)


def _gradient_phases(setup: Setup) -> tuple[str, ...]:
    """Gradients lie where the backward pass ends, and from one micro-batch to the next."""
    return (*sorted(PASSES), "step") if setup.grad_accum > 1 else ("reduce", "step")
