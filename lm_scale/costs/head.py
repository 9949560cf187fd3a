"""Bytes that the head's loss holds at its peak, with the logits and without ever holding them all. No torch."""

from __future__ import annotations

_FP32 = 4

CHUNK_ROWS = {"cpu": 256}
"""Tokens whose logits the chunked loss holds at a time, by device type; elsewhere `DEFAULT_CHUNK_ROWS`.

Measured on a CPU at vocabularies of 8k to 152k: 128 to 512 rows are equally fast, 64 rows 10 to 30 % slower.
"""

DEFAULT_CHUNK_ROWS = 1024
"""On a GPU: each chunk reads and writes the gradient of the head once, which 1024 rows of products outweigh."""


def chunk_rows(tokens: int, device_type: str) -> int:
    """Tokens whose logits the chunked loss holds at a time."""
    return max(1, min(tokens, CHUNK_ROWS.get(device_type, DEFAULT_CHUNK_ROWS)))


def full_loss_bytes(tokens: int, vocab_size: int) -> int:
    """Peak bytes that logits in fp32 take on one rank: three tensors of tokens x vocabulary.

    The log-probabilities are kept for the backward pass; there their gradient and the gradient of the logits join them.
    The gradients of head and hidden states come after two of the three have gone.
    """
    return 3 * tokens * vocab_size * _FP32


def chunked_loss_bytes(tokens: int, vocab_size: int, hidden: int, parameter_bytes: int, rows: int) -> int:
    """Peak bytes of the chunked loss on one rank; `parameter_bytes` is the size of one entry of the head.

    One chunk of logits in fp32, with a copy in the head's precision where that is lower, and the gradients of the
    head and of the hidden states, which the forward pass computes and the backward pass only scales.
    """
    per_logit = _FP32 if parameter_bytes >= _FP32 else _FP32 + parameter_bytes
    return rows * vocab_size * per_logit + (vocab_size + tokens) * hidden * parameter_bytes
