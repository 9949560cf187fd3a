"""How long a run is: its planned steps or its time budget, the share that is done, and why it stops."""

from __future__ import annotations

import signal
import sys
from dataclasses import dataclass
from types import FrameType

from lm_scale.arguments import PretrainArguments, RunArguments, UserError, seconds
from lm_scale.training.schedules import learning_rate

DEFAULT_WARMUP_SHARE = 0.05


@dataclass
class Limits:
    """`planned_steps` is None when a time budget alone ends the run; `warmup` is a share of the run."""

    planned_steps: int | None
    budget_s: float | None
    warmup: float
    shape: str

    @classmethod
    def of(cls, arguments: RunArguments, steps_per_epoch: float) -> Limits:
        """The limits that the arguments set for a data set of `steps_per_epoch` steps.

        Raises:
            UserError: a length is not positive, or both names of the warm-up are given.
        """
        budget = seconds(arguments.budget, "--budget") if arguments.budget else None
        planned = arguments.max_steps
        if planned is None and budget is None:
            planned = int(arguments.num_train_epochs * steps_per_epoch)
            if planned < 1:
                raise UserError(
                    f"--num_train_epochs {arguments.num_train_epochs}: less than one step; give --max_steps"
                )
        if arguments.warmup_steps is not None and arguments.warmup_ratio is not None:
            raise UserError("--warmup_steps and --warmup_ratio are two names of one thing; give one")
        warmup = arguments.warmup_ratio if arguments.warmup_steps is None else arguments.warmup_steps
        return cls(planned, budget, _share(warmup, planned), arguments.lr_scheduler_type)

    @property
    def warmup_steps(self) -> int:
        """The warm-up in steps, 0 where the length in steps is unknown."""
        return round(self.warmup * self.planned_steps) if self.planned_steps else 0

    def learning_rate(self, peak: float, step: int, elapsed_s: float) -> float:
        """The rate of `step` (1-based), which begins `elapsed_s` after the budget's clock started on all ranks."""
        if self.planned_steps is None:
            assert self.budget_s is not None
            # A rise by the clock starts at the first step's end: a rate of exactly 0 would waste that step.
            begin = max(elapsed_s / self.budget_s, min(self.warmup, 1.0) / 100)
            return learning_rate(self.shape, peak, begin, self.warmup)
        progress = (step - 1) / self.planned_steps
        if progress < self.warmup:
            progress = min(step / self.planned_steps, self.warmup)
        return learning_rate(self.shape, peak, progress, self.warmup)

    def status(self, step: int, elapsed_s: float) -> str | None:
        """The status with which the run ends after `step`; None while it goes on."""
        if self.planned_steps is not None and step >= self.planned_steps:
            return "completed"
        if self.budget_s is not None and elapsed_s >= self.budget_s:
            return "budget"
        return None


def check(arguments: PretrainArguments) -> None:
    """Refuse lengths and intervals that cannot be meant, before anything is started.

    Raises:
        UserError: it names the argument.
    """
    for name in ("max_steps", "eval_steps", "save_steps", "logging_steps", "per_device_eval_batch_size"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise UserError(f"--{name} {value}: must be at least 1")
    if not 0 <= arguments.seed < 2**63:
        raise UserError(f"--seed {arguments.seed}: must not be negative nor reach 2**63")
    if arguments.num_train_epochs <= 0:
        raise UserError(f"--num_train_epochs {arguments.num_train_epochs:g}: must be above 0")
    if arguments.sample_tokens < 0:
        raise UserError(f"--sample_tokens {arguments.sample_tokens}: must not be negative")
    Limits.of(arguments, steps_per_epoch=sys.maxsize)


class StopRequest:
    """Remembers a SIGINT or SIGTERM until the step is over; a second Ctrl-C ends the process at once.

    Launchers answer Ctrl-C with a SIGTERM of their own to each rank, which therefore must not count as the second.
    """

    def __init__(self) -> None:
        self.received = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = True


def _share(warmup: float | None, planned_steps: int | None) -> float:
    if warmup is None:
        return DEFAULT_WARMUP_SHARE
    if warmup < 0:
        raise UserError(f"--warmup_steps {warmup}: must not be negative")
    if warmup < 1:
        return warmup
    if planned_steps is None:
        raise UserError(
            f"--warmup_steps {warmup:g}: under --budget alone the length in steps is unknown; give a share below 1"
        )
    return min(1.0, warmup / planned_steps)
