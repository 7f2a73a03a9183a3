"""Curves of a run's metrics: there where numbers are, drawn where they are, whatever they are."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import scipy.ndimage
from pages import Page, write

from drsformer_jax.report.curves import curve

CURVES = {
    "loss": "Loss",
    "validation/did_ddn/psnr": "Validation PSNR, dB",
    "validation/rain200_spa/ssim": "Validation SSIM",
    "grad_norm": "Gradient norm",
    "learning_rate": "Learning rate",
    "images_per_second": "Images per second",
}


@pytest.mark.parametrize("name", CURVES)
def test_a_metric_has_a_curve_where_it_was_recorded_and_only_there(tmp_path, name):
    metrics = [{"step": 5, name: 0.75}, {"step": 10, name: 0.5}, {"step": 15, "other": 1.0}]
    page = Page(write(tmp_path / "report.html", metrics=metrics, examples=[]))
    assert page.within("b") == [CURVES[name]]
    assert page.all("svg", "viewbox")
    _, _, protocol = name.rpartition("/")[0].partition("/")
    best = f"best 0.75, step 5, protocol {protocol}"
    assert page.within("span") == [best if protocol else "last 0.5, step 10"]


@pytest.mark.parametrize(
    "values",
    [
        [0.5],
        [0.0, 0.0, 0.0],
        [None, 1.0, None, math.nan, math.inf, -math.inf, 2.0],
        [3e38, -3e38],
        [1e308, -1e308, 1.0],
        [1e-310, 1e-310],
        [31.5, 31.5000001],
        [1e-45, 3e38],
        [5.0] * 51,
    ],
)
@pytest.mark.parametrize("name", ["loss", "learning_rate"])
def test_odd_numbers_are_drawn_as_far_as_they_can_be(tmp_path, name, values):
    metrics = [{"step": step, name: value} for step, value in enumerate(values)]
    text = write(tmp_path / "report.html", metrics=metrics)
    Page(text)
    assert text.count("<svg") == 1
    assert not re.search(r"\b(nan|inf)\b", text[text.index("<svg") : text.index("</svg>")])


def test_curves_stand_in_the_order_of_their_weight(tmp_path):
    metrics = [{"step": 1, **dict.fromkeys(reversed(CURVES), 1.0)}]
    page = Page(write(tmp_path / "report.html", metrics=metrics, examples=[]))
    assert page.within("b") == list(CURVES.values())


def marks(svg: str) -> np.ndarray:
    """Places of a curve's dots, which alone have a color inside."""
    found = re.findall(r'<use [^>]*x="([\d.]+)" y="([\d.]+)" style="fill: var.--accent', svg)
    return np.array(found, float)


def strokes(svg: str, color: str) -> np.ndarray:
    """Points of the curve of a color."""
    paths = re.findall(r'<path d="([^"]*)" clip-path="[^"]*" style="([^"]*)"', svg)
    (text,) = (points for points, style in paths if f"var(--{color})" in style)
    return np.array(re.findall(r"[ML] ([\d.]+) ([\d.]+)", text), float)


def test_dots_stand_where_the_numbers_are():
    steps, values = np.array([100.0, 200.0, 700.0]), np.array([0.25, 0.375, 0.3125])
    svg = curve(steps, values, last=1000, logarithmic=True, salt="x")
    x, y = marks(svg).T
    for places, numbers in ((x, steps), (-y, values)):
        scaled = np.polyval(np.polyfit(numbers, places, 1), numbers)
        np.testing.assert_allclose(places, scaled, atol=1e-4)
        assert np.polyfit(numbers, places, 1)[0] > 0


@pytest.mark.parametrize("logarithmic", [True, False])
def test_axis_is_logarithmic_where_it_may_and_numbers_differ_much(logarithmic):
    steps, values = np.arange(1.0, 4), np.array([1.0, 0.1, 0.01])
    svg = curve(steps, values, last=3, logarithmic=logarithmic, salt="x")
    _, y = marks(svg).T
    assert math.isclose(y[1] - y[0], y[2] - y[1], rel_tol=1e-3) is logarithmic
    assert (">0.01</text>" in svg) is logarithmic


def test_many_points_show_their_extremes_pale_and_their_median_strong():
    steps, values = np.arange(1.0, 5001), np.ones(5000)
    values[[1234, 4000]] = 9.0, 0.5
    svg = curve(steps, values, last=5000, logarithmic=False, salt="x")
    strong, pale = strokes(svg, "accent"), strokes(svg, "pale")
    assert (len(strong), len(pale)) == (500, 1000)
    level = strong[0, 1]
    np.testing.assert_allclose(strong[:, 1], level, atol=1e-4)
    scale = (level - pale[:, 1].min()) / 8  # of 1 on the page; downwards is more
    assert pale[:, 1].max() == pytest.approx(level + 0.5 * scale, abs=0.01)
    high, low = pale[pale[:, 1].argmin(), 0], pale[pale[:, 1].argmax(), 0]
    width = strong[-1, 0] - strong[0, 0]
    assert (low - high) / width == pytest.approx((4000 - 1234) / 5000, abs=0.005)


def test_running_median_reaches_as_far_on_both_sides():
    steps, values = np.arange(60.0), np.random.default_rng(1).random(60)
    svg = curve(steps, values, last=60, logarithmic=False, salt="x")
    places, strong = -strokes(svg, "pale")[::2, 1], -strokes(svg, "accent")[:, 1]
    expected = scipy.ndimage.median_filter(places, 5)
    np.testing.assert_allclose(strong[2:-2], expected[2:-2], atol=1e-5)
    np.testing.assert_allclose(strong[[0, -1]], places[[0, -1]], atol=1e-5)
    np.testing.assert_allclose(strong[1], np.median(places[:3]), atol=1e-5)


def test_page_is_the_same_whatever_the_user_has_set_and_drawing_is_quiet(tmp_path):
    settings = "lines.linestyle: --\nfont.size: 30\nsvg.fonttype: path\ngrid.linestyle: --\n"
    (tmp_path / "matplotlibrc").write_text(settings)
    program = (
        "import sys; from pathlib import Path\n"
        "from pages import write\n"
        "write(Path('there.html'))\n"
        "assert 'matplotlib' in sys.modules and 'matplotlib.pyplot' not in sys.modules\n"
        "import matplotlib; assert matplotlib.rcParams['font.size'] == 30\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert (tmp_path / "there.html").read_text() == write(tmp_path / "here.html")
