"""Convolutions that mix no channels, or two at a time, with gradients of their own.

Written as sums of shifted pictures they are one pass over memory on every backend, where
`lax.conv_general_dilated` with groups is up to a hundred times slower or larger. The derivative
by hand matters as much: differentiating the shifts would keep a copy of the picture per tap.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from drsformer_jax.ops.linear import precision_of
from drsformer_jax.ops.masking import zero_outside
from drsformer_jax.types import Array, Bool, Float


def depthwise_conv(
    x: Float[Array, "b h w c"], kernel: Float[Array, "k k c"], dilation: int = 1
) -> Float[Array, "b h w c"]:
    """Convolves every channel with its own kernel, zeros beyond the border.

    The sum runs in float32 or wider; the result has the type of `x`.

    Args:
        x: pictures.
        kernel: one k x k kernel a channel, k odd, applied as a correlation as everywhere in
            this field.
        dilation: distance of neighbouring taps, in pixels.
    """
    return _depthwise([x], kernel, dilation)


def paired_conv(
    first: Sequence[Float[Array, "b h w _"]],
    second: Sequence[Float[Array, "b h w _"]],
    kernel: Float[Array, "k k 2 c"],
) -> Float[Array, "b h w c"]:
    """A grouped convolution of two channels in and one out, zeros beyond the border.

    Output channel i is the sum of channel i of `first` under `kernel[:, :, 0, i]` and of channel i
    of `second` under `kernel[:, :, 1, i]`. Two separate arrays spare the strided reads that
    interleaved channels would cost.

    Args:
        first: pictures whose channels, one after another, are the first of each pair.
        second: likewise the second of each pair.
        kernel: k odd.
    """
    channels = kernel.shape[-1]
    both = _depthwise([*first, *second], kernel.reshape(*kernel.shape[:2], -1), 1)
    return both[..., :channels] + both[..., channels:]


def average_pool(
    x: Float[Array, "b h w c"], size: int = 3, inside: Bool[Array, "b h w 1"] | None = None
) -> Float[Array, "b h w c"]:
    """Mean over size x size neighbours, counting only those inside the picture; stride 1.

    Args:
        x: pictures.
        size: side of the window, odd.
        inside: mask of the pictures where the arrays are larger; results outside mean nothing.
    """
    ones = jnp.ones((size, size, x.shape[-1]), _accumulator(x))
    counted = jnp.ones_like(x[:1, :, :, :1], ones.dtype) if inside is None else inside
    count = depthwise_conv(counted.astype(ones.dtype), ones[..., :1])
    total = depthwise_conv(zero_outside(x, inside), ones)
    return (total / jnp.maximum(count, 1)).astype(x.dtype)


_FUSED_TAPS = 28
"""XLA for TPUs fuses so many taps. For more (7x7) it first writes shifted copies of the picture."""


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _depthwise(parts: list[Array], kernel: Array, dilation: int) -> Array:
    """`depthwise_conv` of the parts joined along their channels."""
    shape = (*parts[0].shape[:3], kernel.shape[-1])
    accumulator = _accumulator(parts[0])
    size = kernel.shape[0]
    padded = _pad(parts, size, dilation)
    total = jnp.zeros(shape, accumulator)
    for count, (top, left) in enumerate(_taps(size, dilation), 1):
        shifted = padded[:, top : top + shape[1], left : left + shape[2]].astype(accumulator)
        total += shifted * kernel[top // dilation, left // dilation].astype(accumulator)
        if count % _FUSED_TAPS == 0 and count < size**2:
            total = lax.platform_dependent(
                total, tpu=lax.optimization_barrier, default=lambda total: total
            )
    return total.astype(parts[0].dtype)


def _accumulator(x: Array) -> jnp.dtype:
    return jnp.promote_types(x.dtype, jnp.float32)


def _taps(size: int, dilation: int) -> list[tuple[int, int]]:
    reach = range(0, size * dilation, dilation)
    return [(top, left) for top in reach for left in reach]


def _pad(parts: list[Array], size: int, dilation: int) -> Array:
    """Joins the parts along their channels and puts zeros around them."""
    reach = dilation * (size // 2)
    border = (reach, reach)

    def join(*parts: Array) -> Array:
        return jnp.pad(jnp.concatenate(parts, axis=-1), ((0, 0), border, border, (0, 0)))

    def write(*parts: Array) -> Array:
        # XLA compiles concatenate and pad for CPUs as a branch per element, which also slows
        # down what it fuses into them; writing the parts into zeros is plain vector code.
        batch, height, width, _ = parts[0].shape
        channels = sum(part.shape[-1] for part in parts)
        shape = (batch, height + 2 * reach, width + 2 * reach, channels)
        padded, channel = jnp.zeros(shape, parts[0].dtype), 0
        for part in parts:
            padded = lax.dynamic_update_slice(padded, part, (0, reach, reach, channel))
            channel += part.shape[-1]
        return padded

    return lax.platform_dependent(*parts, cpu=write, default=join)


def _forward(
    parts: list[Array], kernel: Array, dilation: int
) -> tuple[Array, tuple[list[Array], Array]]:
    return _depthwise(parts, kernel, dilation), (parts, kernel)


def _backward(
    dilation: int, saved: tuple[list[Array], Array], grad: Array
) -> tuple[list[Array], Array]:
    parts, kernel = saved
    # The transpose of a correlation is the correlation with the kernel turned by half a circle.
    # Apart, or XLA for TPUs sums the gradients of all that read x in one loop of hundreds of taps.
    x_grad = lax.optimization_barrier(depthwise_conv(grad, kernel[::-1, ::-1], dilation))
    ends = itertools.accumulate(part.shape[-1] for part in parts)
    size = kernel.shape[0]
    padded = _pad(parts, size, dilation)
    kernel_grad = lax.platform_dependent(
        padded,
        grad,
        cpu=functools.partial(_kernel_grad_by_pixel, size=size, dilation=dilation),
        tpu=functools.partial(_kernel_grad_by_conv, size=size, dilation=dilation),
        default=functools.partial(_kernel_grad_by_tap, size=size, dilation=dilation),
    )
    return jnp.split(x_grad, list(ends)[:-1], axis=-1), kernel_grad.astype(kernel.dtype)


def _kernel_grad_by_tap(padded: Array, grad: Array, *, size: int, dilation: int) -> Array:
    """One fused reduction a tap: no temporaries, for hardware that reduces in parallel."""
    _, height, width, channels = grad.shape
    accumulator = _accumulator(grad)
    wide = grad.astype(accumulator)
    taps = [
        jnp.sum(
            padded[:, top : top + height, left : left + width].astype(accumulator) * wide,
            axis=(0, 1, 2),
        )
        for top, left in _taps(size, dilation)
    ]
    return jnp.stack(taps).reshape(size, size, channels)


def _kernel_grad_by_conv(padded: Array, grad: Array, *, size: int, dilation: int) -> Array:
    """A convolution over pixels in which the gradient is the kernel and the taps are the places."""
    channels = grad.shape[-1]
    out = lax.conv_general_dilated(
        padded,
        grad,
        window_strides=(dilation, dilation),
        padding="VALID",
        dimension_numbers=lax.ConvDimensionNumbers((3, 0, 1, 2), (3, 0, 1, 2), (0, 3, 1, 2)),
        batch_group_count=channels,
        precision=precision_of(padded),
        preferred_element_type=_accumulator(grad),
    )
    return out[0]


def _kernel_grad_by_pixel(padded: Array, grad: Array, *, size: int, dilation: int) -> Array:
    """One pass over the pixels that adds window times gradient; the sums stay in a CPU's cache."""
    batch, height, width, channels = grad.shape
    accumulator = _accumulator(grad)
    reach = dilation * (size - 1) + 1

    def add_row(total: Array, row: Array) -> tuple[Array, None]:
        picture, top = row // height, row % height
        strip_shape = (1, reach, padded.shape[2], channels)
        strip = lax.dynamic_slice(padded, (picture, top, 0, 0), strip_shape)[0]
        strip = strip[::dilation].astype(accumulator)
        weights = lax.dynamic_slice(grad, (picture, top, 0, 0), (1, 1, width, channels))
        weights = weights[0, 0].astype(accumulator)

        def add_pixel(left: Array, total: Array) -> Array:
            window = lax.dynamic_slice(strip, (0, left, 0), (size, reach, channels))
            return total + window[:, ::dilation] * weights[left]

        return lax.fori_loop(0, width, add_pixel, total), None

    zeros = jnp.zeros((size, size, channels), accumulator)
    return lax.scan(add_row, zeros, jnp.arange(batch * height))[0]


_depthwise.defvjp(_forward, _backward)
