"""Kernels for TPUs and GPUs, interpreted, against plain convolutions; and who gets them."""

from __future__ import annotations

import contextlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import AbstractMesh
from plain import STEPS, assert_close, conv, normal, vjp, wide

from drsformer_jax.config import ModelConfig
from drsformer_jax.nn.drsformer import Block
from drsformer_jax.nn.experts import EXPERTS, Step
from drsformer_jax.nn.rows import AT_ONCE
from drsformer_jax.ops import mosaic, mosaic_strips, triton
from drsformer_jax.ops.depthwise import depthwise_conv, grouped_conv

BLOCK = mosaic.LANES
MODULES = {"mosaic": mosaic, "triton": triton}
# Since 0.11 JAX calls the backend of ops/triton.py deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:The Pallas Triton backend:DeprecationWarning")
CALL = {"tpu": "custom_call @tpu_custom_call", "cuda": "__gpu$xla.gpu.triton"}


def lowered(platform, function, *arguments):
    """A function's program for a platform that is not here; JAX 0.12 asks which GPU it is."""
    mesh = contextlib.nullcontext()
    if platform == "cuda":
        gpu = jax.sharding.AbstractDevice("NVIDIA H100 80GB HBM3", None, platform)
        mesh = jax.sharding.use_abstract_mesh(AbstractMesh((), (), abstract_device=gpu))
    with mesh:
        traced = jax.jit(function).trace(*arguments)
        return traced.lower(lowering_platforms=(platform,)).as_text()


@pytest.fixture(params=MODULES)
def kernels(request, monkeypatch):
    """Kernels by name, which run without their hardware."""
    if request.param == "mosaic":
        monkeypatch.setattr(mosaic_strips, "_ROWS", 8)  # For several blocks, one below the other.
        monkeypatch.setattr(mosaic_strips, "_COLUMNS", 8)
        # What they read beyond arrays, or never wrote, is NaN.
        params = pltpu.InterpretParams(
            uninitialized_memory="nan", out_of_bounds_reads="uninitialized"
        )
        interpreter = pltpu.force_tpu_interpret_mode(params)
    else:
        request.getfixturevalue("interpreted")
        interpreter = contextlib.nullcontext()
    with interpreter:
        yield request.param
    for function in (MODULES[request.param].correlate, MODULES[request.param].kernel_grad):
        function.clear_cache()


# Batch, height, width, channels; size and dilation of the kernel.
CASES = {
    "few channels": (1, 19, 5, 8, 3, 1),
    "one pixel": (1, 1, 1, 3, 7, 1),
    "two strips share the lanes": (1, 37, 9, 48, 5, 1),
    "several images, an odd width": (2, 19, 17, 72, 3, 1),
    "a last block of few channels": (1, 6, 5, BLOCK + 4, 3, 2),
    "dilated, as wide as a block": (1, 21, 16, BLOCK, 7, 2),
    "dilated by 3": (1, 30, 4, 72, 3, 3),
    "few channels of 5x5": (1, 11, 5, 8, 5, 1),
    "several images, 5x5 and dilated": (2, 18, 17, 8, 5, 2),
}
FAST = {"few channels", "few channels of 5x5"}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "case",
    [case if case in FAST else pytest.param(case, marks=pytest.mark.slow) for case in CASES],
)
def test_kernels_equal_plain_convolutions_and_their_gradients(kernels, case, dtype):
    *shape, size, dilation = CASES[case]
    assert MODULES[kernels].supports(tuple(shape), jnp.dtype(dtype), size, dilation)
    x, cotangent = (normal(seed, *shape, dtype=dtype) for seed in (1, 2))
    kernel = normal(3, size, size, shape[-1], dtype="float32")
    value, gradients = jax.vjp(lambda x, k: depthwise_conv(x, k, dilation, kernels), x, kernel)
    found = [value, *gradients(cotangent)]
    reference = vjp(
        lambda x, kernel: conv(x, kernel, dilation=dilation),
        (x.astype("float32"), kernel),
        cotangent.astype("float32"),
    )
    for array, expected in zip(found, jax.tree.leaves(reference), strict=True):
        assert_close(wide(array), wide(expected), 2 * STEPS[str(array.dtype)] + 1e-6)


@pytest.mark.parametrize(
    ("channels", "size"),
    [(5, 3), *(pytest.param(BLOCK, size, marks=pytest.mark.slow) for size in (3, 5))],
)
def test_grouped_convolutions_add_both_channels_of_a_group(kernels, channels, size):
    parts = [normal(seed, 1, 9, 7, channels, dtype="float32") for seed in (1, 2)]
    kernel = normal(3, size, size, 2, channels, dtype="float32")
    cotangent = normal(4, 1, 9, 7, channels, dtype="float32")
    value, gradients = jax.vjp(lambda p, k: grouped_conv(p, k, kernels), parts, kernel)
    reference = vjp(
        lambda parts, kernel: sum(conv(p, kernel[:, :, n]) for n, p in enumerate(parts)),
        (parts, kernel),
        cotangent,
    )
    found = jax.tree.leaves((value, gradients(cotangent)))
    for array, expected in zip(found, jax.tree.leaves(reference), strict=True):
        assert_close(wide(array), wide(expected), 2e-6)


