"""Plan a run: which JSON fits, how fast it is, and what decides it, for a machine that need not be here. No torch.

    python -m lm_scale.plan --ds_config ds_configs/zero2.json --model qwen3-1b --world_size 64 --device h100

The strategy is resolved exactly as `pretrain` resolves it; its memory and time are the closed forms of
`lm_scale.costs`. `--rehearse` runs DeepSpeed itself as one rank of that world on this machine and prints what it held
beside them.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_scale.arguments import PlanArguments, UserError, parse, run_command
from lm_scale.costs.counted import count_on_meta
from lm_scale.costs.machines import Device
from lm_scale.costs.machines import parse as parse_device
from lm_scale.costs.memory import Memory, predict_memory
from lm_scale.costs.resolved import setup_of
from lm_scale.costs.setup import Dimensions, Setup
from lm_scale.costs.shapes import model_shape
from lm_scale.costs.show import all_text, plan_text
from lm_scale.costs.speed import Speed, predict_speed
from lm_scale.experiments.rehearsal import rehearse
from lm_scale.models.presets import ModelSource, check_seq_len, load_config
from lm_scale.strategy.machine import Machine, detect
from lm_scale.strategy.native import check_expressible
from lm_scale.strategy.resolve import Strategy, resolve

MOST_RANKS = 65_536
MOST_MICRO_BATCH = 65_536


@dataclass(frozen=True)
class Plan:
    """One strategy on one machine. `capacity` is the memory that a rank may take, None where it is not known."""

    strategy: Strategy
    model: str
    setup: Setup
    device: Device
    capacity: int | None
    memory: Memory
    speed: Speed

    @property
    def needed(self) -> int:
        """What the rank must be given: of the device, or of the host's memory on a CPU."""
        return self.memory.host if self.setup.on_cpu else self.memory.needed

    @property
    def fits(self) -> bool | None:
        return None if self.capacity is None else self.needed <= self.capacity


def main(argv: Sequence[str]) -> int:
    """Predict the memory and the speed of a run under one DeepSpeed JSON, on a machine that need not be here."""
    arguments = parse(PlanArguments, argv, "plan", (main.__doc__ or "").strip())
    if arguments.all:
        records = [as_json(one, arguments) for one in _all(arguments)]
        print(json.dumps(records, indent=1) if arguments.format == "json" else all_text(records))
        return 0
    plan = make_plan(arguments)
    if arguments.max:
        plan = _largest(plan)
    record = as_json(plan, arguments)
    if arguments.rehearse:
        record["rehearsal"] = rehearse(arguments)
    print(json.dumps(record, indent=1) if arguments.format == "json" else plan_text(record))
    return 0


def make_plan(arguments: PlanArguments) -> Plan:
    """The plan of the JSON that `arguments` name.

    Raises:
        UserError: what `pretrain` would refuse, an unknown device or model family.
    """
    machine, device = _machine(arguments)
    source = load_config(arguments.model)
    check_seq_len(source, arguments.seq_len)
    if arguments.world_size < 1:
        raise UserError(f"--world_size {arguments.world_size}: must be at least 1")
    strategy = resolve(arguments, arguments, source.text_config.get("hidden_size"), arguments.world_size, machine)
    if arguments.engine == "torch":
        check_expressible(strategy)
    nodes = arguments.nodes or math.ceil(arguments.world_size / device.ranks_per_node)
    setup = setup_of(
        strategy,
        arguments,
        _dimensions(arguments.model, source, arguments.vocab_size),
        arguments.world_size,
        ranks_per_node=math.ceil(arguments.world_size / nodes),
        on_cpu=machine.device == "cpu",
        engine=arguments.engine,
        master_weights=arguments.master_weights,
    )
    return _predicted(strategy, source.name, setup, device)


def _predicted(strategy: Strategy, model: str, setup: Setup, device: Device) -> Plan:
    capacity: int | None = device.memory_bytes or None
    if setup.on_cpu and capacity is None:
        capacity = _host_memory() // min(setup.ranks_per_node, setup.world_size)
    memory = predict_memory(setup, None if setup.on_cpu else capacity)
    return Plan(strategy, model, setup, device, capacity, memory, predict_speed(setup, device))


def _machine(arguments: PlanArguments) -> tuple[Machine, Device]:
    """The machine as `resolve` wants it, so that "auto" becomes what it will become there."""
    here = detect()
    if arguments.device is None and here.device != "cpu":
        raise UserError("--device missing: name the accelerator, for example a100-80gb or h100")
    device = parse_device(arguments.device or "cpu")
    if device.name == "cpu":
        return (here if here.device == "cpu" else Machine("cpu", here.count, False, "planned for a CPU")), device
    verb = "multiplies" if device.multiplies_bf16 else "does not multiply"
    return Machine("gpu", arguments.world_size, device.multiplies_bf16, f"{device.name} {verb} bf16 natively"), device


