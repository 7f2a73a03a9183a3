"""TKSA, the top-k sparse attention across channels (paper, Sec. 3.2)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from drsformer_jax.config import ModelConfig
from drsformer_jax.nn.linear import DepthwiseConv, Pointwise, constant
from drsformer_jax.ops.attention import (
    ChannelSums,
    QueryKeyWeights,
    channel_scores,
    query_key_sums,
    sparse_softmax,
)
from drsformer_jax.ops.linear import biased, precision_of
from drsformer_jax.types import Array, Bool, Float


class Attention(nnx.Module):
    """Multi-head attention whose scores relate channels, so that its cost is linear in pixels.

    The image is read twice, so that it may be read in parts: first queries and keys for `sums`,
    from which `mixing` follows, then the values that are mixed.

    `attention="topk"` sums a softmax over the largest scores of each row for every fraction, with
    learned weights; `"dense"` is one softmax over all scores (Restormer's MDTA).
    """

    def __init__(self, channels: int, heads: int, config: ModelConfig) -> None:
        self.heads = heads
        self.qkv = Pointwise(channels, 3 * channels, config, bias=config.bias)
        self.qkv_dwconv = DepthwiseConv(3 * channels, 3, config, bias=config.bias)
        self.project_out = Pointwise(channels, channels, config, bias=config.bias)
        self.temperature = constant((heads,), 1, config)
        sparse = config.attention == "topk"
        self.kept = config.kept_scores(channels // heads) if sparse else ()
        self.branches = constant((len(self.kept),), 0.2, config) if sparse else None

    def sums(
        self,
        x: Float[Array, "b h w c"],
        inside: Bool[Array, "b h w 1"] | None = None,
        counted: Bool[Array, "b h w 1"] | None = None,
    ) -> ChannelSums:
        """Sums of queries and keys over the pixels that are `counted`."""
        part = slice(0, 2 * x.shape[-1])
        weights = QueryKeyWeights(self.qkv.weights(part), self.qkv_dwconv.weights(part))
        return query_key_sums(x, weights, self.heads, inside, counted)

    def mixing(self, sums: ChannelSums) -> Float[Array, "b c c"]:
        """Attention and projection of each image, as one matrix that its values are mapped by.

        The projection is linear: folded into the small d x d maps, the value is read only once.
        """
        scores = channel_scores(sums, self.temperature[...])
        if self.branches is None:
            attention = jax.nn.softmax(scores, axis=-1)
        else:
            attention = sparse_softmax(scores, self.kept, self.branches[...])
        channels = self.project_out.kernel.shape[-1]
        projection = self.project_out.kernel[...].reshape(self.heads, -1, channels)
        highest = jax.lax.Precision.HIGHEST
        folded = jnp.einsum("bmde,mdo->bmeo", attention, projection, precision=highest)
        return folded.reshape(-1, channels, channels)

    def __call__(
        self,
        x: Float[Array, "b h w c"],
        mixing: Float[Array, "b c c"],
        inside: Bool[Array, "b h w 1"] | None = None,
    ) -> Float[Array, "b h w c"]:
        """Mixes and projects the values."""
        channels = x.shape[-1]
        part = slice(2 * channels, None)
        value = self.qkv_dwconv(self.qkv(x, part), inside, part)
        mixing = mixing.astype(x.dtype)
        y = jnp.einsum("bhwc,bco->bhwo", value, mixing, precision=precision_of(x))
        return biased(y, self.project_out.weights())
