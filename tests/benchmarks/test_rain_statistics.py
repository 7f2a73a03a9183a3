"""Statistics of rain against rain whose figures are known."""

from __future__ import annotations

import json
import math
import sys

import numpy as np
import pytest
import rain_statistics
from rain_sets import write_pairs
from rain_statistics import Rain, statistics_of, summary

from drsformer_jax.errors import InputError
from drsformer_jax.images.pixels import write_image

SIZE = (240, 320)


def gray(level, size=SIZE):
    return np.full((*size, 3), level, np.uint8)


def bars(lean, length, sigma, count=150, brightness=60.0, size=SIZE, seed=0):
    """Bars of one length and lean at random places, a Gaussian across and smooth at the ends."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[: size[0], : size[1]] + 0.5
    sine, cosine = math.sin(math.radians(lean)), math.cos(math.radians(lean))
    layer = np.zeros(size)
    for y, x in rng.uniform(-length / 2, np.array(size) + length / 2, (count, 2)):
        along = (columns - x) * sine + (rows - y) * cosine
        across = (columns - x) * cosine - (rows - y) * sine
        ends = np.clip(length / 2 + 0.5 - abs(along), 0, 1)
        layer += brightness * ends * np.exp(-0.5 * (across / sigma) ** 2)
    return layer


def under(layer, clean):
    """What a layer, (h, w) or (h, w, 3), makes of a clean image."""
    layer = layer if layer.ndim == 3 else layer[..., None]
    return np.rint(clean + layer).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("lean", "length", "sigma"),
    [(-40, 30, 0.8), (-8, 50, 1.2), (0, 20, 0.7), (17, 40, 0.6), (30, 70, 1.5)],
)
def test_streaks_have_the_lean_length_and_width_they_were_drawn_with(lean, length, sigma):
    found = statistics_of(under(bars(lean, length, sigma), gray(40)), gray(40))
    assert found.lean == pytest.approx(lean, abs=1)
    assert found.half_length == pytest.approx(length / 2, rel=0.1)
    assert found.half_width == pytest.approx(math.sqrt(4 * math.log(2)) * sigma, rel=0.1)


def test_lean_is_positive_towards_the_lower_right():
    layer = np.zeros((64, 64))
    layer[np.arange(10, 50), np.arange(10, 50)] = 90
    assert statistics_of(under(layer, gray(40, (64, 64))), gray(40, (64, 64))).lean == 45


@pytest.mark.parametrize("beside", ["veil", "noise", "sky"])
def test_veil_noise_and_a_bright_sky_leave_the_streaks_as_they_are(beside):
    clean, layer = gray(40), bars(12, 40, 0.8, brightness=40, count=400)
    if beside == "veil":
        layer += np.linspace(40, 0, SIZE[0])[:, None]
    elif beside == "noise":
        layer += np.random.default_rng(1).normal(0, 6, SIZE)
    else:
        clean[:80] = 250
    found = statistics_of(under(layer, clean), clean)
    assert found.lean == pytest.approx(12, abs=1)
    assert found.half_length == pytest.approx(20, rel=0.1)
    assert found.half_width == pytest.approx(1.67 * 0.8, rel=0.1)


def test_half_lengths_end_at_the_reach():
    clean = gray(40, (600, 200))
    found = statistics_of(under(bars(0, 2000, 0.8, size=(600, 200), count=20), clean), clean)
    assert found.half_length == pytest.approx(rain_statistics.REACH, abs=3)


def test_levels_shares_and_psnr_are_exact():
    layer = np.zeros((10, 20))
    layer[:2], layer[2:5], layer[5] = 8, 9, 31  # 40, 60 and 20 of 200 pixels.
    found = statistics_of(under(layer, gray(100, (10, 20))), gray(100, (10, 20)))
    assert found.added == pytest.approx((40 * 8 + 60 * 9 + 20 * 31) / 200)
    assert (found.over_8, found.over_30) == pytest.approx((40, 10))
    error = (40 * 8**2 + 60 * 9**2 + 20 * 31**2) / 200
    assert found.psnr == pytest.approx(10 * math.log10(255**2 / error))


def test_psnr_is_that_of_all_three_channels():
    rainy = gray(100)
    rainy[..., 2] += 30
    assert statistics_of(rainy, gray(100)).psnr == pytest.approx(10 * math.log10(3 * 255**2 / 900))


def test_color_is_the_greatest_deviation_of_a_channel_from_gray():
    layer = np.full((*SIZE, 3), (20, 20, 50))
    assert statistics_of(under(layer, gray(40)), gray(40)).color == pytest.approx(20 / 30)


def test_saturated_pixels_do_not_color_gray_rain():
    clean = gray(40)
    clean[:, ::2] = (250, 120, 60)
    rainy = under(bars(5, 30, 1, count=300), clean)
    assert (rainy == 255).any()
    assert statistics_of(rainy, clean).color == pytest.approx(0)


def test_blacks_are_the_level_that_the_darkest_fiftieth_is_below():
    clean = np.zeros((100, 100, 3), np.uint8)
    clean[:] = np.arange(100, dtype=np.uint8)[:, None, None]
    assert statistics_of(clean + np.uint8(50), clean).blacks == pytest.approx(52, abs=1)


def test_an_image_without_rain_has_infinite_psnr_and_no_streaks_or_color():
    clean = np.random.default_rng(0).integers(0, 255, (*SIZE, 3), np.uint8)
    found = statistics_of(clean, clean)
    assert found[:4] == (math.inf, 0, 0, 0)
    assert np.isnan([found.half_length, found.half_width, found.lean, found.color]).all()


@pytest.mark.parametrize("sigma", [0, 5])
def test_a_constant_and_noise_are_no_streaks(sigma):
    noise = np.random.default_rng(0).normal(0, sigma, SIZE)
    found = statistics_of(under(20 + noise, gray(40)), gray(40))
    assert np.isnan([found.half_length, found.half_width, found.lean]).all()
    assert found.added == pytest.approx(20, abs=0.1)


def test_images_as_small_as_a_pixel_are_measured():
    for side in (1, 2, 9):
        clean = np.random.default_rng(side).integers(0, 200, (side, side + 1, 3), np.uint8)
        assert statistics_of(clean + np.uint8(10), clean).added == 10


@pytest.mark.parametrize("clean", [gray(1)[1:], gray(1)[..., 0], gray(1).astype(float)])
def test_a_pair_of_two_sizes_or_kinds_is_rejected(clean):
    with pytest.raises(InputError, match=r"^clean is .* of shape .*; expected both uint8 \(h, w"):
        statistics_of(gray(1), clean)


def test_summary_is_medians_without_what_is_not_known():
    known = Rain(20.0, 3.0, 10.0, 5.0, 8.0, 1.0, -20.0, 0.0, 4.0)
    other = known._replace(psnr=30.0, lean=10.0)
    dry = Rain(math.inf, 0.0, 0.0, 0.0, *[math.nan] * 4, 0.0)
    found = summary([known, other, dry])
    assert (found["psnr"], found["added"], found["lean"]) == (30, 3, 15)
    assert (found["psnr_from_to"], found["lean_from_to"]) == ("20.0..inf", "-20.0..10.0")
    assert (found["minimum"]["lean"], found["maximum"]["lean"]) == (-20, 10)
    assert (found["minimum"]["psnr"], found["maximum"]["psnr"]) == (20, None)
    assert summary([dry])["lean"] is None


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["rain_statistics.py", *map(str, arguments)])
    rain_statistics.main()


def test_sources_and_kinds_of_synthetic_rain_are_rows_of_one_table(tmp_path, monkeypatch, capsys):
    pairs = write_pairs(tmp_path / "pairs", ["1.png", "2.png", "3.png"])
    for name in ("a.png", "b.png"):
        write_image(tmp_path / "clean" / name, gray(90, (64, 80)))
    file = tmp_path / "rain.json"
    flags = ("--photographs", tmp_path / "clean", "--count", 3, "--json", file)
    run(monkeypatch, "--data", pairs, *flags)
    rows = json.loads(file.read_text(), parse_constant=pytest.fail)["rows"]
    names = [str(pairs), "synthetic light", "synthetic fine", "synthetic heavy"]
    assert [(row["source"], row["pairs"]) for row in rows] == [(name, 3) for name in names]
    for row in rows:
        assert row["minimum"]["added"] <= row["added"] <= row["maximum"]["added"]
        assert row["psnr"] < 50
    printed = capsys.readouterr().out.splitlines()[2:]
    for line, name in zip(printed, names, strict=True):
        assert line.startswith(name)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--data", "nowhere", "--data-dir", "none"), "nowhere is no folder and no data ?set in"),
        (("--photographs", "nowhere"), "nowhere"),
        (("--count", "0"), "--count is 0; expected at least 1"),
    ],
)
def test_wrong_input_is_reported_in_one_line(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=f"^error: {message}[^\n]*$"):
        run(monkeypatch, *arguments)


def test_program_shows_its_flags(monkeypatch, capsys):
    with pytest.raises(SystemExit, match="0"):
        run(monkeypatch, "--help")
    assert "--json" in capsys.readouterr().out
