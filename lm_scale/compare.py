"""`python -m lm_scale.compare X.json Y.json ...`: run each under the same arguments, keep every outcome, report."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from lm_scale import records, report
from lm_scale.arguments import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_USER_ERROR,
    CompareArguments,
    PretrainArguments,
    UserError,
    parse,
    run_command,
    seconds,
)
from lm_scale.experiments import cell, parity
from lm_scale.models.presets import load_config
from lm_scale.report import tables
from lm_scale.strategy.machine import Machine, detect
from lm_scale.strategy.resolve import resolve

REFERENCE = "torch_fp32"
OFF = {
    "zero_optimization": '{"stage": 0}',
    **dict.fromkeys(("bf16", "fp16"), '{"enabled": false}'),
    **dict.fromkeys(("pipeline", "tensor_parallel", "data_types", "compile"), "{}"),
    "communication_data_type": "null",
    "gradient_predivide_factor": "1.0",
    "prescale_gradients": "false",
}
AS_REFERENCE = ("--engine=torch", *(f"--override={key}={value}" for key, value in OFF.items()))
"""The first JSON's training by native PyTorch: nothing split, nothing rounded below fp32."""

PARITY_STEPS = 20


def main(argv: Sequence[str]) -> int:
    arguments = parse(
        CompareArguments,
        argv,
        "python -m lm_scale.compare",
        "Run each DeepSpeed JSON under the same arguments and report.",
    )
    machine = detect()
    if arguments.check_parity:
        arguments = _for_parity(arguments)
    names = _check(arguments, machine)
    world_size = _world_size(arguments, machine)
    folder = _make_folder(arguments)
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGHUP, _interrupt)
    kind = "cpu" if machine.device == "cpu" else "accelerator"
    progress = sys.stderr if sys.stderr.isatty() else sys.stdout  # without a terminal stderr is for errors alone
    cells = [
        _cell(arguments, name, json, folder, world_size, machine)
        for name, json in zip(names, arguments.ds_configs, strict=True)
    ]
    if arguments.check_parity:
        cells.append(_cell(arguments, REFERENCE, arguments.ds_configs[0], folder, world_size, machine, reference=True))
    print(f"{len(cells)} runs, {world_size} ranks each ({kind}), in {folder}", file=progress, flush=True)
    refusals = [_refusal(one, world_size, machine) for one in cells]
    outcomes: list[cell.Outcome] = []
    interrupted = False
    try:
        for number, (one, refusal) in enumerate(zip(cells, refusals, strict=True), 1):
            label = f"[{number}/{len(cells)}] {one.name}"
            timeout_s = seconds(arguments.cell_timeout, "--cell_timeout")
            if refusal is not None:
                outcomes.append(cell.reject(one, refusal, progress, label))
            else:
                outcomes.append(cell.run(one, timeout_s, progress, label))
            if number == 1:
                _stop_at_common_mistake(one, outcomes[0])
    except KeyboardInterrupt:
        interrupted = True
    begun = [one.directory for one in cells if one.directory.is_dir()]
    if begun:
        _report(begun, folder, arguments.baseline if not interrupted else None)
    if interrupted:
        return EXIT_INTERRUPTED
    if arguments.check_parity and not _parity([one.directory for one in cells], folder):
        return EXIT_FAILED
    return 0 if all(outcome.status in cell.FINISHED for outcome in outcomes) else EXIT_FAILED


def _check(arguments: CompareArguments, machine: Machine) -> list[str]:
    """The name of each run, after everything that can be found wrong before the first one starts.

    Raises:
        UserError: a JSON is missing, or an argument makes no sense for a comparison.
    """
    if arguments.ds_config:
        raise UserError(f"--ds_config {arguments.ds_config}: compare takes its JSONs as plain words, without an option")
    if arguments.resume:
        raise UserError(f"--resume {arguments.resume}: compare starts every run anew; resume one run with pretrain")
    for json in arguments.ds_configs:
        if not Path(json).is_file():
            raise UserError(f"{json}: no such file")
    seconds(arguments.cell_timeout, "--cell_timeout")
    if arguments.budget is not None:
        seconds(arguments.budget, "--budget")
    names = _unique([Path(json).stem for json in arguments.ds_configs])
    stems = [Path(json).stem for json in arguments.ds_configs]
    if arguments.baseline and arguments.baseline not in names and stems.count(arguments.baseline) != 1:
        raise UserError(f"--baseline {arguments.baseline}: no such run; there will be {', '.join(names)}")
    return names


def _for_parity(arguments: CompareArguments) -> CompareArguments:
    """A check of parity looks at steps: 20 of them unless a number was given, and keeps nothing.

    Raises:
        UserError: the length is a time, in which unlike layouts make unlike schedules.
    """
    if arguments.budget is not None:
        raise UserError("--check_parity: needs the same steps in every run; give --max_steps instead of --budget")
    steps = arguments.max_steps or PARITY_STEPS
    return dataclasses.replace(arguments, max_steps=steps, no_save=True, sample_tokens=0)


