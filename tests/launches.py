"""What tests that launch the real command share: the shipped strategies, a small run, a free port."""

from __future__ import annotations

import socket
import subprocess
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
    *("--per_device_eval_batch_size", "32"),
)
Launch = Callable[..., subprocess.CompletedProcess[str]]


def has_libaio() -> bool:
    """Whether NVMe offload can be built here."""
    return Path("/usr/include/libaio.h").exists()


def free_port() -> int:
    """A TCP port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
