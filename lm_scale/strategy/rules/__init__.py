"""The lint rules: what is wrong, risky or worth knowing in a DeepSpeed JSON. No torch, no deepspeed.

A module a subject, each with one public function `findings(document, setting) -> Iterator[Finding]`; `check` runs all.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
from functools import cache
from typing import Any

from lm_scale.strategy import known
from lm_scale.strategy.rules import auto, batch, combinations, effective, keys, optimizer, types
from lm_scale.strategy.rules.findings import Finding, Setting

SUBJECTS = (keys, types, auto, batch, combinations, optimizer, effective)
SEVERITIES = ("error", "warning", "note")


def check(document: dict[str, Any], setting: Setting) -> list[Finding]:
    """All findings, the most severe first and of one severity in the order of the file; what it lacks comes last.

    On a DeepSpeed that the rules were not proven against, what would be an error is a warning.
    """
    found = [finding for subject in SUBJECTS for finding in subject.findings(document, setting)]
    unknown = {finding.place for finding in found if finding.rule.endswith("-parameter-unknown")}
    found = [one for one in found if one.rule != "auto-not-filled" or one.place not in unknown]  # one fault, told once
    if untested():
        found = [dataclasses.replace(one, severity="warning") if one.severity == "error" else one for one in found]
    order = {place: number for number, place in enumerate(_places(document, ()))}
    found.sort(key=lambda finding: (SEVERITIES.index(finding.severity), order.get(finding.place, len(order))))
    return found


@cache
def untested() -> str:
    """Why no finding is an error here: another DeepSpeed is installed than the rules were proven on. Else empty."""
    tested = known.table()["deepspeed_version"]
    try:
        installed = importlib.metadata.version("deepspeed")
    except importlib.metadata.PackageNotFoundError:
        return ""
    if installed == tested:
        return ""
    return f"DeepSpeed {installed} is installed, the rules were proven on {tested}: what would be an error is a warning"


def _places(node: Any, place: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Every place of the document, a block before what is in it."""
    if not isinstance(node, dict):
        return [place]
    return [place, *(inner for key, value in node.items() for inner in _places(value, (*place, str(key))))]
