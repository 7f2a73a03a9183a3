"""Images computed in strips, or by several devices, are those computed at once."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from recipe import SMALL, load_small, relative_error

from drsformer_jax.nn.feedforward import FEED_FORWARD
from drsformer_jax.nn.functional import apply
from drsformer_jax.nn.linear import initialize
from drsformer_jax.nn.rows import AT_ONCE, Rows, Shards, Strips
from drsformer_jax.ops.masking import rows_between, size_mask
from drsformer_jax.sharding import over_rows
from drsformer_jax.weights.convert import params_from_torch

pytestmark = pytest.mark.usefixtures("one_platform")

# From 48 columns on, CPUs compute the feed-forward network and the attention's sums in strips.
HEIGHT, WIDTH = 128, 48
SIZE = np.array([[104, 8], [128, 40]], np.int32)


@functools.cache
def network(name: str):
    golden = load_small(name)
    config = golden.config("float64")
    return config, params_from_torch(golden.weights, config)


def images() -> np.ndarray:
    return np.random.default_rng(0).random((2, HEIGHT, WIDTH, 3))


def run(name: str, rows: Rows, size: np.ndarray | None) -> np.ndarray:
    """Restores two images in float64."""
    with jax.enable_x64(True):
        config, params = network(name)
        restore = functools.partial(apply, config)
        if isinstance(rows, Shards):
            restore = over_rows(functools.partial(restore, rows=rows), rows.count)
            return np.asarray(jax.jit(restore)(params, images(), size))
        return np.asarray(jax.jit(restore, static_argnums=3)(params, images(), size, rows))


@functools.cache
def at_once(name: str, masked: bool) -> np.ndarray:
    return run(name, AT_ONCE, SIZE if masked else None)


def assert_equal_inside(found: np.ndarray, expected: np.ndarray, masked: bool) -> None:
    for one, other, (height, width) in zip(found, expected, SIZE, strict=True):
        if masked:
            one, other = one[:height, :width], other[:height, :width]
        assert relative_error(one, other) < 1e-12


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("name", "height"),
    [("drsformer", 50), pytest.param("drsformer", 1, marks=SLOW), ("bias", 7)],
)
def test_strips_give_the_whole_image_in_float64(name, height):
    masked = height == 50
    found = run(name, Strips(height=height), SIZE if masked else None)
    assert_equal_inside(found, at_once(name, masked), masked)


@pytest.mark.parametrize(
    ("name", "count"),
    [("drsformer", 8), pytest.param("drsformer", 2, marks=SLOW), ("bias", 4)],
)
def test_devices_that_share_rows_give_the_whole_image_in_float64(name, count):
    # Eight devices have two rows each at the lowest level: what they read reaches past neighbors.
    masked = count == 8
    found = run(name, Shards(count=count), SIZE if masked else None)
    assert_equal_inside(found, at_once(name, masked), masked)


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
