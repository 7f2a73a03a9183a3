"""Convolutions with parameters, initialised as PyTorch does: uniform within 1 / sqrt(fan_in)."""

from __future__ import annotations

import math

import jax
from flax import nnx
from jax.nn.initializers import Initializer

from drsformer_jax.config import ModelConfig
from drsformer_jax.ops.depthwise import depthwise_conv, paired_conv
from drsformer_jax.types import Array, Float


def _uniform(fan_in: int) -> Initializer:
    bound = 1 / math.sqrt(fan_in)

    def init(key: Array, shape: tuple[int, ...], dtype: jax.typing.DTypeLike = float) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def pointwise(
    channels: int, out: int, config: ModelConfig, *, bias: bool, rngs: nnx.Rngs
) -> nnx.Linear:
    """A 1x1 convolution: (b, h, w, channels) to (b, h, w, out)."""
    return nnx.Linear(
        channels,
        out,
        use_bias=bias,
        dtype=config.dtype,
        param_dtype=config.param_dtype,
        kernel_init=_uniform(channels),
        bias_init=_uniform(channels),
        rngs=rngs,
    )


def conv3x3(
    channels: int, out: int, config: ModelConfig, *, bias: bool = False, rngs: nnx.Rngs
) -> nnx.Conv:
    """A 3x3 convolution with zeros beyond the border: (b, h, w, channels) to (b, h, w, out)."""
    return nnx.Conv(
        channels,
        out,
        kernel_size=(3, 3),
        padding="SAME",
        use_bias=bias,
        dtype=config.dtype,
        param_dtype=config.param_dtype,
        kernel_init=_uniform(9 * channels),
        bias_init=_uniform(9 * channels),
        rngs=rngs,
    )


class DepthwiseConv(nnx.Module):
    """`ops.depthwise.depthwise_conv` with its kernel."""

    def __init__(
        self,
        channels: int,
        size: int,
        config: ModelConfig,
        *,
        bias: bool = False,
        dilation: int = 1,
        rngs: nnx.Rngs,
    ) -> None:
        init = _uniform(size**2)
        self.kernel = nnx.Param(init(rngs.params(), (size, size, channels), config.param_dtype))
        self.bias = (
            nnx.Param(init(rngs.params(), (channels,), config.param_dtype)) if bias else None
        )
        self.dilation = dilation

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Convolves every channel with its own kernel."""
        y = depthwise_conv(x, self.kernel[...], self.dilation)
        return y if self.bias is None else y + self.bias[...].astype(y.dtype)


class PairedConv(nnx.Module):
    """`ops.depthwise.paired_conv` with its kernel."""

    def __init__(
        self, channels: int, size: int, config: ModelConfig, *, bias: bool, rngs: nnx.Rngs
    ) -> None:
        init = _uniform(2 * size**2)
        self.kernel = nnx.Param(init(rngs.params(), (size, size, 2, channels), config.param_dtype))
        self.bias = (
            nnx.Param(init(rngs.params(), (channels,), config.param_dtype)) if bias else None
        )

    def __call__(
        self, first: Float[Array, "b h w c"], second: Float[Array, "b h w c"]
    ) -> Float[Array, "b h w c"]:
        """Convolves each pair of channels to one."""
        y = paired_conv(first, second, self.kernel[...])
        return y if self.bias is None else y + self.bias[...].astype(y.dtype)
