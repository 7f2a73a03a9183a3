"""A trained network becomes the package's own: 16 bits, its own scores and credits, or nothing."""

from __future__ import annotations

import re

import jax
import numpy as np
import pytest
import ship_pretrained
from gather_photographs import LIST, read_list

from drsformer_jax import weights
from drsformer_jax.errors import InputError
from drsformer_jax.images.pixels import write_image

SPLIT_OF = {"a": "train", "b": "train", "c": "validation"}


@pytest.fixture(scope="module")
def listed():
    rows = read_list(LIST)[: len(SPLIT_OF)]
    return [
        row._replace(name=name, split=split)
        for row, (name, split) in zip(rows, SPLIT_OF.items(), strict=True)
    ]


@pytest.fixture(scope="module")
def rained(run, place):
    """The folder of photographs, and a run of 4 steps of 2 crops of rain on them."""
    random = np.random.default_rng(0)
    for name, split in SPLIT_OF.items():
        image = random.integers(0, 256, (40, 48, 3), np.uint8)
        write_image(place / "photographs" / split / f"{name}.png", image)
    result = run(
        *("train", "--config", "config.py", "--workdir", "rained", "--data.train", "synthetic"),
        *("--data.validation", "synthetic", "--data.photographs", "photographs"),
    )
    assert result.returncode == 0, result.stderr
    return place / "photographs", place / "rained"


@pytest.fixture
def ship(rained, listed, monkeypatch, tmp_path):
    """Ships that run into a folder."""
    monkeypatch.setattr(ship_pretrained, "read_list", lambda path: listed)

    def shipped(**changes):
        folder, run = rained
        arguments = {"run": run, "step": None, "source": str(folder), "data": []}
        ship_pretrained.ship(**{**arguments, "out": tmp_path / "pretrained", **changes})
        return tmp_path / "pretrained"

    return shipped


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_weights_are_rounded_to_16_bits_and_the_card_has_their_scores_and_the_credits(
    ship, rained, listed
):
    out = ship()
    assert contents(out).keys() == {"README.md", "config.json", "params.safetensors"}
    (config, params), (expected, whole) = weights.load(out), weights.load(rained[1])
    assert config.architecture() == expected.architecture()
    jax.tree.map(
        lambda found, leaf: np.testing.assert_array_equal(found, np.float16(leaf)), params, whole
    )
    card = (out / "README.md").read_text()
    text = " ".join(card.split())
    assert "for 4 steps, 8 crops in all" in text
    assert "decays in the last 2 steps." in text
    assert "rendered on 2 photographs, and 1 others are for validation" in text
    assert re.search(r"\| the built-in network \| [+-]", card)
    assert all(f"| {photograph.name} | {photograph.author} | " in card for photograph in listed)
    # Refused, the next one leaves all as it was.
    before = contents(out)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ship_pretrained, "scored", lambda *arguments: "")
        patch.setattr(ship_pretrained, "MOST_BYTES", 1000)
        with pytest.raises(InputError, match=r"^the folder takes .* bytes; expected at most 1,000"):
            ship()
    assert contents(out) == before
    assert [path.name for path in out.parent.iterdir()] == ["pretrained"]


def test_folder_that_holds_something_else_is_left_alone(ship, tmp_path):
    (tmp_path / "precious" / "deep").mkdir(parents=True)
    with pytest.raises(InputError, match=r"precious holds other files than README\.md, "):
        ship(out=tmp_path / "precious")
    assert (tmp_path / "precious" / "deep").is_dir()


def test_what_was_trained_otherwise_than_the_card_says_is_rejected(ship, trained, listed):
    with pytest.raises(InputError, match=r"was trained on .*pairs; expected synthetic"):
        ship(run=trained[0])
    listed.append(listed[0]._replace(name="lost"))
    with pytest.raises(InputError, match=r"differ in train/lost\.png; expected equal"):
        ship()
    listed.pop()
    with pytest.raises(InputError, match=r"empty has no checkpoint; expected a run"):
        ship(run=trained[0].parent / "empty")
