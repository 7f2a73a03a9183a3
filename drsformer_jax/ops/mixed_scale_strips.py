"""MSFN on CPUs: in strips, with hidden channels in full vectors.

XLA for CPUs computes `LANES` channels of a pixel at a time, and the rest one by one. Joining,
splitting and padding hidden images is slow as well. So the weights are rearranged before anything
is computed, and each strip is a sum over the four parts of `aligned_parts`: each has its own
project_in, two depthwise convolutions, grouped convolution and project_out. Parts that read the
same channels share the first of these: with f = 5 each half has three projections of four.
"""

from __future__ import annotations

import functools

import jax.numpy as jnp
import numpy as np
from jax.nn import relu

from drsformer_jax.ops.depthwise import window_conv
from drsformer_jax.ops.linear import Affine, biased, linear, projected
from drsformer_jax.ops.masking import zero_outside
from drsformer_jax.ops.mixed_scale_channels import (
    MixedScaleWeights,
    PartWeights,
    aligned_parts,
    part_weights,
    select,
    shared_place,
)
from drsformer_jax.ops.strips import crop, in_strips, materialized, rows_in_cache
from drsformer_jax.types import Array, Bool, Float

LANES = 16
"""float32 elements of a CPU's vector."""
HALO = 4
"""Of the MSFN, in pixels: two 5x5 convolutions, one after the other."""


def mixed_scale_in_strips(
    x: Float[Array, "b h w c"], weights: MixedScaleWeights, valid_mask: Array | None
) -> Float[Array, "b h w c"]:
    """The implementation `strips` of `mixed_scale`."""
    both_halves = weights.project_out.kernel.shape[0]
    hidden = both_halves // 2
    parts = aligned_parts(hidden, LANES)
    projected: list[np.ndarray] = []
    reads = tuple(
        [_index(projected, channels) for part in half for channels in part[:2]] for half in parts
    )
    project_in = [select(weights.project_in, channels) for channels in projected]
    chain = functools.partial(_strip, reads, shared_place(hidden))
    rows = rows_in_cache(x.shape[2], both_halves)
    arranged = project_in, part_weights(weights, parts)
    y = in_strips(chain, HALO, rows, arranged, zero_outside(x, valid_mask), valid_mask)
    return biased(y, weights.project_out)


def _index(arrays: list[np.ndarray], array: np.ndarray) -> int:
    """The index of an array among others, to which it is added if it is new."""
    for index, other in enumerate(arrays):
        if np.array_equal(other, array):
            return index
    arrays.append(array)
    return len(arrays) - 1


def _strip(
    reads: tuple[list[int], ...],
    shared: int | None,
    weights: tuple[list[Affine], list[tuple[PartWeights, PartWeights]]],
    x: Float[Array, "h w c"],
    valid_mask: Bool[Array, "h w 1"],
) -> Float[Array, "_ _ c"]:
    """A strip without the bias of project_out, see `strips.Chain`.

    Args:
        reads: for each half, indices of the projections that its two parts read.
        shared: place of the group to which both parts of a half add.
        weights: of project_in, and of the parts of each half.
        x: the window.
        valid_mask: of the window.
    """
    project_in, halves = weights
    any_valid = jnp.any(valid_mask)
    hidden = [projected(x, into, valid_mask, masked=True) for into in project_in]

    def paths(first: int, second: int, part: PartWeights) -> tuple[Array, Array, Array]:
        mask = crop(valid_mask, HALO - part.grouped.kernel.shape[0] // 2)
        a, b = (
            _path(hidden[index], path, mask, any_valid)
            for index, path in ((first, part.first), (second, part.second))
        )
        return a, b, part.grouped.kernel

    def grouped(a: Array, b: Array, kernel: Array) -> Array:
        first, second = kernel[:, :, 0], kernel[:, :, 1]
        return window_conv(a, first, any_valid) + window_conv(b, second, any_valid)

    total = jnp.zeros((), jnp.promote_types(x.dtype, jnp.float32))
    for (a1, a2, b1, b2), (small, large) in zip(reads, halves, strict=True):
        a_sums = grouped(*paths(a1, a2, small))
        inputs = paths(b1, b2, large)
        if shared is None:
            b_sums = grouped(*inputs)
        else:  # They are read twice, and would be computed twice.
            b_sums = materialized(grouped, any_valid, *inputs)
            a_sums += jnp.where(jnp.arange(b_sums.shape[-1]) == shared, b_sums, 0)
        for sums, part in ((a_sums, small), (b_sums, large)):
            mixed = relu(biased(sums, part.grouped)).astype(total.dtype)
            total += linear(mixed, part.project_out)
    return total


def _path(x: Array, path: Affine, valid_mask: Array, any_valid: Array) -> Array:
    """relu(depthwise) at the pixels that `valid_mask` has, in the middle of the window `x`."""
    margin = (x.shape[0] - valid_mask.shape[0]) // 2 - path.kernel.shape[0] // 2

    def convolve(x: Array, path: Affine, valid_mask: Array) -> Array:
        y = window_conv(x, path.kernel, any_valid, margin=margin)
        return zero_outside(relu(biased(y, path)), valid_mask)

    return materialized(convolve, any_valid, x, path, valid_mask)
