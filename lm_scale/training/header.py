"""The facts of `run.json` that no measurement gives: versions, hardware, the state of the sources."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import torch

import lm_scale
from lm_scale.training.meter import device_memory_bytes, host_memory_bytes

TESTED = {"deepspeed": "0.19.8", "torch": "2.13.0"}
PACKAGES = ("torch", "deepspeed", "transformers", "datasets", "tokenizers", "numpy")


def versions() -> dict[str, str | None]:
    """The versions that this run executed with."""
    found: dict[str, str | None] = {"lm_scale": lm_scale.__version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def untested(found: dict[str, str | None]) -> str | None:
    """One line where the installed DeepSpeed or torch is not the tested one."""
    other = [
        f"{package} {found[package]} (tested: {tested})"
        for package, tested in TESTED.items()
        if (found[package] or "").split("+")[0] != tested
    ]
    return f"untested version: {', '.join(other)}" if other else None


def hardware(device: torch.device, device_count: int, threads: int, peak_flops_per_s: float | None) -> dict[str, Any]:
    """The machine as the driver names it; `peak_flops_per_s` is that of one device."""
    return {
        "device": "cpu" if device.type == "cpu" else torch.cuda.get_device_name(device),
        "device_count": device_count,
        "device_memory_bytes": device_memory_bytes(device),
        "device_peak_flops_per_s": peak_flops_per_s,
        "cpu": _cpu_name(),
        "cpus": len(os.sched_getaffinity(0)),
        "threads_per_rank": threads,
        "host_memory_bytes": host_memory_bytes(),
    }


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit and dirtiness of the sources in `folder`; None where it is no checkout."""
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        return {"commit": commit, "dirty": bool(_git(folder, "status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *words: str) -> str:
    done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()


def _cpu_name() -> str:
    try:
        match = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        match = None
    return match.group(1) if match else platform.processor()
