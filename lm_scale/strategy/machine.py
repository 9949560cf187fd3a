"""What the machine at hand multiplies natively, found out without importing torch."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Machine:
    """The device of one rank. `count` is the number of accelerators; on a CPU the number of usable cores."""

    device: str
    count: int
    bf16: bool
    bf16_reason: str


def detect() -> Machine:
    """This machine: its NVIDIA or AMD accelerators, or else its CPU. `DS_ACCELERATOR=cpu` hides the accelerators."""
    if os.environ.get("DS_ACCELERATOR", "") != "cpu":
        nvidia = _nvidia()
        if nvidia is not None:
            return nvidia
        if Path("/dev/kfd").exists():
            count = len(list(Path("/dev/dri").glob("renderD*")))
            return Machine("gpu", count, True, "AMD Instinct accelerators multiply bf16 natively")
    return cpu()


def _nvidia() -> Machine | None:
    """NVIDIA's devices through the driver's own library; no context is made, so no device memory is taken."""
    if not Path("/dev/nvidiactl").exists() or os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return None
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    count, major = ctypes.c_int(), ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        return None
    capability_major = 75  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR
    driver.cuDeviceGetAttribute(ctypes.byref(major), capability_major, 0)
    native = major.value >= 8
    reason = f"compute capability {major.value}.x {'multiplies' if native else 'does not multiply'} bf16 natively"
    return Machine("gpu", count.value, native, reason)


def cpu() -> Machine:
    """This machine without its accelerators."""
    cores = len(os.sched_getaffinity(0))
    try:
        flags = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")), "")
    except OSError:
        flags = ""
    for flag in ("amx_bf16", "avx512_bf16"):
        if flag in flags.split():
            return Machine("cpu", cores, True, f"the CPU has {flag}")
    return Machine("cpu", cores, False, "this CPU has no native bf16 product (no avx512_bf16, no amx_bf16)")
