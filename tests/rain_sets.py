"""Small folders of rainy and clean images, and datasets built of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from drsformer_jax.images.pixels import write_image


def pair(number: int, height: int = 24, width: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """A smooth clean image, and the same with bright vertical streaks."""
    rows, columns = np.mgrid[:height, :width]
    clean = np.stack([rows + columns, 2 * rows, columns + 5 * number], axis=-1).astype(np.uint8)
    rainy = clean.astype(int)
    for column in np.random.default_rng(number).choice(width, width // 6, replace=False):
        rainy[height // 8 : -height // 8, column] += 90
    return rainy.clip(0, 255).astype(np.uint8), clean


def write_pairs(folder: Path, names: list[str], **size: int) -> Path:
    """Writes `input/` and `target/` with a pair of each name."""
    for number, name in enumerate(names):
        for part, image in zip(("input", "target"), pair(number, **size), strict=True):
            write_image(folder / part / name, image)
    return folder


def write_splits(folder: Path, train: int = 5, test: int = 3) -> Path:
    """Writes `train/` and `test/`, whose images are a little larger."""
    write_pairs(folder / "train", [f"{number}.png" for number in range(1, train + 1)])
    write_pairs(folder / "test", [f"{number}.png" for number in range(1, test + 1)], height=26)
    return folder
