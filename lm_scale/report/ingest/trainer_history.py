"""The course of a training as a Trainer's folder tells it: how far it came, whether it ended there, what it logged.

`trainer_state.json` holds the history; `all_results.json`, `train_results.json` and `eval_results.json` are what the
script saved of its metrics.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lm_scale.report import rates
from lm_scale.report.ingest import UnreadableError, settings
from lm_scale.report.rates import Eval, Step

RESULTS = ("all_results.json", "train_results.json")


@dataclass
class Course:
    """What the folder says of the course of the training.

    `summary` holds the metrics of its end, if it is shown; `ended`: it is known that no step followed `steps`.
    `eval_seconds` are those of the evaluations on the way, None where one of them may be missing.
    """

    steps: int | None = None
    planned_steps: int | None = None
    epoch: float | None = None
    ended: bool = False
    summary: dict[str, Any] = field(default_factory=dict)
    final_eval_loss: float | None = None
    points: list[Step] = field(default_factory=list)
    evals: list[Eval] = field(default_factory=list)
    eval_seconds: float | None = None
    logging_steps: int | None = None


def json_object(path: Path) -> dict[str, Any]:
    """The JSON object in `path`. A key that stands twice is the trace of lost lines: two objects became one.

    Raises:
        UnreadableError: it is none.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) < len(pairs):
            raise ValueError("a key stands twice")
        return dict(pairs)

    try:
        value = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=once)
    except OSError as error:
        raise UnreadableError(f"{path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UnreadableError(f"{path}: damaged: {error}") from None
    if not isinstance(value, dict):
        raise UnreadableError(f"{path}: damaged: no JSON object")
    return value


def course(state: dict[str, Any]) -> Course:
    """The course that a `trainer_state.json` holds. A key that is missing or of a wrong type is not known."""
    found = Course(
        steps=settings.whole(state.get("global_step"), least=0),
        planned_steps=settings.whole(state.get("max_steps")),
        epoch=number(state.get("epoch")),
        logging_steps=settings.whole(state.get("logging_steps")),
    )
    on_the_way: list[float | None] = []
    for entry in entries(state):
        _add_entry(found, entry)
        if "eval_loss" in entry and not found.summary:
            on_the_way.append(number(entry.get("eval_runtime")))
    every = settings.whole(state.get("eval_steps"))
    if found.steps is not None and every and len(on_the_way) == found.steps // every:
        found.eval_seconds = rates.total(on_the_way)
    control = state.get("stateful_callbacks")
    for key in ("TrainerControl", "args", "should_training_stop"):
        control = control.get(key) if isinstance(control, dict) else None
    reached = found.steps is not None and found.steps == found.planned_steps
    found.ended = found.steps is not None and (bool(found.summary) or reached or control is True)
    return found


def entries(state: dict[str, Any]) -> list[dict[str, Any]]:
    """The entries of the log history that are of one kind; what lost lines have merged is of several."""
    history = state.get("log_history")
    return [
        entry
        for entry in (history if isinstance(history, list) else [])
        if isinstance(entry, dict) and sum(key in entry for key in ("loss", "eval_loss", "train_loss")) == 1
    ]


def _add_entry(found: Course, entry: dict[str, Any]) -> None:
    """One entry of the history: the mean loss since the entry before, an evaluation, or the metrics at the end.

    A `train_runtime` alone is no end: with `include_num_input_tokens_seen` every entry has it.
    """
    step = settings.whole(entry.get("step"), least=0)
    elapsed_s = number(entry.get("train_runtime"))
    if step is None:
        return
    if "train_loss" in entry:
        if step == found.steps and elapsed_s:
            found.summary = entry
    elif "eval_loss" in entry:
        found.evals.append(Eval(step, number(entry["eval_loss"]), elapsed_s))
        if step == found.steps:
            found.final_eval_loss = number(entry["eval_loss"])
    else:
        loss = entry["loss"] if isinstance(entry["loss"], float) else number(entry["loss"])  # keeps nan: it diverged
        norm, learning_rate = number(entry.get("grad_norm")), number(entry.get("learning_rate"))
        found.points.append(Step(step, elapsed_s, loss=loss, grad_norm=norm, learning_rate=learning_rate))


def add_results(found: Course, path: Path, has_state: bool) -> None:
    """What the folder's metrics files say, if they are of this training: of the same epoch, to the last digit.

    Beside a state that does not say its step nothing shows whether they are of the whole training.
    """
    if has_state and found.steps is None:
        return
    for name in (*RESULTS, "eval_results.json"):
        try:
            results = json_object(path / name) if (path / name).is_file() else {}
        except UnreadableError:
            continue
        epoch = number(results.get("epoch"))
        if has_state and (epoch is None or epoch != found.epoch):
            continue
        if not found.summary and number(results.get("train_runtime")) and "train_loss" in results:
            found.summary, found.epoch, found.ended = results, epoch, True
        if found.ended and epoch is not None and epoch == found.epoch and "eval_loss" in results:
            found.final_eval_loss = number(results["eval_loss"])
            last = found.evals[-1] if found.evals else None
            if last is None or (last.step, last.loss) != (found.steps, found.final_eval_loss):
                found.evals.append(Eval(found.steps, found.final_eval_loss))


def number(value: Any) -> float | None:
    """A finite number; null and what is none are not known."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)
