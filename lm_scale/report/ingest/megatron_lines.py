"""The lines of Megatron-LM, Megatron-DeepSpeed and GPT-NeoX, read one by one: text -> what each run's lines say."""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from lm_scale.report.ingest.console import Segment, moment
from lm_scale.report.ingest.deepspeed_dump import READ, SETTING
from lm_scale.report.ingest.megatron_arguments import arguments
from lm_scale.report.rates import Eval

ITERATION = re.compile(r"\biteration\s+(\d+)/\s*(\d+) \|(.*)\|\s*$")
FIELD = re.compile(r"\s*([^|:]+?(?:\([^)|]*\))?):\s*([^|]*?)\s*\|")
EVALUATION = re.compile(
    r"validation (?:loss|results) at (?:(the end of training for val data)|iteration (\d+)( on validation set)?) *\|"
    r".*?\b(?:lm[ _]loss value|LM loss): ([-+\d.eE]+|nan|inf)(?= *\|)",
)
MEMORY = re.compile(
    r"\[Rank (\d+)\] \(after (\d+) iterations\) memory \(MB\) \| allocated: [\d.]+ \| max allocated: (\d+\.\d+)"
    r" \| reserved: [\d.]+ \| max reserved: (\d+\.\d+)"
)
PARAMETERS = re.compile(r"number of parameters on \(tensor, pipeline\) model parallel rank \((\d+), (\d+)\): (\d+)\s*$")
MICRO_BATCHES = re.compile(r"setting number of micro-?batches to constant (\d+)\s*$")
LOADED = re.compile(r"(?:successfully loaded|loading) checkpoint .*\bat iteration (\d+)\s*$")
TRAINING = re.compile(r"\[before the start of training step\] datetime: ")
DONE = re.compile(r"\[after training is done\] datetime: ")
LEAVING = re.compile(r"exiting program (?:at iteration (\d+)|after (receiving SIGTERM|[\d.]+ minutes))")


@dataclass(frozen=True, slots=True)
class Line:
    """One iteration line; `seconds` is the mean of an iteration."""

    iteration: int
    planned: int
    seconds: float | None
    consumed: int | None
    batch: int | None
    skipped: int | None
    loss: float | None
    grad_norm: float | None
    learning_rate: float | None


@dataclass
class Run:
    """What the lines of one start say. An argument that they state in two ways has both values."""

    lines: list[Segment]
    stated: dict[str, set[str]] = field(default_factory=dict)
    deepspeed_settings: dict[str, set[str]] = field(default_factory=dict)
    iterations: list[Line] = field(default_factory=list)
    evals: list[Eval] = field(default_factory=list)
    memory: list[tuple[int, int, float, float]] = field(default_factory=list)
    parameters: dict[tuple[int, int], int] = field(default_factory=dict)
    began: datetime.datetime | None = None
    ended: datetime.datetime | None = None
    done: bool = False
    left_at: int | None = None
    left_for: str | None = None
    loaded: int | None = None
    neox: bool = False
    megatron_core: bool = False

    def arguments(self) -> dict[str, str]:
        return _agreed(self.stated)

    def deepspeed(self) -> dict[str, str]:
        """What DeepSpeed's engine printed, under Megatron-DeepSpeed and NeoX."""
        return _agreed(self.deepspeed_settings)


def _agreed(stated: dict[str, set[str]]) -> dict[str, str]:
    return {name: next(iter(values)) for name, values in stated.items() if len(values) == 1}


def starts(segments: Sequence[Segment]) -> Iterator[list[Segment]]:
    """The lines of each run: arguments after iterations, or an iteration number that falls, begin another."""
    current: list[Segment] = []
    last = 0
    for segment in segments:
        text = segment.text
        line = line_of(text) if "elapsed time per iteration" in text else None
        begins = ("using world size: " in text or "--- arguments ---" in text) and last
        if current and (begins or (line is not None and line.iteration < last)):
            yield current
            current, last = [], 0
        last = line.iteration if line else last
        current.append(segment)
    yield current


def parsed(lines: list[Segment]) -> Run:
    run = Run(lines)
    for segment in lines:
        text = segment.text
        if not segment.ended:
            continue  # cut off: a number in it may lack its last digits
        if "elapsed time per iteration" in text and (line := line_of(text)):
            if not run.iterations or run.iterations[-1] != line:
                run.iterations.append(line)
            run.neox = run.neox or "approx flops per GPU" in text
            run.megatron_core = run.megatron_core or "throughput per GPU (TFLOP/s/GPU)" in text
        elif ":print]" in text and (setting := SETTING.search(text)) and setting[1] in READ:
            run.deepspeed_settings.setdefault(setting[1], set()).add(setting[2])
        elif " .." in text or "using world size" in text:
            for name, value in arguments(text).items():
                run.stated.setdefault(name, set()).add(value)
        elif "validation" in text and (found := EVALUATION.search(text)):
            run.evals.append(
                Eval(int(found[2]) if found[2] else None, float(found[4]), final=not found[2] or bool(found[3]))
            )
        elif "memory (MB)" in text:
            for found in MEMORY.finditer(text):  # ranks may share a line
                run.memory.append((int(found[1]), int(found[2]), float(found[3]), float(found[4])))
        else:
            _read_mark(run, text)
    return run


def _read_mark(run: Run, text: str) -> None:
    if found := PARAMETERS.search(text):
        run.parameters[int(found[1]), int(found[2])] = int(found[3])
    elif found := MICRO_BATCHES.search(text):
        run.stated.setdefault("gradient_accumulation_steps", set()).add(found[1])
    elif found := LOADED.search(text):
        run.loaded = int(found[1])
    elif TRAINING.search(text):
        run.began = moment(text)
    elif DONE.search(text):
        run.done, run.ended = True, moment(text)
    elif found := LEAVING.search(text):
        run.left_at = int(found[1]) if found[1] else None
        run.left_for = "interrupted" if found[2] == "receiving SIGTERM" else "budget"
        run.ended = moment(text)


def line_of(text: str) -> Line | None:
    found = ITERATION.search(text)
    if found is None:
        return None
    fields = {name.strip(): value for name, value in FIELD.findall(f"{found[3]}|")}
    if "elapsed time per iteration (ms)" in fields:
        seconds = number(fields["elapsed time per iteration (ms)"], 1e-3)
    else:
        seconds = number(fields.get("elapsed time per iteration (s)"))
    loss = next((fields[name] for name in ("lm loss", "lm_loss", "loss") if name in fields), None)
    return Line(
        iteration=int(found[1]),
        planned=int(found[2]),
        seconds=seconds,
        consumed=whole(fields.get("consumed samples")),
        batch=whole(fields.get("global batch size", fields.get("gloabl batch size"))),
        skipped=whole(fields.get("number of skipped iterations")),
        loss=number(loss),
        grad_norm=number(fields.get("grad norm")),
        learning_rate=number(fields.get("learning rate")),
    )


def number(text: str | None, unit: float = 1.0) -> float | None:
    """The number; of `now/mean` the first. A loss may be nan."""
    found = re.fullmatch(r"([-+]?(?:\d+\.?\d*(?:[eE][-+]?\d+)?|nan|inf))(?:/[\d.]+)?", text or "")
    return float(found[1]) * unit if found else None


def whole(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdigit() else None
