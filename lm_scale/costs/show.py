"""A plan as text: one quiet screen. Takes the object that `--format json` prints."""

from __future__ import annotations

from typing import Any

from lm_scale.costs.items import PHASES

Record = dict[str, Any]
_GIB, _MIB = 2**30, 2**20
_WIDTH = 27
_SHORT = {"+".join(PHASES[1:]): "training", "+".join(PHASES[1:4]): "passes"}
"""Phases in fewer words: every step, and its forward and backward passes."""


def plan_text(plan: Record) -> str:
    """One plan: what it is, its items, its peaks, its time, and the rehearsal beside it where there is one."""
    lines = [_title(plan), _batch(plan), ""]
    for where in ("device", "host", "nvme"):
        chosen = [one for one in plan["items"] if one["where"] == where]
        lines += [f"  {where:<{_WIDTH}}{'bytes':>11}  {'held in':<18} formula"] if chosen else []
        for one in sorted(chosen, key=lambda one: -one["bytes"]):
            phase = _SHORT.get(one["phase"], one["phase"])
            lines.append(f"  {one['name']:<{_WIDTH}}{human(one['bytes']):>11}  {phase:<18} {one['formula']}")
    lines += ["", *_peaks(plan), *_speed(plan)]
    if "rehearsal" in plan:
        lines += ["", *_rehearsal(plan)]
    return "\n".join(lines)


def all_text(plans: list[Record]) -> str:
    """A table of plans in their order, and one line that says why the first is first."""
    first = plans[0]
    head = f"{'strategy':<32}{'device':>11}{'host':>11}{'fits':>6}{'tokens/s':>12}{'step':>10}  bound"
    lines = [f"{first['model']}, {_machine(first)}", "", head]
    for one in plans:
        device = "-" if one["peak_device_bytes"] is None else human(one["needed_bytes"])
        fits = {True: "yes", False: "no", None: "?"}[one["fits"]]
        lines.append(
            f"{one['strategy']:<32}{device:>11}{human(one['peak_host_bytes']):>11}{fits:>6}"
            f"{one['tokens_per_s']:>12,.0f}{_seconds(one['step_s']):>10}  {one['bound']}"
        )
    return "\n".join([*lines, "", reason(plans)])


def reason(plans: list[Record]) -> str:
    """Why the first of several plans, ordered, is first."""
    first, *others = plans
    if first["fits"] is False:
        return f"none fits: {first['strategy']} comes nearest, {human(first['needed_bytes'])} of {_capacity(first)}"
    rivals = [one for one in others if one["fits"] is not False]
    refused = [one["strategy"] for one in others if one["fits"] is False]
    without = f" ({', '.join(refused)} {'does' if len(refused) == 1 else 'do'} not fit)" if refused else ""
    if not rivals:
        return f"{first['strategy']} alone fits{without}"
    second = rivals[0]
    gain = first["tokens_per_s"] / second["tokens_per_s"] - 1
    if gain < 0.005:
        return f"{first['strategy']} first: as fast as {second['strategy']} within half a percent{without}"
    parts = {name: second["step_parts_s"].get(name, 0) - first["step_parts_s"].get(name, 0) for name in (
        *second["step_parts_s"], *first["step_parts_s"])}  # fmt: skip
    cause = max(parts, key=lambda name: parts[name])
    return f"{first['strategy']} first: {gain:.0%} faster than {second['strategy']}, which loses it on {cause}{without}"


def human(size: float) -> str:
    """Bytes for a reader, in MiB or GiB."""
    return f"{size / _GIB:,.2f} GiB" if size >= 10 * _MIB * 10 else f"{size / _MIB:,.1f} MiB"


def _title(plan: Record) -> str:
    return f"{plan['strategy']}: {plan['model']}, {plan['params']:,} parameters, {_machine(plan)}"


def _machine(plan: Record) -> str:
    nodes = f" on {plan['nodes']} nodes" if plan["nodes"] > 1 else ""
    return f"{plan['world_size']} x {plan['device']}{nodes}"


def _batch(plan: Record) -> str:
    ranks = plan["global_batch"] // (plan["micro_batch"] * plan["grad_accum"])
    return (
        f"batch {plan['micro_batch']} x {plan['grad_accum']} x {ranks} = {plan['global_batch']} samples of "
        f"{plan['seq_len']} tokens, {plan['precision']}, vocabulary {plan['vocab_size']:,}"
    )


