"""A trained network becomes the package's own: 16 bits, scores and credits, whole or not at all."""

from __future__ import annotations

import jax
import numpy as np
import pytest
import ship_pretrained
from gather_photographs import LIST, read_list

from drsformer_jax import weights
from drsformer_jax.errors import InputError


@pytest.fixture
def scores(tmp_path):
    path = tmp_path / "scores.md"
    path.write_text("| system | gain |\n|---|---|\n| run | +7.00 |\n")
    return path


def test_weights_are_rounded_to_16_bits_and_the_card_has_scores_and_credits(
    trained, scores, tmp_path
):
    run, out = trained[0], tmp_path / "pretrained"
    for _ in range(2):  # The second takes the place of the first.
        ship_pretrained.ship(run, None, scores, out)
    assert {path.name for path in out.iterdir()} == {
        *("README.md", "config.json", "params.safetensors")
    }
    (config, params), (expected, whole) = weights.load(out), weights.load(run)
    assert config.architecture() == expected.architecture()
    jax.tree.map(
        lambda found, leaf: np.testing.assert_array_equal(found, np.float16(leaf)), params, whole
    )
    card = (out / "README.md").read_text()
    assert "| run | +7.00 |" in card
    assert all(f"| {photograph.name} | " in card for photograph in read_list(LIST))
    # Four steps of two crops.
    assert "for 4 steps of\n8 crops together" in card


def test_what_cannot_be_shipped_leaves_what_was_there(trained, scores, tmp_path, monkeypatch):
    out = tmp_path / "pretrained"
    ship_pretrained.ship(trained[0], None, scores, out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    monkeypatch.setattr(ship_pretrained, "MOST_BYTES", 1000)
    with pytest.raises(InputError, match=r"^the weights take .* bytes; expected at most 1,000$"):
        ship_pretrained.ship(trained[0], None, scores, out)
    with pytest.raises(InputError, match=r"empty has no checkpoint; expected a run"):
        ship_pretrained.ship(tmp_path / "empty", None, scores, out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
