"""A causal LM as a row of layers, so that a pipeline can cut it: one description a family of where its parts are.

Only hidden states pass from layer to layer. A block has its positions and its mask from `Surroundings`, one a stage,
which asks the model's own code for both: the causal mask is transformers', not ours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel, masking_utils

from lm_scale.arguments import UserError


@dataclass(frozen=True)
class Family:
    """Module paths within a causal LM. `positions` and `dropout` are learned positions and what follows them."""

    embedding: str
    blocks: str
    norm: str
    head: str = "lm_head"
    rotary: str | None = None
    positions: str | None = None
    dropout: str | None = None


_LLAMA = Family("model.embed_tokens", "model.layers", "model.norm", rotary="model.rotary_emb")
FAMILIES = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gpt2": Family(
        "transformer.wte",
        "transformer.h",
        "transformer.ln_f",
        positions="transformer.wpe",
        dropout="transformer.drop",
    ),
}


class Surroundings:
    """What every block of a stage needs beside hidden states: positions, their embeddings, the causal mask.

    Made anew for each shape, once for all blocks of the stage.
    """

    def __init__(self, config: PretrainedConfig, rotary: nn.Module | None) -> None:
        self._config = config
        self._rotary = rotary
        self._shape: Any = None
        self._made: dict[str, dict[str, Any]] = {}

    def of(self, hidden: Tensor, kind: str) -> dict[str, Any]:
        """The arguments of a block for hidden states (batch, sequence, width); `kind` is its attention's."""
        shape = (hidden.shape, hidden.dtype, hidden.device)
        if shape != self._shape:
            self._shape, self._made = shape, {}
        if kind not in self._made:
            self._made[kind] = self._make(hidden, kind)
        return self._made[kind]

    @torch.no_grad()
    def _make(self, hidden: Tensor, kind: str) -> dict[str, Any]:
        positions = torch.arange(hidden.shape[1], device=hidden.device).unsqueeze(0)
        windowed = kind == "sliding_attention"
        make: Any = masking_utils.create_sliding_window_causal_mask if windowed else masking_utils.create_causal_mask
        mask = make(
            config=self._config,
            inputs_embeds=hidden,
            attention_mask=None,
            past_key_values=None,
            position_ids=positions,
        )
        made = {"attention_mask": mask, "position_ids": positions, "use_cache": False}
        if self._rotary is not None:
            made["position_embeddings"] = self._rotary.to(hidden.device)(hidden, positions)
        return made


class Embedding(nn.Module):
    """Token ids (batch, sequence) to hidden states. A tied model's last stage has a copy, whose weight is its head."""

    def __init__(self, module: nn.Embedding) -> None:
        super().__init__()
        self.module = module

    def forward(self, ids: Tensor) -> Tensor:
        hidden: Tensor = self.module(ids)
        return hidden


class Positions(nn.Module):
    """Learned positions, added."""

    def __init__(self, module: nn.Embedding, dropout: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.dropout = dropout

    def forward(self, hidden: Tensor) -> Tensor:
        positions = torch.arange(hidden.shape[1], device=hidden.device)
        added: Tensor = self.dropout(hidden + self.module(positions))
        return added


class Block(nn.Module):
    """One of the model's own blocks."""

    def __init__(self, module: nn.Module, surroundings: Surroundings, attention: str) -> None:
        super().__init__()
        self.module = module
        self._surroundings = surroundings
        self._attention = attention

    def forward(self, hidden: Tensor) -> Tensor:
        result: Tensor = self.module(hidden, **self._surroundings.of(hidden, self._attention))
        return result


class Norm(nn.Module):
    """The norm after the last block."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, hidden: Tensor) -> Tensor:
        result: Tensor = self.module(hidden)
        return result


class Head(nn.Module):
    """Holds the head of an untied model; hidden states pass through, the loss multiplies them with its weight."""

    def __init__(self, module: nn.Linear) -> None:
        super().__init__()
        self.module = module

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden


@dataclass(frozen=True)
class Layer:
    """One layer of the row: its module, its FLOPs a token relative to the others', and its name for `type:` patterns.

    `tied` marks the embedding of a tied model and, at the end of the row, its second use as the head.
    """

    module: nn.Module
    weight: float
    kind: str
    tied: bool = False


def layers(model: PreTrainedModel) -> list[Layer]:
    """The model's layers in order; together they hold each parameter once (a tied one in both its layers).

    Raises:
        UserError: the architecture is none of `FAMILIES`.
    """
    config = model.config
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise UserError(f"model_type {config.model_type}: a pipeline can cut {', '.join(sorted(FAMILIES))} only")
    part: Callable[[str], Any] = model.get_submodule
    tied = part(family.head).weight is part(family.embedding).weight
    surroundings = Surroundings(config, part(family.rotary) if family.rotary else None)
    row = [Layer(Embedding(part(family.embedding)), 0, "Embedding", tied)]
    if family.positions and family.dropout:
        row.append(Layer(Positions(part(family.positions), part(family.dropout)), 0, "Positions"))
    for index, block in enumerate(part(family.blocks)):
        attention = _attention(config, index)
        products = sum(p.numel() for p in block.parameters() if p.dim() > 1)
        row.append(Layer(Block(block, surroundings, attention), products, type(block).__name__))
    row.append(Layer(Norm(part(family.norm)), 0, "Norm"))
    head = part(family.head)
    row.append(Layer(row[0].module if tied else Head(head), head.weight.numel(), "Head", tied))
    return row


def _attention(config: PretrainedConfig, index: int) -> str:
    """Which mask the model's own forward gives this block (Mistral: one for all, by its window)."""
    kinds = getattr(config, "layer_types", None)
    if config.model_type in ("qwen2", "qwen3") and kinds:
        return str(kinds[index])
    windowed = config.model_type == "mistral" and config.sliding_window is not None
    return "sliding_attention" if windowed else "full_attention"
