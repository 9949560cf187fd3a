"""What DeepSpeed's engine prints of its configuration (`DeepSpeedEngine configuration:`) -> row keys.

Each setting stands on one line, as resolved: a line that is lost takes nothing but itself. The `json = {...}` after
them is what the user wrote; it is read for one purpose, to see whether lines are missing.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping, Sequence, Set
from typing import Any

from lm_scale.report.ingest.settings import DTYPES, known, number, truth, whole

SETTING = re.compile(r"config\.py:\d+:print\]\s{2,}(\w+) \.*\s+(\S.*?)\s*$")
USERS_JSON = re.compile(r":print_user_config\]\s+json = \{\s*$")
BLOCK = re.compile(r":print(?:_user_config)?\] .*\{\s*$")
JSON_LINE = re.compile(r"^\s*(?:\"[^\"]*\":|[{}\]\[]|[-\d.]|\"|true|false|null)")
OFFLOAD = r"offload_{}=(?:None|\w+\(device=(?:<OffloadDeviceEnum\.)?'?(\w+))"
STAGES = {"disabled": 0, "optimizer_states": 1, "gradients": 2, "weights": 3}
OPTIMIZERS = {"adam": "Adam", "adamw": "AdamW", "sgd": "SGD", "lamb": "Lamb", "lion": "Lion", "adagrad": "Adagrad"}
"""DeepSpeed prints the names in lower case."""
READ = frozenset(
    (
        *("zero_optimization_stage", "zero_config", "optimizer_name", "optimizer_params", "scheduler_name"),
        *("scheduler_params", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "train_batch_size"),
        *("world_size", "communication_data_type", "torch_autocast_enabled", "torch_autocast_dtype", "steps_per_print"),
        "wall_clock_breakdown",
        *("bfloat16_config", "bfloat16_enabled", "bf16_enabled", "float16_config", "float16_enabled", "fp16_enabled"),
    )
)
"""The settings that matter here; others may hold addresses, which differ from engine to engine."""
ALWAYS = frozenset(
    (
        *("activation_checkpointing_config", "aio_config", "autotuning_config", "checkpoint_parallel_write_pipeline"),
        *("checkpoint_tag_validation_enabled", "checkpoint_tag_validation_fail", "comms_config", "dump_state"),
        *("communication_data_type", "data_efficiency_config", "data_efficiency_enabled", "dataloader_drop_last"),
        *("disable_allgather", "flops_profiler_config", "global_rank", "grad_accum_dtype", "gradient_clipping"),
        *("gradient_accumulation_steps", "gradient_predivide_factor", "hybrid_engine", "load_universal_checkpoint"),
        *("memory_breakdown", "monitor_config", "optimizer_legacy_fusion", "optimizer_name", "optimizer_params"),
        *("pipeline", "prescale_gradients", "scheduler_name", "scheduler_params", "steps_per_print", "zero_enabled"),
        *("train_batch_size", "train_micro_batch_size_per_gpu", "use_node_local_storage", "wall_clock_breakdown"),
        *("world_size", "zero_allow_untested_optimizer", "zero_config", "zero_force_ds_cpu_optimizer"),
        "zero_optimization_stage",
    )
)
"""The settings that DeepSpeed 0.10 and 0.19.8 both print: where one is missing, lines are lost."""


def settings(values: Mapping[str, str]) -> dict[str, Any]:
    """Row keys from the printed settings, by name; what is not printed is not known."""
    stage = _stage(values)
    name, scheduler = values.get("optimizer_name"), values.get("scheduler_name")
    found: dict[str, Any] = {
        "engine": "deepspeed",
        "zero_stage": stage,
        "strategy": None if stage is None else f"zero{stage}",
        "offload": _offload(values.get("zero_config", "")),
        "micro_batch": whole(values.get("train_micro_batch_size_per_gpu")),
        "grad_accum": whole(values.get("gradient_accumulation_steps")),
        "global_batch": whole(values.get("train_batch_size")),
        "data_parallel": whole(values.get("world_size")),
        "precision": _precision(values),
        "master_weights": _master_weights(values, stage),
        "reduction_precision": DTYPES.get(values.get("communication_data_type", "").removeprefix("torch.")),
        "optimizer": None if name in (None, "None") else OPTIMIZERS.get(name, name),
        "lr_schedule": None if scheduler == "None" else scheduler,
        "learning_rate": _learning_rate(values),
    }
    return known(found)


def complete(printed: Set[str], lines: Sequence[str]) -> bool:
    """Whether no setting is missing among those `printed`, and no JSON among the lines shows a lost line."""
    if not printed >= ALWAYS:
        return False
    starts = [at for at, line in enumerate(lines) if BLOCK.search(line)]
    return any(USERS_JSON.search(lines[at]) for at in starts) and all(_parses(lines[at + 1 :]) for at in starts)


def _parses(lines: Sequence[str]) -> bool:
    """Whether JSON goes on in `lines` after its first brace, and ends. Other ranks may write between."""
    text, depth = "{", 1
    for line in lines:
        if not JSON_LINE.match(line):
            if SETTING.search(line):
                return False  # the end is lost
            continue
        text += f"\n{line}"
        depth += line.count("{") - line.count("}")
        if depth <= 0:
            break
    try:
        json.loads(text)
    except json.JSONDecodeError:
        return False
    return True


def _stage(values: Mapping[str, str]) -> int | None:
    text = values.get("zero_optimization_stage", "").rpartition(".")[2]
    stage = STAGES.get(text, whole(text, least=0))
    return stage if stage is not None and stage <= 3 else None


def _offload(config: str) -> str | None:
    """DeepSpeed offloads parameters at stage 3 alone, and nothing at stage 0, whatever the configuration says."""
    stage = re.match(r"stage=(?:<ZeroStageEnum\.\w+: )?(\d)", config)
    optimizer, parameters = (re.search(OFFLOAD.format(kind), config) for kind in ("optimizer", "param"))
    if stage is None or optimizer is None or parameters is None:
        return None
    devices = (("optimizer", optimizer[1], 1), ("param", parameters[1], 3))
    kinds = [f"{kind}_{on}" for kind, on, least in devices if on in ("cpu", "nvme") and int(stage[1]) >= least]
    return "+".join(kinds) or "none"


def _precision(values: Mapping[str, str]) -> str | None:
    """bf16 and fp16 as configured; without them the model runs in its own type, which only ZeRO's optimizer prints."""
    autocast = truth(values.get("torch_autocast_enabled"))
    if autocast:
        return DTYPES.get(values.get("torch_autocast_dtype", "").removeprefix("torch."))
    for name, short in (("bfloat16", "bf16"), ("float16", "fp16")):
        switch = values.get(f"{name}_config", "").startswith("enabled=True")
        if switch or truth(values.get(f"{name}_enabled")) or truth(values.get(f"{short}_enabled")):
            return short
    return DTYPES.get(values.get("zero_dtype", "")) if autocast is False else None


def _master_weights(values: Mapping[str, str], stage: int | None) -> bool | None:
    for name, short in (("bfloat16", "bf16"), ("float16", "fp16")):
        config = values.get(f"{name}_config", "")
        if stage and config.startswith("enabled=True") and f"{short}_master_weights_and_grads=False" in config:
            return True
    return None


def _learning_rate(values: Mapping[str, str]) -> float | None:
    """The optimizer's, or the peak of a scheduler that sets its own; other schedulers leave it open."""
    scheduler = values.get("scheduler_name")
    if scheduler is None:
        return None
    stated = "optimizer_params" if scheduler == "None" else "scheduler_params"
    try:
        parameters = ast.literal_eval(values.get(stated, "None"))
    except (ValueError, SyntaxError):
        return None
    key = "lr" if scheduler == "None" else "warmup_max_lr"
    return number(parameters.get(key)) if isinstance(parameters, dict) else None
