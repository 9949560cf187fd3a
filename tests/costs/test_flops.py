"""Model FLOPs a token against counts made another way."""

from __future__ import annotations

import pytest
import torch

from lm_scale.costs.flops import mean_context, model_flops_per_token
from lm_scale.costs.shapes import model_shape
from lm_scale.models.presets import load_config


def test_attention_counts_the_pairs_that_the_mask_leaves() -> None:
    for seq_len, window in ((7, None), (64, 16), (5, 5), (9, 1), (4, 100)):
        query = torch.arange(seq_len)[:, None]
        key = torch.arange(seq_len)[None, :]
        visible = (key <= query) & (query - key < (window or seq_len))
        assert mean_context(seq_len, window) == pytest.approx(visible.sum().item() / seq_len)


def test_training_does_what_torch_counts_but_for_the_masked_half() -> None:
    """torch's counter sees the products of one forward and backward pass, with attention unmasked (eager)."""
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(
        vocab_size=300, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4
    )
    shape = model_shape(config.to_dict())
    assert shape is not None
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    seq_len = 32
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, seq_len, dtype=torch.long), use_cache=False).logits.sum().backward()
    ours = model_flops_per_token(shape, seq_len) * seq_len
    masked_half = 2 * 12 * shape.attention_width * (seq_len - (seq_len + 1) / 2) * seq_len
    assert counter.get_total_flops() == pytest.approx(ours + masked_half, rel=1e-3)  # RoPE's frequencies are the rest


def test_a_tied_head_counts_and_a_lookup_does_not() -> None:
    config = load_config("qwen3-1b").config
    untied, tied = model_shape(config), model_shape({**config, "tie_word_embeddings": True})
    assert untied is not None
    assert tied is not None
    assert untied.parameter_count == 960_881_664
    assert tied.parameter_count == untied.parameter_count - 50257 * 2048
    # by hand: 12 layers of 4 x 2048^2 (q, o, and k with v twice half) less one half pair, 3 x 2048 x 8192, and the head
    by_hand = 12 * (3 * 2048**2 + 3 * 2048 * 8192) + 50257 * 2048
    assert model_flops_per_token(untied, 1) == 6 * by_hand + 12 * 12 * 2048
    assert model_flops_per_token(tied, 1) == model_flops_per_token(untied, 1)
