"""Iteration lines of Megatron-LM, Megatron-DeepSpeed and GPT-NeoX (` iteration  100/ 5000 | ...`) -> rows.

A line's time is the mean of the iterations since the line before, evaluation left out; its loss is the mean of those
that were not skipped. The lines say how long the run is meant to be, so that its end can be proved; one that stopped
before has no totals. `TFLOPs` comes from a formula that differs between the projects and is not taken.
"""

from __future__ import annotations

from collections.abc import Sequence

from lm_scale.report import rates
from lm_scale.report.ingest import Reading, deepspeed_dump, ending, intervals
from lm_scale.report.ingest.console import Console
from lm_scale.report.ingest.megatron_arguments import global_batch, model_ranks, settings
from lm_scale.report.ingest.megatron_lines import Run, line_of, parsed, starts, whole
from lm_scale.report.rates import Step
from lm_scale.report.rows import Row, typed

MIB = 2**20


def recognises(console: Console) -> bool:
    """Whether an iteration line stands here, or the arguments of a run that came to none."""
    return any(
        ("iteration" in segment.text and "elapsed time per iteration" in segment.text and line_of(segment.text))
        or ("using world size: " in segment.text and "parallel" in segment.text)
        for segment in console.segments
    )


def read(console: Console) -> list[Reading]:
    """The last run of the log, flagged where the log holds several."""
    runs = [parsed(lines) for lines in starts(console.segments)]
    run = runs[-1]
    row = _row(console, run)
    if len(runs) > 1:
        row.flag("several_runs", f"the log holds {len(runs)} runs: this is the last")
    timed = _intervals(run)
    complete = _end(row, run, console)
    if complete:
        _measure(row, run, timed)
    _memory(row, run, complete)
    return [Reading(row, _series(run, timed), run.evals)]


def _row(console: Console, run: Run) -> Row:
    values = run.arguments()
    row = Row(name=console.path.stem, source="megatron_log", path=str(console.path))
    for key, value in settings(values).items():
        setattr(row, key, value)
    planned = {line.planned for line in run.iterations}
    row.planned_steps = planned.pop() if len(planned) == 1 else None
    dense = values.get("num_experts") in (None, "None", "[1]", "1")
    if dense and row.tensor_parallel == row.pipeline_stages == model_ranks(values) == 1:
        row.params = run.parameters.get((0, 0))  # more ranks hold some of them twice
    _name_strategy(row, run)
    row.started_at = run.began.isoformat() if run.began else None
    unclear = sorted(name for name, stated in run.stated.items() if len(stated) > 1)
    if unclear:
        row.flag("source_disagrees", f"{', '.join(unclear)}: stated in two ways")
    return row


def _name_strategy(row: Row, run: Run) -> None:
    """Engine and strategy: DeepSpeed's words about itself, or what only Megatron-LM prints."""
    dump = deepspeed_dump.settings(run.deepspeed())
    if run.neox or run.deepspeed_settings or run.arguments().get("deepspeed") == "True":
        row.engine = "deepspeed"
        row.zero_stage, row.strategy, row.offload = dump.get("zero_stage"), dump.get("strategy"), dump.get("offload")
    elif run.megatron_core:
        row.engine, degrees = "torch", (row.data_parallel, row.tensor_parallel, row.pipeline_stages)
        row.strategy = None if None in degrees else "megatron_dp{}_tp{}_pp{}".format(*degrees)


def _end(row: Row, run: Run, console: Console) -> bool:
    """Set the status; whether each iteration until a proved end is shown. Otherwise the row says how far it is."""
    last = run.iterations[-1].iteration if run.iterations else 0
    planned = row.planned_steps
    shown = f"the log stops at step {last}" + (f" of {planned}" if planned is not None else "")
    finished = run.done or (planned is not None and last == planned)
    failed = None if finished else ending.failure(Console(console.path, run.lines))
    if finished:
        row.status = "completed"
        row.finished_at = run.ended.isoformat() if run.ended else None
    elif run.left_for:
        row.status = run.left_for
    elif failed:
        row.status, row.last_error = failed.status, failed.message
    if last and last == (run.left_at if run.left_at is not None and not finished else planned) and _whole_log(run):
        return True
    if last and _whole_log(run) is False:
        shown = f"lines of iterations are missing, step {last} is the last one shown"
    row.flag("log_incomplete", shown)
    return False


