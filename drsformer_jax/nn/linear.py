"""Convolutions with their parameters, and how parameters are initialized.

Every convolution that reads neighbors takes `valid_mask`, True at the pixels of the images where
the arrays are larger, and reads zeros at other pixels, as it does beyond the array's border. So
whatever layers make of those pixels (biases, what convolutions leak there) never reaches an image.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from drsformer_jax.config import ModelConfig
from drsformer_jax.nn.rows import AT_ONCE, Rows
from drsformer_jax.ops.depthwise import depthwise_conv
from drsformer_jax.ops.linear import Affine, biased, precision_of, projected
from drsformer_jax.ops.masking import zero_outside
from drsformer_jax.types import Array, Bool, Float

_ALL = slice(None)


def constant(shape: tuple[int, ...], value: float, config: ModelConfig) -> nnx.Param:
    """A parameter that is initialized to `value`."""
    return nnx.Param(np.full(shape, value, config.param_dtype))


def uninitialized(shape: tuple[int, ...], fan_in: int, config: ModelConfig) -> nnx.Param:
    """A parameter that `initialize` samples; zero until then."""
    return nnx.Param(np.zeros(shape, config.param_dtype), fan_in=fan_in)


def initialize(module: nnx.Module, key: Array) -> None:
    """Samples the `uninitialized` parameters of a module: uniform within +-1 / sqrt(fan_in).

    This is PyTorch's default, and the distribution that
    `nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")` has for kernels. But layers have
    no `kernel_init`: all parameters are slices of one random array, because a program with a
    generator for each of a hundred parameters takes a hundred times as long to compile.
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
    """A layer with a kernel, output channels last, and maybe a bias."""

    kernel: nnx.Param
    bias: nnx.Param | None

    def weights(self, part: slice = _ALL) -> Affine:
        """Kernel and bias of `part` of the output channels."""
        return Affine(self.kernel[..., part], None if self.bias is None else self.bias[part])


class Conv1x1(_Affine):
    """A dense layer on the last axis: on images, a 1x1 convolution. Kernel c o."""

    def __init__(self, channels: int, out: int, config: ModelConfig, *, bias: bool) -> None:
        self.kernel = uninitialized((channels, out), channels, config)
        self.bias = uninitialized((out,), channels, config) if bias else None

    def __call__(
        self,
        x: Float[Array, "*b c"],
        valid_mask: Bool[Array, "*b 1"] | None = None,
        part: slice = _ALL,
    ) -> Float[Array, "*b o"]:
        """Projects to `part` of the output channels, in the dtype of `x`; zeros where masked."""
        return projected(x, self.weights(part), valid_mask)


class Conv3x3(_Affine):
    """A 3x3 convolution, stride 1, zeros beyond the border. Kernel 3 3 c o."""

    def __init__(self, channels: int, out: int, config: ModelConfig, *, bias: bool = False) -> None:
        self.kernel = uninitialized((3, 3, channels, out), 9 * channels, config)
        self.bias = uninitialized((out,), 9 * channels, config) if bias else None

    def __call__(self, x: Float[Array, "b h w c"], rows: Rows = AT_ONCE) -> Float[Array, "b h w o"]:
        """Convolves images, in the dtype of `x`."""
        return rows.map(self._convolve, x, halo=1)

    def _convolve(
        self, x: Float[Array, "b h w c"], valid_mask: Bool[Array, "b h w 1"] | None
    ) -> Float[Array, "b h w o"]:
        y = jax.lax.conv_general_dilated(
            zero_outside(x, valid_mask),
            self.kernel[...].astype(x.dtype),
            window_strides=(1, 1),
            padding="SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=precision_of(x),
        )
        return biased(y, self.weights())


class DepthwiseConv(_Affine):
    """`ops.depthwise.depthwise_conv` with its parameters. Kernel k k c."""

    def __init__(
        self,
        channels: int,
        size: int,
        config: ModelConfig,
        *,
        bias: bool = False,
        dilation: int = 1,
    ) -> None:
        self.kernel = uninitialized((size, size, channels), size**2, config)
        self.bias = uninitialized((channels,), size**2, config) if bias else None
        self.dilation = dilation
        self.implementation = config.implementation

    def __call__(
        self,
        x: Float[Array, "b h w c"],
        valid_mask: Bool[Array, "b h w 1"] | None = None,
        part: slice = _ALL,
    ) -> Float[Array, "b h w c"]:
        """Convolves each channel of `x`, which are `part` of the layer's."""
        weights = self.weights(part)
        x = zero_outside(x, valid_mask)
        y = depthwise_conv(x, weights.kernel, self.dilation, self.implementation)
        return biased(y, weights)


class GroupedConv(_Affine):
    """Parameters of a grouped convolution, which `ops.mixed_scale` computes. Kernel k k 2 c.

    Each of c groups has two input channels and one output channel.
    """

    def __init__(self, channels: int, size: int, config: ModelConfig, *, bias: bool) -> None:
        self.kernel = uninitialized((size, size, 2, channels), 2 * size**2, config)
        self.bias = uninitialized((channels,), 2 * size**2, config) if bias else None
