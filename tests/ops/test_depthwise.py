"""Convolutions against `lax`'s grouped convolution, and pooling against its definition."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from plain import STEPS, assert_close, normal, vjp, wide

from drsformer_jax.ops import depthwise
from drsformer_jax.ops.depthwise import average_pool, depthwise_conv, grouped_conv
from drsformer_jax.ops.implementations import traced_for

BF16_STEP = STEPS["bfloat16"]


@pytest.fixture(params=["cpu", "tpu", "another"])
def platform(request):
    """Runs a test with the programs for CPUs, for TPUs, and for other hardware."""
    with traced_for(request.param):
        yield


def lax_conv(x, kernel, groups, dilation=1):
    """The official layer: `kernel` is k k i o, and output channel n reads the n-th i channels."""
    halo = dilation * (kernel.shape[0] // 2)
    return lax.conv_general_dilated(
        x,
        kernel,
        (1, 1),
        [(halo, halo)] * 2,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
        precision="highest",
    )


def reference_depthwise(x, kernel, dilation=1):
    return lax_conv(x, kernel[:, :, None], x.shape[-1], dilation)


KERNELS = [(size, 1) for size in (1, 3, 5, 7)] + [(size, 2) for size in (3, 5, 7)]
SIZES = [(5, 7), (1, 1), (1, 9)]
DEPTHWISE = [(KERNELS[n], size) for n in range(len(KERNELS)) for size in SIZES[: 1 + n % 3]]


def depthwise_arguments(side, size):
    return (normal(1, 2, *size, 3), normal(3, side, side, 3)), normal(2, 2, *size, 3)


@functools.cache
def expected_depthwise(kernel, size):
    """The same for every platform's program."""
    side, dilation = kernel
    return vjp(lambda x, k: reference_depthwise(x, k, dilation), *depthwise_arguments(side, size))


@pytest.mark.usefixtures("x64", "platform")
@pytest.mark.parametrize(("kernel", "size"), DEPTHWISE)
def test_depthwise_conv_and_its_gradients_equal_grouped_convolution(kernel, size):
    side, dilation = kernel
    found = vjp(lambda x, k: depthwise_conv(x, k, dilation), *depthwise_arguments(side, size))
    expected = expected_depthwise(kernel, size)
    jax.tree.map(lambda f, e: assert_close(f, e, 1e-13), found, expected)


def rounded_arguments(dtype):
    x, cotangent = normal(1, 2, 13, 17, 5, dtype=dtype), normal(2, 2, 13, 17, 5, dtype=dtype)
    return x, normal(3, 7, 7, 5, dtype="float32"), cotangent


@functools.cache
def exact_depthwise(dtype):
    """Of the same rounded arguments, in float64."""
    with jax.enable_x64(True):
        x, kernel, cotangent = map(wide, rounded_arguments(dtype))
        return vjp(reference_depthwise, (x, kernel), cotangent)


@pytest.mark.usefixtures("platform")
@pytest.mark.parametrize(("dtype", "x_tolerance"), [("float32", 1e-6), ("bfloat16", BF16_STEP)])
def test_depthwise_conv_sums_in_float32_and_keeps_types(dtype, x_tolerance):
    x, kernel, cotangent = rounded_arguments(dtype)
    y, (x_grad, kernel_grad) = vjp(depthwise_conv, (x, kernel), cotangent)
    assert (y.dtype, x_grad.dtype, kernel_grad.dtype) == (x.dtype, x.dtype, kernel.dtype)
    expected, (x_expected, kernel_expected) = exact_depthwise(dtype)
    assert_close(y, expected, x_tolerance)
    assert_close(x_grad, x_expected, x_tolerance)
    # Sums over all pixels: in bfloat16 they would be far beyond this.
    assert_close(kernel_grad, kernel_expected, 1e-6)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("size", "dilation"), KERNELS)
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 4, 7, 3)])
def test_all_kernel_gradients_are_equal(size, dilation, shape):
    batch, height, width, channels = shape
    border = dilation * (size - 1)
    padded, grad = normal(1, batch, height + border, width + border, channels), normal(2, *shape)
    by_tap, by_pixel = (
        kernel_grad(padded, grad, size=size, dilation=dilation)
        for kernel_grad in (depthwise._kernel_grad_by_tap, depthwise._kernel_grad_by_pixel)
    )
    assert_close(by_pixel, by_tap, 1e-13)


