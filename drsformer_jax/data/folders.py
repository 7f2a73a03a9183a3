"""Folders of images, and of pairs of a rainy and a clean one."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from drsformer_jax.errors import InputError
from drsformer_jax.images.pixels import EXTENSIONS, image_size, read_image

_NAMED = 3
"""Left out files that a message names."""


def find_images(folder: str | os.PathLike[str], *, nested: bool = False) -> list[Path]:
    """Lists a folder's image files, recognized by their extension, with 2.png before 10.png.

    Hidden files and folders are left out, and so are subfolders unless `nested` is set. Links to
    files are followed, links to folders are not.

    Raises:
        InputError: if the folder is missing, is a file or has no image.
        OSError: if a folder cannot be read.
    """
    images, left_out = scan_folder(folder, nested=nested)
    if not images:
        raise no_image_in(folder, left_out)
    return images


def tell_left_out(
    folder: str | os.PathLike[str],
    used: Iterable[Path],
    apart: str | os.PathLike[str] | None = None,
) -> None:
    """Warns of files in a folder or below, not hidden, that are not among those that are used.

    Args:
        folder: the folder.
        used: files in it, as `find_images` gives them.
        apart: a folder that is not looked into, though it may be in that one.
    """
    used = {*used}
    own = None if apart is None else os.path.realpath(apart)
    left_out: list[Path] = []
    for parent, subfolders, names in os.walk(folder):  # What cannot be read is passed over.
        visible = [Path(parent, name) for name in subfolders if not name.startswith(".")]
        links = [path for path in visible if path.is_symlink()]
        entered = [path for path in visible if path not in links]
        subfolders[:] = [path.name for path in entered if os.path.realpath(path) != own]
        files = [Path(parent, name) for name in names if not name.startswith(".")]
        left_out += [path for path in (*files, *links) if path not in used]
    if left_out:
        warnings.warn(f"of {folder} {describe_left_out(natural_order(left_out))}", stacklevel=2)


def scan_folder(
    folder: str | os.PathLike[str], *, nested: bool = False
) -> tuple[list[Path], list[Path]]:
    """Lists what `find_images` does, and what it leaves out though it is not hidden.

    Returns:
        (images, other files and links), each in natural order. Without `nested` no folder, and no
        link to one, is among the others.

    Raises:
        InputError: if the folder is missing or is a file.
        OSError: if a folder cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        found = "is a file" if folder.exists() else "does not exist"
        raise InputError(f"{folder} {found}; expected a folder of images")
    images: list[Path] = []
    left_out: list[Path] = []
    for parent, subfolders, names in os.walk(folder, onerror=_raise):
        visible = [name for name in subfolders if nested and not name.startswith(".")]
        links = [name for name in visible if os.path.islink(os.path.join(parent, name))]
        subfolders[:] = [name for name in visible if name not in links]
        left_out += [Path(parent, name) for name in links]
        for name in names:
            if not name.startswith("."):
                path = Path(parent, name)
                (images if is_image_file(path) else left_out).append(path)
    return natural_order(images), natural_order(left_out)


def no_image_in(folder: str | os.PathLike[str], left_out: Sequence[Path]) -> InputError:
    """The error of a folder without an image; `left_out` is what it holds instead."""
    others = f" ({describe_left_out(left_out)})" if left_out else ""
    return InputError(
        f"{folder} holds no image{others}; expected files named {' '.join(EXTENSIONS)}"
    )


def is_image_file(path: Path) -> bool:
    """Whether a path is a file, or a link to one, that is named as images are."""
    return path.suffix.lower() in EXTENSIONS and path.is_file()


def natural_order(paths: Iterable[Path]) -> list[Path]:
    """Sorts paths with 2.png before 10.png."""
    return sorted(paths, key=lambda path: [_natural(part) for part in path.parts])


def describe_left_out(paths: Sequence[Path]) -> str:
    """How many files are left out and the names of the first, for a message of one line."""
    kinds = {True: "a link to a folder", False: "a broken link"}
    names = [
        path.name
        if path.is_file() or not path.is_symlink()
        else f"{path.name}: {kinds[path.is_dir()]}"
        for path in paths[:_NAMED]
    ]
    more = ["..."] if len(paths) > _NAMED else []
    files = "file is" if len(paths) == 1 else "files are"
    return f"{len(paths)} {files} left out: {', '.join(names + more)}"


