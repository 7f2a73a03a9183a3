"""Renders layers of rain: near drops one by one, far drops as blurred noise; and smooth fields."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import scipy.fft

_DROPS_AT_ONCE = 128
"""Keeps the windows of the drops in the processor's cache, and memory low on large photographs."""
_WIDTH_SPREAD = 0.3
"""Deviation of the logarithm of the drops' widths."""
_STRONGEST_RIPPLE = 0.35
"""A drop's brightness varies along its streak, since it oscillates as it falls ("Vision and Rain",
IJCV 2007)."""


@dataclass(frozen=True)
class Window:
    """The rendered window of a photograph; fields over the photograph are cropped to it."""

    top: int
    left: int
    h: int
    w: int
    height: int
    """Of the photograph, in pixels."""
    width: int

    @classmethod
    def whole(cls, height: int, width: int) -> Window:
        """A photograph as a whole."""
        return cls(0, 0, height, width, height, width)


@dataclass(frozen=True)
class Streaks:
    """One layer of rain: drops at one distance, streaks because of the exposure time."""

    angle: float
    """Lean from the vertical in degrees, positive towards the lower right; within 60."""
    length: float
    """Mean length in pixels."""
    width: float
    """Standard deviation of a streak's profile in pixels; small is sharp, large out of focus."""
    coverage: float
    """Mean of length times width times streaks, as a share of the image."""
    brightness: float
    """Light that the brightest streak adds, 1 is white."""
    scatter: float = 1.5
    """Standard deviation of the drops' lean about the layer's, in degrees."""
    perspective: float = 0.0
    """Change of the lean from the middle of the layer to its right edge, in degrees."""
    hard: bool = False
    """Whether streaks are bars of one brightness, instead of fading out."""


def draw_streaks(streaks: Streaks, h: int, w: int, rng: np.random.Generator) -> np.ndarray:
    """Renders one layer of drops.

    Each drop has its own length, lean, width and brightness, sampled around the layer's. A streak
    is a Gaussian across, fades out at both ends and ripples between; a hard one is a bar.

    Returns:
        float32 of shape (h, w): the light that the layer adds, at least 0.
    """
    # Drops also start outside, within the longest length, so that borders have as much rain.
    margin = 1.5 * streaks.length
    area = (h + margin) * (w + margin)
    count = rng.poisson(streaks.coverage * area / (streaks.length * 2 * streaks.width))
    x = rng.uniform(-margin / 2, w + margin / 2, count)
    lean = streaks.angle + streaks.perspective * np.clip(2 * x / w - 1, -1, 1)
    drops = np.stack(
        [
            x,
            rng.uniform(-margin / 2, h + margin / 2, count),
            np.radians(np.clip(lean + rng.normal(0, streaks.scatter, count), -70, 70)),
            streaks.length / 2 * rng.uniform(0.5, 1.5, count),
            streaks.width * rng.lognormal(0, _WIDTH_SPREAD, count),
            streaks.brightness * rng.uniform(0.3, 1, count),
            rng.uniform(0, _STRONGEST_RIPPLE, count),
            math.pi * rng.uniform(1, 4, count),
            rng.uniform(0, 2 * math.pi, count),
        ]
    ).astype(np.float32)
    # Drops of similar lengths are stamped together, in windows no larger than they need.
    drops = drops[:, np.argsort(drops[3], kind="stable")]
    layer = np.zeros((h, w), np.float32)
    for start in range(0, count, _DROPS_AT_ONCE):
        _stamp(layer, drops[:, start : start + _DROPS_AT_ONCE], hard=streaks.hard)
    return layer


