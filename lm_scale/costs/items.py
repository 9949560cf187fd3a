"""What a prediction of memory is made of: named items, each held in some phases of a step. No torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

PHASES = ("init", "forward", "backward", "reduce", "step")
"""`init`: the engine is made. `forward`: its end and the loss, all activations and the logits are held. `backward`: its
beginning, all activations are still held and the last layer is worked on (again, if recomputed). `reduce`: the end of
the backward pass, all gradients are there. `step`: the optimizer's."""

Place = Literal["device", "host", "nvme"]
ALWAYS = frozenset(PHASES)
TRAINING = frozenset(PHASES[1:])
PASSES = frozenset(PHASES[1:4])


@dataclass(frozen=True)
class Item:
    """Bytes of one thing on one rank, where it lies, the phases in which it is held, and the formula in words."""

    name: str
    bytes: int
    formula: str
    phases: frozenset[str] = ALWAYS
    where: Place = "device"

    @property
    def phase(self) -> str:
        """For a reader: `all`, or the phases in order, joined by `+`."""
        return "all" if self.phases == ALWAYS else "+".join(phase for phase in PHASES if phase in self.phases)


def item(name: str, size: float, formula: str, *phases: str, where: Place = "device") -> list[Item]:
    """One item, or none where it takes nothing; without phases it is held in all of them."""
    if size <= 0:
        return []
    return [Item(name, round(size), formula, frozenset(phases) or ALWAYS, where)]


def phase_bytes(items: Iterable[Item], where: Place = "device") -> dict[str, int]:
    """Bytes held in each phase in one place."""
    held = [one for one in items if one.where == where]
    return {phase: sum(one.bytes for one in held if phase in one.phases) for phase in PHASES}
