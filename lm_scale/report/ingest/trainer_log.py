"""Rows from the console logs of Hugging Face's Trainer (`hf_trainer_log`).

The Trainer's own rates divide the samples that were planned by the time that was run, and what was completed stands in
the last state of a progress bar. A log may be cut off anywhere or lack lines: the number of completed steps is taken
only where the log proves that no step followed, and what needs it stays unknown otherwise.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence

from lm_scale.report.derive import derive
from lm_scale.report.ingest import Reading, dumps, ending, trainer_course, trainer_events
from lm_scale.report.ingest.console import Console, moment
from lm_scale.report.ingest.ending import Failure
from lm_scale.report.ingest.settings import enumeration, number, whole
from lm_scale.report.ingest.trainer_course import Course
from lm_scale.report.ingest.trainer_events import event_kind, nested
from lm_scale.report.ingest.trainer_facts import Facts, facts
from lm_scale.report.rates import Eval, Step, ratio
from lm_scale.report.rows import Row

FAILURE_LINES = 300
"""How far a failure may stand before the last sign of progress: other ranks print theirs while rank 0 goes on."""
PLATEAU = 3
"""As many logged points with the highest rate in a row show that it was the schedule's highest."""
TIME_IS_UP = re.compile(r"time[ _-]?(?:out|limit|budget)|тайм-?аут|zeitlimit|límite de tiempo|délai", re.IGNORECASE)
NUMBER = re.compile(r"(?<![\d:.,-])\d+(?:\.\d+)?(?![\d:.,-])")
ARGUMENT = re.compile(r"^(?:\[\w+\]: ?)?per_device_train_batch_size=\d+,$")
"""A line of the printed dataclass: a script indents it, a shell writes no comma."""
SIGNS = ("per_device_train_batch_size", "train_runtime", "eval_loss", "'loss'")


def recognises(console: Console) -> bool:
    """Whether a Trainer's log dict, `Running training` block or dump of its arguments stands in the log."""
    for segment in console.segments:
        text = segment.text
        if ARGUMENT.match(text) or "  Instantaneous batch size per device = " in text:
            return True
        if "{'" in text and any(word in text for word in SIGNS):
            for found in dumps.dicts(text[text.index("{'") :]):
                if "per_device_train_batch_size" in found or any(event_kind(values) for values in nested(found)):
                    return True
    return False


def read(console: Console) -> list[Reading]:
    """One reading a training; several in one log are told apart by their number, and flagged."""
    parts = trainer_events.trainings(console.segments)
    readings = [_read(Console(console.path, part)) for part in parts]
    if len(readings) > 1:
        for number, reading in enumerate(readings, start=1):
            reading.row.name += f":{number}"
            reading.row.flag("several_runs", f"training {number} of {len(readings)} in {console.path.name}")
    return readings


def _read(console: Console) -> Reading:
    reached = any("'loss':" in one.text or "'train_runtime'" in one.text for one in console.segments)
    stated = facts(console.segments, trained=reached)
    shown = trainer_course.course(console, stated)
    row = Row(name=console.path.stem, source="hf_trainer_log", path=str(console.path), **stated.values)
    row.data_parallel = row.world_size
    for key, values in stated.contradicted.items():
        row.flag("source_disagrees", f"{key}: the log says {' and '.join(map(str, values))}")
    if shown.micro_steps and shown.micro_steps > 1:
        row.flag("micro_step_bar", f"the bar counts micro-batches, {shown.micro_steps} a step")
    row.planned_steps = _planned_steps(shown)
    failure = ending.failure(console, after=max(shown.progress_line - FAILURE_LINES, 0))
    steps = trainer_course.series(shown)
    _measure(row, shown, failure)
    _learning_rate(row, steps, stated, ended=shown.end is not None)
    evals = _evaluations(row, shown)
    _times(row, shown)
    row.status, row.last_error = _status(row, shown, failure)
    _short_batches(row, shown)
    derive(row)
    _step_time(row, _evaluated(row, shown))
    _check_rates(row, shown)
    output_dir = stated.arguments.get("output_dir")
    return Reading(row, steps, evals, output_dir=output_dir if isinstance(output_dir, str) else None)


def _planned_steps(shown: Course) -> int | None:
    if shown.facts.optimization_steps is not None:
        return shown.facts.optimization_steps
    if shown.total is None or not shown.micro_steps or shown.total % shown.micro_steps:
        return trainer_course.steps_of_rate(shown) if shown.total is None else None
    return shown.total // shown.micro_steps


