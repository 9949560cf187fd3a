"""What the table of known keys says by hand, each with its evidence in DeepSpeed 0.19.8; all else is derived."""

from __future__ import annotations

from typing import Any

from deepspeed.runtime.config import DtypeEnum
from deepspeed.runtime.constants import CHECKPOINT_TAG_VALIDATION_MODES, GRADIENT_ALLREDUCE_OP_SUPPORTED
from deepspeed.runtime.model_checkpointing.constants import CHECKPOINT_DATA_PARALLEL_UNITS, CHECKPOINT_WRITER_TYPES
from deepspeed.utils.logging import log_levels

Place = tuple[str, ...]

_DTYPES = sorted(name for name in DtypeEnum._value2member_map_ if isinstance(name, str))
_CHECKPOINTING = (
    "DeepSpeed acts on it only where the script calls deepspeed.checkpointing.configure() "
    "(runtime/activation_checkpointing/checkpointing.py:1121)"
)

# JSON types of keys whose default, None or missing, does not show them.
TYPES: dict[Place, list[str]] = {
    ("train_batch_size",): ["int"],  # runtime/config.py:598, `> 0`, `//`
    ("train_micro_batch_size_per_gpu",): ["int"],  # the same
    ("gradient_accumulation_steps",): ["int"],  # the same; runtime/engine.py, `% gradient_accumulation_steps`
    ("gradient_clipping",): ["float"],  # runtime/engine.py:3506, `> 0.0`
    ("steps_per_print",): ["float"],  # runtime/engine.py, `global_steps % steps_per_print`; Accelerate writes infinity
    ("communication_data_type",): ["str"],  # runtime/config.py:220, `.lower()`
    ("seq_parallel_communication_data_type",): ["str"],  # the same
    ("vocabulary_size",): ["int"],  # runtime/config.py:718, `% 8`
    ("log_level",): ["str"],  # runtime/engine.py:585, set_log_level_from_string
    ("sequence_parallel_size",): ["int"],  # __init__.py:545
    ("data_parallel_size",): ["int"],  # __init__.py:545
    ("optimizer", "type"): ["str"],  # runtime/config.py:514, `.lower()`
    ("scheduler", "type"): ["str"],  # runtime/engine.py:1926, `hasattr(lr_schedules, name)`
    ("optimizer", "legacy_fusion"): ["bool"],  # runtime/engine.py:2589
    ("data_types", "grad_accum_dtype"): ["str"],  # runtime/engine.py:1809, DtypeEnum(...)
    ("data_types", "param_dtype"): ["str"],  # runtime/engine.py:1826
    ("data_types", "buffer_dtype"): ["str"],  # runtime/engine.py:1846
    ("data_types", "keep_in_fp32_modules"): ["str", "list"],  # runtime/config.py:564
    ("torch_autocast", "dtype"): ["str"],  # runtime/config.py:190, DtypeEnum(...)
    ("torch_autocast", "lower_precision_safe_modules"): ["list"],  # runtime/config.py:201
    ("activation_checkpointing", "number_checkpoints"): ["int"],  # activation_checkpointing/checkpointing.py:1231
    ("flops_profiler", "output_file"): ["str"],  # runtime/engine.py, print_model_profile(output_file=...)
    ("checkpoint", "writer", "data_parallel"): ["str"],  # runtime/model_checkpointing/config.py:30, `.upper()`
    ("pipeline", "activation_checkpoint_interval"): ["int"],  # runtime/pipe/engine.py:217, `> 0`
    ("pipeline", "pipe_partitioned"): ["bool"],  # runtime/pipe/engine.py:135, assert isinstance
    ("pipeline", "grad_partitioned"): ["bool"],  # runtime/pipe/engine.py:136
    ("pipeline", "use_reentrant"): ["bool", "null"],  # runtime/pipe/engine.py:210
    ("autotuning", "metric_path"): ["str"],  # autotuning/config.py:52, a path
    ("autotuning", "model_info_path"): ["str"],  # autotuning/config.py:66, a path
    ("autotuning", "max_train_batch_size"): ["int"],  # autotuning/config.py:70
    ("expert_parallel", "load_balance_coeff"): ["null"],  # module_inject/auto_ep_config.py:75, refused otherwise
    ("data_efficiency", "data_sampling", "dynamic_batching", "max_batch_size"): ["int"],  # data_pipeline/config.py:103
    ("data_efficiency", "data_sampling", "dynamic_batching", "max_tokens"): ["int"],  # data_pipeline/config.py:110
    # Blocks that may be something else than a block.
    ("zero_optimization",): ["dict", "bool"],  # runtime/zero/config.py:74
    ("bf16",): ["dict", "null"],  # runtime/precision_config.py:36
    ("aio",): ["dict", "null"],  # runtime/swap_tensor/aio_config.py:21
    ("expert_parallel",): ["dict", "null", "bool"],  # module_inject/auto_ep_config.py:44, `if not param_dict`
    ("checkpoint", "writer"): ["dict", "null"],  # runtime/model_checkpointing/config.py:37
    ("autotuning", "model_info"): ["dict", "null"],  # autotuning/config.py:89
    ("autotuning", "arg_mappings"): ["dict", "null"],  # autotuning/config.py:62
    ("datastates_ckpt",): ["dict", "bool", "null"],  # datastates/config.py:20, `is not False`
    ("scheduler", "params"): ["dict"],  # runtime/engine.py:1935, `**params`
    ("optimizer", "params"): ["dict", "null"],  # runtime/engine.py:2479, `dict(params or {})`
}

