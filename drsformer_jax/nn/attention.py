"""TKSA, top-k sparse attention across channels (DRSformer, CVPR 2023)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from drsformer_jax.config import ModelConfig
from drsformer_jax.nn.linear import Conv1x1, DepthwiseConv, constant
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
    """Multi-head attention across channels: time is linear in the number of pixels.

        q, k, v = split(depthwise3x3(conv1x1(x)))    m heads of d channels each
        scores = cosine(q, k) * temperature          d x d in each head
        attention = sum_i branches[i] * softmax(top_k[i] largest scores of each row)
        output = project_out(attention v)

    That is TKSA, `config.attention="topk"`; with `"dense"` the attention is one softmax over all
    scores (MDTA; Restormer, CVPR 2022).

    It is called in three steps, of which the first and the last can read an image in parts: `sums`
    over queries and keys, the matrix `mixing` of the whole image, and `__call__` on the values.
    """

    def __init__(self, channels: int, heads: int, config: ModelConfig) -> None:
        self.heads = heads
        self.implementation = config.implementation
        self.qkv = Conv1x1(channels, 3 * channels, config, bias=config.bias)
        self.qkv_dwconv = DepthwiseConv(3 * channels, 3, config, bias=config.bias)
        self.project_out = Conv1x1(channels, channels, config, bias=config.bias)
        self.temperature = constant((heads,), 1, config)
        sparse = config.attention == "topk"
        self.top_k = config.kept_scores(channels // heads) if sparse else ()
        self.branches = constant((len(self.top_k),), 0.2, config) if sparse else None

    def sums(
        self,
        x: Float[Array, "b h w c"],
        valid_mask: Bool[Array, "b h w 1"] | None = None,
        counted: Bool[Array, "b h w 1"] | None = None,
    ) -> ChannelSums:
        """Sums of queries and keys, over the pixels that are `counted`; default: all."""
        part = slice(0, 2 * x.shape[-1])
        weights = QueryKeyWeights(self.qkv.weights(part), self.qkv_dwconv.weights(part))
        return query_key_sums(x, weights, self.heads, valid_mask, counted, self.implementation)

    def mixing(self, sums: ChannelSums) -> Float[Array, "b c c"]:
        """Attention and output projection of each image, as one matrix: row e, column o.

        Both are linear in the values: folded into one, they read the values only once.
        """
        scores = channel_scores(sums, self.temperature[...])
        if self.branches is None:
            attention = jax.nn.softmax(scores, axis=-1)
        else:
            attention = sparse_softmax(scores, self.top_k, self.branches[...])
        channels = self.project_out.kernel.shape[-1]
        projection = self.project_out.kernel[...].reshape(self.heads, -1, channels)
        highest = jax.lax.Precision.HIGHEST
        folded = jnp.einsum("bmde,mdo->bmeo", attention, projection, precision=highest)
        return folded.reshape(-1, channels, channels)

    def __call__(
        self,
        x: Float[Array, "b h w c"],
        mixing: Float[Array, "b c c"],
        valid_mask: Bool[Array, "b h w 1"] | None = None,
    ) -> Float[Array, "b h w c"]:
        """Attends to the values and projects the result."""
        channels = x.shape[-1]
        part = slice(2 * channels, None)
        value = self.qkv_dwconv(self.qkv(x, valid_mask, part), part=part)
        mixing = mixing.astype(x.dtype)
        y = jnp.einsum("bhwc,bco->bhwo", value, mixing, precision=precision_of(x))
        return biased(y, self.project_out.weights())
