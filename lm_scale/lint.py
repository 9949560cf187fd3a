"""`python -m lm_scale.lint X.json ...`: what is wrong in DeepSpeed JSONs, before a GPU is taken."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lm_scale.arguments import EXIT_FAILED, EXIT_USER_ERROR, LintArguments, UserError, parse, run_command
from lm_scale.models.presets import load_config
from lm_scale.strategy import resolved
from lm_scale.strategy.load import override
from lm_scale.strategy.machine import Machine, cpu, detect
from lm_scale.strategy.problems import Problem, of_file
from lm_scale.strategy.resolve import Strategy, resolve
from lm_scale.strategy.rules import SEVERITIES, untested
from lm_scale.strategy.rules.effective import effective
from lm_scale.strategy.rules.findings import Setting
from lm_scale.strategy.source import read

SUMMARY = "Check DeepSpeed JSONs: unknown and removed keys, wrong values, impossible combinations."


def main(argv: Sequence[str]) -> int:
    """Exit status 1 where any problem is an error, 2 where a file cannot be opened; the other files are checked."""
    arguments = parse(LintArguments, argv, "python -m lm_scale.lint", SUMMARY)
    _check(arguments)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # a key may hold any text
    setting = Setting(arguments.world_size, arguments.device)  # type: ignore[arg-type]
    found: dict[str, list[Problem]] = {}
    unopened = False
    for file in _files(arguments.ds_configs):
        try:
            found[file] = of_file(file, setting, arguments.override)
        except OSError as error:
            print(f"error: {file}: {error.strerror}; give a DeepSpeed JSON", file=sys.stderr)
            unopened = True
    runs = True
    if arguments.resolved:
        runs = _print_resolved(found, arguments)
    elif arguments.format == "json":
        print(json.dumps([_row(problem) for problems in found.values() for problem in problems], indent=1))
    else:
        _print_text(found, arguments)
    if unopened:
        return EXIT_USER_ERROR
    failed = any(problem.severity == "error" for problems in found.values() for problem in problems)
    return EXIT_FAILED if failed or not runs else 0


def _check(arguments: LintArguments) -> None:
    """Raises UserError where the arguments make no sense for a lint."""
    if arguments.ds_config:
        raise UserError(f"--ds_config {arguments.ds_config}: lint takes its JSONs as plain words, without an option")
    if arguments.world_size is not None and arguments.world_size < 1:
        raise UserError(f"--world_size {arguments.world_size}: must be at least 1")


def _files(words: Sequence[str]) -> list[str]:
    """The files that the words name: themselves, or the JSONs that stand directly in a folder."""
    files = []
    for word in words:
        inside = sorted(str(path) for path in Path(word).glob("*.json")) if Path(word).is_dir() else []
        files += inside or [word]
    return files


def _row(problem: Problem) -> dict[str, Any]:
    return dataclasses.asdict(problem) | {"value": _finite(problem.value)}


def _finite(value: Any) -> Any:
    """The value, with NaN and infinities as texts: JSON has no such numbers."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _print_text(found: dict[str, list[Problem]], arguments: LintArguments) -> None:
    """A line a problem, a line a file, and a line for all; of a single file what counts after defaults, too."""
    for file, problems in found.items():
        for problem in problems:
            if arguments.notes or problem.severity != "note":
                print(line(problem))
        print(f"{file}: {_counts(problems, arguments.notes)}")
    everything = [problem for problems in found.values() for problem in problems]
    if len(found) > 1:
        print(f"{len(found)} files: {_counts(everything, arguments.notes)}")
    elif found and not any(problem.severity == "error" for problem in everything):
        _print_effective(next(iter(found)), arguments)
    if untested():
        print(f"warning: {untested()}")


def _print_effective(file: str, arguments: LintArguments) -> None:
    """What the file comes to, a line a value; a star where the file does not say it."""
    document = override(read(Path(file)).document or {}, arguments.override)
    rows = effective(document)
    width = max(len(path) for path, _, _ in rows)
    print("what counts, after DeepSpeed's defaults (*: not said in the file):")
    for path, value, source in rows:
        mark = " " if source in ("file", '"auto"') else "*"
        reason = "" if source in ("file", "default", '"auto"') else f"  ({source})"
        print(f"{mark} {path:<{width}}  {json.dumps(value)}{reason}")


def _print_resolved(found: dict[str, list[Problem]], arguments: LintArguments) -> bool:
    """Each file as it would run, after its problems; whether all of them would."""
    rows: list[dict[str, Any]] = []
    for file, problems in found.items():
        row: dict[str, Any] = {"file": file, "problems": [_row(problem) for problem in problems], "refused": None}
        try:
            strategy = _resolve(file, arguments)
        except UserError as error:
            row |= {"refused": str(error), "world_size": None, "ds_config": None, "sources": None, "defaults": None}
            text = f"# not run: {error}"
        else:
            spread = strategy.layout
            ranks = spread.pipeline_stages * spread.data_parallel * spread.tensor_parallel
            row |= {"world_size": ranks, "ds_config": strategy.document, "sources": strategy.sources}
            row["defaults"] = {path: [value, source] for path, value, source in resolved.defaults(strategy.document)}
            head = f"# {file}, {ranks} {'rank' if ranks == 1 else 'ranks'}, model {arguments.model}"
            text = f"{head}\n{resolved.commented(strategy)}"
        rows.append(row)
        if arguments.format == "text":
            print("\n".join([*(f"# {line(one)}" for one in problems if one.severity != "note"), text]))
    if arguments.format == "json":
        print(json.dumps(_finite(rows), indent=1))
    return all(row["refused"] is None for row in rows)


def _resolve(file: str, arguments: LintArguments) -> Strategy:
    """The strategy as `pretrain` would run it on this machine, or on the device that was named.

    Raises:
        UserError: `pretrain` would refuse it.
    """
    machine = detect()
    if arguments.device == "cpu" and machine.device != "cpu":
        machine = cpu()
    elif arguments.device == "gpu" and machine.device == "cpu":
        machine = Machine("gpu", 1, True, "--device gpu is taken for one that multiplies bf16 natively")
    default = machine.count if machine.device != "cpu" else min(2, machine.count)
    hidden_size = load_config(arguments.model).text_config.get("hidden_size")
    one = dataclasses.replace(arguments, ds_config=file)
    return resolve(one, one, hidden_size, arguments.world_size or default, machine)


def line(problem: Problem) -> str:
    """`error: file:line:column: path: what is wrong; what to do`, on one line whatever the keys hold."""
    path = f"{problem.path}: " if problem.path else ""
    fix = f"; {problem.fix}" if problem.fix else ""
    text = f"{problem.severity}: {problem.where}: {path}{problem.message}{fix}"
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def _counts(problems: Sequence[Problem], notes: bool) -> str:
    """`1 error, 2 warnings, 9 notes (--notes shows them)`."""
    numbers: Counter[str] = Counter(problem.severity for problem in problems)
    parts = [f"{numbers[one]} {one}{'s' if numbers[one] != 1 else ''}" for one in SEVERITIES if numbers[one]]
    if not numbers["error"] and not numbers["warning"]:
        parts.insert(0, "no problem")
    hidden = " (--notes shows them)" if numbers["note"] and not notes else ""
    return ", ".join(parts) + hidden


if __name__ == "__main__":
    run_command(main)
