"""The columns of the table for people, in each layout, and the notes under it."""

from __future__ import annotations

import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lm_scale.report import display
from lm_scale.report.display import fixed, number, percent, significant, whole
from lm_scale.report.rates import ratio
from lm_scale.report.rows import MEANINGS, Row, kinds
from lm_scale.report.select import Selection

HOMEWORK_KEYS = (
    *("name", "device", "world_size", "engine", "strategy", "offload", "precision", "micro_batch", "grad_accum"),
    *("global_batch", "steps_per_s", "samples_per_s", "samples_seen", "steps", "runtime_s", "eval_loss"),
    *("peak_device_bytes", "flags"),
)
"""The row keys behind the columns of the homework layout, for programs."""


@dataclass(frozen=True)
class Column:
    """What stands over it, what a row says, and how soon a narrow terminal does without it (0: never).

    In a layout whose columns all stay, `short` is the title in a terminal too narrow for the other, and `folded` the
    least width on which the cell may there take several lines (0: it is kept whole).
    """

    title: str
    text: Callable[[Row], str]
    left: bool = False
    spare: int = 0
    short: str = ""
    folded: int = 0

    @property
    def name(self) -> str:
        """The title on one line."""
        return " ".join(self.title.replace("-\n", "").split())


def of_keys(keys: Sequence[str]) -> list[Column]:
    """A column a row key, under its own name."""
    return [_of_key(key) for key in keys]


def _of_key(key: str) -> Column:
    return Column(key, lambda row: display.of_key(key, getattr(row, key)), left=kinds()[key] in (str, list))


def compact(rows: Sequence[Row]) -> list[Column]:
    """Strategy, sizes, throughput, time, memory, comparison, loss, status, flags; what no row knows is left out."""
    return [column for column in _compact(rows) if not (column.spare and _blank(column, rows))]


def _compact(rows: Sequence[Row]) -> list[Column]:
    by_strategy = len({row.strategy for row in rows if row.strategy}) == len(rows)
    name = "strategy" if by_strategy else "run"
    letters = marks(rows)
    merged = [Column("runs", _runs, spare=1)] if any(row.runs is not None for row in rows) else []
    return [
        Column(name, lambda row: display.clean(row.strategy if by_strategy else row.name), left=True),
        *merged,
        Column("ranks", lambda row: whole(row.world_size)),
        Column("micro\nx accum", _batch, spare=2),
        *_throughput(rows),
        Column("spread", lambda row: percent(_spread(row)), spare=4),
        Column("step\nms", lambda row: number(row.step_s, 1000)),
        *_memory(rows),
        Column("\nMFU", lambda row: percent(row.mfu), spare=3),
        Column("r", lambda row: fixed(row.speedup, 2)),
        Column("eff", lambda row: fixed(row.efficiency, 2), spare=6),
        Column("train\nloss", lambda row: fixed(row.train_loss, 4), spare=8),
        Column("eval\nloss", lambda row: fixed(row.eval_loss, 4)),
        Column("status", lambda row: display.clean(row.status), left=True),
        Column("flags", lambda row: _letters(row, letters), left=True),
    ]


def _blank(column: Column, rows: Sequence[Row]) -> bool:
    return all(column.text(row) == display.UNKNOWN for row in rows)


def homework(rows: Sequence[Row]) -> list[Column]:
    """The columns of the homework's own table, and the flags."""
    letters = marks(rows)
    return [
        Column("run", lambda row: display.clean(row.name), left=True, short="run", folded=10),
        Column("devices", _devices, left=True, short="dev", folded=8),
        Column("world\nsize", lambda row: whole(row.world_size), short="ws"),
        Column("mode", _mode, left=True, short="mode", folded=11),
        Column("precision", lambda row: display.clean(row.precision), left=True, short="prec"),
        Column("per-device\nbatch", lambda row: whole(row.micro_batch), short="b/dev"),
        Column("accumu-\nlation", lambda row: whole(row.grad_accum), short="acc"),
        Column("effective\nbatch", lambda row: whole(row.global_batch), short="eff"),
        Column("it/s", lambda row: significant(row.steps_per_s), short="it/s"),
        Column("samples/s", lambda row: significant(row.samples_per_s), short="smp/s"),
        Column("samples\nseen", lambda row: whole(row.samples_seen), short="seen"),
        Column("steps", lambda row: whole(row.steps), short="steps"),
        Column("runtime\ns", lambda row: fixed(row.runtime_s, 1), short="s"),
        Column("eval\nloss", lambda row: fixed(row.eval_loss, 4), short="eval"),
        Column("memory", lambda row: display.size(row.peak_device_bytes), short="mem"),
        Column("flags", lambda row: _letters(row, letters), left=True, short="flags", folded=5),
    ]


def notes(selection: Selection, layout: str) -> list[str]:
    """What stands under a table: what r refers to, how the rates are meant, what went wrong, what the flags mean."""
    rows = selection.rows
    said = list(selection.notes)
    said += _compact_notes(selection) if layout == "compact" else [
        "it/s, samples/s: completed optimizer steps and their samples over the runtime; memory: the highest peak of "
        "any device"
    ]  # fmt: skip
    failed = [row for row in rows if row.last_error]
    said += [
        f"{display.clean(row.name)}: {display.clean(row.status)}: {display.clean(row.last_error)}" for row in failed
    ]
    return said + [f"{mark} {code}: {MEANINGS[code]}" for code, mark in marks(rows).items()]


