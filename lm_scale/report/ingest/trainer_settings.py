"""What the files beside a Trainer's state say of its settings: `training_args.bin`, the model card, `config.json`.

A file that is missing or damaged says nothing. Where two of them contradict each other the key stays unknown.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lm_scale.costs.shapes import model_shape
from lm_scale.report.ingest import inert_pickle, settings
from lm_scale.report.ingest.inert_pickle import Described

HYPERPARAMETERS = "The following hyperparameters were used during training:"
FAMILIES = {"NO": "single", "MULTI_GPU": "ddp", "MULTI_CPU": "ddp", "MULTI_NPU": "ddp", "MULTI_XPU": "ddp"}
"""accelerate's distributed types that wrap the model in nothing, or in DDP."""


def from_folders(folders: Sequence[Path], train_batch_size: Any) -> tuple[dict[str, Any], list[str], dict[str, Any]]:
    """Row keys, the contradictions between the files (one line each), and the TrainingArguments by their names.

    `folders` are searched in their order for each file. `train_batch_size` is the state's own: the samples of one
    forward pass in one process, after Trainer looked for one that fits.
    """
    arguments = _arguments(_first(folders, "training_args.bin"))
    config = _config(_first(folders, "config.json"))
    from_state = {"micro_batch": settings.whole(train_batch_size)}
    from_arguments = _from_arguments(arguments, config)
    card = _card(_first(folders, "README.md"))
    from_card = _from_card(card)
    if not arguments:
        arguments = _length(card)
    if arguments.get("auto_find_batch_size"):
        from_arguments.pop("micro_batch", None)
        for key in ("micro_batch", "global_batch"):
            from_card.pop(key, None)
    values, disagreements = _merged(
        {"trainer_state.json": from_state, "training_args.bin": from_arguments, "README.md": from_card}
    )
    if values.get("world_size") == 1 and values.get("engine") == "torch":
        values["strategy"] = "single"
    return {**values, **_from_config(config)}, disagreements, arguments


def _merged(sources: Mapping[str, Mapping[str, Any]]) -> tuple[dict[str, Any], list[str]]:
    """Each key that all sources which state it agree on."""
    values: dict[str, Any] = {}
    disagreements = []
    for key in dict.fromkeys(key for source in sources.values() for key in source):
        stated = {name: source[key] for name, source in sources.items() if source.get(key) is not None}
        if len(set(stated.values())) > 1:
            disagreements.append(f"{key}: " + ", ".join(f"{value} in {name}" for name, value in stated.items()))
        elif stated:
            values[key] = next(iter(stated.values()))
    return values, disagreements


def _arguments(path: Path | None) -> dict[str, Any]:
    """The attributes of the pickled TrainingArguments; an enumeration's member is its value."""
    if path is None:
        return {}
    try:
        described = inert_pickle.read_torch(path)
    except inert_pickle.NotPlainError:
        return {}
    return {str(key): _member(value) for key, value in _state(described).items()}


