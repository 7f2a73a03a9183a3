"""Attention across channels as operations: implementations and gradients against the equations."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from plain import (
    STEPS,
    affines,
    assert_for_gpus_alone,
    conv,
    difference,
    drawn,
    masks,
    normal,
    together,
    with_gradients,
)
from recipe import SMALL, relative_error

from drsformer_jax.nn.attention import Attention
from drsformer_jax.ops import attention_triton, implementations
from drsformer_jax.ops.attention import (
    QueryKeyWeights,
    _sums_by_kernel,
    _sums_of,
    query_key_sums,
)

pytestmark = pytest.mark.usefixtures("small_strips", "one_platform")

IMPLEMENTATIONS = ("whole", "strips", None)
CASES = [
    # Height, width, heads, kernel size, biases, masks.
    (19, 5, 2, 3, False, False),
    (11, 7, 1, 3, True, True),
    (17, 6, 3, 5, False, True),
    (1, 1, 2, 3, True, False),
    (10, implementations.NARROW, 2, 3, True, True),
]
CHANNELS = 6


def arguments(height, width, size, bias, mask, dtype="float64"):
    random = np.random.default_rng([height, width, size])

    def normal(*shape):
        return drawn(random, shape, dtype)

    shapes = ((CHANNELS, 2 * CHANNELS), (size, size, 2 * CHANNELS))
    weights = affines(normal, shapes, bias)
    valid_mask = masks(2, height, width) if mask else None
    # Counts part of what is valid, as parts of images do.
    counted = jax.device_put(valid_mask & (np.arange(height) >= 2)[:, None, None]) if mask else None
    return normal(2, height, width, CHANNELS), QueryKeyWeights(*weights), valid_mask, counted


def reference(x, weights, heads, valid_mask, counted):
    """Sums over pixels, one image, head and pair of channels after another."""
    valid_mask = True if valid_mask is None else valid_mask
    (pointwise, first), (depthwise, second) = (
        (kernel, 0 if bias is None else bias) for kernel, bias in weights
    )
    both = conv(x @ pointwise + first, depthwise, valid_mask) + second
    both = jnp.where(True if counted is None else counted, both, 0)
    query, key = (
        part.reshape(len(x), -1, heads, CHANNELS // heads).swapaxes(1, 2)
        for part in jnp.split(both, 2, axis=-1)
    )
    products = query[..., :, None] * key[..., None, :]
    return products.sum(axis=2), (query**2).sum(axis=2), (key**2).sum(axis=2)


@functools.cache
def expected_of(case):
    with jax.enable_x64(True):
        x, weights, *where = arguments(*case[:2], *case[3:])
        return with_gradients(lambda x, weights: reference(x, weights, case[2], *where), x, weights)


def rounded_arguments(dtype):
    x, weights, *where = arguments(23, 9, 3, True, True, dtype=dtype)
    # As in training, where parameters stay in float32.
    return x, jax.tree.map(lambda leaf: leaf.astype("float32"), weights), *where


@functools.cache
def exact_results(dtype):
    """Of the same rounded arguments, in float64."""
    x, weights, *where = rounded_arguments(dtype)
    with jax.enable_x64(True):
        exact = jax.tree.map(np.float64, (x, weights))
        return with_gradients(lambda x, weights: reference(x, weights, 2, *where), *exact)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_sums_and_their_gradients_equal_the_equation(implementation, case):
    heads = case[2]
    with jax.enable_x64(True):
        x, weights, *where = arguments(*case[:2], *case[3:])
        found = with_gradients(
            lambda x, weights: query_key_sums(x, weights, heads, *where, implementation), x, weights
        )
    assert difference(found, expected_of(case)) < 1e-13


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", STEPS)
def test_sums_are_as_exact_as_their_type(implementation, dtype):
    x, weights, *where = rounded_arguments(dtype)
    values, gradients = with_gradients(
        lambda x, weights: query_key_sums(x, weights, 2, *where, implementation), x, weights
    )
    assert {leaf.dtype for leaf in values} == {jnp.dtype("float32")}
    assert gradients[0].dtype == x.dtype
    assert {leaf.dtype for leaf in gradients[1:]} == {jnp.dtype("float32")}
    expected, expected_gradients = exact_results(dtype)
    # Values are rounded after each convolution and each bias, and summed without rounding.
    assert difference(values, expected) < 4 * STEPS[dtype]
    assert relative_error(together(gradients), together(expected_gradients)) < 4 * STEPS[dtype]


# Since 0.11 JAX calls the backend of these kernels deprecated.
@pytest.mark.filterwarnings("ignore:The Pallas Triton backend:DeprecationWarning")
@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("dtype", STEPS)
@pytest.mark.parametrize(
    ("shape", "heads"),
    [
        ((2, 19, 9, 12), 3),  # Two programs for the pixels of an image, the second half empty.
        pytest.param((1, 1, 1, 4), 1, marks=pytest.mark.slow),
        pytest.param((1, 16, 17, 96), 1, marks=pytest.mark.slow),
    ],
)
def test_sums_by_a_kernel_and_their_gradients_equal_those_of_plain_products(
    shape, heads, dtype, monkeypatch
):
    monkeypatch.setattr(attention_triton, "_STEPS", 2)
    both = normal(1, *shape, dtype=dtype)
    counted = masks(*shape[:3]) if shape[0] > 1 else None
    by_kernel, plain = (
        functools.partial(sums, heads, counted=counted) for sums in (_sums_by_kernel, _sums_of)
    )
    values, gradients = with_gradients(by_kernel, both)
    with jax.enable_x64(True):
        exact = with_gradients(plain, jnp.float64(both))
    assert {leaf.dtype for leaf in values} == {jnp.dtype("float32")}
    assert difference(values, exact[0]) < 16 * STEPS["float32"]
    assert (gradients[0].dtype, gradients[0].shape) == (both.dtype, both.shape)
    # bfloat16 is rounded twice; float32 adds the products of all channels of a head.
    assert difference(gradients, exact[1]) < {"float32": 16, "bfloat16": 2}[dtype] * STEPS[dtype]


@pytest.mark.filterwarnings("ignore:The Pallas Triton backend:DeprecationWarning")
def test_only_gpus_sum_by_a_kernel_and_not_64_bits():
    def program(platform, implementation="pallas", dtype="float32"):
        x, weights, *where = arguments(4, 5, 3, False, False, dtype=dtype)
        with implementations.traced_for(platform):
            return str(
                jax.make_jaxpr(
                    lambda x, weights: query_key_sums(x, weights, 2, *where, implementation)
                )(x, weights)
            )

    assert_for_gpus_alone("head_sums", program, refused="float16")


def attended(module, x, valid_mask):
    """TKSA as the paper has it: normalize, compare, keep the top k, mix, project."""
    heads, channels = module.heads, x.shape[-1]

    def affine(layer):
        return layer.kernel[...], 0 if layer.bias is None else layer.bias[...]

    (into, into_bias), (depthwise, depthwise_bias) = affine(module.qkv), affine(module.qkv_dwconv)
    qkv = conv(x @ into + into_bias, depthwise, valid_mask) + depthwise_bias
    query, key, value = (
        jnp.where(valid_mask, part, 0).reshape(len(x), -1, heads, channels // heads)
        for part in jnp.split(qkv, 3, axis=-1)
    )
    query, key = (part / jnp.linalg.norm(part, axis=1, keepdims=True) for part in (query, key))
    scores = jnp.einsum("bpmd,bpme->bmde", query, key) * module.temperature[...][:, None, None]
    softmaxes = [(1.0, channels // heads)]
    if module.branches is not None:
        softmaxes = list(zip(module.branches[...], module.top_k, strict=True))
    y = 0
    for weight, count in softmaxes:
        least = jnp.sort(jax.lax.stop_gradient(scores), axis=-1)[..., -count, None]
        kept = jax.nn.softmax(jnp.where(scores >= least, scores, -jnp.inf), axis=-1)
        y += weight * jnp.einsum("bmde,bpme->bpmd", kept, value)
    out, out_bias = affine(module.project_out)
    return jnp.where(valid_mask, y.reshape(x.shape) @ out + out_bias, 0)


def network(**fields):
    config = dataclasses.replace(SMALL, **fields)
    attention = Attention(12, 2, config)
    random = np.random.default_rng(3)
    definition, params = nnx.split(attention)
    params = jax.tree.map(lambda leaf: drawn(random, leaf.shape, config.param_dtype) / 2, params)
    return definition, params


def own(definition, valid_mask):
    def run(params, x):
        module = nnx.merge(definition, params)
        y = module(x, module.mixing(module.sums(x, valid_mask, valid_mask)), valid_mask)
        return jnp.where(valid_mask, y, 0)

    return run


def papers(definition, valid_mask):
    return lambda params, x: attended(nnx.merge(definition, params), x, valid_mask)


@pytest.mark.parametrize(
    ("attention", "size"), [("topk", (9, 7)), ("dense", (5, 11)), ("dense", (1, 1))]
)
def test_attention_and_its_gradients_equal_the_equations(attention, size):
    with jax.enable_x64(True):
        definition, params = network(attention=attention, bias=True, param_dtype="float64")
        valid_mask = masks(2, *size) if size != (1, 1) else jnp.ones((2, 1, 1, 1), bool)
        x = np.random.default_rng(4).standard_normal((2, *size, 12))
        found, expected = (
            with_gradients(of(definition, valid_mask), params, x) for of in (own, papers)
        )
        # On one pixel cosines are +-1 and what they depend on has a gradient of 0.
        assert difference(found[0], expected[0]) < 1e-13
        np.testing.assert_allclose(
            *(together(each[1]) for each in (found, expected)), rtol=1e-10, atol=1e-11
        )


@pytest.mark.parametrize("dtype", STEPS)
def test_attention_is_as_exact_as_its_type(dtype):
    # Dense: in few bits other scores would be among the largest.
    definition, params = network(attention="dense", bias=True)
    valid_mask = masks(2, 13, 9)
    x = drawn(np.random.default_rng(4), (2, 13, 9, 12), dtype)
    found = with_gradients(own(definition, valid_mask), params, x)
    assert (found[0][0].dtype, found[1][-1].dtype) == (x.dtype, x.dtype)
    with jax.enable_x64(True):
        exact = jax.tree.map(np.float64, (params, x))
        expected = with_gradients(papers(definition, valid_mask), *exact)
    for values, reference in zip(found, expected, strict=True):
        assert relative_error(together(values), together(reference)) < 4 * STEPS[dtype]
