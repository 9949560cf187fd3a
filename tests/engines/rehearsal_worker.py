"""One process that rehearses several strategies, as a rank of a fake world or of a real one.

`rehearsal_worker.py fake|real OUT.json NAME=WORDS ...`: the rank and the world come from the environment. A real one
computes everything and sends it over gloo; a fake one leaves the work on large tensors out.
"""

from __future__ import annotations

import gc
import json
import os
import shlex
import sys
from pathlib import Path
from typing import Any

import torch

from lm_scale.arguments import parse
from lm_scale.engines import process as real_process
from lm_scale.engines.rehearsal import world
from lm_scale.engines.rehearsal.findings import findings
from lm_scale.engines.rehearsal.rehearse import Rehearsal
from lm_scale.engines.rehearsal.setting import STEPS, RehearsalArguments, launch_of
from lm_scale.strategy.machine import Machine

MACHINE = Machine("cpu", 2, False, "the test's choice")


def main(kind: str, out: str, *named: str) -> None:
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if kind == "fake":
        process = world.prepare_environment(MACHINE, rank, world_size)
        world.join_fake_group(process)
    else:
        process = real_process.prepare_environment(MACHINE)
        real_process.join_group(MACHINE, "deepspeed")
    found: dict[str, Any] = {}
    for entry in named:
        name, _, words = entry.partition("=")
        arguments = parse(RehearsalArguments, shlex.split(words), "rehearsal", "")
        launch, vocab_size = launch_of(arguments, MACHINE, process)
        rehearsal = Rehearsal(launch, vocab_size, torch.device("cpu"), touch=kind == "real")
        rehearsal.run(STEPS)
        found[name] = findings(rehearsal, None)
        del rehearsal
        gc.collect()
    Path(out).write_text(json.dumps(found))
    real_process.leave_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
