"""What Hugging Face's Trainer logs to W&B: TrainingArguments as config, `train/...` and `eval/...` rows, and at the end
`train_runtime`, `train_loss` and rates in the summary alone.

The rates may be what was *planned* over the time that was run (transformers' `speed_metrics`): what was completed is
`train/global_step`, and the quotient of the two is the global batch.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from lm_scale.report.derive import derive
from lm_scale.report.ingest import Reading, settings
from lm_scale.report.ingest.epochs import TOLERANCE, completed_samples
from lm_scale.report.ingest.settings import SEQUENCE_LENGTHS, whole
from lm_scale.report.ingest.wandb_values import finite, log_incomplete, number
from lm_scale.report.rates import Eval, Step, not_finite
from lm_scale.report.rows import Row

Values = Mapping[str, Any]
STEP = "train/global_step"
RESULTS = ("train_runtime", "train_samples_per_second", "train_steps_per_second", "train_loss")
"""Of the end of training; older versions of transformers log them as rows, named `train/train_runtime`, ..."""
ROUNDING = 0.00051
"""`speed_metrics` rounds a rate to three decimals."""


def recognises(config: Values, summary: Values, history: Sequence[Values]) -> bool:
    """Whether the Trainer's callback logged this run."""
    named = STEP in summary or any(STEP in line for line in history)
    return named or {"per_device_train_batch_size", "lr_scheduler_type", "logging_steps"} <= config.keys()


def read(row: Row, config: Values, summary: Values, history: Sequence[Values], whole_run: bool) -> Reading:
    """Fill `row`, and give the logged points. The totals are filled only where the training is known to have ended:
    its `train_runtime` is there, and so is all that was logged before it."""
    _state(row, config)
    summary = {**{name: summary.get(f"train/{name}") for name in RESULTS}, **summary}
    lines = [line for line in history if whole(line.get(STEP), least=0) is not None]
    end = _end(lines)
    runtime = number(summary.get("train_runtime"))
    # With `include_num_input_tokens_seen` every row comes with a runtime; the loss comes at the end alone.
    ended = (
        runtime is not None and summary.get("train_loss") is not None and (whole_run or not history or end is not None)
    )
    steps, evals = _points(lines, lines[end] if ended and end is not None else None, runtime)
    back = next((b.step for a, b in itertools.pairwise(steps) if b.step < a.step), None)
    if back is not None:
        row.flag("several_runs", f"the steps begin again at {back}: several trainings in one W&B run")
        return Reading(row, [], [])
    if broken := not_finite(steps):
        row.flag("loss_not_finite", f"the loss was {broken.loss} at step {broken.step}")
    if not ended or runtime is None:
        log_incomplete(row, max((line[STEP] for line in lines), default=None))
        return Reading(row, steps, evals)
    _total(row, config, summary, lines, steps)
    _evaluations(row, config, summary, evals, [line for line in lines[:end] if "eval/loss" in line])
    row.grad_norm = finite(steps[-1].grad_norm) if steps else finite(number(summary.get("train/grad_norm")))
    derive(row)
    return Reading(row, steps, evals)


def _state(row: Row, config: Values) -> None:
    """What the arguments state. The model's config stands among them, and its lengths are not the samples'."""
    stated = settings.from_training_arguments({k: v for k, v in config.items() if k not in SEQUENCE_LENGTHS})
    if config.get("auto_find_batch_size") is True:
        stated.pop("micro_batch", None)
    for key, value in stated.items():
        setattr(row, key, value)
    row.params = whole(config.get("model/num_parameters"))


def _end(lines: Sequence[Values]) -> int | None:
    """The index of the row that goes with `train_runtime`: it has the step and the epoch, and no value of its own."""
    for index in range(len(lines) - 1, -1, -1):
        names = {name for name in lines[index] if not name.startswith("_")}
        if (
            names <= {STEP, "train/epoch", "train/num_input_tokens_seen", "train/train_tokens_per_second"}
            or "train/train_runtime" in names
        ):
            return index
    return None


