from __future__ import annotations

import dataclasses
import pickle
import re
from pathlib import Path

import numpy as np
import pytest

from drsformer_jax.data import synthetic
from drsformer_jax.data.images import read_picture, write_picture
from drsformer_jax.data.synthetic import Photograph, Streaks, SyntheticRain, add_rain, draw_streaks
from drsformer_jax.errors import InputError

LAYER = Streaks(angle=20, length=30, width=1, coverage=0.03, brightness=0.5)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return 10 * np.log10(255**2 / np.mean((a.astype(float) - b) ** 2))


def drawn(seed: int = 3, size: int = 400, **changes: float) -> np.ndarray:
    layer = dataclasses.replace(LAYER, **changes)
    return draw_streaks(layer, size, size, np.random.default_rng(seed))


def direction(light: np.ndarray) -> float:
    """Lean in degrees from the mean structure tensor, positive towards the lower right."""
    dy, dx = np.gradient(light)
    orientation = 0.5 * np.arctan2(2 * (dx * dy).mean(), (dx**2 - dy**2).mean())
    return -np.degrees(orientation)


def correlation(light: np.ndarray, shift: tuple[int, int]) -> float:
    moved = np.roll(light, shift, (0, 1))
    return np.corrcoef(light.ravel(), moved.ravel())[0, 1]


@pytest.mark.parametrize("angle", [-35, -10, 0, 20, 35])
def test_streaks_lean_by_their_angle(angle):
    # Streaks much wider than the gradient's step, which leans to the axes on sharp ones.
    light = drawn(angle=angle, width=4, length=100, coverage=0.5)
    assert direction(light) == pytest.approx(angle, abs=1)


def test_light_is_the_product_of_coverage_brightness_and_profile():
    # Mean over drops: brightness 0.65 of the brightest, a trapezoid over 2/3 of the length and a
    # Gaussian's area sqrt(2 pi) sigma, where coverage counts 2 sigma.
    layers = [drawn(seed, size=600, coverage=0.05, brightness=0.4) for seed in range(6)]
    expected = 0.05 * 0.4 * 0.65 * (2 / 3) * np.sqrt(2 * np.pi) / 2
    assert np.mean(layers) == pytest.approx(expected, rel=0.04)


def test_longer_streaks_stay_alike_farther_down():
    down = [correlation(drawn(angle=0, length=length), (15, 0)) for length in (10, 25, 60)]
    assert down[0] < 0.1 < down[1] < down[2]
    assert down[2] > 0.4


def test_wider_streaks_stay_alike_farther_sideways():
    aside = [correlation(drawn(angle=0, width=width), (0, 3)) for width in (0.6, 1.2, 2.4)]
    assert aside[0] < 0.1 < aside[1] < aside[2]


def test_borders_are_as_rainy_as_the_middle():
    mean = np.mean([drawn(seed, size=128, length=60, coverage=0.3) for seed in range(60)], axis=0)
    strips = [mean[:8], mean[-8:], mean[:, :8].T, mean[:, -8:].T]
    for strip in strips:
        assert strip.mean() == pytest.approx(mean[32:-32, 32:-32].mean(), rel=0.12)


def test_a_whole_streak_is_one_smooth_blob_within_its_length():
    light = drawn(seed=1, size=61, coverage=0.0, angle=0)
    assert light.max() == 0
    for seed in range(50):
        light = drawn(seed, size=400, coverage=0.0002, angle=0, width=1.0)
        rows = np.flatnonzero(light.any(1))
        if len(rows):
            break
    assert light.max() <= LAYER.brightness
    assert np.abs(np.diff(light, axis=0)).max() < 0.2 * light.max()


@pytest.mark.parametrize("size", [(1, 1), (1, 97), (3, 2), (33, 65), (129, 31)])
@pytest.mark.parametrize("level", [0, 90, 255])
def test_any_size_and_brightness_gives_8_bit_pictures(size, level):
    clean = np.full((*size, 3), level, np.uint8)
    rainy = add_rain(clean, np.random.default_rng(5))
    assert rainy.shape == clean.shape
    assert rainy.dtype == np.uint8
    assert (clean == level).all()


def test_bright_streaks_saturate_instead_of_wrapping():
    clean = np.full((200, 200, 3), 250, np.uint8)
    for seed in range(10):
        rainy = add_rain(clean, np.random.default_rng(seed))
        assert rainy.min() >= 230
        assert rainy.max() == 255


