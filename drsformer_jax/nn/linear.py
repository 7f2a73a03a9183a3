"""Linear maps and convolutions with their parameters.

Every convolution that reads neighbors takes `inside`, the mask of the images in a larger array,
and reads zeros outside of them, as it does beyond the array's border. Whatever else is done there
(biases, the rings that convolutions leak) then never reaches an image.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from drsformer_jax.config import ModelConfig
from drsformer_jax.ops.depthwise import depthwise_conv
from drsformer_jax.ops.linear import Affine, biased, linear, precision_of
from drsformer_jax.ops.masking import zero_outside
from drsformer_jax.types import Array, Bool, Float

_ALL = slice(None)


def constant(shape: tuple[int, ...], value: float, config: ModelConfig) -> nnx.Param:
    """A parameter that starts at `value`."""
    return nnx.Param(np.full(shape, value, config.param_dtype))


def drawn(shape: tuple[int, ...], fan_in: int, config: ModelConfig) -> nnx.Param:
    """A parameter that `draw` fills; zero until then."""
    return nnx.Param(np.zeros(shape, config.param_dtype), fan_in=fan_in)


def draw(module: nnx.Module, key: Array) -> None:
    """Fills the `drawn` parameters of a module as PyTorch does: uniform within 1 / sqrt(fan_in).

    All come out of one random array: a program with a generator for each of a hundred parameters
    takes a hundred times as long to compile.
    """
    params = [
        param
        for _, param in nnx.to_flat_state(nnx.state(module, nnx.Param))
        if "fan_in" in param.get_metadata()
    ]
    shapes = tuple(param.shape for param in params)
    bounds = tuple(1 / math.sqrt(param.get_metadata("fan_in")) for param in params)
    for param, value in zip(params, _uniform(key, shapes, bounds, params[0].dtype), strict=True):
        param.set_value(value)


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _uniform(
    key: Array, shapes: tuple[tuple[int, ...], ...], bounds: tuple[float, ...], dtype: np.dtype
) -> list[Array]:
    sizes = [math.prod(shape) for shape in shapes]
    flat = jax.random.uniform(key, (sum(sizes),), dtype, -1, 1)
    pieces = jnp.split(flat, np.cumsum(sizes)[:-1])
    return [
        piece.reshape(shape) * bound
        for piece, shape, bound in zip(pieces, shapes, bounds, strict=True)
    ]


class _Affine(nnx.Module):
    """A layer that hands out its parameters."""

    kernel: nnx.Param
    bias: nnx.Param | None

    def weights(self, part: slice = _ALL) -> Affine:
        """Those of `part` of the channels that come out."""
        return Affine(self.kernel[..., part], None if self.bias is None else self.bias[part])


class Pointwise(_Affine):
    """A linear map of the last axis: on images, a 1x1 convolution."""

    def __init__(self, channels: int, out: int, config: ModelConfig, *, bias: bool) -> None:
        self.kernel = drawn((channels, out), channels, config)
        self.bias = drawn((out,), channels, config) if bias else None

    def __call__(self, x: Float[Array, "*b c"], part: slice = _ALL) -> Float[Array, "*b o"]:
        """Maps the channels, in the type of `x`; `part` of the results."""
        weights = self.weights(part)
        return biased(linear(x, weights.kernel), weights)


class Conv3x3(_Affine):
    """A 3x3 convolution of all channels, zeros beyond the border."""

    def __init__(self, channels: int, out: int, config: ModelConfig, *, bias: bool = False) -> None:
        self.kernel = drawn((3, 3, channels, out), 9 * channels, config)
        self.bias = drawn((out,), 9 * channels, config) if bias else None

    def __call__(
        self, x: Float[Array, "b h w c"], inside: Bool[Array, "b h w 1"] | None = None
    ) -> Float[Array, "b h w o"]:
        """Convolves, in the type of `x`."""
        y = jax.lax.conv_general_dilated(
            zero_outside(x, inside),
            self.kernel[...].astype(x.dtype),
            window_strides=(1, 1),
            padding="SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=precision_of(x),
        )
        return biased(y, self.weights())


class DepthwiseConv(_Affine):
    """`ops.depthwise.depthwise_conv` with its kernel."""

    def __init__(
        self,
        channels: int,
        size: int,
        config: ModelConfig,
        *,
        bias: bool = False,
        dilation: int = 1,
    ) -> None:
        self.kernel = drawn((size, size, channels), size**2, config)
        self.bias = drawn((channels,), size**2, config) if bias else None
        self.dilation = dilation

    def __call__(
        self,
        x: Float[Array, "b h w c"],
        inside: Bool[Array, "b h w 1"] | None = None,
        part: slice = _ALL,
    ) -> Float[Array, "b h w c"]:
        """Convolves every channel with its own kernel; `x` has `part` of the channels."""
        weights = self.weights(part)
        y = depthwise_conv(zero_outside(x, inside), weights.kernel, self.dilation)
        return biased(y, weights)


class PairedConv(_Affine):
    """Kernel and bias of a paired convolution, which `ops.mixed_scale` computes."""

    def __init__(self, channels: int, size: int, config: ModelConfig, *, bias: bool) -> None:
        self.kernel = drawn((size, size, 2, channels), 2 * size**2, config)
        self.bias = drawn((channels,), 2 * size**2, config) if bias else None
