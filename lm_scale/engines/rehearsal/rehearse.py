"""A few steps of the real engine under the recorder."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from lm_scale.data.batches import Batch, StepBatches
from lm_scale.engines.deepspeed import DeepSpeedEngine
from lm_scale.engines.describe import LossModule
from lm_scale.engines.launch import Launch
from lm_scale.engines.nvme import mend_swapping
from lm_scale.engines.rehearsal.holdings import holdings
from lm_scale.engines.rehearsal.recorder import Recorder
from lm_scale.engines.rehearsal.timeline import Item, Phase, Timeline
from lm_scale.engines.rehearsal.wire import Wire
from lm_scale.engines.session import loss_module
from lm_scale.training.meter import HostMemory, PhaseClock

_PHASES = {"forward": "forward", "backward": "backward", "optimizer": "step"}


class Rehearsal:
    """One rank's engine, built and stepped. The process group is joined already, a fake one or a real one.

    `touch` False leaves out the work on large tensors (`untouched`). Afterwards: `done`, or `failed_in` and the device
    ran out of memory; `sent` has the collectives of the start and of each step.
    """

    def __init__(self, launch: Launch, vocab_size: int, device: torch.device, touch: bool) -> None:
        self.compile_left_out = launch.arguments.torch_compile
        self.launch = replace(launch, arguments=replace(launch.arguments, torch_compile=False))
        self.vocab_size = vocab_size
        self.device = device
        self.touch = touch
        on_host = ["step"] if "optimizer_" in launch.strategy.offload else []
        self.timeline = Timeline(on_accelerator=device.type != "cpu", host_phases=on_host)
        self.wire = Wire()
        self.host = HostMemory()
        self.started = time.time()
        self.sent: list[dict[str, dict[str, int]]] = []
        self.device_peaks: dict[Phase, Counter[str]] = {}
        self.made: list[LossModule] = []
        self.engine: DeepSpeedEngine
        self.step = 0
        self.skipped_steps = 0
        self.done = False
        self.failed_in: Phase | None = None
        self._phase = "init"

    def run(self, steps: int) -> None:
        """Build the engine and do `steps` steps on random tokens."""
        try:
            with Recorder(self.timeline, self.wire, self.touch):
                self._build()
                self.end_phase("init")
                self.sent.append(self.wire.take())
                for self.step in range(1, steps + 1):
                    learning_rate = self.launch.strategy.learning_rate
                    result = self.engine.train_step(self._batches(), learning_rate, _Clock(self))
                    self.skipped_steps += result.skipped
                    self.sent.append(self.wire.take())
            self.done = True
        except torch.OutOfMemoryError:
            self.failed_in = (self.step, self._phase)
            self.timeline.end_phase(self.failed_in)

    def begin_phase(self, name: str) -> None:
        """What follows belongs to the phase; said only to know it when the device runs out of memory."""
        self._phase = name

    def end_phase(self, name: str) -> None:
        """Name what is held now, and end the phase in the records."""
        for item, tensor in holdings(self.engine, self.launch.strategy):
            self.timeline.name(item, tensor)
        phase = (self.step, name)
        self.timeline.end_phase(phase)
        if self.device.type != "cpu":
            peaks = self.device_peaks.setdefault(phase, Counter())
            peaks["allocated_bytes"] = max(peaks["allocated_bytes"], torch.cuda.max_memory_allocated())
            peaks["reserved_bytes"] = max(peaks["reserved_bytes"], torch.cuda.max_memory_reserved())
            torch.cuda.reset_peak_memory_stats()

    def _build(self) -> None:
        launch = self.launch
        if "nvme" in launch.strategy.offload:
            mend_swapping()
        torch.manual_seed(launch.arguments.seed)
        self.engine = DeepSpeedEngine(launch.strategy, self._loss_module)
        same_inputs = getattr(self.engine._engine, "first_dataloader_check", None)
        if same_inputs is not None and torch.distributed.get_backend() == "fake":
            same_inputs.remove()  # AutoTP's: it would compare the first batch with ranks whom nobody runs

    def _loss_module(self, partition: Any, gather: Any) -> torch.nn.Module:
        module = loss_module(self.launch, self.vocab_size, self.made, partition, gather)
        for parameter in module.parameters():  # DeepSpeed will move most of them into storages of its own
            self.timeline.name(Item("parameters", "device"), parameter)
        return module

    def _batches(self) -> StepBatches:
        """This rank's micro-batches of one step: random tokens, every position a label."""
        batch, seq_len = self.launch.strategy.batch, self.launch.arguments.seq_len
        draw = np.random.default_rng(self.step)
        shape = (2, batch.micro_batch, seq_len)
        micro_batches = [Batch(*draw.integers(0, self.vocab_size, shape)) for _ in range(batch.grad_accum)]
        tokens = batch.global_batch * seq_len
        return StepBatches(micro_batches, tokens, batch.global_batch, tokens)


class _Clock(PhaseClock):
    """The engine ends its phases on it; what counts here is bytes."""

    def __init__(self, rehearsal: Rehearsal) -> None:
        self._rehearsal = rehearsal
        rehearsal.begin_phase("forward")

    def lap(self, phase: str) -> None:
        if phase not in _PHASES:
            return
        self._rehearsal.end_phase(_PHASES[phase])
        self._rehearsal.begin_phase({"forward": "backward", "backward": "step"}.get(phase, "forward"))