def _stamp(layer: np.ndarray, drops: np.ndarray, *, hard: bool) -> None:
    """Adds drops to a layer in place, each within a window of pixels that follows its lean."""
    x, y, lean, half_length, width, brightness, ripple, waves, phase = drops[:, :, None, None]
    reach_y = math.ceil(half_length.max()) + 1
    reach_x = math.ceil((3 * width / np.cos(lean)).max()) + 1
    rows = np.floor(y).astype(np.int32) + np.arange(-reach_y, reach_y + 1, dtype=np.int32)[:, None]
    dy = rows.astype(np.float32) + np.float32(0.5) - y
    columns = np.floor(x + dy * np.tan(lean)).astype(np.int32)
    columns = columns + np.arange(-reach_x, reach_x + 1, dtype=np.int32)
    dx = columns.astype(np.float32) + np.float32(0.5) - x
    along = dx * np.sin(lean) + dy * np.cos(lean)
    across = dx * np.cos(lean) - dy * np.sin(lean)
    if hard:
        edge = np.float32(1.2) * width - np.abs(across)
        end = half_length - np.abs(along)
        half = np.float32(0.5)
        light = brightness * np.clip(edge + half, 0, 1) * np.clip(end + half, 0, 1)
    else:
        share = along / half_length
        light = np.clip(np.float32(1.5) * (1 - np.abs(share)), 0, 1)
        light *= brightness * (1 + ripple * np.cos(waves * share + phase))
        light *= np.exp(np.float32(-0.5) * np.square(across / width))

    h, w = layer.shape
    rows = np.broadcast_to(rows, columns.shape)
    inside = (light > 1e-3) & (rows >= 0) & (rows < h) & (columns >= 0) & (columns < w)
    pixels = rows[inside] * w + columns[inside]
    np.add.at(layer.reshape(-1), pixels, light[inside])


@dataclass(frozen=True)
class Noise:
    """One layer of blurred noise: drops too many to be rendered one by one."""

    angle: float
    """Lean from the vertical in degrees, positive towards the lower right."""
    length: float
    """Length of the blur along the wind, in pixels."""
    blur: float
    """Standard deviation of the blur across it, in pixels."""
    density: float
    """Share of the pixels that a drop begins in."""
    contrast: float
    """Light that the brightest hundredth of the layer adds, 1 is white."""
    dark: float
    """Share of the layer that adds no light."""
    taper: float
    """Standard deviation of a further blur along the wind, as a share of the length."""


def draw_noise(rain: Noise, h: int, w: int, rng: np.random.Generator) -> np.ndarray:
    """Renders one layer of sparse noise under motion blur (Li et al., CVPR 2019).

    Returns:
        float32 of shape (h, w): the light that the layer adds, at least 0.
    """
    # The blur wraps around, so the noise is larger by its length.
    angle, reach = math.radians(rain.angle), math.ceil((1 + 4 * rain.taper) * rain.length) + 4
    rows = scipy.fft.next_fast_len(h + math.ceil(abs(math.cos(angle)) * reach), real=True)
    columns = scipy.fft.next_fast_len(w + math.ceil(abs(math.sin(angle)) * reach), real=True)
    count = max(1, rng.poisson(rain.density * rows * columns))
    places = rng.integers(rows * columns, size=count)
    noise = np.bincount(places, rng.gamma(2, 0.5, count), minlength=rows * columns)
    down = scipy.fft.fftfreq(rows).astype(np.float32)[:, None]
    right = scipy.fft.rfftfreq(columns).astype(np.float32)
    along = down * math.cos(angle) + right * math.sin(angle)
    across = right * math.cos(angle) - down * math.sin(angle)
    spread = (rain.taper * rain.length * along) ** 2 + (rain.blur * across) ** 2
    transfer = np.sinc(along * rain.length) * np.exp(-2 * math.pi**2 * spread)
    spectrum = scipy.fft.rfft2(noise.astype(np.float32).reshape(rows, columns))
    light = scipy.fft.irfft2(spectrum * transfer, (rows, columns))[:h, :w]
    # The darkest part is the level without rain.
    some = np.sort(light[:: max(1, h // 64), :: max(1, w // 64)], axis=None)
    dark, bright = some[int(rain.dark * len(some))], some[int(0.99 * len(some))]
    light = np.maximum(light - dark, 0)
    return (light * (rain.contrast / max(bright - dark, 1e-6))).astype(np.float32)


def smooth_field(
    window: Window, least: float, greatest: float, rng: np.random.Generator
) -> np.ndarray:
    """Samples a field that varies smoothly over a photograph: bilinear between 4x4 knots.

    Returns:
        float32 of shape (h, w), between `least` and `greatest`: the window's part of it.
    """
    knots = rng.uniform(least, greatest, (4, 4)).astype(np.float32)
    down = _bilinear(window.height)[window.top : window.top + window.h]
    right = _bilinear(window.width)[window.left : window.left + window.w]
    return down @ knots @ right.T


def _bilinear(size: int) -> np.ndarray:
    position = (np.arange(size, dtype=np.float32) + 0.5) * (3 / size)
    return np.maximum(0, 1 - np.abs(position[:, None] - np.arange(4, dtype=np.float32)))
