"""Measuring steps: where each one's time went, what memory it took, and which rank was slowest.

Host clocks on a CPU; on an accelerator, events on its stream, so that measuring adds no synchronisation to the loop:
the one per step is the reading of its loss.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

PHASES = ("data", "forward", "backward", "optimizer", "idle")
"""`idle` is a pipeline stage's waiting for the others."""


class PhaseClock:
    """Adds up the seconds of each phase of one step. `lap(phase)` ends a stretch that belonged to `phase`."""

    def __init__(self, device: torch.device) -> None:
        self._on_device = device.type != "cpu"
        self._laps: list[tuple[str, Any]] = [("begin", self._now())]

    def lap(self, phase: str) -> None:
        self._laps.append((phase, self._now()))

    def seconds(self) -> dict[str, float]:
        """Seconds by phase. On an accelerator it waits for the step to end there.

        The wait for data is time of the host; on an accelerator it shows as the gap that it leaves on the stream.
        """
        totals = dict.fromkeys(PHASES, 0.0)
        if self._on_device:
            self._laps[-1][1].synchronize()
        for (_, before), (phase, after) in zip(self._laps, self._laps[1:], strict=False):
            totals[phase] += before.elapsed_time(after) / 1e3 if self._on_device else after - before
        return totals

    def _now(self) -> Any:
        if not self._on_device:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event


class HostMemory:
    """The peak of this process's own memory: anonymous and shared pages, sampled every 20 ms by a thread.

    A mapped token file and the code of libraries are not the run's memory (RssFile in proc_pid_status(5)).
    """

    def __init__(self) -> None:
        self.peak_bytes = self.now_bytes()
        threading.Thread(target=self._watch, daemon=True, name="host-memory").start()

    @staticmethod
    def now_bytes() -> int:
        with open("/proc/self/status", encoding="ascii", errors="replace") as status:
            rows = dict(line.split(":", 1) for line in status)
        return sum(int(rows[key].split()[0]) * 1024 for key in ("RssAnon", "RssShmem") if key in rows)

    def _watch(self) -> None:
        while True:
            self.peak_bytes = max(self.peak_bytes, self.now_bytes())
            time.sleep(0.02)


@dataclass
class Measured:
    """One step over all ranks: the values of its `step` record, and whether any rank was asked to stop."""

    values: dict[str, Any]
    elapsed_s: float
    stop_requested: bool


class Meter:
    """The clock of a run and one exchange a step, in which all ranks learn what each of them measured.

    A step's seconds run from the end of the one before, so that metering, recording and progress are inside; what is no
    training (`pause`: evaluation, saving, samples) is outside.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._host = HostMemory()
        self._started = self._last = time.perf_counter()
        self._compile_s = self._excluded_s = 0.0

    def restart(self, elapsed_s: float = 0.0) -> None:
        """Start the budget's clock: now is `elapsed_s` after the begin of the first step."""
        self._last = time.perf_counter()
        self._started = self._last - elapsed_s
        self._compile_s = compile_seconds()
        self._excluded_s = 0.0

    def pause(self) -> None:
        """What happened since the last step was no training: leave it out of the next step's seconds."""
        self._last = time.perf_counter()

    def clock(self) -> PhaseClock:
        """The clock of a step that begins now."""
        return PhaseClock(self._device)

    def finish(self, clock: PhaseClock, loss_sum: torch.Tensor, label_count: int, stop_requested: bool) -> Measured:
        """End a step: synchronise, read the clock, exchange.

        Args:
            clock: the step's phases on this rank.
            loss_sum: scalar, the summed loss of this rank's labels in nats.
            label_count: labels of the whole global batch.
            stop_requested: whether this rank was asked to stop.
        """
        phases = clock.seconds()
        loss = float(loss_sum)
        end = time.perf_counter()
        compiled = compile_seconds() - self._compile_s
        self._compile_s += compiled
        self._excluded_s += compiled
        step_s = max(end - self._last - compiled, 0.0)
        self._last = end
        allocated, reserved = self._device_bytes()
        own = {
            "loss": loss,
            "step_s": step_s,
            **phases,
            "elapsed_s": end - self._started - self._excluded_s,
            "allocated": float(allocated),
            "reserved": float(reserved),
            "host": float(self._host.peak_bytes),
            "compile_s": compiled,
            "stop": float(stop_requested),
        }
        columns = dict(zip(own, zip(*self._exchange(list(own.values())), strict=True), strict=True))
        slowest = columns["step_s"].index(max(columns["step_s"]))
        on_device = self._device.type != "cpu"
        values = {
            "loss": sum(columns["loss"]) / max(label_count, 1),
            "elapsed_s": max(columns["elapsed_s"]),
            "step_s": columns["step_s"][slowest],
            **{f"{phase}_s": columns[phase][slowest] for phase in PHASES},
            "slowest_rank": slowest,
            "lag_s": columns["step_s"][slowest] - statistics.median(columns["step_s"]),
            "idle_share": statistics.mean(columns["idle"]) / columns["step_s"][slowest]
            if any(columns["idle"])
            else None,
            "peak_device_bytes": int(max(columns["allocated"])) if on_device else None,
            "peak_reserved_bytes": int(max(columns["reserved"])) if on_device else None,
            "peak_host_bytes": int(max(columns["host"])),
            "compiled": max(columns["compile_s"]) > 0,
            "compile_s": max(columns["compile_s"]),
        }
        return Measured(values, values["elapsed_s"], any(columns["stop"]))

    def _exchange(self, own: list[float]) -> list[list[float]]:
        if not dist.is_initialized() or dist.get_world_size() == 1:
            return [own]
        mine = torch.tensor(own, dtype=torch.float64, device=self._device)
        everyone = torch.empty(dist.get_world_size() * len(own), dtype=torch.float64, device=self._device)
        dist.all_gather_into_tensor(everyone, mine)
        rows: list[list[float]] = everyone.view(-1, len(own)).tolist()
        return rows

    def _device_bytes(self) -> tuple[int, int]:
        if self._device.type == "cpu":
            return 0, 0
        return torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()


def tensor_bytes(tensors: Iterable[Any]) -> int:
    """Bytes of the tensors' storages, each storage once."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


def compile_seconds() -> float:
    """Seconds that torch.compile has spent compiling in this process so far."""
    import sys

    dynamo = sys.modules.get("torch._dynamo.utils")
    if dynamo is None:
        return 0.0
    times = dynamo.compilation_time_metrics
    return float(sum(sum(times[key]) for key in ("_compile.compile_inner", "backward._backward_impl") if key in times))


def device_memory_bytes(device: torch.device) -> int | None:
    """All memory of the device; None on a CPU."""
    return None if device.type == "cpu" else torch.cuda.get_device_properties(device).total_memory


def host_memory_bytes() -> int:
    """The memory of the host, or of the control group that limits this process where that is less."""
    import psutil

    total = int(psutil.virtual_memory().total)
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        return total
    return min(total, int(limit)) if limit.isdigit() else total