# Values that DeepSpeed's own code compares with, outside pydantic; strings are compared as the code folds their case.
CHOICES: dict[Place, list[Any]] = {
    ("communication_data_type",): ["fp16", "bf16", "fp32"],  # runtime/config.py:223-228, lower case
    ("seq_parallel_communication_data_type",): ["fp16", "bf16", "fp32"],
    ("gradient_allreduce_op",): list(GRADIENT_ALLREDUCE_OP_SUPPORTED),  # runtime/config.py:245, lower case
    ("checkpoint", "tag_validation"): list(CHECKPOINT_TAG_VALIDATION_MODES),  # runtime/config.py:389, upper case
    ("checkpoint", "writer", "type"): list(CHECKPOINT_WRITER_TYPES),  # model_checkpointing/config.py:29
    ("checkpoint", "writer", "data_parallel"): list(CHECKPOINT_DATA_PARALLEL_UNITS),
    ("data_types", "grad_accum_dtype"): _DTYPES,
    ("data_types", "param_dtype"): _DTYPES,
    ("data_types", "buffer_dtype"): _DTYPES,
    ("torch_autocast", "dtype"): _DTYPES,
    ("log_level",): list(log_levels),  # utils/logging.py:187, lower case
    # module_inject/auto_ep_config.py:190-240, where the block is enabled
    ("expert_parallel", "score_apply"): ["auto", "pre", "post"],
    ("expert_parallel", "combine_impl"): ["auto", "weighted_sum", "fused_weighted_sum", "legacy_bmm"],
    ("expert_parallel", "row_weighting_impl"): ["auto", "eager", "fused"],
    ("expert_parallel", "gate_up_impl"): ["separate", "fused"],
    ("expert_parallel", "comm_backend"): ["comm", "deepep"],
    ("expert_parallel", "score_func"): ["auto", "softmax", "sigmoid"],
    # runtime/zenflow/zenflow_config.py:49-57
    ("zero_optimization", "zenflow", "select_strategy"): ["auto", "step", "epoch"],
    ("zero_optimization", "zenflow", "select_interval"): ["auto"],  # or a number
    ("zero_optimization", "zenflow", "update_interval"): ["auto"],  # or a number
}

