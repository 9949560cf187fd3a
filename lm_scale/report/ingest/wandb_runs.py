"""What a W&B run says, whether read from its folder or from W&B's servers -> a row, its points, its evaluations.

Who logged is told by the names: this project's mirror (`step/loss`, its header as config), Hugging Face's Trainer
(`train/global_step`, TrainingArguments as config; `wandb_trainer`), or a script of any kind, of which only names that
can mean one thing are read. What W&B samples of the machine (`system.gpu.0.memoryAllocatedBytes`, ...) is what the
driver sees of all processes every few seconds, no peak of the run's allocator: it fills no key.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lm_scale import records
from lm_scale.report import rates
from lm_scale.report.ingest import Reading, settings, wandb_trainer
from lm_scale.report.ingest import lm_scale as own_runs
from lm_scale.report.ingest.wandb_values import Recorded, finite, log_incomplete, number
from lm_scale.report.rates import Eval, Step
from lm_scale.report.rows import Row

STEP_NAMES = ("global_step", "trainer/global_step", "train/global_step", "train/step", "step", "iter")
LOSS_NAMES = ("train/loss", "train_loss", "loss")
EVAL_NAMES = ("eval/loss", "eval_loss", "val/loss", "val_loss", "validation/loss", "validation_loss")
RATE_NAMES = ("learning_rate", "lr", "train/learning_rate", "train/lr")
NORM_NAMES = ("grad_norm", "train/grad_norm")
"""The names that scripts give these; one that logs two of a kind leaves open which is meant."""

STATED = ("micro_batch", "grad_accum", "learning_rate", "lr_schedule", "seed", "seq_len", "precision", "torch_compile")
"""What a script's config says where it uses the names of Hugging Face's arguments."""

HEADER_SECTIONS = ("layout", "batch", "numerics", "strategy")
"""Sections of this project's run header, which its mirror gives W&B as the config."""


def reading(run: Recorded) -> Reading:
    """The row of `run` and its series.

    Raises:
        ValueError: the config is a run header of this project in which a value is of a wrong type.
    """
    if all(isinstance(run.config.get(section), dict) for section in HEADER_SECTIONS):
        return _mirrored(run)
    row = Row(name=run.name, source=run.source)
    if wandb_trainer.recognises(run.config, run.summary, run.history):
        found = wandb_trainer.read(row, run.config, run.summary, run.history, run.whole)
        failed = run.status is not None and run.status != "completed"
        row.status = run.status if failed else row.status  # W&B's "finished" is a process that ended, not its plan
    else:
        found = _any_script(row, run)
        row.status = run.status
    row.last_error = run.last_error
    _describe(row, run)
    output_dir = run.config.get("output_dir")
    found.wandb_id, found.output_dir = run.run_id, output_dir if isinstance(output_dir, str) else None
    return found


def _describe(row: Row, run: Recorded) -> None:
    """What W&B itself knows of a run: who, where and when."""
    row.path, row.owner, row.wandb_url, row.host = run.path, run.owner, run.url, row.host or run.host
    if run.started_at is not None:
        row.started_at = row.started_at or run.started_at.isoformat(timespec="milliseconds")
        stamps = [stamp for line in run.history if (stamp := number(line.get("_timestamp"))) is not None]
        last = max([run.started_at.timestamp() + (run.runtime_s or 0.0), *stamps[-1:]])
        row.last_record_at = _iso(last)
        row.finished_at = row.finished_at or (row.last_record_at if run.whole else None)
    if row.device is None:
        row.device, row.device_memory_bytes = _device(run)


def _iso(timestamp: float) -> str:
    return datetime.datetime.fromtimestamp(timestamp, datetime.UTC).isoformat(timespec="milliseconds")


def _device(run: Recorded) -> tuple[str | None, int | None]:
    """Name and bytes of the machine's GPUs where all are alike, whichever of them the run used."""
    if run.config.get("use_cpu") is True or run.config.get("no_cuda") is True:
        return "cpu", None
    listed = run.metadata.get("gpu_nvidia") or run.metadata.get("gpuNvidia")
    cards = [card for card in listed if isinstance(card, Mapping)] if isinstance(listed, list) else []
    names = {card.get("name") for card in cards} or {run.metadata.get("gpu")}
    sizes = {settings.whole(card.get("memoryTotal") or card.get("memory_total")) for card in cards}
    name = names.pop() if len(names) == 1 else None
    return name if isinstance(name, str) and name else None, sizes.pop() if name and len(sizes) == 1 else None


