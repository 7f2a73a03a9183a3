"""Clean photographs for synthetic rain, split into training and validation."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path

from drsformer_jax.data.folders import find_images, tell_left_out
from drsformer_jax.errors import InputError

PHOTOGRAPHS = {
    "train": ("astronaut.png", "motorcycle_left.png", "motorcycle_right.png", "rocket.jpg"),
    "validation": ("chelsea.png", "coffee.png"),
}
"""The color photographs that scikit-image installs.

The two views of the motorcycle show one scene, so they are in one split. Chelsea and coffee are
for validation: they show other scenes, with fine texture and smooth areas, in ordinary light.
"""


@dataclass(frozen=True)
class Photograph:
    """A clean image; its name is the file's without the extension."""

    path: Path

    @property
    def name(self) -> str:
        """Start of the names of its pairs."""
        return self.path.stem


def photographs(source: str | os.PathLike[str]) -> tuple[list[Photograph], list[Photograph]]:
    """Finds clean photographs and splits them into training and validation.

    Args:
        source: `skimage` for those that scikit-image installs (see `PHOTOGRAPHS`); a folder with
            `train/` and `validation/`; or a folder of images, of which the last fifth by name, at
            least one, is for validation.

    Returns:
        (photographs to train on, photographs to validate on).

    Raises:
        InputError: if the folder is missing, has fewer than two images, or two with the same name.
    """
    if not str(source):
        raise InputError("the folder of photographs is empty; expected a folder or skimage")
    if source == "skimage":
        folder = _skimage_folder()
        train, validation = (
            [Photograph(folder / file) for file in PHOTOGRAPHS[part]]
            for part in ("train", "validation")
        )
    elif all((Path(source) / part).is_dir() for part in ("train", "validation")):
        train, validation = (
            [Photograph(path) for path in _images_of(Path(source) / part)]
            for part in ("train", "validation")
        )
    else:
        found = [Photograph(path) for path in _images_of(source)]
        if len(found) < 2:
            raise InputError(
                f"{source} holds 1 image; expected 2 or more, to train and to validate"
            )
        held_out = max(1, len(found) // 5)
        train, validation = found[:-held_out], found[-held_out:]
    _check_names([*train, *validation])
    return train, validation


def _images_of(folder: str | os.PathLike[str]) -> list[Path]:
    found = find_images(folder)
    tell_left_out(folder, found)
    return found


def _check_names(found: list[Photograph]) -> None:
    """Rejects two of one name: they may be one image, which could be in both splits."""
    first: dict[str, Photograph] = {}
    for photograph in found:
        other = first.setdefault(photograph.name, photograph)
        if other is not photograph:
            raise InputError(
                f"{other.path} and {photograph.path} have one name; expected names that differ "
                "before the extension"
            )


def _skimage_folder() -> Path:
    # scikit-image is not imported: its own loaders pull in much and may download.
    package = importlib.util.find_spec("skimage")
    if package is None or package.origin is None:
        raise InputError("scikit-image is not installed; expected it, or a folder of photographs")
    return Path(package.origin).parent / "data"
