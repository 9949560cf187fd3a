"""The series of all runs as one long frame for a notebook."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lm_scale.report import losses
from lm_scale.report.ingest import Reading

if TYPE_CHECKING:
    import pandas

COLUMNS = {
    **{"run": "string", "kind": "string", "step": "Int64", "elapsed_s": "Float64", "step_s": "Float64"},
    **{"samples": "Int64", "tokens": "Int64", "useful_tokens": "Int64", "samples_seen": "Int64"},
    **{"tokens_seen": "Int64", "loss": "Float64", "bits_per_byte": "Float64", "grad_norm": "Float64"},
    **{"learning_rate": "Float64", "skipped": "boolean", "compiled": "boolean", "final": "boolean"},
}
"""The columns and their pandas types."""

STEP_KEYS = (
    *("step", "elapsed_s", "step_s", "samples", "tokens", "useful_tokens", "loss", "grad_norm", "learning_rate"),
    *("skipped", "compiled"),
)
EVAL_KEYS = ("step", "elapsed_s", "tokens_seen", "loss", "bits_per_byte", "final")


def frame(readings: Sequence[Reading]) -> pandas.DataFrame:
    """A row a point of any run's series, first a run's steps, then its evaluations, NA for what is not known.

    `run` is the row's name, `kind` is `step` or `eval`. `samples`, `tokens` and `useful_tokens` are the step's own,
    `samples_seen` and `tokens_seen` what was trained on up to and with it. Losses are nats a token (NA where one was
    not a number), times seconds. A foreign log has the steps that it shows and no others.
    """
    import pandas

    names: list[str] = []
    points: dict[str, list[Any]] = {name: [] for name in COLUMNS if name != "run"}
    for reading in readings:
        names += [reading.row.name] * (len(reading.steps) + len(reading.evals))
        steps = {key: [getattr(step, key) for step in reading.steps] for key in STEP_KEYS}
        steps["samples_seen"] = _at_each(reading, losses.samples_seen(reading))
        steps["tokens_seen"] = _at_each(reading, losses.tokens_seen(reading))
        evals = {key: [getattr(evaluation, key) for evaluation in reading.evals] for key in EVAL_KEYS}
        _extend(points, "step", steps, len(reading.steps))
        _extend(points, "eval", evals, len(reading.evals))
    columns = {"run": names, **points}
    return pandas.DataFrame({name: pandas.Series(columns.pop(name), dtype=kind) for name, kind in COLUMNS.items()})


def _extend(points: dict[str, list[Any]], kind: str, values: dict[str, list[Any]], count: int) -> None:
    for name, column in points.items():
        column += [kind] * count if name == "kind" else values.get(name) or [None] * count


def _at_each(reading: Reading, seen: Sequence[int | None]) -> list[int | None]:
    """`seen` has the steps that were not skipped; a skipped one saw no more than the one before it."""
    rest, latest, filled = iter(seen), None if None in seen else 0, []
    for step in reading.steps:
        latest = latest if step.skipped else next(rest)
        filled.append(latest)
    return filled