def _mirrored(run: Recorded) -> Reading:
    """This project's own record, as its mirror repeated it: read as the run directory is."""
    lines: dict[str, list[dict[str, Any]]] = {"step": [], "eval": []}
    for line in run.history:
        for kind, found in lines.items():
            values = {key.removeprefix(f"{kind}/"): value for key, value in line.items() if key.startswith(f"{kind}/")}
            if values:
                found.append({**values, "step": line.get("_step")})
    header = {**run.config, "name": run.name, "status": "completed"}
    own = own_runs.reading(records.Run(Path(run.path), header, lines if run.whole else {}))
    row, steps, evals = own.row, own.steps, own.evals
    row.source, row.status, row.last_error = run.source, _mirrored_status(run, row), None
    if not run.whole:
        shown = own_runs.reading(records.Run(Path(run.path), header, lines))
        steps, evals = shown.steps, shown.evals
        row.steps = row.skipped_steps = row.samples_seen = row.tokens_seen = None
        row.flags = []
        log_incomplete(row, steps[-1].step if steps else None)
    elif steps and steps[0].step > 1:  # a resumed run: what was before is in another run of W&B's
        row.steps = max((step.step for step in steps if not step.skipped), default=None)
        row.steps_per_s = rates.ratio(row.steps, row.runtime_s)
        row.samples_seen = row.tokens_seen = row.skipped_steps = row.samples_per_s = row.train_loss = None
    if row.precision == "fp16":
        # A skipped attempt has the number of the step that follows it, and W&B keeps one row a number.
        row.skipped_steps = row.tokens_per_s = row.tokens_per_s_per_rank = row.useful_tokens_per_s = None
        row.model_flops_per_s = row.mfu = None
    _describe(row, run)
    return Reading(row, steps, evals, wandb_id=run.run_id)


def _mirrored_status(run: Recorded, row: Row) -> str | None:
    """The mirror ends with code 0 for `completed` and for `budget`, and with 1 for everything else."""
    if run.status != "completed":
        return "diverged" if any(flag["code"] == "loss_not_finite" for flag in row.flags) else None
    if row.planned_steps is not None and row.steps == row.planned_steps:
        return "completed"
    schedule = run.config.get("schedule")
    return "budget" if isinstance(schedule, dict) and schedule.get("budget_s") is not None else "completed"


def _any_script(row: Row, run: Recorded) -> Reading:
    """A script's run: the settings it names in the field's own words, and its losses where they say their step."""
    config = run.config
    stated = settings.from_training_arguments(config)
    for key in STATED:
        setattr(row, key, stated.get(key))
    row.learning_rate = row.learning_rate or settings.number(config.get("lr"))
    row.world_size = settings.whole(config.get("world_size"))
    for key in ("model", "dataset"):
        value = config.get(key) or config.get(f"{key}_name")
        setattr(row, key, value if isinstance(value, str) else None)
    step, loss, held_out = (_only(run.history, names) for names in (STEP_NAMES, LOSS_NAMES, EVAL_NAMES))
    if step is None and run.own_steps:
        step = "_step"
    rate, norm = _only(run.history, RATE_NAMES), _only(run.history, NORM_NAMES)
    steps: list[Step] = []
    evals: list[Eval] = []
    for line in run.history:
        at = settings.whole(line.get(step), least=0) if step else None
        if at is None:
            continue
        if loss in line:
            shown = [number(line.get(name)) if name else None for name in (loss, norm, rate)]
            steps.append(Step(at, loss=shown[0], grad_norm=shown[1], learning_rate=shown[2]))
        if held_out in line:
            evals.append(Eval(at, number(line.get(held_out))))
    if not run.whole:
        log_incomplete(row, steps[-1].step if steps else None)
        return Reading(row, steps, evals)
    row.train_loss = finite(rates.train_loss(steps))
    row.grad_norm = finite(steps[-1].grad_norm) if steps else None
    if evals and (not steps or evals[-1].step == max(max(s.step for s in steps), evals[-1].step or 0)):
        evals[-1].final = True
        row.eval_loss = finite(evals[-1].loss)
    if broken := rates.not_finite(steps):
        row.flag("loss_not_finite", f"the loss was {broken.loss} at step {broken.step}")
    return Reading(row, steps, evals)


def _only(history: list[dict[str, Any]], names: tuple[str, ...]) -> str | None:
    """The one of `names` that was logged as a number; None where none was, or several."""
    logged = {name for name in names if any(number(line.get(name)) is not None for line in history)}
    return logged.pop() if len(logged) == 1 else None
