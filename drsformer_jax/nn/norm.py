"""Layer normalization over channels."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from drsformer_jax.config import ModelConfig
from drsformer_jax.nn.linear import constant
from drsformer_jax.types import Array, Float

EPSILON = 1e-5


class LayerNorm(nnx.Module):
    """Normalizes each pixel over its channels, in float32 or wider.

    With `config.norm="bias_free"` it divides by the standard deviation without subtracting the
    mean, and has no bias (BiasFree of Restormer, CVPR 2022).
    """

    def __init__(self, channels: int, config: ModelConfig) -> None:
        self.weight = constant((channels,), 1, config)
        with_bias = config.norm == "with_bias"
        self.bias = constant((channels,), 0, config) if with_bias else None

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Normalizes, in the dtype of `x`."""
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        mean = jnp.mean(wide, axis=-1, keepdims=True)
        variance = jnp.mean((wide - mean) ** 2, axis=-1, keepdims=True)
        scale = jax.lax.rsqrt(variance + EPSILON) * self.weight[...]
        y = wide * scale if self.bias is None else (wide - mean) * scale + self.bias[...]
        return y.astype(x.dtype)
