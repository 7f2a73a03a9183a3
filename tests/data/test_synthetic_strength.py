"""How strong each kind of synthetic rain is, by itself and beside benchmarks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import rain_statistics
from rain_statistics import statistics_of

from drsformer_jax.config import RainConfig
from drsformer_jax.data.synthetic import Photograph, SyntheticRain, photographs
from drsformer_jax.images.pixels import read_image


def rained(rain):
    """Every pair, drawn once."""
    return (rain[index] for index in range(len(rain)))


@pytest.fixture(scope="module", params=("light", "fine", "heavy"))
def strengths(request):
    """PSNR, mean added level and shares of pixels above 8 and 30, of 48 windows of a kind."""
    train, validation = photographs("skimage")
    mix = RainConfig.only(request.param)
    rain = SyntheticRain([*train, *validation], 8, 0, mix, 192, memory=2**27)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rain_statistics, "streaks", lambda layer: (math.nan,) * 3)
        found = [statistics_of(pair["rainy"], pair["clean"]) for pair in rained(rain)]
    return request.param, np.array([rain[:4] for rain in found])


BOUNDS = {
    "light": ((23, 27), (4.5, 9), (12, 20), (3.5, 8)),
    "fine": ((26, 30.5), (4, 8), (19, 35), (0.7, 4)),
    "heavy": ((12, 16.5), (24, 45), (55, 80), (32, 55)),
}
"""Medians of PSNR in dB, mean added levels, percent of pixels above 8 and 30 levels."""
NINE_TENTHS = {
    "light": ((18, 36), (1, 18), (4, 65), (0.2, 20)),
    "fine": ((20.5, 36), (1.5, 16), (4, 62), (0, 15)),
    "heavy": ((6.5, 22), (11, 95), (32, 93), (14, 85)),
}
"""What the 5th and the 95th percentiles are within; single images vary with the seed."""


def test_rain_of_each_kind_is_as_strong_as_it_is_to_be(strengths):
    kind, found = strengths
    for middle, bounds in zip(np.median(found, axis=0), BOUNDS[kind], strict=True):
        assert bounds[0] < middle < bounds[1]
    ends = np.percentile(found, (5, 95), axis=0).T
    for (least, most), bounds in zip(ends, NINE_TENTHS[kind], strict=True):
        assert bounds[0] <= least
        assert most < bounds[1]


REAL = {"light": "Rain100L", "heavy": "Rain200H"}


@pytest.mark.parametrize("kind", REAL)
def test_rain_of_each_kind_is_as_strong_as_the_benchmark(shared, kind, monkeypatch):
    monkeypatch.setattr(rain_statistics, "streaks", lambda layer: (math.nan,) * 3)
    rainy = sorted((shared / "data" / REAL[kind]).glob("*/input/*"))
    rainy = rainy[::2] if kind == "light" else rainy
    real = [
        statistics_of(read_image(path), read_image(path.parents[1] / "target" / path.name))
        for path in rainy
    ]
    photos = (shared / "data" / "Rain100L" / "train" / "target").iterdir()
    rain = SyntheticRain(
        [Photograph(path) for path in sorted(photos)[::2]], 4, 5, RainConfig.only(kind)
    )
    ours = [statistics_of(pair["rainy"], pair["clean"]) for pair in rained(rain)]
    assert (len(real), len(ours)) == ({"light": 28, "heavy": 6}[kind], 80)
    real, ours = (np.median([rain[:4] for rain in each], axis=0) for each in (real, ours))
    assert ours[0] == pytest.approx(real[0], abs=2)
    np.testing.assert_allclose(ours[1:], real[1:], rtol=0.3)
