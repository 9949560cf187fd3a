"""One run that several sources tell: its console, its W&B folder, its output folder -> one row.

Sources are of one run if they name the same run of W&B's, or if what they logged is the same: every loss at the steps
that both show, and the runtime, or while that is not known the `output_dir` that they were given. A name is no
evidence, and neither is a folder: a run that is started again writes to the same. Where two sources of one kind would
come together (a run stopped and resumed, a run repeated) they stay apart.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import math
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

from lm_scale.report.derive import derive
from lm_scale.report.ingest import Reading
from lm_scale.report.rates import Step
from lm_scale.report.rows import Row

EXACT_FIRST = (
    *("lm_scale", "hf_trainer_state", "wandb_offline", "wandb", "hf_trainer_log", "deepspeed_log", "megatron_log"),
    "csv",
)
"""Whose row it becomes: the others fill what it does not know. A console rounds."""
SERIES = frozenset(("hf_trainer_state", "wandb_offline", "wandb", "hf_trainer_log"))
"""The sources that one Trainer writes side by side."""
ROUNDED = 6e-4
"""The relative difference of two numbers of which one was printed with four digits."""
CLOSE = 2e-3
"""The same of what was computed from such numbers."""
COMMON_POINTS = 2
LABELS = frozenset(
    (
        *("name", "owner", "source", "path", "host", "created_at", "started_at", "finished_at", "last_record_at"),
        *("last_error", "flags", "model", "dataset", "tokenizer", "wandb_url", "data_fingerprint"),
    )
)
"""Keys in which sources of one run may have words of their own: they contradict nothing."""
FLAGGED_KEYS = {
    "train_loss_whole_run": ("train_loss",),
    "no_step_times": ("step_s", "tokens_per_s"),
    "rates_of_part": ("step_s", "tokens_per_s"),
    "evaluation_in_runtime": ("step_s", "runtime_s"),
    "samples_contradict": ("samples_seen",),
    "peak_uncertain": ("peak_device_bytes",),
    "source_disagrees": (),
    "log_incomplete": (),
}
"""Of a source that fills a row: the flags that come along only with one of these keys."""


def joined(readings: Sequence[Reading]) -> list[Reading]:
    """The readings, those of one run as one where the first of them stood."""
    alike = list(_logged_alike(readings))
    exact = [pair for pair in alike if not _printed(*pair)]
    groups = _apart([[reading] for reading in readings], _named_alike(readings))
    for pairs in (exact, alike):  # what was printed with four digits may be of two runs
        groups = _apart(groups, pairs)
    return [_joined(group) if len(group) > 1 else group[0] for group in groups]


def _named_alike(readings: Sequence[Reading]) -> Iterable[tuple[Reading, Reading]]:
    """Pairs that name one run of W&B's, or are a run of this project and its mirror there."""
    by_key: dict[Hashable, list[Reading]] = collections.defaultdict(list)
    for reading in readings:
        row = reading.row
        if reading.wandb_id is not None:
            by_key["wandb", reading.wandb_id].append(reading)
        if row.created_at is not None:
            by_key["header", row.created_at, row.strategy, row.params, row.seed].append(reading)
    for key, alike in by_key.items():
        if key[0] == "wandb" or {reading.row.source for reading in alike} > {"lm_scale"}:  # type: ignore[index]
            yield from itertools.pairwise(alike)


def _logged_alike(readings: Sequence[Reading]) -> Iterable[tuple[Reading, Reading]]:
    """Pairs of a Trainer's sources that logged the same."""
    by_key: dict[Hashable, list[Reading]] = collections.defaultdict(list)
    for reading in readings:
        if reading.row.source not in SERIES:
            continue
        if reading.output_dir is not None:
            by_key["folder", reading.output_dir].append(reading)
        if reading.row.runtime_s:
            near = round(math.log(reading.row.runtime_s) / CLOSE)
            for bucket in (near, near + 1):
                by_key["runtime", bucket].append(reading)
    for candidates in by_key.values():
        if len({reading.row.source for reading in candidates}) > 1:
            yield from (pair for pair in itertools.combinations(candidates, 2) if _same_course(*pair))


def _same_course(one: Reading, other: Reading) -> bool:
    """Whether both logged the same, and nothing that both know is unlike."""
    if one.row.source == other.row.source:
        return False
    if one.wandb_id is not None and other.wandb_id is not None and one.wandb_id != other.wandb_id:
        return False
    tolerance = ROUNDED if _printed(one, other) else 1e-9
    agree = {key: _agree(getattr(one.row, key), getattr(other.row, key), tolerance) for key in ("runtime_s", "steps")}
    points = _same_points(one.steps, other.steps, tolerance)
    if False in (*agree.values(), points):
        return False
    if points is None:  # no step that both show
        losses = _agree(one.row.train_loss, other.row.train_loss, tolerance)
        return bool(agree["runtime_s"] and agree["steps"] and losses)
    return bool(agree["runtime_s"]) or (one.output_dir is not None and one.output_dir == other.output_dir)


