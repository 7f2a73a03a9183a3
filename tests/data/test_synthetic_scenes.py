"""What rain does to a photograph: the kinds, what is on which side, and how strong it is."""

from __future__ import annotations

import dataclasses
import io
import math

import numpy as np
import pytest
import rain_statistics
from PIL import Image
from synthetic_rain import (
    DARK,
    PLAIN,
    RAINY,
    UNCHANGED,
    WITHOUT_STREAKS,
    gray,
    noise,
    of,
    rained,
)

from drsformer_jax.config import KINDS, DropRanges, RainConfig
from drsformer_jax.data.synthetic import add_rain, photographs
from drsformer_jax.data.synthetic.layers import Window
from drsformer_jax.errors import InputError
from drsformer_jax.images.pixels import read_image


@pytest.fixture(scope="module")
def part() -> np.ndarray:
    """A part of a photograph that has dark, bright and colored places."""
    return read_image(photographs("skimage")[0][0].path)[40:140, 150:280]


@pytest.mark.parametrize("size", [(1, 1), (1, 97), (3, 2), (33, 65), (129, 31)])
@pytest.mark.parametrize("level", [0, 90, 255])
@pytest.mark.parametrize("kind", KINDS)
def test_any_size_and_brightness_gives_8_bit_images(size, level, kind):
    clean = gray(level, size)
    for seed in range(3):
        rained(clean, of(kind), seed)
    assert (clean == level).all()


@pytest.mark.parametrize("kind", RAINY)
def test_bright_streaks_saturate_instead_of_wrapping(kind):
    rainy, target = rained(gray(250), of(kind, **PLAIN, opaque_share=0.0))
    assert rainy.max() == 255
    # Of a drop in linear light, less of what is behind it comes through.
    assert rainy.min() >= target.min() - (12 if kind == "fine" else 0)


@pytest.mark.parametrize("kind", KINDS)
def test_rain_is_decided_by_the_generator_alone(kind, part):
    np.random.seed(0)  # noqa: NPY002 - the global generator must have no effect
    first = add_rain(part, np.random.default_rng(1), of(kind))
    np.random.seed(1)  # noqa: NPY002
    again = add_rain(part.copy(), np.random.default_rng(1), of(kind))
    other = add_rain(part, np.random.default_rng(2), of(kind))
    np.testing.assert_array_equal(first, again)
    assert (first[0] != other[0]).any() or kind == "none"


def test_kinds_are_drawn_by_their_weights():
    """Told by noise, of which fine rain alone has some here, and by how much light is added."""
    few, much = (DropRanges((15, 15), (1, 1), (cover,) * 2, (0.9, 0.9)) for cover in (0.1, 0.5))
    drops = {**WITHOUT_STREAKS, "light_near": few, "heavy_drops": much, "heavy_layers": (1, 1)}
    ways = {"noise_share": 0.0, "linear_share": 0.0, "opaque_share": 0.0, "unevenness": (1.0, 1.0)}
    config = RainConfig(
        **{**PLAIN, **drops, **ways, "noise": 0.05, "light": 2.0, "fine": 4.0, "heavy": 6.0},
        none=8.0,
    )
    found = []
    for seed in range(1000, 1500):
        rainy, clean = rained(gray(0, (48, 48)), config, seed)
        colored = (rainy != rainy[..., :1]).any()
        found.append(
            "none"
            if (rainy == clean).all()
            else "fine"
            if colored
            else "light"
            if rainy.mean() < 35
            else "heavy"
        )
    shares = [found.count(kind) / len(found) for kind in KINDS]
    assert shares == pytest.approx([0.1, 0.2, 0.3, 0.4], abs=0.05)


@pytest.mark.parametrize("kind", ["light", "heavy"])
def test_rain_falls_alike_on_the_three_channels(kind):
    for seed in range(4):
        rainy, _ = rained(gray(60), of(kind, noise=0.0, jpeg_share=0.0), seed)
        assert (rainy == rainy[..., :1]).all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_target_is_the_photograph_without_gray_sky_and_fog(kind, part):
    for seed in range(4):
        rainy, clean = rained(part, of(kind, **UNCHANGED), seed)
        np.testing.assert_array_equal(clean, part)
        assert (rainy == clean).all() == (kind == "none")


