"""The PyTorch reference gives the committed golden files, and the official programs' numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from golden import reference  # noqa: E402  (it imports torch)

GOLDEN = Path(__file__).parents[1] / "golden"
OFFICIAL = Path(__file__).parents[2].parent / "shared" / "golden"
FORWARD = ("drsformer", "no_mefc", "restormer", "dfn", "fn", "dense", "bias", "bias_free")
DRSFORMER: dict[str, Any] = {
    "dim": 48,
    "blocks": (4, 6, 6, 8),
    "heads": (1, 2, 4, 8),
    "encoder_level0": "mefc",
    "refinement": "mefc",
    "refinement_blocks": 4,
    "attention": "topk",
    "topk_fractions": ("1/2", "2/3", "3/4", "4/5"),
    "feed_forward": "msfn",
    "expansion": 2.66,
    "norm": "with_bias",
    "bias": False,
}
OFFICIAL_VARIANTS = {
    "drsformer": DRSFORMER,
    "drsformer_no_mefc": {**DRSFORMER, "encoder_level0": "none", "refinement": "none"},
    "restormer": {
        **DRSFORMER,
        "encoder_level0": "none",
        "refinement": "blocks",
        "attention": "dense",
        "feed_forward": "gdfn",
    },
}


def load(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return dict(file)


def run(
    golden: dict[str, np.ndarray], variant: dict[str, Any], dtype: Any = torch.float64
) -> reference.Forward:
    weights = reference.recipe_weights(reference.official_shapes(variant), int(golden["seed"]))
    with torch.no_grad():
        return reference.forward(
            {key: torch.from_numpy(weight).to(dtype) for key, weight in weights.items()},
            torch.from_numpy(golden["input"]).to(dtype),
            variant,
        )


def assert_equals(golden: dict[str, np.ndarray], result: reference.Forward) -> None:
    np.testing.assert_allclose(result.output, golden["output"], rtol=0, atol=1e-12)
    stages = {name.removeprefix("stage/") for name in golden if name.startswith("stage/")}
    assert stages <= set(result.stages)
    for name in stages:  # stored in float32
        expected = golden[f"stage/{name}"]
        np.testing.assert_allclose(result.stages[name], expected, rtol=1e-7, atol=1e-12)
    assert result.smallest_topk_gap == pytest.approx(float(golden["smallest_topk_gap"]), abs=1e-12)


@pytest.mark.parametrize("name", FORWARD)
def test_reference_reproduces_the_committed_file(name: str) -> None:
    golden = load(GOLDEN / f"{name}.npz")
    variant = json.loads(str(golden["variant"]))
    shapes = {key: list(shape) for key, shape in reference.official_shapes(variant).items()}
    assert list(json.loads(str(golden["keys"])).items()) == list(shapes.items())
    assert_equals(golden, run(golden, variant))


@pytest.mark.parametrize("name", FORWARD)
def test_float32_agrees_with_the_committed_file_because_no_decision_is_close(name: str) -> None:
    golden = load(GOLDEN / f"{name}.npz")
    assert golden["smallest_topk_gap"] > 1e-5
    result = run(golden, json.loads(str(golden["variant"])), torch.float32)
    error = np.linalg.norm(result.output.numpy() - golden["output"])
    assert error < 1e-6 * np.linalg.norm(golden["output"])


def test_reference_reproduces_the_committed_training_steps() -> None:
    golden = load(GOLDEN / "train.npz")
    variant = json.loads(str(golden["variant"]))
    shapes = reference.official_shapes(variant)
    assert list(golden["grad_norm_keys"]) == list(shapes)
    weights = reference.recipe_weights(shapes, int(golden["seed"]))
    result = reference.train(weights, golden["input"], golden["target"], variant)
    assert golden["smallest_topk_gap"] > 1e-7
    np.testing.assert_allclose(result.output, golden["output"], rtol=0, atol=1e-12)
    for name in ("losses", "total_grad_norms", "grad_norms"):
        np.testing.assert_allclose(getattr(result, name), golden[name], rtol=1e-10)


def test_a_misnamed_weight_is_rejected() -> None:
    golden = load(GOLDEN / "fn.npz")
    variant = json.loads(str(golden["variant"]))
    weights = {"wrong": torch.zeros(1)}
    with pytest.raises(ValueError, match="not the variant's"):
        reference.forward(weights, torch.from_numpy(golden["input"]), variant)


@pytest.mark.golden
@pytest.mark.skipif(not OFFICIAL.exists(), reason="needs the official programs' numbers")
@pytest.mark.parametrize("name", OFFICIAL_VARIANTS)
def test_reference_equals_the_official_program(name: str) -> None:
    variant = OFFICIAL_VARIANTS[name]
    keys = json.loads((OFFICIAL / f"{name}_keys.json").read_text())
    shapes = {key: list(shape) for key, shape in reference.official_shapes(variant).items()}
    assert list(shapes.items()) == list(keys.items())
    golden = load(OFFICIAL / f"{name}.npz")
    assert_equals(golden, run(golden, variant))
