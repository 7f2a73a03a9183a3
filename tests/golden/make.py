"""Writes the golden files beside this program; needs PyTorch: `python tests/golden/make.py`.

Seeds are searched from 0 for the first whose inputs leave no top-k decision close, so that a
correct implementation agrees closely whatever its rounding.
"""

from __future__ import annotations

import itertools
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import reference
import torch

FOLDER = Path(__file__).parent
DRSFORMER: dict[str, Any] = {
    "dim": 8,
    "blocks": (1, 2, 1, 1),
    "heads": (1, 2, 1, 2),
    "encoder_level0": "mefc",
    "refinement": "mefc",
    "refinement_blocks": 2,
    "attention": "topk",
    "topk_fractions": ("1/2", "2/3", "3/4", "4/5"),
    "feed_forward": "msfn",
    "expansion": 2.66,
    "norm": "with_bias",
    "bias": False,
}
BARE = {**DRSFORMER, "encoder_level0": "none", "refinement": "none"}
VARIANTS = {
    "drsformer": DRSFORMER,
    "no_mefc": {**BARE, "heads": (2, 2, 4, 4)},
    "restormer": {**BARE, "refinement": "blocks", "attention": "dense", "feed_forward": "gdfn"},
    "dfn": {**BARE, "feed_forward": "dfn"},
    "fn": {**BARE, "feed_forward": "fn"},
    "dense": {**BARE, "attention": "dense"},
    "bias": {**DRSFORMER, "bias": True},
    "bias_free": {**BARE, "norm": "bias_free"},
}
TRAINED = {**DRSFORMER, "blocks": (1, 1, 1, 1)}
SHAPE = (1, 16, 24, 3)
BATCH_SHAPE = (2, 16, 16, 3)
FORWARD_GAP = 1e-5
TRAINING_GAP = 1e-7
"""Training is compared in float64 alone, which separates closer decisions."""


def uniform(seed: int, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Float32 images in [0, 1), drawn as the weights are from the seed and a name."""
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    return rng.random(shape, dtype=np.float32)


def describe(variant: dict[str, Any], shapes: reference.Shapes, seed: int) -> dict[str, Any]:
    return {"variant": json.dumps(variant), "keys": json.dumps(shapes), "seed": seed}


def forward_golden(name: str, variant: dict[str, Any]) -> dict[str, Any]:
    """One forward pass; all stages of `drsformer` and, to save space, two of the others."""
    shapes = reference.official_shapes(variant)
    for seed in itertools.count():
        weights = reference.recipe_weights(shapes, seed)
        image = uniform(seed, "input", SHAPE)
        wide = {key: torch.from_numpy(weight).double() for key, weight in weights.items()}
        result = reference.forward(wide, torch.from_numpy(image).double(), variant)
        if result.smallest_topk_gap > FORWARD_GAP:
            break
    kept = result.stages if name == "drsformer" else ("encoder_level1", "latent")
    return {
        **describe(variant, shapes, seed),
        "input": image,
        "output": result.output.numpy(),
        **{f"stage/{stage}": result.stages[stage].numpy().astype(np.float32) for stage in kept},
        "smallest_topk_gap": result.smallest_topk_gap,
    }


def training_golden(variant: dict[str, Any]) -> dict[str, Any]:
    """Four optimizer steps on one batch of two crops."""
    shapes = reference.official_shapes(variant)
    for seed in itertools.count():
        weights = reference.recipe_weights(shapes, seed)
        rainy = uniform(seed, "input", BATCH_SHAPE)
        clean = uniform(seed, "target", BATCH_SHAPE)
        result = reference.train(weights, rainy, clean, variant)
        if result.smallest_topk_gap > TRAINING_GAP:
            break
    return {
        **describe(variant, shapes, seed),
        "input": rainy,
        "target": clean,
        "grad_norm_keys": np.array(list(shapes)),
        **result._asdict(),
    }


def main() -> None:
    goldens = {name: forward_golden(name, variant) for name, variant in VARIANTS.items()}
    goldens["train"] = training_golden(TRAINED)
    for name, golden in goldens.items():
        path = FOLDER / f"{name}.npz"
        np.savez_compressed(path, **golden)
        print(
            f"{name:10} seed {golden['seed']:3} smallest gap {golden['smallest_topk_gap']:.1e}"
            f" {path.stat().st_size / 1000:6.1f} kB"
        )


if __name__ == "__main__":
    main()
