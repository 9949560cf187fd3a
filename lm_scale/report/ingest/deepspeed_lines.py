"""The lines of DeepSpeed's launcher, engine and timers, read one by one: text -> what each launch's lines say."""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from lm_scale.report.ingest.console import Segment, moment
from lm_scale.report.ingest.deepspeed_dump import READ, SETTING

STEP = re.compile(r"\[Rank \d+\] step=(\d+), skipped=(\d+), lr=\[([^\]]*)\], mom=\[")
TIMER = re.compile(
    r"(?:global_step=|\d/)(\d+), (?:RunningAvg)?SamplesPerSec=([\d.e+-]+),.*?MaxMemAllocated=([\d.]+) ?GB"
)
PIPELINE = re.compile(r"steps: (\d+) loss: (\S+) .*?iter time \(s\): ([\d.]+) samples/sec: [\d.]+$")
BREAKDOWN = re.compile(r"time \(ms\) \| (fwd|fwd_microstep|forward): ")
MAXIMUM = re.compile(r"Max_MA ([\d.]+) GB")
TOPOLOGY = re.compile(r"Using topology: \{(.*)\}\s*$")
PARAMETERS = re.compile(r"UNIQUE_PARAMS=(\d+) \(")
ZERO_DTYPE = re.compile(r"Creating torch\.(\w+) ZeRO stage \d optimizer")
ACCELERATOR = re.compile(r"ds_accelerator to (?!cpu)\w+|NCCL (?:INFO|version)|backend:? (?:nccl|hccl|xccl)|cuda:\d")
LAUNCH = re.compile(r"runner\.py:\d+:main\] cmd = ")
WORLD = re.compile(r"launch\.py:\d+:main\] dist_world_size=(\d+)\s*$")
NODES = re.compile(r"launch\.py:\d+:main\] nnodes=(\d+), num_local_procs=(\d+),")
SPAWNED = re.compile(r"\[launch\.py:\d+:\w+\] process (\d+) spawned")
LEFT = re.compile(r"\[launch\.py:\d+:\w+\] Process (\d+) exits successfully\.")
STOPPED = re.compile(r"launch\.py:\d+:\w+\](?: Main process received SIG|.* exits with return code = -?\d+\s*$)")


@dataclass
class Shown:
    """One `step=` line: the engine's step, those skipped until then, and when it was printed."""

    step: int
    skipped: int
    learning_rate: float | None
    time: datetime.datetime | None


@dataclass
class Run:
    """What the lines of one launch say. A setting that they state in two ways has both values."""

    lines: list[Segment]
    settings: dict[str, set[str]] = field(default_factory=dict)
    printed: set[str] = field(default_factory=set)
    shown: list[Shown] = field(default_factory=list)
    timers: list[tuple[int, float]] = field(default_factory=list)
    pipeline: dict[int, tuple[float, float]] = field(default_factory=dict)
    forwards: int = 0
    peaks_gib: list[float] = field(default_factory=list)
    on_accelerator: bool = False
    spawned: set[str] = field(default_factory=set)
    left: dict[str, datetime.datetime] = field(default_factory=dict)
    started: datetime.datetime | None = None
    stopped: datetime.datetime | None = None

    def value(self, name: str) -> str | None:
        stated = self.settings.get(name, set())
        return next(iter(stated)) if len(stated) == 1 else None

    def whole(self, name: str) -> int | None:
        text = self.value(name)
        return int(text) if text is not None and text.isdigit() else None


def launches(segments: Sequence[Segment]) -> Iterator[list[Segment]]:
    """The lines of each launch: a launcher's first words, a new engine after steps, or a step number that falls."""
    current: list[Segment] = []
    last_step, launcher = 0, False
    for segment in segments:
        text = segment.text
        step = STEP.search(text) if "step=" in text else None
        first = LAUNCH.search(text) or (not launcher and "WORLD INFO DICT" in text and "launch.py" in text)
        if current and (
            (first and (launcher or last_step))
            or (last_step and "DeepSpeedEngine configuration:" in text)
            or (step is not None and int(step[1]) < last_step)
        ):
            yield current
            current, last_step, launcher = [], 0, False
        launcher = launcher or bool(first)
        last_step = int(step[1]) if step else last_step
        current.append(segment)
    yield current


def parsed(lines: list[Segment]) -> Run:
    run = Run(lines)
    for segment in lines:
        text = segment.text
        if not segment.ended:
            continue  # cut off, or overwritten by a bar: a number in it may lack its last digits
        if "[" in text and (found := SETTING.search(text)):
            run.printed.add(found[1])
            if found[1] in READ:
                run.settings.setdefault(found[1], set()).add(found[2])
        elif "step=" in text or "SamplesPerSec" in text:
            _read_step(run, text)
        elif "steps: " in text and (found := PIPELINE.search(text.rstrip())):
            run.pipeline[int(found[1])] = (float(found[2]), float(found[3]))
        elif "time (ms)" in text and (found := BREAKDOWN.search(text)):
            run.forwards += found[1] != "fwd_microstep"
        elif "launch" in text or "runner.py" in text:
            _read_launcher(run, text)
        elif found := MAXIMUM.search(text) if "Max_MA" in text else None:
            run.peaks_gib.append(float(found[1]))
        else:
            for pattern, name in ((TOPOLOGY, "topology"), (PARAMETERS, "params"), (ZERO_DTYPE, "zero_dtype")):
                if found := pattern.search(text):
                    run.settings.setdefault(name, set()).add(found[1])
        run.on_accelerator = run.on_accelerator or bool(ACCELERATOR.search(text))
    return run


def _read_step(run: Run, text: str) -> None:
    if found := STEP.search(text):
        if int(found[1]):  # the engine reports step 0 when it is built
            rate = found[3].split(",")[0]
            learning_rate = float(rate) if re.fullmatch(r"[\d.]+(?:e[+-]?\d+)?", rate) else None
            run.shown.append(Shown(int(found[1]), int(found[2]), learning_rate, moment(text)))
    elif found := TIMER.search(text):
        run.timers.append((int(found[1]), float(found[2])))
        run.peaks_gib.append(float(found[3]))


def _read_launcher(run: Run, text: str) -> None:
    if LAUNCH.search(text):
        run.started = moment(text)
    elif found := SPAWNED.search(text):
        run.spawned.add(found[1])
    elif (found := LEFT.search(text)) and (time := moment(text)):
        run.left[found[1]] = time
    elif STOPPED.search(text):
        run.stopped = moment(text)
    elif found := NODES.search(text):
        run.settings.setdefault("nodes", set()).add(found[1])
        run.settings.setdefault("local_processes", set()).add(found[2])
    elif found := WORLD.search(text):
        run.settings.setdefault("processes", set()).add(found[1])
