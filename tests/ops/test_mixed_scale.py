"""MSFN as one operation: every implementation and its gradients against the equation."""

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
    together,
    valid_only,
    with_gradients,
)
from recipe import relative_error

from drsformer_jax.ops import implementations
from drsformer_jax.ops.mixed_scale import mixed_scale
from drsformer_jax.ops.mixed_scale_channels import (
    MixedScaleWeights,
    aligned_parts,
    group_inputs,
    hidden_order,
    shared_place,
)

pytestmark = pytest.mark.usefixtures("one_platform")

# Since 0.11 JAX calls the backend of the kernels for GPUs deprecated.
DEPRECATED = pytest.mark.filterwarnings("ignore:The Pallas Triton backend:DeprecationWarning")
IMPLEMENTATIONS = ("whole", "aligned", "strips")
CASES = [
    # Height, width, hidden channels of a half, biases, mask.
    (19, 5, 7, False, False),
    (11, 6, 10, True, True),
    (10, 5, 17, False, True),
    (1, 7, 4, True, False),
    (1, 1, 5, True, False),
]


def arguments(height, width, hidden, bias, mask, dtype="float64"):
    random = np.random.default_rng([height, width, hidden])

    def normal(*shape):
        return drawn(random, shape, dtype)

    shapes = [(3, 2 * hidden), (3, 3, 2 * hidden), (5, 5, 2 * hidden)]
    shapes += [(3, 3, 2, hidden), (5, 5, 2, hidden), (2 * hidden, 3)]
    weights = affines(normal, shapes, bias)
    valid_mask = masks(2, height, width) if mask else None
    return normal(2, height, width, 3), MixedScaleWeights(*weights), valid_mask