def _points(lines: Sequence[Values], end: Values | None, runtime: float | None) -> tuple[list[Step], list[Eval]]:
    """The logged losses and evaluations; their times count back from the end, whose distance to the start is known."""
    last = number(end.get("_timestamp")) if end is not None else None
    start = last - runtime if last is not None and runtime is not None else None
    steps: list[Step] = []
    evals: list[Eval] = []
    for line in lines:
        at, stamp = whole(line[STEP], least=0), number(line.get("_timestamp"))
        assert at is not None
        elapsed = stamp - start if stamp is not None and start is not None else None
        if "train/loss" in line:
            loss, norm, rate = (number(line.get(f"train/{name}")) for name in ("loss", "grad_norm", "learning_rate"))
            steps.append(Step(at, elapsed, loss=loss, grad_norm=norm, learning_rate=rate))
        if "eval/loss" in line:
            evals.append(Eval(at, number(line["eval/loss"]), elapsed))
    return steps, evals


def _plan(row: Row, config: Values, summary: Values, runtime: float, done: int) -> int | None:
    """Fill the planned steps; the step at which the run was resumed (0 if it was not, None if that is open).

    Trainer's steps a second times its runtime are the steps that it counted: all that were planned, or (transformers
    5.23) those that this process did.
    """
    rate, epoch, epochs = (
        number(values.get(name))
        for values, name in (
            (summary, "train_steps_per_second"),
            (summary, "train/epoch"),
            (config, "num_train_epochs"),
        )
    )
    counted = _between((rate - ROUNDING) * runtime, (rate + ROUNDING) * runtime) if rate is not None else range(0)
    if row.planned_steps is None and epochs and epoch:
        row.planned_steps = _planned(done / epoch, epochs, config, counted if done not in counted else range(0))
    if not counted:
        return None
    if done in counted:
        return 0
    if row.planned_steps in counted or counted.start > done:
        message = f"{rate:g} steps/s in the source count planned steps ({row.planned_steps or 'all'}); {done} were done"
        row.flag("planned_not_completed", message)
        return None
    return done - counted.start


def _planned(per_epoch: float, epochs: float, config: Values, counted: range) -> int | None:
    """The steps of `epochs`. An epoch's last, partial step counts in transformers 5, and does not in older versions;
    `counted` are the possible plans that the source's rate leaves, if it counts planned steps."""
    version = str(config.get("transformers_version")).partition(".")[0]
    up, down = math.ceil(per_epoch - TOLERANCE), math.floor(per_epoch + TOLERANCE)
    kinds = {up} if version.isdecimal() and int(version) >= 5 else {up, down}
    possible = {math.ceil(epochs * steps - TOLERANCE) for steps in kinds}
    if counted:
        possible = {steps for steps in possible if steps in counted}
    return possible.pop() if len(possible) == 1 else None


def _ranks(row: Row, config: Values, summary: Values) -> None:
    """The data-parallel ranks, where Trainer's samples over its steps and the arguments leave one number possible."""
    steps_rate, samples_rate = (number(summary.get(f"train_{kind}_per_second")) for kind in ("steps", "samples"))
    if not steps_rate or steps_rate <= ROUNDING or not samples_rate or not row.micro_batch or not row.grad_accum:
        return
    # With a plan in epochs the samples are the data set's, and an epoch's last batch may be smaller.
    epochs, slack = number(config.get("num_train_epochs")), 0.0
    if whole(config.get("max_steps")) is None:
        slack = epochs / row.planned_steps if epochs and row.planned_steps else 1.0
    batch = row.micro_batch * row.grad_accum
    lower = (samples_rate - ROUNDING) / (steps_rate + ROUNDING) / (1 + slack)
    upper = (samples_rate + ROUNDING) / (steps_rate - ROUNDING) * (1 + slack)
    ranks = _between(lower / batch, upper / batch)
    if len(ranks) == 1 and ranks[0] > 0:
        row.data_parallel = ranks[0]
        if not config.get("parallelism_config") and not _model_parallel(config.get("deepspeed")):
            row.world_size = ranks[0]
    if row.engine == "torch" and row.strategy is None and row.world_size is not None:
        row.strategy = "single" if row.world_size == 1 else "ddp"