def _raise(error: OSError) -> None:
    raise error


def find_pairs(folder: str | os.PathLike[str]) -> list[tuple[str, Path, Path]]:
    """Lists the pairs of a folder with rainy images in `input/` and clean ones in `target/`.

    Returns:
        (file name, rainy file, clean file) of each pair, in natural order.

    Raises:
        InputError: as `find_pairs_in`, and if there is no `input/` or `target/`.
    """
    folder = Path(folder)
    for part in ("input", "target"):
        if not (folder / part).is_dir():
            raise InputError(
                f"{folder} has no folder {part}/; expected input/ and target/ with equal file names"
            )
    return find_pairs_in(folder / "input", folder / "target")


def find_pairs_in(
    input_dir: str | os.PathLike[str], target_dir: str | os.PathLike[str], match: str | None = None
) -> list[tuple[str, Path, Path]]:
    r"""Lists the images of two folders that belong together, as `find_pairs` does.

    Names are compared without their extension: a restored PNG belongs to the JPEG it came from.

    Args:
        input_dir: folder of the first images.
        target_dir: folder of their partners.
        match: regular expression searched in the names without extension. Its first group, or all
            that it matches, is the key that an image and its partner share: `\d+` pairs
            norain-1.png with 1.png. Several inputs may share a target. Among several targets of
            one key the one of the input's own name is its partner.

    With `match`, both folders may be one in the layout of RainTrainL: `rain-N` is rainy, `norain-N`
    clean, and `rainstreak-N` and `rainregion-N` are left out.

    Raises:
        InputError: if a folder is missing or empty, an image has no partner or more than one, two
            inputs have one name, `match` is invalid or finds nothing in a name, or every image
            is its own partner: one folder is given as both, perhaps by a link.
    """
    inputs, targets = find_images(input_dir), find_images(target_dir)
    is_one = os.path.samefile(input_dir, target_dir)
    tell_left_out(input_dir, inputs, None if is_one else target_dir)
    if not is_one:
        tell_left_out(target_dir, targets, input_dir)
    elif match is not None:
        inputs, targets = _rain_and_norain(inputs)
    return _paired(input_dir, inputs, target_dir, targets, match)


def find_partners(
    restored_dir: str | os.PathLike[str],
    other_dir: str | os.PathLike[str],
    kind: Literal["rain", "norain"],
    match: str | None,
) -> list[tuple[str, Path, Path]]:
    """Lists restored images with their rainy or clean ones, as `find_pairs_in` does.

    With `match`, of a folder in the layout of RainTrainL only the images of this kind are taken.
    """
    restored, others = find_images(restored_dir), find_images(other_dir)
    if os.path.samefile(restored_dir, other_dir):
        return find_pairs_in(restored_dir, other_dir, match)
    tell_left_out(restored_dir, restored, other_dir)
    tell_left_out(other_dir, others, restored_dir)
    if match is not None and {"rain", "norain"} <= set(map(_kind, others)):
        others = dict(zip(_KINDS[:2], _rain_and_norain(others), strict=True))[kind]
    return _paired(restored_dir, restored, other_dir, others, match)


def _paired(
    input_dir: str | os.PathLike[str],
    inputs: Sequence[Path],
    target_dir: str | os.PathLike[str],
    targets: Sequence[Path],
    match: str | None,
) -> list[tuple[str, Path, Path]]:
    """Pairs images of two folders by their names."""
    names: dict[str, Path] = {}
    for path in inputs:
        other = names.setdefault(path.stem, path)
        if other != path:
            raise InputError(f"{other} and {path} both have the name '{path.stem}'; expected one")
    key_of = _keys([*inputs, *targets], match)
    with_key: dict[str, list[Path]] = {}
    for path in targets:
        with_key.setdefault(key_of[path], []).append(path)
    pairs = [
        (path.name, path, _only(path, with_key[key_of[path]], key_of[path], match))
        for path in inputs
        if key_of[path] in with_key
    ]
    paired = {path for _, *both in pairs for path in both}
    alone = sorted({*inputs, *targets} - paired, key=lambda path: _natural(path.name))
    if alone:
        other_dir = target_dir if alone[0] in inputs else input_dir
        expected = "equal file names" if match is None else f"one that '{match}' finds equal"
        raise InputError(
            f"{alone[0]} has no partner in {other_dir} ({len(alone)} of "
            f"{len(key_of)} images have none); expected {expected}"
        )
    if all(os.path.samefile(path, partner) for _, path, partner in pairs):
        raise InputError(
            f"{input_dir} and {target_dir} hold the same files; expected rainy or restored images "
            "in one and clean ones in the other"
        )
    return pairs


