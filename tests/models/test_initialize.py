"""First weights: the distribution that each model prescribes, from the seed alone."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from lm_scale.models.build import build
from lm_scale.models.initialize import initialize
from lm_scale.models.presets import load_config


def new(model_type: str, seed: int = 3, dtype: torch.dtype = torch.float32, **values: Any) -> PreTrainedModel:
    config = AutoConfig.for_model(model_type, **values)
    with no_init_weights():
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.tie_weights()
    initialize(model, seed)
    return model


LLAMA = {
    "vocab_size": 500,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
GPT2 = {"vocab_size": 500, "n_positions": 100, "n_embd": 64, "n_layer": 3, "n_head": 4}


@pytest.mark.parametrize("std", [0.02, 0.1])
@pytest.mark.parametrize("model_type", ["llama", "qwen3", "gpt2", "mixtral"])
def test_every_matrix_has_the_prescribed_std(model_type: str, std: float) -> None:
    values = GPT2 if model_type == "gpt2" else LLAMA
    model = new(model_type, **values, initializer_range=std)
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2:
            expected = 0.0 if name.endswith("bias") else 1.0  # norms
            assert torch.all(parameter == expected), name
            continue
        # GPT-2 scales what ends in the residual stream by 1 / sqrt(2 x layers) (Radford et al. 2019, section 2.3).
        prescribed = std / math.sqrt(2 * 3) if "c_proj" in name else std
        error = 5 / math.sqrt(2 * parameter.numel())  # five standard errors of a standard deviation
        assert parameter.std().item() == pytest.approx(prescribed, rel=error), name
        assert abs(parameter.mean().item()) < 5 * prescribed / math.sqrt(parameter.numel()), name


def test_parameters_are_independent_of_one_another() -> None:
    model = new("llama", **LLAMA)
    layers = model.base_model.layers
    one, other = layers[0].self_attn.q_proj.weight.flatten(), layers[1].self_attn.q_proj.weight.flatten()
    assert abs(torch.corrcoef(torch.stack([one, other]))[0, 1].item()) < 5 / math.sqrt(one.numel())


def test_the_seed_alone_decides() -> None:
    torch.manual_seed(1)
    first = new("gpt2", **GPT2).state_dict()
    torch.manual_seed(2)
    torch.randn(17)
    state = torch.random.get_rng_state()
    second = new("gpt2", **GPT2).state_dict()
    assert torch.equal(state, torch.random.get_rng_state()), "the global generator is left as it was"
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = new("gpt2", seed=4, **GPT2)
    assert not torch.equal(first["transformer.wte.weight"], other.transformer.wte.weight)


def test_a_deeper_or_wider_vocabulary_leaves_other_parameters_as_they_were() -> None:
    small, large = new("llama", **LLAMA), new("llama", **{**LLAMA, "num_hidden_layers": 3, "vocab_size": 600})
    assert torch.equal(small.model.layers[1].mlp.up_proj.weight, large.model.layers[1].mlp.up_proj.weight)


def test_lower_precision_rounds_the_same_numbers() -> None:
    full, half = new("qwen3", **LLAMA).state_dict(), new("qwen3", dtype=torch.bfloat16, **LLAMA).state_dict()
    assert all(torch.equal(full[name].bfloat16(), half[name]) for name in full)


def test_a_padding_row_is_zero() -> None:
    weight = new("llama", **LLAMA, pad_token_id=7).get_input_embeddings().weight
    assert not weight[7].any()
    assert weight[6].any()


def test_tied_embeddings_are_one_parameter() -> None:
    model = new("llama", **LLAMA, tie_word_embeddings=True)
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize("values", [LLAMA, {**LLAMA, "rope_parameters": {"rope_type": "linear", "factor": 4.0}}])
def test_buffers_are_those_that_transformers_computes(values: dict[str, Any]) -> None:
    ours, theirs = new("llama", **values), AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **values))
    buffers = dict(theirs.named_buffers())
    assert buffers
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in ours.named_buffers())


class OldStyle(PreTrainedModel):
    """A model whose code predates transformers' primitives, with a layer that its `_init_weights` does not know."""

    config_class = PretrainedConfig

    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__(config)
        self.layer = nn.Linear(50, 40)
        self.convolution = nn.Conv1d(30, 20, 3)
        self.gain = nn.Parameter(torch.full((5,), 2.0))
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            module.weight.data.normal_(mean=0.0, std=0.5)
            module.bias.data.zero_()


def test_a_model_with_older_code_is_drawn_from_the_seed_too() -> None:
    def make(seed: int) -> OldStyle:
        with no_init_weights():
            model = OldStyle(PretrainedConfig())
        initialize(model, seed)
        return model

    torch.manual_seed(1)
    first = make(3)
    torch.manual_seed(2)
    second, other = make(3), make(4)
    assert all(torch.equal(one, two) for one, two in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.layer.weight, other.layer.weight)
    assert first.layer.weight.std().item() == pytest.approx(0.5, rel=0.1)
    assert not first.layer.bias.any()
    bound = 1 / math.sqrt(30 * 3)  # torch's default for a convolution: uniform within 1 / sqrt(fan in)
    assert 0.9 * bound < first.convolution.weight.abs().max().item() <= bound
    assert torch.equal(first.gain, torch.full((5,), 2.0))


def test_the_built_preset_is_drawn_from_the_seed() -> None:
    one, _ = build(load_config("tiny"), 500, 32, None, seed=1)
    two, _ = build(load_config("tiny"), 500, 32, None, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
