"""Making a run's directory, or opening it again to go on."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from lm_scale.arguments import PretrainArguments, UserError
from lm_scale.engines.launch import Launch, agree
from lm_scale.records import Header, Writer, process_identity
from lm_scale.strategy.resolve import Strategy

SAME = {
    "strategy": ("engine",),
    "layout": ("world_size",),
    "batch": ("global_batch", "micro_batch", "seq_len", "packing"),
    "data": ("fingerprint",),
    "model": ("source",),
    "numerics": ("precision",),
}
"""What a run and the run that goes on with it have in common, beside the executed JSON."""


def run_name(launch: Launch) -> str:
    """The given name, or a unique one: strategy, model, ranks x micro-batch x accumulation, time."""
    batch = launch.strategy.batch
    sizes = f"{launch.process.world_size}x{batch.micro_batch}x{batch.grad_accum}"
    stamp = time.strftime("%Y%m%d-%H%M%S")
    strategy = launch.strategy.name + ("-torch" if launch.arguments.engine == "torch" else "")
    return launch.arguments.run_name or f"{strategy}-{launch.source.name}-{sizes}-{stamp}"


def resume_dir(arguments: PretrainArguments) -> Path | None:
    """The run directory that `--resume` names; None for a new run.

    Raises:
        UserError: there is no such run.
    """
    if not arguments.resume:
        return None
    if arguments.resume == "auto":
        if not arguments.run_name:
            raise UserError("--resume auto: needs --run_name, the run to go on with")
        path = Path(arguments.output_dir) / arguments.run_name
    else:
        path = Path(arguments.resume)
        if not path.is_dir():
            path = Path(arguments.output_dir) / arguments.resume
    if not (path / "run.json").is_file():
        raise UserError(f"--resume {arguments.resume}: {path} is no run directory")
    return path


def check_output(arguments: PretrainArguments) -> None:
    """See before anything is computed that the run's directory can be made.

    Raises:
        UserError: the name is taken or no directory name, or the folder cannot be written.
    """
    if resume_dir(arguments) is not None:
        return
    output = Path(arguments.output_dir)
    name = arguments.run_name
    if name is not None:
        if name != Path(name).name or name in ("", ".", ".."):
            raise UserError(f"--run_name {name}: must be one folder name, without slashes")
        if (output / name).exists():
            raise UserError(f"--run_name {name}: {output / name} exists; choose another name or delete it")
    try:
        output.mkdir(parents=True, exist_ok=True)
        probe = output / f".probe-{time.time_ns()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"--output_dir {output}: {error.strerror}") from None


def open_run(launch: Launch, header: Header) -> tuple[Path, Writer]:
    """Make the run directory on the first rank, or open the resumed one; every rank's output goes to its log."""
    arguments = launch.arguments

    def make() -> str:
        resumed = resume_dir(arguments)
        if resumed is not None:
            _check_same(resumed, header, launch.strategy)
            return str(resumed)
        path = Path(arguments.output_dir) / run_name(launch)
        try:
            Writer.create(path, header, launch.strategy.document)
        except FileExistsError:
            raise UserError(f"{path}: exists; choose another --run_name") from None
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}") from None
        return str(path)

    path = Path(agree(launch.process, make))
    launch.capture.attach(path / "log.txt")
    return path, Writer(path)


def reopen(run_dir: Path, checkpoint: Path, step: int, changes: Header) -> None:
    """Go on in `run_dir` after `step`: drop later records, change the header; the first rank calls it."""
    Writer.reopen(
        run_dir,
        step,
        process=process_identity([sys.executable, *sys.argv]),
        resumed_from=str(checkpoint),
        resumed_step=step,
        **changes,
    )


def _check_same(run_dir: Path, header: Header, strategy: Strategy) -> None:
    """Raises UserError where the run cannot go on under these arguments: it would not be the same run."""
    before = json.loads((run_dir / "run.json").read_text(encoding="utf-8"))
    executed = json.loads((run_dir / "ds_config.json").read_text(encoding="utf-8"))
    pairs: list[tuple[str, Any, Any]] = [("seed", before.get("seed"), header["seed"])]
    for block, keys in SAME.items():
        pairs += [(f"{block}.{key}", (before.get(block) or {}).get(key), header[block][key]) for key in keys]
    for key in sorted((executed.keys() | strategy.document.keys()) - {"scheduler"}):
        pairs.append((key, executed.get(key), strategy.document.get(key)))
    for name, was, now in pairs:
        if was != now:
            raise UserError(f"{run_dir}: {name} was {was} and is {now} now; resume with the same")
