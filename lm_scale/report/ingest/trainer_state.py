"""Rows from an output folder of Hugging Face's Trainer: its state, its metrics files and its checkpoints are one run.

What it computes and where it goes wrong: transformers 5.23, trainer.py `_finalize_training` and `log`, trainer_utils.py
`speed_metrics`. Earlier versions divide the planned work by the runtime, whatever was done of it.
"""

from __future__ import annotations

import re
from pathlib import Path

from lm_scale.report import rates
from lm_scale.report.derive import derive
from lm_scale.report.ingest import Reading, UnreadableError, epochs, settings, trainer_history, trainer_settings
from lm_scale.report.ingest.trainer_history import Course, number
from lm_scale.report.rows import Row

STATE = "trainer_state.json"
CHECKPOINT = re.compile(r"checkpoint-(\d+)")
PARTS = frozenset((".json", ".safetensors", ".bin", ".pt", ".pth", ".model", ".jinja", ".md"))
BATCH_KEYS = (
    *("world_size", "pipeline_stages", "tensor_parallel", "data_parallel"),
    *("micro_batch", "grad_accum", "global_batch"),
)


def recognises(path: Path) -> bool:
    """A folder with a Trainer's state, in itself or in a checkpoint, or with the metrics of a training."""
    return any((path / name).is_file() for name in (STATE, *trainer_history.RESULTS)) or bool(_checkpoints(path))


def is_part(path: Path) -> bool:
    """Whether something in an output folder is what Trainer and the model's files are made of, and no run or log."""
    return bool(CHECKPOINT.fullmatch(path.name)) or path.suffix in PARTS


def read(path: Path) -> list[Reading]:
    """The one run of an output folder, or of a single checkpoint.

    Without a state in the folder itself the last checkpoint's is taken. Metrics files that are damaged, or are of
    another training than the state, say nothing.

    Raises:
        UnreadableError: the state is damaged, or the folder holds none and no metrics of a training.
    """
    checkpoints = _checkpoints(path)
    folders = [path, *(folder for _, folder in checkpoints[-1:])]
    file = next((folder / STATE for folder in folders if (folder / STATE).is_file()), None)
    state = trainer_history.json_object(file) if file else {}
    course = trainer_history.course(state)
    trainer_history.add_results(course, path, has_state=file is not None)
    if not file and not course.summary:
        raise UnreadableError(f"{path}: neither a {STATE} nor the metrics of a training")
    values, disagreements, arguments = trainer_settings.from_folders(folders, state.get("train_batch_size"))
    row = Row(name=path.resolve().name, source="hf_trainer_state", path=str(path), **values)
    row.planned_steps = course.planned_steps or row.planned_steps
    for disagreement in disagreements:
        row.flag("source_disagrees", disagreement)
    _learning_rate(row, course)
    _totals(row, course, str(file.relative_to(path)) if file else path.name)
    if arguments.get("include_num_input_tokens_seen") in ("all", True) and row.steps is not None:
        row.tokens_seen = settings.whole(state.get("num_input_tokens_seen"))
    _global_batch(row, course)
    size = epochs.epoch_samples(row, course.summary, arguments)
    row.samples_seen = epochs.completed_samples(row, course.epoch, trainer_history.entries(state), size)
    _flag_samples(row)
    _runtime(row, course, bool(checkpoints))
    derive(row)
    _flag_doubts(row, course, checkpoints)
    output_dir = arguments.get("output_dir")
    return [Reading(row, course.points, course.evals, output_dir=output_dir if isinstance(output_dir, str) else None)]


def _checkpoints(path: Path) -> list[tuple[int, Path]]:
    """The step and the folder of each checkpoint that has a state, by its step."""
    named = [(CHECKPOINT.fullmatch(folder.name), folder) for folder in path.glob("checkpoint-*")]
    return sorted((int(match[1]), folder) for match, folder in named if match and (folder / STATE).is_file())


def _learning_rate(row: Row, course: Course) -> None:
    """The argument, unless higher rates were logged: a scheduler of the script's own ran, and the argument did not."""
    highest = max((point.learning_rate for point in course.points if point.learning_rate), default=0.0)
    if row.learning_rate is not None and highest > row.learning_rate * 1.001:
        stated = f"the argument says {row.learning_rate:g}, rates up to {highest:g} were logged"
        row.flag("source_disagrees", f"learning_rate: {stated}")
        row.learning_rate = row.lr_schedule = None


