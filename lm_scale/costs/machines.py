"""What a device and its surroundings give: memory, and the rates of memory, links, host and disk. No torch.

Rates are the vendors' figures in bytes a second and one direction; what a run gets of them are the shares in `speed`.
A name of the table is what `--device` takes; numbers may stand in its place (`parse`).
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from dataclasses import dataclass
from typing import Any

from lm_scale.arguments import UserError
from lm_scale.costs.devices import peak_flops_per_s

_GIB = 2**30
_GIGA = 1e9


@dataclass(frozen=True)
class Device:
    """One accelerator in its usual server. `driver_name` is looked up in `devices` for the rates of products.

    `memory_bytes` is what the driver offers. `peer` is to a neighbour in the node (NVLink, else PCIe through the host),
    `network` that of a whole node to the others, `host_link` to host memory, `nvme` to a node's disks, of which each
    rank has a share, as of `host_memory_rate`, which bounds an optimizer on the host. `ranks_per_node` is the usual
    number. `fp8` and `fp4` are the factors over bf16 products.
    """

    name: str
    driver_name: str
    memory_bytes: int
    memory_rate: float
    peer: float
    network: float
    host_link: float
    ranks_per_node: int = 8
    host_memory_rate: float = 200 * _GIGA
    nvme: float = 6 * _GIGA
    nvlink: bool = True
    generation: str = "ampere"
    fp8: float = 1
    fp4: float = 1
    multiplies_bf16: bool = True
    flops_per_s: float | None = None
    source: str = ""

    def product_flops_per_s(self, products: str) -> float:
        """Dense peak of products of this kind; fp32 where the device knows nothing lower."""
        if self.flops_per_s is not None:
            return self.flops_per_s
        if products in ("fp8", "fp4"):
            base = peak_flops_per_s(self.driver_name, "bf16") or 0.0
            return base * (self.fp8 if products == "fp8" else self.fp4)
        order = {"bf16": ("bf16", "fp16"), "fp16": ("fp16", "bf16"), "tf32": ("tf32", "fp32"), "fp32": ("fp32",)}
        for precision in order[products]:
            rate = peak_flops_per_s(self.driver_name, precision)  # type: ignore[arg-type]
            if rate is not None:
                return rate
        return peak_flops_per_s(self.driver_name, "fp32") or 0.0


def _device(
    name: str, driver: str, gib: float, rate: float, peer: float, network: float, host: float, **more: Any
) -> Device:
    """A row in GiB and GB/s."""
    return Device(
        name,
        driver,
        int(gib * _GIB),
        rate * _GIGA,
        peer * _GIGA,
        network * _GIGA,
        host * _GIGA,
        **more,
    )


# GiB as the driver reports them; GB/s of memory, to a peer, of the node's network (its usual number of cards), to the
# host. Sources: NVIDIA's data sheets named in `devices` (memory, NVLink); PCIe 3, 4, 5 x16 at 12, 25, 50 GB/s usable;
# networks of NVIDIA's reference systems: DGX-1 4 x 100, DGX A100 8 x 200, DGX H100 8 x 400 Gb/s.
_TABLE = (
    _device("a100-40gb", "NVIDIA A100-SXM4-40GB", 39.4, 1555, 300, 200, 25),
    _device("a100-80gb", "NVIDIA A100-SXM4-80GB", 79.2, 2039, 300, 200, 25),
    _device("a100-80gb-pcie", "NVIDIA A100 80GB PCIe", 79.2, 1935, 12, 25, 25, nvlink=False),
    _device("h100", "NVIDIA H100 80GB HBM3", 79.2, 3350, 450, 400, 50, generation="hopper", fp8=2),
    _device("h200", "NVIDIA H200", 139.8, 4800, 450, 400, 50, generation="hopper", fp8=2),
    _device("b200", "NVIDIA B200", 178.3, 8000, 900, 400, 50, generation="blackwell", fp8=2, fp4=4),
    _device(
        "v100-32gb", "Tesla V100-SXM2-32GB", 31.7, 900, 150, 50, 12, ranks_per_node=8, generation="volta",
        multiplies_bf16=False, host_memory_rate=100 * _GIGA,
    ),
    _device(
        "t4", "Tesla T4", 14.6, 320, 6, 12, 12, ranks_per_node=4, nvlink=False, generation="turing",
        multiplies_bf16=False, host_memory_rate=100 * _GIGA,
    ),
    _device(
        "rtx4090", "NVIDIA GeForce RTX 4090", 23.5, 1008, 12, 12, 25, ranks_per_node=4, nvlink=False, generation="ada",
        fp8=2,
    ),
    _device("a10g", "NVIDIA A10G", 22.0, 600, 12, 12, 25, ranks_per_node=4, nvlink=False),
)  # fmt: skip

CPU = Device(
    "cpu", "cpu", 0, 20 * _GIGA, 5 * _GIGA, 1.25 * _GIGA, 20 * _GIGA, ranks_per_node=2, nvme=1 * _GIGA,
    host_memory_rate=20 * _GIGA, nvlink=False, generation="cpu", multiplies_bf16=False, flops_per_s=80 * _GIGA,
    source="one core: 80 GFLOP/s in fp32, measured on AVX2; --probe measures this machine's",
)  # fmt: skip

_NUMBERS = {
    "memory": ("memory_bytes", _GIB),
    "tflops": ("flops_per_s", 1e12),
    "memory_rate": ("memory_rate", _GIGA),
    "peer": ("peer", _GIGA),
    "network": ("network", _GIGA),
    "host": ("host_link", _GIGA),
    "nvme": ("nvme", _GIGA),
    "ranks_per_node": ("ranks_per_node", 1),
}


def device_names() -> list[str]:
    """What `--device` takes by name."""
    return [device.name for device in _TABLE] + ["cpu"]


def parse(text: str) -> Device:
    """The device that `--device` names, with single numbers replaced: `h100`, `h100,network=50`,
    `memory=48,tflops=150`.

    `memory` is in GiB, `tflops` of the products in use, the rates in GB/s.

    Raises:
        UserError: there is no such device, or a number has no such name.
    """
    first, *rest = text.split(",")
    pieces = rest
    device: Device | None = next((one for one in (*_TABLE, CPU) if one.name == first.lower()), None)
    if device is None and "=" in first:
        device, pieces = dataclasses.replace(_TABLE[1], name="custom"), [first, *rest]
    if device is None:
        near = difflib.get_close_matches(first.lower(), device_names(), n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(
            f"--device {first}: not known ({', '.join(device_names())}){hint}; or numbers: memory=80,tflops=312"
        )
    for piece in pieces:
        key, equals, value = piece.partition("=")
        if key not in _NUMBERS or not equals or not re.fullmatch(r"\d+(\.\d+)?(e\d+)?", value):
            raise UserError(f"--device {piece}: write one of {', '.join(_NUMBERS)}, = and a number")
        field, unit = _NUMBERS[key]
        number = float(value) * unit
        changed: dict[str, Any] = {field: int(number) if field in ("memory_bytes", "ranks_per_node") else number}
        device = dataclasses.replace(device, **changed)
    return device
