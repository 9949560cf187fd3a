"""The value `"auto"`: who replaces it, by what, and what DeepSpeed makes of it where nobody does.

Hugging Face's Trainer replaces a fixed list of keys (`HfTrainerDeepSpeedConfig`, transformers/integrations), and this
project the same ones; Accelerate a few more (`DeepSpeedPlugin`, accelerate/utils/dataclasses.py). DeepSpeed itself
knows no `"auto"`: its strict blocks silently take the default (runtime/config_utils.py), elsewhere it is a text among
numbers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from lm_scale.strategy import known
from lm_scale.strategy.rules.findings import Finding, Place, Setting
from lm_scale.strategy.rules.reading import AUTO, stage

_RUN, _RATE = "the run's length", "--learning_rate"
_TYPE_ERROR = "ends in a TypeError at its start"
FILLED: dict[Place, tuple[str, str]] = {
    ("train_batch_size",): ("the world size, micro-batch and accumulation", _TYPE_ERROR),
    ("train_micro_batch_size_per_gpu",): ("--per_device_train_batch_size", _TYPE_ERROR),
    ("gradient_accumulation_steps",): ("--gradient_accumulation_steps", _TYPE_ERROR),
    ("gradient_clipping",): ("--max_grad_norm", "ends in a TypeError at the first step"),
    ("optimizer", "params", "lr"): (_RATE, _TYPE_ERROR),
    ("optimizer", "params", "betas"): ("Adam's betas", _TYPE_ERROR),
    ("optimizer", "params", "eps"): ("Adam's epsilon", _TYPE_ERROR),
    ("optimizer", "params", "weight_decay"): ("--weight_decay", _TYPE_ERROR),
    ("scheduler", "params", "warmup_min_lr"): ("0", _TYPE_ERROR),
    ("scheduler", "params", "warmup_max_lr"): (_RATE, _TYPE_ERROR),
    ("scheduler", "params", "total_num_steps"): (_RUN, _TYPE_ERROR),
    ("scheduler", "params", "warmup_num_steps"): ("--warmup_steps", "refuses it"),
    ("bf16", "enabled"): ("--bf16 or the device", "silently takes false: fp32"),
    ("fp16", "enabled"): ("--fp16 or the device", "silently takes false: fp32"),
    ("zero_optimization", "reduce_bucket_size"): ("the model's hidden size, squared", "silently takes 5e8"),
    ("zero_optimization", "stage3_prefetch_bucket_size"): ("0.9 of the hidden size squared", "silently takes 5e7"),
    ("zero_optimization", "stage3_param_persistence_threshold"): ("10 hidden sizes", "silently takes 1e5"),
}
"""What Trainer and this project fill: from what, and what bare DeepSpeed does with the text."""
ACCELERATE: dict[Place, tuple[str, str]] = {
    ("zero_optimization", "stage"): ("stage 2 unless it is told another", "stage 0: no ZeRO at all"),
    ("zero_optimization", "offload_optimizer", "device"): ("none unless it is told another", "none: no offload"),
    ("zero_optimization", "offload_param", "device"): ("none unless it is told another", "none: no offload"),
    ("zero_optimization", "offload_optimizer", "nvme_path"): ("the path it is told", "no path"),
    ("zero_optimization", "offload_param", "nvme_path"): ("the path it is told", "no path"),
    ("zero_optimization", "stage3_gather_16bit_weights_on_model_save"): ("false unless it is told true", "false"),
}
"""What Accelerate alone fills (under Trainer too): with what, and what bare DeepSpeed silently takes."""
MEANT: frozenset[Place] = frozenset(
    {
        ("data_types", "keep_in_fp32_modules"),
        ("zero_optimization", "zenflow", "select_strategy"),
        ("zero_optimization", "zenflow", "select_interval"),
        ("zero_optimization", "zenflow", "update_interval"),
    }
)
"""Where `"auto"` is a value of DeepSpeed's own."""
MEANT_BLOCKS = ("autotuning", "expert_parallel")


def findings(document: dict[str, Any], setting: Setting) -> Iterator[Finding]:
    for place, value in _texts(document, ()):
        if value != AUTO:
            yield _not_filled(place, value, f"nobody reads {value!r} as {AUTO!r}", f'write "{AUTO}" or the value')
        elif place in FILLED:
            source, fate = FILLED[place]
            message = f"filled here and by Hugging Face's Trainer, from {source}; bare DeepSpeed {fate}"
            if place[-1].startswith("stage3_") and stage(document) != 3:
                message = f"filled here from {source}; Trainer leaves it below stage 3, where nothing reads it"
            yield Finding(place, value, "note", "auto-filled", message)
        elif place in ACCELERATE:
            filled, taken = ACCELERATE[place]
            message = f"Accelerate alone fills it ({filled}); bare DeepSpeed silently takes {taken}"
            yield Finding(place, value, "warning", "auto-accelerate-only", message, "write the value")
        elif not _is_meant(place):
            yield _not_filled(place, value, f"filled by nobody; DeepSpeed {_fate(place)}", "write the value")


def _not_filled(place: Place, value: str, message: str, fix: str) -> Finding:
    return Finding(place, value, "error", "auto-not-filled", message, fix)


def _texts(node: dict[str, Any], place: Place) -> Iterator[tuple[Place, str]]:
    """Every value that is `"auto"` in whatever letters."""
    for key, value in node.items():
        if isinstance(value, dict):
            yield from _texts(value, (*place, key))
        elif isinstance(value, str) and value.lower() == AUTO:
            yield (*place, key), value


def _is_meant(place: Place) -> bool:
    comment = place[-1].startswith(("_", "#", "//"))
    return place in MEANT or place[0] in MEANT_BLOCKS or comment or place == ("pipeline", "stages")


def _fate(place: Place) -> str:
    if place == ("steps_per_print",):
        return "ends in a TypeError at the first step (Trainer and Accelerate overwrite it)"
    if len(place) > 1 and place[0] not in known.blocks()[()].keys:
        return "reads nothing of this block"
    within = known.block(place[:-1])
    if within is not None and not within.open and place[-1] not in within.keys:
        return "knows no key of this name"
    if within is not None and within.strict:
        key = known.key(place)
        default = "" if key is None or key.default is known.MISSING else f", {json.dumps(key.default)}"
        return f"silently takes its default{default}"
    return "takes the text itself, which counts as true where a truth value is read and breaks the rest"
