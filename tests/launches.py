"""What tests that launch the real command share: the shipped strategies, a small run, a free port."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
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


def run_ranks(
    *command: str, ranks: int = 2, timeout: float = 300, threads: int | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a Python script as `ranks` ranks of this machine, placed by their environment as `srun` does it.

    The exit status is the first rank's that failed; the others are given half a minute then.
    """
    shared = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "DS_ACCELERATOR": "cpu",
        "WORLD_SIZE": str(ranks),
        "LOCAL_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        **({"OMP_NUM_THREADS": str(threads)} if threads else {}),
    }
    with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
        processes = []
        for rank in range(ranks):
            environment = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            processes.append(
                subprocess.Popen([sys.executable, *command], env=environment, stdout=stdout, stderr=stderr)
            )
        end, status = time.monotonic() + timeout, 0
        try:
            while any(process.poll() is None for process in processes):
                assert time.monotonic() < end, f"{command}: no end after {timeout} s, or 30 s after a rank's"
                failed = [process.returncode for process in processes if process.poll()]
                if failed and not status:
                    status, end = failed[0], min(end, time.monotonic() + 30)
                time.sleep(0.05)
        finally:
            for process in processes:
                process.kill()
                process.wait()
        status = status or next((process.returncode for process in processes if process.returncode), 0)
        texts = []
        for stream in (stdout, stderr):
            stream.seek(0)
            texts.append(stream.read())
    return subprocess.CompletedProcess(command, status, *texts)


def free_port() -> int:
    """A TCP port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
