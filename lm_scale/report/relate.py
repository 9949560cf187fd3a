"""Rows beside one another: the baseline, what is relative to it, and the flags that only a comparison can raise."""

from __future__ import annotations

import collections
import datetime
import difflib
from collections.abc import Sequence
from pathlib import Path

from lm_scale.arguments import UserError
from lm_scale.report import losses
from lm_scale.report.ingest import Reading
from lm_scale.report.rates import ratio
from lm_scale.report.rows import Row

DIFFERENCES = (
    ("differs_model", "model"),
    ("differs_model", "params"),
    ("differs_data", "dataset"),
    ("differs_tokenizer", "tokenizer"),
    ("differs_seq_len", "seq_len"),
    ("differs_packing", "packing"),
    ("differs_global_batch", "global_batch"),
    ("differs_precision", "precision"),
    ("differs_reduction_precision", "reduction_precision"),
    ("differs_master_weights", "master_weights"),
    ("differs_checkpointing", "activation_checkpointing"),
    ("differs_compile", "torch_compile"),
    ("differs_attention", "attn_implementation"),
    ("differs_loss", "loss"),
    ("differs_optimizer", "optimizer"),
    ("differs_learning_rate", "learning_rate"),
    ("differs_lr_schedule", "lr_schedule"),
    ("differs_planned_steps", "planned_steps"),
    ("differs_seed", "seed"),
    ("differs_device", "device"),
)
"""A flag's code and the key that raises it where both rows know it and differ."""

RELATIVE_CODES = {code for code, _ in DIFFERENCES} | {"differs_tokens"}
"""The flags that say what sets a row apart from the baseline: they change with it."""

UNRANKED_CODES = (RELATIVE_CODES - {"differs_seed"}) | {
    *("overlapping_run", "device_shared", "mfu_above_1", "rate_contradicts_runtime", "samples_contradict"),
    *("memory_below_states", "constant_measure", "evaluation_in_runtime", "resumed"),
}
"""The flags of a row that has no place in a ranking: its conditions are others, or its numbers are in doubt."""

NAMES_SHOWN = 12


def relate(readings: Sequence[Reading], baseline: str | None = None) -> Row:
    """Tell apart runs of one name, find the baseline, and fill and flag what a comparison says (see `compare`).

    `baseline` is a run's name, `owner/name`, or a strategy's name; without one see `default_baseline`. Returns the
    baseline's row; `readings` holds at least one.

    Raises:
        UserError: no row, or more than one, is called `baseline`.
    """
    rows = [reading.row for reading in readings]
    _tell_apart(rows)
    reference = _named(rows, baseline) if baseline else default_baseline(rows)
    compare(readings, next(reading for reading in readings if reading.row is reference))
    _flag_overlaps(rows)
    return reference


def default_baseline(rows: Sequence[Row]) -> Row:
    """The first row that knows its tokens/s, else the first that knows its samples/s, else the first of all."""
    for key in ("tokens_per_s", "samples_per_s"):
        known = next((row for row in rows if getattr(row, key) is not None), None)
        if known is not None:
            return known
    return rows[0]


def compare(readings: Sequence[Reading], reference: Reading) -> None:
    """Fill speedup, efficiency and loss differences of each row against `reference`, and flag unlike conditions.

    `speedup` is the ratio of tokens/s where both rows know it, else of samples/s where both know that and state the
    same sequence length or both none, unless one did too few steps to have rates. `efficiency` divides it by the ratio
    of the ranks. `delta_loss` is between the final evaluations; the other three are at the last step, token and second
    that both runs reached (`losses.difference`). What an earlier comparison said is replaced.
    """
    base, base_curves = reference.row, losses.curves(reference)
    for reading in readings:
        row = reading.row
        row.speedup = _speedup(row, base)
        ranks = ratio(row.world_size, base.world_size)
        row.efficiency = ratio(row.speedup, ranks)
        both_evaluated = row.eval_loss is not None and base.eval_loss is not None
        row.delta_loss = (row.eval_loss or 0.0) - (base.eval_loss or 0.0) if both_evaluated else None
        mine = losses.curves(reading)
        row.delta_loss_equal_steps = losses.difference(mine.steps, base_curves.steps)
        row.delta_loss_equal_tokens = losses.difference(mine.tokens, base_curves.tokens)
        row.delta_loss_equal_time = losses.difference(mine.seconds, base_curves.seconds)
        row.flags = [flag for flag in row.flags if flag["code"] not in RELATIVE_CODES]
        _flag_differences(row, base)


def _speedup(row: Row, base: Row) -> float | None:
    if row.tokens_per_s is not None and base.tokens_per_s is not None:
        return ratio(row.tokens_per_s, base.tokens_per_s)
    too_few = any(flag["code"] == "too_few_steps" for one in (row, base) for flag in one.flags)
    if too_few or row.seq_len != base.seq_len:
        return None
    return ratio(row.samples_per_s, base.samples_per_s)