def test_rain_is_decided_by_the_generator_alone():
    clean = np.full((40, 50, 3), 100, np.uint8)
    np.random.seed(0)  # noqa: NPY002 - the global generator must have no effect
    first = add_rain(clean, np.random.default_rng(1))
    np.random.seed(1)  # noqa: NPY002
    np.testing.assert_array_equal(first, add_rain(clean, np.random.default_rng(1)))
    assert (first != add_rain(clean, np.random.default_rng(2))).any()


def test_rain_falls_alike_on_the_three_channels():
    clean = np.zeros((60, 60, 3), np.uint8)
    rainy = add_rain(clean, np.random.default_rng(0))
    assert (rainy == rainy[..., :1]).all()


def test_without_streaks_the_veil_draws_towards_the_air(monkeypatch):
    monkeypatch.setattr(
        synthetic, "draw_streaks", lambda streaks, h, w, rng: np.zeros((h, w), np.float32)
    )
    changes = []
    for seed in range(30):
        for level in (0, 255):
            clean = np.full((64, 80, 3), level, np.uint8)
            rainy = add_rain(clean, np.random.default_rng(seed)).astype(int)
            changes.append((rainy - clean).mean())
            assert np.abs(np.diff(rainy[..., 0], axis=1)).max() <= 1, "the veil must be smooth"
    changes = np.array(changes).reshape(-1, 2)
    assert (changes[:, 0] >= 0).all()
    assert (changes[:, 1] <= 0).all()
    assert 15 < changes[:, 0].max() < 0.12 * 0.9 * 255


def test_veil_dims_streaks_and_picture_alike(monkeypatch):
    monkeypatch.setattr(
        synthetic, "_veil", lambda h, w, strongest, rng: np.full((h, w), 0.5, np.float32)
    )
    pictures = []
    for level, light in ((0, 0.0), (0, 0.1), (100, 0.0), (100, 0.1)):
        monkeypatch.setattr(
            synthetic,
            "draw_streaks",
            lambda streaks, h, w, rng, light=light: np.full((h, w), light, np.float32),
        )
        clean = np.full((2, 2, 3), level, np.uint8)
        pictures.append(add_rain(clean, np.random.default_rng(0)).astype(int))
    none, streaks, picture, both = pictures
    np.testing.assert_allclose(streaks - none, 0.5 * 2 * 0.1 * 255, atol=1)
    np.testing.assert_allclose(picture - none, 0.5 * 100, atol=1)
    np.testing.assert_allclose(both - streaks, 0.5 * 100, atol=1)
    assert (none > 0.5 * 0.6 * 255 - 1).all()
    assert (none < 0.5 * 0.9 * 255 + 1).all()


def test_rain_on_the_photographs_is_as_strong_as_light_benchmarks():
    train, validation = synthetic.photographs("skimage")
    pairs = SyntheticRain(train + validation, rains=12, seed=100)
    scores, brighter = [], []
    for index in range(len(pairs)):
        pair = pairs[index]
        scores.append(psnr(pair["rainy"], pair["clean"]))
        brighter.append(pair["rainy"].mean() - pair["clean"].mean())
    assert 24 <= np.median(scores) <= 26
    assert 18.5 < min(scores) < 22.5
    assert 27.5 < max(scores) < 33
    assert min(brighter) > 0
    assert 3 < np.mean(brighter) < 12


def test_rain_on_a_picture_is_as_strong_as_rain100l():
    shared = Path(__file__).parents[1].parent / "shared" / "data" / "Rain100L" / "train"
    if not shared.is_dir():
        pytest.skip("needs ../shared")
    targets = sorted((shared / "target").iterdir())[:40]
    cleans = [read_picture(path) for path in targets]
    real = [
        psnr(read_picture(shared / "input" / path.name), clean)
        for path, clean in zip(targets, cleans, strict=True)
    ]
    ours = [
        psnr(add_rain(clean, np.random.default_rng(i)), clean) for i, clean in enumerate(cleans)
    ]
    assert abs(np.median(real) - np.median(ours)) < 2


