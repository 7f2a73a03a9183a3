"""MSFN as one operation: every form and its derivative against the equation, in loops."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from plain import STEPS, conv, difference, masks, together, with_gradients
from recipe import relative_error

from drsformer_jax.nn.feedforward import hidden_order
from drsformer_jax.ops import forms, strips
from drsformer_jax.ops.linear import Affine
from drsformer_jax.ops.masking import zero_outside
from drsformer_jax.ops.mixed_scale import MixedScaleWeights, mixed_scale

FORMS = ("whole", "strips")
CASES = [
    # Height, width, hidden channels of a half, biases, mask.
    (19, 5, 7, False, False),
    (11, 6, 10, True, True),
    (10, 5, 17, False, True),
    (1, 7, 4, True, False),
    (1, 1, 5, True, False),
]


@pytest.fixture
def small_strips(monkeypatch):
    """Strips of 8 rows, so that small images have several, the last of them not full."""
    monkeypatch.setattr(strips, "SIZE", 1)


def arguments(height, width, hidden, bias, mask, dtype="float64"):
    random = np.random.default_rng([height, width, hidden])

    def draw(*shape):
        return jnp.asarray(random.standard_normal(shape), dtype)

    shapes = [(3, 2 * hidden), (3, 3, 2 * hidden), (5, 5, 2 * hidden)]
    shapes += [(3, 3, 2, hidden), (5, 5, 2, hidden), (2 * hidden, 3)]
    weights = [
        Affine(draw(*shape) / np.sqrt(np.prod(shape[:-1])), draw(shape[-1]) if bias else None)
        for shape in shapes
    ]
    inside = masks(2, height, width) if mask else None
    return draw(2, height, width, 3), MixedScaleWeights(*weights), inside


def reference(x, weights, inside):
    """Eq. 8 in the official order of channels: pairs are neighbors."""
    into, small, large, small_pairs, large_pairs, out = (
        (kernel, 0 if bias is None else bias) for kernel, bias in weights
    )
    inside = True if inside is None else inside
    x = x @ into[0] + into[1]
    back = np.argsort(hidden_order(x.shape[-1] // 2))
    paths = [jax.nn.relu(conv(x, k, inside) + b)[..., back] for k, b in (small, large)]
    halves = zip(*(jnp.split(path, 2, axis=-1) for path in paths), strict=True)
    mixed = []
    for half, (kernel, bias) in zip(halves, (small_pairs, large_pairs), strict=True):
        joined = jnp.concatenate(half, axis=-1)
        both = [conv(joined[..., n::2], kernel[:, :, n], inside) for n in (0, 1)]
        mixed.append(jax.nn.relu(sum(both) + bias))
    return jnp.concatenate(mixed, axis=-1) @ out[0] + out[1]


def seen(function, inside):
    """`function` of images and weights, without what it makes of the pixels outside."""
    return lambda x, weights: zero_outside(function(x, weights, inside), inside)


def operation(inside, form=None):
    return seen(functools.partial(mixed_scale, form=form), inside)


def equation(inside):
    return seen(reference, inside)


@pytest.mark.usefixtures("small_strips")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_form_and_its_gradients_equal_the_equation(form, case):
    with jax.enable_x64(True):
        x, weights, inside = arguments(*case)
        found, expected = (
            with_gradients(of, x, weights) for of in (operation(inside, form), equation(inside))
        )
        assert difference(found, expected) < 1e-13


@pytest.mark.usefixtures("small_strips")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", STEPS)
def test_form_is_as_exact_as_its_type(form, dtype):
    x, weights, inside = arguments(*CASES[1], dtype=dtype)
    # As in training, where parameters stay in float32.
    weights = jax.tree.map(lambda leaf: leaf.astype("float32"), weights)
    (y,), (x_grad, *grads) = with_gradients(operation(inside, form), x, weights)
    assert (y.dtype, x_grad.dtype) == (x.dtype, x.dtype)
    assert {leaf.dtype for leaf in grads} == {jnp.dtype("float32")}
    with jax.enable_x64(True):
        exact = jax.tree.map(lambda a: jnp.asarray(np.float64(a)), (x, weights))
        (expected,), expected_grads = with_gradients(equation(inside), *exact)
    # Each of four convolutions and four biases rounds once; float32 sums round more often.
    assert difference(y, expected) < 8 * STEPS[dtype]
    # Rounding moves values through the zero of relu, which single gradients show strongly.
    error = relative_error(together([x_grad, *grads]), together(expected_grads))
    assert error < 16 * STEPS[dtype]


@pytest.mark.parametrize("width", [forms.NARROW - 1, forms.NARROW])
def test_without_a_form_narrow_and_wide_images_have_equal_gradients(width):
    x, weights, inside = arguments(2, width, 3, False, False, dtype="float32")
    found, expected = (
        with_gradients(of, x, weights) for of in (operation(inside), equation(inside))
    )
    assert difference(found, expected) < 1e-5
