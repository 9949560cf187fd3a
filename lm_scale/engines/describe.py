"""What a run is, in full for `run.json` and in a few lines for the terminal."""

from __future__ import annotations

import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from lm_scale.costs.devices import peak_flops_per_s
from lm_scale.costs.flops import model_flops_per_token
from lm_scale.costs.resolved import predicted_bytes
from lm_scale.costs.shapes import model_shape
from lm_scale.data.batches import TrainBatches
from lm_scale.data.tokens import TokenFiles
from lm_scale.engines.interface import Engine
from lm_scale.engines.launch import Launch
from lm_scale.models.loss import CausalLMLoss
from lm_scale.records import Header, now, process_identity
from lm_scale.training.header import git_state, hardware, untested, versions
from lm_scale.training.limits import Limits
from lm_scale.training.progress import human_bytes


@dataclass(frozen=True)
class LossModule:
    """The module that an engine trains, why its loss is computed as it is, and what else the user should know of it."""

    module: CausalLMLoss
    reason: str
    notes: list[str]


OWN_CONTEXT_BYTES = 2**30
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def make_header(
    launch: Launch, data: TokenFiles, batches: TrainBatches, limits: Limits, device: torch.device
) -> Header:
    """All that is known before the model is built, so that a run which fails in building it has a record."""
    arguments, process, strategy = launch.arguments, launch.process, launch.strategy
    batch, found = strategy.batch, versions()
    name = "cpu" if device.type == "cpu" else torch.cuda.get_device_name(device)
    peak = None if name == "cpu" else peak_flops_per_s(name, strategy.precision)
    warnings = [*strategy.warnings, *([line] if (line := untested(found)) else []), *_host_warnings(launch)]
    return {
        "status": "running",
        "last_error": None,
        "created_at": now(),
        "started_at": None,
        "finished_at": None,
        "process": process_identity([sys.executable, *sys.argv]),
        "arguments": asdict(arguments),
        "strategy": {
            "name": strategy.name,
            "ds_config": str(strategy.path),
            "engine": arguments.engine,
            "zero_stage": strategy.zero_stage if arguments.engine == "deepspeed" else None,
            "offload": strategy.offload,
            "sources": strategy.sources,
        },
        "layout": {
            "world_size": process.world_size,
            "nodes": process.nodes,
            "data_parallel": strategy.layout.data_parallel,
            "pipeline_stages": strategy.layout.pipeline_stages,
            "tensor_parallel": strategy.layout.tensor_parallel,
        },
        "batch": {
            "micro_batch": batch.micro_batch,
            "grad_accum": batch.grad_accum,
            "global_batch": batch.global_batch,
            "seq_len": arguments.seq_len,
            "packing": not arguments.no_packing,
        },
        "numerics": {
            "precision": strategy.precision,
            "precision_reason": strategy.precision_reason,
            "reduction_precision": strategy.reduction_precision,
            "master_weights": strategy.master_weights,
            "activation_checkpointing": strategy.activation_checkpointing,
            "torch_compile": arguments.torch_compile,
            "attn_implementation": None,
            "loss": None,
            "loss_reason": None,
        },
        "model": {
            "name": launch.source.name,
            "source": launch.source.config,
            **dict.fromkeys(("params", "vocab_size", "tied_embeddings", "config", "flops_per_token")),
        },
        "data": {
            "dataset": arguments.dataset,
            "tokenizer": arguments.tokenizer or ("trained" if data.tokenizer_path else None),
            "fingerprint": data.fingerprint,
            "train_docs": data.train.docs,
            "train_tokens": len(data.train.ids),
            "train_samples": batches.samples_in_epoch,
            "eval_docs": data.eval.docs,
            "eval_tokens": len(data.eval.ids),
        },
        "optimizer": {
            "type": strategy.document["optimizer"]["type"],
            "learning_rate": strategy.learning_rate,
            "weight_decay": strategy.document["optimizer"]["params"].get("weight_decay"),
            "params": strategy.document["optimizer"]["params"],
            **dict.fromkeys(("decayed_params", "undecayed_params")),
        },
        "schedule": {
            "type": strategy.document.get("scheduler", {}).get("type") or limits.shape,
            "warmup": limits.warmup,
            "warmup_steps": limits.warmup_steps,
            "planned_steps": limits.planned_steps,
            "budget_s": limits.budget_s,
        },
        "seed": arguments.seed,
        "versions": found,
        "hardware": hardware(device, launch.machine.count, process.threads, peak),
        "git": git_state(Path.cwd()),
        "state_bytes": None,
        "predicted": {},
        "warnings": warnings,
        "wandb_url": None,
        "resumed_from": None,
        "resumed_step": None,
    }


