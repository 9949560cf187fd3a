"""What a bare DeepSpeed script prints (`deepspeed.initialize`, no Trainer): launcher, engine, throughput timer -> rows.

DeepSpeed says neither how long a run is meant to be nor that it is over, and prints every `steps_per_print`-th step.
So the totals are known only if the launcher saw every process leave, no line of the engine's is missing, and each
step was printed. Its own `RunningAvgSamplesPerSec` counts the seconds between the start of a forward and the end of the
step alone (`utils/timer.py`: the loader's wait is out, the first two steps too); rates here are from time stamps.
"""

from __future__ import annotations

import re

from lm_scale.report.ingest import Reading, ending, intervals
from lm_scale.report.ingest.console import Console
from lm_scale.report.ingest.deepspeed_dump import SETTING, complete, settings
from lm_scale.report.ingest.deepspeed_lines import BREAKDOWN, PIPELINE, STEP, TIMER, WORLD, Run, launches, parsed
from lm_scale.report.rates import Step
from lm_scale.report.rows import Row

FOREIGN = re.compile(r"\{'(?:train_runtime|loss|eval_loss)': |\biteration +\d+/ *\d+ \|.*elapsed time per iteration")
"""Trainer's and Megatron's lines: they print DeepSpeed's too."""
GIB = 2**30


def recognises(console: Console) -> bool:
    """Whether DeepSpeed's engine or launcher printed here, and no program on top of it that has its own format."""
    found = False
    for segment in console.segments:
        text = segment.text
        if ("{'" in text or "iteration" in text) and FOREIGN.search(text):
            return False
        found = found or any(pattern.search(text) for pattern in (STEP, TIMER, PIPELINE, BREAKDOWN, SETTING, WORLD))
    return found


def read(console: Console) -> list[Reading]:
    """The last run of the log, flagged where the log holds several."""
    runs = [parsed(lines) for lines in launches(console.segments)]
    last = runs[-1]
    row = _row(console, last)
    if len(runs) > 1:
        row.flag("several_runs", f"the log holds {len(runs)} runs: this is the last")
    _end(row, last, console)
    return [Reading(row, _series(last))]


def _row(console: Console, run: Run) -> Row:
    stated = {name: value for name in run.settings if (value := run.value(name)) is not None}
    row = Row(
        name=console.path.stem,
        source="deepspeed_log",
        path=str(console.path),
        world_size=run.whole("processes"),
        nodes=run.whole("nodes"),
        params=run.whole("params"),
        started_at=run.started.isoformat() if run.started else None,
    )
    row.engine = "deepspeed"
    for key, value in settings(stated).items():
        setattr(row, key, value)
    if "topology" in stated:
        axes: dict[str, int] = {}
        for axis, place in re.findall(r"(\w+)=(\d+)", stated["topology"]):
            axes[axis] = max(axes.get(axis, 0), int(place) + 1)
        row.pipeline_stages, row.tensor_parallel = axes.get("pipe", 1), axes.get("model", 1)
    elif row.world_size is not None and row.world_size == row.data_parallel:
        row.pipeline_stages = row.tensor_parallel = 1
    unclear = sorted(name for name, values in run.settings.items() if len(values) > 1)
    if unclear:
        row.flag("source_disagrees", f"several engines, or one printed twice: {', '.join(unclear)} differ")
    return row


def _end(row: Row, run: Run, console: Console) -> None:
    """Status and, where the end and every line before it are known, what was measured until then."""
    here, nodes = run.whole("local_processes"), run.whole("nodes") or 1
    done = bool(run.spawned) and run.left.keys() == run.spawned and len(run.left) in (here, (here or 0) * nodes)
    failed = None if done else ending.failure(Console(console.path, run.lines))
    if done:
        row.status = "completed"
    elif failed:
        row.status, row.last_error = failed.status, failed.message
    over = max(run.left.values()) if done else run.stopped
    row.finished_at = over.isoformat() if over else None
    last = max([shown.step for shown in run.shown] + list(run.pipeline), default=0)
    until = f"step {last} is the last one shown" if last else "no step is shown"
    if not (done or failed):
        row.flag("log_incomplete", f"the log does not show the end of the run: {until}")
        return
    if missing := _missing(run):
        row.flag("log_incomplete", f"{missing}: {until}")
        return
    _measure(row, run)
    every = run.whole("steps_per_print")
    if every != 1 and run.forwards != last:
        row.flag(
            "log_incomplete",
            f"the log prints one step of {every}: {until}, up to {(every or 1) - 1} more may have followed",
        )
        return
    row.skipped_steps = run.shown[-1].skipped
    row.steps = last - row.skipped_steps
    row.samples_seen = row.steps * row.global_batch if row.global_batch is not None else None


