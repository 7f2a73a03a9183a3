"""Contact sheets show images whole, with titles."""

from __future__ import annotations

import numpy as np

from drsformer_jax.config import KINDS, DataConfig, RainConfig
from drsformer_jax.data.pipeline import batches
from drsformer_jax.data.sheets import contact_sheet, rain_sheet
from drsformer_jax.data.sources import open_pairs, open_training
from drsformer_jax.data.synthetic import SyntheticRain, photographs
from drsformer_jax.images.pixels import write_image


def noise(h: int, w: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (h, w, 3), dtype=np.uint8)


def test_contact_sheet_shows_every_image_whole_on_white():
    rows = [[noise(20, 30, 1), noise(20, 30, 2)], [noise(40, 10, 3), noise(40, 50, 4)]]
    sheet = contact_sheet(rows)
    assert sheet.shape == (8 + 20 + 8 + 40 + 8, 8 + 30 + 8 + 50 + 8, 3)
    places = [(8, 8), (8, 46), (36, 8), (36, 46)]
    left = np.ones(sheet.shape[:2], bool)
    for (top, start), image in zip(places, rows[0] + rows[1], strict=True):
        area = np.s_[top : top + image.shape[0], start : start + image.shape[1]]
        np.testing.assert_array_equal(sheet[area], image)
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


def test_rain_sheet_shows_each_kind_and_crops_of_the_mix(tmp_path):
    for name in ("a", "b", "c"):
        write_image(tmp_path / f"{name}.png", noise(30, 40, ord(name)))
    config = DataConfig(photographs=str(tmp_path), crop_size=16, global_batch=3, rains=2)
    sheet = rain_sheet(open_pairs("synthetic", "train", config, 4), 2, config, seed=4)
    train, _ = photographs(tmp_path)
    for kind in KINDS:
        rain = SyntheticRain(train, 1, 4, RainConfig.only(kind))
        for index in (0, 1):
            for side in ("rainy", "clean"):
                assert is_in(sheet, rain[index][side]), (kind, index, side)
    mix = open_training(config, seed=4)
    batch = next(batches(mix, config, seed=4))
    assert all(is_in(sheet, crop) for crop in (*batch["rainy"], *batch["clean"]))


def is_in(sheet: np.ndarray, image: np.ndarray) -> bool:
    """Whether a sheet shows an image whole."""
    windows = np.lib.stride_tricks.sliding_window_view(sheet[..., 0], image.shape[:2])
    # A few pixels leave few places to compare.
    tops, lefts = np.nonzero((windows[..., :2, :3] == image[:2, :3, 0]).all((-2, -1)))
    height, width = image.shape[:2]
    return any(
        np.array_equal(sheet[top : top + height, left : left + width], image)
        for top, left in zip(tops, lefts, strict=True)
    )
