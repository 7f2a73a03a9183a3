"""Attention across channels, in steps that can be summed over parts of an image.

A head's scores are the d x d cosines of its query channels with its key channels, each a vector of
all pixels. So attention costs time linear in the number of pixels, and all that it needs of them
is `ChannelSums`, which parts of an image (strips, devices) can add up.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from drsformer_jax.ops import implementations
from drsformer_jax.ops.depthwise import depthwise_conv, window_conv
from drsformer_jax.ops.linear import Affine, biased, precision_of, projected
from drsformer_jax.ops.masking import zero_outside
from drsformer_jax.ops.strips import materialized, rows_in_cache, sum_in_strips
from drsformer_jax.types import Array, Bool, Float


class ChannelSums(NamedTuple):
    """Sums over the pixels of an image, or of a part of it, in float32 or wider."""

    gram: Float[Array, "b m d e"]
    """Products of each query channel with each key channel."""
    query: Float[Array, "b m d"]
    """Squares of the queries."""
    key: Float[Array, "b m e"]
    """Squares of the keys."""


def channel_sums(query: Float[Array, "b p m d"], key: Float[Array, "b p m e"]) -> ChannelSums:
    """All that the attention scores of an image depend on."""
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
    """Of the convolutions that project to queries and keys: c channels of each, queries first."""

    pointwise: Affine
    """1x1 convolution; kernel c 2c."""
    depthwise: Affine
    """Kernel k k 2c."""


def query_key_sums(
    x: Float[Array, "b h w c"],
    weights: QueryKeyWeights,
    heads: int,
    valid_mask: Bool[Array, "b h w 1"] | None = None,
    counted: Bool[Array, "b h w 1"] | None = None,
    implementation: str | None = None,
) -> ChannelSums:
    """`channel_sums` of the queries and keys that a 1x1 and a depthwise convolution make of `x`.

    One operation, so that queries and keys need not exist for the whole image: the backward pass of
    strips saves `x` and the weights alone.

    Args:
        x: images.
        weights: kernels and biases.
        heads: number m of heads, equal groups of channels: d = c / m.
        valid_mask: True at the pixels of the images; default: everywhere. The convolutions read
            zeros at other pixels.
        counted: True at the pixels to sum over, all of them valid; default: `valid_mask`.
        implementation: `whole` (convolutions of whole images), `strips` (of a few rows at a time),
            `triton` (`whole` by kernels for GPUs), None or `pallas` (see `implementations.run`).
    """
    kernels = implementations.kernels_of(implementation)
    counted = valid_mask if counted is None else counted
    by_name = {
        "whole": functools.partial(_whole, heads, kernels),
        "strips": functools.partial(_strips, heads),
        "triton": functools.partial(_whole, heads, "triton"),
    }
    return implementations.run_by_width(
        "query_key_sums", by_name, implementation, x, weights, valid_mask, counted
    )


# Else XLA for GPUs multiplies for the values too, and copies both parts for the kernels.
_INPUTS = {"apart": jax.lax.optimization_barrier, "shared": lambda x: x}


def _whole(
    heads: int,
    kernels: str | None,
    x: Array,
    weights: QueryKeyWeights,
    valid_mask: Array | None,
    counted: Array | None,
) -> ChannelSums:
    pointwise, depthwise = weights
    x = zero_outside(x, valid_mask)
    if kernels is not None:
        x = implementations.run("query_key_input", _INPUTS, None, x)
    y = projected(x, pointwise, valid_mask, masked=True)
    both = biased(depthwise_conv(y, depthwise.kernel, 1, kernels), depthwise)
    plain, by_kernel = (functools.partial(sum_, heads) for sum_ in (_sums_of, _sums_by_kernel))
    return implementations.run_fused(plain, by_kernel, kernels, both.dtype, both, counted)


def _strips(
    heads: int, x: Array, weights: QueryKeyWeights, valid_mask: Array | None, counted: Array | None
) -> ChannelSums:
    def sums(weights: QueryKeyWeights, x: Array, valid_mask: Array, counted: Array) -> ChannelSums:
        pointwise, depthwise = weights
        y = projected(x, pointwise, valid_mask, masked=True)
        any_valid = jnp.any(valid_mask)

        def convolve(y: Array, depthwise: Affine, counted: Array) -> Array:
            return zero_outside(
                biased(window_conv(y, depthwise.kernel, any_valid), depthwise), counted
            )

        # XLA would compute it inside the transposition of a product, channel by channel.
        return _strip_sums(materialized(convolve, any_valid, y, depthwise, counted), heads)

    size, _, channels = weights.depthwise.kernel.shape
    rows = rows_in_cache(x.shape[2], channels)
    return sum_in_strips(
        sums, size // 2, rows, weights, zero_outside(x, valid_mask), valid_mask, counted
    )


def _strip_sums(both: Float[Array, "h w _"], heads: int) -> ChannelSums:
    """`_sums_of` one strip, without the axis b.

    A product of matrices a head, neither of which is transposed first as `channel_sums` does.
    """
    accumulator = jnp.promote_types(both.dtype, jnp.float32)
    query, key = (x.reshape(-1, heads, x.shape[-1] // heads) for x in jnp.split(both, 2, axis=-1))
    gram = [
        jnp.einsum(
            "pd,pe->de",
            query[:, head],
            key[:, head],
            precision=precision_of(both),
            preferred_element_type=accumulator,
        )
        for head in range(heads)
    ]
    squares = (jnp.sum(x.astype(accumulator) ** 2, axis=0) for x in (query, key))
    return ChannelSums(jnp.stack(gram), *squares)


def _sums_of(
    heads: int, both: Float[Array, "b h w _"], counted: Bool[Array, "b h w 1"] | None
) -> ChannelSums:
    """`channel_sums` of queries and keys that are concatenated along channels."""
    parts = jnp.split(zero_outside(both, counted), 2, axis=-1)
    return channel_sums(*(x.reshape(x.shape[0], -1, heads, x.shape[-1] // heads) for x in parts))


def _sums_by_kernel(
    heads: int, both: Float[Array, "b h w _"], counted: Bool[Array, "b h w 1"] | None
) -> ChannelSums:
    """`_sums_of` on GPUs."""
    from drsformer_jax.ops.attention_triton import head_sums

    gram, squares = head_sums(both, heads, counted)
    query, key = (x.reshape(*gram.shape[:-1]) for x in jnp.split(squares, 2, axis=-1))
    return ChannelSums(gram, query, key)


def channel_scores(sums: ChannelSums, temperature: Float[Array, " m"]) -> Float[Array, "b m d e"]:
    """Attention scores: cosine of each query with each key channel, times the head's temperature.

    Equal to dividing queries and keys by their L2 norm over the pixels (at least 1e-12) first,
    without writing them again. An all-zero channel has cosine 0 and a finite gradient.

    Args:
        sums: over all pixels of each image.
        temperature: a learned factor for each head, by which scores are multiplied.
    """
    scale_query = _inverse_root(sums.query)[..., :, None]
    scale_key = _inverse_root(sums.key)[..., None, :]
    scores = sums.gram * scale_query * scale_key
    return scores * temperature.astype(scores.dtype)[:, None, None]


def sparse_softmax(
    scores: Float[Array, "b m d e"], top_k: Sequence[int], weights: Float[Array, " n"]
) -> Float[Array, "b m d e"]:
    """Weighted sum of softmaxes over the largest scores of each row (TKSA; DRSformer, CVPR 2023).

    Branch i masks all but the `top_k[i]` largest scores of each row with minus infinity:

        sum_i weights[i] * softmax(mask(scores, top_k[i]))

    A score is kept if it is at least the k-th largest of its row, as on the authors' slides. On
    exact ties at the k-th place all tied scores are kept, where the official program keeps k of
    them in no stated order; without ties the two are equal. Which scores are kept has no gradient.

    One sort gives every threshold and one exponential every softmax.

    Args:
        scores: attention scores, one row for each query channel.
        top_k: how many scores of a row each branch keeps, each from 1 to e.
        weights: learned weight of each branch.
    """
    ordered = jnp.sort(jax.lax.stop_gradient(scores), axis=-1)
    exponentials = jnp.exp(scores - ordered[..., -1:])
    thresholds = jnp.stack([ordered[..., -count, None] for count in top_k])
    kept = jnp.where(scores >= thresholds, exponentials, 0)
    sums = jnp.sum(kept, axis=-1, keepdims=True)
    return jnp.sum(kept * (weights.reshape(-1, 1, 1, 1, 1) / sums), axis=0)


def _inverse_root(squares: Float[Array, "b m d"]) -> Float[Array, "b m d"]:
    # The floor is inside the root: dividing by max(norm, eps) has a NaN gradient on zeros.
    return jax.lax.rsqrt(jnp.maximum(squares, 1e-24))
