"""Images computed in strips, or by several devices, are those computed at once."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from plain import equations
from recipe import SMALL, dfn_with_experts, load_small, relative_error

from drsformer_jax.config import ModelConfig
from drsformer_jax.nn.drsformer import Block
from drsformer_jax.nn.feedforward import FEED_FORWARD
from drsformer_jax.nn.functional import apply, build
from drsformer_jax.nn.linear import initialize
from drsformer_jax.nn.rows import AT_ONCE, Rows, Shards, Strips
from drsformer_jax.ops.implementations import traced_for
from drsformer_jax.ops.masking import rows_between, size_mask
from drsformer_jax.sharding import over_rows
from drsformer_jax.weights.convert import params_from_torch

pytestmark = pytest.mark.usefixtures("one_platform")

# From 48 columns on, CPUs compute the feed-forward network and the attention's sums in strips.
HEIGHT, WIDTH = 128, 48
SIZE = np.array([[104, 8], [128, 40]], np.int32)


@functools.cache
def network(name: str):
    if name == "dfn with experts":
        return dfn_with_experts("float64")
    golden = load_small(name)
    config = golden.config("float64")
    return config, params_from_torch(golden.weights, config)


def images() -> np.ndarray:
    return np.random.default_rng(0).random((2, HEIGHT, WIDTH, 3))


def compute(function, rows: Rows, params, x, size: np.ndarray | None):
    """Computes a function of parameters, images, their size and the rows, in float64."""
    with jax.enable_x64(True):
        if isinstance(rows, Shards):
            function = over_rows(functools.partial(function, rows=rows), rows.count)
            found = jax.jit(function)(params, x, size)
        else:
            found = jax.jit(function)(params, x, size, rows=rows)
        return jax.device_get(found)


@functools.cache
def restored(name: str, masked: bool, rows: Rows = AT_ONCE) -> np.ndarray:
    config, params = network(name)
    return compute(functools.partial(apply, config), rows, params, images(), masked_size(masked))


def masked_size(masked: bool) -> np.ndarray | None:
    return SIZE if masked else None


def assert_equal_inside(found: np.ndarray, expected: np.ndarray, size: np.ndarray | None) -> None:
    for index, (one, other) in enumerate(zip(found, expected, strict=True)):
        if size is not None:
            height, width = size[index]
            one, other = one[:height, :width], other[:height, :width]
        assert relative_error(one, other) < 1e-12


# Strips, and devices that share rows. Eight devices have two rows each at the lowest level: what
# they read reaches past neighbors.
MASKED = [Strips(height=50), Shards(count=8)]
UNMASKED = [Strips(height=7), Shards(count=4)]


@pytest.mark.parametrize("rows", MASKED, ids=str)
def test_rows_in_parts_give_the_whole_image_in_float64(rows):
    found = restored("dfn with experts", True, rows)
    assert_equal_inside(found, restored("dfn with experts", True), SIZE)


SLOW = [("drsformer", True, rows) for rows in (*MASKED, Strips(height=1), Shards(count=2))]
SLOW += [("bias", False, rows) for rows in UNMASKED]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "masked", "rows"), SLOW, ids=str)
def test_networks_in_parts_give_the_whole_image_in_float64(name, masked, rows):
    found = restored(name, masked, rows)
    assert_equal_inside(found, restored(name, masked), masked_size(masked))


# Of networks whose seven levels take seconds to compile: the experts, and blocks with MSFN at a
# level where CPUs compute strips and at the lowest one. The level, height and width of each.
STAGES = {
    "encoder_level0": (0, HEIGHT, WIDTH),
    "encoder_level2": (1, HEIGHT, WIDTH),
    "latent": (3, HEIGHT // 8, WIDTH // 8),
}


@functools.cache
def stages(name: str, masked: bool, rows: Rows = AT_ONCE) -> dict[str, np.ndarray]:
    config, params = network(name)
    random = np.random.default_rng(0)
    features = {
        stage: random.standard_normal((2, height, width, config.channels(level)))
        for stage, (level, height, width) in STAGES.items()
    }

    def run(params, features, size, rows):
        found = build(config, params)
        return {
            stage: getattr(found, stage)(x, rows=rows.with_size(stage_size(size, stage)))
            for stage, x in features.items()
        }

    return compute(run, rows, params, features, masked_size(masked))


def stage_size(size, stage: str):
    return size if size is None else size // (HEIGHT // STAGES[stage][1])


@pytest.mark.parametrize(
    ("name", "masked", "rows"),
    [("drsformer", True, rows) for rows in MASKED] + [("bias", False, rows) for rows in UNMASKED],
    ids=str,
)
def test_stages_in_parts_give_those_of_the_whole_image_in_float64(name, masked, rows):
    found, expected = stages(name, masked, rows), stages(name, masked)
    for stage in STAGES:
        size = stage_size(masked_size(masked), stage)
        assert_equal_inside(found[stage], expected[stage], size)


@pytest.mark.parametrize("rows", [Strips(height=1), Strips(height=3), Strips(height=7), AT_ONCE])
@pytest.mark.parametrize("height", [7, 8, 9])
def test_every_row_is_counted_once_and_has_its_halo(rows, height):
    x = jnp.asarray(np.random.default_rng(1).random((1, height, 2, 1)))

    def added(window, valid_mask):
        padded = jnp.pad(window, ((0, 0), (1, 1), (0, 0), (0, 0)))
        return padded[:, :-2] + 10 * window + 100 * padded[:, 2:]

    padded = np.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0)))
    expected = padded[:, :-2] + 10 * x + 100 * padded[:, 2:]
    np.testing.assert_allclose(rows.map(added, x, 1), expected, rtol=1e-6)

    def sums(window, valid_mask, counted):
        return jnp.sum(window if counted is None else window * counted)

    np.testing.assert_allclose(rows.sum(sums, x, 1), x.sum(), rtol=1e-6)


def test_masks_of_windows_count_from_the_image_s_first_row():
    mask = np.asarray(size_mask(jnp.array([[3, 2]]), 6, 3, -2))[0, ..., 0]
    np.testing.assert_array_equal(mask.any(axis=1), [False, False, True, True, True, False])
    np.testing.assert_array_equal(mask.any(axis=0), [True, True, False])
    chosen = np.asarray(rows_between(1, 3, jnp.zeros((2, 4, 2, 5)), 0))
    assert chosen.shape == (2, 4, 2, 1)
    np.testing.assert_array_equal(chosen[0, :, 0, 0], [False, True, True, False])


def heavy_below(window, valid_mask):
    """A layer of halo 3: sums of seven rows, each with a weight of its own."""
    valid = window if valid_mask is None else jnp.where(valid_mask, window, 0)
    padded = jnp.pad(valid, ((0, 0), (3, 3), (0, 0), (0, 0)))
    return sum(4**k * padded[:, k : k + window.shape[1]] for k in range(7))


def total(window, valid_mask, counted):
    return jnp.sum(jnp.where(counted, window, 0), axis=(1, 2, 3))


@pytest.mark.parametrize("rows", [AT_ONCE, Strips(height=5), Shards(count=2), Shards(count=8)])
def test_images_in_larger_arrays_are_computed_as_if_alone(rows):
    # Eight devices have two rows each, fewer than the halo.
    def network(params, x, size):
        sized = rows.with_size(size)
        sums = sized.sum(total, x, halo=3)
        return sized.map(heavy_below, x, halo=3) + 1000 * sums[:, None, None, None]

    x = np.random.default_rng(2).integers(0, 9, (2, 16, 3, 1)).astype("float32")
    size = np.array([[11, 3], [16, 2]])
    run_network = over_rows(network, rows.count) if isinstance(rows, Shards) else network
    found = np.asarray(jax.jit(run_network)((), x, size))
    for image, (height, width), result in zip(x, size, found, strict=True):
        alone = image[None, :height, :width]
        expected = heavy_below(alone, None) + 1000 * alone.sum()
        np.testing.assert_array_equal(result[None, :height, :width], expected)


@pytest.mark.parametrize(("kind", "furthest"), [("msfn", 4), ("gdfn", 1), ("dfn", 1), ("fn", 0)])
def test_halo_of_a_feed_forward_network_is_no_less_than_it_reads(kind, furthest):
    layer = FEED_FORWARD[kind](8, dataclasses.replace(SMALL, feed_forward=kind))
    initialize(layer, jax.random.key(0))
    x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 13, 4, 8)), "float32")
    influence = jax.jit(jax.grad(lambda x: layer(x)[:, 6].sum()))(x)
    read = np.flatnonzero(np.any(influence != 0, axis=(0, 2, 3)))
    assert (6 - read.min(), read.max() - 6) == (furthest, furthest)
    assert layer.halo >= furthest


# Since 0.11 JAX calls the backend of these kernels deprecated.
@pytest.mark.filterwarnings("ignore:The Pallas Triton backend:DeprecationWarning")
def test_image_is_normalized_once_for_queries_keys_and_values_and_so_its_gradient():
    config = ModelConfig(kernels="pallas")
    block = Block(4, 2, config)
    initialize(block, jax.random.key(0))
    definition, params = nnx.split(block)
    x = jnp.ones((1, 6, 5, 4), jnp.float32)

    def total(params, x):
        return jnp.sum(nnx.merge(definition, params)(x, rows=AT_ONCE))

    with traced_for("cuda"):
        program = jax.make_jaxpr(jax.grad(total))(params, x)
    calls = [each for each in equations(program.jaxpr) if each.primitive.name == "pallas_call"]
    of_norms = [each for each in calls if "layer_norm_grad" in str(each.params)]
    assert len(of_norms) == 2  # One for each layer norm of the block.