def _between(lower: float, upper: float) -> range:
    """The whole numbers from `lower` to `upper`."""
    return range(math.ceil(lower), math.floor(upper) + 1)


def _model_parallel(deepspeed: Any) -> bool:
    blocks = ("tensor_parallel", "sequence_parallel_size", "autotp_size", "pipeline")
    return isinstance(deepspeed, Mapping) and any(deepspeed.get(block) for block in blocks)


def _late(config: Values, steps: Sequence[Step]) -> bool:
    """Whether the first logged step is too late to be the training's first."""
    every = number(config.get("logging_steps"))
    return bool(steps and config.get("logging_strategy") == "steps" and every and 1 <= every < steps[0].step)


def _total(row: Row, config: Values, summary: Values, lines: Sequence[Values], steps: Sequence[Step]) -> None:
    """What was done, over the runtime. A resumed run has the steps of all its processes and the time of its last."""
    done, runtime = whole((lines[-1] if lines else summary).get(STEP), least=0), number(summary.get("train_runtime"))
    if done is None or runtime is None:
        return
    resumed_at = _plan(row, config, summary, runtime, done)
    _ranks(row, config, summary)
    row.steps = done
    if row.planned_steps is not None and done >= row.planned_steps:
        row.status = "completed"
    derive(row)
    row.samples_seen = _samples(row, config, summary, lines, runtime)
    if resumed_at or _late(config, steps):
        at = f"at about step {resumed_at}" if resumed_at else f"before step {steps[0].step}"
        row.flag("resumed", f"resumed {at}: the source's runtime is of the steps since then alone")
        return
    row.runtime_s = runtime
    row.train_loss = finite(number(summary.get("train_loss")))
    if row.train_loss is not None:
        row.flag("train_loss_whole_run", f"the mean of all {done} steps")


def _samples(row: Row, config: Values, summary: Values, lines: Sequence[Values], runtime: float) -> int | None:
    """Samples of the completed steps, less what an epoch's last batch is short of where that is known."""
    rate, epochs = number(summary.get("train_samples_per_second")), number(config.get("num_train_epochs"))
    size = None
    if rate and epochs and whole(config.get("max_steps")) is None and row.steps == row.planned_steps:
        size = rate * runtime / epochs, (ROUNDING * runtime + 0.0001 * rate) / epochs
    history = [{"step": line[STEP], "epoch": line.get("train/epoch")} for line in lines]
    return completed_samples(row, number(summary.get("train/epoch")), history, size)


def _evaluations(row: Row, config: Values, summary: Values, evals: list[Eval], inside: Sequence[Values]) -> None:
    """The evaluation of the trained model, and the time of those that stand before the end of training."""
    reloaded = config.get("load_best_model_at_end") is True and len(inside) == len(evals)
    done = row.steps
    if evals and done is not None and evals[-1].step == done and not reloaded:
        evals[-1].final = True
        row.eval_loss = finite(evals[-1].loss)
    every = whole(config.get("eval_steps"))
    by_steps = config.get("eval_strategy", config.get("evaluation_strategy")) == "steps"
    if (
        not evals
        and by_steps
        and config.get("load_best_model_at_end") is False
        and every
        and done
        and done % every == 0
    ):
        row.eval_loss = finite(number(summary.get("eval/loss")))
    spent = [seconds for line in inside if (seconds := number(line.get("eval/runtime"))) is not None]
    if spent and row.runtime_s is not None:
        row.flag("evaluation_in_runtime", f"{len(spent)} evaluations took {sum(spent):.1f} of {row.runtime_s:.1f} s")
