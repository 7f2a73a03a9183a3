"""Layer normalization against its equation, and its gradient by a kernel."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl
from plain import STEPS, assert_close, assert_for_gpus_alone, difference, normal, with_gradients

from drsformer_jax.ops import implementations, norm_triton
from drsformer_jax.ops.norm import layer_norm, normalized

# Since 0.11 JAX calls the backend of these kernels deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:The Pallas Triton backend:DeprecationWarning")


def arguments(*shape, bias=True, dtype="float64"):
    x = 3 * normal(1, *shape, dtype=dtype) + 2
    weights = normal(2, shape[-1]), normal(3, shape[-1])
    narrow = [weight.astype(jnp.promote_types(dtype, jnp.float32)) for weight in weights]
    return x, narrow[0], narrow[1] if bias else None


@pytest.mark.usefixtures("x64")
def test_pixels_are_normalized_over_their_channels():
    x, weight, bias = arguments(2, 3, 4, 6)
    mean, variance = np.mean(x, -1, keepdims=True), np.var(x, -1, keepdims=True)
    scale = np.asarray(weight) / np.sqrt(variance + 1e-5)
    assert_close(layer_norm(x, weight, bias), (x - mean) * scale + bias, 1e-14)
    assert_close(layer_norm(x, weight, None), x * scale, 1e-14)


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("dtype", STEPS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "shape",
    [
        (2, 7, 5, 12),  # Three programs of three steps, the last not full.
        pytest.param((1, 1, 1, 96), marks=pytest.mark.slow),
        pytest.param((1, 9, 8, 48), marks=pytest.mark.slow),
    ],
)
def test_gradient_by_a_kernel_equals_that_of_the_equation(shape, bias, dtype, monkeypatch):
    monkeypatch.setattr(norm_triton, "_ELEMENTS", 8 * pl.next_power_of_2(shape[-1]))
    monkeypatch.setattr(norm_triton, "_PARTS", 3)
    x, *weights = arguments(*shape, bias=bias, dtype=dtype)

    def by_kernel(x, weights):
        return layer_norm(x, *weights, "triton")

    program = jax.make_jaxpr(lambda x: jax.vjp(by_kernel, x, weights)[1](x))(x)
    assert "layer_norm_grad" in str(program)
    (y,), gradients = with_gradients(by_kernel, x, weights)
    with jax.enable_x64(True):
        exact = with_gradients(
            lambda x, weights: normalized(x, *weights).astype(dtype),  # As the gradient's is.
            jnp.float64(x),
            jax.tree.map(jnp.float64, weights),
        )
    assert (y.dtype, gradients[0].dtype) == (x.dtype, x.dtype)
    assert difference([y], exact[0]) < 8 * STEPS[dtype]
    assert difference(gradients, exact[1]) < {"float32": 32, "bfloat16": 2}[dtype] * STEPS[dtype]


def test_only_gpus_have_the_kernel_and_not_64_bits():
    def program(platform, implementation="pallas", dtype="float32"):
        x, *weights = arguments(1, 2, 3, 4, dtype=dtype)

        def total(x):
            return jnp.sum(layer_norm(x, *weights, implementation))

        with implementations.traced_for(platform):
            return str(jax.make_jaxpr(jax.grad(total))(x))

    assert_for_gpus_alone("layer_norm_grad", program, refused="float16")
