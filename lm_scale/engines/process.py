"""The process of one rank: its environment before torch is imported, and the process group after."""

from __future__ import annotations

import datetime
import os
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lm_scale.arguments import UserError
from lm_scale.strategy.machine import Machine

if TYPE_CHECKING:
    import torch

TIMEOUT = datetime.timedelta(minutes=30)


@dataclass(frozen=True)
class Process:
    """This rank among the others; `threads` is what each rank may use of the host's cores."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    threads: int

    @property
    def nodes(self) -> int:
        return max(1, self.world_size // self.local_world_size)


def prepare_environment(machine: Machine) -> Process:
    """Complete the environment that a launcher left (`deepspeed`, `torchrun`, `srun`, none) and read this rank off it.

    It must run before torch is imported, which reads OMP_NUM_THREADS once. On a CPU each rank gets cores / ranks
    threads, unless the user set it: more threads than cores made two ranks 2.5 times slower when measured.

    Raises:
        UserError: the environment names a rank but not where the ranks meet.
    """
    env = os.environ
    tasks = int(env.get("SLURM_STEP_NUM_TASKS") or env.get("SLURM_NTASKS") or 1)
    if "RANK" not in env and env.get("SLURM_STEP_ID", "").isdigit() and tasks > 1:  # in a step of srun's
        env |= {"RANK": env["SLURM_PROCID"], "WORLD_SIZE": str(tasks), "LOCAL_RANK": env.get("SLURM_LOCALID", "0")}
        a_node = env.get("SLURM_STEP_TASKS_PER_NODE") or env.get("SLURM_NTASKS_PER_NODE") or "1"
        env.setdefault("LOCAL_WORLD_SIZE", a_node.split("(")[0].split(",")[0])  # such as 8(x2)
    if "RANK" not in env:
        env |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
        env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    missing = [name for name in ("WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in env]
    if missing:
        raise UserError(
            f"environment: RANK is set but {', '.join(missing)} is not; start through deepspeed, torchrun or srun"
        )
    world_size = int(env["WORLD_SIZE"])
    local = int(env.get("LOCAL_SIZE") or env.get("LOCAL_WORLD_SIZE") or world_size)
    env["LOCAL_SIZE"] = str(local)  # DeepSpeed's CPU accelerator counts its devices by it; torchrun does not set it
    if machine.device == "cpu":
        env["DS_ACCELERATOR"] = "cpu"
    threads = max(1, len(os.sched_getaffinity(0)) // local)
    threads = int(env.setdefault("OMP_NUM_THREADS", str(threads)).split(",")[0])
    env.setdefault("TOKENIZERS_PARALLELISM", "true")
    return Process(int(env["RANK"]), world_size, int(env["LOCAL_RANK"]), local, threads)


def join_group(machine: Machine, engine: str) -> torch.device:
    """Join the process group, through DeepSpeed where it is the engine; returns this rank's device.

    Raises:
        UserError: the port on which the ranks meet is taken, or torch cannot use the accelerator that the driver shows.
    """
    import torch

    device = torch.device("cpu")
    if machine.device == "gpu":
        if not torch.cuda.is_available():
            raise UserError(
                "the driver shows a GPU that torch cannot use; install torch's GPU build, or set DS_ACCELERATOR=cpu"
            )
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)  # before the first collective, which else runs on device 0 on every rank
    try:
        if engine == "deepspeed":
            _join_through_deepspeed()
        else:
            backend = "gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl"
            torch.distributed.init_process_group(backend, timeout=TIMEOUT)
    except torch.distributed.DistNetworkError as error:
        if "EADDRINUSE" in str(error) or "already in use" in str(error):
            port = os.environ["MASTER_PORT"]
            raise UserError(f"port {port}: in use; give the launcher another one (--master_port)") from None
        raise
    return device


def _join_through_deepspeed() -> None:
    """`init_distributed` would compile `deepspeed_shm_comm` first, 75 seconds of C++ that only inference uses
    (`deepspeed/comm/torch.py`: `inference_all_reduce`), so it is declared absent."""
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(timeout=TIMEOUT, auto_mpi_discovery=False)


def broadcast_object(value: object) -> object:
    """The first rank's `value`, on every rank."""
    import torch.distributed

    box = [value]
    if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
        torch.distributed.broadcast_object_list(box, src=0)
    return box[0]


def gather_objects(value: object) -> list[object]:
    """Every rank's `value`, in the order of the ranks."""
    import torch.distributed

    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return [value]
    everyone: list[object] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(everyone, value)
    return everyone


def leave_group() -> None:
    """Leave the process group in good order."""
    import torch.distributed

    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