def _printed(one: Reading, other: Reading) -> bool:
    return "hf_trainer_log" in (one.row.source, other.row.source)


def _same_points(one: Sequence[Step], other: Sequence[Step], tolerance: float) -> bool | None:
    """Whether the losses, norms and rates are the same at every step that both show; None where those are too few."""
    theirs = {step.step: step for step in other}
    common = [(step, theirs[step.step]) for step in one if step.step in theirs and step.loss is not None]
    for mine, their in common:
        for key in ("loss", "grad_norm", "learning_rate"):
            if _agree(getattr(mine, key), getattr(their, key), tolerance) is False:
                return False
    return True if len(common) >= COMMON_POINTS else None


def _agree(one: Any, other: Any, tolerance: float) -> bool | None:
    """Whether two values are the same; None where one is not known."""
    if one is None or other is None:
        return None
    if isinstance(one, float) or isinstance(other, float):
        both_nan = math.isnan(one) and math.isnan(other)
        return both_nan or one == other or abs(one - other) <= tolerance * max(abs(one), abs(other))
    return bool(one == other)


def _apart(groups: Sequence[list[Reading]], pairs: Iterable[tuple[Reading, Reading]]) -> list[list[Reading]]:
    """The groups, connected by the pairs wherever no two of one source come together."""
    group_of = {id(reading): number for number, group in enumerate(groups) for reading in group}
    parent = list(range(len(groups)))

    def root(number: int) -> int:
        while parent[number] != number:
            number = parent[number]
        return number

    for one, other in pairs:
        first, second = sorted((root(group_of[id(one)]), root(group_of[id(other)])))
        parent[second] = first
    connected: dict[int, list[int]] = collections.defaultdict(list)
    for number in range(len(groups)):
        connected[root(number)].append(number)
    result: dict[int, list[Reading]] = {}
    for numbers in connected.values():
        members = [reading for number in numbers for reading in groups[number]]
        if len({reading.row.source for reading in members}) == len(members):
            result[numbers[0]] = members
        else:
            result |= {number: groups[number] for number in numbers}
    return [result[number] for number in sorted(result)]


def _joined(group: Sequence[Reading]) -> Reading:
    """The most exact source's reading, its gaps filled from the others in their order."""
    first, *others = sorted(group, key=lambda reading: EXACT_FIRST.index(reading.row.source))
    for other in others:
        _fill(first.row, other.row)
        first.steps = _fill_points(first.steps, other.steps)
        first.evals = first.evals or list(other.evals)
        first.output_dir = first.output_dir or other.output_dir
        first.wandb_id = first.wandb_id or other.wandb_id
    if first.row.source != "lm_scale":
        derive(first.row)
    return first


def _fill(row: Row, other: Row) -> None:
    """Put into `row` what only `other` knows; what both know in unlike ways is flagged, and stays as it is."""
    doubted = {flag["message"].partition(":")[0] for flag in row.flags if flag["code"] == "source_disagrees"}
    filled = set()
    for key in (field.name for field in dataclasses.fields(Row)):
        mine, theirs = getattr(row, key), getattr(other, key)
        if key == "flags" or theirs is None or key in doubted:
            continue
        if mine is None:
            setattr(row, key, theirs)
            filled.add(key)
        elif key not in LABELS and not _agree(mine, theirs, CLOSE):
            said = f"{key}: {mine} in {row.path}, {theirs} in {other.path}"
            row.flag("source_disagrees", said)
    codes = {flag["code"] for flag in other.flags}
    if "log_incomplete" not in codes:
        row.flags = [flag for flag in row.flags if flag["code"] != "log_incomplete"]
    known = {flag["code"] for flag in row.flags}
    for flag in other.flags:
        keys = FLAGGED_KEYS.get(flag["code"])
        if flag["code"] not in known and (keys is None or filled & set(keys)):
            row.flags.append(flag)


def _fill_points(mine: list[Step], theirs: Sequence[Step]) -> list[Step]:
    """`mine`, its points with what only `theirs` know of the same steps; all of `theirs` where there are none."""
    if not mine:
        return list(theirs)
    by_step = {step.step: step for step in theirs}
    for step in mine:
        if (other := by_step.get(step.step)) is not None:
            for key in ("elapsed_s", "grad_norm", "learning_rate", "samples", "tokens"):
                if getattr(step, key) is None:
                    setattr(step, key, getattr(other, key))
    return mine