@pytest.mark.parametrize("overcast", [0.0, 1.0])
def test_images_without_rain_are_equal_sides_of_their_own(overcast, part):
    rainy, clean = add_rain(
        part, np.random.default_rng(0), of("none", overcast_share=overcast, noise_share=1.0)
    )
    np.testing.assert_array_equal(rainy, clean)
    assert not np.shares_memory(rainy, clean)


@pytest.mark.parametrize("kind", KINDS)
def test_a_gray_sky_takes_color_and_contrast_from_both_sides(kind, part):
    config = {**PLAIN, **WITHOUT_STREAKS, "overcast_share": 1.0, "linear_share": 0.0}
    colors, levels = [], []
    for seed in range(30):
        rainy, clean = rained(part, of(kind, **config), seed)
        assert (clean != part).any()
        # Through linear light and back a value may be rounded otherwise.
        np.testing.assert_allclose(rainy, clean, atol=int(kind == "fine"))
        colors.append(np.ptp(clean, axis=2).mean() / np.ptp(part.astype(int), axis=2).mean())
        _, graded = rained(
            np.array([[[0] * 3, [127] * 3, [255] * 3]], np.uint8), of(kind, **config), seed
        )
        assert (graded == graded[..., :1]).all(), "gray stays gray"
        levels.append(graded[0, :, 0] / 255)
    # Saturation of 0.5 to 1 times contrast of 0.7 to 1, under a gamma of 0.8 to 1.4.
    assert 0.25 < min(colors) < 0.65
    assert 0.8 < max(colors) < 1.2
    black, middle, white = np.array(levels).T
    gamma = np.log(middle) / np.log(127 / 255)
    assert 0.79 < gamma.min() < 0.9
    assert 1.3 < gamma.max() < 1.41
    contrast = white ** (1 / gamma) - black ** (1 / gamma)
    assert 0.69 < contrast.min() < 0.76
    assert 0.94 < contrast.max() <= 1


FOG = {**PLAIN, **WITHOUT_STREAKS, "fog_share": 1.0}


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "fine"])
def test_fog_is_that_of_fine_rain_alone(kind, part):
    _, clean = rained(part, of(kind, **FOG))
    np.testing.assert_array_equal(clean, part)


def test_fog_lifts_the_blacks_of_both_sides_most_at_the_top():
    for seed in range(10):
        rainy, clean = rained(gray(0), of("fine", **FOG), seed)
        np.testing.assert_allclose(rainy, clean, atol=1)
        rows = clean.mean((1, 2))
        assert rows[0] > 20
        assert rows[-1] < 0.15 * rows[0]
        assert (np.diff(rows) < 0.5).all()


def test_fog_takes_light_by_its_density_and_has_a_slightly_blue_light_of_its_own():
    lights, transmissions, blues = [], [], []
    for seed in range(40):
        config = of("fine", **FOG, fog_density=(0.8, 0.8))
        (_, black), (_, white) = (rained(gray(level), config, seed) for level in (0, 255))
        transmission = (white - black)[0].mean(1) / 255
        transmissions += [transmission.min(), transmission.max()]
        light = black[0].mean(0) / (1 - transmission.mean())
        lights.append(light[1] / 255)
        blues.append((light[2] - light[0]) / 255)
    # The smooth field has 0.6 to 1 of the density at the far end, where the ramp is 0.99 or so.
    assert math.exp(-0.8) - 0.01 < min(transmissions) < math.exp(-0.7)
    assert math.exp(-0.6) < max(transmissions) < math.exp(-0.46)
    assert 0.54 < min(lights) < 0.62
    assert 0.83 < max(lights) < 0.91
    assert min(blues) > -0.01
    assert 0.04 < max(blues) < 0.07


