"""What a device can multiply in a second at best: the denominator of MFU. No torch.

Dense rates, without structured sparsity, in FLOP/s, at the boost clock and power of the vendor's data sheet. NVIDIA's
sheets mostly print the sparse rate with a footnote; it is halved here. A device that is not in the table has no MFU:
nothing is guessed from a similar name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Precision = Literal["bf16", "fp16", "tf32", "fp32"]

_TERA = 1e12


@dataclass(frozen=True)
class DevicePeak:
    """Dense peak TFLOP/s of one device by precision of the products; None where it does not multiply in it natively.

    `tf32` is what fp32 tensors are multiplied at when TF32 is allowed, `fp32` when it is not.
    """

    pattern: str
    bf16: float | None
    fp16: float | None
    tf32: float | None
    fp32: float
    source: str


# `pattern` is searched for in the driver's device name; the first match wins, so a chip's variants stand before it.
# An MI250X shows up as two devices, each with half of the sheet's rate; AMD's fp32 rate is the matrix units'. GeForce
# cards multiply fp16 at full rate only when they add up in fp16; training adds up in fp32, at half of that.
_TABLE = (
    DevicePeak(r"\bB200\b", 2250, 2250, 1125, 75, "NVIDIA DGX B200 data sheet (2024), one eighth of the system"),
    DevicePeak(r"\bH200\b.*NVL", 835.5, 835.5, 417.5, 60, "NVIDIA H200 data sheet (2024), H200 NVL"),
    DevicePeak(r"\bH200\b", 989.5, 989.5, 494.5, 67, "NVIDIA H200 data sheet (2024), H200 SXM"),
    DevicePeak(r"\bGH200\b", 990, 990, 494, 67, "NVIDIA GH200 Grace Hopper data sheet (2023)"),
    DevicePeak(r"\bH100\b.*NVL", 835.5, 835.5, 417.5, 60, "NVIDIA H100 data sheet (2024), H100 NVL"),
    DevicePeak(r"\bH100\b.*PCIe", 756.5, 756.5, 378, 51, "NVIDIA H100 PCIe product brief PB-11133 (2022)"),
    DevicePeak(r"\bH100\b", 989.5, 989.5, 494.5, 67, "NVIDIA H100 data sheet (2024), H100 SXM"),
    DevicePeak(r"\bH20\b", 148, 148, 74, 44, "NVIDIA H20 data sheet (2023)"),
    DevicePeak(r"\bA100\b|\bA800\b", 312, 312, 156, 19.5, "NVIDIA A100 data sheet (2021), the same for SXM and PCIe"),
    DevicePeak(r"\bA30\b", 165, 165, 82, 10.3, "NVIDIA A30 data sheet (2021)"),
    DevicePeak(r"\bA40\b", 149.7, 149.7, 74.8, 37.4, "NVIDIA A40 data sheet (2021)"),
    DevicePeak(r"\bA10G\b", 70, 70, 35, 31.2, "NVIDIA A10G data sheet (2021); half of an A10"),
    DevicePeak(r"\bA10\b", 125, 125, 62.5, 31.2, "NVIDIA A10 data sheet (2021)"),
    DevicePeak(r"\bL40S\b", 362, 362, 183, 91.6, "NVIDIA L40S data sheet (2023)"),
    DevicePeak(r"\bL40\b", 181, 181, 90.5, 90.5, "NVIDIA L40 data sheet (2023)"),
    DevicePeak(r"\bL4\b", 121, 121, 60, 30.3, "NVIDIA L4 data sheet (2023), halved from 242 and 120 sparse"),
    DevicePeak(r"\bV100\b.*PCI", None, 112, None, 14, "NVIDIA V100 data sheet (2020), PCIe"),
    DevicePeak(r"\bV100S\b", None, 130, None, 16.4, "NVIDIA V100 data sheet (2020), V100S PCIe"),
    DevicePeak(r"\bV100\b", None, 125, None, 15.7, "NVIDIA V100 data sheet (2020), SXM2"),
    DevicePeak(r"\bT4\b", None, 65, None, 8.1, "NVIDIA T4 data sheet (2019)"),
    DevicePeak(
        r"RTX 6000 Ada", 364.2, 364.2, 182.1, 91.1, "NVIDIA RTX 6000 Ada data sheet (2022), a quarter of 1457 fp8"
    ),
    DevicePeak(r"RTX A6000", 154.8, 154.8, 77.4, 38.7, "NVIDIA GA102 whitepaper v2.1 (2021), RTX A6000"),
    DevicePeak(r"RTX 3090(?! Ti)", 71, 71, 35.6, 35.6, "NVIDIA GA102 whitepaper v2.1 (2021), appendix A"),
    DevicePeak(r"RTX 4090(?! D)", 165.2, 165.2, 82.6, 82.6, "NVIDIA Ada whitepaper (2023), appendix A"),
    DevicePeak(r"MI250X", 191.5, 191.5, None, 47.9, "AMD Instinct MI250X data sheet (2021), one of its two devices"),
    DevicePeak(r"MI300X", 1307.4, 1307.4, 653.7, 163.4, "AMD Instinct MI300X data sheet (2023)"),
    DevicePeak(r"MI300A", 980.6, 980.6, 490.3, 122.6, "AMD Instinct MI300A data sheet (2023)"),
    DevicePeak(r"MI325X", 1307.4, 1307.4, 653.7, 163.4, "AMD Instinct MI325X data sheet (2024)"),
)


def find_device(name: str) -> DevicePeak | None:
    """The table's row for a device name as the driver gives it (`NVIDIA H100 80GB HBM3`); None where it has none."""
    for row in _TABLE:
        if re.search(row.pattern, name, flags=re.IGNORECASE):
            return row
    return None


def peak_flops_per_s(name: str, precision: Precision) -> float | None:
    """Dense peak FLOP/s of one device in the precision of the products.

    None where the device is not in the table, or does not multiply in this precision natively.
    """
    row = find_device(name)
    tera: float | None = getattr(row, precision) if row else None
    return None if tera is None else tera * _TERA
