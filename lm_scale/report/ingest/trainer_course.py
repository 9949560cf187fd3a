"""The course of a training as its console shows it: its bar, its logged points, and how far it came for sure."""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from lm_scale.report.ingest import bars, trainer_events
from lm_scale.report.ingest.bars import State
from lm_scale.report.ingest.console import Console
from lm_scale.report.ingest.ending import TRACEBACK, Failure
from lm_scale.report.ingest.settings import enumeration, number, whole
from lm_scale.report.ingest.trainer_events import Event
from lm_scale.report.ingest.trainer_facts import Facts
from lm_scale.report.rates import Step

CLOCK_SECONDS = 1000
"""A bar's clock shows whole seconds: from here on they are exact to 0.1 %."""
EXACT = 0.2
"""A number of steps computed from rounded ones is exact within this of a whole one."""
OTHER_RANKS = 0.5
"""Ranks that each draw a bar of one training are no further apart than this share of the foremost one's count."""
SHOWN_SECONDS = 0.1
"""tqdm draws a bar at most this often (`mininterval`): steps faster than that may not be shown."""


@dataclass
class Course:
    """`states` are the training bar's alone, none if no bar is clearly that; `micro_steps` of its counts are a step.

    `printed` are the segments with a log dict of any kind.
    """

    console: Console
    facts: Facts
    logged: list[Event] = field(default_factory=list)
    results: list[Event] = field(default_factory=list)
    evals: list[Event] = field(default_factory=list)
    states: list[State] = field(default_factory=list)
    printed: list[int] = field(default_factory=list)
    total: int | None = None
    micro_steps: int | None = 1

    @property
    def end(self) -> int | None:
        """The segment in which the training's result stands."""
        return self.results[0].index if self.results else None

    @property
    def progress_line(self) -> int:
        """The last line that shows a step."""
        segments = self.console.segments
        return max([0, *(one.line for one in self.states[-1:]), *(segments[e.index].line for e in self.logged[-1:])])


def course(console: Console, facts: Facts) -> Course:
    """The course that the log shows."""
    shown = Course(console, facts)
    by_kind = {"log": shown.logged, "train": shown.results, "eval": shown.evals}
    for event in trainer_events.events(console.segments):
        by_kind[event.kind].append(event)
        shown.printed += [event.index] if shown.printed[-1:] != [event.index] else []
    found = bars.states(console.segments)
    shown.total = bars.training_total(found, console.segments, _logged(shown, found))
    shown.states = _training_states(found, shown)
    shown.micro_steps = _micro_steps(shown)
    return shown


def completed_steps(shown: Course, failure: Failure | None) -> int | None:
    """Completed optimizer steps, where the log proves that none followed; None where lines may be missing.

    The proof is a state of the bar drawn after the training's result, or on the same line before it; the state that
    tqdm repeats when it closes the bar; the bar's total; or an epoch printed in full. After a failure it is a state
    that stands on the failure's own line or behind it.
    """
    count = _final_count(shown, failure)
    if count is not None and shown.micro_steps and _fits_epoch(shown, count):
        return count // shown.micro_steps
    exact = [_step_of_epoch(shown, event.values.get("epoch")) for event in reversed(shown.results)]
    return next((step for step in exact if step is not None), None) or steps_of_rate(shown)


def series(shown: Course) -> list[Step]:
    """The logged points that the bar, or an exact epoch, places: loss is the mean since the point before, `elapsed_s`
    is in whole seconds. A step at which several ranks logged losses of their own has none of the run's."""
    points: list[Step] = []
    ranks = shown.facts.values.get("world_size") or 1
    doubled = {
        id(event)
        for pair in itertools.pairwise(shown.logged)
        if ranks > 1 and _moment(pair[0]) == _moment(pair[1]) and None not in _moment(pair[0])
        for event in pair
    }
    for event in shown.logged:
        values = event.values
        if id(event) in doubled:
            continue
        state = _state_at(shown, event.index)
        step = logged_step(shown, event.index) or _step_of_epoch(shown, values.get("epoch"))
        if step is None:
            continue
        points.append(
            Step(
                step=step,
                elapsed_s=float(state.elapsed_s) if state is not None else None,
                loss=trainer_events.number(values.get("loss")),
                grad_norm=trainer_events.number(values.get("grad_norm")),
                learning_rate=trainer_events.number(values.get("learning_rate")),
            )
        )
    return points