def _compact_notes(selection: Selection) -> list[str]:
    rows = selection.rows
    rate = "tokens/s" if _tokens_known(rows) else "samples/s"
    names = list(dict.fromkeys(display.clean(part.baseline.name) for part in selection.parts))
    why = "" if selection.baseline_given else " (the first run with a throughput; --baseline NAME takes another)"
    if all(part.baseline.tokens_per_s is None and part.baseline.samples_per_s is None for part in selection.parts):
        why = " (which has none)"
    if any(part.baseline not in part.rows for part in selection.parts):
        why += ", not all of which are shown" if len(names) > 1 else ", which is not shown"
    over = f"those of {names[0]}" if len(names) == 1 else "those of each group's baseline"
    said = [f"r: {rate} over {over}{why}; eff: r over the ratio of the ranks"]
    if rate == "tokens/s" and any(row.tokens_per_s is None and row.speedup is not None for row in rows):
        said.append("r of a run that does not state tokens/s: samples/s over the baseline's")
    spread = "interquartile range of the step time over its median"
    if any(row.runs and row.runs > 1 for row in rows):
        spread = f"for several runs highest minus lowest rate over their median, else {spread}"
        said.append("several runs of a strategy: medians of those that did not fail, which `runs` counts")
    unknown = [column.name for column in _compact(rows) if column.spare and _blank(column, rows)]
    return [
        *said,
        *([f"known of no run: {', '.join(unknown)}"] if unknown else []),
        "rates and step times (medians) are of the steps after warm-up, unless a flag says otherwise; "
        f"spread: {spread}; memory: the highest peak of any rank",
    ]


def marks(rows: Sequence[Row]) -> dict[str, str]:
    """A letter for each flag code that occurs, in the order of `MEANINGS`."""
    present = {flag["code"] for row in rows for flag in row.flags}
    return dict(zip((code for code in MEANINGS if code in present), string.ascii_letters, strict=False))


def _letters(row: Row, letters: dict[str, str]) -> str:
    codes = {flag["code"] for flag in row.flags}
    return "".join(letter for code, letter in letters.items() if code in codes)


def _tokens_known(rows: Sequence[Row]) -> bool:
    return any(row.tokens_per_s is not None for row in rows) or all(row.samples_per_s is None for row in rows)


def _throughput(rows: Sequence[Row]) -> list[Column]:
    """Tokens/s a rank; samples/s where no row knows its tokens, and beside them where only some do."""
    tokens = Column("tokens/s\na rank", lambda row: number(row.tokens_per_s_per_rank))
    samples = Column("samples/s", lambda row: number(row.samples_per_s))
    if not _tokens_known(rows):
        return [samples]
    only_samples = [row for row in rows if row.tokens_per_s is None and row.samples_per_s is not None]
    total = Column("tokens/s", lambda row: number(row.tokens_per_s), spare=9)
    return [total, tokens, samples] if only_samples else [total, tokens]


def _spread(row: Row) -> float | None:
    """The range of merged runs' rates, or the interquartile range of one run's step times, over the median."""
    if row.runs and row.runs > 1:
        return ratio(row.tokens_per_s_spread, row.tokens_per_s) or ratio(row.samples_per_s_spread, row.samples_per_s)
    return ratio(row.step_s_iqr, row.step_s)


def _runs(row: Row) -> str:
    """How many runs a merged row stands for."""
    if row.runs is None:
        return display.UNKNOWN
    return f"{row.runs} (+{row.failed_runs} failed)" if row.failed_runs else str(row.runs)


def _memory(rows: Sequence[Row]) -> list[Column]:
    """Device memory where any row knows it, with what was reserved and its share of the card; and the host's."""
    columns = []
    for key, title in (("peak_device_bytes", "device"), ("peak_reserved_bytes", "reserved")):
        columns += _size(rows, key, title, spare=0 if key == "peak_device_bytes" else 5)
    if columns:
        columns.append(Column("of the\ncard", lambda row: percent(_share_of_card(row)), spare=4))
    return [*columns, *_size(rows, "peak_host_bytes", "host", spare=7 if columns else 0)] or [
        Column("memory", lambda row: display.UNKNOWN, spare=1)
    ]


def _size(rows: Sequence[Row], key: str, title: str, spare: int) -> list[Column]:
    """A column in one unit for all rows; none where no row knows the size."""
    known = [size for row in rows if (size := getattr(row, key)) is not None]
    if not known:
        return []
    power = display.power(max(known))
    return [
        Column(f"{title}\n{display.UNITS[power]}", lambda row: number(getattr(row, key), 1 / 1024**power), spare=spare)
    ]


def _share_of_card(row: Row) -> float | None:
    peak = row.peak_device_bytes if row.peak_reserved_bytes is None else row.peak_reserved_bytes
    return ratio(peak, row.device_memory_bytes)


def _batch(row: Row) -> str:
    if row.micro_batch is None and row.grad_accum is None:
        return display.UNKNOWN
    return f"{whole(row.micro_batch)} x {whole(row.grad_accum)}"


def _devices(row: Row) -> str:
    """Number and kind, as far as they are known; every rank has a device of its own."""
    if row.device is None:
        return whole(row.world_size)
    kind = display.clean(row.device)
    return kind if row.world_size is None else f"{row.world_size} x {kind}"


def _mode(row: Row) -> str:
    """How the ranks share the work, in the words of the homework."""
    mode = display.clean(row.strategy)
    if row.engine == "deepspeed" and row.zero_stage is not None:
        mode = f"DeepSpeed ZeRO-{row.zero_stage}"
    elif mode.startswith("fsdp"):
        mode = f"FSDP {mode.removeprefix('fsdp').strip('_')}".strip()
    elif mode == "ddp":
        mode = "DDP"
    if row.pipeline_stages and row.pipeline_stages > 1:
        mode += f", {row.pipeline_stages} pipeline stages"
    places = "+".join(sorted({part.rpartition("_")[2] for part in (row.offload or "none").split("+")}))
    return mode if places == "none" else f"{mode}, {places} offload"
