"""What stated settings say of a run: Hugging Face's TrainingArguments and DeepSpeed's JSON -> row keys.

Only what the values state. A default that a source does not write down is not known, since it has changed between the
versions of these libraries.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

DTYPES = {"bfloat16": "bf16", "bf16": "bf16", "float16": "fp16", "half": "fp16", "fp16": "fp16", "float32": "fp32"}
SHARDING = {
    "full_shard": "fsdp_full_shard",
    "shard_grad_op": "fsdp_shard_grad_op",
    "hybrid_shard": "fsdp_hybrid_shard",
    "hybrid_shard_zero2": "fsdp_hybrid_shard_zero2",
    "no_shard": "fsdp_no_shard",
}
ARGUMENTS = frozenset(
    (
        *("per_device_train_batch_size", "gradient_accumulation_steps", "max_steps", "num_train_epochs", "seed"),
        *("learning_rate", "lr_scheduler_type", "optim", "bf16", "fp16", "dtype", "torch_dtype", "torch_compile"),
        *("gradient_checkpointing", "deepspeed", "fsdp", "fsdp_config", "logging_steps", "eval_steps", "eval_strategy"),
        *("attn_implementation", "model_name_or_path", "block_size", "seq_length", "seq_len", "sequence_length"),
        *("output_dir", "logging_strategy"),
    )
)
"""The arguments that a row depends on, and `output_dir`, by which other sources of the run are known."""
SEQUENCE_LENGTHS = ("block_size", "seq_length", "seq_len", "sequence_length")
"""Arguments that cut every sample to exactly this many tokens; a `max_length` only bounds them."""


def from_training_arguments(values: Mapping[str, Any]) -> dict[str, Any]:
    """Row keys from TrainingArguments by their names, with values as Python or as printed (`OptimizerNames.ADAMW`).

    `deepspeed` (a dict, or None for none), `fsdp` (a text or list, empty for none) and `fsdp_config` say which engine;
    without any of the two the engine is not known.
    """
    found: dict[str, Any] = {
        "micro_batch": whole(values.get("per_device_train_batch_size")),
        "grad_accum": whole(values.get("gradient_accumulation_steps")),
        "learning_rate": number(values.get("learning_rate")),
        "lr_schedule": enumeration(values.get("lr_scheduler_type")),
        "optimizer": enumeration(values.get("optim")),
        "seed": whole(values.get("seed"), least=0),
        "precision": _precision(values),
        "torch_compile": truth(values.get("torch_compile")),
        "planned_steps": whole(values.get("max_steps")),
        "seq_len": next((length for key in SEQUENCE_LENGTHS if (length := whole(values.get(key)))), None),
        "attn_implementation": _text(values.get("attn_implementation") or values.get("_attn_implementation")),
        "model": _text(values.get("model_name_or_path") or values.get("_name_or_path")),
    }
    config, sharding = values.get("deepspeed"), fsdp_options(values.get("fsdp"))
    if isinstance(config, Mapping):
        found |= known(from_deepspeed_json(config))
        found["engine"] = "deepspeed"
    elif config:
        found["engine"] = "deepspeed"
    elif sharding:
        found |= _from_fsdp(sharding, values)
    elif "deepspeed" in values and "fsdp" in values:
        found |= {"engine": "torch", "offload": "none"}
    found["activation_checkpointing"] = _activation_checkpointing(values, sharding, found.get("engine"))
    return known(found)


def from_deepspeed_json(config: Mapping[str, Any]) -> dict[str, Any]:
    """Row keys from a DeepSpeed JSON; a value of "auto" says nothing."""
    zero = config.get("zero_optimization")
    zero = zero if isinstance(zero, Mapping) else {}
    stage = zero.get("stage") if config.get("zero_optimization") is not None else None
    found: dict[str, Any] = {
        "engine": "deepspeed",
        "micro_batch": whole(config.get("train_micro_batch_size_per_gpu")),
        "grad_accum": whole(config.get("gradient_accumulation_steps")),
        "global_batch": whole(config.get("train_batch_size")),
        "reduction_precision": DTYPES.get(str(config.get("communication_data_type"))),
    }
    if isinstance(stage, int) and not isinstance(stage, bool) and 0 <= stage <= 3:
        found |= {"zero_stage": stage, "strategy": f"zero{stage}", "offload": _offload(zero)}
    for name in ("bf16", "bfloat16", "fp16"):
        block = config.get(name)
        if isinstance(block, Mapping) and block.get("enabled") is True:
            found["precision"] = DTYPES[name]
            found["master_weights"] = block.get(f"{DTYPES[name]}_master_weights_and_grads") is not True
    optimizer = config.get("optimizer")
    if isinstance(optimizer, Mapping) and isinstance(optimizer.get("type"), str):
        found["optimizer"] = optimizer["type"]
        parameters = optimizer.get("params")
        found["learning_rate"] = number(parameters.get("lr")) if isinstance(parameters, Mapping) else None
    return known(found)


def fsdp_options(value: Any) -> list[str] | None:
    """The options of `--fsdp` in lower case: of a text, a list, or a printed list of enumerations; None if unstated."""
    if value is None:
        return None
    if value in (False, "", [], "[]"):
        return []
    if value is True:
        return ["auto_wrap"]
    words = re.findall(r"'([\w ]+)'|([a-z_]{4,})", str(value))
    options = [option for quoted, bare in words for option in (quoted or bare).lower().split()]
    return [option for option in dict.fromkeys(options) if option in SHARDING or option in ("auto_wrap", "offload")]


def known(values: Mapping[str, Any]) -> dict[str, Any]:
    """Those that are not None."""
    return {key: value for key, value in values.items() if value is not None}


def whole(value: Any, least: int = 1) -> int | None:
    """A whole number of at least `least`, also as text with thousands separated by commas."""
    if isinstance(value, str) and re.fullmatch(r"-?\d+|\d{1,3}(,\d{3})+", value.strip()):
        value = int(value.replace(",", ""))
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= least else None


def number(value: Any) -> float | None:
    """A positive number, also as text."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        return None
    return float(value)


