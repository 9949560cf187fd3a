"""Reading a DeepSpeed JSON and changing single values of it from the command line."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from lm_scale.arguments import UserError

Document = dict[str, Any]


def load(path: Path) -> Document:
    """The JSON object in `path`.

    Strict JSON, as Hugging Face reads it: DeepSpeed's own reader also takes Hjson, but a file that only one of the two
    reads is not portable.

    Raises:
        UserError: the file is missing or unreadable, is no JSON (with line and column), or gives a key twice.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; give a DeepSpeed JSON, for example ds_configs/zero2.json") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start})") from None
    try:
        document = json.loads(text, object_pairs_hook=_unique_keys)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}:{error.colno}: not valid JSON: {error.msg}") from None
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    if not isinstance(document, dict):
        raise UserError(f"{path}: must hold a JSON object, not a {type(document).__name__}")
    return document


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


def _unique_keys(pairs: list[tuple[str, Any]]) -> Document:
    document: Document = {}
    for key, value in pairs:
        if key in document:
            raise ValueError(f"{key}: the key stands twice in its block; keep one")
        document[key] = value
    return document