_KINDS = ("rain", "norain", "rainstreak", "rainregion")
"""Of images in the layout of RainTrainL, as their names begin."""


def _kind(path: Path) -> str:
    """The kind of an image in that layout; "" of any other."""
    kind, dash, _ = path.name.lower().partition("-")
    return kind if dash and kind in _KINDS else ""


def _rain_and_norain(images: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """The rainy and the clean images of a folder in the layout of RainTrainL."""
    for path in images:
        if not _kind(path):
            raise InputError(
                f"{path} is in a folder of rainy and clean images; expected names such as "
                "rain-1.png and norain-1.png, or two folders"
            )
    rain, norain = ([path for path in images if _kind(path) == kind] for kind in _KINDS[:2])
    return rain, norain


def _keys(paths: Sequence[Path], match: str | None) -> dict[Path, str]:
    """What each image shares with its partner."""
    if match is None:
        return {path: path.stem for path in paths}
    try:
        pattern = re.compile(match)
    except re.error as error:
        raise InputError(
            rf"the pattern '{match}' is invalid ({error}); expected one such as '\d+'"
        ) from None
    keys = {}
    for path in paths:
        found = pattern.search(path.stem)
        key = found and found[1 if pattern.groups else 0]
        if not key:
            raise InputError(f"'{match}' finds nothing in the name of {path}; expected a key")
        keys[path] = key
    return keys


def _only(path: Path, partners: Sequence[Path], key: str, match: str | None) -> Path:
    """The one partner of an image among those of its key."""
    if len(partners) > 1:
        partners = [each for each in partners if each.stem == path.stem] or partners
    if len(partners) > 1:
        kind = "name" if match is None else "key"
        raise InputError(
            f"{partners[0]} and {partners[1]} both have the {kind} '{key}' of {path}; expected one"
        )
    return partners[0]


def read_pair(
    input_path: str | os.PathLike[str], target_path: str | os.PathLike[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Reads a rainy and a clean image of one size.

    Returns:
        (rainy, clean), each uint8 of shape (h, w, 3).

    Raises:
        InputError: if a file cannot be read or the sizes differ.
    """
    rainy, clean = read_image(input_path), read_image(target_path)
    check_sizes(input_path, rainy.shape, target_path, clean.shape)
    return rainy, clean


def pair_size(
    input_path: str | os.PathLike[str], target_path: str | os.PathLike[str]
) -> tuple[int, int]:
    """Reads the (height, width) of a pair from the files' heads.

    Raises:
        InputError: if a file is no image or the sizes differ.
    """
    size, target_size = image_size(input_path), image_size(target_path)
    check_sizes(input_path, size, target_path, target_size)
    return size


def check_sizes(
    input_path: str | os.PathLike[str],
    size: tuple[int, ...],
    target_path: str | os.PathLike[str],
    target_size: tuple[int, ...],
) -> None:
    """Rejects a pair of two sizes, each (height, width, ...).

    Raises:
        InputError: if they differ.
    """
    if size[:2] != target_size[:2]:
        raise InputError(
            f"{target_path} is {target_size[1]}x{target_size[0]}, "
            f"{input_path} is {size[1]}x{size[0]}; a pair must have one size"
        )


def _natural(name: str) -> tuple[list[str | int], str]:
    parts = re.split("([0-9]+)", name.lower())
    return [int(part) if index % 2 else part for index, part in enumerate(parts)], name
