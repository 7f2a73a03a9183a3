"""Every layout that rain datasets are published in, made with small images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from drsformer_jax.data.layouts import RawPair
from drsformer_jax.images.pixels import write_image

NORAIN = ["rain200l", "rain200h", "rain100l"]
PUBLISHED = [*NORAIN, "did_data", "ddn_data", "spa_data"]
RAIN13K_TESTS = ["Test100", "Rain100L", "Rain100H", "Test1200", "Test2800"]


def images(folder: Path, *names: str) -> Path:
    for name in names:
        write_image(folder / name, np.full((2, 4, 3), len(name), np.uint8))
    return folder


def listed(file: Path, *lines: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{line}\n" for line in lines))
    return file


def input_target(folder: Path, *names: str) -> list[RawPair]:
    images(folder / "input", *names)
    images(folder / "target", *names)
    return [RawPair(name, folder / "input" / name, folder / "target" / name) for name in names]


def rain_norain(folder: Path, rain: str = "rain") -> list[RawPair]:
    numbers = (2, 10, 100)
    images(folder / rain, *(f"norain-{n}x2.png" for n in numbers))
    images(folder / "norain", *(f"norain-{n}.png" for n in numbers))
    return [
        RawPair(
            f"norain-{n}x2.png",
            folder / rain / f"norain-{n}x2.png",
            folder / "norain" / f"norain-{n}.png",
        )
        for n in numbers
    ]


def one_folder(folder: Path) -> list[RawPair]:
    numbers = (2, 10, 100)
    images(folder, *(f"{kind}-{n}.png" for kind in ("rain", "norain") for n in numbers))
    return [
        RawPair(f"rain-{n}.png", folder / f"rain-{n}.png", folder / f"norain-{n}.png")
        for n in numbers
    ]


def side_by_side(folder: Path) -> list[RawPair]:
    names = ("Rain_Heavy/train2018new/2.jpg", "Rain_Heavy/train2018new/10.jpg", "Rain_Light/1.jpg")
    images(folder, *names)
    return [RawPair(name, folder / name, None) for name in names]


def ground_truth(folder: Path) -> list[RawPair]:
    images(folder / "rainy image", *(f"{n}_{k}.jpg" for n in (9, 10) for k in range(1, 15)))
    images(folder / "ground truth", "9.jpg", "10.jpg")
    return [
        RawPair(
            f"{n}_{k}.jpg",
            folder / "rainy image" / f"{n}_{k}.jpg",
            folder / "ground truth" / f"{n}.jpg",
        )
        for n in (9, 10)
        for k in range(1, 15)
    ]


def text_list(
    folder: Path,
    form: str = "/real/{0}.png /real_gt/{0}.png",
    name: str = "real_world.txt",
    root: Path | None = None,
) -> list[RawPair]:
    """Pairs in an order of their own, listed in a form of line, below the folder or another."""
    root = root or folder
    numbers = (10, 2, 3)
    for kind in ("real", "real_gt"):
        images(root / kind, *(f"{n}.png" for n in numbers))
    listed(folder / name, *(form.format(n) for n in numbers))
    return [
        RawPair(f"real/{n}.png", root / "real" / f"{n}.png", root / "real_gt" / f"{n}.png")
        for n in numbers
    ]


def equal_names(folder: Path) -> list[RawPair]:
    return input_target(folder, "2.png", "10.png", "norain-3.png")


def in_x2(folder: Path) -> list[RawPair]:
    return rain_norain(folder, "rain/X2")


Made = Callable[[Path], list[RawPair]]
LAYOUTS: dict[str, list[Made]] = {
    **{name: [equal_names, rain_norain, in_x2] for name in NORAIN[:-1]},
    "rain100l": [equal_names, rain_norain, in_x2, one_folder],
    "did_data": [equal_names, side_by_side],
    "ddn_data": [equal_names, ground_truth],
    "spa_data": [equal_names, text_list],
}
