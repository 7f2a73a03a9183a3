"""Depthwise and grouped convolutions, with a backward pass written by hand.

A k x k convolution is a sum over its k * k taps: shifted images, each times a row of the kernel.
Written so, depthwise convolutions are one pass over memory on every backend, where
`lax.conv_general_dilated` with groups takes up to a hundred times as long, and its derivative up to
thousands of times (docs/performance.md). The backward pass by hand matters as much:
differentiating the shifts would keep a copy of the image per tap.
"""

from __future__ import annotations

import functools
import importlib
import itertools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from drsformer_jax.ops import implementations
from drsformer_jax.ops.masking import zero_outside
from drsformer_jax.ops.strips import crop, materialized
from drsformer_jax.types import Array, Bool, Dimension, Float

CONVOLVED = "convolved"
"""Name of the results of these convolutions in policies of `jax.checkpoint`."""


def depthwise_conv(
    x: Float[Array, "b h w c"],
    kernel: Float[Array, "k k c"],
    dilation: int = 1,
    implementation: str | None = None,
) -> Float[Array, "b h w c"]:
    """Depthwise convolution, stride 1, zeros beyond the border: each channel has its own kernel.

    Sums are in float32 or wider; the result has the dtype of `x`.

    Args:
        x: images.
        kernel: one kernel a channel, k odd; applied as a correlation, as convolutions are in deep
            learning.
        dilation: distance of neighboring taps, in pixels.
        implementation: `by_pixel` and `by_tap` differ in how the kernel's gradient is summed (in
            one pass over the pixels, or in one reduction a tap) and in how `x` is padded (by
            writing into zeros, or by `jnp.pad`); `mosaic` and `triton` are kernels for TPUs and
            GPUs. See `implementations.run` for others.
    """
    return checkpoint_name(_depthwise([x], kernel, dilation, 1, implementation), CONVOLVED)


def grouped_conv(
    parts: Sequence[Float[Array, "b h w _"]],
    kernel: Float[Array, "k k 2 c"],
    implementation: str | None = None,
) -> Float[Array, "b h w c"]:
    """Grouped convolution with two input channels and one output channel a group.

    Equal to a convolution of 2c channels with c groups, stride 1 and zeros beyond the border, where
    group i reads channel i of the parts with `kernel[:, :, 0, i]` and channel c + i with
    `kernel[:, :, 1, i]`. Were they neighbors, they would need strided reads.

    Args:
        parts: images whose 2c channels, one after another, are the first ones of all groups, then
            the second ones.
        kernel: k odd.
        implementation: as in `depthwise_conv`.
    """
    kernel = kernel.reshape(*kernel.shape[:2], -1)
    return checkpoint_name(_depthwise(list(parts), kernel, 1, 2, implementation), CONVOLVED)


def average_pool(
    x: Float[Array, "b h w c"],
    size: int = 3,
    valid_mask: Bool[Array, "b h w 1"] | None = None,
    implementation: str | None = None,
) -> Float[Array, "b h w c"]:
    """Mean over a size x size window, stride 1, that counts only pixels of the image.

    Args:
        x: images.
        size: side of the window, odd.
        valid_mask: True at the pixels of the images; default: everywhere. What the result has at
            other pixels means nothing.
        implementation: as in `depthwise_conv`.
    """
    ones = jnp.ones((size, size, x.shape[-1]), _accumulator(x))
    counted = jnp.ones_like(x[:1, :, :, :1], ones.dtype) if valid_mask is None else valid_mask
    count = _depthwise([counted.astype(ones.dtype)], ones[..., :1], 1, 1, None)
    total = depthwise_conv(zero_outside(x, valid_mask), ones, 1, implementation)
    return (total / jnp.maximum(count, 1)).astype(x.dtype)


