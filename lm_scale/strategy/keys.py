"""Which keys DeepSpeed reads, and what is wrong with the others.

DeepSpeed reads its JSON key by key: at the top level and in most blocks a misspelt key is silently ignored, and the run
is not the one that the file describes. `known_keys.json` lists what DeepSpeed 0.19.8 reads, block by block, and what it
has removed; `pipeline.stages` and `pipeline.partition_method` are read by this project alone.
"""

from __future__ import annotations

import difflib
import json
from functools import cache
from pathlib import Path
from typing import Any

from lm_scale.strategy.load import Document, get


@cache
def known_keys() -> dict[str, Any]:
    """`deepspeed_version`, `top_level` (list of keys), `blocks` {dotted block: list of keys}, `removed` {key: why}."""
    table: dict[str, Any] = json.loads((Path(__file__).parent / "known_keys.json").read_text(encoding="utf-8"))
    return table


def problems(document: Document) -> list[str]:
    """All that keeps the run from being what the file says: `dotted.key: what, what to do`, one line each."""
    table = known_keys()
    found = _unknown_keys(document, "", table["top_level"])
    for block, keys in table["blocks"].items():
        value = get(document, block)
        if isinstance(value, dict):
            found += _unknown_keys(value, f"{block}.", keys)
    return found + _ignored_blocks(document) + _unsupported(document)


def _unknown_keys(block: Document, prefix: str, known: list[str]) -> list[str]:
    removed = known_keys()["removed"]
    found = []
    for key in block:
        path = f"{prefix}{key}"
        if path in removed:
            found.append(f"{path}: DeepSpeed has removed this key: {removed[path].split(' See http')[0]} Delete it")
        elif key not in known and not _is_comment(path):
            found.append(f"{path}: unknown key, DeepSpeed would {_fate(prefix)} it; {_mend(key, prefix, known)}")
    return found


STRICT_BLOCKS = ("zero_optimization", "bf16", "fp16", "tensor_parallel", "compile")


def _is_comment(path: str) -> bool:
    """`_comment` and its like say on purpose that nobody reads them; where DeepSpeed is strict they are errors."""
    return path.rpartition(".")[2].startswith(("_", "#", "//")) and path.split(".")[0] not in STRICT_BLOCKS


def _fate(prefix: str) -> str:
    return "refuse" if prefix.split(".")[0] in STRICT_BLOCKS else "ignore"


def _mend(key: str, prefix: str, known: list[str]) -> str:
    """The nearest known name in this block, or the block in which the name is known, or deletion."""
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.75)
    if near:
        return f"did you mean {prefix}{near[0]}?"
    table = known_keys()
    places = [block for block, keys in table["blocks"].items() if key in keys]
    if key in table["top_level"]:
        return "it belongs at the top level"
    if len(places) == 1:
        return f"it belongs into {places[0]}"
    everywhere = {name: f"{block}.{name}" for block, keys in table["blocks"].items() for name in keys}
    near = difflib.get_close_matches(key, everywhere, n=1, cutoff=0.85)
    return f"did you mean {everywhere[near[0]]}?" if near else "delete it"


def _ignored_blocks(document: Document) -> list[str]:
    """Known keys that DeepSpeed does not act on beside this ZeRO stage."""
    stage = get(document, "zero_optimization.stage", 0)
    found = []
    for block, least in (("offload_optimizer", 1), ("offload_param", 3)):
        device = get(document, f"zero_optimization.{block}.device", "none")
        if device != "none" and isinstance(stage, int) and stage < least:
            found.append(
                f"zero_optimization.{block}: DeepSpeed ignores it at stage {stage}; "
                f"raise the stage to {least} or delete it"
            )
    return found


def _unsupported(document: Document) -> list[str]:
    """What DeepSpeed can do and this version of the project does not run."""
    found = []
    for path, one in (("pipeline.stages", 1), ("tensor_parallel.autotp_size", 0), ("sequence_parallel_size", 1)):
        value = get(document, path, one)
        if value not in (0, 1):
            found.append(f"{path}: {value}: this version of lm-scale runs data-parallel layouts only; delete it")
    if get(document, "torch_autocast.enabled", False):
        found.append("torch_autocast: not supported here, its products would be recorded as fp32; use bf16 or fp16")
    for key in ("partition_activations", "cpu_checkpointing", "contiguous_memory_optimization"):
        if get(document, f"activation_checkpointing.{key}", False):
            found.append(f"activation_checkpointing.{key}: not supported here; set it to false")
    return found
