"""Attention across channels: its cost is linear in the number of pixels."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from drsformer_jax.ops import forms
from drsformer_jax.ops.depthwise import depthwise_conv, window_conv
from drsformer_jax.ops.linear import Affine, biased, linear, precision_of
from drsformer_jax.ops.masking import zero_outside
from drsformer_jax.ops.strips import rows_in_cache, sum_in_strips
from drsformer_jax.types import Array, Bool, Float


class ChannelSums(NamedTuple):
    """Sums over pixels, in float32 or wider; those of parts of an image may be added."""

    gram: Float[Array, "b m d e"]
    """Products of query and key channels."""
    query: Float[Array, "b m d"]
    """Squares of the queries."""
    key: Float[Array, "b m e"]
    """Squares of the keys."""


def channel_sums(query: Float[Array, "b p m d"], key: Float[Array, "b p m e"]) -> ChannelSums:
    """All that the scores of an image need to know of its pixels."""
    accumulator = jnp.promote_types(query.dtype, jnp.float32)
    gram = jnp.einsum(
        "bpmd,bpme->bmde",
        query,
        key,
        precision=precision_of(query),
        preferred_element_type=accumulator,
    )
    squares = (jnp.sum(x.astype(accumulator) ** 2, axis=1) for x in (query, key))
    return ChannelSums(gram, *squares)


class QueryKeyWeights(NamedTuple):
    """Of the convolutions that make queries, then keys."""

    pointwise: Affine
    """c 2c."""
    depthwise: Affine
    """k k 2c."""


def query_key_sums(
    x: Float[Array, "b h w c"],
    weights: QueryKeyWeights,
    heads: int,
    inside: Bool[Array, "b h w 1"] | None = None,
    counted: Bool[Array, "b h w 1"] | None = None,
    form: str | None = None,
) -> ChannelSums:
    """`channel_sums` of the queries and keys that a 1x1 and a depthwise convolution make of `x`.

    One operation, so that queries and keys need not exist for the whole image. The derivative
    saves `x` and the weights alone (see `forms.recomputed`).

    Args:
        x: images.
        weights: kernels and biases.
        heads: number of equal groups of channels.
        inside: mask of the images in larger arrays.
        counted: mask of the pixels to sum over, which all are without it, `inside` or not.
        form: `whole` (every convolution on whole images), `strips` (on a few rows at a time), or
            None: the platform's.
    """
    ways = {"whole": functools.partial(_whole, heads), "strips": functools.partial(_strips, heads)}
    return forms.recomputed("query_key_sums", ways, form, x, weights, inside, counted)


def _whole(
    heads: int, x: Array, weights: QueryKeyWeights, inside: Array | None, counted: Array | None
) -> ChannelSums:
    pointwise, depthwise = weights
    y = zero_outside(biased(linear(x, pointwise.kernel), pointwise), inside)
    both = biased(depthwise_conv(y, depthwise.kernel), depthwise)
    return _sums_of(zero_outside(both, counted), heads)


def _strips(
    heads: int, x: Array, weights: QueryKeyWeights, inside: Array | None, counted: Array | None
) -> ChannelSums:
    def sums(weights: QueryKeyWeights, x: Array, inside: Array, counted: Array) -> ChannelSums:
        pointwise, depthwise = weights
        y = biased(linear(x, pointwise.kernel), pointwise)
        if pointwise.bias is not None:  # Otherwise zeros have stayed zeros.
            y = zero_outside(y, inside)
        both = biased(window_conv(y, depthwise.kernel, jnp.any(inside)), depthwise)
        added = _sums_of(zero_outside(both, counted)[None], heads)
        return jax.tree.map(lambda leaf: leaf[0], added)

    size, _, channels = weights.depthwise.kernel.shape
    rows = rows_in_cache(x.shape[2], channels)
    return sum_in_strips(sums, size // 2, rows, weights, zero_outside(x, inside), inside, counted)


def _sums_of(both: Float[Array, "b h w _"], heads: int) -> ChannelSums:
    """`channel_sums` of queries and keys that lie side by side."""
    return channel_sums(
        *(x.reshape(len(x), -1, heads, x.shape[-1] // heads) for x in jnp.split(both, 2, axis=-1))
    )


def channel_scores(sums: ChannelSums, temperature: Float[Array, " m"]) -> Float[Array, "b m d e"]:
    """Cosine of every query channel with every key channel, times the head's temperature.

    Equal to normalizing queries and keys over the pixels first (floor of the norm 1e-12), without
    writing them again. An all-zero channel has cosine 0 and a finite gradient.
    """
    scale_query = _inverse_root(sums.query)[..., :, None]
    scale_key = _inverse_root(sums.key)[..., None, :]
    scores = sums.gram * scale_query * scale_key
    return scores * temperature.astype(scores.dtype)[:, None, None]


def sparse_softmax(
    scores: Float[Array, "b m d e"], kept: Sequence[int], weights: Float[Array, " n"]
) -> Float[Array, "b m d e"]:
    """Sum over i of weights[i] * softmax of each row's kept[i] largest scores (paper, Eq. 5 and 6).

    The mask is the one of the authors' slides: a score stays where it reaches the k-th largest of
    its row. On exact ties at the k-th place all tied scores stay, where the official program keeps
    k of them in no stated order; without ties the two are equal. The choice of scores has no
    gradient.

    One sort gives every threshold and one exponential every softmax.
    """
    ordered = jnp.sort(jax.lax.stop_gradient(scores), axis=-1)
    exponentials = jnp.exp(scores - ordered[..., -1:])
    total = jnp.zeros_like(scores)
    for index, count in enumerate(kept):
        chosen = jnp.where(scores >= ordered[..., -count, None], exponentials, 0)
        total += weights[index] * chosen / jnp.sum(chosen, axis=-1, keepdims=True)
    return total


def _inverse_root(squares: Float[Array, "b m d"]) -> Float[Array, "b m d"]:
    # The floor stands inside the root: dividing by max(norm, eps) has a NaN gradient on zeros.
    return jax.lax.rsqrt(jnp.maximum(squares, 1e-24))
