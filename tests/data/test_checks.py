"""A pair that is none is reported: two sizes, one image twice, the rainy one called clean."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from drsformer_jax.config import RainConfig
from drsformer_jax.data.checks import problems
from drsformer_jax.data.folders import find_pairs, read_pair
from drsformer_jax.data.synthetic import SyntheticRain, add_rain, photographs
from drsformer_jax.images.pixels import read_image

SETS = {"Rain100L": ("train", "test"), "Rain200H": ("train", "test"), "Rain200L": ("test",)}
ADDED = dataclasses.replace(
    RainConfig.only("light"),
    **dict.fromkeys(("overcast_share", "linear_share", "opaque_share"), 0.0),
    **dict.fromkeys(("noise_share", "jpeg_share"), 0.0),
)
"""Rain that adds light and does nothing else."""
PHOTOGRAPHS = [photograph for part in photographs("skimage") for photograph in part]


def is_swapped(rainy: np.ndarray, clean: np.ndarray) -> bool:
    found = problems(rainy, clean)
    assert len(found) <= 1
    return bool(found) and "seem swapped: the clean one is brighter" in found[0]


def levels(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def scene() -> np.ndarray:
    return read_image(PHOTOGRAPHS[0].path)[:256, :256]


def rained(clean: np.ndarray, seed: int) -> np.ndarray:
    return add_rain(clean, np.random.default_rng(seed), ADDED)[0]


def test_sizes_that_differ_are_reported_and_nothing_else():
    rainy, clean = np.zeros((4, 6, 3), np.uint8), np.zeros((4, 7, 3), np.uint8)
    assert problems(rainy, clean) == [
        "the clean image is 7x4, the rainy one 6x4; a pair must have one size"
    ]


def test_one_image_twice_is_reported(scene):
    assert problems(scene, scene.copy()) == [
        "the rainy and the clean image are identical; expected rain on one"
    ]
    other = scene.copy()
    other[5, 6, 2] ^= 1  # in blue, at which the guess does not look
    assert problems(scene, other) == []


@pytest.mark.parametrize("photograph", PHOTOGRAPHS, ids=lambda photograph: photograph.name)
@pytest.mark.parametrize("seed", [0, 5, 16])
def test_synthetic_rain_is_right_and_is_found_when_swapped(photograph, seed):
    clean = read_image(photograph.path)
    rainy = rained(clean, seed)
    assert problems(rainy, clean) == []
    assert is_swapped(clean, rainy)


@pytest.mark.parametrize("name", SETS)
def test_every_real_pair_is_right_and_is_found_when_swapped(shared, name):
    for split in SETS[name]:
        for file, *paths in find_pairs(shared / "data" / name / split):
            rainy, clean = read_pair(*paths)
            assert problems(rainy, clean) == [], file
            # Streaks cover most of that one, so that the gaps between them are the tail.
            assert is_swapped(clean, rainy) == (
                (name, split, file) != ("Rain200H", "train", "3.png")
            )


def test_restored_images_are_not_called_swapped(shared):
    found = sorted(shared.glob("data/published_outputs/DRSformer/*/*.png"))
    assert len(found) == 6
    for path in found:
        clean = read_image(clean_of(shared, path))
        assert problems(read_image(path), clean) == []
        assert problems(clean, read_image(path)) == []


def clean_of(shared: Path, restored: Path) -> Path:
    number = restored.stem.split("_")[0]
    return shared / "data" / restored.parent.name / "test" / "target" / f"{number}.png"


@pytest.mark.parametrize("kind", ["light", "fine", "heavy"])
def test_no_kind_of_synthetic_rain_is_called_a_fault(kind):
    rain = SyntheticRain(PHOTOGRAPHS, 4, 0, RainConfig.only(kind))
    for pair in (rain[index] for index in range(len(rain))):
        assert problems(pair["rainy"], pair["clean"]) == []


@pytest.mark.parametrize("size", [1, 2, 3, 8, 16, 32])
def test_small_images_are_never_called_swapped(size):
    for seed, photograph in enumerate(PHOTOGRAPHS):
        clean = read_image(photograph.path)
        rainy = rained(clean, seed)
        for y in range(0, 320 - size, 40):
            window = np.s_[y : y + size, 2 * y // 3 : 2 * y // 3 + size]
            assert not is_swapped(rainy[window], clean[window])


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (2, 2)])
def test_flat_images_of_any_size_are_compared_in_silence(shape):
    dark, bright = (np.full((*shape, 3), value, np.uint8) for value in (10, 200))
    assert problems(dark, bright) == problems(bright, dark) == []


def test_a_bright_streak_on_a_flat_image_is_enough():
    rainy = np.full((9, 9, 3), 100, np.uint8)
    rainy[:, 4] = 220
    clean = np.full((9, 9, 3), 100, np.uint8)
    assert problems(rainy, clean) == []
    assert is_swapped(clean, rainy)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda x: levels(0.8 * x), id="exposed shorter"),
        pytest.param(lambda x: levels(1.2 * x), id="exposed longer"),
        pytest.param(lambda x: levels(0.6 * x + 80), id="haze"),
        pytest.param(lambda x: levels(0.6 * x), id="haze without light"),
        pytest.param(
            lambda x: levels(0.8 * x + np.random.default_rng(0).normal(0, 4, x.shape)),
            id="exposed shorter with noise",
        ),
        pytest.param(lambda x: np.roll(x, (1, 2), (0, 1)), id="moved"),
        pytest.param(
            lambda x: levels(x + np.random.default_rng(0).normal(0, 5, x.shape)), id="noise"
        ),
        pytest.param(
            lambda x: levels((x.astype(float) + np.roll(x, 1, 0) + np.roll(x, 1, 1)) / 3), id="blur"
        ),
    ],
)
def test_what_is_no_rain_is_not_called_swapped(scene, change):
    assert problems(change(scene), scene) == []


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("gain", [0.6, 0.8, 1.2])
def test_rain_under_another_exposure_is_not_called_swapped(scene, seed, gain):
    assert problems(levels(gain * rained(scene, seed)), scene) == []


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("veil", [0.2, 0.4])
def test_rain_in_a_haze_is_right_and_is_found_when_swapped(scene, seed, veil):
    rainy = levels((1 - veil) * rained(scene, seed) + veil * 200)
    assert problems(rainy, scene) == []
    assert is_swapped(scene, rainy)
