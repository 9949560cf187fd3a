"""The sizes of a model of a family that `shapes` does not know: from its config, its parameters counted elsewhere.

A process of its own builds it on meta tensors (`lm_scale.models.count`), because that needs torch. Parameters are then
exact; activations and FLOPs are those of a decoder of these widths, an approximation for unusual blocks.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from lm_scale.arguments import UserError
from lm_scale.costs.setup import Dimensions
from lm_scale.experiments.processes import printed_json

_KEYS = {
    "layers": ("num_hidden_layers", "n_layer", "num_layers", "n_layers"),
    "hidden": ("hidden_size", "n_embd", "d_model"),
    "heads": ("num_attention_heads", "n_head", "n_heads", "num_heads"),
    "key_value_heads": ("num_key_value_heads", "num_kv_heads", "n_head_kv"),
    "head_dim": ("head_dim",),
    "intermediate": ("intermediate_size", "n_inner", "ffn_dim", "moe_intermediate_size"),
    "vocab_size": ("vocab_size",),
    "experts": ("num_local_experts", "num_experts", "n_routed_experts"),
    "active_experts": ("num_experts_per_tok", "num_experts_per_token"),
}


def count_on_meta(model: str, config: Mapping[str, Any], vocab_size: int | None) -> Dimensions:
    """The sizes of what `--model model` names, whose config is `config`. Takes some seconds.

    Raises:
        UserError: transformers cannot build it, or its config names no layers, width or heads.
    """
    sizes: dict[str, Any] = {
        key: next((config[name] for name in names if config.get(name)), None) for key, names in _KEYS.items()
    }
    missing = [key for key in ("layers", "hidden", "heads", "vocab_size") if not isinstance(sizes[key], int)]
    if missing:
        raise UserError(f"--model {model}: its config names no {', '.join(missing)}; give a Llama-like config.json")
    command = [sys.executable, "-m", "lm_scale.models.count", model, *([str(vocab_size)] if vocab_size else [])]
    found = printed_json(command, f"--model {model}")
    heads, hidden = sizes["heads"], sizes["hidden"]
    gated = any(word in name for name in found["names"] for word in ("gate_proj", "gate_up", "w3", "wi_1"))
    return Dimensions(
        layers=sizes["layers"],
        hidden=hidden,
        heads=heads,
        key_value_heads=sizes["key_value_heads"] or heads,
        head_dim=sizes["head_dim"] or hidden // heads,
        intermediate=sizes["intermediate"] or 4 * hidden,
        vocab_size=vocab_size or sizes["vocab_size"],
        parameters=found["parameters"],
        tied=found["tied"],
        gated=gated,
        rms_norm=gated,
        experts=sizes["experts"] or 1,
        active_experts=sizes["active_experts"] or 1,
    )
