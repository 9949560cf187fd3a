"""What a rehearsal found, as the JSON object that the package's docstring describes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from lm_scale.engines.rehearsal.rehearse import Rehearsal
from lm_scale.engines.rehearsal.timeline import Fullest, Item, Phase
from lm_scale.strategy.load import get

_PHASES = ("init", "forward", "backward", "step")


def findings(rehearsal: Rehearsal, limit_bytes: int | None) -> dict[str, Any]:
    """The whole object; what a rehearsal that ran out of memory did not reach is None."""
    launch = rehearsal.launch
    strategy, process = launch.strategy, launch.process
    fullest = rehearsal.timeline.fullest()
    last = max(step for step, _ in fullest)
    peak_phase, peak = max(fullest.items(), key=lambda found: found[1].peak_device_bytes)
    held = [*rehearsal.timeline.held().items(), *_on_nvme(rehearsal)]
    done = rehearsal.done
    on_device = rehearsal.device.type != "cpu"
    return {
        "world_size": process.world_size,
        "rank": process.rank,
        "data_parallel": strategy.batch.data_parallel,
        "micro_batch": strategy.batch.micro_batch,
        "grad_accum": strategy.batch.grad_accum,
        "seq_len": launch.arguments.seq_len,
        "steps": rehearsal.step,
        "model": launch.source.name,
        "params": rehearsal.engine.params if done else None,
        "vocab_size": rehearsal.vocab_size,
        "strategy": strategy.name,
        "zero_stage": strategy.zero_stage,
        "offload": strategy.offload,
        "precision": strategy.precision,
        "method": "computed" if rehearsal.touch else "untouched",
        "device": torch.cuda.get_device_name(rehearsal.device) if on_device else "cpu",
        "state_bytes": rehearsal.engine.state_bytes() if done else None,
        "held": _listed(held) if done else None,
        "phases": _phases(rehearsal, fullest, last) if done else None,
        "first_step": _phases(rehearsal, fullest, 1) if done else None,
        "peak_phase": peak_phase[1],
        "peak_device_bytes": peak.peak_device_bytes,
        "peak_host_bytes": max(found.peak_host_bytes for found in fullest.values()),
        "peak_process_bytes": rehearsal.host.peak_bytes,
        "nvme_bytes": sum(count for item, count in held if item.where == "nvme"),
        "wire_bytes_per_step": rehearsal.sent[-1] if done else None,
        "wire_bytes_first_step": rehearsal.sent[1] if done else None,
        "wire_bytes_init": rehearsal.sent[0] if rehearsal.sent else None,
        "out_of_memory": _out_of_memory(rehearsal, limit_bytes),
        "skipped_steps": rehearsal.skipped_steps,
        "notes": _notes(rehearsal),
    }


def _phases(rehearsal: Rehearsal, fullest: dict[Phase, Fullest], step: int) -> dict[str, Any]:
    phases = {}
    for name in _PHASES:
        phase = (0 if name == "init" else step, name)
        if phase in fullest and (name != "init" or step > 1):
            found = fullest[phase]
            phases[name] = {
                "end_bytes": found.end_bytes,
                "peak_bytes": found.peak_bytes,
                "peak_device_bytes": found.peak_device_bytes,
                "peak_host_bytes": found.peak_host_bytes,
                "items": _listed(found.items.items()),
                **rehearsal.device_peaks.get(phase, {}),
            }
    return phases


def _out_of_memory(rehearsal: Rehearsal, limit_bytes: int | None) -> dict[str, Any] | None:
    """Where the device's own allocator, or else the sum of live tensors, went beyond the limit."""
    if limit_bytes is None:
        return None
    if rehearsal.failed_in is not None:
        step, name = rehearsal.failed_in
        items = rehearsal.timeline.held()
    else:
        above = rehearsal.timeline.first_above(limit_bytes)
        if above is None:
            return None
        (step, name), items = above
    total = sum(count for item, count in items.items() if item.where == "device")
    return {"phase": name, "step": step, "bytes": total, "limit_bytes": limit_bytes, "items": _listed(items.items())}


def _listed(items: Iterable[tuple[Item, int]]) -> list[dict[str, Any]]:
    found: Counter[Item] = Counter()
    for item, count in items:
        found[item] += count
    return [{"item": item.name, "where": item.where, "bytes": count} for item, count in found.most_common() if count]


def _on_nvme(rehearsal: Rehearsal) -> list[tuple[Item, int]]:
    """DeepSpeed's swap files of this rank, by its names of their folders (`runtime/swap_tensor/`)."""
    found = []
    kinds = (("offload_optimizer", "optimizer_states", "optimizer"), ("offload_param", "parameters", "*params"))
    for block, name, kind in kinds:
        block = f"zero_optimization.{block}"
        document = rehearsal.launch.strategy.document
        if get(document, f"{block}.device") == "nvme":
            files = Path(get(document, f"{block}.nvme_path")).rglob(f"{kind}/rank{rehearsal.launch.process.rank}/*")
            stats = [file.stat() for file in files if file.is_file()]
            own = sum(stat.st_size for stat in stats if stat.st_mtime >= rehearsal.started)  # others' may lie about
            found.append((Item(name, "nvme"), own))
    return found


def _notes(rehearsal: Rehearsal) -> list[str]:
    notes = [note for made in rehearsal.made for note in made.notes]
    strategy = rehearsal.launch.strategy
    if rehearsal.device.type == "cpu":
        notes.append("on a CPU: no bytes of the device's context, of its allocator's gaps and of kernels' workspaces")
        if rehearsal.made and rehearsal.made[0].module.mode == "chunked":
            notes.append("on a CPU the loss takes the logits in a CPU's chunks, which are smaller than a GPU's")
        if strategy.offload != "none":
            notes.append("on a CPU host and device are one memory: copies on the way between them are not made")
    if rehearsal.compile_left_out:
        notes.append("torch_compile is left out: the peak is that of eager execution")
    return notes
