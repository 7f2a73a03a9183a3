"""An image in a larger array is restored as if it were alone, whatever stands beside it."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from recipe import dfn_with_experts, load_small, relative_error

from drsformer_jax.config import ModelConfig
from drsformer_jax.nn.functional import Params, apply, build
from drsformer_jax.nn.rows import AT_ONCE
from drsformer_jax.ops.depthwise import average_pool
from drsformer_jax.ops.masking import size_mask, zero_outside
from drsformer_jax.weights.convert import params_from_torch

pytestmark = pytest.mark.usefixtures("one_platform")

BUCKET, SIZE = (40, 48), (24, 32)
run = jax.jit(apply, static_argnums=0)


def golden_network(name: str, dtype: str) -> tuple[ModelConfig, Params]:
    if name == "dfn with experts":
        return dfn_with_experts(dtype)
    golden = load_small(name)
    config = golden.config(dtype)
    return config, params_from_torch(golden.weights, config)


def assert_bucket_equals_exact_shape(name: str, dtype: str, bound: float) -> None:
    config, params = golden_network(name, dtype)
    height, width = SIZE
    x = np.random.default_rng(0).random((1, *BUCKET, 3)).astype(dtype)
    alone = run(config, params, x[:, :height, :width])
    held = run(config, params, x, np.array([SIZE], np.int32))
    assert held.shape == x.shape
    assert relative_error(held[:, :height, :width], alone) < bound


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("drsformer", "bias", "dfn")]


@pytest.mark.parametrize("name", ["dfn with experts", "restormer", *SLOW])
def test_masked_bucket_equals_exact_shape_in_float64(name):
    with jax.enable_x64(True):
        assert_bucket_equals_exact_shape(name, "float64", 1e-12)


# Two levels of networks whose seven take seconds to compile: MSFN with biases and without.
@pytest.mark.parametrize("name", ["drsformer", "bias"])
def test_masked_blocks_equal_those_of_the_exact_shape_in_float64(name):
    random = np.random.default_rng(0)
    # In the bucket of the first, which 48 columns make no narrow one, CPUs compute strips.
    # The experts are in encoder_level0.
    small = (20, 24), (12, 16)
    cases = {"encoder_level0": small, "encoder_level2": (BUCKET, SIZE), "decoder_level2": small}
    levels = {"encoder_level0": 0, "encoder_level2": 1, "decoder_level2": 1}

    @jax.jit
    def run(params, features, sizes):
        network = build(config, params)
        return {
            stage: getattr(network, stage)(x, rows=AT_ONCE.with_size(sizes.get(stage)))
            for stage, x in features.items()
        }

    with jax.enable_x64(True):
        config, params = golden_network(name, "float64")
        features = {
            stage: random.standard_normal((1, *bucket, config.channels(levels[stage])))
            for stage, (bucket, _) in cases.items()
        }
        inside = {
            stage: (slice(None), slice(height), slice(width))
            for stage, (_, (height, width)) in cases.items()
        }
        alone = run(params, {stage: x[inside[stage]] for stage, x in features.items()}, {})
        sizes = {stage: np.array([size], np.int32) for stage, (_, size) in cases.items()}
        held = run(params, features, sizes)
    for stage, x in features.items():
        assert held[stage].shape == x.shape
        assert relative_error(held[stage][inside[stage]], alone[stage]) < 1e-12


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
