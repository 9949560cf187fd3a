"""Rows beside one another: the baseline, what is relative to it, and the flags that only a comparison can raise."""

from __future__ import annotations

import collections
import datetime
from collections.abc import Sequence
from pathlib import Path

from lm_scale.arguments import UserError
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


def relate(rows: Sequence[Row], baseline: str | None = None) -> Row:
    """Fill speedup, efficiency and delta_loss, and flag what must not be compared. Returns the baseline row of
    at least one.

    `baseline` is a run's name or a strategy's; without one it is the first row that has a throughput, else the first.

    Raises:
        UserError: no row, or more than one, is called `baseline`.
    """
    _tell_apart(rows)
    reference = _named(rows, baseline) if baseline else next((r for r in rows if r.tokens_per_s is not None), rows[0])
    for row in rows:
        row.speedup = ratio(row.tokens_per_s, reference.tokens_per_s)
        if row.world_size and reference.world_size:
            row.efficiency = ratio(row.speedup, row.world_size / reference.world_size)
        if row.eval_loss is not None and reference.eval_loss is not None:
            row.delta_loss = row.eval_loss - reference.eval_loss
        _flag_differences(row, reference)
    _flag_overlaps(rows)
    return reference


def _named(rows: Sequence[Row], name: str) -> Row:
    found = [row for row in rows if row.name == name] or [row for row in rows if row.strategy == name]
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(f"--baseline {name}: {len(found)} runs have this strategy; name one of {_names(found)}")
    raise UserError(f"--baseline {name}: no such run; there are {_names(rows)}")


def _names(rows: Sequence[Row]) -> str:
    return ", ".join(row.name for row in rows)


def _tell_apart(rows: Sequence[Row]) -> None:
    """Runs of the same name in different folders get as much of their path as tells them apart."""
    depth = 1
    while clashing := _same_names(rows):
        depth += 1
        for row in clashing:
            row.name = str(Path(*Path(row.path or "").absolute().parts[-depth:]))


def _same_names(rows: Sequence[Row]) -> list[Row]:
    """The rows whose name another has too and that have folders left to name."""
    counts = collections.Counter(row.name for row in rows)
    return [row for row in rows if counts[row.name] > 1 and row.path and row.name != str(Path(row.path).absolute())]


def _flag_differences(row: Row, reference: Row) -> None:
    for code, key in DIFFERENCES:
        mine, theirs = getattr(row, key), getattr(reference, key)
        if mine is not None and theirs is not None and mine != theirs and code not in _codes(row):
            row.flag(code, f"{key} {_said(mine)}, the baseline {reference.name} has {_said(theirs)}")
    cuts = {(one.dataset, one.tokenizer, one.seq_len, one.packing) for one in (row, reference)}
    prints = {one.data_fingerprint for one in (row, reference)}
    if len(cuts) == 1 and len(prints) == 2 and None not in prints:
        row.flag("differs_data", f"the text behind {row.dataset} is not what the baseline {reference.name} read")


def _said(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _codes(row: Row) -> set[str]:
    return {flag["code"] for flag in row.flags}


def _flag_overlaps(rows: Sequence[Row]) -> None:
    busy = [(row, span) for row in rows if row.host and (span := _span(row))]
    for row, (start, end) in busy:
        others = [
            other.name
            for other, (other_start, other_end) in busy
            if other is not row and other.host == row.host and start < other_end and other_start < end
        ]
        if others:
            row.flag("overlapping_run", f"ran on {row.host} at the same time as {', '.join(others)}")


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