def built_facts(launch: Launch, header: Header, engine: Engine, made: LossModule) -> Header:
    """The keys of `header` that the built model completes."""
    model = engine.model
    config = model.config.to_dict()
    shape = model_shape(config)
    flops = model_flops_per_token(shape, launch.arguments.seq_len) if shape else None
    device_bytes, host_bytes = predicted_bytes(
        launch.strategy,
        launch.arguments,
        config,
        launch.process.world_size,
        ranks_per_node=launch.process.local_world_size,
        on_cpu=launch.machine.device == "cpu",
        engine=launch.arguments.engine,
        loss=made.module.mode,
    )
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    return {
        "numerics": {
            **header["numerics"],
            "attn_implementation": model.config._attn_implementation,
            "loss": made.module.mode,
            "loss_reason": made.reason,
        },
        "model": {
            **header["model"],
            "params": engine.params,
            "vocab_size": embeddings.num_embeddings,
            "tied_embeddings": head is not None and embeddings.weight is head.weight,
            "config": config,
            "flops_per_token": flops,
        },
        "optimizer": {**header["optimizer"], **engine.decay_counts()},
        "predicted": {"flops_per_token": flops, "peak_device_bytes": device_bytes, "peak_host_bytes": host_bytes},
        "warnings": header["warnings"] + made.notes,
    }


def summary(run_dir: Path, header: Header, engine: Engine, save: bool) -> list[str]:
    """What a run is, in at most 15 lines, before its first step."""
    batch, numerics, model, data = header["batch"], header["numerics"], header["model"], header["data"]
    layout, machine, schedule = header["layout"], header["hardware"], header["schedule"]
    lengths = [f"{schedule['planned_steps']:,} steps"] if schedule["planned_steps"] else []
    lengths += [f"{schedule['budget_s']:g} s"] if schedule["budget_s"] else []
    weights = "no weights are written (--no_save)"
    if save:
        free = shutil.disk_usage(run_dir).free
        weights = f"{human_bytes(final_bytes(engine))} of weights at the end ({human_bytes(free)} free)"
    where = machine["device"]
    if where == "cpu":
        where = f"{machine['cpu']} (CPU), {machine['threads_per_rank']} of {machine['cpus']} cores each"
    chosen = header["strategy"]
    strategy = f"{chosen['name']}: {engine.layout}, offload {chosen['offload']}"
    if numerics["activation_checkpointing"]:
        strategy += ", activation checkpointing"
    reason = f": {numerics['loss_reason']}" if numerics["loss_reason"] else ""
    lines = [
        f"run        {run_dir}",
        f"strategy   {strategy}",
        f"machine    {layout['world_size']} ranks on {where}",
        f"model      {model['name']}: {model['params']:,} parameters, vocabulary {model['vocab_size']:,}",
        f"precision  {numerics['precision']}: {numerics['precision_reason']}",
        f"loss       {numerics['loss']}{reason}; attention {numerics['attn_implementation']}",
        f"data       {data['dataset']}: {data['train_tokens']:,} tokens to train on, {data['eval_tokens']:,} held out",
        f"batch      {batch['micro_batch']} x {batch['grad_accum']} x {layout['data_parallel']} = "
        f"{batch['global_batch']} samples of {batch['seq_len']} tokens a step",
        f"length     {' or '.join(lengths)}; learning rate {header['optimizer']['learning_rate']:g} {schedule['type']}",
        f"keeps      {weights}",
    ]
    return lines + [f"warning    {line}" for line in header["warnings"][:5]]


def final_bytes(engine: Engine) -> int:
    """Bytes of the weights that a run writes at its end, in the precision in which the engine holds them."""
    width: int = next(engine.model.parameters()).element_size()
    return engine.params * width


def _host_warnings(launch: Launch) -> list[str]:
    process, machine = launch.process, launch.machine
    if machine.device == "cpu" and process.local_world_size > machine.count:
        return [f"{process.local_world_size} ranks share {machine.count} CPU cores; they will wait for each other"]
    return []


def memory_of_others(device: torch.device) -> int:
    """Bytes of the device that other processes hold; 0 on a CPU. Our own CUDA context takes up to about 0.6 GiB."""
    if device.type == "cpu":
        return 0
    free, total = torch.cuda.mem_get_info(device)
    return max(0, total - free - torch.cuda.memory_reserved(device) - OWN_CONTEXT_BYTES)
