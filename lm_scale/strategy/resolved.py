"""A DeepSpeed JSON as it would run, every value with where it came from: for the eye, and for programs."""

from __future__ import annotations

import json
from typing import Any

from lm_scale.strategy.load import Document, walk
from lm_scale.strategy.resolve import Strategy
from lm_scale.strategy.rules.effective import effective


def commented(strategy: Strategy) -> str:
    """The JSON with each value's source as a comment beside it (DeepSpeed reads it), then what it leaves open."""
    lines = _lines(strategy.document, "", strategy.sources, "  ")
    width = max((len(text) for text, source in lines if source), default=0)
    body = [f"{text:<{width}}  # {source}" if source else text for text, source in lines]
    rest = [f"# {path} = {json.dumps(value)}  ({source})" for path, value, source in defaults(strategy.document)]
    return "\n".join(["{", *body, "}", *rest])


def defaults(document: Document) -> list[tuple[str, Any, str]]:
    """What counts and does not stand in the JSON: path, value, and where DeepSpeed takes it from."""
    said = {path for path, _ in walk(document)}
    sources = {"default": "DeepSpeed's default"}
    return [
        (path, value, sources.get(source, source)) for path, value, source in effective(document) if path not in said
    ]


def _lines(block: Document, prefix: str, sources: dict[str, str], indent: str) -> list[tuple[str, str]]:
    """Each line of a block's inside, with the source of its value; none for a line that opens or closes a block."""
    lines: list[tuple[str, str]] = []
    for number, (key, value) in enumerate(block.items(), 1):
        comma = "," if number < len(block) else ""
        if isinstance(value, dict) and value:
            inside = _lines(value, f"{prefix}{key}.", sources, indent + "  ")
            lines += [(f"{indent}{json.dumps(key)}: {{", ""), *inside, (f"{indent}}}{comma}", "")]
        else:
            source = sources.get(f"{prefix}{key}", "file")
            lines.append((f"{indent}{json.dumps(key)}: {json.dumps(value)}{comma}", source))
    return lines