def _missing(run: Run) -> str | None:
    """What shows that lines are missing between the engine's start and the end of the log; None if nothing does.

    Every printed step has a second line, the timer's or the pipeline's, from the third step on.
    """
    every = run.whole("steps_per_print")
    numbers = [shown.step for shown in run.shown]
    if every is None or not complete(run.printed, [line.text for line in run.lines]):
        return "the engine's configuration is not whole"
    launcher = [bool(run.spawned), run.started is not None, run.whole("processes") is not None]
    launcher.append(run.whole("local_processes") == len(run.spawned) or (run.whole("nodes") or 1) > 1)
    if any(launcher[:3]) and not all(launcher):
        return "lines of the launcher are missing"
    if not numbers or numbers != list(range(every, numbers[-1] + 1, every)):
        return "lines of steps are missing, or the run goes on from a checkpoint"
    seconds = list(run.pipeline) if run.pipeline else [number for number, _ in run.timers if number > 3]
    if seconds != [number for number in numbers if run.pipeline or number > 3]:
        return "lines of steps are missing"
    if run.value("wall_clock_breakdown") == "True" and not run.pipeline and run.forwards != numbers[-1]:
        return "lines of the breakdown are missing"
    if any(one.time is None for one in run.shown):
        return "lines of steps have no time"
    return None


def _intervals(run: Run, global_batch: int | None) -> list[intervals.Interval]:
    found = []
    for before, after in zip(run.shown, run.shown[1:], strict=False):
        completed = after.step - before.step - (after.skipped - before.skipped)
        seconds = (after.time - before.time).total_seconds() if after.time and before.time else None
        loss = run.pipeline.get(after.step, (None, None))[0] if after.step - before.step == 1 else None
        samples = completed * global_batch if global_batch is not None else None
        found.append(intervals.Interval(before.step, after.step, seconds, completed, samples, loss))
    return found


def _measure(row: Row, run: Run) -> None:
    timed = _intervals(run, row.global_batch)
    measured = intervals.measure(timed, untimed=run.shown[0].step - run.shown[0].skipped)
    intervals.fill(row, measured)
    intervals.not_finite(row, timed)
    if measured.step_s is not None:
        row.flag("rates_of_part", f"over the {measured.steps} last steps that the log times, whatever ran between them")
    if run.pipeline and timed and run.whole("steps_per_print") == 1:
        row.train_loss = intervals.train_loss(timed)
    claimed = run.timers[-1][1] if run.timers else None
    if claimed and row.samples_per_s and not 0.9 < row.samples_per_s / claimed < 1.1:
        row.flag(
            "rate_contradicts_runtime",
            f"DeepSpeed's own {claimed:.4g} samples/s leave out the time between steps: {row.samples_per_s:.4g}",
        )
    if run.peaks_gib and run.on_accelerator:
        row.peak_device_bytes = round(max(run.peaks_gib) * GIB)
        if row.world_size != 1:
            row.flag("peak_uncertain", "the peak memory is rank 0's, the others print none")
    elif run.peaks_gib:
        row.flag("peak_uncertain", "the log shows no device, and on a CPU MaxMemAllocated is the process's memory")


def _series(run: Run) -> list[Step]:
    """The shown steps with the mean step time since the one before."""
    times = {one.until: one for one in _intervals(run, None)}
    points: dict[int, Step] = {}
    for number in sorted({shown.step for shown in run.shown} | set(run.pipeline)):
        loss, seconds = run.pipeline.get(number, (None, None))
        if (one := times.get(number)) and one.seconds is not None and one.until > one.after:
            seconds = one.seconds / (one.until - one.after)
        points[number] = Step(number, step_s=seconds, loss=loss)
    for shown in run.shown:
        points[shown.step].learning_rate = shown.learning_rate
    return list(points.values())
