"""The trained weights as a Hugging Face directory, `checkpoints/final`."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from lm_scale.training.checkpoint import UNFINISHED, publish


def write_final(checkpoints: Path, model: Any, state_dict: dict[str, Any], tokenizer: Path | None) -> Path:
    """Write the model, its config and its tokenizer under a name that nobody reads, then give them theirs.

    Args:
        model: the transformers model; its own tensors may be partitioned, they are not read.
        state_dict: every tensor, whole, on the CPU.
        tokenizer: folder of the tokenizer's files, or None where the data came tokenized.
    """
    unfinished = checkpoints / f"final{UNFINISHED}"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    use_cache, model.config.use_cache = model.config.use_cache, True
    model.save_pretrained(unfinished, state_dict=state_dict)
    model.config.use_cache = use_cache
    if tokenizer is not None:
        for file in tokenizer.iterdir():
            if file.is_file():
                shutil.copy(file, unfinished)
    publish(unfinished, checkpoints / "final")
    return checkpoints / "final"