def truth(value: Any) -> bool | None:
    """A truth value, also as text."""
    if isinstance(value, bool):
        return value
    return {"true": True, "false": False}.get(value.lower()) if isinstance(value, str) else None


def enumeration(value: Any) -> str | None:
    """A member's value: `OptimizerNames.ADAMW_TORCH`, `<SchedulerType.LINEAR: 'linear'>`, `linear` -> as argument."""
    if not isinstance(value, str) or not value or value == "None":
        return None
    quoted = re.search(r": '([^']*)'>$", value)
    return quoted[1] if quoted else value.rpartition(".")[2].lower()


def _precision(values: Mapping[str, Any]) -> str | None:
    """`bf16` and `fp16` of the arguments; with neither the products are in the weights' own type."""
    stated = {name: truth(values.get(name)) for name in ("bf16", "fp16")}
    if stated["bf16"]:
        return "bf16"
    if stated["fp16"]:
        return "fp16"
    if stated == {"bf16": False, "fp16": False}:
        return DTYPES.get(str(values.get("dtype") or values.get("torch_dtype")).removeprefix("torch."))
    return None


def _activation_checkpointing(values: Mapping[str, Any], sharding: list[str] | None, engine: str | None) -> bool | None:
    """Hugging Face's own switch or FSDP's; False only where both are known to be off."""
    if truth(values.get("gradient_checkpointing")):
        return True
    config = values.get("fsdp_config")
    config = config if isinstance(config, Mapping) else {}
    switches = [truth(config.get(name)) for name in ("activation_checkpointing", "fsdp_activation_checkpointing")]
    if True in switches:
        return True
    if truth(values.get("gradient_checkpointing")) is None or engine is None:
        return None
    return False if not sharding or False in switches or config else None


def _from_fsdp(options: list[str], values: Mapping[str, Any]) -> dict[str, Any]:
    """FSDP's CPU offload moves parameters, gradients and optimizer states; `fsdp_cpu_offload` is what a log's line says
    of it. Options that name no sharding do not say either, but FSDP2's configuration does."""
    sharding = next((SHARDING[option] for option in options if option in SHARDING), None)
    config = values.get("fsdp_config")
    if sharding is None and isinstance(config, Mapping) and config.get("version") == 2:
        resharded = truth(config.get("reshard_after_forward"))
        sharding = None if resharded is None else SHARDING["full_shard" if resharded else "shard_grad_op"]
    offloaded = True if "offload" in options else truth(values.get("fsdp_cpu_offload"))
    if offloaded is None and sharding is not None and "fsdp_cpu_offload" not in values:
        offloaded = False
    offload = None if offloaded is None else "optimizer_cpu+param_cpu" if offloaded else "none"
    return {"engine": "torch", "strategy": sharding, "offload": offload}


def _offload(zero: Mapping[str, Any]) -> str:
    kinds = []
    for block, name in (("offload_optimizer", "optimizer"), ("offload_param", "param")):
        device = zero[block].get("device", "none") if isinstance(zero.get(block), Mapping) else "none"
        if device in ("cpu", "nvme"):
            kinds.append(f"{name}_{device}")
    return "+".join(kinds) or "none"


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value and value != "None" else None