def _whole_log(run: Run) -> bool:
    """Whether the iteration lines follow one another from the start by the log's interval; newer versions print the
    first iteration too. Without the interval in the arguments there must be several lines that agree on it."""
    start = run.loaded or 0
    numbers = [line.iteration for line in run.iterations]
    after_first = numbers[1:] if numbers[0] == start + 1 and len(numbers) > 1 else numbers
    every = whole(run.arguments().get("log_interval"))
    if every is None:
        if len(numbers) < 4:
            return False
        every = after_first[1] - after_first[0]
    if every <= 0:
        return False
    expected = list(range(start - start % every + every, numbers[-1] + 1, every))
    return after_first == [number for number in expected if number != start + 1 or after_first is numbers]


def _intervals(run: Run) -> list[intervals.Interval]:
    """From line to line; of the first one only where the run's start is known."""
    found: list[intervals.Interval] = []
    before, consumed = run.loaded or 0, None if run.loaded else 0
    for line in run.iterations:
        count, skipped = line.iteration - before, line.skipped or 0
        if line.consumed is not None and consumed is not None:
            samples: int | None = line.consumed - consumed - skipped * (line.batch or 0)
        else:
            samples = (count - skipped) * line.batch if line.batch is not None else None
        if samples is None:
            batch = global_batch(run.arguments())
            samples = (count - skipped) * batch if batch is not None else None
        seconds = line.seconds * count if line.seconds is not None else None
        if run.neox and run.loaded and not found:
            seconds = None  # NeoX divides by its whole interval, of which a part ran
        found.append(intervals.Interval(before, line.iteration, seconds, count - skipped, samples, line.loss))
        before, consumed = line.iteration, line.consumed
    return found


def _measure(row: Row, run: Run, timed: Sequence[intervals.Interval]) -> None:
    """The totals of a whole log, and its rates."""
    batches = {line.batch for line in run.iterations}
    if batches != {None}:
        row.global_batch = batches.pop() if len(batches) == 1 else None  # or it grew
    skipped = rates.total([line.skipped for line in run.iterations])
    row.skipped_steps = skipped
    row.steps = sum(one.completed for one in timed)
    row.samples_seen = rates.total([one.samples for one in timed])
    row.runtime_s = rates.total([one.seconds for one in timed])
    if row.samples_seen is not None and row.seq_len is not None:
        row.tokens_seen = row.samples_seen * row.seq_len
    intervals.fill(row, intervals.measure(timed))
    row.steps_per_s = rates.ratio(row.steps, row.runtime_s)
    row.samples_per_s = rates.ratio(row.samples_seen, row.runtime_s)
    row.train_loss = intervals.train_loss(timed)
    intervals.not_finite(row, timed)
    row.grad_norm = run.iterations[-1].grad_norm
    if run.loaded:
        row.flag("resumed", f"the log begins after step {run.loaded}: its totals are of the steps since")
    finals = [one.loss for one in run.evals if one.final]
    row.eval_loss = typed("eval_loss", finals[0], float) if len(finals) == 1 else None


def _memory(row: Row, run: Run, complete: bool) -> None:
    """The peak of the ranks that print it, each model-parallel one of the first replica, if none of them is missing."""
    moments = {after for _, after, _, _ in run.memory}
    ranks = {rank for rank, _, _, _ in run.memory}
    if not run.memory or len(ranks) != model_ranks(run.arguments()) or (len(moments) > 1 and not complete):
        return
    row.peak_device_bytes = round(max(allocated for _, _, allocated, _ in run.memory) * MIB)
    row.peak_reserved_bytes = round(max(reserved for _, _, _, reserved in run.memory) * MIB)
    row.flag("peak_uncertain", f"the peak memory is that until step {max(moments)}, of one replica of the model")


def _series(run: Run, timed: Sequence[intervals.Interval]) -> list[Step]:
    """The lines as points; `elapsed_s` is the training time where every iteration until there is shown."""
    points = []
    elapsed: float | None = 0.0 if run.iterations and not run.loaded and _whole_log(run) else None
    for line, one in zip(run.iterations, timed, strict=True):
        elapsed = elapsed + one.seconds if elapsed is not None and one.seconds is not None else None
        points.append(
            Step(
                line.iteration,
                elapsed_s=elapsed,
                step_s=line.seconds,
                samples=line.batch,
                loss=line.loss,
                grad_norm=line.grad_norm,
                learning_rate=line.learning_rate,
                skipped=line.skipped is not None and line.skipped >= one.until - one.after,
            )
        )
    return points