def test_a_window_has_its_part_of_the_photographs_fog():
    config = of("fine", **FOG)
    for seed in range(3):
        whole = rained(gray(0, (120, 160)), config, seed)[1]
        for top, left in ((0, 0), (80, 90), (37, 11)):
            window = Window(top, left, 40, 70, 120, 160)
            found = rained(gray(0, (40, 70)), config, seed, window)[1]
            np.testing.assert_allclose(found, whole[top : top + 40, left : left + 70], atol=1)


VEIL = {
    **{**PLAIN, **WITHOUT_STREAKS},
    **{"linear_share": 0.0, "opaque_share": 0.0, "veil_share": 1.0},
}


@pytest.mark.parametrize("kind", ["light", "ragged"])
def test_light_rain_has_a_veil_by_its_share(kind):
    config = of(kind, **{**VEIL, "veil_share": 0.3, "veil": 1.0})
    found = [rained(gray(0, (32, 32)), config, seed)[0].any() for seed in range(200)]
    # The square of a number from 0 to 1 is too small to be seen in a twentieth.
    assert np.mean(found) == pytest.approx(0.3 * 0.95, abs=0.1)


def test_without_streaks_the_veil_of_light_rain_draws_towards_the_air():
    lights, veils = [], []
    for seed in range(60):
        (black, _), (white, _) = (
            rained(gray(level), of("light", **{**VEIL, "veil": 0.5}), seed) for level in (0, 255)
        )
        assert (np.abs(np.diff(black, axis=1)) <= 2).all(), "the veil must be smooth"
        veil = 255 - (white - black)
        if veil.mean() > 20:
            lights.append(black.mean() / veil.mean())
        veils.append(veil.mean() / 255)
        assert veil.max() <= 0.5 * 255
    assert len(lights) > 10
    assert 0.58 < min(lights) < 0.68
    assert 0.82 < max(lights) < 0.92
    # 0.75 of the field, of the square of a number from 0 to 1 a third, and of 0.5.
    assert np.mean(veils) == pytest.approx(0.5 * 0.75 / 3, rel=0.25)


@pytest.mark.parametrize("kind", ["fine", "heavy"])
def test_only_light_rain_has_a_veil(kind):
    rainy, clean = rained(gray(0), of(kind, **{**VEIL, "veil": 1.0}))
    np.testing.assert_array_equal(rainy, clean)


@pytest.mark.parametrize("kind", ["light", "heavy"])
def test_added_rain_adds_the_same_levels_over_everything(kind):
    config = of(kind, **PLAIN, linear_share=0.0, opaque_share=0.0)
    (over_dark, _), (over_gray, _) = (rained(gray(level), config) for level in (0, 100))
    np.testing.assert_allclose(np.minimum(over_dark + 100, 255), over_gray, atol=1)
    assert over_dark.max() > 60


@pytest.mark.parametrize("kind", RAINY)
def test_rain_in_linear_light_adds_more_levels_over_dark_than_over_bright_areas(kind):
    """O^g is (1 - 0.3 S) B^g + U S: so does 1 - 0.3 S follow from what black and gray become."""
    config = of(kind, **PLAIN, linear_share=1.0, opaque_share=0.0)
    shares = []
    for seed in range(12):
        dark, middle, bright = (rained(gray(level), config, seed)[0] for level in (0, 120, 220))
        if kind != "fine":
            assert dark.mean() > 1.5 * (middle - 120).mean()
        assert dark.mean() > (middle - 120).mean() > (bright - 220).mean()
        seen = (dark > 40) & (dark < 240)
        over_black, over_gray = ((each / 255) ** 2.2 for each in (dark[seen], middle[seen]))
        lost = 1 - (over_gray - over_black) / (120 / 255) ** 2.2
        shares.append((lost * over_black).sum() / (over_black**2).sum())
    # 0.3 / U, U being from 0.6 to 1.
    assert 0.29 < min(shares) < 0.36
    assert 0.42 < max(shares) < 0.51