def test_asked_for_they_are_in_all_layers_for_tpus_and_gpus():
    config = ModelConfig(kernels="pallas")
    # On TPUs each half of the MSFN has its grouped convolutions in two parts, 3x3 and 5x5, and with
    # these few channels each size is a depthwise convolution whose halves are added.
    # On GPUs both paths are one kernel, as both halves, one sums over queries and keys, and one
    # multiplies the experts of a step.
    block = {"tpu": 8 + 2, "cuda": 2 + 3, "cpu": 0}, Block(8, 1, config), ()
    step = {"tpu": 10, "cuda": 10 + 1, "cpu": 0}, Step(8, config), (jnp.ones((1, EXPERTS)),)
    for expected, layer, gates in (block, step):
        definition, params = nnx.split(layer)

        def run(params, x, definition=definition, gates=gates):
            return nnx.merge(definition, params)(x, *gates, rows=AT_ONCE)

        x = jax.ShapeDtypeStruct((1, 8, 64, 8), jnp.bfloat16)
        for platform, kernels in expected.items():
            text = lowered(platform, run, params, x)
            names = r"call @(?:correlate|_of_paths|_of_groups|_sums|_product)\w*\("
            assert len(re.findall(names, text)) == kernels
            assert all((text.count(call) > 0) == (platform == p) for p, call in CALL.items())


def test_gradients_are_computed_by_them_too():
    x, kernel = np.zeros((1, 8, 8, 4), np.float32), np.zeros((3, 3, 4), np.float32)
    gradient = jax.grad(lambda x, k: jnp.sum(depthwise_conv(x, k, 1, "pallas")), argnums=(0, 1))
    for platform, call in CALL.items():
        text = lowered(platform, gradient, x, kernel)
        assert "call @kernel_grad" in text
        assert text.count(call) == 2, "one for the kernel, one for the image"


@pytest.mark.parametrize(
    ("shape", "dtype", "options"),
    [
        ((1, 128, 3840, 48), "bfloat16", (7, 2)),  # Not even few rows fit into a core's memory.
        ((1, 8, 8, 8), "bfloat16", (7, 3)),  # A halo wider than the edge.
        ((1, 8, 8, 8), "float16", (3, 1)),
    ],
)
def test_what_they_do_not_support_is_computed_without_them(shape, dtype, options):
    assert not mosaic.supports(shape, jnp.dtype(dtype), *options)
    x = jax.ShapeDtypeStruct(shape, dtype)
    kernel = jax.ShapeDtypeStruct((options[0], options[0], shape[-1]), jnp.float32)
    run = jax.jit(lambda x, kernel: depthwise_conv(x, kernel, options[1], "pallas"))
    assert CALL["tpu"] not in run.trace(x, kernel).lower(lowering_platforms=("tpu",)).as_text()


@pytest.mark.slow  # They take seconds to lower.
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("masked", [False, True])
def test_gradients_of_layers_are_lowered_for_gpus(masked, dtype):
    config = ModelConfig(kernels="pallas")
    definition, params = nnx.split(Block(8, 1, config))
    rows = AT_ONCE.with_size(jnp.array([[8, 60]], "int32")) if masked else AT_ONCE

    def gradient(params, x):
        loss = lambda params, x: jnp.sum(nnx.merge(definition, params)(x, rows=rows))  # noqa: E731
        return jax.grad(loss, argnums=(0, 1))(params, x)

    text = lowered("cuda", gradient, params, jax.ShapeDtypeStruct((1, 8, 64, 8), dtype))
    for name in ("head_sums_grad", "mixed_scale_groups_x_grad", "mixed_scale_paths_grad"):
        assert name in text


def test_arrays_of_64_bits_are_computed_without_them(x64):
    x, kernel = normal(1, 1, 5, 4, 3), normal(2, 3, 3, 3)
    np.testing.assert_array_equal(depthwise_conv(x, kernel, 1, "pallas"), depthwise_conv(x, kernel))


def test_without_being_asked_for_they_are_not():
    x, kernel = np.zeros((1, 8, 8, 4), np.float32), np.zeros((3, 3, 4), np.float32)
    for platform, call in CALL.items():
        lowered = jax.jit(depthwise_conv).trace(x, kernel).lower(lowering_platforms=(platform,))
        assert call not in lowered.as_text()
