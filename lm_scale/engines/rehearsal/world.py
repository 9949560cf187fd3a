"""A world of any size on one process: rank `r` of `n` in a process group whose other ranks nobody runs."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from lm_scale.arguments import UserError
from lm_scale.engines.process import Process
from lm_scale.strategy.machine import Machine

if TYPE_CHECKING:
    import torch


def prepare_environment(machine: Machine, rank: int, world_size: int) -> Process:
    """What a launcher would have left for this rank; before torch is imported. The process has the host to itself.

    DeepSpeed asks for the ranks of a node only where it quantizes gradients (`runtime/zero/stage3.py`, qgZ); on a CPU
    they are taken to be those of this machine's world.
    """
    cores = len(os.sched_getaffinity(0))
    os.environ |= {
        **{"RANK": str(rank), "WORLD_SIZE": str(world_size), "LOCAL_RANK": "0", "LOCAL_SIZE": "1"},
        **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"},
    }
    if machine.device == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    threads = int(os.environ.setdefault("OMP_NUM_THREADS", str(cores)).split(",")[0])
    return Process(rank, world_size, 0, 1, threads)


def join_fake_group(process: Process) -> None:
    """PyTorch's fake process group, with DeepSpeed's communication on top.

    Its collectives return at once; where a result can be made of this rank's own input, it is (a gather repeats it).
    """
    import deepspeed
    import torch.distributed
    from torch.testing._internal.distributed.fake_pg import FakeStore

    torch.distributed.init_process_group("fake", store=FakeStore(), rank=process.rank, world_size=process.world_size)
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(auto_mpi_discovery=False, dist_init_required=False)
    _agree_with_rank0()


def _agree_with_rank0() -> None:
    """ZeRO-3 compares each rank's order of gathers with rank 0's, which nobody made here: it is this rank's own."""
    from deepspeed.runtime.zero import utils

    ask_rank0 = utils.get_lst_from_rank0

    def own_numbers(numbers: list[int]) -> list[int]:
        ask_rank0(numbers)  # for its bytes on the wire
        return numbers

    def own_length(numbers: list[int]) -> None:
        ask_rank0([len(numbers)])

    utils.get_lst_from_rank0 = own_numbers
    utils.assert_lst_len_same_as_other_ranks = own_length


def own_device(machine: Machine, memory_limit: int | None) -> torch.device:
    """The device that stands for every rank's; an accelerator's memory is cut to `memory_limit` bytes.

    Raises:
        UserError: torch cannot use the accelerator, or it has less memory than the limit.
    """
    import torch

    if machine.device == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UserError(
            "the driver shows a GPU that torch cannot use; install torch's GPU build, or set DS_ACCELERATOR=cpu"
        )
    device = torch.device("cuda", 0)
    torch.cuda.set_device(device)
    if memory_limit is not None:
        total = torch.cuda.get_device_properties(device).total_memory
        if memory_limit > total:
            raise UserError(f"--memory_limit {memory_limit}: this device has {total} bytes")
        torch.cuda.set_per_process_memory_fraction(memory_limit / total, device)
    return device
