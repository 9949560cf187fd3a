"""The command `python -m lm_scale.engines.rehearsal`: see the package's docstring for what it prints."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence

from lm_scale.arguments import UserError, parse, run_command


def main(argv: Sequence[str]) -> int:
    """Rehearse one rank of a run over a process group that is a fake; prints one JSON object."""
    from lm_scale.engines.rehearsal.setting import STEPS, RehearsalArguments, check, launch_of
    from lm_scale.engines.rehearsal.world import join_fake_group, own_device, prepare_environment
    from lm_scale.strategy.machine import detect

    arguments = parse(RehearsalArguments, argv, "rehearsal", (main.__doc__ or "").strip())
    check(arguments)
    machine = detect()
    process = prepare_environment(machine, arguments.rank, arguments.world_size)
    output = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # frameworks print to stdout
    launch, vocab_size = launch_of(arguments, machine, process)

    from lm_scale.engines.nvme import claim_swap_folders
    from lm_scale.engines.operators import build, needed
    from lm_scale.engines.rehearsal.findings import findings
    from lm_scale.engines.rehearsal.rehearse import Rehearsal

    device = own_device(machine, arguments.memory_limit)
    join_fake_group(process)
    claims = claim_swap_folders(launch.strategy)
    build(needed(launch.strategy), launch.progress.say)
    rehearsal = Rehearsal(launch, vocab_size, device, touch=arguments.compute or device.type != "cpu")
    try:
        rehearsal.run(STEPS)
    except (RuntimeError, OSError) as error:  # torch's allocator and mmap(2)
        if "allocate memory" not in str(error):
            raise
        raise UserError(
            f"--model {arguments.model}: this machine refuses memory that would not be touched; "
            "raise --world_size, or set vm.overcommit_memory to 1"
        ) from None
    json.dump(findings(rehearsal, arguments.memory_limit), output)
    output.write("\n")
    output.flush()
    for claim in claims:
        claim.close()
    return 0


if __name__ == "__main__":
    run_command(main)