def _measure(row: Row, shown: Course, failure: Failure | None) -> None:
    """How far the training came and what its result says."""
    row.steps = trainer_course.completed_steps(shown, failure)
    results = [event.values for event in shown.results]
    row.runtime_s = _finest(results, "train_runtime")
    if row.runtime_s is None and not results and failure is not None:
        row.runtime_s = trainer_course.runtime_of_bar(shown, row.steps)
    row.train_loss = _finest(results, "train_loss")
    if row.train_loss is not None:
        row.flag("train_loss_whole_run", "Trainer's train_loss is the mean over all its steps")
    tokens = _finest(results, "num_input_tokens_seen")
    row.tokens_seen = round(tokens) if tokens is not None and tokens >= 1 else None
    if row.steps is None:
        last = shown.states[-1] if shown.states else None
        where = f" at {last.count} of {last.total} on its bar" if last else ""
        what = (
            "the number of completed steps cannot be told from what is left of the log"
            if results
            else (f"the log stops{where}, before the end of training")
        )
        row.flag("log_incomplete", what)
    elif (final := trainer_course.logged_step(shown, shown.logged[-1].index) if shown.logged else None) is not None:
        every = whole(shown.facts.arguments.get("logging_steps"))
        if every and row.steps - final < every:
            norm = trainer_events.number(shown.logged[-1].values.get("grad_norm"))
            row.grad_norm = norm if norm is not None and math.isfinite(norm) else None
    for event in shown.logged:
        loss = trainer_events.number(event.values.get("loss"))
        if loss is not None and not math.isfinite(loss):
            row.flag("loss_not_finite", f"the logged loss was {loss}")
            break


def _finest(results: Sequence[dict[str, object]], key: str) -> float | None:
    """The most exact of a result's values; None where two are not the same number."""
    measures = [measure for values in results if (measure := trainer_events.measure(values.get(key)))]
    return trainer_events.finest(measures)


def _learning_rate(row: Row, steps: Sequence[Step], stated: Facts, ended: bool) -> None:
    """The argument, unless higher rates were logged: then a scheduler of the script's own ran in its place."""
    rates = [step.learning_rate for step in steps if step.learning_rate is not None]
    highest = max(rates, default=0.0)
    argument = row.learning_rate
    if not rates:  # nothing shows that the argument's schedule ran
        row.learning_rate = row.lr_schedule = None
    if argument is None or highest <= argument * 1.001:
        return
    plateau = max((sum(1 for _ in run) for rate, run in itertools.groupby(rates) if rate == highest), default=0)
    row.learning_rate = highest if ended and plateau >= PLATEAU else None
    row.lr_schedule = None
    row.flag("source_disagrees", f"learning_rate: the argument says {argument:g}, rates up to {highest:g} were logged")


def _evaluations(row: Row, shown: Course) -> list[Eval]:
    """The evaluations in their order. The last one is the trained model's if it stands behind the training's result,
    or at its last step."""
    evals: list[Eval] = []
    final: list[trainer_events.Measure] = []
    for event in shown.evals:
        measure = trainer_events.measure(event.values.get("eval_loss"))
        if measure is None:
            continue
        after = shown.end is not None and event.index > shown.end
        step = row.steps if after else trainer_course.step_at(shown, event.index)
        last = after or (step is not None and step == row.steps)
        if last:
            final.append(measure)
        evals.append(Eval(step=step, loss=measure.value, final=last))
    row.eval_loss = trainer_events.finest(final)
    if final and row.eval_loss is None:
        row.flag("source_disagrees", "eval_loss: the evaluations after the training differ")
    return evals


def _evaluated(row: Row, shown: Course) -> float | None:
    """Seconds of the runtime that evaluations on the way took; None where they are not all shown with their time."""
    on_the_way = [event for event in shown.evals if shown.end is not None and event.index < shown.end]
    arguments = shown.facts.arguments
    every = whole(arguments.get("eval_steps"))
    strategy = enumeration(arguments.get("eval_strategy", arguments.get("evaluation_strategy")))
    if not on_the_way and (strategy in (None, "no") or (strategy == "steps" and every and (row.steps or 0) < every)):
        return 0.0
    if row.steps is None or not every or strategy not in (None, "steps"):
        return None
    expected = row.steps // every
    if row.steps % every and any(isinstance(event.values.get("eval_runtime"), str) for event in on_the_way):
        expected += 1  # transformers 5 evaluates after the last step too
    measures = [trainer_events.measure(event.values.get("eval_runtime")) for event in on_the_way]
    seconds = [measure.value for measure in measures if measure is not None]
    return sum(seconds) if expected == len(seconds) == len(on_the_way) else None


