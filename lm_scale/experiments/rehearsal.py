"""The rehearsal of a planned run, started as a process of its own: torch and DeepSpeed stay outside of `plan`."""

from __future__ import annotations

import sys
from typing import Any

from lm_scale.arguments import PlanArguments
from lm_scale.experiments.cell import words
from lm_scale.experiments.processes import printed_json

MODULE = "lm_scale.engines.rehearsal"


def rehearse(arguments: PlanArguments) -> dict[str, Any]:
    """What `python -m lm_scale.engines.rehearsal` prints for these arguments (see its docstring).

    Raises:
        UserError: it refused, with its own line; or it failed, with the last line that it said.
    """
    where = [f"--world_size={arguments.world_size}", f"--rank={arguments.rank}"]
    found: dict[str, Any] = printed_json([sys.executable, "-m", MODULE, *words(arguments), *where], "--rehearse")
    return found
