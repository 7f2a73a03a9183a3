"""MSFN, the mixed-scale feed-forward network, as one operation (paper, Eq. 8)."""

from __future__ import annotations

import functools
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import relu

from drsformer_jax.ops import forms
from drsformer_jax.ops.depthwise import depthwise_conv, paired_conv, window_conv
from drsformer_jax.ops.linear import Affine, biased, linear
from drsformer_jax.ops.masking import zero_outside
from drsformer_jax.ops.strips import crop, in_strips, rows_in_cache, stored
from drsformer_jax.types import Array, Bool, Float

LANES = 16
"""float32 numbers that a CPU's vectors hold; XLA computes the rest of a row one by one."""
REACH = 4


_Channels = TypeVar("_Channels", jax.Array, np.ndarray)


class MixedScaleWeights(NamedTuple):
    """Of an MSFN with f hidden channels in each half, stored even channels first."""

    project_in: Affine
    """c 2f."""
    small: Affine
    """3 3 2f, depthwise."""
    large: Affine
    """5 5 2f, depthwise."""
    small_pairs: Affine
    """3 3 2 f."""
    large_pairs: Affine
    """5 5 2 f."""
    project_out: Affine
    """2f c."""


def mixed_scale(
    x: Float[Array, "b h w c"],
    weights: MixedScaleWeights,
    inside: Bool[Array, "b h w 1"] | None = None,
    form: str | None = None,
) -> Float[Array, "b h w c"]:
    """A 3x3 and a 5x5 path that exchange half of their channels, then again.

    The operation reaches from one 1x1 convolution to the other because that leaves the order of
    the hidden channels to its forms. The derivative saves `x`, which has a fifth of the channels
    of the hidden images, and the weights, and computes those again (see `forms.recomputed`).

    Args:
        x: images.
        weights: kernels and biases.
        inside: mask of the images in larger arrays; results outside mean nothing.
        form: `whole` (every convolution on whole images), `strips` (all of them on a few rows
            at a time), or None: the platform's.
    """
    ways = {"whole": _whole, "strips": _strips}
    return forms.recomputed("mixed_scale", ways, form, x, weights, inside)


def _whole(x: Array, weights: MixedScaleWeights, inside: Array | None) -> Array:
    x = zero_outside(biased(linear(x, weights.project_in.kernel), weights.project_in), inside)
    both = [
        zero_outside(relu(biased(depthwise_conv(x, path.kernel), path)), inside)
        for path in (weights.small, weights.large)
    ]
    (small1, small2), (large1, large2) = (jnp.split(path, 2, axis=-1) for path in both)
    mixed = [
        relu(biased(paired_conv(*_pairs(small, large), pairs.kernel), pairs))
        for small, large, pairs in (
            (small1, large1, weights.small_pairs),
            (small2, large2, weights.large_pairs),
        )
    ]
    out = weights.project_out
    return biased(linear(jnp.concatenate(mixed, axis=-1), out.kernel), out)


def _pairs(
    small: _Channels, large: _Channels
) -> tuple[tuple[_Channels, _Channels], tuple[_Channels, _Channels]]:
    """Even and odd channels of concat[small, large], from halves stored even channels first."""
    evens = (small.shape[-1] + 1) // 2
    small_even, small_odd = small[..., :evens], small[..., evens:]
    large_even, large_odd = large[..., :evens], large[..., evens:]
    if small.shape[-1] % 2:  # An odd half shifts the parity of the one behind it.
        large_even, large_odd = large_odd, large_even
    return (small_even, large_even), (small_odd, large_odd)


class _Quarter(NamedTuple):
    """A part of the output channels: two paths of hidden channels, and the pairs of them."""

    first: Affine
    second: Affine
    pairs: Affine
    project_out: Array


