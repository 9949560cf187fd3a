"""What the walk over DeepSpeed's sources (`reads.py`) knows of a value: that it is a place of the JSON."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Place = tuple[str, ...]
UNKNOWN = object()
"""Any value that the walk does not follow. Constants of the sources stand for themselves."""


@dataclass(frozen=True)
class Places:
    """An abstract value: the subtree of the JSON at any of these places."""

    places: frozenset[Place]


@dataclass
class Instance:
    """An abstract `self`: its class and what its attributes hold."""

    cls: type
    attributes: dict[str, Any] = field(default_factory=dict)


def holds(value: Any) -> bool:
    """Whether a value leads to places of the JSON."""
    if isinstance(value, dict):
        return any(holds(inner) for inner in value.values())
    return isinstance(value, Places | Instance)


def merged(old: Any, new: Any) -> Any:
    """Places are never forgotten: the walk takes every branch, and a later branch may hold none."""
    if isinstance(old, Places):
        return Places(old.places | new.places) if isinstance(new, Places) else old
    return old if new is UNKNOWN else new
