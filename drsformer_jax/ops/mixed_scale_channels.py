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
"""

from __future__ import annotations

from typing import NamedTuple, TypeVar

import jax
import numpy as np

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
) -> tuple[tuple[_Channels, _Channels], tuple[_Channels, _Channels]]:
    """The parts of two stored halves that hold the first and the second channel of each group.

    Args:
        small: a half of the 3x3 path, channels last, f of them.
        large: the same half of the 5x5 path.

    Returns:
        Two parts whose channels, one after another, are the first of each group; then two for the
        second.
    """
    evens = (small.shape[-1] + 1) // 2
    small_even, small_odd = small[..., :evens], small[..., evens:]
    large_even, large_odd = large[..., :evens], large[..., evens:]
    if small.shape[-1] % 2:  # The last channel of `small` is in a group with the first of `large`.
        large_even, large_odd = large_odd, large_even
    return (small_even, large_even), (small_odd, large_odd)
