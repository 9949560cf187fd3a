"""The rehearsal of a planned run, started as a process of its own: torch and DeepSpeed stay outside of `plan`."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from typing import Any

from lm_scale.arguments import PlanArguments, PretrainArguments, UserError

MODULE = "lm_scale.engines.rehearsal"


def rehearse(arguments: PlanArguments) -> dict[str, Any]:
    """What `python -m lm_scale.engines.rehearsal` prints for these arguments (see its docstring).

    Raises:
        UserError: it refused, with its own line; or it failed, with the last line that it said.
    """
    command = [sys.executable, "-m", MODULE, *_words(arguments)]
    command += [f"--world_size={arguments.world_size}", f"--rank={arguments.rank}"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise UserError(f"--rehearse: {last.removeprefix('error: ')}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _words(arguments: PlanArguments) -> list[str]:
    """The arguments that `pretrain` has too, where they are not the default."""
    words = []
    for field in dataclasses.fields(PretrainArguments):
        value = getattr(arguments, field.name)
        default = field.default_factory() if callable(field.default_factory) else field.default
        for one in (value if isinstance(value, list) else [value]) if value != default else []:
            words.append(f"--{field.name}={str(one).lower() if isinstance(one, bool) else one}")
    return words
