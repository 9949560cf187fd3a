"""What DeepSpeed knows of its JSON: every key of every block, from the table that ships in `known_keys.json`.

The table is generated from the installed DeepSpeed (`lm_scale/engines/known_keys`) and read here without it. Places
are the keys from the top of the JSON; `()` is the top level. In a place of the table `*` stands for any key of the
user's own, or any element of a list.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

Place = tuple[str, ...]
MISSING = object()


@dataclass(frozen=True)
class Key:
    """One key that DeepSpeed reads, or this project (`project`).

    `types`: JSON types that it takes (`bool`, `int`, `float`, `str`, `list`, `dict`, `null`, `any`, `choice`), before
    pydantic's coercions; empty: unknown, or in a strict block that no JSON value fits. `default`: `MISSING` if none.
    `ge`, `gt`, `le`, `lt`: bounds. `alias`: the other name of the same setting. `new`: what replaces a deprecated key,
    which still acts where `acts`. `inert`: why a key that is parsed has no effect; empty where it has one. `at`: the
    reader in DeepSpeed's sources, `file:line`.
    """

    place: Place
    types: tuple[str, ...] = ()
    default: Any = MISSING
    choices: tuple[Any, ...] = ()
    bounds: dict[str, float] = field(default_factory=dict)
    alias: str = ""
    new: str = ""
    acts: bool = True
    inert: str = ""
    block: bool = False
    project: bool = False
    at: str = ""

    @property
    def name(self) -> str:
        return self.place[-1]


@dataclass(frozen=True)
class Block:
    """One block. `strict`: DeepSpeed refuses unknown keys; elsewhere it ignores them. `open`: any key may stand."""

    place: Place
    strict: bool
    open: bool
    keys: dict[str, Key]


@cache
def table() -> dict[str, Any]:
    """The table as generated.

    `deepspeed_version`, `torch_version`, `blocks`, `removed` (key -> DeepSpeed's message), `replaced` (key -> what to
    do instead), `optimizers` and `schedulers` (`lm_scale/engines/known_keys/optimizers.py` says their form).
    """
    found: dict[str, Any] = json.loads((Path(__file__).parent / "known_keys.json").read_text(encoding="utf-8"))
    return found


@cache
def blocks() -> dict[Place, Block]:
    """Every block by its place in the table (with `*`)."""
    found = {}
    for dotted, entry in table()["blocks"].items():
        place = tuple(dotted.split(".")) if dotted else ()
        keys = {name: _key((*place, name), told) for name, told in entry["keys"].items()}
        found[place] = Block(place, entry["strict"], entry.get("open", False), keys)
    return found


def block(place: Place) -> Block | None:
    """The block at a place of a document; None where DeepSpeed knows none there."""
    exact = blocks().get(place)
    if exact is not None:
        return exact
    for pattern, found in _patterns():
        if len(pattern) == len(place) and all(a in ("*", b) for a, b in zip(pattern, place, strict=True)):
            return found
    return None


def key(place: Place) -> Key | None:
    """The key at a place of a document; None where it is unknown, removed, or the user's own in an open block."""
    within = block(place[:-1]) if place else None
    return within.keys.get(place[-1]) if within else None


def replacement(place: Place) -> str:
    """What to do instead of a removed key; empty where nothing replaces it."""
    return str(table()["replaced"].get(".".join(place), ""))


def removed(place: Place) -> str:
    """DeepSpeed's own message on a key that it has removed and now refuses; empty for any other."""
    return str(table()["removed"].get(".".join(place), ""))


@cache
def places_of(name: str) -> tuple[Place, ...]:
    """All places at which a key of this name is known, outermost first."""
    found = [(*place, name) for place, within in blocks().items() if name in within.keys]
    return tuple(sorted(found, key=lambda place: (len(place), place)))


@cache
def _patterns() -> list[tuple[Place, Block]]:
    return [(place, found) for place, found in blocks().items() if "*" in place]


def _key(place: Place, told: dict[str, Any]) -> Key:
    old = told.get("deprecated", {})
    types = tuple(told.get("types", ()))
    return Key(
        place=place,
        types=types or (("dict",) if told.get("block") else ()),
        default=told.get("default", MISSING),
        choices=tuple(told.get("choices", ())),
        bounds={bound: told[bound] for bound in ("ge", "gt", "le", "lt") if bound in told},
        alias=told.get("alias", ""),
        new=old.get("new", ""),
        acts=old.get("acts", True),
        inert=told.get("inert", ""),
        block=told.get("block", False),
        project=told.get("project", False),
        at=told.get("at", ""),
    )
