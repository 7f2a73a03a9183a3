"""Contact sheets show pictures whole, with titles."""

from __future__ import annotations

import numpy as np

from drsformer_jax.data.sheets import contact_sheet


def noise(h: int, w: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (h, w, 3), dtype=np.uint8)


def test_contact_sheet_shows_every_picture_whole_on_white():
    rows = [[noise(20, 30, 1), noise(20, 30, 2)], [noise(40, 10, 3), noise(40, 50, 4)]]
    sheet = contact_sheet(rows)
    assert sheet.shape == (8 + 20 + 8 + 40 + 8, 8 + 30 + 8 + 50 + 8, 3)
    places = [(8, 8), (8, 46), (36, 8), (36, 46)]
    left = np.ones(sheet.shape[:2], bool)
    for (top, start), picture in zip(places, rows[0] + rows[1], strict=True):
        area = np.s_[top : top + picture.shape[0], start : start + picture.shape[1]]
        np.testing.assert_array_equal(sheet[area], picture)
        left[area] = False
    assert (sheet[left] == 255).all()


def test_titles_stand_above_the_columns_and_are_not_cut():
    white = np.full((4, 4, 3), 255, np.uint8)
    sheet = contact_sheet([[white, white]], titles=["rainy", "restored"])
    ink = (sheet < 128).any(-1)
    assert not ink[-8 - 4 :].any()
    assert not ink[:, -8:].any()
    columns = np.flatnonzero(ink.any(0))
    alone = contact_sheet([[white]], titles=["rainy"])
    np.testing.assert_array_equal(sheet[:, : alone.shape[1]], alone)
    assert columns[-1] > alone.shape[1] + 40
