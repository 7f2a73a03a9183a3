"""Drawn arrays, plain convolutions, and how far results and gradients are apart."""

from __future__ import annotations

import functools
import math

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np

from drsformer_jax.ops.linear import Affine
from drsformer_jax.ops.masking import zero_outside

STEPS = {"float32": 2.0**-24, "bfloat16": 2.0**-8}
"""Largest relative errors of rounding."""


def normal(seed, *shape, dtype="float64"):
    return jax.device_put(drawn(np.random.default_rng([seed, *shape]), shape, dtype))


def drawn(random, shape, dtype):
    """Normal numbers in an array of NumPy's: `jnp.asarray` would compile a program a shape."""
    return random.standard_normal(shape).astype(jnp.dtype(dtype))


def equations(program):
    """Every equation of a jaxpr, and of those in it."""
    for equation in program.eqns:
        yield equation
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from equations(inner)


def affines(normal, shapes, bias):
    """Layers with kernels of these shapes, sampled by `normal`, and maybe biases."""
    return [
        Affine(
            normal(*shape) / math.sqrt(math.prod(shape[:-1])), normal(shape[-1]) if bias else None
        )
        for shape in shapes
    ]


def valid_only(function, valid_mask):
    """`function` of images and weights, without what it makes of other pixels."""
    return lambda x, weights: zero_outside(function(x, weights, valid_mask), valid_mask)


def results_of(arguments, reference, rounded):
    """What an operation of images, weights and a mask must give, computed once for all its tests.

    Returns:
        The results of a case in float64; of a dtype, the arguments of the case `rounded`; and the
        results of those in float64.
    """

    @functools.cache
    def expected_of(case):
        with jax.enable_x64(True):
            x, weights, valid_mask = arguments(*case)
            return with_gradients(valid_only(reference, valid_mask), x, weights)

    def rounded_arguments(dtype):
        x, weights, valid_mask = arguments(*rounded, dtype=dtype)
        # As in training, where parameters stay in float32.
        return x, jax.tree.map(lambda leaf: leaf.astype("float32"), weights), valid_mask

    @functools.cache
    def exact_results(dtype):
        x, weights, valid_mask = rounded_arguments(dtype)
        with jax.enable_x64(True):
            exact = jax.tree.map(np.float64, (x, weights))
            return with_gradients(valid_only(reference, valid_mask), *exact)

    return expected_of, rounded_arguments, exact_results


def conv(x, kernel, valid_mask=True, dilation=1):
    """Depthwise: kernel k k c and x b h w c, zero where not `valid_mask`.

    By XLA's convolution: it compiles in no time, sums of taps and their gradients in seconds.
    """
    halo = dilation * (kernel.shape[0] // 2)
    return jax.lax.conv_general_dilated(
        jnp.where(valid_mask, x, 0),
        kernel[:, :, None],
        window_strides=(1, 1),
        padding=[(halo, halo)] * 2,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
        precision="highest",
    )


def with_gradients(function, *arguments):
    """Leaves of the value, then of the gradients of a sum with fixed weights, as one program."""

    def run(*arguments):
        value, back = jax.vjp(function, *arguments)
        random = np.random.default_rng(7)
        cotangent = jax.tree.map(
            lambda leaf: jnp.asarray(random.standard_normal(leaf.shape), leaf.dtype), value
        )
        return jax.tree.leaves(value), jax.tree.leaves(back(cotangent))

    return jax.jit(run)(*arguments)


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


def wide(x):
    return np.asarray(x).astype(np.float64)


def assert_close(found, expected, tolerance):
    """Values differ by `tolerance` at most, relative to the largest one."""
    found, expected = wide(found), wide(expected)
    assert found.shape == expected.shape
    assert np.max(np.abs(found - expected)) <= tolerance * max(np.max(np.abs(expected)), 1e-30)


def assert_for_gpus_alone(kernel, program, refused):
    """A kernel is in `program(platform, implementation, dtype)` where it should be.

    That is for GPUs, where it is asked for, and neither in the dtype `refused` nor with 64 bits.
    """
    assert kernel in program("cuda")
    assert kernel in program("gpu")
    assert kernel not in program("tpu")
    assert kernel not in program("cuda", None)
    assert kernel not in program("cuda", dtype=refused)
    with jax.enable_x64(True):
        assert kernel not in program("cuda")


def difference(found, expected):
    """Largest difference in any array, over the largest value there; NaN where there is one."""
    leaves = zip(*map(jax.tree.leaves, (found, expected)), strict=True)
    pairs = [(np.float64(f), np.float64(e)) for f, e in leaves]
    return np.max([np.abs(f - e).max() / max(np.abs(e).max(), 1e-30) for f, e in pairs])


def together(arrays):
    """All values in one array."""
    return np.concatenate([np.ravel(np.float64(array)) for array in arrays])


def masks(batch, height, width):
    """Of images that differ in size: one loses half of its rows, the others two columns."""
    valid_mask = np.ones((batch, height, width, 1), bool)
    valid_mask[0, (height + 1) // 2 :] = False
    valid_mask[1:, :, -2:] = False
    return jax.device_put(valid_mask)  # Not compiled for each shape, as `jnp.asarray` is.
