"""Attention across channels: its cost is linear in the number of pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from drsformer_jax.ops.linear import precision_of
from drsformer_jax.types import Array, Float


class ChannelSums(NamedTuple):
    """Sums over pixels, in float32 or wider; those of parts of a picture may be added."""

    gram: Float[Array, "b m d e"]
    """Products of query and key channels."""
    query: Float[Array, "b m d"]
    """Squares of the queries."""
    key: Float[Array, "b m e"]
    """Squares of the keys."""


def channel_sums(query: Float[Array, "b p m d"], key: Float[Array, "b p m e"]) -> ChannelSums:
    """All that the scores of a picture need to know of its pixels."""
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


def channel_scores(sums: ChannelSums, temperature: Float[Array, " m"]) -> Float[Array, "b m d e"]:
    """Cosine of every query channel with every key channel, times the head's temperature.

    Equal to normalising queries and keys over the pixels first (floor of the norm 1e-12), without
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