def test_skimage_photographs_are_read_in_colour_and_never_split_a_scene():
    train, validation = synthetic.photographs("skimage")
    names = [photograph.name for photograph in train]
    assert names == ["astronaut", "motorcycle_left", "motorcycle_right", "rocket"]
    assert [photograph.name for photograph in validation] == ["chelsea", "coffee"]
    for photograph in train + validation:
        picture = read_picture(photograph.path)
        assert min(picture.shape[:2]) >= 300
        assert np.ptp(picture.astype(int), axis=-1).mean() > 5, "not in colour"


def test_skimage_photographs_equal_scikit_images_own():
    data = pytest.importorskip("skimage.data")
    train, validation = synthetic.photographs("skimage")
    for photograph in [train[0], train[3], *validation]:
        np.testing.assert_array_equal(
            read_picture(photograph.path), getattr(data, photograph.name)()
        )
    left, right, _ = data.stereo_motorcycle()
    np.testing.assert_array_equal(read_picture(train[1].path), left)
    np.testing.assert_array_equal(read_picture(train[2].path), right)


def test_missing_scikit_image_is_told_in_one_line(monkeypatch):
    monkeypatch.setattr(synthetic.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"^scikit-image is not installed; expected it, or a "):
        synthetic.photographs("skimage")


@pytest.mark.parametrize(("count", "held_out"), [(2, 1), (5, 1), (9, 1), (10, 2), (12, 2)])
def test_the_last_fifth_of_a_folder_is_for_validation(tmp_path, count, held_out):
    for index in range(count):
        (tmp_path / f"{index}.png").touch()
    train, validation = synthetic.photographs(str(tmp_path))
    assert [int(p.name) for p in train + validation] == list(range(count))
    assert len(validation) == held_out


def test_unusable_folders_of_photographs_are_told_in_one_line(tmp_path):
    (tmp_path / "a.png").touch()
    with pytest.raises(InputError, match=r"holds 1 picture; expected 2 or more, to train and to"):
        synthetic.photographs(tmp_path)
    (tmp_path / "a.jpg").touch()
    one, two = re.escape(str(tmp_path / "a.jpg")), re.escape(str(tmp_path / "a.png"))
    with pytest.raises(
        InputError,
        match=f"^{one} and {two} have one name; expected names that differ before the extension$",
    ):
        synthetic.photographs(tmp_path)
    with pytest.raises(InputError, match=r"/none does not exist; expected a folder of pictures"):
        synthetic.photographs(tmp_path / "none")


@pytest.fixture
def two(tmp_path) -> list[Photograph]:
    for name, level in (("dark", 30), ("bright", 200)):
        write_picture(tmp_path / f"{name}.png", np.full((50, 70, 3), level, np.uint8))
    return [Photograph(tmp_path / "dark.png"), Photograph(tmp_path / "bright.png")]


def test_items_are_named_and_ordered_by_photograph_then_rain(two):
    pairs = SyntheticRain(two, rains=3, seed=0)
    assert len(pairs) == 6
    assert [pair["name"] for pair in (pairs[i] for i in range(6))] == [
        "dark_000",
        "bright_000",
        "dark_001",
        "bright_001",
        "dark_002",
        "bright_002",
    ]
    assert [pairs[i]["clean"][0, 0, 0] for i in range(4)] == [30, 200, 30, 200]
    for index in (6, -1):
        with pytest.raises(IndexError, match=f"index {index} is outside of 0 to 5"):
            pairs[index]


def light(pair: synthetic.Pair) -> bytes:
    return (pair["rainy"].astype(int) - pair["clean"]).tobytes()


def test_pairs_repeat_by_seed_and_differ_by_index(two):
    pairs = SyntheticRain(two, rains=4, seed=7)
    again = pickle.loads(pickle.dumps(pairs))
    assert [light(again[i]) for i in reversed(range(8))] == [light(pairs[i]) for i in range(8)][
        ::-1
    ]
    other = SyntheticRain(two, rains=4, seed=8)
    every = {light(source[i]) for source in (pairs, other) for i in range(8)}
    assert len(every) == 16


def test_a_pair_stays_when_photographs_and_rains_are_added(two):
    alone = SyntheticRain(two[1:], rains=1, seed=7)[0]
    among = SyntheticRain(two, rains=5, seed=7)[1]
    assert alone["name"] == among["name"] == "bright_000"
    np.testing.assert_array_equal(alone["rainy"], among["rainy"])
