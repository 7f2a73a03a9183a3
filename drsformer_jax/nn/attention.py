"""TKSA, the top-k sparse attention across channels (paper, Sec. 3.2)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from drsformer_jax.config import ModelConfig
from drsformer_jax.nn.linear import DepthwiseConv, Pointwise, constant
from drsformer_jax.ops.attention import channel_scores, sparse_softmax
from drsformer_jax.ops.linear import precision_of
from drsformer_jax.ops.masking import zero_outside
from drsformer_jax.types import Array, Bool, Float


class Attention(nnx.Module):
    """Multi-head attention whose scores relate channels, so that its cost is linear in pixels.

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

    def __call__(
        self, x: Float[Array, "b h w c"], inside: Bool[Array, "b h w 1"] | None = None
    ) -> Float[Array, "b h w c"]:
        """Attends and projects."""
        batch, height, width, channels = x.shape
        # The scores are sums over the pixels of the picture.
        qkv = zero_outside(self.qkv_dwconv(self.qkv(x), inside), inside)
        query, key, value = jnp.split(qkv.reshape(batch, height * width, -1), 3, axis=-1)
        per_head = (batch, height * width, self.heads, channels // self.heads)
        scores = channel_scores(
            query.reshape(per_head), key.reshape(per_head), self.temperature[...]
        )
        if self.branches is None:
            attention = jax.nn.softmax(scores, axis=-1)
        else:
            attention = sparse_softmax(scores, self.kept, self.branches[...])
        # The projection is linear: folded into the small d x d maps, the value is read only once.
        projection = self.project_out.kernel[...].reshape(self.heads, -1, channels)
        highest = jax.lax.Precision.HIGHEST
        folded = jnp.einsum("bmde,mdo->bmeo", attention, projection, precision=highest)
        folded = folded.reshape(batch, channels, channels).astype(x.dtype)
        y = jnp.einsum("bpc,bco->bpo", value, folded, precision=precision_of(x)).reshape(x.shape)
        bias = self.project_out.bias
        return y if bias is None else y + bias[...].astype(y.dtype)
