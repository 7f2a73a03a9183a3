"""How fast the devices of a run could compute at best, and how much memory the run takes."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import psutil

_PEAK_TERAFLOPS = {
    # Google Cloud's pages "TPU v2" to "TPU7x" tell the peak of a chip. It is halved where each of
    # a chip's two TensorCores is a device: v2, v3 and 7x. JAX knows three chips by two names.
    "TPU v2": 46 / 2,
    "TPU v3": 123 / 2,
    "TPU v4": 275,
    "TPU v5 lite": 197,
    "TPU v5e": 197,
    "TPU v5": 459,
    "TPU v5p": 459,
    "TPU v6 lite": 918,
    "TPU v6e": 918,
    "TPU7x": 2307 / 2,
    # NVIDIA's data sheets of each product; halved where they tell it with sparsity alone.
    # V100 and T4 have no bfloat16: their float16.
    "Tesla V100-SXM2-16GB": 125,
    "Tesla V100-SXM2-32GB": 125,
    "Tesla V100-PCIE-16GB": 112,
    "Tesla V100-PCIE-32GB": 112,
    "Tesla T4": 65,
    "NVIDIA A100-SXM4-40GB": 312,
    "NVIDIA A100-SXM4-80GB": 312,
    "NVIDIA A100-PCIE-40GB": 312,
    "NVIDIA A100 80GB PCIe": 312,
    "NVIDIA A10": 125,
    "NVIDIA L4": 242 / 2,
    "NVIDIA L40S": 362.05,
    "NVIDIA H100 80GB HBM3": 1979 / 2,  # SXM
    "NVIDIA H100 PCIe": 1513 / 2,
    "NVIDIA H100 NVL": 1671 / 2,
    "NVIDIA H200": 1979 / 2,  # SXM
    "NVIDIA B200": 4500 / 2,
    "NVIDIA GB200": 5000 / 2,
    # NVIDIA's papers on the Ampere GA102 and Ada architectures, sums in float32.
    "NVIDIA GeForce RTX 3090": 71,
    "NVIDIA GeForce RTX 4090": 165.2,
}
"""Tera-operations in a second, bfloat16 without sparsity, by the whole `device_kind`.

A part of a chip (a MIG slice) has a longer name, and is not known.
"""


def peak_flops(devices: Sequence[jax.Device]) -> float | None:
    """What devices could compute together at best, as published.

    Returns:
        Floating-point operations in a second, in bfloat16 without sparsity (float16 where a GPU
        has no bfloat16); None when any of the devices is not known, as CPUs are.
    """
    kinds = [device.device_kind for device in devices]
    if not _PEAK_TERAFLOPS.keys() >= {*kinds}:
        return None
    return 1e12 * sum(_PEAK_TERAFLOPS[kind] for kind in kinds)


def memory_mib() -> dict[str, float]:
    """What memory the run takes now, in MiB.

    Returns:
        `host_memory_mib`, of this process without those that it started; and, for devices that
        tell it (CPUs do not), `device_memory_mib` and `device_memory_peak_mib`, each of the device
        of this process that takes most.
    """
    figures = {"host_memory_mib": float(psutil.Process().memory_info().rss)}
    told = [stats for device in jax.local_devices() if (stats := device.memory_stats())]
    for name, key in (
        ("device_memory_mib", "bytes_in_use"),
        ("device_memory_peak_mib", "peak_bytes_in_use"),
    ):
        if found := [stats[key] for stats in told if key in stats]:
            figures[name] = float(max(found))
    return {name: count / 2**20 for name, count in figures.items()}
