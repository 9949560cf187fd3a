"""Keys that DeepSpeed does not know and that people write: old names, and those of other programs' configurations."""

from __future__ import annotations

from dataclasses import dataclass

from lm_scale.strategy.rules.findings import Place


@dataclass(frozen=True)
class Foreign:
    """Whose name it is, and where DeepSpeed has the setting; `advice` where it has none."""

    whose: str
    places: tuple[str, ...] = ()
    advice: str = ""


_OLD = "a name of an older DeepSpeed"
_ACCELERATE = "a key of Accelerate's YAML"
_TRAINER = "an argument of Hugging Face's Trainer"
_APEX = "an option of Apex AMP"
_FAIRSEQ = "an option of fairseq"
_MEGATRON = "an argument of Megatron-LM"
_LIGHTNING = "an argument of PyTorch Lightning"
_INFERENCE = "an option of deepspeed.init_inference"
_NOBODY = ""
_SCRIPT = "give it to the training script; delete it here"

_ZERO = "zero_optimization"
_MICRO = "train_micro_batch_size_per_gpu"
_STEPS = "gradient_accumulation_steps"
_CLIP = "gradient_clipping"
_LAUNCH = "it is the launcher's; give it on the command line and delete it here"

NAMES: dict[str, Foreign] = {
    # DeepSpeed's own past
    "thread_count": Foreign(_OLD, ("aio.intra_op_parallelism",)),
    "cpu_offload_params": Foreign(_OLD, (f"{_ZERO}.offload_param",)),
    "cpu_offload_optimizer": Foreign(_NOBODY, (f"{_ZERO}.offload_optimizer",)),
    "stage3_gather_fp16_weights": Foreign(_OLD, (f"{_ZERO}.stage3_gather_16bit_weights_on_model_save",)),
    "gather_fp16_weights_on_model_save": Foreign(_OLD, (f"{_ZERO}.stage3_gather_16bit_weights_on_model_save",)),
    "find_unused_parameters": Foreign(_NOBODY, (f"{_ZERO}.ignore_unused_parameters",)),
    "max_elements_per_comm": Foreign(_OLD, (f"{_ZERO}.reduce_bucket_size",)),
    "prefetch_bucket": Foreign(_NOBODY, (f"{_ZERO}.stage3_prefetch_bucket_size",)),
    "gradient_accumulation_dtype": Foreign(_NOBODY, ("data_types.grad_accum_dtype",)),
    "accumulation_dtype": Foreign(_NOBODY, ("data_types.grad_accum_dtype",)),
    "tag_validation_mode": Foreign(_NOBODY, ("checkpoint.tag_validation",)),
    "fp32_allreduce": Foreign(_OLD, ("communication_data_type",)),
    "check_overflow": Foreign(_OLD, ("bf16.check_grad_overflow",)),
    "partitioned_activations": Foreign(_OLD, ("activation_checkpointing.partition_activations",)),
    "initial_loss_scale": Foreign(_NOBODY, ("fp16.initial_scale_power",)),
    "loss_scale_power": Foreign(_NOBODY, ("fp16.initial_scale_power",)),
    "enable_cuda_graph": Foreign(_INFERENCE, ("hybrid_engine.enable_cuda_graph",)),
    "replace_method": Foreign(_INFERENCE, advice="delete it"),
    "zero": Foreign(_NOBODY, (_ZERO,)),
    "zero_config": Foreign(_NOBODY, (_ZERO,)),
    "zero_opt": Foreign(_NOBODY, (_ZERO,)),
    "autocast": Foreign(_NOBODY, ("torch_autocast",)),
    "offload": Foreign(_NOBODY, (f"{_ZERO}.offload_optimizer", f"{_ZERO}.offload_param")),
    "offload_model": Foreign(_NOBODY, (f"{_ZERO}.offload_param",)),
    "offload_parameters": Foreign(_NOBODY, (f"{_ZERO}.offload_param",)),
    "cpu_offloading": Foreign(_NOBODY, (f"{_ZERO}.offload_optimizer",)),
    # Batch and clipping under other names
    "micro_batch_size_per_gpu": Foreign(_NOBODY, (_MICRO,)),
    "train_micro_batch_size": Foreign(_NOBODY, (_MICRO,)),
    "micro_batch_size": Foreign(_MEGATRON, (_MICRO,)),
    "micro_batch_per_gpu": Foreign(_NOBODY, (_MICRO,)),
    "batch_size_per_gpu": Foreign(_NOBODY, (_MICRO,)),
    "batch_size": Foreign(_NOBODY, ("train_batch_size",)),
    "global_batch_size": Foreign(_MEGATRON, ("train_batch_size",)),
    "gradient_accumulation": Foreign(_NOBODY, (_STEPS,)),
    "gradient_acc_steps": Foreign(_NOBODY, (_STEPS,)),
    "grad_accum_steps": Foreign(_NOBODY, (_STEPS,)),
    "accumulate_grad_batches": Foreign(_LIGHTNING, (_STEPS,)),
    "gradient_clip_val": Foreign(_LIGHTNING, (_CLIP,)),
    "max_grad_norm": Foreign(_TRAINER, (_CLIP,)),
    "max_norm": Foreign(_NOBODY, (_CLIP,)),
    "clip_grad": Foreign(_MEGATRON, (_CLIP,)),
    "grad_clip": Foreign(_NOBODY, (_CLIP,)),
    "clip_grad_norm": Foreign(_NOBODY, (_CLIP,)),
    "gradient_clip": Foreign(_NOBODY, (_CLIP,)),
    "clip_norm": Foreign(_FAIRSEQ, (_CLIP,)),
    # Accelerate
    "zero_stage": Foreign(_ACCELERATE, (f"{_ZERO}.stage",)),
    "offload_optimizer_device": Foreign(_ACCELERATE, (f"{_ZERO}.offload_optimizer.device",)),
    "offload_param_device": Foreign(_ACCELERATE, (f"{_ZERO}.offload_param.device",)),
    "offload_optimizer_nvme_path": Foreign(_ACCELERATE, (f"{_ZERO}.offload_optimizer.nvme_path",)),
    "offload_param_nvme_path": Foreign(_ACCELERATE, (f"{_ZERO}.offload_param.nvme_path",)),
    "zero3_save_16bit_model": Foreign(_ACCELERATE, (f"{_ZERO}.stage3_gather_16bit_weights_on_model_save",)),
    "zero3_init_flag": Foreign(_ACCELERATE, advice="it has no meaning in the JSON; leave it in Accelerate's file"),
    "deepspeed_multinode_launcher": Foreign(_ACCELERATE, advice=_LAUNCH),
    "deepspeed_hostfile": Foreign(_ACCELERATE, advice=_LAUNCH),
    "deepspeed_config_file": Foreign(_ACCELERATE, advice="this file is that file; delete it"),
    "deepspeed_moe_layer_cls_names": Foreign(_ACCELERATE, (f"{_ZERO}.leaf_module.classes",)),
    "mixed_precision": Foreign(_ACCELERATE, ("bf16.enabled", "fp16.enabled")),
    "distributed_type": Foreign(_ACCELERATE, advice="leave it in Accelerate's file"),
    "num_processes": Foreign(_ACCELERATE, advice=_LAUNCH),
    "num_machines": Foreign(_ACCELERATE, advice=_LAUNCH),
    "machine_rank": Foreign(_ACCELERATE, advice=_LAUNCH),
    # Trainer
    "per_device_train_batch_size": Foreign(_TRAINER, (_MICRO,)),
    "per_gpu_train_batch_size": Foreign(_TRAINER, (_MICRO,)),
    "learning_rate": Foreign(_TRAINER, ("optimizer.params.lr",)),
    "lr": Foreign(_NOBODY, ("optimizer.params.lr",)),
    "weight_decay": Foreign(_TRAINER, ("optimizer.params.weight_decay",)),
    "betas": Foreign(_NOBODY, ("optimizer.params.betas",)),
    "eps": Foreign(_NOBODY, ("optimizer.params.eps",)),
    "momentum": Foreign(_NOBODY, ("optimizer.params.momentum",)),
    "optim": Foreign(_TRAINER, ("optimizer.type",)),
    "lr_scheduler_type": Foreign(_TRAINER, ("scheduler.type",)),
    "lr_scheduler": Foreign(_NOBODY, ("scheduler",)),
    "warmup_steps": Foreign(_TRAINER, ("scheduler.params.warmup_num_steps",)),
    "warmup_num_steps": Foreign(_NOBODY, ("scheduler.params.warmup_num_steps",)),
    "warmup_min_lr": Foreign(_NOBODY, ("scheduler.params.warmup_min_lr",)),
    "warmup_max_lr": Foreign(_NOBODY, ("scheduler.params.warmup_max_lr",)),
    "total_num_steps": Foreign(_NOBODY, ("scheduler.params.total_num_steps",)),
    "warmup_ratio": Foreign(_TRAINER, ("scheduler.params.warmup_num_steps",)),
    "gradient_checkpointing": Foreign(_TRAINER, advice="turn it on in the training script; delete it here"),
    "gradient_checkpointing_kwargs": Foreign(_TRAINER, advice=_SCRIPT),
    "logging_steps": Foreign(_TRAINER, ("steps_per_print",)),
    "dataloader_num_workers": Foreign(_TRAINER, advice=_SCRIPT),
    "dataloader_pin_memory": Foreign(_TRAINER, advice=_SCRIPT),
    "num_train_epochs": Foreign(_TRAINER, advice=_SCRIPT),
    "epochs": Foreign(_NOBODY, advice=_SCRIPT),
    "num_epochs": Foreign(_NOBODY, advice=_SCRIPT),
    "max_steps": Foreign(_TRAINER, advice=_SCRIPT),
    "save_steps": Foreign(_TRAINER, advice=_SCRIPT),
    "eval_steps": Foreign(_TRAINER, advice=_SCRIPT),
    "output_dir": Foreign(_TRAINER, advice=_SCRIPT),
    "seed": Foreign(_TRAINER, advice=_SCRIPT),
    "num_workers": Foreign(_NOBODY, advice=_SCRIPT),
    "max_seq_length": Foreign(_NOBODY, advice=_SCRIPT),
    "seq_length": Foreign(_MEGATRON, advice=_SCRIPT),
    "local_rank": Foreign(_TRAINER, advice=_LAUNCH),
    "hostfile": Foreign(_NOBODY, advice=_LAUNCH),
    "num_gpus": Foreign(_NOBODY, advice=_LAUNCH),
    "num_nodes": Foreign(_NOBODY, advice=_LAUNCH),
    "fp16_opt_level": Foreign(_TRAINER, advice=f"{_APEX}; DeepSpeed's fp16 has one way; delete it"),
    # Apex, fairseq, other precision switches
    "opt_level": Foreign(_APEX, advice="DeepSpeed's fp16 has one way; delete it"),
    "fp16_scale_tolerance": Foreign(_FAIRSEQ, ("fp16.hysteresis",)),
    "fp16_scale_window": Foreign(_FAIRSEQ, ("fp16.loss_scale_window",)),
    "fp16_init_scale": Foreign(_FAIRSEQ, ("fp16.initial_scale_power",)),
    "threshold_loss_scale": Foreign(_FAIRSEQ, ("fp16.min_loss_scale",)),
    "update_freq": Foreign(_FAIRSEQ, (_STEPS,)),
    "dtype": Foreign(_NOBODY, ("bf16.enabled", "fp16.enabled")),
    "torch_dtype": Foreign(_NOBODY, ("bf16.enabled", "fp16.enabled")),
    "precision": Foreign(_LIGHTNING, ("bf16.enabled", "fp16.enabled")),
    # Parallelism
    "tensor_parallel_size": Foreign(_NOBODY, ("tensor_parallel.autotp_size",)),
    "tensor_model_parallel_size": Foreign(_MEGATRON, ("tensor_parallel.autotp_size",)),
    "model_parallel_size": Foreign(_MEGATRON, ("tensor_parallel.autotp_size",)),
    "pipeline_parallel_size": Foreign(_NOBODY, ("pipeline.stages",)),
    "pipeline_model_parallel_size": Foreign(_MEGATRON, ("pipeline.stages",)),
    "num_stages": Foreign(_NOBODY, ("pipeline.stages",)),
    "hpz_partition_size": Foreign(_NOBODY, (f"{_ZERO}.zero_hpz_partition_size",)),
}
"""By name, in whatever block it stands; a key of the same name nearby is looked for first."""

