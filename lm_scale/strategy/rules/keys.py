"""Keys: unknown ones, with what was meant; removed and deprecated ones; those that DeepSpeed parses to no effect.

DeepSpeed reads its top level and most blocks key by key and ignores what it does not ask for; blocks that are pydantic
models refuse it. Either way the run is not what the file says.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lm_scale.strategy import known
from lm_scale.strategy.rules.findings import Finding, Place, Setting
from lm_scale.strategy.rules.nearest import Suggestion, suggest
from lm_scale.strategy.rules.reading import AUTO, Document, raw

COMMENT_MARKS = ("_", "#", "//", "$")
COMMENT_NAMES = ("comment", "comments", "note", "notes", "description", "desc", "doc", "readme")
CHECKPOINTING = "activation_checkpointing"
SAMPLING = ("data_efficiency", "data_sampling")
HARMLESS = (("zero_optimization", "allgather_bucket_size"),)
"""Without effect, and nobody misses it: a size in most files that people keep."""
NEEDED = ((*SAMPLING, "curriculum_learning", "curriculum_metrics"), (*SAMPLING, "dynamic_batching", "max_tokens"))
"""Keys that DeepSpeed asserts where their block is enabled (runtime/data_pipeline/config.py:88, 108)."""


def findings(document: Document, setting: Setting) -> Iterator[Finding]:
    """All that is to be said of the names of keys, block by block in the file's order."""
    yield from _block(document, (), document)
    yield from _missing(document)
    yield from _checkpointing(document)


def _block(document: Document, place: Place, value: dict[str, Any]) -> Iterator[Finding]:
    within = known.block(place)
    if within is None:
        return
    for name, inner in value.items():
        here = (*place, name)
        key = within.keys.get(name)
        if known.removed(here):
            yield _removed(here, inner)
        elif key is None:
            if not within.open:
                yield _unknown(within, here, inner)
        else:
            yield from _known(document, key, here, inner)
        if isinstance(inner, dict):
            yield from _block(document, here, inner)
        elif isinstance(inner, list):
            for index, element in enumerate(inner):
                if isinstance(element, dict):
                    yield from _block(document, (*here, str(index)), element)


def _removed(place: Place, value: Any) -> Finding:
    why = "DeepSpeed has removed it and refuses the file"
    return Finding(place, value, "error", "removed-key", why, known.replacement(place) or "delete it")


def _unknown(within: known.Block, place: Place, value: Any) -> Finding:
    fate = "refuse it" if within.strict else "ignore it"
    meant = suggest(place)
    comment = _comment(within, place, value, meant)
    if comment is not None:
        return comment
    why = f"unknown key, DeepSpeed would {fate}"
    if meant.whose:
        why += f"; it is {meant.whose}"
    where = " or ".join(_today(one) for one in meant.places[:3])
    if meant.moved:
        fix = f"move it to {where}" if len(meant.places[0]) > 1 else f"move it to the top level, as {where}"
    elif where:
        fix = f"did you mean {where}?"
    elif meant.advice:
        fix = meant.advice
    elif isinstance(value, dict) and not place[:-1] and any(key in known.blocks()[()].keys for key in value):
        fix = "its keys belong at the top level; move them there"
    else:
        fix = "delete it"
    return Finding(place, value, "error", "unknown-key", why, fix)


def _comment(within: known.Block, place: Place, value: Any, meant: Suggestion) -> Finding | None:
    """A key that says on purpose that nobody reads it; None for one that may be a known key misspelt."""
    name = place[-1]
    if not name.startswith(COMMENT_MARKS) and name.lower() not in COMMENT_NAMES:
        return None
    bare = name.lstrip("_#/$ ")
    if within.strict:
        if meant.places and meant.places[0][:-1] == place[:-1]:
            return None
        why = "a comment in a block where DeepSpeed refuses every key that it does not know"
        return Finding(place, value, "error", "comment-key", why, "move it to the top level or delete it")
    if bare in within.keys:
        why = f"DeepSpeed ignores it; without the mark in front it is {bare}"
        return Finding(place, value, "warning", "comment-key", why, f"did you mean {'.'.join((*place[:-1], bare))}?")
    if meant.places and meant.places[0][:-1] == place[:-1]:
        return None
    return Finding(place, value, "note", "comment-key", "a comment: DeepSpeed ignores it")


def _today(place: Place) -> str:
    """A suggested place, with what replaces it where it is deprecated itself."""
    dotted = ".".join(place)
    key = known.key(place)
    return f"{dotted}, today {'.'.join((*place[:-1], key.new))}" if key is not None and key.new else dotted


def _known(document: Document, key: known.Key, place: Place, value: Any) -> Iterator[Finding]:
    beside = raw(document, *place[:-1]) if place[:-1] else document
    if key.new and key.acts:
        yield from _deprecated(beside, key, place, value)
    if key.alias and key.alias in beside and place[-1] > key.alias:
        why = f"another name of {key.alias}, which is given too: DeepSpeed refuses the file"
        yield Finding(place, value, "error", "key-twice", why, "keep one of them")
    if place == ("bfloat16",) and "bf16" not in beside:
        yield Finding(
            place, value, "note", "deprecated-key", "the old name of bf16; it still acts", "rename it to bf16"
        )
    if key.inert and place[0] != CHECKPOINTING:
        why = f"DeepSpeed accepts it and it has no effect: {key.inert}"
        asked = value != key.default and value is not None and place not in HARMLESS
        yield Finding(place, value, "warning" if asked else "note", "inert-key", why, "delete it")
    if key.project and place[-1] == "stages":
        why = "lm-scale reads it and DeepSpeed does not: elsewhere the file runs without a pipeline"
        yield Finding(place, value, "note", "project-key", why)


def _deprecated(beside: Any, key: known.Key, place: Place, value: Any) -> Iterator[Finding]:
    """An old name that still acts. Beside its new one DeepSpeed refuses it, which `offload.py` says."""
    new = known.key((*place[:-1], key.new))
    spelled = new.alias if new is not None and new.alias.startswith("stage3_") else key.new
    if value == AUTO or key.new in beside or spelled in beside:
        return
    fix = f"write {spelled} instead"
    if new is not None and new.block:
        fix = f'write "{spelled}": {{"device": "cpu"}} instead' if value else "delete it"
    yield Finding(place, value, "note", "deprecated-key", f"an old name; it still acts, as {spelled}", fix)


def _missing(document: Document) -> Iterator[Finding]:
    for place in NEEDED:
        within = raw(document, *place[:-1])
        if isinstance(within, dict) and within.get("enabled") and place[-1] not in within:
            why = "missing: DeepSpeed refuses the file without it where the block is enabled"
            yield Finding(place, None, "error", "missing-key", why, "add it, or turn the block off")


def _checkpointing(document: Document) -> Iterator[Finding]:
    """DeepSpeed parses the block and leaves it alone."""
    value = raw(document, CHECKPOINTING)
    if isinstance(value, dict):
        why = (
            "DeepSpeed acts on this block only where the training script calls deepspeed.checkpointing.configure(); "
            "lm-scale turns activation checkpointing on for it"
        )
        yield Finding((CHECKPOINTING,), value, "note", "checkpointing-inert", why)
