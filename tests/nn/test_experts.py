"""One step of the mixture of experts against its definition, expert by expert."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from flax import nnx
from plain import STEPS, conv, difference, drawn, masks, together, with_gradients
from recipe import SMALL, relative_error

from drsformer_jax.nn.experts import DILATED_SIZES, EXPERTS, SEPARABLE_SIZES, Step
from drsformer_jax.nn.rows import AT_ONCE

pytestmark = pytest.mark.usefixtures("one_platform")

CHANNELS = 3


def reference(step, x, gates, valid_mask):
    """MEFC: every expert with its own 1x1 convolution and gate, joined by another."""
    relu = jax.nn.relu
    experts = []
    for size in SEPARABLE_SIZES:
        own = getattr(step, f"separable{size}")
        y = conv(x, own.depthwise_first.kernel[...], valid_mask) @ own.pointwise_first.kernel[...]
        y = conv(relu(y), own.depthwise_last.kernel[...], valid_mask)
        experts.append(y @ own.pointwise_last.kernel[...])
    for size in DILATED_SIZES:
        own = getattr(step, f"dilated{size}")
        y = conv(x, own.depthwise.kernel[...], valid_mask, dilation=2)
        experts.append(y @ own.pointwise_last.kernel[...])
    ones = jnp.ones((3, 3, x.shape[-1]), x.dtype)
    around = conv(jnp.broadcast_to(valid_mask, x.shape).astype(x.dtype), ones, valid_mask)
    experts.append(conv(x, ones, valid_mask) / jnp.maximum(around, 1))
    gated = [gates[:, n, None, None, None] * y for n, y in enumerate(experts)]
    return relu(x + relu(jnp.concatenate(gated, axis=-1) @ step.join.kernel[...]))


def programs(valid_mask, dtype):
    """Ours and the reference, of parameters, features and gates."""
    definition, params = nnx.split(Step(CHANNELS, dataclasses.replace(SMALL, param_dtype=dtype)))
    random = np.random.default_rng(3)
    params = jax.tree.map(lambda leaf: drawn(random, leaf.shape, dtype) / 2, params)
    # Height and width of the images of which `valid_mask` has the pixels.
    pixels = np.asarray(valid_mask)
    size = jax.device_put(
        np.stack([pixels.any(axis=axis).sum(axis=1, dtype=np.int32)[:, 0] for axis in (2, 1)], 1)
    )

    def own(params, x, gates):
        y = nnx.merge(definition, params)(x, gates, AT_ONCE.with_size(size))
        return jnp.where(valid_mask, y, 0)

    def papers(params, x, gates):
        y = reference(nnx.merge(definition, params), x, gates, valid_mask)
        return jnp.where(valid_mask, y, 0)

    return params, own, papers


def features(height, width, dtype):
    random = np.random.default_rng([height, width])
    gates = np.float32(scipy.special.softmax(random.standard_normal((2, EXPERTS)), axis=-1))
    # At least 0, as features are after the first relu.
    x = np.abs(drawn(random, (2, height, width, CHANNELS), dtype))
    return x, gates


@pytest.mark.parametrize("size", [(9, 14), (5, 3), (1, 1)])
def test_step_and_its_gradients_equal_the_equation(size):
    with jax.enable_x64(True):
        valid_mask = masks(2, *size) if min(size) > 1 else jnp.ones((2, *size, 1), bool)
        params, own, papers = programs(valid_mask, "float64")
        x, gates = features(*size, "float64")
        arguments = params, x, gates.astype("float64")
        found, expected = (with_gradients(of, *arguments) for of in (own, papers))
        assert difference(found, expected) < 1e-12


@pytest.mark.parametrize("dtype", STEPS)
def test_step_is_as_exact_as_its_type(dtype):
    valid_mask = masks(2, 9, 14)
    params, own, papers = programs(valid_mask, "float32")
    x, gates = features(9, 14, dtype)
    found = with_gradients(own, params, x, gates)
    assert found[0][0].dtype == x.dtype
    with jax.enable_x64(True):
        exact = jax.tree.map(np.float64, (params, x, gates))
        expected = with_gradients(papers, *exact)
    assert relative_error(found[0][0], expected[0][0]) < 4 * STEPS[dtype]
    # Rounding moves values through the zeros of relu.
    assert relative_error(together(found[1]), together(expected[1])) < 16 * STEPS[dtype]