def _peaks(plan: Record) -> list[str]:
    verdict = {True: "fits", False: "does not fit", None: "unknown whether it fits"}[plan["fits"]]
    if plan["peak_device_bytes"] is None:
        peak = f"peak    {human(plan['peak_host_bytes'])} of host memory a rank, in {plan['peak_phase']}"
        return [f"{peak}; {_capacity(plan)} there: {verdict}"]
    peak = (
        f"peak    {human(plan['peak_device_bytes'])} allocated, in {plan['peak_phase']}; "
        f"{human(plan['peak_reserved_bytes'])} reserved; {human(plan['peak_process_bytes'])} in nvidia-smi"
    )
    lines = [peak, f"        needs {human(plan['needed_bytes'])} of {_capacity(plan)}: {verdict}"]
    if plan["peak_host_bytes"]:
        lines.append(f"host    {human(plan['peak_host_bytes'])} a rank")
    if plan["nvme_bytes"]:
        lines.append(f"nvme    {human(plan['nvme_bytes'])} a rank")
    return lines


def _capacity(plan: Record) -> str:
    return "an unknown amount" if plan["capacity_bytes"] is None else human(plan["capacity_bytes"])


def _speed(plan: Record) -> list[str]:
    step = plan["step_s"]
    parts = ", ".join(
        f"{name} {share / step:.0%}"
        for name, share in sorted(plan["step_parts_s"].items(), key=lambda part: -part[1])
        if share / step >= 0.005
    )
    flops = plan["model_flops_per_token"] * plan["tokens_per_s_per_rank"]
    lines = [
        f"step    {_seconds(step)}: {parts}; bound by {plan['bound']}",
        f"speed   {plan['tokens_per_s']:,.0f} tokens/s, {plan['tokens_per_s_per_rank']:,.0f} a rank, "
        f"{flops / 1e12:,.3g} TFLOP/s a rank of the model's own",
    ]
    if plan["wire_bytes_per_step"]:
        sent = ", ".join(f"{name} {human(size)}" for name, size in plan["wire_bytes_per_step"].items())
        lines.append(f"wire    a step and rank: {sent}")
    if plan["required_link_bytes_per_s"]:
        lines.append(f"        a link above {plan['required_link_bytes_per_s'] / 1e9:,.3g} GB/s would not matter")
    if "cost_per_billion_tokens" in plan:
        lines.append(f"cost    {plan['cost_per_billion_tokens']:,.2f} for a billion tokens")
    return lines


def _rehearsal(plan: Record) -> list[str]:
    """Phase by phase and collective by collective: the closed form, and DeepSpeed itself."""
    found = plan["rehearsal"]
    lines = [f"rehearsal of rank {found['rank']} of {found['world_size']} ({found['method']}, {found['device']})"]
    lines.append(f"  {'':<{_WIDTH}}{'planned':>12}{'rehearsed':>12}")
    for phase, size in planned_phases(plan).items():
        rehearsed = (found["phases"].get(phase) or {}).get("peak_bytes")
        lines.append(f"  {phase:<{_WIDTH}}{human(size):>12}{'-' if rehearsed is None else human(rehearsed):>12}")
    sent = found["wire_bytes_per_step"] or {}
    for name in sorted({*plan["wire_bytes_per_step"], *sent}):
        there = sent.get(name, {}).get("sent_bytes", 0)
        lines.append(f"  {name:<{_WIDTH}}{human(plan['wire_bytes_per_step'].get(name, 0)):>12}{human(there):>12}")
    return lines + [f"  note: {note}" for note in found["notes"]]


def planned_phases(plan: Record) -> dict[str, int]:
    """Bytes of tensors in each phase, device and host together, as the rehearsal counts them: one backward phase."""
    outside = ("context", "framework", "compiler", "heap", "model as built")
    held = [one for one in plan["items"] if one["where"] != "nvme" and one["name"] not in outside]
    phases = {
        phase: sum(one["bytes"] for one in held if one["phase"] == "all" or phase in one["phase"].split("+"))
        for phase in PHASES
    }
    phases["backward"] = max(phases["backward"], phases.pop("reduce"))
    return phases


def _seconds(value: float) -> str:
    return f"{value:,.1f} s" if value >= 100 else f"{value:.3g} s" if value >= 1 else f"{value * 1e3:.3g} ms"
