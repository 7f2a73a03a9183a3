"""Weights of the MSFN, and the order in which its hidden channels are stored.

The hidden channels have two halves of f channels. The grouped convolutions of MSFN read pairs of
neighboring channels of concat[a, b], where a is a half of the 3x3 path and b the same half of the
5x5 path. Reading every other channel is slow, so each half is stored as its even channels, then
its odd ones (`hidden_order`): the first and the second channels of all pairs are then contiguous
(`group_inputs`). With f = 5, the first half:

    official order    a0 a1 a2 a3 a4 | b0 b1 b2 b3 b4
    groups            (a0 a1) (a2 a3) (a4 b0) (b1 b2) (b3 b4)
    stored            a0 a2 a4  a1 a3 | b0 b2 b4  b1 b3
    first of groups   a0 a2 a4  b1 b3        even a, odd b
    second of groups  a1 a3  b0 b2 b4        odd a, even b

If f is even, all of a is in groups of its own: the first are even a, even b; the second odd a,
odd b. What comes before the groups is computed channel by channel, so it can have any order, and
the groups' outputs have the official one.

Hardware computes several channels at once, and is slow where images have other numbers of them.
`aligned_parts` cuts the groups of each half into those of the 3x3 path and those of the 5x5 path,
and fills their channels up to equal, round numbers. Fillers (-) have zero weights. If f is odd, the
group of a4 and b0 is in both parts, at the same place, and its output is the sum:

    3x3 path    first    a0 a2 a4 -    5x5 path    first    b1 b3  - -
                second   a1 a3  - -                second   b2 b4 b0 -
                groups    0  1  2 -                groups    3  4  2 -
                outputs   0  1  2 -                outputs   3  4  - -
"""

from __future__ import annotations

from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from drsformer_jax.ops.linear import Affine

_Channels = TypeVar("_Channels", jax.Array, np.ndarray)


class MixedScaleWeights(NamedTuple):
    """Of an MSFN with f hidden channels in each half; shapes are those of the kernels."""

    project_in: Affine
    """c 2f; outputs in the order of `hidden_order`."""
    depthwise3x3: Affine
    """3 3 2f, in the order of `hidden_order`."""
    depthwise5x5: Affine
    """5 5 2f, in the order of `hidden_order`."""
    grouped3x3: Affine
    """3 3 2 f, of the first half."""
    grouped5x5: Affine
    """5 5 2 f, of the second half."""
    project_out: Affine
    """2f c; inputs in the official order."""


def hidden_order(hidden: int) -> list[int]:
    """The official channel that each stored hidden channel is.

    Args:
        hidden: hidden channels f of one half.

    Returns:
        A permutation of range(2 * hidden): for 5, [0, 2, 4, 1, 3, 5, 7, 9, 6, 8].
    """
    half = [*range(0, hidden, 2), *range(1, hidden, 2)]
    return half + [hidden + channel for channel in half]


def group_inputs(
    small: _Channels, large: _Channels
) -> tuple[_Channels, _Channels, _Channels, _Channels]:
    """The parts of two stored halves that hold the first and the second channel of each group.

    Args:
        small: a half of the 3x3 path, channels last, f of them.
        large: the same half of the 5x5 path.

    Returns:
        Two parts whose channels, one after another, are the first of each group, and two whose
        channels are the second.
    """
    evens = (small.shape[-1] + 1) // 2
    small_even, small_odd = small[..., :evens], small[..., evens:]
    large_even, large_odd = large[..., :evens], large[..., evens:]
    if small.shape[-1] % 2:  # The last channel of `small` is in a group with the first of `large`.
        large_even, large_odd = large_odd, large_even
    return small_even, large_even, small_odd, large_odd


class Part(NamedTuple):
    """What one path adds to the groups of one half; numbers count through both halves, -1 fills up.

    Channels are numbered as they are stored.
    """

    first: np.ndarray
    """Channels that are the first of a group."""
    second: np.ndarray
    """Channels that are the second of a group."""
    groups: np.ndarray
    """Groups, whose kernels apply."""
    outputs: np.ndarray
    """Groups but for the one that the 3x3 path gives."""


def shared_place(hidden: int) -> int | None:
    """Place in its parts of the group to which both paths of a half add, if there is one."""
    return hidden // 2 if hidden % 2 else None


def aligned_parts(hidden: int, lanes: int) -> list[tuple[Part, Part]]:
    """The parts of the 3x3 and of the 5x5 path of each half.

    Args:
        hidden: hidden channels f of one half.
        lanes: widths are multiples of it.
    """
    evens = (hidden + 1) // 2
    width = -(-evens // lanes) * lanes
    even, odd, half = np.arange(evens), np.arange(evens, hidden), np.arange(hidden)
    small = (even, odd, half[:evens], half[:evens])
    large = (even, odd, half[evens:], half[evens:])
    if (shared := shared_place(hidden)) is not None:
        groups = np.append(half[evens:], shared)
        large = (odd, np.roll(even, -1), groups, half[evens:])

    def part(numbers: tuple[np.ndarray, ...], start: int) -> Part:
        first, second, groups, outputs = (
            np.pad(each + start, (0, width - len(each)), constant_values=-1) for each in numbers
        )
        return Part(first, second, groups, outputs)

    return [(part(small, start), part(large, start)) for start in (0, hidden)]


class PartWeights(NamedTuple):
    """Weights of a part, in the order of its channels."""

    first: Affine
    """k k w, of the path's depthwise convolution."""
    second: Affine
    """k k w"""
    grouped: Affine
    """k k 2 w"""
    project_out: jax.Array
    """w c"""


def part_weights(
    weights: MixedScaleWeights, parts: list[tuple[Part, Part]]
) -> list[tuple[PartWeights, PartWeights]]:
    """The weights of all parts but for project_in."""
    paths = weights.depthwise3x3, weights.depthwise5x5
    grouped = weights.grouped3x3, weights.grouped5x5
    hidden = weights.grouped3x3.kernel.shape[-1]

    def of(part: Part, path: Affine, grouped: Affine) -> PartWeights:
        return PartWeights(
            select(path, part.first),
            select(path, part.second),
            select(grouped, np.where(part.groups < 0, -1, part.groups % hidden)),
            _take(weights.project_out.kernel, part.outputs, axis=0),
        )

    return [
        (of(small, paths[0], kernel), of(large, paths[1], kernel))
        for (small, large), kernel in zip(parts, grouped, strict=True)
    ]


def select(affine: Affine, channels: np.ndarray) -> Affine:
    """These output channels of an affine layer; weights of the filler -1 are zero."""
    bias = None if affine.bias is None else _take(affine.bias, channels)
    return Affine(_take(affine.kernel, channels), bias)


def _take(x: jax.Array, channels: np.ndarray, axis: int = -1) -> jax.Array:
    """These channels of x, zeros for the filler -1; slices, since TPUs gather slowly."""
    breaks = np.flatnonzero(np.diff(channels) != (channels[:-1] >= 0)) + 1
    axis %= x.ndim

    def run(numbers: np.ndarray) -> jax.Array:
        if numbers[0] < 0:
            return jnp.zeros((*x.shape[:axis], len(numbers), *x.shape[axis + 1 :]), x.dtype)
        return lax.slice_in_dim(x, int(numbers[0]), int(numbers[-1]) + 1, axis=axis)

    return jnp.concatenate([run(numbers) for numbers in np.split(channels, breaks)], axis=axis)
