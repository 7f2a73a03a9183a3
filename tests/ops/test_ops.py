"""Operations against plain references: `lax`'s grouped convolution, and definitions in numpy."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from plain import STEPS

from drsformer_jax.ops import depthwise
from drsformer_jax.ops.attention import channel_scores, channel_sums, sparse_softmax
from drsformer_jax.ops.depthwise import average_pool, depthwise_conv, grouped_conv
from drsformer_jax.ops.linear import linear
from drsformer_jax.ops.pixels import pixel_shuffle, pixel_unshuffle

BF16_STEP = STEPS["bfloat16"]


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


@pytest.fixture(params=["cpu", "tpu", "default"])
def platform(request, monkeypatch):
    """Runs a test with the programs for CPUs, for TPUs, and for other hardware."""

    def choose(*arrays, **programs):
        return programs.get(request.param, programs["default"])(*arrays)

    def forget():
        # The programs of another platform, for arrays of the same shapes.
        depthwise._pad.clear_cache()
        depthwise._correlate.clear_cache()

    forget()
    monkeypatch.setattr(depthwise.lax, "platform_dependent", choose)
    yield
    forget()


def normal(seed, *shape, dtype="float64"):
    return jnp.asarray(np.random.default_rng([seed, *shape]).standard_normal(shape), dtype)


def wide(x):
    return np.asarray(x).astype(np.float64)


def assert_close(found, expected, tolerance):
    """Values differ by `tolerance` at most, relative to the largest one."""
    found, expected = wide(found), wide(expected)
    assert found.shape == expected.shape
    assert np.max(np.abs(found - expected)) <= tolerance * max(np.max(np.abs(expected)), 1e-30)


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


def vjp(function, arguments, cotangent):
    """The value at `arguments`, and the gradients that `cotangent` gives."""
    # Under jit an operation's gradient is one program: a fifth of the time of its single steps.
    value, gradients = jax.jit(
        lambda arguments, cotangent: (
            function(*arguments),
            jax.vjp(function, *arguments)[1](cotangent),
        )
    )(arguments, cotangent)
    return value, gradients


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
        x, kernel, cotangent = (jnp.asarray(wide(a)) for a in rounded_arguments(dtype))
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
        exact = jax.tree.map(lambda a: jnp.asarray(wide(a)), (first, second, kernel))
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


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("shape", [(4,), (3, 4), (2, 5, 3, 4)])
@pytest.mark.parametrize("out", [3, 6])
def test_linear_and_its_gradients_equal_a_matrix_product(shape, out):
    arguments, cotangent = (normal(1, *shape), normal(2, 4, out)), normal(3, *shape[:-1], out)
    found = vjp(linear, arguments, cotangent)
    expected = vjp(lambda x, kernel: x @ kernel, arguments, cotangent)
    jax.tree.map(lambda f, e: assert_close(f, e, 1e-14), found, expected)


@pytest.mark.parametrize("out", [3, 6])
def test_linear_keeps_types_and_sums_the_kernel_gradient_in_float32(out):
    x, cotangent = normal(1, 9, 999, 4, dtype="bfloat16"), normal(2, 9, 999, out, dtype="bfloat16")
    kernel = normal(3, 4, out, dtype="float32")
    y, (x_grad, kernel_grad) = vjp(linear, (x, kernel), cotangent)
    assert (y.dtype, x_grad.dtype, kernel_grad.dtype) == ("bfloat16", "bfloat16", "float32")
    assert_close(y, wide(x) @ wide(kernel), 2 * BF16_STEP)
    assert_close(x_grad, wide(cotangent) @ wide(kernel).T, 2 * BF16_STEP)
    # Sums of n float32 terms in whatever order are off by sqrt(n) roundings; bfloat16 by far more.
    rounding = np.sqrt(9 * 999) * 2**-24
    expected = np.einsum("bpc,bpo->co", wide(x), wide(cotangent))
    assert_close(kernel_grad, expected, rounding)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("factor", [2, 3])
def test_pixel_unshuffle_orders_channels_by_channel_row_column(dtype, factor):
    x = jnp.arange(2 * 2 * 3 * 2 * factor**2, dtype=dtype).reshape(2, 2 * factor, 3 * factor, 2)
    y = pixel_unshuffle(x, factor)
    assert y.dtype == dtype
    assert y.shape == (2, 2, 3, 2 * factor**2)
    for channel, dy, dx in itertools.product(range(2), range(factor), range(factor)):
        place = (channel * factor + dy) * factor + dx
        np.testing.assert_array_equal(y[..., place], x[:, dy::factor, dx::factor, channel])


@pytest.mark.parametrize("factor", [2, 3])
def test_pixel_shuffle_undoes_pixel_unshuffle_and_is_its_gradient(factor):
    x = normal(1, 2, factor, 2 * factor, 3, dtype="float32")
    small = normal(2, 2, 1, 2, 3 * factor**2, dtype="float32")
    unshuffle = functools.partial(pixel_unshuffle, factor=factor)
    y, (gradient,) = vjp(unshuffle, (x,), small)
    np.testing.assert_array_equal(pixel_shuffle(y, factor), x)
    np.testing.assert_array_equal(pixel_shuffle(small, factor), gradient)
    np.testing.assert_array_equal(unshuffle(pixel_shuffle(small, factor)), small)


def scores_of(query, key, temperature):
    return channel_scores(channel_sums(query, key), temperature)


def reference_scores(query, key, temperature):
    """Both normalized over the pixels first, as the paper writes it."""
    query, key = (x / jnp.sqrt(jnp.sum(x * x, axis=1, keepdims=True)) for x in (query, key))
    return jnp.einsum("bpmd,bpme->bmde", query, key) * temperature[:, None, None]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("pixels", [1, 35])
def test_channel_scores_and_their_gradients_equal_cosines(pixels):
    arguments = (normal(1, 2, pixels, 3, 4), normal(2, 2, pixels, 3, 5), normal(3, 3))
    cotangent = normal(4, 2, 3, 4, 5)
    found = vjp(scores_of, arguments, cotangent)
    expected = vjp(reference_scores, arguments, cotangent)
    np.testing.assert_allclose(found[0], expected[0], rtol=0, atol=1e-14)
    # On one pixel cosines are +-1 and the gradients of query and key are 0.
    jax.tree.map(lambda f, e: np.testing.assert_allclose(f, e, atol=1e-12), found[1], expected[1])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_channel_scores_are_summed_in_float32(dtype):
    query, key = normal(1, 1, 999, 2, 4, dtype=dtype), normal(2, 1, 999, 2, 4, dtype=dtype)
    temperature = normal(3, 2, dtype="float32")
    scores = scores_of(query, key, temperature)
    assert scores.dtype == jnp.float32
    expected = reference_scores(*(wide(x) for x in (query, key, temperature)))
    assert_close(scores, expected, 1e-6)


@pytest.mark.usefixtures("x64")
def test_channel_scores_divide_by_norms_of_at_least_1e_12():
    query, key = normal(1, 1, 6, 1, 3), normal(2, 1, 6, 1, 3)
    norms = jnp.linalg.norm(query, axis=1, keepdims=True)
    cosines = reference_scores(query, key, jnp.ones(1))
    for norm in (1e-3, 1e-11, 1e-13, 1e-15):
        scores = scores_of(query * (norm / norms), key, jnp.ones(1))
        assert_close(scores, cosines * min(1, norm / 1e-12), 1e-13)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_all_zero_channels_have_zero_scores_and_finite_gradients(dtype):
    query = normal(1, 1, 6, 1, 3, dtype=dtype).at[..., 0].set(0)
    key = normal(2, 1, 6, 1, 3, dtype=dtype).at[..., 1].set(0)
    arguments = (query, key, jnp.ones(1))
    scores, gradients = vjp(scores_of, arguments, jnp.ones((1, 1, 3, 3)))
    np.testing.assert_array_equal(scores[0, 0, 0], 0)
    np.testing.assert_array_equal(scores[0, 0, :, 1], 0)
    assert np.all(scores[0, 0, 1:, ::2] != 0)
    assert all(np.all(np.isfinite(wide(gradient))) for gradient in gradients)
    # The floor under the norm is a constant, so the gradient of what stands on it is 1e12 steep.
    other = wide(key)[0, :, 0, ::2]
    expected = 1e12 * (other / np.linalg.norm(other, axis=0)).sum(axis=1)
    assert_close(gradients[0][0, :, 0, 0], expected, 1e-6 if dtype == "float32" else BF16_STEP)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_black_image_has_zero_scores_and_zero_gradients(dtype):
    black = jnp.zeros((1, 6, 2, 3), dtype)
    arguments = (black, black, jnp.ones(2))
    result = vjp(scores_of, arguments, jnp.ones((1, 2, 3, 3)))
    for value in jax.tree.leaves(result):
        np.testing.assert_array_equal(wide(value), 0)


def reference_sparse_softmax(scores, top_k, weights):
    """Every softmax by itself, with minus infinity where a score is not kept."""
    total = 0
    for n, count in enumerate(top_k):
        threshold = jnp.sort(lax.stop_gradient(scores), axis=-1)[..., -count, None]
        masked = jnp.where(scores >= threshold, scores, -jnp.inf)
        total += weights[n] * jax.nn.softmax(masked, axis=-1)
    return total


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("top_k", [(1,), (6,), (3, 4, 5), (2, 2)])
def test_sparse_softmax_and_its_gradients_equal_masked_softmaxes(top_k):
    arguments = (normal(1, 2, 3, 4, 6), normal(2, len(top_k)))
    cotangent = normal(3, 2, 3, 4, 6)
    found = vjp(lambda s, w: sparse_softmax(s, top_k, w), arguments, cotangent)
    expected = vjp(lambda s, w: reference_sparse_softmax(s, top_k, w), arguments, cotangent)
    jax.tree.map(lambda f, e: np.testing.assert_allclose(f, e, atol=1e-14), found, expected)


def test_sparse_softmax_keeps_exactly_the_largest_and_each_row_sums_to_the_weights():
    scores = normal(1, 2, 3, 8, 8, dtype="float32")
    order = np.argsort(-np.asarray(scores), axis=-1)
    for count in (1, 4, 8):
        attention = np.asarray(sparse_softmax(scores, (count,), jnp.array([0.7])))
        ranked = np.take_along_axis(attention, order, axis=-1)
        assert np.all(ranked[..., :count] > 0)
        assert np.all(ranked[..., count:] == 0)
        np.testing.assert_allclose(attention.sum(axis=-1), 0.7, rtol=1e-6)
    attention = sparse_softmax(scores, (4, 5, 6), jnp.array([0.7, -0.2, 0.4]))
    np.testing.assert_allclose(attention.sum(axis=-1), 0.9, rtol=1e-5)


def test_sparse_softmax_keeps_every_score_that_ties_at_the_threshold():
    scores = jnp.array([[[[1.0, 3.0, 1.0, 0.0, 1.0]]]])
    attention = np.asarray(sparse_softmax(scores, (2,), jnp.ones(1)))[0, 0, 0]
    exponentials = np.exp([1.0, 3.0, 1.0, -np.inf, 1.0])
    np.testing.assert_allclose(attention, exponentials / exponentials.sum(), rtol=1e-6)
    equal = sparse_softmax(jnp.zeros((1, 1, 2, 4)), (1, 3), jnp.array([0.5, 0.3]))
    np.testing.assert_allclose(equal, 0.8 / 4, rtol=1e-6)


def test_sparse_softmax_and_its_gradients_are_finite_on_far_apart_scores():
    scores = jnp.array([[[[-1e4, 0.0, 1e4, 9e3], [-1e4, -1e4, -1e4, -2e4]]]])
    arguments = (scores, jnp.ones(2))
    found = vjp(lambda s, w: sparse_softmax(s, (2, 3), w), arguments, jnp.ones_like(scores))
    assert all(np.all(np.isfinite(value)) for value in jax.tree.leaves(found))
    third = 2 / 3
    expected = [[[[0, 0, 2, 0], [third, third, third, 0]]]]
    np.testing.assert_allclose(found[0], expected, rtol=1e-6)


@pytest.mark.usefixtures("x64")
def test_sums_of_parts_of_an_image_are_added():
    query, key = normal(1, 2, 9, 3, 4), normal(2, 2, 9, 3, 5)
    parts = [channel_sums(query[:, part], key[:, part]) for part in (slice(0, 4), slice(4, 9))]
    for added, whole in zip(
        map(sum, zip(*parts, strict=True)), channel_sums(query, key), strict=True
    ):
        assert_close(added, whole, 1e-14)