_FP16_ALONE = Foreign("a key of fp16 alone", advice="bf16 needs no loss scaling; delete it")
_FP16_KEYS = (
    "auto_cast",
    "loss_scale",
    "initial_scale_power",
    "loss_scale_window",
    "hysteresis",
    "consecutive_hysteresis",
    "min_loss_scale",
)

PLACES: dict[Place, Foreign] = {
    **{(block, key): _FP16_ALONE for block in ("bf16", "bfloat16") for key in _FP16_KEYS},
    ("activation_checkpointing", "enabled"): Foreign(
        _NOBODY, advice="the block has no switch: delete this key, or the block where it is not wanted"
    ),
    ("wandb", "entity"): Foreign(_NOBODY, ("wandb.team",)),
    ("tensorboard", "log_dir"): Foreign(_NOBODY, ("tensorboard.output_path",)),
    ("tensorboard", "logdir"): Foreign(_NOBODY, ("tensorboard.output_path",)),
    ("aio", "enabled"): Foreign(
        _NOBODY, advice="the block needs no switch: it acts where something offloads to NVMe; delete it"
    ),
    ("tensor_parallel", "enabled"): Foreign(_NOBODY, ("tensor_parallel.autotp_size",)),
    ("tensor_parallel", "tp_size"): Foreign(_INFERENCE, ("tensor_parallel.autotp_size",)),
    ("pipeline", "enabled"): Foreign(_NOBODY, ("pipeline.stages",)),
    ("zero_optimization", "enabled"): Foreign(_NOBODY, (f"{_ZERO}.stage",)),
    ("gradient_clipping", "enabled"): Foreign(_NOBODY, (_CLIP,)),
}
"""Names that mean something else in other blocks."""