def _moment(event: Event) -> tuple[object, ...]:
    """What ranks that each log their own loss have in common at one step."""
    return tuple(event.values.get(key) for key in ("epoch", "grad_norm", "learning_rate"))


def logged_step(shown: Course, index: int) -> int | None:
    """The step at which a loss was logged: every `logging_steps`-th, and with `logging_first_step` the first."""
    step = step_at(shown, index)
    every = whole(shown.facts.arguments.get("logging_steps"))
    if not step or not every or enumeration(shown.facts.arguments.get("logging_strategy")) != "steps":
        return step
    if shown.micro_steps and shown.micro_steps > 1 and step % every == every - 1:
        return step + 1  # a loop's own bar has not counted the micro-batch yet that it is drawn in
    return step if step % every == 0 or step == 1 else None


def step_at(shown: Course, index: int) -> int | None:
    """The step at which the segment `index` was printed."""
    state = _state_at(shown, index)
    return state.count // shown.micro_steps if state is not None and shown.micro_steps else None


def runtime_of_bar(shown: Course, count: int | None) -> float | None:
    """Seconds until the last step of a run that left no result, from the bar's clock where it is exact enough."""
    last = shown.states[-1] if shown.states else None
    if last is None or count is None or last.elapsed_s < CLOCK_SECONDS:
        return None
    return float(last.elapsed_s)


def _logged(shown: Course, found: Sequence[State]) -> list[int]:
    """The segments in which the training's losses stand; its result too where it stands on a line with a bar."""
    lines = {state.line for state in found}
    results = [event.index for event in shown.results if shown.console.segments[event.index].line in lines]
    return [event.index for event in shown.logged] + results


def _training_states(found: Sequence[State], shown: Course) -> list[State]:
    """The states of the training's bar in their order; none where another bar has the same total."""
    states: list[State] = []
    ranks = shown.facts.values.get("world_size") or 1
    for state in found:
        if state.total != shown.total:
            continue
        if states and state.count < states[-1].count:
            if ranks > 1 and state.count > states[-1].count * OTHER_RANKS:
                continue  # another rank's bar, which is not as far
            if shown.end is not None and state.index > shown.end:
                break  # an evaluation after the training
            return []
        states.append(state)
    return states


def _state_at(shown: Course, index: int) -> State | None:
    """The state of the bar when the segment `index` was printed, None where that is not clear.

    tqdm draws the bar again right after whatever is printed over it. The state before, on the same line, may be up to
    `SHOWN_SECONDS` old. Text that was buffered apart from the bar stands together with more of its kind.
    """
    line = shown.console.segments[index].line
    position = bisect.bisect_right(shown.states, index, key=lambda state: state.index)
    before = shown.states[position - 1] if position else None
    after = shown.states[position] if position < len(shown.states) else None
    start, end = before.index if before else -1, after.index if after else len(shown.console.segments)
    printed = bisect.bisect_left(shown.printed, end) - bisect.bisect_left(shown.printed, start)
    if printed > 1:
        return None
    if after is not None and after.line == line + 1:
        return after if before is not None and _soon(before, after) else None
    if before is not None and before.line == line:
        return before if before.count and before.elapsed_s / before.count >= SHOWN_SECONDS else None
    return None


def _fits_epoch(shown: Course, count: int) -> bool:
    """Whether the epoch that the result gives is that of `count` on the bar, as far as it is printed."""
    epochs = number(shown.facts.arguments.get("num_train_epochs"))
    measures = [measure for event in shown.results if (measure := trainer_events.measure(event.values.get("epoch")))]
    if not epochs or not measures or not shown.total or whole(shown.facts.arguments.get("max_steps")):
        return True
    epoch = min(measures, key=lambda one: one.unit)
    per_epoch = shown.total / epochs
    return abs(epoch.value * per_epoch - count) <= epoch.unit * per_epoch + (shown.micro_steps or 1) * max(epochs, 1)


def _soon(before: State, after: State) -> bool:
    """Whether no line between two states can be missing: a slow bar is drawn at every count, a fast one each second."""
    slow = after.elapsed_s / max(after.count, 1) >= SHOWN_SECONDS
    return after.count - before.count <= 1 if slow else after.elapsed_s - before.elapsed_s <= 1


