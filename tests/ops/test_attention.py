"""Scores of channels, and the softmaxes of the largest of them, against their definitions."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from plain import STEPS, assert_close, normal, vjp, wide

from drsformer_jax.ops.attention import channel_scores, channel_sums, sparse_softmax

BF16_STEP = STEPS["bfloat16"]


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


@pytest.mark.usefixtures("x64")
def test_sums_of_parts_of_an_image_are_added():
    query, key = normal(1, 2, 9, 3, 4), normal(2, 2, 9, 3, 5)
    parts = [channel_sums(query[:, part], key[:, part]) for part in (slice(0, 4), slice(4, 9))]
    for added, whole in zip(
        map(sum, zip(*parts, strict=True)), channel_sums(query, key), strict=True
    ):
        assert_close(added, whole, 1e-14)


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
