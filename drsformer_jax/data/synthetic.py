"""Rain made on photographs: streaks and a veil drawn by chance, for training without a data set."""

from __future__ import annotations

import importlib.util
import math
import os
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from drsformer_jax.data.folders import find_pictures
from drsformer_jax.data.images import picture_size, read_picture
from drsformer_jax.data.pairs import Pair, fingerprint
from drsformer_jax.errors import InputError

PHOTOGRAPHS = {
    "train": ("astronaut.png", "motorcycle_left.png", "motorcycle_right.png", "rocket.jpg"),
    "validation": ("chelsea.png", "coffee.png"),
}
"""The colour photographs that scikit-image installs.

The two views of the motorcycle show one scene and so stand on one side. Chelsea and coffee
validate: they show no scene of the others, both fine texture and smooth areas, in ordinary light.
"""

_DROPS_AT_ONCE = 128
"""Keeps the windows of the drops in the processor's cache, and memory low on large photographs."""


@dataclass(frozen=True)
class Photograph:
    """A clean picture to let rain fall on; its name is the file's without the extension."""

    path: Path

    @property
    def name(self) -> str:
        """What pairs made of this photograph are called after."""
        return self.path.stem


@dataclass(frozen=True)
class Streaks:
    """One layer of rain: drops at one distance, which the exposure draws out into streaks."""

    angle: float
    """Lean from the vertical in degrees, positive towards the lower right; within 60."""
    length: float
    """Mean length in pixels."""
    width: float
    """Standard deviation of a streak's profile in pixels; small is sharp, large out of focus."""
    coverage: float
    """Mean of length times width times streaks, as a share of the picture."""
    brightness: float
    """Light that the brightest streak adds, 1 being white."""


def draw_streaks(streaks: Streaks, h: int, w: int, rng: np.random.Generator) -> np.ndarray:
    """Draws one layer of rain.

    Each drop has its own length, lean, width and brightness, scattered about the layer's. A streak
    is a Gaussian across and fades out at both ends.

    Returns:
        float32 of shape (h, w): the light that the layer adds, at least 0.
    """
    margin = streaks.length
    # Drops also start outside, so that the borders are as rainy as the middle.
    area = (h + margin) * (w + margin)
    count = rng.poisson(streaks.coverage * area / (streaks.length * 2 * streaks.width))
    drops = np.stack(
        [
            rng.uniform(-margin / 2, w + margin / 2, count),
            rng.uniform(-margin / 2, h + margin / 2, count),
            rng.normal(math.radians(streaks.angle), math.radians(1.5), count),
            streaks.length / 2 * rng.uniform(0.5, 1.5, count),
            streaks.width * rng.uniform(0.7, 1.3, count),
            streaks.brightness * rng.uniform(0.3, 1, count),
        ]
    ).astype(np.float32)
    reach_y = math.ceil(0.75 * streaks.length) + 1
    reach_x = math.ceil(3 * 1.3 * streaks.width / math.cos(math.radians(streaks.angle))) + 1
    layer = np.zeros((h, w), np.float32)
    for start in range(0, count, _DROPS_AT_ONCE):
        _stamp(layer, drops[:, start : start + _DROPS_AT_ONCE], reach_x, reach_y)
    return layer


def _stamp(layer: np.ndarray, drops: np.ndarray, reach_x: int, reach_y: int) -> None:
    """Adds drops to a layer in place, each within a window of pixels that follows its lean."""
    x, y, lean, half_length, width, brightness = drops[:, :, None, None]
    rows = np.floor(y).astype(np.int32) + np.arange(-reach_y, reach_y + 1)[:, None]
    dy = rows.astype(np.float32) + 0.5 - y
    columns = np.floor(x + dy * np.tan(lean)).astype(np.int32) + np.arange(-reach_x, reach_x + 1)
    dx = columns.astype(np.float32) + 0.5 - x
    along = dx * np.sin(lean) + dy * np.cos(lean)
    across = dx * np.cos(lean) - dy * np.sin(lean)
    fade = np.clip(1.5 * (1 - np.abs(along) / half_length), 0, 1)
    light = brightness * fade * np.exp(-0.5 * (across / width) ** 2)

    h, w = layer.shape
    rows = np.broadcast_to(rows, columns.shape)
    inside = (light > 1e-3) & (rows >= 0) & (rows < h) & (columns >= 0) & (columns < w)
    np.add.at(layer, (rows[inside], columns[inside]), light[inside])