_FUSED_TAPS = 28
"""XLA for TPUs fuses so many taps. For more (7x7) it first writes shifted copies of the image."""
_PARTIAL_SUMS = {"written": lax.optimization_barrier, "fused": lambda total: total}


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def window_conv(
    x: Float[Array, "h w c"],
    kernel: Float[Array, "k k c"],
    any_valid: Bool[Array, ""],
    dilation: int = 1,
    margin: int = 0,
) -> Float[Array, "_ _ c"]:
    """`depthwise_conv` of a window without padding: the result is smaller by the kernel's halo.

    Args:
        x: the window.
        kernel: one kernel a channel, k odd.
        any_valid: whether the window has a valid pixel, see `strips.materialized`.
        dilation: distance of neighboring taps, in pixels.
        margin: rows and columns on each side of the window that are cut off first.
    """
    border = margin + dilation * (kernel.shape[0] // 2)
    shape = (1, x.shape[0] - 2 * border, x.shape[1] - 2 * border, x.shape[2])
    return _correlate(crop(x, margin)[None], kernel, dilation, shape)[0]


def _window_forward(
    x: Array, kernel: Array, any_valid: Array, dilation: int, margin: int
) -> tuple[Array, tuple[Array, Array, Array]]:
    return window_conv(x, kernel, any_valid, dilation, margin), (x, kernel, any_valid)


def _window_backward(
    dilation: int, margin: int, saved: tuple[Array, Array, Array], grad: Array
) -> tuple[Array, Array, None]:
    x, kernel, any_valid = saved
    size = kernel.shape[0]
    border = (2 * dilation * (size // 2) + margin,) * 2
    padded = materialized(lambda g: jnp.pad(g, (border, border, (0, 0))), any_valid, grad)
    x_grad = _correlate(padded[None], kernel[::-1, ::-1], dilation, (1, *x.shape))[0]
    read = crop(x, margin)[None]
    kernel_grad = _kernel_grad_by_pixel(read, grad[None], size=size, dilation=dilation)
    return x_grad, kernel_grad.astype(kernel.dtype), None


window_conv.defvjp(_window_forward, _window_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _depthwise(
    parts: list[Array], kernel: Array, dilation: int, terms: int, implementation: str | None
) -> Array:
    """`depthwise_conv` of the parts joined along their channels.

    Args:
        parts: images.
        kernel: one kernel a channel.
        dilation: distance of neighboring taps, in pixels.
        terms: 2 adds the second half of the result's channels to the first one.
        implementation: as in `depthwise_conv`.
    """

    def plain(parts: list[Array], kernel: Array) -> Array:
        shape = (*parts[0].shape[:3], kernel.shape[-1])
        padded = _pad(parts, kernel.shape[0], dilation, implementation)
        return _added(_correlate(padded, kernel, dilation, shape), terms)

    def by_kernel(kernels: Any, parts: list[Array], kernel: Array) -> Array:
        return kernels.correlate(jnp.concatenate(parts, axis=-1), kernel, dilation, terms)

    options = (len(kernel), dilation, terms, implementation)
    return _chosen(plain, by_kernel, parts, *options)(parts, kernel)


def _added(x: Array, terms: int) -> Array:
    return functools.reduce(operator.add, jnp.split(x, terms, axis=-1))


_KERNELS = ("mosaic", "triton")
"""Modules with kernels. Importing Pallas takes a third of a second, so they are when needed."""


def _chosen(
    plain: Callable[..., Array],
    by_kernel: Callable[..., Array],
    parts: Sequence[Array],
    size: int,
    dilation: int,
    terms: int,
    implementation: str | None,
) -> Callable[..., Array]:
    """`plain`, or `by_kernel` of one of `_KERNELS`: of a named one, or where it is supported.

    Args:
        plain: a function of arrays.
        by_kernel: the same after a first argument, a module with kernels.
        parts: as of `_depthwise`.
        size: k.
        dilation: as of `_depthwise`.
        terms: as of `_depthwise`.
        implementation: as of `_depthwise`.
    """
    if implementation in _KERNELS:
        return functools.partial(by_kernel, _kernels(implementation))
    if implementation != implementations.PALLAS:
        return plain
    channels = sum(part.shape[-1] for part in parts)
    shape = (*parts[0].shape[:3], channels)
    by_name = {"plain": plain}
    for name in _KERNELS:
        kernels = _kernels(name)
        usable = kernels.supports(shape, parts[0].dtype, size, dilation, terms)
        by_name[name] = functools.partial(by_kernel, kernels) if usable else plain
    return functools.partial(implementations.run, "depthwise_kernels", by_name, None)


def _kernels(name: str) -> Any:
    return importlib.import_module(f"drsformer_jax.ops.{name}")


# The steps are compiled functions since those are traced once a shape; XLA inlines them.
@functools.partial(jax.jit, static_argnums=(2, 3))
def _correlate(padded: Array, kernel: Array, dilation: int, shape: tuple[Dimension, ...]) -> Array:
    """The sum of shifted images."""
    # By `lax`, since thousands of taps in a network are traced in half of the time that indices of
    # arrays and their operators take.
    accumulator = _accumulator(padded)
    size, _, channels = kernel.shape
    total = jnp.zeros(shape, accumulator)
    for count, (top, left) in enumerate(_taps(size, dilation), 1):
        end = (padded.shape[0], top + shape[1], left + shape[2], padded.shape[3])
        shifted = lax.slice(padded, (0, top, left, 0), end)
        shifted = lax.convert_element_type(shifted, accumulator)
        y, x = top // dilation, left // dilation
        weight = lax.squeeze(lax.slice(kernel, (y, x, 0), (y + 1, x + 1, channels)), (0, 1))
        weight = lax.convert_element_type(weight, accumulator)
        weight = lax.broadcast_in_dim(weight, shape, (3,))
        total = lax.add(total, lax.mul(shifted, weight))
        if count % _FUSED_TAPS == 0 and count < size * size:
            total = implementations.run("many_taps", _PARTIAL_SUMS, None, total)
    return total.astype(padded.dtype)


def _accumulator(x: Array) -> jnp.dtype:
    return jnp.promote_types(x.dtype, jnp.float32)


def _taps(size: int, dilation: int) -> list[tuple[int, int]]:
    offsets = range(0, size * dilation, dilation)
    return [(top, left) for top in offsets for left in offsets]


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _pad(parts: list[Array], size: int, dilation: int, implementation: str | None = None) -> Array:
    """Joins the parts along their channels and puts zeros around them."""
    halo = dilation * (size // 2)
    border = (halo, halo)

    def join(*parts: Array) -> Array:
        joined = jnp.pad(jnp.concatenate(parts, axis=-1), ((0, 0), border, border, (0, 0)))
        # Else XLA for TPUs and GPUs decides for every tap again what is beyond the border.
        return lax.optimization_barrier(joined)

    def write(*parts: Array) -> Array:
        # XLA compiles concatenate and pad for CPUs as a branch per element, which also slows
        # down what it fuses into them; writing the parts into zeros is plain vector code.
        batch, height, width, _ = parts[0].shape
        channels = sum(part.shape[-1] for part in parts)
        shape = (batch, height + 2 * halo, width + 2 * halo, channels)
        padded, channel = jnp.zeros(shape, parts[0].dtype), 0
        for part in parts:
            padded = lax.dynamic_update_slice(padded, part, (0, halo, halo, channel))
            channel += part.shape[-1]
        return padded

    borders = {"by_pixel": write, "by_tap": join}
    return implementations.run("depthwise_conv", borders, implementation, *parts)


def _forward(
    parts: list[Array], kernel: Array, *options: Any
) -> tuple[Array, tuple[list[Array], Array]]:
    return _depthwise(parts, kernel, *options), (parts, kernel)


def _backward(
    dilation: int,
    terms: int,
    implementation: str | None,
    saved: tuple[list[Array], Array],
    grad: Array,
) -> tuple[list[Array], Array]:
    parts, kernel = saved
    size = kernel.shape[0]

    def plain_x_grad(grad: Array, kernel: Array) -> Array:
        grad = jnp.concatenate([grad] * terms, axis=-1)
        padded = _pad([grad], size, dilation, implementation)
        return _correlate(padded, kernel, dilation, grad.shape)

    def plain_kernel_grad(grad: Array, *parts: Array) -> Array:
        grad = jnp.concatenate([grad] * terms, axis=-1)
        padded = _pad(list(parts), size, dilation, implementation)
        by_name = {
            name: functools.partial(kernel_grad, size=size, dilation=dilation)
            for name, kernel_grad in _KERNEL_GRADS.items()
        }
        return implementations.run("depthwise_conv", by_name, implementation, padded, grad)

    def x_grad_by_kernel(kernels: Any, grad: Array, kernel: Array) -> Array:
        return kernels.correlate(grad, kernel, dilation)

    def kernel_grad_by_kernel(kernels: Any, grad: Array, *parts: Array) -> Array:
        return kernels.kernel_grad(jnp.concatenate(parts, axis=-1), grad, size, dilation)

    # The transpose of a correlation is the correlation with the kernel turned by half a circle.
    # Apart, or XLA for TPUs sums the gradients of all that read x in one loop of hundreds of taps.
    options = (size, dilation, terms, implementation)
    x_grad = _chosen(plain_x_grad, x_grad_by_kernel, parts, *options)
    x_grad = lax.optimization_barrier(x_grad(grad, kernel[::-1, ::-1]))
    kernel_grad = _chosen(plain_kernel_grad, kernel_grad_by_kernel, parts, *options)(grad, *parts)
    ends = itertools.accumulate(part.shape[-1] for part in parts)
    return jnp.split(x_grad, list(ends)[:-1], axis=-1), kernel_grad.astype(kernel.dtype)


@functools.partial(jax.jit, static_argnames=("size", "dilation"))
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


@functools.partial(jax.jit, static_argnames=("size", "dilation"))
def _kernel_grad_by_pixel(padded: Array, grad: Array, *, size: int, dilation: int) -> Array:
    """One pass over the pixels that adds window times gradient; the sums stay in a CPU's cache."""
    batch, height, width, channels = grad.shape
    accumulator = _accumulator(grad)
    span = dilation * (size - 1) + 1

    def add_row(total: Array, row: Array) -> tuple[Array, None]:
        image, top = row // height, row % height
        strip_shape = (1, span, padded.shape[2], channels)
        strip = lax.dynamic_slice(padded, (image, top, 0, 0), strip_shape)[0]
        strip = strip[::dilation].astype(accumulator)
        weights = lax.dynamic_slice(grad, (image, top, 0, 0), (1, 1, width, channels))
        weights = weights[0, 0].astype(accumulator)

        def add_pixel(left: Array, total: Array) -> Array:
            window = lax.dynamic_slice(strip, (0, left, 0), (size, span, channels))
            return total + window[:, ::dilation] * weights[left]

        return lax.fori_loop(0, width, add_pixel, total), None

    zeros = jnp.zeros((size, size, channels), accumulator)
    return lax.scan(add_row, zeros, jnp.arange(batch * height))[0]


_KERNEL_GRADS = {
    "by_pixel": _kernel_grad_by_pixel,
    "by_tap": _kernel_grad_by_tap,
}
_depthwise.defvjp(_forward, _backward)