@pytest.mark.parametrize("kind", ["light", "heavy"])
def test_opaque_rain_covers_what_is_behind_it(kind):
    """Black becomes share x light; the share is what white and black have less in common."""
    brightness = DropRanges((20, 40), (1, 1), (0.3, 0.3), (0.9, 0.9))
    drops = {"light_near": brightness, "light_distant": brightness, "heavy_drops": brightness}
    config = of(kind, **PLAIN, **drops, linear_share=0.0, opaque_share=1.0)
    lights = []
    for seed in range(20):
        (black, _), (white, _) = (rained(gray(level), config, seed) for level in (0, 255))
        covered = 255 - (white - black)
        assert covered.max() == pytest.approx(0.85 * 255, abs=1)
        lights.append(black.sum() / covered.sum())
    assert 0.74 < min(lights) < 0.81
    assert 0.94 < max(lights) < 1.01


def test_ways_that_light_meets_the_photograph_are_drawn_by_their_shares():
    """Over white, added rain adds nothing; opaque rain and that in linear light take some."""
    config = of("light", **PLAIN, linear_share=0.25, opaque_share=0.35)
    found = []
    for seed in range(150):
        black, white = (rained(gray(level, (48, 48)), config, seed)[0] for level in (0, 255))
        added, covering = (white == 255).all(), (255 - (white - black)).sum() < 2.5 * black.sum()
        found.append("added" if added else "opaque" if covering else "linear")
    # Faint rain over white is brought to 255 by linear light too.
    assert found.count("opaque") == pytest.approx(0.35 * 150, abs=15)


@pytest.mark.parametrize("kind", RAINY)
def test_seen_share_of_fine_and_heavy_rain_is_uneven(kind):
    drops = {"fine_drops": DARK, "blurred_drops": DARK}
    config = of(kind, **PLAIN, **drops, unevenness=(0.0, 0.0), opaque_share=0.0, linear_share=0.0)
    rainy, clean = rained(gray(40), config)
    assert (rainy == clean).all() == (kind in ("fine", "heavy"))


@pytest.mark.parametrize("layer", ["far rain", "drops"])
def test_fine_rain_has_one_scale_for_its_lengths(layer):
    seen = noise("fine_noise", contrast=(0.3, 0.3)) if layer == "far rain" else {}
    few = DropRanges((30, 30), (0.6, 0.6), (0.1, 0.1), (0.3, 0.3))
    drops = {} if layer == "far rain" else {"fine_drops": few}
    steady = {"lean": 0.0, "lean_of_layers": 0.0, "perspective": 0.0, "fine_layers": (1, 1)}
    config = {**PLAIN, **WITHOUT_STREAKS, **seen, **drops, **steady}
    for seed in range(3):
        lengths = []
        for scale in (1.0, 2.0):
            scaled = of("fine", **config, fine_scale=(scale, scale))
            rainy = rained(gray(0, (300, 300)), scaled, seed)[0].mean(2)
            lengths.append(rain_statistics.streaks(rainy)[1])
        assert lengths[1] == pytest.approx(2 * lengths[0], rel=0.2)


def test_fine_rain_has_blurred_drops_by_their_share():
    blurred = dataclasses.replace(RainConfig().blurred_drops, coverage=(0.05, 0.05))
    drops = {**WITHOUT_STREAKS, "blurred_drops": blurred}
    for share in (0.0, 1.0):
        config = of("fine", **PLAIN, **drops, blurred_share=share)
        added = np.subtract(*rained(gray(40, (256, 256)), config)).mean(2)
        assert (added.max() > 5) == bool(share)
    # Out of focus: a half-width is 1.67 standard deviations of 2 to 4 pixels.
    assert 3 < rain_statistics.streaks(added)[2] < 8


def test_light_rain_is_ragged_by_its_share():
    """Of noise and of drops one adds light here, so that they can be told apart."""
    some = {**PLAIN, **WITHOUT_STREAKS, **noise("ragged_noise", contrast=(0.4, 0.4))}
    config = of("light", **some, ragged_share=0.7)
    found = [rained(gray(0, (48, 48)), config, seed)[0].any() for seed in range(200)]
    assert np.mean(found) == pytest.approx(0.7, abs=0.1)


