"""Published peak figures of accelerators: the one table that plans are made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Chip:
    """What the maker publishes of one chip. Rates are for one chip and second."""

    platform: str
    """`tpu` or `cuda`, as JAX names it."""
    matrix: float
    """FLOP in bfloat16 products, without sparsity."""
    memory: float
    """Bytes of the memory beside the chip."""
    bandwidth: float
    """Bytes read from or written to that memory."""
    network: float
    """Bytes sent to the neighbors of the slice or the machine, all links in one direction."""
    usable: float = 1.0
    """Share of the memory that programs may use."""
    clock: float | None = None
    """Cycles of its core; None where it is not known, or a chip has two cores."""


CHIPS: Mapping[str, Chip] = {
    # Google Cloud's pages "TPU v4", "TPU v5e", "TPU v5p" and "TPU v6e". They give the network of
    # v5e and v6e as a sum of both directions. A v5e's clock follows from its peak: four arrays
    # of 128 x 128 multiply-accumulates.
    "v4": Chip("tpu", 275e12, 32 * 2**30, 1228e9, 2400e9 / 8),
    "v5e": Chip("tpu", 197e12, 16 * 2**30, 819e9, 400e9 / 2, 15.75 / 16, 1.5e9),
    "v5p": Chip("tpu", 459e12, 95 * 10**9, 2765e9, 4800e9 / 8),
    "v6e": Chip("tpu", 918e12, 32 * 2**30, 1638e9, 800e9 / 2),
    # JAX takes three quarters of a GPU's memory by default.
    # NVIDIA's data sheets of the H100 (SXM), the A100 (80 GB, SXM) and the L4, which has no NVLink:
    # its network is PCIe 4.0 with 16 lanes.
    "h100": Chip("cuda", 1979e12 / 2, 80e9, 3350e9, 900e9 / 2, 0.75),
    "a100": Chip("cuda", 312e12, 80e9, 2039e9, 600e9 / 2, 0.75),
    "l4": Chip("cuda", 242e12 / 2, 24e9, 300e9, 64e9 / 2, 0.75),
}
"""By the name that a topology begins with."""
