"""Text that continues a prompt."""

from __future__ import annotations

from typing import Any

import torch


def continue_text(
    model: Any,
    tokenizer: Any,
    prompt: str,
    tokens: int,
    seed: int = 0,
    temperature: float = 0.8,
    top_p: float = 0.95,
    fixed_length: bool = False,
) -> str:
    """The prompt's continuation, without the prompt.

    Args:
        model: a transformers causal LM. With parameters partitioned over ranks, all ranks call this with the same
            arguments, and `fixed_length` keeps their numbers of forward passes equal.
        tokens: how many tokens to add, fewer where the end-of-text token comes first (unless `fixed_length`).
        temperature: 0 takes the likeliest token.
    """
    device = next(model.parameters()).device
    ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)["input_ids"]
    if ids.numel() == 0:  # nothing to continue: begin a document
        ids = torch.tensor([[tokenizer.eos_token_id or 0]])
    room = getattr(model.config, "max_position_embeddings", None)
    if room:
        ids = ids[:, -max(room - tokens, 1) :]
        tokens = min(tokens, room - ids.shape[1])
    choice = (
        {"do_sample": True, "temperature": temperature, "top_p": top_p} if temperature > 0 else {"do_sample": False}
    )
    was_training = model.training
    model.eval()
    generator_state = torch.get_rng_state()
    torch.manual_seed(seed)
    with torch.no_grad():
        out = model.generate(
            ids.to(device),
            attention_mask=torch.ones_like(ids).to(device),
            max_new_tokens=tokens,
            min_new_tokens=tokens if fixed_length else None,
            pad_token_id=tokenizer.eos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            **choice,
        )
    torch.set_rng_state(generator_state)
    model.train(was_training)
    return str(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))
