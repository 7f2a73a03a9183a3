"""The page that a run leaves: complete, true to its numbers, harmless and whole in one file."""

from __future__ import annotations

import base64
import io
import math
import os
import re
import subprocess
import sys
import tomllib
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage
from PIL import Image
from recipe import SMALL

from drsformer_jax.config import DataConfig, TrainConfig
from drsformer_jax.report.curves import curve
from drsformer_jax.report.page import Example, write_report
from drsformer_jax.scoring.complexity import parameters
from drsformer_jax.scoring.evaluation import Scores

CONFIG = TrainConfig(model=SMALL, data=DataConfig(global_batch=7), steps=200)
HOSTILE = "<script>alert('1')</script>\"&\udce4{title}.png"
ESCAPED = r"&lt;script&gt;alert(&#39;1&#39;)&lt;/script&gt;&#34;&amp;\udce4{title}.png"
SCORES = [
    ("a.png", Scores(20.123, 0.51234, 30.456, 0.91234)),
    ("b.png", Scores(25.5, 0.75, 25.25, 0.74)),
    ("same.png", Scores(math.inf, 1.0, math.inf, 1.0)),
    ("small.png", Scores(math.nan, math.nan, 31.0, math.nan)),
    ("worse.png", Scores(math.inf, 1.0, 40.0, 0.99)),
]
VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """Reads a page, and fails where tags are not balanced."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.rows: list[list[str]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.attributes.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.attributes.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not data.strip():
            return
        self.texts.append((self.open[-1], data))
        if self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data

    def all(self, tag: str, name: str) -> list[str]:
        return [values[name] for each, values in self.attributes if each == tag and name in values]

    def within(self, tag: str) -> list[str]:
        return [text for each, text in self.texts if each == tag]


def noise(h: int, w: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (h, w, 3), dtype=np.uint8)


def image(name: str, gain: float = 1.0, size: tuple[int, int] = (20, 30)) -> Example:
    scores = Scores(20.0, 0.5, 20.0 + gain, 0.625)
    return Example(name, scores, *(noise(*size, seed) for seed in range(3)))


def training(steps: int) -> list[dict[str, float]]:
    draw = np.random.default_rng(0).random(steps)
    return [
        {
            "step": step,
            "loss": 0.1 / step + 0.01 * value,
            "grad_norm": 1.0 + value,
            "learning_rate": 3e-4,
            "images_per_second": 10.0 + value,
        }
        for step, value in enumerate(draw, 1)
    ]


def write(path: Path, **changes) -> str:
    arguments = {
        "title": "a run",
        "config": CONFIG,
        "metrics": [
            *training(200),
            {"step": 200, "validation/did_ddn/psnr": 30.0, "validation/did_ddn/ssim": 0.9},
        ],
        "scores": SCORES,
        "examples": [image("best"), image("worst", -1.0)],
    }
    write_report(path, **{**arguments, **changes})
    return path.read_text()


def test_page_is_well_formed_and_needs_no_network_script_or_file(tmp_path):
    text = write(tmp_path / "report.html")
    page = Page(text)
    namespaces = {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert set(re.findall(r"\w+://[^\"' <]*", text)) <= namespaces
    tags = {tag for tag, _ in page.attributes}
    assert not tags & {"script", "link", "iframe", "object", "image", "base"}
    assert all(source.startswith("data:image/") for source in page.all("img", "src"))
    assert all(use.startswith("#") for use in page.all("use", "xlink:href"))
    assert set(re.findall(r"url\((.)", text)) <= {"#"}
    assert text.count("<style") == 1  # None of the drawings', which would hold for the page.
    assert "@import" not in text
    assert "javascript" not in text.lower()


def test_parts_of_drawings_have_names_of_their_own_that_all_are_found(tmp_path):
    text = write(tmp_path / "report.html")
    names = re.findall(r'\sid="([^"]*)"', text)
    used = set(re.findall(r"url\(#([^)]*)\)", text)) | set(re.findall(r'href="#([^"]*)"', text))
    assert used
    assert sorted(names) == sorted(used)


def test_hostile_names_and_titles_are_text(tmp_path):
    text = write(
        tmp_path / "report.html",
        title=HOSTILE,
        config=TrainConfig(model=SMALL, init_from=HOSTILE),
        metrics=[{"step": 1, f"validation/{HOSTILE}/psnr": 30.0, HOSTILE: 1.0}],
        scores=[(HOSTILE, SCORES[0][1])],
        examples=[image(HOSTILE)],
    )
    Page(text)
    assert "<script" not in text
    # The title twice; setting, curve and row once; image: its name and that of three forms.
    assert text.count(ESCAPED) == 2 + 3 + 4
    assert text.count("alert(") == text.count(ESCAPED)


def test_table_holds_the_scores_in_their_order_and_the_mean(tmp_path):
    page = Page(write(tmp_path / "report.html", metrics=[]))
    start = next(at for at, row in enumerate(page.rows) if row[0] == "image")
    minus, none = "\N{MINUS SIGN}", "\N{EN DASH}"
    assert page.rows[start + 1 : start + 7] == [
        ["a.png", "20.12", "0.5123", "30.46", "0.9123", "+10.33"],
        ["b.png", "25.50", "0.7500", "25.25", "0.7400", f"{minus}0.25"],
        ["same.png", "∞", "1.0000", "∞", "1.0000", "+0.00"],
        ["small.png", none, none, "31.00", none, none],
        ["worse.png", "∞", "1.0000", "40.00", "0.9900", f"{minus}∞"],
        ["mean", "∞", "0.8156", "∞", "0.9106", "+0.00"],
    ]


def test_summary_tells_means_steps_parameters_and_protocol(tmp_path):
    page = Page(write(tmp_path / "report.html", scores=SCORES[:2]))
    assert page.within("dt") == ["Rainy", "Restored", "Gain", "Steps"]
    assert page.within("dd") == ["22.81 dB", "27.85 dB", "+5.04 dB", "200"]
    assert page.within("small")[:4] == ["SSIM 0.6312", "SSIM 0.8262", "mean of 2 images", "of 200"]
    assert f"{parameters(SMALL):,} parameters, " in page.within("p")[0]
    assert "protocol did_ddn" in page.within("p")[0]


def test_long_table_is_folded_and_whole(tmp_path):
    for count, opened in ((20, True), (1000, False)):
        scores = [(f"{index}.png", SCORES[0][1]) for index in range(count)]
        page = Page(write(tmp_path / "report.html", metrics=[], scores=scores))
        details = next(values for tag, values in page.attributes if tag == "details")
        assert ("open" in details) is opened
        assert [row[0] for row in page.rows if row[0].endswith(".png")] == [n for n, _ in scores]


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


def test_what_is_missing_is_left_out(tmp_path):
    metrics = [{"loss": 1.0}, {"step": 1, "loss": None}, {"step": 2}]
    text = write(tmp_path / "report.html", metrics=metrics, scores=[], examples=[])
    assert Page(text).within("h2") == ["Configuration"]
    assert Page(text).within("dt") == ["Steps"]
    text = write(tmp_path / "report.html", metrics=[], scores=[], examples=[])
    assert Page(text).within("dt") == []


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


def sources(text: str) -> list[np.ndarray]:
    found = re.findall(r'src="data:image/(?:png|webp);base64,([^"]*)"', text)
    return [np.array(Image.open(io.BytesIO(base64.b64decode(each)))) for each in found]


def test_small_images_are_shown_as_they_are_side_by_side(tmp_path):
    example = image("small")
    text = write(tmp_path / "report.html", metrics=[], examples=[example])
    images = sources(text)
    assert len(images) == 3
    for found, expected in zip(
        images, (example.rainy, example.restored, example.clean), strict=True
    ):
        np.testing.assert_array_equal(found, expected)
    labels = ["rainy · 20.00 dB · SSIM 0.5000", "restored · 21.00 dB · SSIM 0.6250", "clean"]
    assert Page(text).within("small")[-3:] == labels


def test_large_images_are_scaled_down_and_still_look_the_same(tmp_path):
    y, x = np.mgrid[:900, :1200]
    ramp = np.stack([x * 255 // 1199, y * 255 // 899, (x + y) * 255 // 2098], -1).astype(np.uint8)
    example = Example("large", SCORES[0][1], ramp, ramp[::-1], ramp[:, ::-1])
    text = write(tmp_path / "report.html", metrics=[], examples=[example])
    y, x = (np.mgrid[:360, :480] + 0.5) * 2.5 - 0.5
    expected = np.stack([x * 255 / 1199, y * 255 / 899, (x + y) * 255 / 2098], -1)
    for found, turned in zip(sources(text), (np.s_[:], np.s_[::-1], np.s_[:, ::-1]), strict=True):
        assert found.shape == (360, 480, 3)
        assert np.abs(found[turned] - expected).mean() < 2
    assert Page(text).all("img", "width") == ["480"] * 3
    assert Page(text).all("img", "height") == ["360"] * 3


def test_the_better_half_comes_first_and_of_the_other_the_worst(tmp_path):
    examples = [image(f"gain {gain}", gain) for gain in (3, 2, 1, 0)]
    page = Page(write(tmp_path / "report.html", metrics=[], examples=examples))
    assert page.within("h3") == ["Largest gain", "Smallest gain"]
    assert page.within("b") == ["gain 3", "gain 2", "gain 0", "gain 1"]
    assert page.within("span") == [
        "gain +3.00 dB",
        "gain +2.00 dB",
        "gain +0.00 dB",
        "gain +1.00 dB",
    ]
    page = Page(write(tmp_path / "report.html", metrics=[], examples=examples[:1]))
    assert page.within("h3") == []
    assert page.within("b") == ["gain 3"]


def test_every_setting_is_reported(tmp_path):
    page = Page(write(tmp_path / "report.html", metrics=[]))
    captions = page.within("caption")
    assert [name for name in captions if name in ("run", "model", "data", "optim", "mesh")] == [
        *("run", "model", "data", "optim", "mesh")
    ]
    assert captions[captions.index("data") + 1 :][:2] == ["rain", "light_near"]
    for row in (
        *(["steps", "200"], ["dim", str(SMALL.dim)], ["global_batch", "7"]),
        *(["learning_rate", "0.0003"], ["init_from", "\N{EN DASH}"], ["remat", "false"]),
        *(["fine", "0.4"], ["coverage", "[0.01, 0.05]"]),
    ):
        assert row in page.rows


def test_long_runs_and_large_images_make_a_page_of_a_few_mib(tmp_path):
    ramp = np.add.outer(np.arange(3000), np.arange(4000))[..., None] // 28
    large = (ramp + noise(3000, 4000) // 16).astype(np.uint8)
    example = Example("large", SCORES[0][1], large, large, large)
    scores = [(f"{index}.png", SCORES[0][1]) for index in range(1000)]
    write(tmp_path / "report.html", metrics=training(300_000), scores=scores, examples=[example])
    assert (tmp_path / "report.html").stat().st_size < 2**20


def test_page_is_the_same_whatever_the_user_has_set_and_drawing_is_quiet(tmp_path):
    settings = "lines.linestyle: --\nfont.size: 30\nsvg.fonttype: path\ngrid.linestyle: --\n"
    (tmp_path / "matplotlibrc").write_text(settings)
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from test_report import *\n"
        "write(Path('there.html'))\n"
        "assert 'matplotlib' in sys.modules and 'matplotlib.pyplot' not in sys.modules\n"
        "import matplotlib; assert matplotlib.rcParams['font.size'] == 30\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, str(Path(__file__).parent)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert (tmp_path / "there.html").read_text() == write(tmp_path / "here.html")


def test_template_and_style_are_part_of_a_wheel():
    root = Path(__file__).parents[2]
    settings = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]
    package = root / "drsformer_jax"
    packed = {
        file for pattern in settings["package-data"][package.name] for file in package.glob(pattern)
    }
    data = {file for file in (package / "report").iterdir() if file.suffix in (".jinja", ".css")}
    assert len(data) == 2
    assert data <= packed
