"""Layer normalization over channels."""

from __future__ import annotations

from flax import nnx

from drsformer_jax.config import ModelConfig
from drsformer_jax.nn.linear import constant
from drsformer_jax.ops.norm import layer_norm
from drsformer_jax.types import Array, Float


class LayerNorm(nnx.Module):
    """Normalizes each pixel over its channels, in float32 or wider.

    With `config.norm="bias_free"` it divides by the standard deviation without subtracting the
    mean, and has no bias (BiasFree of Restormer, CVPR 2022).
    """

    def __init__(self, channels: int, config: ModelConfig) -> None:
        self.weight = constant((channels,), 1, config)
        with_bias = config.norm == "with_bias"
        self.bias = constant((channels,), 0, config) if with_bias else None
        self.implementation = config.implementation

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Normalizes, in the dtype of `x`."""
        bias = None if self.bias is None else self.bias[...]
        return layer_norm(x, self.weight[...], bias, self.implementation)
