"""Configurations of synthetic rain with one thing changed, and images to draw it on."""

from __future__ import annotations

import dataclasses

import numpy as np

from drsformer_jax.config import KINDS, DropRanges, RainConfig
from drsformer_jax.data.synthetic import add_rain
from drsformer_jax.data.synthetic.layers import Window

RAINY = [kind for kind in KINDS if kind != "none"]
UNCHANGED = {"overcast_share": 0.0, "fog_share": 0.0}
"""Leaves the target as it is."""
PLAIN = {**UNCHANGED, "noise": 0.0, "jpeg_share": 0.0, "fine_jpeg_share": 0.0, "veil": 0.0}
"""The light of the streaks alone."""
DARK = DropRanges((30, 30), (1, 1), (0.1, 0.1), (0, 0))
"""Streaks that add no light."""
WITHOUT_STREAKS = {
    "light_near": DARK,
    "light_distant": DARK,
    "heavy_drops": DARK,
    "fine_drops": DARK,
    "blurred_drops": DARK,
    "fine_contrast": (0.0, 0.0),
}


def of(kind: str, **changes: object) -> RainConfig:
    """Rain of one kind alone."""
    return RainConfig(**{each: float(each == kind) for each in KINDS}, **changes)


def gray(level: int, size: tuple[int, int] = (96, 128)) -> np.ndarray:
    return np.full((*size, 3), level, np.uint8)


def rained(
    clean: np.ndarray, config: RainConfig, seed: int = 0, window: Window | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Both sides, in levels that can be subtracted."""
    rainy, target = add_rain(clean, np.random.default_rng(seed), config, window)
    assert rainy.shape == target.shape == clean.shape
    assert rainy.dtype == target.dtype == np.uint8
    return rainy.astype(int), target.astype(int)


def drops(layer: str, **changes: object) -> dict[str, DropRanges]:
    """The default ranges of a layer of rain with some changed."""
    return {layer: dataclasses.replace(getattr(RainConfig(), layer), **changes)}
