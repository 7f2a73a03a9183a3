"""What a finished run leaves: images and a report of its best checkpoint, each restored once."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest

from drsformer_jax.config import TrainConfig
from drsformer_jax.images.pixels import read_image
from drsformer_jax.report.results import Kept, write_results
from drsformer_jax.restoring import Restorer
from drsformer_jax.scoring.evaluation import Scores


class Noise:
    """Pairs of noise; `read` are the indices that were read."""

    def __init__(self, count: int) -> None:
        self._count = count
        self.read: list[int] = []

    def __len__(self):
        return self._count

    def __getitem__(self, index):
        self.read.append(index)
        rainy, clean = np.random.default_rng(index).integers(0, 256, (2, 16, 16, 3), np.uint8)
        return {"name": f"{index}.jpg", "rainy": rainy, "clean": clean}

    def size(self, index):
        return 16, 16


GAINS = [0.0, 5.0, -2.0, 1.0, 1.0, 3.0, 0.5, 0.25, 2.0, -9.0, 8.0, 0.125, 7.0, -1.0, 0.0625, -3.0]
"""Of pairs, in order."""
SHOWN = ["10", "12", "1", "9", "15", "2"]
"""Those with the three largest gains, then those with the smallest."""


@pytest.mark.parametrize("processes", [1, 3])
def test_what_was_restored_while_scoring_is_neither_read_nor_restored_again(
    tmp_path, network, processes
):
    restorer, pairs, kept = Restorer(*network), Noise(len(GAINS)), Kept()
    scores = [Scores(20.0, 0.5, 20.0 + gain, 0.5) for gain in GAINS]
    restored = {}
    for index in range(0, len(pairs), processes):
        pair = pairs[index]
        restored[index] = restorer(pair["rainy"])
        kept.add(index, pair, restored[index], scores[index])
        assert len(kept.examples) <= 8 + 6
    pairs.read.clear()
    before = sum(restorer.programs.values())
    config = TrainConfig(model=network[0])
    write_results(tmp_path, config, restorer, pairs, scores, kept, title="a, step 3")
    wanted = {*range(8), *map(int, SHOWN)}
    assert sum(restorer.programs.values()) - before == len(wanted - restored.keys())
    if processes == 1:
        assert pairs.read == []
    page = (tmp_path / "report.html").read_text()
    assert re.findall(r"<b>(\d+)\.jpg</b>", page) == SHOWN
    assert re.findall(r"<tr><th>(\d+)\.jpg</th>", page) == [str(i) for i in range(len(pairs))]
    for part, image in (("input", "rainy"), ("target", "clean")):
        for index in range(8):
            found = read_image(tmp_path / "validation" / part / f"{index}.png")
            np.testing.assert_array_equal(found, pairs[index][image])
    for index in range(8):
        found = read_image(tmp_path / "validation" / "restored" / f"{index}.png")
        np.testing.assert_array_equal(found, restorer(pairs[index]["rainy"]))
    assert len(list((tmp_path / "validation").rglob("*.png"))) == 24
    assert len(read_image(tmp_path / "comparison.png")) == 32 + 4 * (16 + 8), "four rows"


def test_images_whose_names_hold_dots_have_files_of_their_own(tmp_path, network):
    names = ["street.a_000", "street.a_001", "street.b_000", "c.jpg"]
    pair = Noise(1)[0]
    kept, scores = Kept(), [Scores(20.0, 0.5, 21.0, 0.5)] * len(names)
    pairs = [{**pair, "name": name} for name in names]
    for index, each in enumerate(pairs):
        kept.add(index, each, each["clean"], scores[index])
    config = TrainConfig(model=network[0])
    write_results(tmp_path, config, Restorer(*network), pairs, scores, kept, title="a, step 3")
    expected = {"street.a_000.png", "street.a_001.png", "street.b_000.png", "c.png"}
    for part in ("input", "restored", "target"):
        assert {path.name for path in (tmp_path / "validation" / part).iterdir()} == expected


def test_a_run_reports_its_best_checkpoint_and_not_its_latest(run, trained, place):
    folder = place / "best"
    shutil.copytree(trained[0], folder)
    scores = json.loads((folder / "validation.json").read_text())
    best = {name: value + 1 if name == "psnr" else value for name, value in scores["4"].items()}
    (folder / "validation.json").write_text(json.dumps({"2": best, **scores}))
    result = run("train", "--config", "config.py", "--workdir", "best")
    assert result.returncode == 0, result.stderr
    assert "<h1>best, step 2</h1>" in (folder / "report.html").read_text()
    rainy = read_image(folder / "validation" / "input" / "0.png")
    shown = read_image(folder / "validation" / "restored" / "0.png")
    at_2, at_4 = (Restorer.load(folder, step)(rainy) for step in (2, 4))
    assert not np.array_equal(at_2, at_4)
    np.testing.assert_array_equal(shown, at_2)
