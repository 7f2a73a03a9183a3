"""Layers of synthetic rain have the lean, size, light and evenness that they are drawn with."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy import ndimage

from drsformer_jax.data.synthetic import layers
from drsformer_jax.data.synthetic.layers import (
    Noise,
    Streaks,
    Window,
    draw_noise,
    draw_streaks,
    smooth_field,
)

LAYER = Streaks(angle=20, length=30, width=1, coverage=0.03, brightness=0.5)
UPRIGHT = dataclasses.replace(LAYER, angle=0, scatter=0)
FAR = Noise(angle=20, length=30, blur=0.5, density=0.02, contrast=0.1, dark=0.35, taper=0)


def drawn(seed: int = 3, size: int = 400, layer: Streaks = LAYER, **changes: float) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return draw_streaks(dataclasses.replace(layer, **changes), size, size, rng)


def far(seed: int = 3, size: int = 300, **changes: float) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return draw_noise(dataclasses.replace(FAR, **changes), size, size, rng)


def alone(**changes: object) -> list[np.ndarray]:
    """The light of upright streaks that touch neither another nor a border, each cut out."""
    found = []
    for seed in range(6):
        # So few that none of these seeds lets two touch.
        light = drawn(seed, 1500, UPRIGHT, coverage=0.0005, length=40, width=1.5, **changes)
        for place in ndimage.find_objects(ndimage.label(light, np.ones((3, 3)))[0]):
            if all(each.start > 0 and each.stop < 1500 for each in place):
                found.append(light[place])
    assert len(found) > 40
    return found


def direction(light: np.ndarray) -> float:
    """Lean in degrees from the mean structure tensor, positive towards the lower right."""
    dy, dx = np.gradient(light)
    orientation = 0.5 * np.arctan2(2 * (dx * dy).mean(), (dx**2 - dy**2).mean())
    return -np.degrees(orientation)


def correlation(light: np.ndarray, shift: tuple[int, int]) -> float:
    moved = np.roll(light, shift, (0, 1))
    return np.corrcoef(light.ravel(), moved.ravel())[0, 1]


def along(angle: float, distance: float) -> tuple[int, int]:
    """Rows and columns of a move along the wind."""
    lean = np.radians(angle)
    return round(distance * np.cos(lean)), round(distance * np.sin(lean))


@pytest.mark.parametrize("angle", [-35, -10, 0, 20, 35])
@pytest.mark.parametrize("hard", [False, True])
def test_streaks_lean_by_their_angle(angle, hard):
    # Streaks much wider than the gradient's step, which leans to the axes on sharp ones.
    light = drawn(angle=angle, width=4, length=100, coverage=0.5, hard=hard)
    light = ndimage.gaussian_filter(light, 2) if hard else light
    assert direction(light) == pytest.approx(angle, abs=1)


def test_scatter_spreads_the_leans_about_the_layers():
    """It leaves the tangent's square of the gradient's energy along the mean lean."""
    energy = []
    for scatter in (0, 5, 15):
        layer = dataclasses.replace(UPRIGHT, width=3, length=90, coverage=0.4)
        dy, dx = np.gradient(drawn(layer=layer, size=600, scatter=scatter))
        energy.append((dy**2).mean() / (dx**2).mean())
    spread = np.tan(np.radians((5, 15))) ** 2
    np.testing.assert_allclose(np.array(energy[1:]) - energy[0], spread, rtol=0.25)


def test_perspective_turns_the_leans_from_left_to_right():
    light = drawn(angle=5, perspective=15, width=3, length=60, coverage=0.5, size=600)
    thirds = [direction(part) for part in np.split(light, 3, axis=1)]
    # The lean changes evenly, so that a third has that of its middle.
    assert thirds == pytest.approx([5 - 10, 5, 5 + 10], abs=2)


@pytest.mark.parametrize(
    ("hard", "profile"), [(False, 2 / 3 * np.sqrt(2 * np.pi) / 2), (True, 2.4 / 2)]
)
def test_light_is_the_product_of_coverage_brightness_and_profile(hard, profile):
    """Means over drops: brightness 0.65 of the brightest, width exp(0.3^2 / 2) of the layer's.

    A soft streak is a trapezoid over 2/3 of its length and a Gaussian of area sqrt(2 pi) sigma, of
    which coverage counts 2 sigma; ripples cancel. A hard one is a bar of 2.4 sigma.
    """
    lights = [drawn(seed, coverage=0.3, brightness=0.4, hard=hard) for seed in range(8)]
    expected = 0.3 * 0.4 * 0.65 * np.exp(0.3**2 / 2) * profile
    assert np.mean(lights) == pytest.approx(expected, rel=0.015)


def test_longer_streaks_stay_alike_farther_down():
    down = [correlation(drawn(angle=0, length=length), (15, 0)) for length in (10, 25, 60)]
    assert down[0] < 0.1 < down[1] < down[2]
    assert down[2] > 0.4


def test_wider_streaks_stay_alike_farther_sideways():
    aside = [correlation(drawn(angle=0, width=width), (0, 3)) for width in (0.6, 1.2, 2.4)]
    assert aside[0] < 0.15 < aside[1] < aside[2]


@pytest.mark.parametrize("draw", [drawn, far])
def test_borders_are_as_rainy_as_the_middle(draw):
    sparse = {"coverage": 0.3} if draw is drawn else {}
    mean = np.mean([draw(seed, size=128, length=60, **sparse) for seed in range(100)], axis=0)
    strips = [mean[:8], mean[-8:], mean[:, :8].T, mean[:, -8:].T]
    for strip in strips:
        assert strip.mean() == pytest.approx(mean[32:-32, 32:-32].mean(), rel=0.1)


def test_a_layer_without_coverage_is_dark():
    assert drawn(coverage=0).max() == 0
    assert drawn(brightness=0).max() == 0


def test_soft_streaks_fade_at_their_ends_and_across():
    for light in alone():
        assert light.max() <= LAYER.brightness * 1.35
        assert np.abs(np.diff(light, axis=0)).max() < 0.3 * light.max()
        across = light[len(light) // 2]
        assert (np.diff(across[: across.argmax() + 1]) > 0).all()
        assert (np.diff(across[across.argmax() :]) < 0).all()
        assert light[[0, -1]].max() < 0.2 * light.max()


def test_soft_streaks_ripple_by_up_to_a_third_of_their_light():
    depths = []
    for light in alone():
        # The trapezoid is level over the middle third, and what ripples is seen alone.
        level = light[len(light) // 3 + 2 : -(len(light) // 3 + 2)].sum(1)
        depths.append(np.ptp(level) / (level.max() + level.min()))
    assert 0.28 < max(depths) < 0.36
    assert 0.05 < np.median(depths) < 0.25


def test_hard_streaks_are_bars_of_one_brightness_with_steep_ends_and_edges():
    brightest = []
    for light in alone(hard=True):
        # Nothing but one pixel at either end is neither in nor out.
        inside = light[1:-1]
        np.testing.assert_allclose(inside, np.broadcast_to(inside[0], inside.shape), rtol=1e-6)
        assert (inside[:, 1:-1] == light.max()).all()
        brightest.append(light.max() / LAYER.brightness)
    assert 0.3 <= min(brightest) < 0.4
    assert 0.9 < max(brightest) <= 1


def test_lengths_are_half_to_one_and_a_half_of_the_layers():
    lengths = np.array([len(light) for light in alone(hard=True)])
    assert 20 <= lengths.min() < 23
    assert 58 <= lengths.max() <= 62
    assert lengths.mean() == pytest.approx(40, abs=4)


def test_streaks_add_up_where_they_cross():
    one, two = drawn(coverage=0.5, brightness=0.3), drawn(coverage=0.5, brightness=0.6)
    # Light below 0.001 is left out.
    np.testing.assert_allclose(two, 2 * one, atol=0.01)
    assert one.max() > 0.3 * 1.35


def test_light_does_not_depend_on_how_many_drops_are_stamped_at_once(monkeypatch):
    together = drawn(coverage=0.4)
    monkeypatch.setattr(layers, "_DROPS_AT_ONCE", 5)
    # A window ends at 3 deviations of its widest drop, where 0.011 of the light is left.
    np.testing.assert_allclose(drawn(coverage=0.4), together, atol=0.011 * LAYER.brightness)


@pytest.mark.parametrize("size", [(1, 1), (1, 97), (3, 2), (33, 65), (129, 31)])
def test_layers_of_any_size_are_light(size):
    window = Window.whole(*size)
    for light in (
        draw_streaks(LAYER, *size, np.random.default_rng(0)),
        draw_streaks(dataclasses.replace(LAYER, hard=True), *size, np.random.default_rng(0)),
        draw_noise(FAR, *size, np.random.default_rng(0)),
        smooth_field(window, 0.0, 1.0, np.random.default_rng(0)),
    ):
        assert light.shape == size
        assert light.dtype == np.float32
        assert (light >= 0).all()
        assert (light < 3).all()


@pytest.mark.parametrize("angle", [-35, -10, 0, 20, 35])
def test_noise_leans_by_its_angle(angle):
    assert direction(far(angle=angle, blur=2, length=60)) == pytest.approx(angle, abs=1)


@pytest.mark.parametrize("angle", [-30, 0, 15])
def test_longer_noise_stays_alike_farther_along_the_wind(angle):
    move = along(angle, 12)
    # Of a box of a length, 1 - distance / length stays.
    found = [correlation(far(angle=angle, length=length), move) for length in (10, 24, 60)]
    assert found[0] < 0.1
    assert found[1:] == pytest.approx([1 - 12 / 24, 1 - 12 / 60], abs=0.1)
    # And hardly any across.
    assert abs(correlation(far(angle=angle, length=60), along(angle + 90, 12))) < 0.1


def test_noise_is_as_wide_as_its_blur():
    """Two Gaussians of a width, moved by 2 pixels, have exp(-(2 / width)^2 / 4) in common."""
    found = [correlation(far(angle=0, blur=blur), (0, 2)) for blur in (0.5, 1, 2)]
    expected = [np.exp(-((2 / blur) ** 2) / 4) for blur in (0.5, 1, 2)]
    assert found == pytest.approx(expected, abs=0.1)


@pytest.mark.parametrize("contrast", [0.03, 0.12])
@pytest.mark.parametrize("density", [0.004, 0.05])
def test_contrast_is_the_light_of_the_brightest_hundredth_of_noise(contrast, density):
    light = far(contrast=contrast, density=density)
    assert np.percentile(light, 99) == pytest.approx(contrast, rel=0.12)
    assert light.max() < 6 * contrast


@pytest.mark.parametrize("dark", [0.35, 0.8])
def test_the_darkest_part_of_noise_adds_no_light(dark):
    assert (far(dark=dark) == 0).mean() == pytest.approx(dark, abs=0.03)


def test_taper_softens_the_ends_of_streaks():
    """The greatest step along a single streak: a box, or the end of a box under a Gaussian."""
    steps = []
    for taper in (0.0, 0.1, 0.3):
        light = far(angle=0, blur=1, length=61, density=1e-9, taper=taper)
        steps.append(np.abs(np.diff(light, axis=0)).max() / light.max())
    assert steps[0] == pytest.approx(1, abs=0.3)
    # 1 / (deviation x sqrt(2 pi)); of the wider one the middle is 0.9 of the box.
    expected = [1 / (6.1 * 2.507), 1 / (18.3 * 2.507 * 0.904)]
    assert steps[1:] == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("angle", [0, 40])
def test_noise_does_not_come_back_at_the_other_side(angle):
    for seed in range(4):
        light = far(seed, angle=angle)
        # Neighbors are alike, and would be across the border.
        pairs = [(light[0], light[1], light[-1])]
        pairs += [(light[:, 0], light[:, 1], light[:, -1])] if angle else []
        for first, second, last in pairs:
            assert np.corrcoef(first, second)[0, 1] > 0.4
            assert abs(np.corrcoef(first, last)[0, 1]) < 0.25


WHOLE = Window.whole(210, 330)


def test_a_windows_field_is_its_part_of_the_whole_field():
    rng = np.random.default_rng(4)
    whole = smooth_field(WHOLE, 0.2, 0.9, np.random.default_rng(7))
    for _ in range(20):
        h, w = (int(side) for side in rng.integers(1, 200, 2))
        top, left = int(rng.integers(211 - h)), int(rng.integers(331 - w))
        window = Window(top, left, h, w, 210, 330)
        field = smooth_field(window, 0.2, 0.9, np.random.default_rng(7))
        np.testing.assert_allclose(field, whole[top : top + h, left : left + w], atol=1e-6)


def test_a_field_is_smooth_and_within_its_limits():
    fields = np.array([smooth_field(WHOLE, 0.2, 0.9, np.random.default_rng(s)) for s in range(100)])
    assert fields.dtype == np.float32
    assert 0.2 <= fields.min() < 0.23
    assert 0.87 < fields.max() <= 0.9
    assert fields.mean() == pytest.approx(0.55, abs=0.01)
    # Knots are a third of the photograph apart.
    for axis, size in ((1, 210), (2, 330)):
        steepest = 0.7 / (size / 3)
        assert steepest / 2 < np.abs(np.diff(fields, axis=axis)).max() <= steepest * 1.001


def test_a_field_between_equal_limits_is_even():
    field = smooth_field(WHOLE, 0.4, 0.4, np.random.default_rng(0))
    np.testing.assert_allclose(field, 0.4, atol=1e-6)