def _world_size(arguments: CompareArguments, machine: Machine) -> int:
    """Ranks: as asked, or all accelerators; on a CPU 2, or the cores if they are fewer.

    Raises:
        UserError: more were asked for than there are accelerators.
    """
    world_size = arguments.world_size
    if world_size is None:
        return machine.count if machine.device != "cpu" else min(2, machine.count)
    if world_size < 1:
        raise UserError(f"--world_size {world_size}: must be at least 1")
    if machine.device != "cpu" and world_size > machine.count:
        raise UserError(f"--world_size {world_size}: this machine shows {machine.count} accelerators")
    return world_size


def _unique(names: Sequence[str]) -> list[str]:
    """The names, numbered where they repeat: zero1, zero1-2."""
    taken: list[str] = []
    for name in names:
        candidate, number = name, 1
        while candidate in taken:
            number += 1
            candidate = f"{name}-{number}"
        taken.append(candidate)
    return taken


def _make_folder(arguments: CompareArguments) -> Path:
    """The comparison's folder, new.

    Raises:
        UserError: it exists, or cannot be made.
    """
    name = arguments.run_name or time.strftime("compare-%Y%m%d-%H%M%S")
    folder = Path(arguments.output_dir) / name
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        raise UserError(f"{folder}: exists already; choose another --run_name") from None
    except OSError as error:
        raise UserError(f"{folder}: cannot be made: {error.strerror}; choose another --output_dir") from None
    return folder


def _cell(
    arguments: CompareArguments,
    name: str,
    json: str,
    folder: Path,
    world_size: int,
    machine: Machine,
    reference: bool = False,
) -> cell.Cell:
    own = ("ds_config", "run_name", "output_dir", *(("engine", "bf16", "fp16") if reference else ()))
    words = [
        *(f"--ds_config={json}", f"--run_name={name}", f"--output_dir={folder}"),
        *cell.words(arguments, leave_out=own),
        *(AS_REFERENCE if reference else ()),
    ]
    environment = dict(os.environ)
    if machine.device == "cpu":
        environment["DS_ACCELERATOR"] = "cpu"  # the launcher reads it too, before pretrain could set it
    return cell.Cell(name, json, folder, cell.command(world_size, machine.device, words), environment)


def _refusal(one: cell.Cell, world_size: int, machine: Machine) -> str | None:
    """Why `pretrain` would refuse the cell's JSON (the lint, the batch), without starting it; else None."""
    words = one.command[one.command.index("lm_scale.pretrain") + 1 :]
    arguments = parse(PretrainArguments, words, "pretrain", "")
    try:
        hidden_size = load_config(arguments.model).text_config.get("hidden_size")
    except UserError:
        return None  # of no JSON: the first run says it for all
    try:
        resolve(arguments, arguments, hidden_size, world_size, machine)
    except UserError as error:
        return " ".join(str(error).split())
    return None


def _stop_at_common_mistake(first: cell.Cell, outcome: cell.Outcome) -> None:
    """A refusal that is not about the JSON would meet every run: leave nothing and say it once."""
    about_json = first.ds_config in (outcome.error or "") or Path(first.ds_config).name in (outcome.error or "")
    if outcome.status == "rejected" and outcome.exit_status == EXIT_USER_ERROR and not about_json:
        shutil.rmtree(first.folder)
        raise UserError(outcome.error or "")


def _report(directories: Sequence[Path], folder: Path, baseline: str | None) -> None:
    """Print the table and keep it in three files."""
    try:
        table = report.read(directories, baseline)
    except report.NothingReadError as error:
        print(
            "\n".join([*(f"warning: left out: {problem}" for problem in error.problems), f"error: {error}"]),
            file=sys.stderr,
        )
        return
    for problem in table.problems:
        print(f"warning: left out: {problem}", file=sys.stderr)
    texts = {
        "table.md": tables.to_markdown(table),
        "table.csv": tables.to_csv(table.rows),
        "table.json": tables.to_json(table.rows),
    }
    for name, text in texts.items():
        (folder / name).write_text(text + "\n", encoding="utf-8")
    print()
    tables.print_terminal(table)
    print(f"files: {', '.join(str(folder / name) for name in texts)}; the runs are beside them")


def _parity(directories: Sequence[Path], folder: Path) -> bool:
    """Say of each run whether it agrees with the reference, the last of them, and keep it; whether all do."""
    reference, verdicts = records.read(directories[-1]), []
    for directory in directories[:-1]:
        verdicts.append(parity.judge(reference, records.read(directory)))
    text = parity.describe(verdicts)
    (folder / "parity.txt").write_text(text + "\n", encoding="utf-8")
    print(f"\n{text}")
    return all(verdict.agrees for verdict in verdicts)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """To be asked to end is to be interrupted: what was started must be ended first."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    run_command(main)
