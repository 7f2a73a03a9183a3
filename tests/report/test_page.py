"""The page that a run leaves: complete, true to its numbers, harmless and whole in one file."""

from __future__ import annotations

import base64
import io
import re
import tomllib
from pathlib import Path

import numpy as np
from pages import SCORES, Page, image, noise, training, write
from PIL import Image
from recipe import SMALL

from drsformer_jax.config import TrainConfig
from drsformer_jax.report.page import Example
from drsformer_jax.scoring.complexity import parameters

HOSTILE = "<script>alert('1')</script>\"&\udce4{title}.png"
ESCAPED = r"&lt;script&gt;alert(&#39;1&#39;)&lt;/script&gt;&#34;&amp;\udce4{title}.png"


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


def test_what_is_missing_is_left_out(tmp_path):
    metrics = [{"loss": 1.0}, {"step": 1, "loss": None}, {"step": 2}]
    text = write(tmp_path / "report.html", metrics=metrics, scores=[], examples=[])
    assert Page(text).within("h2") == ["Configuration"]
    assert Page(text).within("dt") == ["Steps"]
    text = write(tmp_path / "report.html", metrics=[], scores=[], examples=[])
    assert Page(text).within("dt") == []


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
