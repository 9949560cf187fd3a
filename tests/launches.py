"""What tests that launch the real command share: the shipped strategies, a small run, a free port."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "ds_configs"
STRATEGIES = (
    "zero0",
    "zero1",
    "zero2",
    "zero3",
    "zero2_offload",
    "zero3_offload",
    "zero3_nvme",
    "zero2_activation_checkpointing",
)
TINY = (
    *("--model", "tiny", "--seq_len", "64", "--per_device_train_batch_size", "2", "--learning_rate", "1e-3"),
    *("--per_device_eval_batch_size", "32", "--bf16", "false"),  # the same numbers on a CPU that multiplies bf16 too
)
Launch = Callable[..., subprocess.CompletedProcess[str]]


def has_libaio() -> bool:
    """Whether NVMe offload can be built here."""
    return Path("/usr/include/libaio.h").exists()


def run_ranks(script: Path, *words: str, folder: Path, ranks: int = 2, timeout: float = 300) -> None:
    """Run a Python script as `ranks` ranks of this machine, as a launcher would; what they print is in `folder`."""
    shared = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
        "WORLD_SIZE": str(ranks),
        "LOCAL_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    processes = []
    for rank in range(ranks):
        with open(folder / f"rank{rank}.txt", "w") as log:
            environment = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            command = [sys.executable, str(script), *words]
            processes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT))
    try:
        codes = [process.wait(timeout=timeout) for process in processes]
    finally:
        for process in processes:
            process.kill()
    said = "\n".join((folder / f"rank{rank}.txt").read_text()[-3000:] for rank in range(ranks))
    assert codes == [0] * ranks, said


def free_port() -> int:
    """A TCP port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