def _named(rows: Sequence[Row], name: str) -> Row:
    found = (
        [row for row in rows if row.name == name]
        or [row for row in rows if f"{row.owner}/{row.name}" == name]
        or [row for row in rows if row.strategy == name]
    )
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(f"--baseline {name}: {len(found)} runs have this strategy; name one of {_names(found)}")
    near = difflib.get_close_matches(name, [row.name for row in rows], n=1)
    if near and len(rows) > NAMES_SHOWN:
        raise UserError(f"--baseline {name}: no such run; did you mean {near[0]}?")
    raise UserError(f"--baseline {name}: no such run; there are {_names(rows)}")


def _names(rows: Sequence[Row]) -> str:
    more = f" and {len(rows) - NAMES_SHOWN} more" if len(rows) > NAMES_SHOWN else ""
    return ", ".join(row.name for row in rows[:NAMES_SHOWN]) + more


def _tell_apart(rows: Sequence[Row]) -> None:
    """Runs of one name get their owners before it, else as much of their path as tells them apart, else a number."""
    for same in _clashes(rows):
        if len({row.owner for row in same} - {None}) == len(same):
            for row in same:
                row.name = f"{row.owner}/{row.name}"
    for same in _clashes(rows):
        counts = collections.Counter(row.path for row in same)
        apart = [row for row in same if row.path and counts[row.path] == 1]
        depth = 1
        while len(apart) > 1 and len({row.name for row in apart}) < len(apart):
            depth += 1
            for row in apart:
                row.name = str(Path(*Path(row.path or "").absolute().parts[-depth:]))
    for same in _clashes(rows):
        for number, row in enumerate(same[1:], 2):
            row.name = f"{row.name} #{number}"


def _clashes(rows: Sequence[Row]) -> list[list[Row]]:
    by_name = collections.defaultdict(list)
    for row in rows:
        by_name[row.name].append(row)
    return [same for same in by_name.values() if len(same) > 1]


def _flag_differences(row: Row, reference: Row) -> None:
    raised = set()
    for code, key in DIFFERENCES:
        mine, theirs = getattr(row, key), getattr(reference, key)
        if mine is not None and theirs is not None and mine != theirs and code not in raised:
            raised.add(code)
            row.flag(code, f"{key} {_said(mine)}, the baseline {reference.name} has {_said(theirs)}")
    cuts = {(one.dataset, one.tokenizer, one.seq_len, one.packing) for one in (row, reference)}
    prints = {one.data_fingerprint for one in (row, reference)}
    if len(cuts) == 1 and len(prints) == 2 and None not in prints:
        row.flag("differs_data", f"the text behind {row.dataset} is not what the baseline {reference.name} read")
    _flag_tokens(row, reference)


def _flag_tokens(row: Row, reference: Row) -> None:
    """Unequal amounts of text, where both runs have a loss that they could be compared by."""
    key = "tokens_seen"
    if (row.tokens_seen is None or reference.tokens_seen is None) and row.seq_len == reference.seq_len:
        key = "samples_seen"
    mine, theirs = getattr(row, key), getattr(reference, key)
    losses_known = any(
        getattr(row, loss) is not None and getattr(reference, loss) is not None for loss in ("eval_loss", "train_loss")
    )
    if losses_known and mine is not None and theirs is not None and mine != theirs:
        row.flag("differs_tokens", f"{key} {mine}, the baseline {reference.name} has {theirs}")


def _said(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _flag_overlaps(rows: Sequence[Row]) -> None:
    """Flag the runs whose times overlap on one host; logs of one folder that name no host may have shared it."""
    places: dict[tuple[str | None, ...], list[tuple[Row, datetime.datetime, datetime.datetime]]] = {}
    for row in rows:
        place, span = _place(row), _span(row)
        if place and span:
            places.setdefault(place, []).append((row, *span))
    for busy in places.values():
        busy.sort(key=lambda one: one[1])
        others: dict[int, list[Row]] = {id(row): [] for row, _, _ in busy}
        for number, (row, _, end) in enumerate(busy):
            for other, other_start, _ in busy[number + 1 :]:
                if other_start >= end:
                    break
                others[id(row)].append(other)
                others[id(other)].append(row)
        for row, _, _ in busy:
            row.flags = [flag for flag in row.flags if flag["code"] != "overlapping_run"]
            if others[id(row)]:
                where = f"on {row.host} " if row.host else ""
                unknown = "" if row.host else "; neither log names its host: they may have shared it"
                message = f"ran {where}at the same time as {_names(others[id(row)])}{unknown}"
                row.flag("overlapping_run", message)


def _place(row: Row) -> tuple[str | None, ...] | None:
    """What runs must share to disturb each other: the host, or for logs without one their folder and kind of device."""
    if row.host:
        return (row.host,)
    return (str(Path(row.path).absolute().parent), row.device) if row.path else None


def _span(row: Row) -> tuple[datetime.datetime, datetime.datetime] | None:
    """When the row's run used its host: from its first step to its end, or to the last that was heard of it."""
    start = moment(row.started_at)
    if start is None:
        return None
    if row.finished_at is None and row.status == "running":
        return start, datetime.datetime.now().astimezone()
    return start, moment(row.finished_at or row.last_record_at) or start


def moment(text: str | None) -> datetime.datetime | None:
    """An ISO 8601 time; one without offset is local."""
    return datetime.datetime.fromisoformat(text).astimezone() if text else None
