"""Closed forms of model shapes against transformers' own models, built on meta tensors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from lm_scale.costs.shapes import model_shape
from lm_scale.models.presets import load_config, preset_names

SIZES = {"vocab_size": 320, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3}
GPT2 = {"model_type": "gpt2", "vocab_size": 320, "n_positions": 40, "n_embd": 48, "n_layer": 3, "n_head": 4}


def llama_like(family: str, **rest: Any) -> dict[str, Any]:
    return {"model_type": family, **SIZES, "num_attention_heads": 6, "num_key_value_heads": 2, **rest}


CONFIGS = {
    "llama": llama_like("llama"),
    "llama tied with biases": llama_like("llama", tie_word_embeddings=True, attention_bias=True, mlp_bias=True),
    "llama, key and value heads left out": {k: v for k, v in llama_like("llama").items() if "key_value" not in k},
    "llama, head dim of its own": llama_like("llama", head_dim=10),
    "mistral": llama_like("mistral"),
    "mistral, kv heads left out": {"model_type": "mistral", **SIZES, "hidden_size": 64, "num_attention_heads": 16},
    "qwen2": llama_like("qwen2"),
    "qwen2 tied": llama_like("qwen2", tie_word_embeddings=True),
    "qwen2, key and value heads null": llama_like("qwen2", num_key_value_heads=None),
    "qwen3": llama_like("qwen3", head_dim=16),
    "qwen3, head dim left out": llama_like("qwen3"),
    "qwen3 tied with biases": llama_like("qwen3", head_dim=8, attention_bias=True, tie_word_embeddings=True),
    "gpt2": GPT2,
    "gpt2 untied, inner size": {**GPT2, "tie_word_embeddings": False, "n_inner": 100},
}


def built(config: dict[str, Any], device: str = "meta") -> torch.nn.Module:
    values = dict(config)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(values.pop("model_type"), **values))
    model.tie_weights()
    return model


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_every_name_and_shape_is_transformers(config: dict[str, Any]) -> None:
    shape = model_shape(config)
    assert shape is not None
    ours = {parameter.name: parameter.shape for parameter in shape.parameters}
    assert ours == {name: tuple(parameter.shape) for name, parameter in built(config).named_parameters()}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_matrix_products_are_those_that_a_forward_pass_does(config: dict[str, Any]) -> None:
    """torch's own counter over one token: 2 FLOPs a parameter, and 4 x width a layer for attention to itself."""
    from torch.utils.flop_counter import FlopCounterMode

    shape = model_shape(config)
    assert shape is not None
    model = built(config, "cpu")
    model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 1, dtype=torch.long), use_cache=False)
    attention = 4 * shape.attention_width * shape.layers
    assert counter.get_total_flops() == 2 * shape.matmul_parameter_count + attention


@pytest.mark.parametrize("name", preset_names())
def test_presets_are_counted_exactly(name: str) -> None:
    config = load_config(name).config
    shape = model_shape(config)
    assert shape is not None
    assert shape.parameter_count == sum(parameter.numel() for parameter in built(config).parameters())


def test_vocabulary_replaces_the_configs() -> None:
    shape = model_shape(CONFIGS["llama"], vocab_size=1000)
    assert shape is not None
    assert shape.parameters[0].shape == (1000, 48)
    assert shape.parameters[-1].shape == (1000, 48)


def test_an_unknown_family_or_size_is_not_guessed() -> None:
    assert model_shape({**CONFIGS["llama"], "model_type": "mixtral"}) is None
    assert model_shape({"model_type": "llama", "hidden_size": 64}) is None


def test_sliding_windows_follow_the_config_classes() -> None:
    for config in (
        llama_like("mistral"),
        llama_like("mistral", sliding_window=None),
        llama_like("qwen2", use_sliding_window=True, sliding_window=128, max_window_layers=1),
        llama_like("qwen3", sliding_window=128),
    ):
        shape = model_shape(config)
        values = dict(config)
        theirs = AutoConfig.for_model(values.pop("model_type"), **values)
        kinds = getattr(theirs, "layer_types", None) or ["sliding_attention"] * theirs.num_hidden_layers
        expected = tuple(theirs.sliding_window if kind == "sliding_attention" else None for kind in kinds)
        assert shape is not None
        assert shape.windows == expected
