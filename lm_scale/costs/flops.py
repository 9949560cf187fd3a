"""Floating-point operations of training, as the model asks for them: the numerator of MFU. No torch."""

from __future__ import annotations

from collections.abc import Sequence

from lm_scale.costs.shapes import ModelShape


def model_flops_per_token(shape: ModelShape, seq_len: int) -> float:
    """FLOPs of one forward and backward pass for one of `seq_len` tokens; recomputed activations are not counted.

    See `flops_per_token`, which this calls with the model's shape.
    """
    return flops_per_token(shape.matmul_parameter_count, shape.attention_width, seq_len, shape.windows)


def flops_per_token(matmul_parameters: int, attention_width: int, seq_len: int, windows: Sequence[int | None]) -> float:
    """FLOPs a token from the numbers that alone decide it; one entry of `windows` a layer, None for all of the past.

    Derivation. A token multiplied by a matrix of P entries costs P multiplications and P additions: 2P. The backward
    pass does it twice more, for the gradient of the input and of the matrix: 6P in all. P counts the matrices that
    every token passes, so the head, tied or not, and not the embedding, which is looked up; norms, biases and the
    softmax are left out (well under 1 %).

    Attention multiplies, in each layer, the query with the keys of c positions and the scores with their values: 2 c w
    each, where w = heads x head_dim; forward 4 c w, with the backward pass 12 c w. The mask is causal: token t sees t
    positions, so c is their mean, (seq_len + 1) / 2, and min(t, window) averaged where a window bounds it. The half
    that the mask hides is not counted.

    Source: the 6P rule is Kaplan et al. 2020 (arXiv:2001.08361, section 2.1); model FLOPs without recomputation as the
    numerator of MFU is Chowdhery et al. 2022 (arXiv:2204.02311, appendix B), who count attention without the mask, so
    that their 12 L H Q T is twice the term here.
    """
    attention = sum(12 * mean_context(seq_len, window) * attention_width for window in windows)
    return 6 * matmul_parameters + attention


def mean_context(seq_len: int, window: int | None) -> float:
    """Positions that a token attends to on average, itself included, under a causal mask of at most `window`."""
    if window is None or window >= seq_len:
        return (seq_len + 1) / 2
    growing = window * (window + 1) / 2  # the first `window` tokens see 1, 2, ..., window positions
    return (growing + (seq_len - window) * window) / seq_len
