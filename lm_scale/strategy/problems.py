"""The problems of one DeepSpeed JSON: what its readers and the rules say, each with line and column."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_scale.strategy.load import override
from lm_scale.strategy.rules import SEVERITIES, check
from lm_scale.strategy.rules.findings import Finding, Place, Setting, Severity
from lm_scale.strategy.rules.reading import raw, stage
from lm_scale.strategy.source import Fault, Position, Source, read

STAGE_IN_NAME = re.compile(
    r"(?:(?:zero|stage|(?<![a-z])z)[-_ ]?(?:stage)?[-_ ]?)([0-3])(?![0-9]|[.p][0-9]|[bkm](?![a-z]))", re.IGNORECASE
)
"""`zero3`, `zero_stage_2`, `z3`, `stage1`, `zero2-offload`; neither `zero10` nor a size such as `zero_1b`."""
RANGE_IN_NAME = re.compile(r"[0-3][-_ ]?(?:to|vs|or|and|[-_])[-_ ]?[0-3](?![0-9a-z])", re.IGNORECASE)
"""`zero2to3`, `zero_2_3`: not one stage."""
PYTHON = {"True": "true", "False": "false", "None": "null"}


@dataclass(frozen=True)
class Problem:
    """What `lint --format json` prints, in this order. `line` and `column` count from 1 and are None where unknown.

    `path` is dotted and empty where the file as a whole is meant; a key that is absent stands at its block's place.
    """

    file: str
    line: int | None
    column: int | None
    path: str
    value: Any
    severity: Severity
    rule: str
    message: str
    fix: str

    @property
    def where(self) -> str:
        return f"{self.file}:{self.line}:{self.column}" if self.line else self.file


def of_file(file: str, setting: Setting, changes: Sequence[str] = ()) -> list[Problem]:
    """All problems of the file after the `--override` changes: of its text, then by severity.

    Raises:
        OSError: the file cannot be opened.
        UserError: a change is malformed.
    """
    source = read(Path(file))
    problems = [_problem(file, finding, position) for finding, position in _of_text(source)]
    if source.document is None:
        return problems
    said = {tuple(problem.path.split(".")) for problem in problems}
    findings = check(override(source.document, list(changes)), setting)
    kept = [one for one in findings if one.rule != "wrong-type" or one.place not in said]
    kept += _of_name(source, file)
    kept.sort(key=lambda finding: SEVERITIES.index(finding.severity))
    return problems + [_problem(file, finding, source.position(finding.place)) for finding in kept]


def _problem(file: str, finding: Finding, position: Position | None) -> Problem:
    line, column = (position.line, position.column) if position else (None, None)
    told = (finding.severity, finding.rule, finding.message, finding.fix)
    return Problem(file, line, column, finding.path, finding.value, *told)


def _of_text(source: Source) -> Iterator[tuple[Finding, Position | None]]:
    """What is wrong with the text, whatever its keys mean."""
    if source.unfit:
        yield _syntax(source.unfit.message), source.unfit.position
    elif source.json_fault and source.hjson_fault:
        known = source.hjson_fault.position is not None
        also = f"as Hjson: {_spoken(source.hjson_fault, source.json_fault)}" if known else source.hjson_fault.message
        readers = "neither Hugging Face nor DeepSpeed reads it" if known else "Hugging Face does not read it"
        yield _syntax(f"{readers}; as strict JSON: {source.json_fault.message}; {also}"), source.json_fault.position
    elif source.json_fault:
        message = (
            f"no strict JSON ({source.json_fault.message}): DeepSpeed reads it as Hjson, but Hugging Face's Trainer, "
            "DeepSpeed's autotuner and this project do not"
        )
        fix = "quote keys and texts, and remove comments and commas before a closing bracket"
        yield Finding((), None, "warning", "not-strict-json", message, fix), source.json_fault.position
    elif source.hjson_fault and source.hjson_fault.position:
        message = f"DeepSpeed does not read it as Hjson: {source.hjson_fault.message}"
        yield _syntax(message), source.hjson_fault.position
    for place, position in source.duplicates:
        message = "stands twice in its block: DeepSpeed refuses the file, Hugging Face silently takes the last"
        yield Finding(place, None, "error", "duplicate-key", message, "keep one"), position
    if source.json_fault:
        for place, text in source.unquoted.items():
            if finding := _unquoted(place, text):
                yield finding, source.values.get(place)


def _syntax(message: str) -> Finding:
    return Finding((), None, "error", "syntax", message)


def _spoken(fault: Fault, other: Fault) -> str:
    position = fault.position
    apart = position is not None and position != other.position
    return f"{fault.message} (line {position.line}, column {position.column})" if apart and position else fault.message


def _unquoted(place: Place, text: str) -> Finding | None:
    """A text that Hjson took to the end of its line, and that was meant for something shorter: `True,` or `1e5,`."""
    word = re.split(r"[,#]", text, maxsplit=1)[0].strip()
    if word == text and word not in PYTHON:
        return None
    message = f"without quotes DeepSpeed reads it to the end of the line, as the text {text!r}"
    fix = f"write {PYTHON.get(word, word)}, in strict JSON" if _is_json(word) else f"write what {word} stands for"
    return Finding(place, text, "error", "unquoted", message, fix)


def _is_json(word: str) -> bool:
    """Whether the word is a value as it stands, or one of Python's; else it is a name in a template."""
    try:
        json.loads(PYTHON.get(word, word))
    except ValueError:
        return False
    return True


def _of_name(source: Source, file: str) -> Iterator[Finding]:
    """The file's name says another stage than the file; only where it says one stage and the file a fixed one."""
    named = {int(found) for found in STAGE_IN_NAME.findall(Path(file).stem)}
    at = stage(source.document or {})
    if len(named) == 1 and at is not None and not RANGE_IN_NAME.search(Path(file).stem) and at not in named:
        message = f"the file's name says stage {named.pop()}, and the file {f'stage {at}' if at else 'no ZeRO'}"
        place = ("zero_optimization", "stage")
        value = raw(source.document or {}, *place)
        yield Finding(place, value, "warning", "stage-in-name", message, "change the stage, or the name")
