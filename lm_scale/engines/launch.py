"""What is known of a run before torch is imported, and how its ranks agree on what one of them found out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from lm_scale.arguments import PretrainArguments, UserError
from lm_scale.engines.process import Process, broadcast_object, gather_objects
from lm_scale.models.presets import ModelSource
from lm_scale.strategy.machine import Machine
from lm_scale.strategy.resolve import Strategy
from lm_scale.training.capture import Capture
from lm_scale.training.progress import Progress

Result = TypeVar("Result")


@dataclass
class Launch:
    """What is known before torch is imported."""

    arguments: PretrainArguments
    machine: Machine
    process: Process
    source: ModelSource
    strategy: Strategy
    capture: Capture
    progress: Progress


def agree(process: Process, action: Callable[[], Result]) -> Result:
    """The first rank's result of `action` on every rank, or its UserError on every rank."""
    outcome: Any = None
    if process.rank == 0:
        try:
            outcome = ("result", action())
        except UserError as error:
            outcome = ("error", str(error))
    agreed: Any = broadcast_object(outcome)
    kind, value = agreed
    if kind == "error":
        raise UserError(value)
    result: Result = value
    return result


def on_host(process: Process, action: Callable[[], None]) -> None:
    """Run `action` on the first rank of each host while the others wait."""
    failure = None
    if process.local_rank == 0:
        try:
            action()
        except UserError as error:
            failure = str(error)
    failures = [one for one in gather_objects(failure) if one]
    if failures:
        raise UserError(failures[0])
