"""An image in a larger array is restored as if it were alone, whatever stands beside it."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from recipe import load_small, relative_error

from drsformer_jax.nn.functional import apply
from drsformer_jax.ops.depthwise import average_pool
from drsformer_jax.ops.masking import size_mask, zero_outside
from drsformer_jax.weights.convert import params_from_torch

pytestmark = pytest.mark.usefixtures("one_platform")

BUCKET, SIZE = (40, 48), (24, 32)
run = jax.jit(apply, static_argnums=0)


def assert_bucket_equals_exact_shape(name: str, dtype: str, bound: float) -> None:
    golden = load_small(name)
    config = golden.config(dtype)
    params = params_from_torch(golden.weights, config)
    height, width = SIZE
    x = np.random.default_rng(0).random((1, *BUCKET, 3)).astype(dtype)
    alone = run(config, params, x[:, :height, :width])
    held = run(config, params, x, np.array([SIZE], np.int32))
    assert held.shape == x.shape
    assert relative_error(held[:, :height, :width], alone) < bound


@pytest.mark.parametrize("name", ["drsformer", "restormer", "bias", "dfn"])
def test_masked_bucket_equals_exact_shape_in_float64(name):
    with jax.enable_x64(True):
        assert_bucket_equals_exact_shape(name, "float64", 1e-12)


def test_masked_bucket_equals_exact_shape_in_float32_with_dense_attention():
    assert_bucket_equals_exact_shape("restormer", "float32", 1e-5)


def test_neither_infinities_nor_nans_beside_an_image_reach_it():
    golden = load_small("fn")
    config = dataclasses.replace(golden.config(), attention="dense")
    params = params_from_torch(
        {k: w for k, w in golden.weights.items() if "attn.attn" not in k}, config
    )
    x = np.random.default_rng(0).random((2, 24, 24, 3)).astype(np.float32)
    size = np.array([[16, 8], [24, 16]], np.int32)
    clean = np.asarray(run(config, params, x, size))
    x[0, 16:], x[1, :, 16:] = np.inf, np.nan
    spoilt = np.asarray(run(config, params, x, size))
    np.testing.assert_array_equal(spoilt[0, :16, :8], clean[0, :16, :8])
    np.testing.assert_array_equal(spoilt[1, :, :16], clean[1, :, :16])


def test_valid_pixels_are_the_upper_left_corner_of_each_image():
    mask = np.asarray(size_mask(jnp.array([[2, 3], [4, 1]]), 4, 5))
    assert mask.shape == (2, 4, 5, 1)
    expected = np.zeros_like(mask)
    expected[0, :2, :3] = expected[1, :4, :1] = True
    np.testing.assert_array_equal(mask, expected)


def test_without_a_mask_nothing_changes():
    x = jnp.ones((1, 2, 2, 1))
    assert zero_outside(x, None) is x


def test_pool_counts_only_pixels_of_the_image():
    x = jax.random.normal(jax.random.key(0), (1, 6, 7, 2))
    mask = size_mask(jnp.array([[4, 5]]), 6, 7)
    np.testing.assert_allclose(
        average_pool(x, valid_mask=mask)[:, :4, :5], average_pool(x[:, :4, :5]), rtol=1e-6
    )