def _from_arguments(arguments: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    if not arguments:
        return {}
    executed = _state(arguments.get("hf_deepspeed_config")).get("config")
    found = settings.from_training_arguments(
        {
            **arguments,
            "deepspeed": executed if isinstance(executed, Mapping) else arguments.get("deepspeed"),
            "dtype": config.get("dtype") or config.get("torch_dtype"),
        }
    )
    processes = _state(arguments.get("distributed_state"))
    found["world_size"] = settings.whole(processes.get("num_processes"))
    gpus = settings.whole(arguments.get("_n_gpu")) or 1  # several of them in one process: torch's DataParallel
    if found.get("micro_batch"):
        found["micro_batch"] *= gpus
    kind = _member(processes.get("distributed_type"))
    if kind == "DEEPSPEED":
        found["engine"] = "deepspeed"
    elif kind == "FSDP":  # switched on from outside, where the arguments do not show how
        if "strategy" not in found:
            found |= {"offload": None, "activation_checkpointing": None}
        found = {"strategy": "fsdp", **found, "engine": "torch"}
    elif kind in FAMILIES and found.get("engine") == "torch" and gpus == 1 and not arguments.get("fsdp"):
        found["strategy"] = FAMILIES[kind]
    tensor_parallel = isinstance(executed, Mapping) and "tensor_parallel" in executed
    if "parallelism_config" in arguments and arguments["parallelism_config"] is None and not tensor_parallel:
        found |= {"pipeline_stages": 1, "tensor_parallel": 1}
    device = _member(processes.get("device"))
    return settings.known({**found, "device": "cpu" if device == "cpu" else None})


def _card(path: Path | None) -> dict[str, str]:
    """The hyperparameters of a model card that Trainer wrote, by its own names. It leaves out what is 1."""
    section = _text(path).partition(HYPERPARAMETERS)[2].partition("\n#")[0]
    return dict(re.findall(r"^- (\w+): (.+)\n", section, flags=re.MULTILINE))


def _length(card: Mapping[str, str]) -> dict[str, Any]:
    """How the training's length was given, as TrainingArguments hold it."""
    steps, epochs = settings.whole(card.get("training_steps")), settings.number(card.get("num_epochs"))
    if steps is not None:
        return {"max_steps": steps}
    return {"max_steps": -1, "num_train_epochs": epochs} if epochs is not None else {}


def _from_card(stated: Mapping[str, str]) -> dict[str, Any]:
    """Row keys. What the card leaves out is 1 only where the total shows it: lines may be lost."""
    optimizer = re.match(r"Use (?:OptimizerNames\.)?(\w+) (?:with|and)", stated.get("optimizer", ""))
    found = settings.from_training_arguments(
        {
            "per_device_train_batch_size": stated.get("train_batch_size"),
            "gradient_accumulation_steps": stated.get("gradient_accumulation_steps"),
            "learning_rate": stated.get("learning_rate"),
            "lr_scheduler_type": stated.get("lr_scheduler_type"),
            "optim": optimizer[1] if optimizer else None,
            "seed": stated.get("seed"),
            "fp16": True if stated.get("mixed_precision_training") == "Native AMP" else None,
        }
    )
    micro_batch, total = found.get("micro_batch"), settings.whole(stated.get("total_train_batch_size"))
    world_size, grad_accum = settings.whole(stated.get("num_devices")), found.get("grad_accum")
    if micro_batch and total and total == micro_batch * (world_size or 1) * (grad_accum or 1):
        found |= {"world_size": world_size or 1, "grad_accum": grad_accum or 1, "global_batch": total}
    elif world_size:
        found["world_size"] = world_size
    return found


def _from_config(config: Mapping[str, Any]) -> dict[str, Any]:
    name = config.get("_name_or_path") or config.get("model_type")
    return settings.known({"model": name if isinstance(name, str) else None, "params": _parameters(config)})


def _parameters(config: Mapping[str, Any]) -> int | None:
    """The model's parameters, if the config holds every size that transformers writes: a default may be a lost line."""
    family = config.get("model_type")
    written = () if family == "gpt2" else ("num_key_value_heads", "tie_word_embeddings")
    if any(key not in config for key in (*written, *(("head_dim",) if family == "qwen3" else ()))):
        return None
    if not all(
        isinstance(config.get(key, False), bool) for key in ("attention_bias", "mlp_bias", "tie_word_embeddings")
    ):
        return None
    try:
        shape = model_shape(config)
        return shape.parameter_count if shape else None
    except (TypeError, ValueError, ZeroDivisionError):  # a size in it is no number
        return None


def _config(path: Path | None) -> dict[str, Any]:
    try:
        config = json.loads(_text(path))
    except (ValueError, RecursionError):
        return {}
    return config if isinstance(config, dict) else {}


def _text(path: Path | None) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace") if path else ""
    except OSError:
        return ""


def _first(folders: Sequence[Path], name: str) -> Path | None:
    return next((folder / name for folder in folders if (folder / name).is_file()), None)


def _state(value: Any) -> Mapping[Any, Any]:
    """The attributes of a described object."""
    return value.state if isinstance(value, Described) and isinstance(value.state, Mapping) else {}


def _member(value: Any) -> Any:
    """What a described enumeration member or device was called with; another value as it is."""
    if isinstance(value, Described) and isinstance(value.arguments, tuple) and value.arguments and value.state is None:
        return value.arguments[0]
    return value if not isinstance(value, float) or math.isfinite(value) else None
