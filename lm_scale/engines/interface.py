"""What the training loop knows of an engine."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from lm_scale.data.batches import EvalBatch, StepBatches
from lm_scale.training.meter import PhaseClock


@dataclass
class StepResult:
    """One optimizer step on this rank.

    `loss_sum` is the summed loss of this rank's labels (scalar, nats); `grad_norm` the global L2 norm before clipping;
    `skipped` is true where loss scaling threw the step away.
    """

    loss_sum: torch.Tensor
    grad_norm: float | None
    skipped: bool


@dataclass(frozen=True)
class EvalSums:
    """Evaluation over all ranks: summed loss in nats, labels, and the UTF-8 bytes they cover where that is known."""

    loss_sum: float
    labels: int
    label_bytes: int | None

    def shared_by(self, ranks: int) -> EvalSums:
        """The sums where `ranks` ranks each added the same batches."""
        covered = None if self.label_bytes is None else self.label_bytes // ranks
        return EvalSums(self.loss_sum / ranks, self.labels // ranks, covered)


class Engine(Protocol):
    """A model under one strategy. Every method is collective: all ranks call it, in the same order."""

    device: torch.device
    model: Any
    """The transformers model itself; its tensors may be partitioned."""
    params: int
    """Parameters of the whole model, a tied one once."""
    layout: str
    """How the states lie over the ranks, in words: `ZeRO-2`, `DDP`."""

    def train_step(self, batches: StepBatches, lr: float, clock: PhaseClock) -> StepResult:
        """One optimizer step over this rank's micro-batches, at the rate `lr` unless the JSON has its own scheduler.

        `clock` runs since before the batches were read; the engine ends its laps.
        """
        ...

    def decay_counts(self) -> dict[str, int]:
        """How many parameters weight decay reaches (`decayed_params`) and leaves out (`undecayed_params`)."""
        ...

    def lr(self) -> float:
        """The rate of the last step."""
        ...

    def eval_loss(self, batches: Iterable[EvalBatch]) -> EvalSums:
        """The loss on batches of which every rank has as many."""
        ...

    def generate(self, tokenizer: Any, prompt: str, tokens: int) -> str:
        """A continuation of `prompt` by `tokens` tokens, the same on every rank."""
        ...

    def state_bytes(self) -> dict[str, int]:
        """Bytes of live tensors on the fullest rank: parameters, gradients, master_weights, optimizer."""
        ...

    def full_state_dict(self) -> dict[str, torch.Tensor]:
        """Every tensor of the model, whole, on the CPU of the first rank; empty on the others."""
        ...

    def save(self, folder: Path) -> None:
        """Write all that `load` needs into `folder`."""
        ...

    def load(self, folder: Path) -> None:
        """Go back to what `save` wrote."""
        ...
