"""Flicker of videos under rain is measured with their motion undone."""

from __future__ import annotations

import json
import sys

import flicker
import numpy as np
import pytest


@pytest.fixture
def measured(monkeypatch, tmp_path):
    """Runs the program with flags; gives its rows. Restoring halves the rain of its frames."""
    filmed = flicker.filmed
    clean = {}

    def remembered(*arguments):
        rainy, without = filmed(*arguments)
        clean.update(zip(map(np.ndarray.tobytes, rainy), without, strict=True))
        return rainy, without

    def load(checkpoint):
        def restore(frame):
            target = clean.get(frame.tobytes(), frame)
            return target + (frame.astype(int) - target) // 2 if target is not frame else frame

        return lambda frame: restore(frame).astype(np.uint8)

    monkeypatch.setattr(flicker, "filmed", remembered)
    monkeypatch.setattr(flicker, "load", load)

    def run(*flags):
        out = tmp_path / "flicker.json"
        flags = ("--scenes", "1", "--frames", "4", "--side", "32", *flags, "--json", str(out))
        monkeypatch.setattr(sys, "argv", ["flicker.py", *flags])
        flicker.main()
        return json.loads(out.read_text())["rows"]

    return run


def test_half_of_the_rain_has_half_of_the_flicker_and_a_median_less_where_nothing_moves(measured):
    rows = measured("--moves", "0", "9")
    assert [(row["rain"], row["move"]) for row in rows] == [
        (kind, move) for kind in ("light", "fine", "heavy") for move in (0, 9)
    ]
    for row in rows:
        assert row["alone"] == pytest.approx(row["rainy"] / 2, rel=0.2)
        assert row["alone_db"] == pytest.approx(row["rainy_db"] + 6, abs=0.7)
    for still, moving in zip(rows[::2], rows[1::2], strict=True):
        assert still["median_of_restored"] < still["alone"]
        assert still["median_of_restored_db"] > still["alone_db"]
        assert moving["median_of_restored_db"] < still["median_of_restored_db"], "ghosts"


def test_a_moving_scene_without_rain_does_not_flicker():
    whole = np.random.default_rng(0).integers(0, 256, (20, 60, 3), np.uint8)
    video = [whole[:, 5 * i : 5 * i + 30] for i in range(5)]
    assert flicker.flicker(video, 5) == 0
    assert flicker.flicker(video, 0) > 50


def test_rain_of_a_video_has_one_strength():
    rain = flicker.steady("heavy")
    assert rain.heavy_layers == (3, 3)
    assert rain.heavy_drops.length == (42.5, 42.5)
    assert (rain.lean, rain.opaque_share, rain.veil) == (0, 0, 0)
    assert list(rain.weights()) == [0, 0, 1, 0]


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (("--frames", "3"), "--frames is 3; expected at least 4"),
        (("--moves", "-1"), "--moves has -1; expected 0 or more"),
        (("--side", "4000"), r"\w+ is \d+x\d+; expected at least \d+x4000"),
    ],
)
def test_wrong_input_is_reported_in_one_line(measured, flags, line):
    with pytest.raises(SystemExit, match=f"^error: {line}$"):
        measured(*flags)
