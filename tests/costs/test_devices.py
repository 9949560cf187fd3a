"""The table of peak rates: names as drivers give them."""

from __future__ import annotations

import pytest

from lm_scale.costs.devices import peak_flops_per_s


@pytest.mark.parametrize(
    ("name", "bf16_tera"),
    [
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100-PCIE-40GB", 312),
        ("NVIDIA H100 80GB HBM3", 989.5),
        ("NVIDIA H100 PCIe", 756.5),
        ("NVIDIA H100 NVL", 835.5),
        ("NVIDIA H200", 989.5),
        ("NVIDIA L40S", 362),
        ("NVIDIA L4", 121),
        ("NVIDIA A10", 125),
        ("NVIDIA A10G", 70),
        ("NVIDIA GeForce RTX 3090", 71),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("AMD Instinct MI250X", 191.5),
        ("AMD Instinct MI300X", 1307.4),
    ],
)
def test_names_of_drivers_are_found(name: str, bf16_tera: float) -> None:
    assert peak_flops_per_s(name, "bf16") == pytest.approx(bf16_tera * 1e12)


def test_what_is_not_known_is_none() -> None:
    assert peak_flops_per_s("cpu", "fp32") is None
    assert peak_flops_per_s("NVIDIA GeForce RTX 3090 Ti", "bf16") is None
    assert peak_flops_per_s("NVIDIA GeForce RTX 4090 D", "bf16") is None


def test_a_precision_without_units_is_none() -> None:
    assert peak_flops_per_s("Tesla T4", "bf16") is None
    assert peak_flops_per_s("Tesla T4", "fp16") == 65e12
    assert peak_flops_per_s("Tesla V100-SXM2-32GB", "fp16") == 125e12
    assert peak_flops_per_s("Tesla V100-PCIE-16GB", "fp16") == 112e12
