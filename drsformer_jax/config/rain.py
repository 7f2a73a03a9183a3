"""Settings of synthetic rain: the mix of kinds, and the ranges that each is sampled from."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from drsformer_jax.config.fields import check, check_types

Kind = Literal["light", "fine", "heavy", "none"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Range = tuple[float, float]
"""Least and greatest value; sampled uniformly between them unless stated otherwise."""

_LIMITS: dict[str, tuple[float, float]] = {
    "lean": (0, 45),
    "lean_of_layers": (0, 20),
    "heavy_lean_of_layers": (0, 20),
    "perspective": (0, 20),
    "ragged_layers": (1, 10),
    "fine_layers": (1, 10),
    "fine_scale": (0.1, 10),
    "fog_density": (0, 10),
    "heavy_layers": (1, 10),
    "jpeg_quality": (1, 100),
}
"""Limits of the numbers and ranges of `RainConfig`; all others, shares or light, are within 0 and
1."""


@dataclass(frozen=True)
class DropRanges:
    """Ranges that a layer of drops is sampled from; each drop is a streak during the exposure.

    `RainConfig` rejects impossible values.
    """

    length: Range
    """Mean length of the streaks in pixels; each has 0.5 to 1.5 of it."""
    width: Range
    """Standard deviation of a streak's profile in pixels, times a log-normal factor for each."""
    coverage: Range
    """Mean of length times width times streaks, as a share of the image."""
    brightness: Range
    """Light that the brightest streak adds, 1 is white; each has 0.3 to 1 of it."""
    scatter: float = 1.5
    """Standard deviation of the streaks' lean about the layer's, in degrees."""

    def check(self, name: str) -> None:
        """Rejects impossible values of the layer; `name` is that of its flag."""
        limits = {
            "length": (1, 1000),
            "width": (0.1, 100),
            "coverage": (0, 2),
            "brightness": (0, 1),
        }
        _check_ranges(self, name, limits)
        check(0 <= self.scatter <= 20, f"{name}.scatter", self.scatter, "0 to 20")


@dataclass(frozen=True)
class NoiseRanges:
    """Ranges that a layer of blurred noise is sampled from: drops too many to be rendered singly.

    Sparse noise under motion blur (Li et al., CVPR 2019), less its darker part. `RainConfig`
    rejects impossible values.
    """

    length: Range
    """Length of the motion blur in pixels, along the wind."""
    blur: Range
    """Standard deviation of the blur across it, in pixels."""
    density: Range
    """Share of the pixels that a drop begins in; of fewer than 0.001 there is no brightest
    hundredth."""
    contrast: Range
    """Light that the brightest hundredth of the layer adds, 1 is white."""
    dark: Range = (0.35, 0.35)
    """Share of the layer that adds no light: its darkest part."""
    taper: Range = (0.0, 0.0)
    """Standard deviation of a further blur along the wind, as a share of the length: streaks end
    softly."""

    def check(self, name: str) -> None:
        """Rejects impossible values of the layer; `name` is that of its flag."""
        limits = {"length": (1, 1000), "blur": (0, 100), "density": (0.001, 1), "contrast": (0, 1)}
        _check_ranges(self, name, limits | {"dark": (0, 0.95), "taper": (0, 1)})


