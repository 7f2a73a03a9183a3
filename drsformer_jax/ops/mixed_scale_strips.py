"""MSFN on CPUs: in strips, with hidden channels in full vectors.

XLA for CPUs computes `LANES` channels of a pixel at a time, and the rest one by one. Joining,
splitting and padding hidden images is slow as well. So the weights are rearranged before anything
is computed, and each strip is a sum over quarters of the outputs of the grouped convolutions:
every half is cut where its inputs change from one path to the other, and each quarter has its own
project_in, two depthwise paths, grouped convolution and project_out, with a multiple of `LANES`
channels. Channel -1 is a filler: its weights are zero, so it adds nothing.

The first half of the example in `mixed_scale_channels`, f = 5, where the 3x3 path has the stored
channels 0 to 9 and the 5x5 path 10 to 19:

    group                  0  1  2 |  3  4
    first input           a0 a2 a4 | b1 b3
      stored channel       0  1  2 | 13 14
    second input          a1 a3 b0 | b2 b4
      stored channel       3  4 10 | 11 12

    quarter 0    first   0  1  2 -1 -1 ...    reads project_in 0 1 2 ...
                 second  3  4 10 -1 -1 ...    reads project_in 3 4 0 ...
                 outputs 0  1  2 -1 -1 ...
    quarter 1    first  13 14 -1 -1 -1 ...    reads project_in 3 4 0 ...
                 second 11 12 -1 -1 -1 ...    reads project_in 1 2 3 ...
                 outputs 3  4 -1 -1 -1 ...

A path's channel i (modulo 10) reads channel i of project_in. The channels that a quarter reads are
consecutive from the first one, and go on with channel 0 after the half's last one. So what starts
at the same channel is the same and is projected once: here 3 4 0 1 2 3 4 0 ..., for both quarters.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.nn import relu

from drsformer_jax.ops.depthwise import window_conv
from drsformer_jax.ops.linear import Affine, biased, linear
from drsformer_jax.ops.masking import zero_outside
from drsformer_jax.ops.mixed_scale_channels import MixedScaleWeights, group_inputs
from drsformer_jax.ops.strips import crop, in_strips, materialized, rows_in_cache
from drsformer_jax.types import Array, Bool, Float

LANES = 16
"""float32 elements of a CPU's vector."""
HALO = 4
"""Of the MSFN, in pixels: two 5x5 convolutions, one after the other."""


class QuarterChannels(NamedTuple):
    """Which channels make a quarter; filled up with -1."""

    first: np.ndarray
    """Path channels that are the first inputs of its groups; those of the 5x5 path from 2f on."""
    second: np.ndarray
    """Path channels that are the second inputs."""
    outputs: np.ndarray
    """Outputs of the grouped convolutions, and inputs of project_out."""


class _Quarter(NamedTuple):
    """Weights of a quarter, in the order of its channels."""

    first: Affine
    second: Affine
    grouped: Affine
    project_out: Array


