"""A model as a row of layers: what the row computes is what the model computes, and no position sees a later one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lm_scale.arguments import UserError
from lm_scale.models.build import build
from lm_scale.models.presets import ModelSource
from lm_scale.models.stages import layers

SIZES = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
ENDS = {"bos_token_id": None, "eos_token_id": None}
CONFIGS: dict[str, dict[str, Any]] = {
    "qwen3": {"model_type": "qwen3", "head_dim": 8, **SIZES, **HEADS, **ENDS},
    "qwen2 windowed": {
        **{"model_type": "qwen2", **SIZES, **HEADS, **ENDS, "use_sliding_window": True, "sliding_window": 4},
        "max_window_layers": 1,
    },
    "llama tied": {"model_type": "llama", **SIZES, **HEADS, **ENDS, "tie_word_embeddings": True},
    "mistral": {"model_type": "mistral", **SIZES, **HEADS, **ENDS, "sliding_window": 4},
    "gpt2": {
        **{"model_type": "gpt2", "vocab_size": 97, "n_positions": 64, "n_embd": 32, "n_layer": 3, "n_head": 4},
        **ENDS,
    },
}


def model_of(config: dict[str, Any], attention: str | None = None) -> Any:
    model, _ = build(ModelSource("test", "config", Path("config.json"), config), 97, 16, attention, seed=3)
    return model.eval()


def through(row: list[Any], ids: torch.Tensor) -> torch.Tensor:
    """Hidden states after the norm; the head's layer passes them on (a tied one is the embedding again)."""
    hidden = ids
    for layer in row[:-1]:
        hidden = layer.module(hidden)
    return hidden


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_the_row_is_the_model_and_sees_no_future(name: str, attention: str) -> None:
    model = model_of(CONFIGS[name], attention)
    ids = torch.randint(0, 97, (2, 16), generator=torch.Generator().manual_seed(0))
    hidden = through(layers(model), ids)
    torch.testing.assert_close(hidden, model.base_model(input_ids=ids, use_cache=False)[0], rtol=0, atol=0)
    for position in (5, 15):
        changed = ids.clone()
        changed[:, position] = (changed[:, position] + 1) % 97
        after = through(layers(model), changed)
        torch.testing.assert_close(after[:, :position], hidden[:, :position], rtol=0, atol=0)
        assert (after[:, position] != hidden[:, position]).any()


@torch.no_grad()
def test_each_stage_alone_sees_no_future() -> None:
    """Whatever hidden states a stage is handed, what it makes of one position does not depend on a later one."""
    row = layers(model_of(CONFIGS["qwen3"]))
    for layer in row[1:-1]:
        hidden = torch.randn(2, 16, 32, generator=torch.Generator().manual_seed(1))
        before = layer.module(hidden)
        hidden[:, 9:] += 1
        torch.testing.assert_close(layer.module(hidden)[:, :9], before[:, :9], rtol=0, atol=0)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_row_holds_every_parameter_once(name: str) -> None:
    model = model_of(CONFIGS[name])
    held = [id(p) for layer in layers(model) for p in layer.module.parameters()]
    assert set(held) == {id(p) for p in model.parameters()}
    tied = model.lm_head.weight is model.get_input_embeddings().weight
    assert len(held) == len(set(held)) + tied


def test_an_unknown_architecture_is_refused_with_the_known_ones() -> None:
    config = {**CONFIGS["llama tied"], "model_type": "gemma"}
    with pytest.raises(UserError, match="gemma: a pipeline can cut gpt2, llama, mistral, qwen2, qwen3 only"):
        layers(model_of(config))
