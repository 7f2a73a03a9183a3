"""Folders of pictures, and of pairs of a rainy and a clean one."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np

from drsformer_jax.data.images import EXTENSIONS, read_picture
from drsformer_jax.errors import InputError


def find_pictures(folder: str | os.PathLike[str]) -> list[Path]:
    """Lists a folder's picture files, told by their extension, with 2.png before 10.png.

    Hidden files, subfolders and what is in them are left out.

    Raises:
        InputError: if the folder is missing, is a file or has no picture.
    """
    folder = Path(folder)
    if not folder.is_dir():
        found = "is a file" if folder.exists() else "does not exist"
        raise InputError(f"{folder} {found}; expected a folder of pictures")
    pictures = [
        path
        for path in folder.iterdir()
        if path.suffix.lower() in EXTENSIONS and not path.name.startswith(".") and path.is_file()
    ]
    if not pictures:
        raise InputError(f"{folder} holds no picture; expected files named {' '.join(EXTENSIONS)}")
    return sorted(pictures, key=lambda path: _natural(path.name))


def find_pairs(folder: str | os.PathLike[str]) -> list[tuple[str, Path, Path]]:
    """Lists the pairs of a folder with rainy pictures in `input/` and clean ones in `target/`.

    Returns:
        (file name, rainy file, clean file) of each pair, in natural order.

    Raises:
        InputError: if a folder is missing or empty, or a picture has no partner.
    """
    folder = Path(folder)
    for part in ("input", "target"):
        if not (folder / part).is_dir():
            raise InputError(
                f"{folder} has no folder {part}/; expected input/ and target/ with equal file names"
            )
    return find_pairs_in(folder / "input", folder / "target")


def find_pairs_in(
    input_dir: str | os.PathLike[str], target_dir: str | os.PathLike[str]
) -> list[tuple[str, Path, Path]]:
    """Lists the pictures that have one name in both folders, as `find_pairs` does.

    Raises:
        InputError: if a folder is missing or empty, or a picture has no partner.
    """
    inputs, targets = (
        {path.name: path for path in find_pictures(folder)} for folder in (input_dir, target_dir)
    )
    alone = sorted(inputs.keys() ^ targets.keys(), key=_natural)
    if alone:
        found, other = (inputs, target_dir) if alone[0] in inputs else (targets, input_dir)
        raise InputError(
            f"{found[alone[0]]} has no partner in {other} ({len(alone)} of "
            f"{len(inputs) + len(targets)} pictures have none); expected equal file names"
        )
    return [(name, path, targets[name]) for name, path in inputs.items()]


def read_pair(
    input_path: str | os.PathLike[str], target_path: str | os.PathLike[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Reads a rainy and a clean picture of one size.

    Returns:
        (rainy, clean), each uint8 of shape (h, w, 3).

    Raises:
        InputError: if a file cannot be read or the sizes differ.
    """
    rainy, clean = read_picture(input_path), read_picture(target_path)
    if rainy.shape != clean.shape:
        raise InputError(
            f"{target_path} is {clean.shape[1]}x{clean.shape[0]}, "
            f"{input_path} is {rainy.shape[1]}x{rainy.shape[0]}; a pair must have one size"
        )
    return rainy, clean


def _natural(name: str) -> tuple[list[str | int], str]:
    parts = re.split("([0-9]+)", name.lower())
    return [int(part) if index % 2 else part for index, part in enumerate(parts)], name
