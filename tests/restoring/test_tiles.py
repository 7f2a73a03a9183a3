"""Tiles cover an image, overlap as asked, and blend without seams."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drsformer_jax.errors import InputError
from drsformer_jax.restoring.tiles import Tiling


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(2, 12), st.data())
def test_tiles_that_change_nothing_give_the_image_back(height, width, side, data):
    tiling = Tiling(8 * side, data.draw(st.integers(0, 4 * side)))
    image = np.random.default_rng(0).random((8 * height, 8 * width, 3)).astype(np.float32)
    shapes: list[tuple[int, int]] = []

    def restore(tile: np.ndarray) -> np.ndarray:
        shapes.append(tile.shape[:2])
        return tile

    np.testing.assert_allclose(tiling.apply(restore, image), image, atol=1e-6)
    assert tiling.tiles(image.shape[:2]) == (shapes[0], len(shapes))
    assert len(set(shapes)) == 1, "one program serves every tile"


def test_neighbors_share_the_overlap_and_start_at_multiples_of_8():
    starts: list[int] = []
    rows = np.arange(400, dtype=np.float32)[:, None, None].repeat(64, 1).repeat(3, 2)
    Tiling(64, 20).apply(lambda tile: starts.append(int(tile[0, 0, 0])) or tile, rows)
    assert starts[0] == 0
    assert starts[-1] == 400 - 64
    assert all(start % 8 == 0 for start in starts)
    assert all(0 < b - a <= 64 - 20 for a, b in itertools.pairwise(starts))


def test_a_step_between_two_tiles_becomes_a_straight_ramp():
    tiles = iter([0.0, 1.0])
    blended = Tiling(64, 32).apply(
        lambda tile: np.full_like(tile, next(tiles)), np.zeros((64, 96, 3), np.float32)
    )
    ramp = blended[0, :, 0]
    np.testing.assert_array_equal(ramp[:32], 0)
    np.testing.assert_allclose(ramp[32:64], (np.arange(32) + 0.5) / 32, atol=1e-6)
    np.testing.assert_array_equal(ramp[64:], 1)


@pytest.mark.parametrize(
    ("side", "overlap", "message"),
    [
        (100, 10, "the tile is 100; expected a multiple of 8, at least 16"),
        (8, 0, "the tile is 8; expected a multiple of 8, at least 16"),
        (-64, 0, "the tile is -64; expected a multiple of 8"),
        (64, 33, "the overlap is 33; expected 0 to half of the tile, 32"),
        (64, -1, "the overlap is -1; expected 0 to half of the tile, 32"),
    ],
)
def test_impossible_tiles_are_rejected_in_one_line(side, overlap, message):
    with pytest.raises(InputError, match=message):
        Tiling(side, overlap)