def test_ragged_rain_leaves_its_share_dark():
    steady = {"ragged_layers": (1, 1), "linear_share": 0.0, "opaque_share": 0.0}
    for dark in (0.6, 0.85):
        layer = noise("ragged_noise", dark=(dark, dark), contrast=(0.5, 0.5))
        config = of("ragged", **PLAIN, **steady, **layer)
        added = rained(gray(0, (300, 300)), config)[0].mean(2)
        assert (added == 0).mean() == pytest.approx(dark, abs=0.06)
        assert np.percentile(added, 99) == pytest.approx(0.5 * 255, rel=0.15)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_hard_streaks_of_heavy_rain_have_their_share(share):
    """Down a soft streak hardly a pixel is as bright as that above it."""
    drops = DropRanges((60, 60), (1.5, 1.5), (0.05, 0.05), (0.9, 0.9), 0)
    config = of(
        "heavy",
        **PLAIN,
        **{"linear_share": 0.0, "opaque_share": 0.0, "unevenness": (1.0, 1.0)},
        **{"lean": 0.0, "perspective": 0.0, "heavy_lean_of_layers": 0.0},
        **{"heavy_drops": drops, "heavy_layers": (1, 1), "hard_share": share},
    )
    alike = []
    for seed in range(6):
        rainy = rained(gray(0), config, seed)[0][..., 0]
        below = (rainy[:-1] == rainy[1:])[rainy[:-1] > 5]
        alike.append(below.mean())
    assert (min(alike) > 0.9) if share else (max(alike) < 0.3)


@pytest.mark.parametrize("kind", RAINY)
def test_noise_is_on_the_rainy_side_alone(kind, part):
    strengths = []
    for seed in range(30):
        settings = {**UNCHANGED, **WITHOUT_STREAKS, "veil": 0.0, "noise": 0.04}
        shares = {"jpeg_share": 0.0, "fine_jpeg_share": 0.0, "noise_share": 1.0}
        rainy, clean = rained(part // 2 + 60, of(kind, **settings, **shares), seed)
        np.testing.assert_array_equal(clean, part // 2 + 60)
        strengths.append((rainy - clean).std() / 255)
        assert abs((rainy - clean).mean()) < 0.3
    assert min(strengths) < 0.015
    assert 0.03 < max(strengths) < 0.041


@pytest.mark.parametrize("kind", ["light", "heavy"])
def test_light_and_heavy_rain_have_noise_by_its_share(kind, part):
    config = of(kind, **{**PLAIN, **WITHOUT_STREAKS, "noise": 0.1}, noise_share=0.0)
    rainy, clean = rained(part, config)
    np.testing.assert_array_equal(rainy, clean)


@pytest.mark.parametrize("kind", RAINY)
def test_the_rainy_side_alone_goes_through_jpeg(kind, part):
    settings = {**PLAIN, "jpeg_quality": (70, 70)}
    before, _ = rained(part, of(kind, **settings))
    share = "fine_jpeg_share" if kind == "fine" else "jpeg_share"
    after, clean = rained(part, of(kind, **{**settings, share: 1.0}))
    np.testing.assert_array_equal(clean, part)
    with io.BytesIO() as file:
        Image.fromarray(before.astype(np.uint8)).save(file, "JPEG", quality=70)
        np.testing.assert_array_equal(after, np.asarray(Image.open(file)))
    assert 0.5 < np.abs(after - before).mean() < 15
    other, _ = rained(part, of(kind, **{**PLAIN, "jpeg_quality": (95, 95), share: 1.0}))
    assert np.abs(other - before).mean() < np.abs(after - before).mean()


def test_photograph_with_a_side_too_long_for_jpeg_is_reported_in_one_line():
    jpeg = dataclasses.replace(of("light"), jpeg_share=1)
    with pytest.raises(InputError, match=r"is 65501x1; expected sides of at most 65500 in JPEG"):
        add_rain(np.zeros((1, 65_501, 3), np.uint8), np.random.default_rng(0), jpeg)