def _dimensions(model: str, source: ModelSource, vocab_size: int | None) -> Dimensions:
    shape = model_shape(source.text_config, vocab_size)
    return count_on_meta(model, source.text_config, vocab_size) if shape is None else Dimensions.of(shape)


def _host_memory() -> int:
    with open("/proc/meminfo", encoding="ascii") as rows:
        return int(next(row for row in rows if row.startswith("MemTotal:")).split()[1]) * 1024


def _largest(plan: Plan) -> Plan:
    """The plan with the largest micro-batch that fits; where none does, with the fewest ranks at micro-batch 1."""

    def tried(**changes: Any) -> Plan:
        setup = dataclasses.replace(plan.setup, **changes)
        return _predicted(plan.strategy, plan.model, setup, plan.device)

    one = tried(micro_batch=1)
    if one.fits:
        low, high = 1, 2
        while high < MOST_MICRO_BATCH and tried(micro_batch=high).fits:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if tried(micro_batch=middle).fits else (low, middle)
        return tried(micro_batch=low)
    ranks = plan.setup.world_size
    while ranks <= MOST_RANKS:
        ranks *= 2
        found = tried(micro_batch=1, world_size=ranks, ranks_per_node=plan.device.ranks_per_node)
        if found.fits:
            return found
    return one


def _all(arguments: PlanArguments) -> list[Plan]:
    """Every strategy of the folder, those that fit first, the fastest first."""
    folder = Path(arguments.ds_config) if arguments.ds_config else Path("ds_configs")
    folder = folder if folder.is_dir() else folder.parent
    files = sorted(folder.glob("*.json"))
    if not files:
        raise UserError(f"--all: no JSON in {folder}; name one of the folder with --ds_config")
    plans, reasons = [], []
    for file in files:
        try:
            plans.append(make_plan(dataclasses.replace(arguments, ds_config=str(file))))
        except UserError as error:
            reasons.append(str(error))
    if not plans:
        raise UserError(reasons[0])
    for reason in reasons:
        print(f"left out: {reason}", file=sys.stderr)
    return sorted(plans, key=lambda plan: (not plan.fits, -plan.speed.tokens_per_s if plan.fits else plan.needed))


def as_json(plan: Plan, arguments: PlanArguments) -> dict[str, Any]:
    """The object that `--format json` prints; bytes are of the fullest rank, rates over all ranks."""
    setup, memory, speed = plan.setup, plan.memory, plan.speed
    record: dict[str, Any] = {
        "strategy": plan.strategy.name,
        "model": plan.model,
        "params": setup.dims.parameters,
        "vocab_size": setup.dims.vocab_size,
        "device": plan.device.name,
        "world_size": setup.world_size,
        "nodes": math.ceil(setup.world_size / setup.ranks_per_node),
        "micro_batch": setup.micro_batch,
        "grad_accum": setup.grad_accum,
        "global_batch": setup.micro_batch * setup.grad_accum * setup.data_parallel,
        "seq_len": setup.seq_len,
        "precision": plan.strategy.precision,
        "items": [
            {"name": one.name, "where": one.where, "bytes": one.bytes, "phase": one.phase, "formula": one.formula}
            for one in memory.items
        ],
        "peak_device_bytes": None if setup.on_cpu else memory.device,
        "peak_reserved_bytes": None if setup.on_cpu else memory.reserved,
        "peak_process_bytes": None if setup.on_cpu else memory.process,
        "peak_host_bytes": memory.host,
        "nvme_bytes": memory.nvme,
        "peak_phase": memory.peak_phase,
        "needed_bytes": plan.needed,
        "capacity_bytes": plan.capacity,
        "fits": plan.fits,
        "model_flops_per_token": speed.model_flops_per_token,
        "wire_bytes_per_step": speed.wire_bytes,
        "step_s": speed.step_s,
        "step_parts_s": speed.parts,
        "tokens_per_s": speed.tokens_per_s,
        "tokens_per_s_per_rank": speed.tokens_per_s_per_rank,
        "bound": speed.bound,
        "required_link_bytes_per_s": speed.required_link_bytes_per_s,
    }
    if arguments.price_per_hour is not None:
        hours = 1e9 / speed.tokens_per_s / 3600
        record["cost_per_billion_tokens"] = arguments.price_per_hour * setup.world_size * hours
    return record


if __name__ == "__main__":
    run_command(main)
