"""GDFN as one operation: both implementations and their gradients against the equation."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from plain import (
    STEPS,
    affines,
    conv,
    difference,
    drawn,
    masks,
    results_of,
    valid_only,
    with_gradients,
)

from drsformer_jax.ops import implementations
from drsformer_jax.ops.gated import GatedWeights, gated

pytestmark = pytest.mark.usefixtures("one_platform")

CASES = [
    # Height, width, hidden channels of a half, biases, mask.
    (19, 5, 7, False, False),
    (11, 6, 4, True, True),
    (10, 5, 6, False, True),
    (1, 1, 5, True, False),
]


def arguments(height, width, hidden, bias, mask, dtype="float64"):
    random = np.random.default_rng([height, width, hidden])

    def normal(*shape):
        return drawn(random, shape, dtype)

    shapes = ((3, 2 * hidden), (3, 3, 2 * hidden), (hidden, 3))
    weights = affines(normal, shapes, bias)
    valid_mask = masks(2, height, width) if mask else None
    return normal(2, height, width, 3), GatedWeights(*weights), valid_mask


def reference(x, weights, valid_mask):
    into, depthwise, out = ((kernel, 0 if bias is None else bias) for kernel, bias in weights)
    valid_mask = True if valid_mask is None else valid_mask
    both = conv(x @ into[0] + into[1], depthwise[0], valid_mask) + depthwise[1]
    gate, value = jnp.split(both, 2, axis=-1)
    gelu = gate * (1 + jax.scipy.special.erf(gate / np.sqrt(2))) / 2
    return gelu * value @ out[0] + out[1]


expected_of, rounded_arguments, exact_results = results_of(arguments, reference, CASES[1])


@pytest.mark.usefixtures("small_strips", "x64")
@pytest.mark.parametrize("implementation", ["whole", "strips"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_implementation_and_its_gradients_equal_the_equation(case, implementation):
    x, weights, valid_mask = arguments(*case)
    operation = functools.partial(gated, implementation=implementation)
    found = with_gradients(valid_only(operation, valid_mask), x, weights)
    assert difference(found, expected_of(case)) < 1e-13


@pytest.mark.usefixtures("small_strips")
@pytest.mark.parametrize("implementation", ["whole", "strips"])
@pytest.mark.parametrize("dtype", STEPS)
def test_implementation_is_as_exact_as_its_dtype(implementation, dtype):
    x, weights, valid_mask = rounded_arguments(dtype)
    operation = functools.partial(gated, implementation=implementation)
    (y,), (x_grad, *grads) = with_gradients(valid_only(operation, valid_mask), x, weights)
    assert (y.dtype, x_grad.dtype) == (x.dtype, x.dtype)
    assert {leaf.dtype for leaf in grads} == {jnp.dtype("float32")}
    expected, expected_grads = exact_results(dtype)
    assert difference([y], expected) < 8 * STEPS[dtype]
    assert difference([x_grad, *grads], expected_grads) < 16 * STEPS[dtype]


@pytest.mark.parametrize("width", [implementations.NARROW - 1, implementations.NARROW])
def test_by_default_narrow_and_wide_images_have_equal_gradients(width):
    x, weights, _ = arguments(2, width, 3, True, False, dtype="float32")
    found, expected = (
        with_gradients(valid_only(of, None), x, weights) for of in (gated, reference)
    )
    assert difference(found, expected) < 1e-5
