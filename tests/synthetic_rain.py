"""Configurations of synthetic rain with one thing changed, and images to draw it on."""

from __future__ import annotations

import dataclasses

import numpy as np

from drsformer_jax.config import KINDS, DropRanges, NoiseRanges, RainConfig
from drsformer_jax.data.synthetic import add_rain
from drsformer_jax.data.synthetic.layers import Window

RAINY = ["light", "ragged", "fine", "heavy"]
"""Kinds with rain; light rain is that of drops, or ragged."""
UNCHANGED = {"overcast_share": 0.0, "fog_share": 0.0}
"""Leaves the target as it is."""
PLAIN = {**UNCHANGED, "noise": 0.0, "jpeg_share": 0.0, "fine_jpeg_share": 0.0, "veil": 0.0}
"""The light of the streaks alone."""
DARK = DropRanges((30, 30), (1, 1), (0.1, 0.1), (0, 0))
"""Streaks that add no light."""
DARK_NOISE = NoiseRanges((30, 30), (1, 1), (0.02, 0.02), (0, 0))
WITHOUT_STREAKS = {
    "light_near": DARK,
    "light_distant": DARK,
    "heavy_drops": DARK,
    "fine_drops": DARK,
    "blurred_drops": DARK,
    "fine_noise": DARK_NOISE,
    "ragged_noise": DARK_NOISE,
}


def of(kind: str, **changes: object) -> RainConfig:
    """Rain of one of `RAINY`, or none."""
    shown = "light" if kind == "ragged" else kind
    ragged = {"ragged_share": float(kind == "ragged")}
    return RainConfig(**{each: float(each == shown) for each in KINDS}, **ragged | changes)


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
    """The default ranges of a layer of drops with some changed."""
    return {layer: dataclasses.replace(getattr(RainConfig(), layer), **changes)}


def noise(layer: str, **changes: object) -> dict[str, NoiseRanges]:
    """The same of a layer of noise."""
    return {layer: dataclasses.replace(getattr(RainConfig(), layer), **changes)}