def test_both_paddings_are_equal():
    parts = [normal(n, 2, 3, 5, channels, dtype="float32") for n, channels in enumerate((1, 4, 2))]
    padded = [depthwise._pad(parts, 5, 2, name) for name in ("by_pixel", "by_tap")]
    np.testing.assert_array_equal(*padded)
    joined = np.concatenate(parts, axis=-1)
    np.testing.assert_array_equal(padded[0], np.pad(joined, ((0, 0), (4, 4), (4, 4), (0, 0))))


def grouped_arguments(size, dtype="float64"):
    """Unequal parts: the first channels of groups are 2 + 3, the second 4 + 1."""
    height, width = size
    first = [
        normal(n, 2, height, width, channels, dtype=dtype) for n, channels in enumerate((2, 3))
    ]
    second = [
        normal(n, 2, height, width, channels, dtype=dtype) for n, channels in enumerate((4, 1))
    ]
    return first, second


def reference_grouped(first, second, kernel):
    both = jnp.stack([jnp.concatenate(first, -1), jnp.concatenate(second, -1)], axis=-1)
    return lax_conv(both.reshape(*both.shape[:3], -1), kernel, kernel.shape[-1])


@functools.cache
def expected_grouped(side, size):
    """The same for every platform's program."""
    arguments = (*grouped_arguments(size), normal(3, side, side, 2, 5))
    return vjp(reference_grouped, arguments, normal(4, 2, *size, 5))


@pytest.mark.usefixtures("x64", "platform")
@pytest.mark.parametrize("side", [3, 5])
@pytest.mark.parametrize("size", [(5, 7), (1, 1)])
def test_grouped_conv_and_its_gradients_equal_that_of_lax(side, size):
    arguments = (*grouped_arguments(size), normal(3, side, side, 2, 5))

    def joined(first, second, kernel):
        return grouped_conv([*first, *second], kernel)

    found = vjp(joined, arguments, normal(4, 2, *size, 5))
    expected = expected_grouped(side, size)
    jax.tree.map(lambda f, e: assert_close(f, e, 1e-13), found, expected)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("bfloat16", 2 * BF16_STEP)])
def test_grouped_conv_keeps_the_dtype(dtype, tolerance):
    first, second = grouped_arguments((5, 7), dtype)
    kernel = normal(3, 3, 3, 2, 5, dtype="float32")
    y = grouped_conv([*first, *second], kernel)
    assert y.dtype == dtype
    with jax.enable_x64(True):
        exact = jax.tree.map(wide, (first, second, kernel))
        assert_close(y, reference_grouped(*exact), tolerance)


def reference_pool(x, size):
    """Mean of the pixels of the window that lie inside the image, one pixel after another."""
    _, height, width, _ = x.shape
    halo = size // 2
    rows = [slice(max(0, n - halo), n + halo + 1) for n in range(height)]
    columns = [slice(max(0, n - halo), n + halo + 1) for n in range(width)]
    means = [x[:, r, c].mean(axis=(1, 2)) for r, c in itertools.product(rows, columns)]
    return jnp.stack(means, axis=1).reshape(x.shape)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("size", [3, 5])
@pytest.mark.parametrize("shape", [(2, 3, 4, 2), (1, 1, 1, 3)])
def test_average_pool_counts_only_pixels_inside(size, shape):
    x, cotangent = normal(1, *shape), normal(2, *shape)
    found = vjp(lambda x: average_pool(x, size), (x,), cotangent)
    expected = vjp(lambda x: reference_pool(x, size), (x,), cotangent)
    jax.tree.map(lambda f, e: assert_close(f, e, 1e-13), found, expected)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("bfloat16", BF16_STEP)])
def test_average_pool_sums_in_float32_and_keeps_the_type(dtype, tolerance):
    x = normal(1, 1, 6, 5, 2, dtype=dtype)
    y = average_pool(x)
    assert y.dtype == dtype
    assert_close(y, reference_pool(wide(x), 3), tolerance)