def _strips(x: Array, weights: MixedScaleWeights, inside: Array | None) -> Array:
    """Every quarter of the outputs has arrays of its own: none is joined, split or padded."""
    places, sources = _places(weights.project_out.kernel.shape[0] // 2)
    project_in = [_select(weights.project_in, source) for source in sources]
    chain = functools.partial(_strip, tuple((first, second) for first, second, _ in places))
    quarters = _quarters(weights, [channels for _, _, channels in places])
    rows = rows_in_cache(x.shape[2], weights.project_out.kernel.shape[0])
    every = project_in, quarters
    y = in_strips(chain, REACH, rows, every, zero_outside(x, inside), inside)
    return biased(y, weights.project_out)


def _strip(
    sources: tuple[tuple[int, int], ...],
    weights: tuple[list[Affine], list[_Quarter]],
    x: Float[Array, "h w c"],
    inside: Bool[Array, "h w 1"],
) -> Float[Array, "_ _ c"]:
    """The rows of `x` in the middle, without the bias of what comes out (see `strips.Chain`)."""
    project_in, quarters = weights
    anything = jnp.any(inside)
    hidden = [biased(linear(x, into.kernel), into) for into in project_in]
    if project_in[0].bias is not None:  # Otherwise zeros have stayed zeros.
        hidden = [zero_outside(x, inside) for x in hidden]
    total = jnp.zeros((), jnp.promote_types(x.dtype, jnp.float32))
    for (first, second), quarter in zip(sources, quarters, strict=True):
        reach = quarter.pairs.kernel.shape[0] // 2
        seen = crop(inside, REACH - reach)
        kernel = quarter.pairs.kernel
        one = _path(hidden[first], quarter.first, seen, anything)
        other = _path(hidden[second], quarter.second, seen, anything)
        one = window_conv(one, kernel[:, :, 0], anything)
        other = window_conv(other, kernel[:, :, 1], anything)
        mixed = relu(biased(one + other, quarter.pairs))
        total += linear(mixed.astype(total.dtype), quarter.project_out)
    return total


def _path(x: Array, path: Affine, inside: Array, anything: Array) -> Array:
    """relu(depthwise) on the pixels that `inside` covers."""
    margin = (x.shape[0] - inside.shape[0]) // 2 - path.kernel.shape[0] // 2

    def convolve(x: Array, path: Affine, inside: Array) -> Array:
        y = window_conv(x, path.kernel, anything, margin=margin)
        return zero_outside(relu(biased(y, path)), inside)

    return stored(convolve, anything, x, path, inside)


def _places(hidden: int) -> tuple[list[tuple[int, int, tuple]], list[np.ndarray]]:
    """Cuts the outputs of both paired convolutions into quarters of a multiple of `LANES`.

    Returns:
        For each quarter the numbers of the sources of its first and second paths, and three lists
        of channels: of the first and second paths (those of the 5x5 path counted from 2 `hidden`)
        and of the outputs, each filled by -1.
        And the sources, lists of channels of project_in.
    """
    evens = (hidden + 1) // 2
    width = -(-evens // LANES) * LANES
    sources: dict[int, int] = {}  # By their first channel.
    places = []
    for start in (0, hidden):
        outputs = np.arange(start, start + hidden)
        pairs = _pairs(outputs, outputs + 2 * hidden)
        for part in (slice(0, evens), slice(evens, hidden)):
            lists = [channels[part] for channels in (*map(np.concatenate, pairs), outputs)]
            lists = [np.pad(c, (0, width - len(c)), constant_values=-1) for c in lists]
            read = (int(channels[0]) % (2 * hidden) for channels in lists[:2])
            first, second = (sources.setdefault(channel, len(sources)) for channel in read)
            places.append((first, second, tuple(lists)))
    # What a path reads goes on from its first channel to the end of its half, and then from the
    # half's beginning. So do sources beyond what is read, and paths of equal beginnings share one.
    return places, [
        channel // hidden * hidden + (channel + np.arange(width)) % hidden for channel in sources
    ]


def _quarters(weights: MixedScaleWeights, places: list[tuple]) -> list[_Quarter]:
    """The weights of each quarter, in the order of its channels."""
    small, large = weights.small, weights.large
    hidden = small.kernel.shape[-1] // 2
    enlarged = jnp.pad(small.kernel, ((1, 1), (1, 1), (0, 0)))
    kernel = jnp.concatenate([enlarged, large.kernel], axis=-1)
    biases = [bias for bias in (small.bias, large.bias) if bias is not None]
    paths = Affine(kernel, jnp.concatenate(biases) if biases else None)

    def path(channels: np.ndarray) -> Affine:
        taken = _select(paths, channels)
        # Only where the halves meet in a pair, a 3x3 kernel stays in a 5x5 one.
        only_small = channels.max() < 2 * hidden
        return Affine(taken.kernel[1:4, 1:4], taken.bias) if only_small else taken

    quarters = []
    for first, second, outputs in places:
        pairs = weights.large_pairs if outputs.max() >= hidden else weights.small_pairs
        pairs = _select(pairs, np.where(outputs < 0, outputs, outputs % hidden))
        project_out = _take(weights.project_out.kernel, outputs, axis=0)
        quarters.append(_Quarter(path(first), path(second), pairs, project_out))
    return quarters


def _take(x: Array, channels: np.ndarray, axis: int = -1) -> Array:
    """The channels of x in another order, zero where -1 stands."""
    shape = [1] * x.ndim
    shape[axis] = len(channels)
    taken = jnp.take(x, channels, axis=axis, mode="clip")
    return jnp.where(np.reshape(channels >= 0, shape), taken, 0)


def _select(affine: Affine, channels: np.ndarray) -> Affine:
    bias = None if affine.bias is None else _take(affine.bias, channels)
    return Affine(_take(affine.kernel, channels), bias)