def _final_count(shown: Course, failure: Failure | None) -> int | None:
    if not shown.states:
        return None
    last = shown.states[-1]
    if last.count == shown.total:
        return last.count
    segments = shown.console.segments
    if shown.end is not None:
        printed_over_bar = {"train_runtime", "train_loss"} <= shown.results[0].values.keys()  # a block's line is not
        same_line = printed_over_bar and last.line == segments[shown.end].line
        return last.count if last.index > shown.end or same_line or _closed(shown) else None
    if failure is None:
        return None
    behind = last.line > failure.line
    into = TRACEBACK in last.rest or (last.line == failure.line and bool(last.rest.strip()))
    slow = last.count and last.elapsed_s / last.count >= SHOWN_SECONDS
    return last.count if slow and (behind or into or _closed(shown)) else None


def _closed(shown: Course) -> bool:
    """Whether the bar was closed: tqdm draws its last state once more, and a line end."""
    if len(shown.states) < 2:
        return False
    before, last = shown.states[-2:]
    ended = shown.console.segments[last.index].ended and not last.rest.strip()
    return ended and before.count == last.count and before.line == last.line


def _step_of_epoch(shown: Course, value: object) -> int | None:
    """The step that an epoch printed in full stands for, where the planned steps are those of whole epochs."""
    epochs = number(shown.facts.arguments.get("num_train_epochs"))
    planned = shown.total // shown.micro_steps if shown.total and shown.micro_steps else shown.facts.optimization_steps
    if not epochs or not planned or whole(shown.facts.arguments.get("max_steps")):
        return None
    epoch = trainer_events.measure(value)
    if epoch is None or epoch.unit * planned / epochs > EXACT:
        return None
    steps = epoch.value * planned / epochs
    return round(steps) if abs(steps - round(steps)) < EXACT else None


def steps_of_rate(shown: Course) -> int | None:
    """The steps of a training that came to the end of its epochs, from the rate that Trainer computes of them."""
    for event in shown.results:
        measures = [event.values.get(key) for key in ("epoch", "train_runtime", "train_steps_per_second")]
        epoch, runtime, rate = (trainer_events.measure(value) for value in measures)
        if epoch and runtime and rate and epoch.value == number(shown.facts.arguments.get("num_train_epochs")):
            error = rate.unit * runtime.value + runtime.unit * rate.value
            steps = rate.value * runtime.value
            if error < EXACT and abs(steps - round(steps)) < EXACT:
                return round(steps)
    return None


def _micro_steps(shown: Course) -> int | None:
    """How many counts of the bar are one optimizer step: 1, or the accumulation; None where neither fits.

    Trainer's own bar counts optimizer steps. Another one shows itself by its total, by how many counts lie between two
    logged points that are `logging_steps` apart, or by a rate that has fewer samples in it than such steps would take.
    """
    accumulation = shown.facts.values.get("grad_accum")
    planned = shown.facts.optimization_steps
    if planned and shown.total:
        return 1 if shown.total == planned else accumulation if shown.total == planned * (accumulation or 0) else None
    if not accumulation or accumulation == 1:
        return 1
    every = whole(shown.facts.arguments.get("logging_steps"))
    counts = [state.count for event in shown.logged if (state := _state_at(shown, event.index))]
    gaps = [later - earlier for earlier, later in itertools.pairwise(counts) if later > earlier]
    apart = (every or 0) * accumulation
    # A bar that is drawn over a loader shows a count that may be some micro-batches old.
    spread = bool(apart) and len(gaps) >= 3 and min(gaps) >= 0.75 * apart
    return accumulation if spread or _fewer_samples(shown) else 1


def _fewer_samples(shown: Course) -> bool:
    """Whether the result's own samples are as many micro-batches as the bar counts: Trainer's are never fewer than what
    was completed."""
    sizes = [shown.facts.values.get(key) for key in ("micro_batch", "world_size")]
    result = {key: value for event in shown.results for key, value in event.values.items()}
    measures = [trainer_events.measure(result.get(f"train_{key}")) for key in ("samples_per_second", "runtime")]
    known = [one.value for one in measures if one is not None]
    if not shown.states or None in sizes or len(known) < 2:
        return False
    micro_batches: float = math.prod(known) / math.prod(size for size in sizes if size)
    return abs(micro_batches - shown.states[-1].count) <= 0.05 * shown.states[-1].count
