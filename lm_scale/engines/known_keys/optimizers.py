"""The signatures of the optimizers and schedulers that DeepSpeed builds by name (runtime/engine.py:2477, 1924)."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from deepspeed.ops.adagrad import DeepSpeedCPUAdagrad
from deepspeed.ops.adam import DeepSpeedCPUAdam, FusedAdam
from deepspeed.ops.lamb import FusedLamb
from deepspeed.ops.lion import DeepSpeedCPULion, FusedLion
from deepspeed.runtime import lr_schedules
from deepspeed.runtime.config import ADAM_W_MODE, ADAM_W_MODE_DEFAULT, DEEPSPEED_OPTIMIZERS, TORCH_ADAM_PARAM
from deepspeed.runtime.engine import DeepSpeedEngine

Signature = dict[str, Any]


def optimizers() -> dict[str, Any]:
    """name -> `variants` (kind -> parameter -> default), `own` (parameters that the engine takes out before building).

    DeepSpeed's own names are matched in lower case, torch's exactly. Kinds: `device`, `offload` (optimizer on the CPU),
    `torch` (`torch_adam: true`). A parameter without default maps to `{"required": true}`. `reserved`: parameters that
    the engine passes itself, so that giving them is a TypeError. `open`: unknown ones are ignored, not refused.
    `missing`: the package that has the class where it is not DeepSpeed's.
    """
    # Taken out of the parameters at runtime/engine.py:2374-2375, 2487.
    own = {TORCH_ADAM_PARAM: False, ADAM_W_MODE: ADAM_W_MODE_DEFAULT, "fp32_optimizer_states": None}
    adam = {
        "own": own,
        "variants": {
            "device": _signature(FusedAdam, without=(ADAM_W_MODE,)),
            "offload": _signature(DeepSpeedCPUAdam, without=("adamw_mode", "fp32_optimizer_states")),
            "torch": _signature(torch.optim.AdamW),
        },
        "reserved": {"offload": ["adamw_mode"]},
    }
    muon = dict.fromkeys((*DeepSpeedEngine._MUON_HALF_KEYS, *DeepSpeedEngine._ADAM_HALF_KEYS, "muon_lr", "adam_lr"))
    found: dict[str, Any] = {
        "adam": adam,
        "adamw": adam,
        "adagrad": _both(_signature(torch.optim.Adagrad), _signature(DeepSpeedCPUAdagrad)),
        "lion": _both(_signature(FusedLion), _signature(DeepSpeedCPULion)),
        "lamb": {"variants": {"device": _signature(FusedLamb)}},
        "muon": {"own": own, "variants": {"device": muon}, "open": True},
    }
    found |= {name: {"missing": "mup"} for name in DEEPSPEED_OPTIMIZERS if name not in found}
    for name, cls in sorted(vars(torch.optim).items()):
        is_optimizer = inspect.isclass(cls) and issubclass(cls, torch.optim.Optimizer)
        if is_optimizer and cls is not torch.optim.Optimizer and name.lower() not in DEEPSPEED_OPTIMIZERS:
            found[name] = {"variants": {"device": _signature(cls)}, "torch": True}
    return found


def schedulers() -> dict[str, Any]:
    """name -> `parameters` (parameter -> default), DeepSpeed's own before torch's, as the engine looks them up."""
    found: dict[str, Any] = {}
    for name, cls in sorted(vars(lr_schedules).items()):
        if inspect.isclass(cls) and cls.__module__ == lr_schedules.__name__ and hasattr(cls, "step"):
            found[name] = {"parameters": _signature(cls)}
    for name, cls in sorted(vars(torch.optim.lr_scheduler).items()):
        is_scheduler = inspect.isclass(cls) and issubclass(cls, torch.optim.lr_scheduler.LRScheduler)
        if is_scheduler and name not in found and cls is not torch.optim.lr_scheduler.LRScheduler:
            found[name] = {"parameters": _signature(cls), "torch": True}
    found["ReduceLROnPlateau"] = {"parameters": _signature(torch.optim.lr_scheduler.ReduceLROnPlateau), "torch": True}
    return found


def _both(device: Signature, offload: Signature) -> dict[str, Any]:
    return {"variants": {"device": device, "offload": offload}}


def _signature(cls: Any, without: tuple[str, ...] = ()) -> Signature:
    """Parameter -> default of `cls(parameters or optimizer, ...)`, its first parameter left out."""
    parameters = list(inspect.signature(cls.__init__).parameters.values())[2:]
    return {
        parameter.name: {"required": True} if parameter.default is parameter.empty else _json(parameter.default)
        for parameter in parameters
        if parameter.name not in without and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
    }


def _json(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    return value if isinstance(value, bool | int | float | str | list | type(None)) else str(value)