def add_rain(clean: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Lets rain of random wind, density, size, brightness and haze fall on a picture.

    The model is that of heavy rain, O = t (B + S_1 + S_2) + (1 - t) A, cut to the range of 8 bits
    (Yang et al., "Deep Joint Rain Detection and Removal from a Single Image", CVPR 2017; Li et al.,
    "Heavy Rain Image Restoration", CVPR 2019): B is the clean picture, S_1 near and S_2 distant
    streaks, A the light of the air and t its smoothly varying transmission.

    Args:
        clean: uint8 of shape (h, w, 3), of any size.
        rng: decides everything.

    Returns:
        uint8 of shape (h, w, 3). PSNR to `clean` is mostly between 19 and 31 dB.
    """
    h, w = clean.shape[:2]
    angle = rng.uniform(-35, 35)
    near = Streaks(
        angle=angle,
        length=rng.uniform(25, 80),
        width=rng.uniform(0.6, 1.2),
        coverage=rng.uniform(0.01, 0.045),
        brightness=rng.uniform(0.3, 0.75),
    )
    distant = Streaks(
        angle=angle + rng.normal(0, 3),
        length=rng.uniform(12, 36),
        width=rng.uniform(0.5, 0.7),
        coverage=rng.uniform(0.01, 0.09),
        brightness=rng.uniform(0.15, 0.45),
    )
    light = draw_streaks(near, h, w, rng) + draw_streaks(distant, h, w, rng)
    air = rng.uniform(0.6, 0.9)
    transmission = 1 - _veil(h, w, 0.12 * rng.uniform() ** 2, rng)
    added = 255 * (transmission * light + (1 - transmission) * air)
    rainy = transmission[..., None] * clean
    rainy += added[..., None]
    np.rint(rainy, out=rainy)
    return np.clip(rainy, 0, 255, out=rainy).astype(np.uint8)


def _veil(h: int, w: int, strongest: float, rng: np.random.Generator) -> np.ndarray:
    """Draws float32 (h, w) between half of `strongest` and all of it, bilinear over 4x4 knots."""
    knots = rng.uniform(strongest / 2, strongest, (4, 4)).astype(np.float32)
    return _bilinear(h) @ knots @ _bilinear(w).T


def _bilinear(size: int) -> np.ndarray:
    position = (np.arange(size, dtype=np.float32) + 0.5) * (3 / size)
    return np.maximum(0, 1 - np.abs(position[:, None] - np.arange(4, dtype=np.float32)))


def photographs(source: str | os.PathLike[str]) -> tuple[list[Photograph], list[Photograph]]:
    """Finds clean photographs and splits them, so that none is both trained and validated on.

    Args:
        source: `skimage` for those that scikit-image installs (see `PHOTOGRAPHS`), or a folder, of
            whose pictures the last fifth by name, at least one, is for validation.

    Returns:
        (photographs to train on, photographs to validate on).

    Raises:
        InputError: if the folder is missing, holds less than two pictures, or two of one name.
    """
    if source == "skimage":
        folder = _skimage_folder()
        train, validation = (
            [Photograph(folder / file) for file in PHOTOGRAPHS[part]]
            for part in ("train", "validation")
        )
        return train, validation
    found = [Photograph(path) for path in find_pictures(source)]
    if len(found) < 2:
        raise InputError(f"{source} holds 1 picture; expected 2 or more, to train and to validate")
    first: dict[str, Photograph] = {}
    for photograph in found:
        other = first.setdefault(photograph.name, photograph)
        if other is not photograph:
            # They are likely to be one picture, which could stand on both sides.
            raise InputError(
                f"{other.path} and {photograph.path} have one name; expected names that differ "
                "before the extension"
            )
    held_out = max(1, len(found) // 5)
    return found[:-held_out], found[-held_out:]


def _skimage_folder() -> Path:
    # scikit-image is not imported: its own loaders pull in much and may download.
    package = importlib.util.find_spec("skimage")
    if package is None or package.origin is None:
        raise InputError("scikit-image is not installed; expected it, or a folder of photographs")
    return Path(package.origin).parent / "data"


class SyntheticRain:
    """Pairs of synthetic rain by index: item i is photograph i % n under its rain number i // n.

    A pair depends on the seed, the photograph's name and the rain's number alone, so it stays the
    same when other photographs or rains are added. Can be pickled; reads the file at each access.

    Args:
        photographs: the clean pictures, at least one.
        rains: how many rains fall on each.
        seed: 0 or more.
    """

    def __init__(self, photographs: list[Photograph], rains: int, seed: int) -> None:
        self._photographs = photographs
        self._rains = rains
        self._seed = seed

    def __len__(self) -> int:
        return len(self._photographs) * self._rains

    def size(self, index: int) -> tuple[int, int]:
        """(height, width) of a pair, as its photograph tells without being decoded."""
        return picture_size(self._photographs[index % len(self._photographs)].path)

    def fingerprint(self) -> str:
        """Of the photographs and of what decides the rain on them."""
        files = [photograph.path.resolve() for photograph in self._photographs]
        contents = [(str(path), path.stat().st_mtime_ns) for path in files]
        return fingerprint([*contents, self._rains, self._seed])

    def __getitem__(self, index: int) -> Pair:
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is outside of 0 to {len(self) - 1}")
        rain, which = divmod(index, len(self._photographs))
        photograph = self._photographs[which]
        clean = read_picture(photograph.path)
        rng = np.random.default_rng([self._seed, zlib.crc32(os.fsencode(photograph.name)), rain])
        name = f"{photograph.name}_{rain:03d}"
        return {"name": name, "rainy": add_rain(clean, rng), "clean": clean}
