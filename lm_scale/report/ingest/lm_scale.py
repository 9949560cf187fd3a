"""Rows from the project's own run directories (`lm_scale.records`)."""

from __future__ import annotations

import datetime
import operator
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from lm_scale import records
from lm_scale.report import rates
from lm_scale.report.ingest import Reading, UnreadableError
from lm_scale.report.rows import MEANINGS, Row, checked, typed

LAYOUT_KEYS = ("world_size", "nodes", "data_parallel", "pipeline_stages", "tensor_parallel")
BATCH_KEYS = ("micro_batch", "grad_accum", "global_batch", "seq_len", "packing")
NUMERICS_KEYS = (
    *("precision", "reduction_precision", "master_weights", "activation_checkpointing"),
    *("torch_compile", "attn_implementation", "loss"),
)
"""Keys that the header's section and the row share."""

STEP = b'{"kind": "step"'


class StepRecord(rates.Step, gc=False):
    """A step's record: the seconds since the epoch at which it was written, and the peaks until then."""

    learning_rate: float | None = msgspec.field(default=None, name="lr")
    time: float | None = None
    peak_device_bytes: int | None = None
    peak_reserved_bytes: int | None = None
    peak_host_bytes: int | None = None


STEP_RECORD = msgspec.json.Decoder(StepRecord)


def recognises(path: Path) -> bool:
    """Whether `path` is a run directory."""
    return (path / "run.json").is_file()


def read(path: Path) -> list[Reading]:
    """The run of one run directory.

    Raises:
        UnreadableError: a file is missing, damaged, or not what the schema says.
    """
    try:
        return [reading(records.read(path, _decode))]
    except records.RecordError as error:
        raise UnreadableError(str(error)) from None
    except OSError as error:
        raise UnreadableError(f"{error.filename or path}: {error.strerror}") from None
    except ValueError as error:
        raise UnreadableError(f"{path}: {error}") from None


def reading(run: records.Run) -> Reading:
    """The row and the series of a record.

    Raises:
        ValueError: a value is not what the schema says; the text names it.
    """
    steps = _steps(run)
    row = _row(run)
    _measure(row, steps)
    row.last_record_at = _last_record_at(run, steps)
    evals = _evals(run, steps)
    final = [one for one in evals if one.final]
    if final:
        row.eval_loss = typed("eval loss", final[-1].loss, float)
        row.eval_bits_per_byte = final[-1].bits_per_byte
    _flops(row, run)
    _flag_record(row, run)
    return Reading(row, list(steps), evals)


def _row(run: records.Run) -> Row:
    layout, batch = _section(run, "layout"), _section(run, "batch")
    strategy, numerics = _section(run, "strategy"), _section(run, "numerics")
    model, data = _section(run, "model"), _section(run, "data")
    optimizer, schedule = _section(run, "optimizer"), _section(run, "schedule")
    hardware, predicted = _section(run, "hardware"), _section(run, "predicted")
    return checked(
        name=run.header.get("name") or run.path.name,
        source="lm_scale",
        status=run.status,
        last_error=run.last_error,
        started_at=_moment(run, "started_at"),
        finished_at=_moment(run, "finished_at"),
        engine=strategy.get("engine"),
        strategy=strategy.get("name"),
        zero_stage=strategy.get("zero_stage"),
        offload=strategy.get("offload"),
        **{key: layout.get(key) for key in LAYOUT_KEYS},
        **{key: batch.get(key) for key in BATCH_KEYS},
        **{key: numerics.get(key) for key in NUMERICS_KEYS},
        model=model.get("name"),
        params=model.get("params"),
        dataset=data.get("dataset"),
        tokenizer=data.get("tokenizer"),
        data_fingerprint=data.get("fingerprint"),
        seed=run.header.get("seed"),
        optimizer=optimizer.get("type"),
        learning_rate=optimizer.get("learning_rate"),
        lr_schedule=schedule.get("type"),
        planned_steps=schedule.get("planned_steps"),
        device=hardware.get("device"),
        device_memory_bytes=hardware.get("device_memory_bytes"),
        predicted_device_bytes=predicted.get("peak_device_bytes"),
        predicted_host_bytes=predicted.get("peak_host_bytes"),
        wandb_url=run.header.get("wandb_url"),
        path=str(run.path),
        host=_section(run, "process").get("host"),
        created_at=_moment(run, "created_at"),
    )


