"""What is rehearsed: pretrain's arguments and a rank of a world, made into what pretrain would start with."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from lm_scale.arguments import PretrainArguments, UserError, option
from lm_scale.engines.launch import Launch
from lm_scale.engines.nvme import check_nvme
from lm_scale.engines.process import Process
from lm_scale.models.presets import check_seq_len, load_config
from lm_scale.strategy.machine import Machine
from lm_scale.strategy.resolve import fill_schedule, resolve
from lm_scale.training.capture import Capture
from lm_scale.training.progress import Progress

STEPS = 3
"""The first allocates lazily and is traced by ZeRO-3, the second gathers by that trace, the third repeats it."""


@dataclass(kw_only=True)
class RehearsalArguments(PretrainArguments):
    """pretrain's, and which rank of which world is rehearsed."""

    world_size: int = option(1, help="ranks of the run that is rehearsed", metavar="N")
    rank: int = option(0, help="the one that is rehearsed", metavar="R")
    memory_limit: int | None = option(help="report where the device would hold more than this", metavar="BYTES")
    compute: bool = option(False, help="on a CPU, compute what a run computes: slow, and takes all its memory")


def check(arguments: RehearsalArguments) -> None:
    """Raises UserError where the arguments name no rank of a world, or nothing that can be rehearsed."""
    if arguments.world_size < 1:
        raise UserError(f"--world_size {arguments.world_size}: a world has at least 1 rank")
    if not 0 <= arguments.rank < arguments.world_size:
        raise UserError(f"--rank {arguments.rank}: the ranks of this world are 0 to {arguments.world_size - 1}")
    if arguments.engine != "deepspeed":
        raise UserError(f"--engine {arguments.engine}: only DeepSpeed is rehearsed; drop the argument")


def launch_of(arguments: RehearsalArguments, machine: Machine, process: Process) -> tuple[Launch, int]:
    """What pretrain knows before torch is imported, and the tokens of its vocabulary.

    Raises:
        UserError: as pretrain's, for the JSON, the model and the tokenizer.
    """
    source = load_config(arguments.model)
    check_seq_len(source, arguments.seq_len)
    hidden_size = source.text_config.get("hidden_size")
    strategy = resolve(arguments, arguments, hidden_size, process.world_size, machine)
    if strategy.layout.pipeline_stages > 1:
        raise UserError(
            f"{strategy.path}: pipeline.stages: a pipeline cannot be rehearsed: its stages wait for each other"
        )
    check_nvme(strategy)
    fill_schedule(strategy, arguments.max_steps or STEPS, 0)
    progress = Progress(sys.stderr, visible=True)
    launch = Launch(arguments, machine, process, source, strategy, Capture(process.rank), progress)
    return launch, _vocab_size(arguments.tokenizer, source.vocab_size)


def _vocab_size(tokenizer: str | None, model: int | None) -> int:
    """Tokens of the named tokenizer, else the vocabulary that the config names: a preset's is the default's."""
    from lm_scale.data.tokenizer import TRAINED_VOCABULARY, load_encoder

    if tokenizer is not None:
        return load_encoder(tokenizer).vocab_size
    return model or TRAINED_VOCABULARY
