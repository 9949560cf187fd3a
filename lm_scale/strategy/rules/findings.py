"""What a rule says of one place in a DeepSpeed JSON, and what a rule may know beside the JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Severity = Literal["error", "warning", "note"]
Place = tuple[str, ...]
"""The keys from the top of the JSON to a value: `("zero_optimization", "stage")`; keys may hold dots."""


@dataclass(frozen=True)
class Finding:
    """One problem at one place.

    `error` only where the run would not be what the file says, or would not start; `warning` where it is likely not
    what its author meant; `note` for what is worth knowing. `rule` is a stable code; `message` says what is and why;
    `fix` what to do, empty where there is nothing to do. `value` is the value at `place`, None where the key is absent.
    """

    place: Place
    value: Any
    severity: Severity
    rule: str
    message: str
    fix: str = ""

    @property
    def path(self) -> str:
        return ".".join(self.place)


@dataclass(frozen=True)
class Setting:
    """Where the JSON is to run, as far as it is known; None is unknown, and then a rule claims nothing about it."""

    world_size: int | None = None
    device: Literal["cpu", "gpu"] | None = None
