"""The table of gains and harm says what the metrics say, and the filters beside it are at best."""

from __future__ import annotations

import contextlib
import io
import json
import math
import statistics
import sys

import jax
import numpy as np
import pretrained
import pytest
from filters import FILTERS, Filter, best_setting, median
from pretrained import System

from drsformer_jax import weights
from drsformer_jax.config import KINDS
from drsformer_jax.data.folders import find_pairs, read_pair
from drsformer_jax.images.pixels import image_size, read_image, write_image
from drsformer_jax.metrics import psnr, ssim
from drsformer_jax.restoring import Restorer

H, W = 40, 48
"""One size for all images: one program."""
PROTOCOL = "rain200_spa"
GRID = {"median": Filter(median, [{"size": size} for size in ((1, 3), (1, 5), (3, 3))])}


def noise(seed: int, h: int = H, w: int = W, low: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(low, 256, (h, w, 3), dtype=np.uint8)


def with_streaks(clean: np.ndarray) -> np.ndarray:
    rainy = clean.copy()
    rainy[:, ::9] = 255
    return rainy


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pairs in a/ and b/, photographs, and real/ images, all small."""
    folder = tmp_path_factory.mktemp("pretrained")
    for index, name in enumerate(("a/1.png", "a/2.png", "b/1.png")):
        part, file = name.split("/")
        clean = noise(index) // 4 + 60
        write_image(folder / part / "target" / file, clean)
        write_image(folder / part / "input" / file, with_streaks(clean))
    for index, part in enumerate(("train", "validation", "validation")):
        ramp = np.linspace(20, 200, W).astype(np.uint8)[:, None]
        image = np.broadcast_to(ramp, (H, W, 3)) + noise(index) // 16
        write_image(folder / "photographs" / part / f"{index}.png", image)
    write_image(folder / "real" / "0.png", noise(7))
    return folder


@pytest.fixture(scope="module")
def idle(network, folder):
    """A network whose residual is zero."""
    config, params = network
    weights.save(folder / "idle", config, jax.tree.map(np.zeros_like, params))
    return folder / "idle"


@pytest.fixture(scope="module")
def result(folder, model, idle):
    """Figures and Markdown of a run, and what it printed."""
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr(pretrained, "FILTERS", GRID)
        arguments = ["--checkpoint", model, "--checkpoint", idle, "--data", f"first={folder / 'a'}"]
        arguments += [f"both={folder / 'a'},{folder / 'b'}", "--photographs"]
        arguments += [folder / "photographs", "--sheet", folder / "sheet.png"]
        arguments += ["--real", folder / "real", "--json", folder / "figures.json"]
        arguments += ["--markdown", folder / "table.md"]
        patch.setattr(sys, "argv", ["pretrained.py", *map(str, arguments)])
        pretrained.main()
    figures = json.loads((folder / "figures.json").read_text())
    systems = {row["system"]: row for row in figures["systems"]}
    return systems, (folder / "table.md").read_text(), printed.getvalue().splitlines()


def cells_of(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_figures_are_those_of_the_metrics_on_restored_images(result, folder, model):
    systems, text, lines = result
    restorer = Restorer.load(model)
    pairs = [*find_pairs(folder / "a"), *find_pairs(folder / "b")]
    scores = []
    for (name, *paths), row in zip(
        pairs, systems[str(model)]["sets"]["both"]["images"], strict=True
    ):
        rainy, clean = read_pair(*paths)
        before, after = (
            [metric(image, clean, PROTOCOL) for metric in (psnr, ssim)]
            for image in (rainy, restorer(rainy))
        )
        assert row["name"] == f"{paths[0].parents[1].name}/{name}"
        assert [row["rainy_psnr"], row["rainy_ssim"]] == before
        assert [row["restored_psnr"], row["restored_ssim"]] == after
        scores.append((*before, *after))
    means = [statistics.fmean(column) for column in zip(*scores, strict=True)]
    cell = f"{means[2] - means[0]:+.2f} {means[3] - means[1]:+.4f}"
    printed = next(line for line in lines if line.startswith(str(model)))
    assert cell in printed
    row = next(line for line in text.splitlines() if line.startswith(f"| {model}"))
    assert cells_of(row)[2] == cell
    rainy = next(line for line in text.splitlines() if line.startswith("| rainy"))
    assert cells_of(rainy)[2] == f"{means[0]:.2f} {means[1]:.4f}"


def test_network_that_returns_its_input_gains_nothing_and_harms_nothing(result, idle):
    systems, text, _ = result
    for name, found in systems[str(idle)]["sets"].items():
        assert name == "clean" or found["mean"]["gain"] == found["mean"]["ssim_gain"] == 0
    assert systems[str(idle)]["clean_psnr"] == {"least": None, "mean": None}
    row = cells_of(next(line for line in text.splitlines() if line.startswith(f"| {idle}")))
    assert row[1:-1] == ["+0.00 +0.0000"] * 5 + ["inf", "inf"]


def test_clean_figures_are_least_and_mean_over_photographs_that_changed(result, folder, model):
    systems, _, _ = result
    restorer = Restorer.load(model)
    found = []
    for path in sorted((folder / "photographs" / "validation").iterdir()):
        image = read_image(path)
        found.append(psnr(restorer(image), image, PROTOCOL))
    figures = systems[str(model)]["clean_psnr"]
    assert figures == {"least": min(found), "mean": pytest.approx(statistics.fmean(found))}
    row = pretrained.Row(
        pretrained.RAINY,
        {"clean": [pretrained.Scores(0, 0, value, 0) for value in (40.0, math.inf, 50.0)]},
    )
    assert row.clean() == (40, 45)


def test_markdown_has_a_row_for_each_system_and_a_column_for_each_set(result, model, idle):
    systems, text, lines = result
    table = [cells_of(line) for line in text.splitlines() if line.startswith("|")]
    sets = ["first (2)", "both (3)", *(f"{kind} (2)" for kind in KINDS if kind != "none")]
    assert table[0] == ["system", *sets, "clean, least", "clean, mean", "s/megapixel"]
    names = ["rainy", str(model), str(idle), "median"]
    assert [row[0] for row in table[2:]] == list(systems) == names
    assert {len(row) for row in table} == {len(table[0])}
    assert table[2][-1] == "-"
    assert all(row["seconds_per_megapixel"] > 0 for row in list(systems.values())[1:])
    setting = systems["median"]["setting"]
    assert f"Settings of the filters: median: {setting}." in text
    assert f"median: {setting} is the best of 3 settings" in lines


def test_sheet_of_the_program_shows_each_set_and_real_images(result, folder):
    height, _ = image_size(folder / "sheet.png")
    pairs = 8 + 6 * (32 + 2 * (H + 8) + 8)
    assert height == pairs + 32 + (H + 8) + 8


def test_sheet_shows_rainy_restored_and_clean_beside_each_other():
    w = 160  # Wider than the titles.
    pair = {"name": "x", "rainy": noise(1, H, w), "clean": noise(2, H, w)}
    real = noise(3, 30, w)
    inverse = System("inverse", lambda image: 255 - image)
    sheet = pretrained.sheet([inverse], {"one": [pair], "two": [pair] * 5}, [real])
    parts = [(1, H), (2, H), (1, 30)]
    heights = [32 + count * (height + 8) for count, height in parts]
    assert sheet.shape == (8 + sum(height + 8 for height in heights), 16 + 8 + 3 * (w + 8), 3)
    shown = [pair["rainy"], 255 - pair["rainy"], pair["clean"]]
    columns = [slice(16 + index * (w + 8), 16 + index * (w + 8) + w) for index in range(3)]
    for top in (8 + 32, 8 + heights[0] + 8 + 32, 8 + heights[0] + 8 + 32 + H + 8):
        for column, image in zip(columns, shown, strict=True):
            np.testing.assert_array_equal(sheet[top : top + H, column], image)
    for column, image in zip(columns[:2], (real, 255 - real), strict=True):
        np.testing.assert_array_equal(sheet[-8 - 8 - 30 : -8 - 8, column], image)


def test_real_images_are_cut_to_their_middle(tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained, "WINDOW", 16)
    image = noise(0, 20, 30)
    write_image(tmp_path / "0.png", image)
    write_image(tmp_path / "1.png", image[:10, :12])
    found = pretrained.real_images(tmp_path)
    np.testing.assert_array_equal(found[0], image[2:18, 7:23])
    np.testing.assert_array_equal(found[1], image[:10, :12])


def test_best_setting_has_the_greatest_mean_psnr():
    scenes = []
    for seed, shift in ((0, 4), (1, 12)):
        clean = noise(seed) // 2
        scenes.append({"name": "", "rainy": clean + np.uint8(shift), "clean": clean})
    darker = Filter(
        lambda image, by: image - np.minimum(image, by), [{"by": np.uint8(by)} for by in (0, 5, 20)]
    )
    means = [
        statistics.fmean(
            psnr(darker.apply(scene["rainy"], **setting), scene["clean"], PROTOCOL)
            for scene in scenes
        )
        for setting in darker.settings
    ]
    setting, restore = best_setting(darker, scenes, PROTOCOL)
    assert setting == darker.settings[int(np.argmax(means))] == {"by": 5}
    np.testing.assert_array_equal(restore(np.full((H, W, 3), 9, np.uint8)), 4)


@pytest.mark.parametrize("name", FILTERS)
def test_filters_take_any_image_and_keep_flat_ones(name):
    for setting in FILTERS[name].settings:
        for gray in (0, 100, 255):
            flat = np.full((9, 13, 3), gray, np.uint8)
            np.testing.assert_array_equal(FILTERS[name].apply(flat, **setting), flat)
        found = FILTERS[name].apply(noise(0, 9, 13), **setting)
        assert found.dtype == np.uint8
        assert found.shape == (9, 13, 3)


def test_median_of_a_low_window_removes_a_steep_streak_and_keeps_an_edge():
    clean = np.full((12, 15, 3), 50, np.uint8)
    clean[6:] = 150
    rainy = clean.copy()
    rainy[:, 7] = 255
    np.testing.assert_array_equal(median(rainy, (1, 3)), clean)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--checkpoint nowhere", "nowhere does not exist; expected"),
        ("--data photographs", "photographs has no folder input/; expected"),
        ("--data a more/a", "--data has 2 sets of the name a, such as a; expected NAME=DIR"),
        ("--data light=a", "--data has 2 sets of the name light, such as a; expected NAME=DIR"),
        ("--photographs nowhere", "nowhere does not exist; expected a folder"),
        ("--scenes 0", "--scenes is 0; expected 1 or more"),
        ("--real real", "--real is real without --sheet; expected"),
        ("--real nowhere --sheet x.png", "nowhere does not exist; expected"),
        ("--sheet x.gif", "x.gif has the extension '.gif'; expected one of"),
    ],
)
def test_wrong_input_ends_with_one_line(folder, monkeypatch, arguments, message):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["pretrained.py", *arguments.split()])
    with pytest.raises(SystemExit) as error:
        pretrained.main()
    text = str(error.value.code)
    assert text.startswith("error: ")
    assert message in text
    assert "\n" not in text


def test_program_shows_its_flags(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["pretrained.py", "--help"])
    with pytest.raises(SystemExit, match="0"):
        pretrained.main()
    assert "--markdown" in capsys.readouterr().out