def mixed_scale_in_strips(
    x: Float[Array, "b h w c"], weights: MixedScaleWeights, valid_mask: Array | None
) -> Float[Array, "b h w c"]:
    """The implementation `strips` of `mixed_scale`."""
    both_halves = weights.project_out.kernel.shape[0]
    quarters = quarter_channels(both_halves // 2)
    projected, reads = _projections(quarters, both_halves // 2)
    project_in = [_select(weights.project_in, channels) for channels in projected]
    chain = functools.partial(_strip, reads)
    rows = rows_in_cache(x.shape[2], both_halves)
    rearranged = project_in, _rearranged(weights, quarters)
    y = in_strips(chain, HALO, rows, rearranged, zero_outside(x, valid_mask), valid_mask)
    return biased(y, weights.project_out)


def _strip(
    reads: tuple[tuple[int, int], ...],
    weights: tuple[list[Affine], list[_Quarter]],
    x: Float[Array, "h w c"],
    valid_mask: Bool[Array, "h w 1"],
) -> Float[Array, "_ _ c"]:
    """A strip without the bias of project_out, see `strips.Chain`."""
    project_in, quarters = weights
    any_valid = jnp.any(valid_mask)
    hidden = [biased(linear(x, into.kernel), into) for into in project_in]
    if project_in[0].bias is not None:  # Otherwise zeros have stayed zeros.
        hidden = [zero_outside(x, valid_mask) for x in hidden]
    total = jnp.zeros((), jnp.promote_types(x.dtype, jnp.float32))
    for (first, second), quarter in zip(reads, quarters, strict=True):
        kernel = quarter.grouped.kernel
        mask = crop(valid_mask, HALO - kernel.shape[0] // 2)
        a = _path(hidden[first], quarter.first, mask, any_valid)
        b = _path(hidden[second], quarter.second, mask, any_valid)
        a = window_conv(a, kernel[:, :, 0], any_valid)
        b = window_conv(b, kernel[:, :, 1], any_valid)
        mixed = relu(biased(a + b, quarter.grouped))
        total += linear(mixed.astype(total.dtype), quarter.project_out)
    return total


def _path(x: Array, path: Affine, valid_mask: Array, any_valid: Array) -> Array:
    """relu(depthwise) at the pixels that `valid_mask` has, in the middle of the window `x`."""
    margin = (x.shape[0] - valid_mask.shape[0]) // 2 - path.kernel.shape[0] // 2

    def convolve(x: Array, path: Affine, valid_mask: Array) -> Array:
        y = window_conv(x, path.kernel, any_valid, margin=margin)
        return zero_outside(relu(biased(y, path)), valid_mask)

    return materialized(convolve, any_valid, x, path, valid_mask)


def quarter_channels(hidden: int) -> list[QuarterChannels]:
    """The four quarters of an MSFN with `hidden` channels in each half: its channels and fillers.

    Two are of the grouped 3x3 convolution and two of the 5x5; outputs of the latter count on from
    `hidden`.
    """
    evens = (hidden + 1) // 2
    width = -(-evens // LANES) * LANES

    def filled(channels: np.ndarray) -> np.ndarray:
        return np.pad(channels, (0, width - len(channels)), constant_values=-1)

    quarters = []
    for start in (0, hidden):
        outputs = np.arange(start, start + hidden)
        first, second = map(np.concatenate, group_inputs(outputs, outputs + 2 * hidden))
        for part in (slice(0, evens), slice(evens, hidden)):
            quarters.append(QuarterChannels(*(filled(c[part]) for c in (first, second, outputs))))
    return quarters


def _projections(
    quarters: list[QuarterChannels], hidden: int
) -> tuple[list[np.ndarray], tuple[tuple[int, int], ...]]:
    """The projections that the quarters read, each once.

    Returns:
        For each projection its channels of project_in; and for each quarter the index of the
        projection that its first and its second inputs read.
    """
    indices: dict[int, int] = {}  # Of projections, by their first channel.
    reads = []
    for quarter in quarters:
        starts = (int(channels[0]) % (2 * hidden) for channels in quarter[:2])
        first, second = (indices.setdefault(start, len(indices)) for start in starts)
        reads.append((first, second))
    width = np.arange(len(quarters[0].outputs))
    projected = [start // hidden * hidden + (start + width) % hidden for start in indices]
    return projected, tuple(reads)


def _rearranged(weights: MixedScaleWeights, quarters: list[QuarterChannels]) -> list[_Quarter]:
    """The weights of each quarter."""
    small, large = weights.depthwise3x3, weights.depthwise5x5
    hidden = small.kernel.shape[-1] // 2
    enlarged = jnp.pad(small.kernel, ((1, 1), (1, 1), (0, 0)))
    kernel = jnp.concatenate([enlarged, large.kernel], axis=-1)
    biases = [bias for bias in (small.bias, large.bias) if bias is not None]
    paths = Affine(kernel, jnp.concatenate(biases) if biases else None)

    def path(channels: np.ndarray) -> Affine:
        taken = _select(paths, channels)
        # A 3x3 kernel stays in a 5x5 one only where a quarter reads channels of both paths.
        only_small = channels.max() < 2 * hidden
        return Affine(taken.kernel[1:4, 1:4], taken.bias) if only_small else taken

    rearranged = []
    for first, second, outputs in quarters:
        grouped = weights.grouped5x5 if outputs.max() >= hidden else weights.grouped3x3
        grouped = _select(grouped, np.where(outputs < 0, outputs, outputs % hidden))
        project_out = _take(weights.project_out.kernel, outputs, axis=0)
        rearranged.append(_Quarter(path(first), path(second), grouped, project_out))
    return rearranged


def _take(x: Array, channels: np.ndarray, axis: int = -1) -> Array:
    """These channels of x, zeros for the filler -1."""
    shape = [1] * x.ndim
    shape[axis] = len(channels)
    taken = jnp.take(x, channels, axis=axis, mode="clip")
    return jnp.where(np.reshape(channels >= 0, shape), taken, 0)


def _select(affine: Affine, channels: np.ndarray) -> Affine:
    bias = None if affine.bias is None else _take(affine.bias, channels)
    return Affine(_take(affine.kernel, channels), bias)