@dataclass(frozen=True)
class RainConfig:
    """The mix of synthetic rain, and the ranges that each kind is sampled from.

    Four kinds cover benchmarks and real photographs. `light` is like Rain100L and Rain200L: few
    bright streaks, sometimes a thin veil. `fine` is like real photographs: dense, thin and faint,
    over fog that is in the target too. `heavy` is like Rain200H. `none` adds no rain, so that the
    network learns to leave such images unchanged. Many rains on few photographs generalize better
    than the opposite ("Networks are Slacking Off", NeurIPS 2023). The ranges of `light` and
    `heavy` were set by the statistics of the benchmarks' pairs (`benchmarks/rain_statistics.py`),
    those of `fine` by eye beside real photographs.

    Lengths and widths are in pixels, angles in degrees, light is 1 at white. "Share" is a
    probability for each image.

    Raises:
        InputError: if a value is impossible.
    """

    light: float = 0.35
    """Weight of light rain in the mix; the four weights need not add up to 1."""
    fine: float = 0.4
    """Weight of fine, dense rain."""
    heavy: float = 0.2
    """Weight of heavy rain."""
    none: float = 0.05
    """Weight of images without rain."""

    lean: float = 14.0
    """Standard deviation of the wind's angle from the vertical; clipped at 45 degrees (Rain100L
    has leans up to 28)."""
    lean_of_layers: float = 3.0
    """Standard deviation of a further layer's lean about the wind's."""
    perspective: float = 4.0
    """Greatest change of the lean from the middle of a photograph to its left and right edge."""
    unevenness: Range = (0.4, 1.0)
    """Share of fine and heavy rain that is visible, a smooth field over the photograph."""

    light_near: DropRanges = DropRanges((35, 120), (0.5, 1.05), (0.01, 0.05), (0.3, 0.75))
    """The near layer of light rain."""
    light_distant: DropRanges = DropRanges((20, 60), (0.45, 0.65), (0.02, 0.1), (0.15, 0.45))
    """The distant layer of light rain."""
    ragged_share: float = 0.6
    """Share of light rain that is made of blurred noise instead: its streaks are irregular and in
    clusters, many of them faint, as in Rain100L."""
    ragged_layers: tuple[int, int] = (1, 2)
    """Layers of it."""
    ragged_noise: NoiseRanges = NoiseRanges(
        (12, 60), (0.5, 1.2), (0.003, 0.03), (0.12, 0.4), (0.6, 0.85), (0.0, 0.3)
    )
    """Each of them."""
    veil_share: float = 0.4
    """Share of light rain with a veil, which is not in the target."""
    veil: float = 0.12
    """Strongest veil: the share of each pixel's light that is replaced by airlight (Li et al., CVPR
    2019). Most images have less: this times the square of a number sampled from 0 to
    1."""

    fine_layers: tuple[int, int] = (1, 3)
    """Layers of far rain."""
    fine_noise: NoiseRanges = NoiseRanges((10, 45), (0.4, 0.7), (0.004, 0.05), (0.02, 0.12))
    """Each of them."""
    fine_drops: DropRanges = DropRanges((20, 70), (0.5, 1.2), (0.002, 0.03), (0.08, 0.4), 2.5)
    """Few nearer streaks among them."""
    fine_scale: Range = (0.7, 2.0)
    """One factor on the lengths and widths of an image's fine rain, sampled log-uniformly."""
    blurred_share: float = 0.4
    """Share of fine rain with drops close to the camera, out of focus."""
    blurred_drops: DropRanges = DropRanges((60, 200), (2, 4), (0.002, 0.01), (0.03, 0.12), 3)
    """Those drops."""
    fog_share: float = 0.6
    """Share of fine rain over fog. The fog is in the target too: the network removes streaks alone,
    because a small one can only guess what fog hides."""
    fog_density: Range = (0.2, 0.9)
    """Optical depth at the far end; it falls to 0 at the bottom of the photograph."""
    fog_light: Range = (0.55, 0.9)
    """Light of the fog, slightly blue."""

    heavy_layers: tuple[int, int] = (2, 4)
    """Layers of heavy rain."""
    heavy_drops: DropRanges = DropRanges((15, 70), (0.45, 1.15), (0.07, 0.45), (0.3, 0.9), 2)
    """Each of them."""
    heavy_lean_of_layers: float = 8.0
    """Used instead of `lean_of_layers`: layers of heavy rain cross each other in Rain200H."""
    hard_share: float = 0.35
    """Share of heavy rain whose streaks are bars with hard edges and ends."""

    linear_share: float = 0.2
    """Share of light and heavy rain that is added in linear light (gamma 2.2), as a camera adds it;
    all of the fine rain is. Rain then fades over bright areas."""
    opaque_share: float = 0.2
    """Share of light and heavy rain that covers the image instead of adding to it."""

    overcast_share: float = 0.5
    """Share of pairs graded as under a gray sky, rainy image and target alike: less saturation and
    contrast and another gamma, because photographs are mostly sunny."""
    noise_share: float = 0.3
    """Share of light and heavy rain with camera noise in the rainy image; all fine rain has it."""
    noise: float = 0.012
    """Greatest standard deviation of that noise."""
    jpeg_share: float = 0.15
    """Share of light and heavy rain whose rainy image is compressed by JPEG."""
    fine_jpeg_share: float = 0.6
    """The same of fine rain."""
    jpeg_quality: tuple[int, int] = (60, 95)
    """Quality of that JPEG."""

    def __post_init__(self) -> None:
        check_types(self, "data.rain.")
        weights = [getattr(self, kind) for kind in KINDS]
        check(
            all(0 <= weight <= 1e4 for weight in weights) and sum(weights) > 0,
            "the mix of data.rain",
            weights,
            "weights from 0 to 10000 for light, fine, heavy and none, not all 0",
        )
        for field in dataclasses.fields(self):
            name, value = f"data.rain.{field.name.replace('_', '-')}", getattr(self, field.name)
            least, most = _LIMITS.get(field.name, (0, 1))
            if isinstance(value, DropRanges | NoiseRanges):
                value.check(name)
            elif isinstance(value, tuple):
                check_range(name, value, least, most)
            elif field.name not in KINDS:
                check(least <= value <= most, name, value, f"{least} to {most}")
        shares = self.linear_share + self.opaque_share
        check(shares <= 1, "data.rain.linear-share and opaque-share together", shares, "at most 1")

    @classmethod
    def only(cls, kind: Kind) -> RainConfig:
        """A mix of one kind alone."""
        weights = {each: float(each == kind) for each in KINDS}
        return dataclasses.replace(cls(), **weights)  # type: ignore[arg-type]

    def weights(self) -> tuple[float, ...]:
        """Probabilities of `KINDS`, in their order; they add up to 1."""
        weights = [getattr(self, kind) for kind in KINDS]
        return tuple(weight / math.fsum(weights) for weight in weights)


def _check_ranges(
    layer: DropRanges | NoiseRanges, name: str, limits: Mapping[str, tuple[float, float]]
) -> None:
    check_types(layer, f"{name}.")
    for field, (least, most) in limits.items():
        check_range(f"{name}.{field}", getattr(layer, field), least, most)


def check_range(name: str, found: tuple[float, float], least: float, most: float) -> None:
    """Rejects a range that decreases or exceeds its limits.

    Raises:
        InputError: if it does.
    """
    fits = least <= found[0] <= found[1] <= most
    check(fits, name, found, f"two numbers in increasing order, from {least:g} to {most:g}")