def _step_time(row: Row, evaluated: float | None) -> None:
    """Step time and token rates without the evaluations; unknown where their share of the runtime is."""
    if evaluated == 0.0 or row.runtime_s is None or row.steps is None:
        return
    if evaluated is None:
        row.step_s = row.tokens_per_s = row.tokens_per_s_per_rank = None
        row.flag("evaluation_in_runtime", "evaluations on the way, not all shown, are in the runtime: no step time")
        return
    row.step_s = (row.runtime_s - evaluated) / row.steps
    row.tokens_per_s = ratio(row.tokens_seen, row.runtime_s - evaluated)
    row.tokens_per_s_per_rank = ratio(row.tokens_per_s, row.world_size)
    row.flag("evaluation_in_runtime", f"evaluations of {evaluated:.3g} s are in the runtime, not in the step time")


def _times(row: Row, shown: Course) -> None:
    """From the last time stamp before the first step to the last one of the log, in the log's own unnamed time zone."""
    first = shown.states[0].index if shown.states else shown.logged[0].index if shown.logged else None
    stamps = [
        (index, time.isoformat(timespec="milliseconds"))
        for index, segment in enumerate(shown.console.segments)
        if (segment.ended or index + 1 < len(shown.console.segments)) and (time := moment(segment.text))
    ]
    before = [time for index, time in stamps if first is not None and index < first]
    row.started_at = before[-1] if before else None
    row.last_record_at = stamps[-1][1] if stamps else None
    row.finished_at = row.last_record_at if shown.end is not None else None


def _status(row: Row, shown: Course, failure: Failure | None) -> tuple[str | None, str | None]:
    if failure is not None:
        return failure.status, failure.message
    if any(flag["code"] == "loss_not_finite" for flag in row.flags):
        return "diverged", None
    if shown.end is None or row.steps is None:
        return None, None
    if row.steps == row.planned_steps:
        return "completed", None
    return ("budget", None) if _time_was_up(row, shown) else (None, None)


def _time_was_up(row: Row, shown: Course) -> bool:
    """Whether a line between the last steps and the result says so: by a word, or by the seconds that had passed."""
    assert shown.end is not None
    recent = [state.index for state in shown.states if state.index < shown.end][-4:]
    logged = [event.index for event in shown.logged if event.index < shown.end][-1:]
    since = (recent or logged or [shown.end])[0]
    for segment in shown.console.segments[since : shown.end]:
        text = segment.text.rpartition("it/s]")[2].rpartition("s/it]")[2]
        if "{" in text:
            continue
        passed = [float(number) for number in NUMBER.findall(text)]
        if TIME_IS_UP.search(text) or (row.runtime_s and any(0 <= row.runtime_s - one < 1 for one in passed)):
            return True
    return False


def _short_batches(row: Row, shown: Course) -> None:
    """Where the batch does not divide the data, every epoch ends with less of one, and samples are not steps x batch.

    Of a run that came to the end of its epochs Trainer's own samples/s is right, as far as it is printed: the planned
    samples are the completed ones. Over several ranks accelerate repeats samples to fill up: number and rate are open.
    """
    epochs = number(shown.facts.arguments.get("num_train_epochs"))
    batch = row.global_batch or _product(row.micro_batch, row.grad_accum, row.data_parallel)
    if not batch or not row.steps or row.steps != row.planned_steps or whole(shown.facts.arguments.get("max_steps")):
        return
    claim = _claim(shown)
    if claim is None or row.runtime_s is None or epochs is None:
        row.flag("samples_contradict", "the last batch of an epoch may be a short one: samples are not known")
        return
    missing = row.steps * batch - claim.value * row.runtime_s
    runtimes = [trainer_events.measure(event.values.get("train_runtime")) for event in shown.results]
    error = claim.unit * row.runtime_s + min(one.unit for one in runtimes if one is not None) * claim.value
    if error < missing < batch * math.ceil(epochs):
        row.samples_seen = round(claim.value * row.runtime_s) if error < 0.3 and row.world_size == 1 else None
        row.samples_per_s = claim.value if row.world_size == 1 else None
        row.flag("samples_contradict", "the last batch of an epoch is a short one: fewer samples than steps x batch")


def _product(*factors: int | None) -> int | None:
    return math.prod(known) if len(known := [one for one in factors if one is not None]) == len(factors) else None


def _claim(shown: Course) -> trainer_events.Measure | None:
    """Trainer's samples/s, the most exact that is printed."""
    claims = [trainer_events.measure(event.values.get("train_samples_per_second")) for event in shown.results]
    return min((claim for claim in claims if claim is not None), key=lambda claim: claim.unit, default=None)


def _check_rates(row: Row, shown: Course) -> None:
    """Flag Trainer's own rate where it counts more than what was completed in the runtime."""
    claim = _claim(shown)
    if claim is not None and row.samples_per_s and claim.value > 1.02 * row.samples_per_s:
        row.flag(
            "planned_not_completed",
            f"Trainer says {claim.value:g} samples/s, the planned epochs over the runtime; "
            f"{row.samples_per_s:.4g} were completed",
        )
