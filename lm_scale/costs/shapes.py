"""The parameters of a model from its transformers config, in closed form: their names, shapes and counts. No torch.

It knows the dense families below exactly (a test compares every name and shape with transformers); of another family
it says nothing, and its parameters must be counted on meta tensors.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Parameter:
    """One tensor of the model. `in_product`: every token is multiplied by it (norms, biases and look-ups are not)."""

    name: str
    shape: tuple[int, ...]
    in_product: bool = False

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class ModelShape:
    """What the cost formulas need to know of a decoder.

    `attention_width` is heads x head_dim; `windows` holds each layer's sliding attention window, None for all of the
    past. With tied embeddings the head has no tensor of its own, yet it is a product.
    """

    family: str
    layers: int
    hidden: int
    vocab_size: int
    heads: int
    key_value_heads: int
    head_dim: int
    intermediate: int
    tied_embeddings: bool
    windows: tuple[int | None, ...]
    parameters: tuple[Parameter, ...]

    @property
    def attention_width(self) -> int:
        return self.heads * self.head_dim

    @property
    def parameter_count(self) -> int:
        """All parameters, a tied one once."""
        return sum(parameter.size for parameter in self.parameters)

    @property
    def matmul_parameter_count(self) -> int:
        """Parameters that each token is multiplied by, the head included, tied or not."""
        tied_head = self.vocab_size * self.hidden if self.tied_embeddings else 0
        return sum(parameter.size for parameter in self.parameters if parameter.in_product) + tied_head


@dataclass(frozen=True)
class _LlamaFamily:
    """Where a descendant of Llama differs: biases, norms of q and k, and what its config class fills in."""

    key_value_heads: int | None
    head_dim: int | None = None
    qkv_bias: bool | None = None
    output_bias: bool | None = None
    query_key_norm: bool = False


# None: as the config says (`attention_bias`, `mlp_bias`), or as many heads as there are query heads.
# Source: transformers 5.23, models/*/configuration_*.py (defaults) and modeling_*.py (biases).
_LLAMA_FAMILIES = {
    "llama": _LlamaFamily(key_value_heads=None),
    "mistral": _LlamaFamily(key_value_heads=8, qkv_bias=False, output_bias=False),
    "qwen2": _LlamaFamily(key_value_heads=32, qkv_bias=True, output_bias=False),
    "qwen3": _LlamaFamily(key_value_heads=32, head_dim=128, query_key_norm=True),
}

_LLAMA_REQUIRED = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
_GPT2_REQUIRED = ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head")


def model_shape(config: Mapping[str, Any], vocab_size: int | None = None) -> ModelShape | None:
    """The shape of the model that a transformers config describes; `vocab_size` replaces the config's.

    None for a family that is not known here, and for a config that leaves out a size.
    """
    family = str(config.get("model_type"))
    config = {**config, **({} if vocab_size is None else {"vocab_size": vocab_size})}
    if family in _LLAMA_FAMILIES and all(isinstance(config.get(key), int) for key in _LLAMA_REQUIRED):
        return _llama_shape(config, family, _LLAMA_FAMILIES[family])
    if family == "gpt2" and all(isinstance(config.get(key), int) for key in _GPT2_REQUIRED):
        return None if config.get("add_cross_attention") else _gpt2_shape(config)
    return None


def _llama_shape(config: Mapping[str, Any], family: str, rules: _LlamaFamily) -> ModelShape:
    hidden, intermediate = config["hidden_size"], config["intermediate_size"]
    layers, heads = config["num_hidden_layers"], config["num_attention_heads"]
    key_value_heads = config.get("num_key_value_heads", rules.key_value_heads) or heads
    head_dim = config.get("head_dim", rules.head_dim) or hidden // heads
    attention_bias = bool(config.get("attention_bias", False))
    qkv_bias = attention_bias if rules.qkv_bias is None else rules.qkv_bias
    output_bias = attention_bias if rules.output_bias is None else rules.output_bias
    mlp_bias = family == "llama" and bool(config.get("mlp_bias", False))
    tied = bool(config.get("tie_word_embeddings", False))
    width, key_value_width = heads * head_dim, key_value_heads * head_dim

    def layer(prefix: str) -> Iterator[Parameter]:
        yield from _linear(f"{prefix}.self_attn.q_proj", width, hidden, qkv_bias)
        yield from _linear(f"{prefix}.self_attn.k_proj", key_value_width, hidden, qkv_bias)
        yield from _linear(f"{prefix}.self_attn.v_proj", key_value_width, hidden, qkv_bias)
        yield from _linear(f"{prefix}.self_attn.o_proj", hidden, width, output_bias)
        if rules.query_key_norm:
            yield Parameter(f"{prefix}.self_attn.q_norm.weight", (head_dim,))
            yield Parameter(f"{prefix}.self_attn.k_norm.weight", (head_dim,))
        yield from _linear(f"{prefix}.mlp.gate_proj", intermediate, hidden, mlp_bias)
        yield from _linear(f"{prefix}.mlp.up_proj", intermediate, hidden, mlp_bias)
        yield from _linear(f"{prefix}.mlp.down_proj", hidden, intermediate, mlp_bias)
        yield Parameter(f"{prefix}.input_layernorm.weight", (hidden,))
        yield Parameter(f"{prefix}.post_attention_layernorm.weight", (hidden,))

    parameters = [Parameter("model.embed_tokens.weight", (config["vocab_size"], hidden))]
    for index in range(layers):
        parameters += layer(f"model.layers.{index}")
    parameters.append(Parameter("model.norm.weight", (hidden,)))
    if not tied:
        parameters += _linear("lm_head", config["vocab_size"], hidden, bias=False)
    return ModelShape(
        family=family,
        layers=layers,
        hidden=hidden,
        vocab_size=config["vocab_size"],
        heads=heads,
        key_value_heads=key_value_heads,
        head_dim=head_dim,
        intermediate=intermediate,
        tied_embeddings=tied,
        windows=_windows(config, family, layers),
        parameters=tuple(parameters),
    )


def _gpt2_shape(config: Mapping[str, Any]) -> ModelShape:
    hidden, layers = config["n_embd"], config["n_layer"]
    intermediate = config.get("n_inner") or 4 * hidden
    tied = bool(config.get("tie_word_embeddings", True))

    def layer(prefix: str) -> Iterator[Parameter]:
        # GPT-2's Conv1D keeps its weight as (inputs, outputs), the transpose of a linear layer's.
        for name, inputs, outputs in (
            ("attn.c_attn", hidden, 3 * hidden),
            ("attn.c_proj", hidden, hidden),
            ("mlp.c_fc", hidden, intermediate),
            ("mlp.c_proj", intermediate, hidden),
        ):
            yield Parameter(f"{prefix}.{name}.weight", (inputs, outputs), in_product=True)
            yield Parameter(f"{prefix}.{name}.bias", (outputs,))
        for name in ("ln_1", "ln_2"):
            yield Parameter(f"{prefix}.{name}.weight", (hidden,))
            yield Parameter(f"{prefix}.{name}.bias", (hidden,))

    parameters = [
        Parameter("transformer.wte.weight", (config["vocab_size"], hidden)),
        Parameter("transformer.wpe.weight", (config["n_positions"], hidden)),
    ]
    for index in range(layers):
        parameters += layer(f"transformer.h.{index}")
    parameters += [Parameter("transformer.ln_f.weight", (hidden,)), Parameter("transformer.ln_f.bias", (hidden,))]
    if not tied:
        parameters += _linear("lm_head", config["vocab_size"], hidden, bias=False)
    return ModelShape(
        family="gpt2",
        layers=layers,
        hidden=hidden,
        vocab_size=config["vocab_size"],
        heads=config["n_head"],
        key_value_heads=config["n_head"],
        head_dim=hidden // config["n_head"],
        intermediate=intermediate,
        tied_embeddings=tied,
        windows=(None,) * layers,
        parameters=tuple(parameters),
    )


def _linear(name: str, outputs: int, inputs: int, bias: bool) -> list[Parameter]:
    weight = Parameter(f"{name}.weight", (outputs, inputs), in_product=True)
    return [weight, Parameter(f"{name}.bias", (outputs,))] if bias else [weight]


def _windows(config: Mapping[str, Any], family: str, layers: int) -> tuple[int | None, ...]:
    """Each layer's sliding window, by the config classes' rules (Mistral: all layers; Qwen: where switched on)."""
    if family == "mistral":
        return (config.get("sliding_window", 4096),) * layers
    if family not in ("qwen2", "qwen3") or not config.get("use_sliding_window"):
        return (None,) * layers
    window = config.get("sliding_window", 4096)
    kinds = config.get("layer_types")
    if kinds is None:
        first = config.get("max_window_layers", 28)
        kinds = ["sliding_attention" if index >= first else "full_attention" for index in range(layers)]
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)
