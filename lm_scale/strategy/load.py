"""Reading a DeepSpeed JSON and changing single values of it from the command line."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from lm_scale.arguments import UserError
from lm_scale.strategy.source import Document, Position, read

__all__ = ["Document", "at", "get", "load", "override", "put", "walk"]


def load(path: Path) -> Document:
    """The JSON object in `path`.

    Strict JSON, as Hugging Face reads it: DeepSpeed's own reader also takes Hjson, but a file that only one of the two
    reads is not portable.

    Raises:
        UserError: the file is missing or unreadable, is no JSON (with line and column), or gives a key twice.
    """
    try:
        source = read(path)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; give a DeepSpeed JSON, for example ds_configs/zero2.json") from None
    if source.unfit is not None:
        raise UserError(f"{at(path, source.unfit.position)}: {source.unfit.message}")
    if source.json_fault is not None:
        also = "; DeepSpeed alone would read it, as Hjson" if source.hjson_fault is None else ""
        raise UserError(f"{at(path, source.json_fault.position)}: not valid JSON: {source.json_fault.message}{also}")
    for place, position in source.duplicates:
        raise UserError(f"{at(path, position)}: {'.'.join(place)}: the key stands twice in its block; keep one")
    assert source.document is not None
    return source.document


def at(path: Path | str, position: Position | None) -> str:
    """`path:line:column`, or the path alone where no position is known."""
    return f"{path}:{position.line}:{position.column}" if position else str(path)


def override(document: Document, changes: list[str]) -> Document:
    """A copy of `document` with each `dotted.path=VALUE` set; VALUE is JSON, or else a string. Missing blocks are made.

    Raises:
        UserError: a change has no `=`, or its path goes through a value that is no block.
    """
    result = copy.deepcopy(document)
    for change in changes:
        dotted, equals, text = change.partition("=")
        if not equals or not dotted:
            raise UserError(f"--override {change}: write it as dotted.path=VALUE")
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        *blocks, key = dotted.split(".")
        node: Any = result
        for depth, block in enumerate(blocks, 1):
            node = node.setdefault(block, {})
            if not isinstance(node, dict):
                raise UserError(f"--override {change}: {'.'.join(blocks[:depth])} is a value, not a block")
        node[key] = value
    return result


def get(document: Document, dotted: str, default: Any = None) -> Any:
    """The value at a dotted path, or `default` where a part of the path is missing."""
    node: Any = document
    for part in dotted.split("."):
        if not isinstance(node, dict) or part not in node:
            return default
        node = node[part]
    return node


def put(document: Document, dotted: str, value: Any) -> None:
    """Set the value at a dotted path, making the blocks on the way."""
    *blocks, key = dotted.split(".")
    for block in blocks:
        document = document.setdefault(block, {})
    document[key] = value


def walk(document: Document, prefix: str = "") -> list[tuple[str, Any]]:
    """Every (dotted path, value) that is no block, in file order."""
    leaves: list[tuple[str, Any]] = []
    for key, value in document.items():
        path = f"{prefix}{key}"
        if isinstance(value, dict):
            leaves += walk(value, f"{path}.")
        else:
            leaves.append((path, value))
    return leaves