def _measure(row: Row, steps: Sequence[StepRecord]) -> None:
    """What the step records say: how far the run came, how fast, with which loss and how much memory."""
    completed = [step for step in steps if not step.skipped]
    row.steps = len(completed)
    row.skipped_steps = len(steps) - len(completed)
    row.samples_seen = rates.total([step.samples for step in completed])
    row.tokens_seen = rates.total([step.tokens for step in completed])
    for key in ("peak_device_bytes", "peak_reserved_bytes", "peak_host_bytes"):
        peaks = [peak for peak in map(operator.attrgetter(key), steps) if peak is not None]
        setattr(row, key, max(peaks, default=None))
    if not steps:
        return
    row.runtime_s = steps[-1].elapsed_s
    row.steps_per_s = rates.ratio(row.steps, row.runtime_s)
    row.samples_per_s = rates.ratio(row.samples_seen, row.runtime_s)
    row.train_loss = typed("loss", rates.train_loss(steps), float)
    row.grad_norm = typed("grad_norm", completed[-1].grad_norm, float) if completed else None
    rate = rates.rates(steps)
    row.step_s, row.step_s_iqr = rate.step_s, rate.step_s_iqr
    row.tokens_per_s, row.useful_tokens_per_s = rate.tokens_per_s, rate.useful_tokens_per_s
    if row.tokens_per_s is not None and row.world_size:
        row.tokens_per_s_per_rank = row.tokens_per_s / row.world_size
    if rate.measured <= 2:
        row.flag("too_few_steps", f"{rate.measured} steps were measured after warm-up; rates need 3")
    if broken := rates.not_finite(steps):
        row.flag("loss_not_finite", f"the loss was {broken.loss} at step {broken.step}")


def _decode(line: bytes) -> tuple[str, Any]:
    """A record as `records.decode_line` gives it, a step as a `StepRecord`."""
    if line.startswith(STEP):
        try:
            return "step", STEP_RECORD.decode(line)
        except msgspec.ValidationError:  # a number that is not finite stands there as text
            pass
    return records.decode_line(line)


def _steps(run: records.Run) -> list[StepRecord]:
    return [step if isinstance(step, StepRecord) else msgspec.convert(step, StepRecord) for step in run.of("step")]


def _loss(value: Any) -> float | None:
    """A loss keeps nan and inf: that the run diverged is a fact of the record."""
    return value if isinstance(value, float) else typed("loss", value, float)


def _evals(run: records.Run, steps: Sequence[StepRecord]) -> list[rates.Eval]:
    """The evaluations, each with the time and the tokens of the step that it follows."""
    seen: dict[int, tuple[float | None, int | None]] = {}
    tokens: int | None = 0
    for step in steps:
        if not step.skipped:
            tokens = None if tokens is None or step.tokens is None else tokens + step.tokens
        seen[step.step] = (step.elapsed_s, tokens)
    evals = []
    for record in run.of("eval"):
        number = typed("step", record.get("step"), int)
        elapsed_s, tokens_seen = seen.get(number, (None, None))
        evals.append(
            rates.Eval(
                step=number,
                loss=_loss(record.get("loss")),
                elapsed_s=elapsed_s,
                tokens_seen=tokens_seen,
                bits_per_byte=typed("bits_per_byte", record.get("bits_per_byte"), float),
                final=bool(record.get("final")),
            )
        )
    return evals


def _flops(row: Row, run: records.Run) -> None:
    per_token = typed("model.flops_per_token", _section(run, "model").get("flops_per_token"), float)
    peak = typed("device_peak_flops_per_s", _section(run, "hardware").get("device_peak_flops_per_s"), float)
    if row.tokens_per_s is not None and per_token is not None:
        row.model_flops_per_s = row.tokens_per_s * per_token
    if peak is not None and row.world_size is not None:
        row.mfu = rates.ratio(row.model_flops_per_s, peak * row.world_size)


def _flag_record(row: Row, run: records.Run) -> None:
    shared = [event for event in run.of("event") if event.get("event") == "device_shared"]
    if shared:
        row.flag("device_shared", str(shared[-1].get("message") or MEANINGS["device_shared"]))
    resumed_step = typed("resumed_step", run.header.get("resumed_step"), int)
    if resumed_step:
        row.flag("resumed", f"resumed from its checkpoint of step {resumed_step}")


def _section(run: records.Run, name: str) -> dict[str, Any]:
    section = run.header.get(name)
    if section is None:
        return {}
    if not isinstance(section, dict):
        raise ValueError(f"run.json: {name}: {section!r} is no object")
    return section


def _moment(run: records.Run, name: str) -> str | None:
    """An ISO 8601 time of the header, known to be one."""
    text: str | None = typed(name, run.header.get(name), str)
    if text is not None:
        datetime.datetime.fromisoformat(text)
    return text


def _last_record_at(run: records.Run, steps: Sequence[StepRecord]) -> str | None:
    others = [
        typed("time", run.of(kind)[-1].get("time"), float) for kind in run.records if kind != "step" and run.of(kind)
    ]
    times = [time for time in (*others, steps[-1].time if steps else None) if time is not None]
    if not times:
        return None
    return datetime.datetime.fromtimestamp(max(times)).astimezone().isoformat(timespec="milliseconds")
