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
from drsformer_jax.ops.linear import Affine, biased, linear
from drsformer_jax.ops.masking import zero_outside
from drsformer_jax.ops.mixed_scale_channels import (
    MixedScaleWeights,
    PartWeights,
    aligned_parts,
    part_weights,
    select,
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
    parts = aligned_parts(both_halves // 2, LANES)
    # The 5x5 path first, which adds to the 3x3 path.
    order = [part for half in parts for part in (half[1], half[0])]
    projected: list[np.ndarray] = []
    reads = [(_index(projected, part.first), _index(projected, part.second)) for part in order]
    project_in = [select(weights.project_in, channels) for channels in projected]
    chain = functools.partial(_strip, tuple(reads), order[0].shared)
    rows = rows_in_cache(x.shape[2], both_halves)
    of_parts = [each for half in part_weights(weights, parts) for each in (half[1], half[0])]
    arranged = project_in, of_parts
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
    reads: tuple[tuple[int, int], ...],
    shared: int | None,
    weights: tuple[list[Affine], list[PartWeights]],
    x: Float[Array, "h w c"],
    valid_mask: Bool[Array, "h w 1"],
) -> Float[Array, "_ _ c"]:
    """A strip without the bias of project_out, see `strips.Chain`.

    Args:
        reads: indices of the projections that the parts' first and second channels read.
        shared: place of the group to which both parts of a half add.
        weights: of project_in and of the parts.
        x: the window.
        valid_mask: of the window.
    """
    project_in, parts = weights
    any_valid = jnp.any(valid_mask)
    hidden = [biased(linear(x, into.kernel), into) for into in project_in]
    if project_in[0].bias is not None:  # Otherwise zeros have stayed zeros.
        hidden = [zero_outside(x, valid_mask) for x in hidden]
    total = jnp.zeros((), jnp.promote_types(x.dtype, jnp.float32))
    large = None
    for (first, second), part in zip(reads, parts, strict=True):
        kernel = part.grouped.kernel
        mask = crop(valid_mask, HALO - kernel.shape[0] // 2)
        a = _path(hidden[first], part.first, mask, any_valid)
        b = _path(hidden[second], part.second, mask, any_valid)

        def grouped(a: Array, b: Array, kernel: Array = kernel) -> Array:
            return window_conv(a, kernel[:, :, 0], any_valid) + window_conv(
                b, kernel[:, :, 1], any_valid
            )

        if shared is None:
            sums = grouped(a, b)
        elif large is None:
            sums = large = materialized(grouped, any_valid, a, b)
        else:
            place = jnp.arange(large.shape[-1]) == shared
            sums, large = grouped(a, b) + jnp.where(place, large, 0), None
        mixed = relu(biased(sums, part.grouped))
        total += linear(mixed.astype(total.dtype), part.project_out)
    return total


def _path(x: Array, path: Affine, valid_mask: Array, any_valid: Array) -> Array:
    """relu(depthwise) at the pixels that `valid_mask` has, in the middle of the window `x`."""
    margin = (x.shape[0] - valid_mask.shape[0]) // 2 - path.kernel.shape[0] // 2

    def convolve(x: Array, path: Affine, valid_mask: Array) -> Array:
        y = window_conv(x, path.kernel, any_valid, margin=margin)
        return zero_outside(relu(biased(y, path)), valid_mask)

    return materialized(convolve, any_valid, x, path, valid_mask)
