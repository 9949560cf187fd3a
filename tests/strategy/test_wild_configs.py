"""The lint on DeepSpeed JSONs as people keep them, against what a careful reader found in each.

The files are not part of the project; where they are not at hand, these tests are skipped.
"""

from __future__ import annotations

import json
import re
from functools import cache
from typing import Any

import pytest
from launches import ROOT

from lm_scale.strategy.problems import Problem, of_file
from lm_scale.strategy.rules.findings import Setting
from lm_scale.strategy.source import read

WILD = ROOT.parent / "shared" / "wild_configs"
CODES = {
    "act-ckpt-inert": ("checkpointing-inert",),
    "deprecated": ("deprecated-key", "old-and-new-name"),
    "engine": ("optimizer-removed", "optimizer-max-grad-norm"),
    "removed": ("removed-key",),
    "unknown-nested": ("unknown-key", "comment-key"),
    "unknown-top-level": ("unknown-key", "comment-key"),
}
"""The reader's kinds of finding and ours, where the two are not named alike."""


def _entries() -> list[Any]:
    expected = WILD / "expected.json"
    if not expected.exists():
        skip = pytest.mark.skip(reason="the collected configuration files are not on this machine")
        return [pytest.param({}, marks=skip)]
    return [pytest.param(entry, id=entry["file"]) for entry in json.loads(expected.read_text(encoding="utf-8"))]


every_file = pytest.mark.parametrize("entry", _entries())


@cache
def _problems(file: str) -> list[Problem]:
    return of_file(str(WILD / file), Setting())


@every_file
def test_every_recorded_finding_is_reported(entry: dict[str, Any]) -> None:
    rules = {problem.rule for problem in _problems(entry["file"])}
    kinds = [recorded.partition(":")[2] for recorded in entry["findings"]]
    assert [kind for kind in kinds if not rules & set(CODES.get(kind, (kind,)))] == []


@every_file
def test_every_unread_key_is_reported_where_it_stands(entry: dict[str, Any]) -> None:
    paths = {problem.path for problem in _problems(entry["file"])}
    unread = [*entry["unknown_top_level"], *entry["removed"]]
    unread += [f"{block}.{key}" for block, keys in entry["unknown_nested"].items() for key in keys]
    assert [path for path in unread if path not in paths] == []


@every_file
def test_every_place_that_the_reader_names_has_a_problem(entry: dict[str, Any]) -> None:
    document = read(WILD / entry["file"]).document
    paths = {problem.path for problem in _problems(entry["file"])}
    named = re.findall(r"[a-z0-9_]+(?:\.[a-z0-9_]+)+", entry["notes"])
    named += re.findall(r"(?:^|\| )([a-z0-9_]+)", entry["notes"])
    standing = [path for path in named if _stands_in(document, path)]
    assert [path for path in standing if not any(one == path or one.startswith(f"{path}.") for one in paths)] == []


def _stands_in(document: Any, path: str) -> bool:
    for key in path.split("."):
        if not isinstance(document, dict) or key not in document:
            return False
        document = document[key]
    return True


@every_file
def test_what_deepspeed_refuses_at_any_size_has_an_error(entry: dict[str, Any]) -> None:
    if not entry["deepspeed_accepts_resolved"]:
        errors = [problem for problem in _problems(entry["file"]) if problem.severity == "error"]
        assert errors, entry["deepspeed_error"]


@every_file
def test_a_clean_file_has_no_error(entry: dict[str, Any]) -> None:
    if entry["label"] == "clean":
        found = _problems(entry["file"])
        assert [(problem.rule, problem.path) for problem in found if problem.severity == "error"] == []


@every_file
def test_a_mistake_is_more_than_a_note(entry: dict[str, Any]) -> None:
    if entry["label"] in ("mistake", "obsolete"):
        assert {problem.severity for problem in _problems(entry["file"])} - {"note"}


@every_file
def test_every_problem_says_why_and_what_to_do(entry: dict[str, Any]) -> None:
    silent = [one for one in _problems(entry["file"]) if not one.message or (one.severity != "note" and not one.fix)]
    assert [(problem.rule, problem.path) for problem in silent] == []