def _totals(row: Row, course: Course, source: str) -> None:
    """Steps and losses, which are known only where the end of the training is."""
    if not course.ended:
        shown = course.steps if course.steps is not None else max((point.step for point in course.points), default="?")
        of = f" of {row.planned_steps}" if row.planned_steps else ""
        row.flag("log_incomplete", f"{source} stops at step {shown}{of}")
        return
    row.steps = course.steps
    if row.steps is not None and row.steps == row.planned_steps:
        row.status = "completed"
    last = course.points[-1] if course.points else None
    if last and row.steps is not None and course.logging_steps and row.steps - last.step < course.logging_steps:
        row.grad_norm = last.grad_norm
    row.eval_loss = course.final_eval_loss
    if course.evals and row.eval_loss is not None:
        course.evals[-1].final = course.evals[-1].loss == row.eval_loss
    row.train_loss = number(course.summary.get("train_loss"))


def _global_batch(row: Row, course: Course) -> None:
    """The product of its parts, unless Trainer's own samples a step say that it is another."""
    parts = Row(name="", source="", **{key: getattr(row, key) for key in BATCH_KEYS})
    derive(parts)
    row.data_parallel, row.global_batch = parts.data_parallel, parts.global_batch
    samples, steps = (number(course.summary.get(f"train_{what}_per_second")) for what in ("samples", "steps"))
    shown = rates.ratio(samples, steps)
    if row.global_batch and shown and not 1 / 1.5 < shown / row.global_batch < 1.5:
        row.flag("source_disagrees", f"global_batch: {row.global_batch} by its parts, {shown:.1f} by Trainer's rates")
        row.global_batch = None


def _flag_samples(row: Row) -> None:
    """Steps whose samples are not the batch's: the flag also keeps them from being multiplied."""
    if row.steps is None or row.global_batch is None or row.samples_seen == row.steps * row.global_batch:
        return
    samples = "an unknown number of" if row.samples_seen is None else row.samples_seen
    row.flag(
        "samples_contradict",
        f"{samples} samples, not {row.steps} steps of {row.global_batch}: an epoch's last step may be smaller",
    )


def _runtime(row: Row, course: Course, saved: bool) -> None:
    """The runtime, and the rates that count what was done in it.

    Trainer's steps a second times its runtime give the steps that it counted: those planned, those done, or, of a run
    that was resumed, those since then. Its runtime is then no whole training time.
    """
    runtime_s = number(course.summary.get("train_runtime"))
    rate = number(course.summary.get("train_steps_per_second"))
    if not runtime_s:
        return
    counted = None if rate is None else rate * runtime_s
    error = 0.0005 * runtime_s + 0.0001 * (rate or 0.0)  # of the digits that Trainer keeps
    if counted is not None and row.steps is not None and rate and counted < row.steps - error:
        row.flag("resumed", f"train_runtime covers the last {counted:.0f} of {row.steps} steps")
        row.flag("no_step_times", f"step time and rates are {counted:.0f} steps over {runtime_s:.4g} s of runtime")
        row.train_loss = None  # the mean of these steps, or in old versions less than that
        row.steps_per_s, row.step_s = rate, 1 / rate
        row.samples_per_s = rate * row.global_batch if row.global_batch else None
        return
    row.runtime_s = runtime_s
    on_the_way = any(evaluation.step and not evaluation.final for evaluation in course.evals)
    if course.eval_seconds and row.steps:
        row.step_s = (runtime_s - course.eval_seconds) / row.steps
        where = f"{course.eval_seconds:.3g} s of evaluation are in the runtime, not in step time"
        row.flag("evaluation_in_runtime", f"{where}; saving is in both" if saved else where)
    elif on_the_way or saved:
        row.flag("evaluation_in_runtime", "evaluation or saving on the way is in the runtime and in step time")
    if counted is None or row.steps is None:
        return
    if abs(counted - row.steps) <= error:
        if row.samples_seen is None:
            row.samples_per_s = number(course.summary.get("train_samples_per_second"))
    elif row.planned_steps and abs(counted - row.planned_steps) <= error:
        done = f"{row.steps} of {row.planned_steps} steps were completed in {runtime_s:.4g} s"
        row.flag("planned_not_completed", f"Trainer says {rate:g} steps/s; {done}")
    else:
        row.flag("rate_contradicts_runtime", f"Trainer says {rate:g} steps/s; {row.steps} took {runtime_s:.4g} s")


def _flag_doubts(row: Row, course: Course, checkpoints: list[tuple[int, Path]]) -> None:
    """What the finished row must not hide."""
    if row.train_loss is not None:
        row.flag("train_loss_whole_run", "Trainer's train_loss is the mean over all its steps")
    if course.steps is not None and checkpoints and checkpoints[-1][0] > course.steps:
        row.flag("several_runs", f"{checkpoints[-1][1].name} is of another run than {STATE} at step {course.steps}")
    if broken := rates.not_finite(course.points):
        row.flag("loss_not_finite", f"the loss was {broken.loss} at step {broken.step}")
        row.status = "diverged"