def reference(x, weights, valid_mask):
    """MSFN in the official order of channels: groups are of neighbors."""
    into, small, large, grouped3x3, grouped5x5, out = (
        (kernel, 0 if bias is None else bias) for kernel, bias in weights
    )
    valid_mask = True if valid_mask is None else valid_mask
    x = x @ into[0] + into[1]
    back = np.argsort(hidden_order(x.shape[-1] // 2))
    paths = [jax.nn.relu(conv(x, k, valid_mask) + b)[..., back] for k, b in (small, large)]
    halves = zip(*(jnp.split(path, 2, axis=-1) for path in paths), strict=True)
    mixed = []
    for half, (kernel, bias) in zip(halves, (grouped3x3, grouped5x5), strict=True):
        joined = jnp.concatenate(half, axis=-1)
        both = [conv(joined[..., n::2], kernel[:, :, n], valid_mask) for n in (0, 1)]
        mixed.append(jax.nn.relu(sum(both) + bias))
    return jnp.concatenate(mixed, axis=-1) @ out[0] + out[1]


def operation(valid_mask, implementation=None):
    return valid_only(functools.partial(mixed_scale, implementation=implementation), valid_mask)


def equation(valid_mask):
    return valid_only(reference, valid_mask)


expected_of, rounded_arguments, exact_results = results_of(arguments, reference, CASES[1])


@pytest.mark.usefixtures("small_strips")
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_implementation_and_its_gradients_equal_the_equation(implementation, case):
    with jax.enable_x64(True):
        x, weights, valid_mask = arguments(*case)
        found = with_gradients(operation(valid_mask, implementation), x, weights)
    assert difference(found, expected_of(case)) < 1e-13


@pytest.mark.usefixtures("small_strips")
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", STEPS)
def test_implementation_is_as_exact_as_its_dtype(implementation, dtype):
    x, weights, valid_mask = rounded_arguments(dtype)
    (y,), (x_grad, *grads) = with_gradients(operation(valid_mask, implementation), x, weights)
    assert (y.dtype, x_grad.dtype) == (x.dtype, x.dtype)
    assert {leaf.dtype for leaf in grads} == {jnp.dtype("float32")}
    (expected,), expected_grads = exact_results(dtype)
    # Each of four convolutions and four biases rounds once; float32 sums round more often.
    assert difference(y, expected) < 8 * STEPS[dtype]
    # Rounding moves values through the zero of relu, which single gradients show strongly.
    error = relative_error(together([x_grad, *grads]), together(expected_grads))
    assert error < 16 * STEPS[dtype]


def unbiased(height, width, hidden, mask, dtype):
    """Arguments for kernels of GPUs, what they are in float64, and a mask."""
    x, weights, valid_mask = arguments(height, width, hidden, False, mask, dtype=dtype)
    weights = jax.tree.map(lambda leaf: leaf.astype("float32"), weights)
    with jax.enable_x64(True):
        exact = jax.tree.map(lambda leaf: jnp.asarray(np.float64(leaf)), (x, weights))
    return (x, weights), exact, valid_mask


@DEPRECATED
@pytest.mark.usefixtures("interpreted")
def test_kernels_of_both_sizes_equal_the_equation():
    found, exact, valid_mask = unbiased(11, 6, 7, True, "float32")
    y = jax.jit(operation(valid_mask, "triton"))(*found)
    with jax.enable_x64(True):
        expected = jax.jit(equation(valid_mask))(*exact)
    assert difference(y, expected) < 8 * STEPS["float32"]


@pytest.mark.slow  # They take ten seconds each to compile without a GPU.
@DEPRECATED
@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize(
    "case",
    [
        (11, 6, 7, False, "float32"),  # An odd number of groups: one of them reads both paths.
        (11, 6, 7, True, "bfloat16"),
        (11, 6, 10, True, "float32"),
        (1, 1, 5, False, "float32"),
        (1, 1, 5, False, "bfloat16"),
        # Several programs across, down, and for channels.
        (35, 40, 33, True, "float32"),
        (35, 40, 33, True, "bfloat16"),
    ],
    ids=str,
)
def test_gradients_by_kernels_of_both_sizes_equal_the_equation(case):
    found, exact, valid_mask = unbiased(*case)
    dtype = case[-1]
    (y,), grads = with_gradients(operation(valid_mask, "triton"), *found)
    with jax.enable_x64(True):
        (expected,), expected_grads = with_gradients(equation(valid_mask), *exact)
    assert difference(y, expected) < 8 * STEPS[dtype]
    assert relative_error(together(grads), together(expected_grads)) < 16 * STEPS[dtype]
    if dtype == "float32":
        assert difference(grads, expected_grads) < 64 * STEPS[dtype]


@DEPRECATED
def test_biases_and_64_bits_are_computed_without_kernels_of_both_sizes():
    def program(bias=False, dtype="float32"):
        x, weights, valid_mask = arguments(4, 5, 3, bias, True, dtype=dtype)
        with implementations.traced_for("cuda"):
            return str(
                jax.make_jaxpr(lambda x, w: mixed_scale(x, w, valid_mask, "pallas"))(x, weights)
            )

    assert "mixed_scale_paths" in program()
    assert "mixed_scale_paths" not in program(bias=True)
    assert "mixed_scale_paths" not in program(dtype="float16")
    with jax.enable_x64(True):
        assert "mixed_scale_paths" not in program()


@pytest.mark.parametrize("width", [implementations.NARROW - 1, implementations.NARROW])
def test_by_default_narrow_and_wide_images_have_equal_gradients(width):
    x, weights, valid_mask = arguments(2, width, 3, False, False, dtype="float32")
    with implementations.traced_for(None):  # As in programs of users, for all platforms.
        found = with_gradients(operation(valid_mask), x, weights)
    assert difference(found, with_gradients(equation(valid_mask), x, weights)) < 1e-5


def test_stored_order_makes_the_inputs_of_all_groups_contiguous():
    for hidden in (1, 4, 5):
        # Official channels: a of the 3x3 path from 0 on, b of the 5x5 path from 100 on.
        stored = np.array(hidden_order(hidden))[:hidden]
        parts = group_inputs(stored, 100 + stored)
        first, second = np.concatenate(parts[:2]), np.concatenate(parts[2:])
        joined = np.concatenate([np.arange(hidden), 100 + np.arange(hidden)])
        np.testing.assert_array_equal(first, joined[0::2])
        np.testing.assert_array_equal(second, joined[1::2])


def test_parts_are_those_of_the_worked_example():
    parts = aligned_parts(5, 4)
    assert (shared_place(5), shared_place(4)) == (2, None)
    small, large = ([list(numbers) for numbers in part] for part in parts[0])
    assert small == [[0, 1, 2, -1], [3, 4, -1, -1], [0, 1, 2, -1], [0, 1, 2, -1]]
    assert large == [[3, 4, -1, -1], [1, 2, 0, -1], [3, 4, 2, -1], [3, 4, -1, -1]]
    for part, other in zip(parts[0], parts[1], strict=True):
        for numbers, further in zip(part, other, strict=True):
            np.testing.assert_array_equal(further, np.where(numbers < 0, -1, numbers + 5))


@pytest.mark.parametrize("hidden", [1, 4, 6])
def test_every_channel_and_output_is_in_one_part_of_its_path(hidden):
    parts = aligned_parts(hidden, 2)
    for path in zip(*parts, strict=True):
        channels = np.concatenate([numbers for part in path for numbers in part[:2]])
        assert sorted(channels[channels >= 0]) == list(range(2 * hidden))
    outputs = np.concatenate([part.outputs for half in parts for part in half])
    assert sorted(outputs[outputs >= 0]) == list(range(2 * hidden))
