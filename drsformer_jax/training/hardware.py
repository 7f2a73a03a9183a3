"""The peak FLOP/s of the devices of a run, the memory that it uses, and when it is too small."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import jax
import psutil

from drsformer_jax.errors import InputError, is_out_of_memory, reason

_PEAK_TERAFLOPS = {
    # Google Cloud's pages "TPU v2" to "TPU7x", for a chip. Halved for v2, v3 and 7x, where each of
    # a chip's two TensorCores is a device. JAX has two names for three of the chips.
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
    # NVIDIA's data sheet of each product; halved if it gives only the peak with sparsity.
    # V100 and T4 have no bfloat16; theirs is float16.
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
    # NVIDIA's papers on the Ampere GA102 and Ada architectures, with float32 accumulation.
    "NVIDIA GeForce RTX 3090": 71,
    "NVIDIA GeForce RTX 4090": 165.2,
}
"""Peak TFLOP/s in bfloat16 without sparsity, by the whole `device_kind`.

A MIG slice of a GPU has a longer name, and is unknown.
"""


def peak_flops(devices: Sequence[jax.Device]) -> float | None:
    """The published peak of devices together.

    Returns:
        FLOP/s in bfloat16 without sparsity (float16 if a GPU has no bfloat16); None if any of the
        devices is unknown, as CPUs are.
    """
    kinds = [device.device_kind for device in devices]
    if not _PEAK_TERAFLOPS.keys() >= {*kinds}:
        return None
    return 1e12 * sum(_PEAK_TERAFLOPS[kind] for kind in kinds)


def memory_mib() -> dict[str, float]:
    """The memory that the run uses now, in MiB.

    Returns:
        `host_memory_mib` of this process without its children; and `device_memory_mib` and
        `device_memory_peak_mib`, each the largest of this process's devices (CPUs report none).
    """
    figures = {"host_memory_mib": float(psutil.Process().memory_info().rss)}
    reported = [stats for device in jax.local_devices() if (stats := device.memory_stats())]
    for name, key in (
        ("device_memory_mib", "bytes_in_use"),
        ("device_memory_peak_mib", "peak_bytes_in_use"),
    ):
        if found := [stats[key] for stats in reported if key in stats]:
            figures[name] = float(max(found))
    return {name: count / 2**20 for name, count in figures.items()}


@contextlib.contextmanager
def memory_in_one_line() -> Iterator[None]:
    """Turns the error of a device whose memory is too small into one line.

    Raises:
        InputError: in place of XLA's error; it says what makes a run smaller.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise InputError(
            f"the run does not fit into the memory of the devices ({reason(error)}); expected a "
            "smaller --mesh.device-batch, --model.remat without --model.save-convolutions, smaller "
            "crops or validation images, or more devices (drsformer plan finds what fits)"
        ) from error