# Bounds that a validator of the model sets.
BOUNDS: dict[Place, dict[str, float]] = {
    ("zero_optimization", "zenflow", "update_interval"): {"ge": 1},  # runtime/zenflow/zenflow_config.py:58
    ("fp16", "loss_scale"): {"ge": 0},  # runtime/precision_config.py, _validate_loss_scale
}

# Parsed and without effect, though something names them.
INERT: dict[Place, str] = {
    ("zero_optimization", "allgather_bucket_size"): (
        "dead where torch.distributed has all_gather_into_tensor: the updated parameters are gathered in one piece "
        "(runtime/utils.py:1021)"
    ),
    ("allgather_size",): "read only beside `zero_optimization: true`, and dead there (runtime/zero/config.py:64)",
    ("vocabulary_size",): "only a warning about alignment to 8 depends on it (runtime/config.py:717)",
    ("pipeline", "seed_layers"): "it has a default and no reader (runtime/config.py:277)",
    (
        "pipeline",
        "partition",
    ): "it has a default and no reader (runtime/config.py:276); `partition_method` is lm-scale's",
    **{
        ("activation_checkpointing", key): _CHECKPOINTING
        for key in (
            "partition_activations",
            "number_checkpoints",
            "contiguous_memory_optimization",
            "synchronize_checkpoint_boundary",
            "profile",
            "cpu_checkpointing",
        )
    },
}

# What replaces a removed key, where DeepSpeed's message or its documentation says so.
REPLACED: dict[Place, str] = {
    ("amp",): "turn on bf16, fp16 or torch_autocast instead",  # its message
    ("elasticity",): (  # its message
        "write train_batch_size, train_micro_batch_size_per_gpu and gradient_accumulation_steps themselves"
    ),
    ("curriculum_learning",): "use data_efficiency.data_sampling.curriculum_learning instead",  # its message
    ("sparse_gradients",): "delete it; torch.nn.Embedding(sparse=True) in the model needs no key",  # its message
    ("nebula",): "delete it; checkpoint.writer has DeepSpeed's own faster writers",  # model_checkpointing/config.py
    ("zero_optimization", "zeropp_loco_param"): "delete it; zero_quantized_gradients acts without it",  # its message
    ("zero_optimization", "mics_shard_size"): (  # zero/config.py: a second copy of the weights within a group of ranks
        "delete it; zero_hpz_partition_size comes nearest: it gathers the weights within a group of ranks"
    ),
}

# Keys that the walk cannot see: defaults of get_pipeline_config (runtime/config.py:274), and this project's own.
EXTRA_KEYS: dict[Place, dict[str, Any]] = {
    ("pipeline", "seed_layers"): {"types": ["bool"], "default": False, "at": "runtime/config.py:277"},
    ("pipeline", "partition"): {"types": ["str"], "default": "best", "at": "runtime/config.py:276"},
    ("pipeline", "stages"): {"types": ["int"], "project": True},
    ("pipeline", "partition_method"): {"types": ["str"], "project": True},
}

# Blocks whose keys are the user's own, or another package's.
OPEN: tuple[Place, ...] = (
    ("optimizer", "params"),  # keyword arguments of the optimizer: the table's `optimizers`
    ("scheduler", "params"),  # keyword arguments of the scheduler: the table's `schedulers`
    ("datastates_ckpt",),  # handed whole to the datastates package (datastates/config.py:21)
    ("autotuning", "arg_mappings"),  # the script's own arguments
    ("weight_quantization", "quantized_initialization"),  # module patterns and their settings
    ("weight_quantization", "post_init_quant"),
    (
        "data_efficiency",
        "data_routing",
        "random_ltd",
        "random_ltd_schedule",
        "schedule_config",
    ),  # read from a state copy
    ("data_efficiency", "data_routing", "random_ltd", "layer_token_lr_schedule"),  # raises where it is enabled
)
