"""How the layers of one image's rain lean, and how perspective changes it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import rain_statistics
from synthetic_rain import PLAIN, WITHOUT_STREAKS, gray, noise, of, rained

from drsformer_jax.config import DropRanges
from drsformer_jax.data.synthetic import add_rain
from drsformer_jax.data.synthetic.layers import Window


def leans(kind: str, count: int, size: tuple[int, int] = (160, 160), **changes: object) -> list:
    config = of(kind, **PLAIN, linear_share=0.0, opaque_share=0.0, **changes)
    pairs = [add_rain(gray(0, size), np.random.default_rng(s), config) for s in range(count)]
    return [rain_statistics.streaks(rainy.mean(2) - clean.mean(2))[0] for rainy, clean in pairs]


def test_wind_leans_by_its_deviation_and_at_most_by_45_degrees():
    calm = {"perspective": 0.0, "lean_of_layers": 0.0}
    found = leans("light", 40, **calm)
    assert np.std(found) == pytest.approx(14, rel=0.25)
    assert abs(np.mean(found)) < 5
    assert np.abs(leans("light", 4, lean=0.0, **calm)).max() < 1
    stormy = np.abs(leans("light", 12, lean=45.0, **calm))
    assert 43 < stormy.max() < 47


@pytest.mark.parametrize(
    ("kind", "layer", "spread"),
    [
        ("light", "light_near", ""),
        ("light", "light_distant", "lean_of_layers"),
        ("fine", "fine_drops", ""),
        ("fine", "fine_noise", "lean_of_layers"),
        ("ragged", "ragged_noise", "lean_of_layers"),
        ("heavy", "heavy_drops", "heavy_lean_of_layers"),
    ],
)
def test_nearest_drops_lean_as_the_wind_and_other_layers_about_it(kind, layer, spread):
    drops = DropRanges((30, 30), (1, 1), (0.1, 0.1), (0.3, 0.3), 0)
    alone = noise(layer, contrast=(0.3, 0.3)) if layer.endswith("noise") else {layer: drops}
    layers = dict.fromkeys(("ragged_layers", "fine_layers", "heavy_layers"), (1, 1))
    steady = {"perspective": 0.0, **layers}
    spreads = {
        "lean_of_layers": 1.0,
        "heavy_lean_of_layers": 1.0,
        **({spread: 12.0} if spread else {}),
    }
    found = leans(
        kind,
        24,
        **{**WITHOUT_STREAKS, **alone, **steady, **spreads},
        lean=0.0,
        fine_scale=(1.0, 1.0),
    )
    assert np.std(found) == pytest.approx(12 if spread else 0, abs=3.5 if spread else 0.7)


def test_perspective_makes_leans_differ_between_left_and_right():
    differences = []
    for perspective, seed in itertools.product((0.0, 20.0), range(8)):
        config = of("light", **PLAIN, lean=0.0, perspective=perspective, lean_of_layers=0.0)
        rainy = rained(gray(0, (200, 400)), config, seed)[0].mean(2)
        left, _, right = (
            rain_statistics.streaks(part)[0] for part in np.split(rainy, (130, 270), axis=1)
        )
        differences.append(right - left)
    even, turned = np.split(np.array(differences), 2)
    assert np.abs(even).max() < 4
    # From the middle of one third to that of another: 4/3 of up to 20 degrees.
    assert 10 < np.abs(turned).max() < 30
    assert turned.min() < -3 < 3 < turned.max()


def test_windows_show_their_part_of_the_perspective():
    config = of("light", **PLAIN, lean=0.0, perspective=20.0, lean_of_layers=0.0)
    found = []
    for left in (0, 300, 600):
        window = Window(50, left, 150, 150, 300, 750)
        rainy = rained(gray(0, (150, 150)), config, 1, window)[0].mean(2)
        found.append(rain_statistics.streaks(rainy)[0])
    assert abs(found[1]) < 3
    assert found[0] == pytest.approx(-found[2], abs=4)
    assert abs(found[0]) > 5
