"""What Megatron prints of its arguments (`------ arguments ------`, `  seq_length ....... 1024`) -> row keys.

Megatron-LM, Megatron-DeepSpeed and GPT-NeoX write the same lines; NeoX under other names, and with `default` or
`updated` behind the value. Each argument stands on its own line: a line that is lost takes nothing but itself.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from lm_scale.report.ingest.settings import DTYPES, known, number, truth, whole

ARGUMENT = re.compile(r"(?:^|[\s:\]])(\w+) \.{2,} (\S.*?)(?:\.*(?<=\.)(?:updated|default))?\s*$")
PARALLEL = {
    "world_size": re.compile(r"using world size: (\d+)\b"),
    "data_parallel_size": re.compile(r"using world size: .*?\bdata-parallel[- ]size: (\d+)\b"),
    "context_parallel_size": re.compile(r"using world size: .*?, context-parallel[- ]size: (\d+)\b"),
    "tensor_model_parallel_size": re.compile(r"using world size: .*?(?<!-)tensor-model-parallel size: (\d+)\b"),
    "pipeline_model_parallel_size": re.compile(r"using world size: .*?(?<!-)pipeline-model-parallel size: (\d+)\b"),
}
NEOX = {
    "train_micro_batch_size_per_gpu": "micro_batch_size",
    "model_parallel_size": "tensor_model_parallel_size",
    "pipe_parallel_size": "pipeline_model_parallel_size",
    "optimizer_type": "optimizer",
}
READ = frozenset(
    (
        *PARALLEL,
        *(
            "micro_batch_size",
            "train_batch_size",
            "global_batch_size",
            "gradient_accumulation_steps",
            "rampup_batch_size",
            "seq_length",
        ),
        *("params_dtype", "precision", "fp8", "recompute_granularity", "checkpoint_activations", "optimizer", "lr"),
        *("lr_decay_style", "seed", "log_interval", "tokenizer_type", "deepspeed", "zero_stage", "num_experts"),
        *("fp8_e4m3", "fp8_hybrid"),
    )
)


def arguments(text: str) -> dict[str, str]:
    """The arguments that one line states, under Megatron's names."""
    if "using world size" in text:
        return {name: found[1] for name, pattern in PARALLEL.items() if (found := pattern.search(text))}
    found = ARGUMENT.search(text) if ":print]" not in text else None  # DeepSpeed's world_size is another
    name = NEOX.get(found[1], found[1]) if found else ""
    return {name: found[2]} if found and name in READ else {}


def settings(values: Mapping[str, str]) -> dict[str, Any]:
    """Row keys from the arguments; what is not printed is not known."""
    granularity, checkpointing = values.get("recompute_granularity"), truth(values.get("checkpoint_activations"))
    found: dict[str, Any] = {
        "world_size": whole(values.get("world_size")),
        "data_parallel": whole(values.get("data_parallel_size")),
        "tensor_parallel": whole(values.get("tensor_model_parallel_size")),
        "pipeline_stages": whole(values.get("pipeline_model_parallel_size")),
        "micro_batch": whole(values.get("micro_batch_size")),
        "grad_accum": _accumulation(values),
        "global_batch": global_batch(values),
        "seq_len": whole(values.get("seq_length")),
        "precision": _precision(values),
        "activation_checkpointing": granularity != "None" if granularity else checkpointing,
        "optimizer": values.get("optimizer"),
        "learning_rate": number(values.get("lr")),
        "lr_schedule": values.get("lr_decay_style"),
        "seed": whole(values.get("seed"), least=0),
        "tokenizer": values.get("tokenizer_type"),
    }
    return known(found)


def global_batch(values: Mapping[str, str]) -> int | None:
    """The batch of every iteration, where it is known not to grow; NeoX has no growing one."""
    fixed = values.get("rampup_batch_size") == "None"
    return whole(values.get("train_batch_size")) or (whole(values.get("global_batch_size")) if fixed else None)


def model_ranks(values: Mapping[str, str]) -> int | None:
    """Ranks that hold one copy of the model: all but the data-parallel ones; these print memory and parameters."""
    world, data = whole(values.get("world_size")), whole(values.get("data_parallel_size"))
    return world // data if world is not None and data is not None and world % data == 0 else None


def _accumulation(values: Mapping[str, str]) -> int | None:
    """Micro-batches a rank does in one step, where the batch does not grow during the run."""
    stated = whole(values.get("gradient_accumulation_steps"))
    if stated is not None:
        return stated
    batch, micro, data = (
        global_batch(values),
        whole(values.get("micro_batch_size")),
        whole(values.get("data_parallel_size")),
    )
    if batch is None or micro is None or data is None:
        return None
    steps, rest = divmod(batch, micro * data)
    return steps if not rest else None


def _precision(values: Mapping[str, str]) -> str | None:
    """The parameters' type, which is the products' too unless an fp8 recipe is on. Old versions know no fp8."""
    fp8 = values.get("fp8")
    recipes = (fp8 or "None", values.get("fp8_e4m3", "False"), values.get("fp8_hybrid", "False"))
    if recipes != ("None", "False", "False") or (fp8 is None and "context_parallel_size" in values):
        return None
    stated = values.get("params_dtype", values.get("precision", ""))
    return DTYPES.get(stated.removeprefix("torch."))
