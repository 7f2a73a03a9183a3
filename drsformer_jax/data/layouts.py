"""Finds the pairs of a downloaded rain dataset, in any layout that it was published in."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

from drsformer_jax.data.folders import find_images, find_pairs_in
from drsformer_jax.errors import InputError
from drsformer_jax.images.pixels import EXTENSIONS


class RawPair(NamedTuple):
    """The downloaded files of one pair."""

    name: str
    """Unique within a split: the rainy file's name, or its path with "/" if images are in
    subfolders or listed."""
    rainy: Path
    clean: Path | None
    """None if `rainy` holds both images side by side, the rainy one at the left."""


_Find = Callable[[Path], list[RawPair] | None]


@dataclass(frozen=True)
class Layout:
    """A layout of the pairs of a split in its folder."""

    description: str
    find: _Find
    """Lists the pairs of a folder; None if it has another layout, InputError if it is damaged."""


@dataclass(frozen=True)
class RawDataset:
    """A downloaded dataset."""

    layouts: tuple[Layout, ...]
    folders: Mapping[str, tuple[str, ...]]
    """Folders that each split may be in, relative to the dataset's own; "" for that itself."""
    expected: Mapping[str, int]
    """Number of pairs of each complete split; empty if any number is right."""
    or_else: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Folders of splits that have none of their own."""


def find_raw_pairs(dataset: str, folder: str | os.PathLike[str]) -> dict[str, list[RawPair]]:
    """Lists the pairs of each split of a dataset; `instructions` describes the layouts.

    Pairs are in natural order of their names, or in the order of the list that names them. Their
    number is not checked. Images that belong to no pair by the layout give one warning.

    Args:
        dataset: a name of `DATASETS`.
        folder: the unpacked dataset.

    Returns:
        Pairs by split, without missing splits.

    Raises:
        InputError: if the folder or every split is missing, a split has no known layout or several,
            an image has no partner, or a list is damaged or names a missing file.
    """
    raw, folder = _raw(dataset), Path(folder)
    if not folder.is_dir():
        state = "is a file" if folder.exists() else "does not exist"
        raise InputError(f"{folder} {state}; expected the folder that {dataset} was unpacked into")
    layouts = " or ".join(layout.description for layout in raw.layouts)
    pairs: dict[str, list[RawPair]] = {}
    for split, folders in raw.folders.items():
        there = _present(folder, folders)
        matches = _matches(there, raw)
        if not there:  # Folders of other names may be it; those that are not are told below.
            with contextlib.suppress(InputError):
                others = _matches(_present(folder, raw.or_else.get(split, ())), raw)
                matches = others if len(others) == 1 else []
        if len(matches) > 1:
            several = " and ".join(description for description, _ in matches)
            raise InputError(f"the split {split} is in {several}; expected one of them")
        if matches:
            pairs[split] = matches[0][1]
        elif there and there[0] != folder:
            raise InputError(f"{there[0]} holds {_contents(there[0])}; expected {layouts}")
    if not pairs:
        expected = " or ".join(_called(each) for names in raw.folders.values() for each in names)
        expected += f", with {layouts}"
        raise InputError(f"{folder} holds {_contents(folder)}; expected {expected}")
    if not raw.expected:  # The numbers of the others show whether all is there.
        _tell_unused(folder, pairs)
    return pairs


def _matches(folders: Sequence[Path], raw: RawDataset) -> list[tuple[str, list[RawPair]]]:
    """What was found, and the pairs, of each folder in each layout that it has."""
    return [
        (f"{path} ({layout.description})", found)
        for path in folders
        for layout in raw.layouts
        if (found := layout.find(path)) is not None
    ]


def _present(folder: Path, names: tuple[str, ...]) -> list[Path]:
    return [path for name in names if (path := _subfolder(folder, name)) is not None]


def _tell_unused(folder: Path, pairs: Mapping[str, list[RawPair]]) -> None:
    """Warns of folders in a dataset's own that hold images but no pair of a split."""
    files = (path for split in pairs.values() for _, *both in split for path in both if path)
    used = {path.relative_to(folder).parts[0] for path in files if path.is_relative_to(folder)}
    unused = [
        f"{path.name}/"
        for path in sorted(folder.iterdir())
        if path.is_dir() and not path.name.startswith(".") and path.name not in used
        if _has_images(path)
    ]
    if unused:
        warnings.warn(
            f"of {folder} {' and '.join(unused)} with images belong to no split and are left out",
            stacklevel=3,
        )


def _has_images(folder: Path) -> bool:
    """Whether a folder or one in it, as far as they can be read, has an image."""
    names = (name for _, _, files in os.walk(folder) for name in files)
    return any(Path(name).suffix.lower() in EXTENSIONS for name in names)


def instructions(dataset: str) -> str:
    """Describes in a few lines what a dataset's folder should hold.

    Raises:
        InputError: if there is no such dataset.
    """
    raw = _raw(dataset)
    some = " (with --allow-partial some of them)" if raw.expected else ", or one of them"
    lines = [f"The folder of {dataset} holds these splits{some}:"]
    for split, folders in raw.folders.items():
        count = f"{raw.expected[split]} pairs" if split in raw.expected else "any number of pairs"
        other = "".join(f" or else {_called(each)}" for each in raw.or_else.get(split, ()))
        lines.append(f"  {split}: {count} in {' or '.join(map(_called, folders))}{other}")
    lines.append("Each split has one of these layouts:")
    lines += [f"  {layout.description}" for layout in raw.layouts]
    lines.append(
        "Folder names may also be training/ and testing/, and have capitals or _ for a space."
    )
    return "\n".join(lines)


def _raw(dataset: str) -> RawDataset:
    if dataset not in DATASETS:
        raise InputError(f"'{dataset}' is no known dataset; expected {' or '.join(DATASETS)}")
    return DATASETS[dataset]


def _called(name: str) -> str:
    return f"{name}/" if name else "the folder itself"


def _contents(folder: Path) -> str:
    """The first few names in a folder."""
    names = sorted(os.listdir(folder))
    some = ", ".join(name + "/" * (folder / name).is_dir() for name in names[:4]) or "nothing"
    return f"{some} and {len(names) - 4} more" if len(names) > 4 else some


def _subfolder(folder: Path, path: str) -> Path | None:
    """The folder at a relative path, in upper or lower case; None if it is missing."""
    for name in filter(None, path.split("/")):
        known = {name.lower(), f"{name}ing"} if name in ("train", "test") else {name.lower()}
        found = sorted(p for p in folder.iterdir() if p.name.lower().replace("_", " ") in known)
        if not found:
            return None
        if len(found) > 1:
            raise InputError(f"{found[0]} and {found[1]} both exist; expected one")
        folder = found[0]
        if not folder.is_dir():
            raise InputError(f"{folder} is a file; expected a folder")
    return folder


def _folders(rainy: str, clean: str, match: str | None = None) -> _Find:
    """Finds pairs in two folders by name, or by a pattern's match (see `find_pairs_in`)."""

    def find(folder: Path) -> list[RawPair] | None:
        rainy_dir, clean_dir = _subfolder(folder, rainy), _subfolder(folder, clean)
        if not rainy_dir and not clean_dir:
            return None
        if not rainy_dir or not clean_dir:
            there, missing = (rainy, clean) if rainy_dir else (clean, rainy)
            raise InputError(f"{folder} has {there}/ but no {missing}/; expected both")
        return [RawPair(*pair) for pair in find_pairs_in(rainy_dir, clean_dir, match)]

    return find


def _rain_norain(folder: Path) -> list[RawPair] | None:
    deeper = _subfolder(folder, "rain/X2")
    if deeper and len(find_images(deeper.parent, nested=True)) > len(find_images(deeper)):
        raise InputError(
            f"{deeper.parent} has images beside {deeper.name}/; expected them in one folder"
        )
    pairs = _folders("rain/X2" if deeper else "rain", "norain", r"(\d+)(?:[xX]2)?$")(folder)
    first: dict[Path | None, Path] = {}
    for _, rainy, clean in pairs or ():
        if first.setdefault(clean, rainy) != rainy:
            raise InputError(f"{first[clean]} and {rainy} both belong to {clean}; expected one")
    return pairs


def _one_folder(folder: Path) -> list[RawPair] | None:
    """Finds rain-N and norain-N among the images of one folder; streaks and regions are no pair."""
    try:
        images = find_images(folder)
    except InputError:
        return None  # It holds no image.
    kinds: dict[str, dict[str, Path]] = {"rain": {}, "norain": {}}
    left_out, unknown = [], []
    for path in images:
        found = re.fullmatch(r"(rain|norain|rainstreak|rainregion)-(\d+)", path.stem.lower())
        if found is None:
            unknown.append(path)
        elif found[1] not in kinds:
            left_out.append(path)
        elif (other := kinds[found[1]].setdefault(found[2], path)) != path:
            raise InputError(f"{other} and {path} have the same name; expected one of them")
    rainy, clean = kinds.values()
    if not rainy and not clean:
        return None
    if unknown:
        raise InputError(f"{unknown[0]} has an unknown name; expected rain-N.png or norain-N.png")
    for number in (*rainy, *clean):
        for there, kind in ((rainy, "norain"), (clean, "rain")):
            if number in there and number not in kinds[kind]:
                raise InputError(f"{there[number]} has no partner; expected {kind}-{number}.png")
    if left_out:
        warnings.warn(
            f"{len(left_out)} images of streaks or regions in {folder} belong to no pair and are "
            f"left out, such as {left_out[0].name}",
            stacklevel=2,
        )
    return [RawPair(path.name, path, clean[number]) for number, path in rainy.items()]


def _side_by_side(folder: Path) -> list[RawPair] | None:
    try:
        images = find_images(folder, nested=True)
    except InputError:
        return None  # It holds no image.
    # These belong to another layout, with one image a file.
    others = {_subfolder(folder, "input"), _subfolder(folder, "target")}
    return [
        RawPair(path.relative_to(folder).as_posix(), path, None)
        for path in images
        if others.isdisjoint(path.parents)
    ] or None


def _list(*patterns: str) -> _Find:
    """Finds the pairs of the one list whose name matches a pattern."""

    def find(folder: Path) -> list[RawPair] | None:
        files = sorted(
            path
            for path in folder.iterdir()
            if any(fnmatch(path.name.lower(), pattern) for pattern in patterns)
            and not path.name.startswith(".")
            and path.is_file()
        )
        if len(files) > 1:
            raise InputError(f"{files[0]} and {files[1]} both exist; expected one list")
        return _listed(files[0]) if files else None

    return find


def _listed(file: Path) -> list[RawPair]:
    """The pairs of a list; its paths are relative to its folder, or to the parent folder."""
    lines = _lines(file)
    roots = [file.parent, file.parent.parent]
    root = next((r for r in roots if all((r / p).is_file() for p in lines[0][1:])), roots[0])

    @functools.cache
    def files_in(parent: str) -> frozenset[str]:
        # Checking each of a million files separately is slow on a network file system.
        try:
            with os.scandir(root / parent) as entries:
                return frozenset(entry.name for entry in entries if entry.is_file())
        except (OSError, ValueError):
            return frozenset()

    pairs = []
    first: dict[str, int] = {}
    for number, rainy, clean in lines:
        for path in (rainy, clean):
            parent, _, name = path.rpartition("/")
            # The second check is for file systems that ignore case.
            if name not in files_in(parent) and not (root / path).is_file():
                missing = f"{root / path} is missing; expected an image"
                raise InputError(f"{file}, line {number}: {missing}")
        if first.setdefault(rainy, number) != number:
            again = f"{rainy} is also in line {first[rainy]}; expected it once"
            raise InputError(f"{file}, line {number}: {again}")
        pairs.append(RawPair(rainy, root / rainy, root / clean))
    return pairs


def _lines(file: Path) -> list[tuple[int, str, str]]:
    """Number, rainy path and clean path of each line that is not blank; at least one."""
    try:
        text = file.read_text("utf-8-sig")
    except (OSError, ValueError) as error:
        raise InputError(f"{file} cannot be read ({error}); expected text in UTF-8") from None
    lines = []
    for number, line in enumerate(text.split("\n"), 1):
        parts = [part.strip() for part in line.split("\t" if "\t" in line.strip() else None)]
        paths = [os.path.normpath(part.replace("\\", "/")).lstrip("/") for part in parts if part]
        if not paths:
            continue
        if len(paths) != 2 or any(path.startswith("../") for path in paths):
            found = f"{file}, line {number}: {line.strip()[:80]!r}"
            raise InputError(
                f"{found}; expected two paths inside, separated by a tab if they hold spaces"
            )
        lines.append((number, paths[0], paths[1]))
    if not lines:
        raise InputError(f"{file} is empty; expected a rainy and a clean path on each line")
    return lines


_EQUAL_NAMES = Layout("input/ and target/ with equal file names", _folders("input", "target"))
_RAIN_NORAIN = Layout("rain/ or rain/X2/ (norain-Nx2.png) and norain/ (norain-N.png)", _rain_norain)
_ONE_FOLDER = Layout("rain-N.png and norain-N.png in one folder", _one_folder)
_SIDE_BY_SIDE = Layout(
    "images, also in subfolders, of a rainy (left) and a clean one side by side", _side_by_side
)
_RAINY_IMAGE = Layout(
    "rainy image/ (N_k.jpg, k from 1 to 14) and ground truth/ (N.jpg)",
    _folders("rainy image", "ground truth", r"^(\d+)(?:_\d+)?$"),
)
_LINES = (
    "of a rainy and a clean path on each line, a tab or spaces between, relative to its folder or "
    "the parent folder"
)
_LIST = Layout(
    f"one list *.txt {_LINES}",
    # Beside input/ and target/, a text file is no list.
    lambda folder: None if _subfolder(folder, "input") else _list("*.txt")(folder),
)
_own_list = _list("pairs.txt", "pairs.tsv")
_OWN = Layout(
    f"{_EQUAL_NAMES.description}, or if names differ pairs.txt or pairs.tsv, a list {_LINES}",
    lambda folder: _own_list(folder) or _EQUAL_NAMES.find(folder),
)
_TEST_SETS = {"Test100": 100, "Rain100L": 100, "Rain100H": 100, "Test1200": 1200, "Test2800": 2800}


def _published(train: int, test: int, *layouts: Layout) -> RawDataset:
    folders = {"train": ("train",), "test": ("test",)}
    return RawDataset((_EQUAL_NAMES, *layouts), folders, {"train": train, "test": test})


DATASETS: Mapping[str, RawDataset] = {
    "rain200l": _published(1800, 200, _RAIN_NORAIN),
    "rain200h": _published(1800, 200, _RAIN_NORAIN),
    "did_data": _published(12_000, 1_200, _SIDE_BY_SIDE),
    "ddn_data": _published(12_600, 1_400, _RAINY_IMAGE),
    "spa_data": _published(638_492, 1_000, _LIST),
    "rain100l": _published(200, 100, _RAIN_NORAIN, _ONE_FOLDER),
    "rain13k": RawDataset(
        (_EQUAL_NAMES,),
        {"train": ("train/Rain13K", "train")}
        | {name.lower(): (f"test/{name}",) for name in _TEST_SETS},
        {"train": 13_712} | {name.lower(): count for name, count in _TEST_SETS.items()},
    ),
    "paired_folder": RawDataset(
        (_OWN,),
        {"train": ("train", ""), "test": ("test",)},
        {},
        {"test": ("validation", "val")},
    ),
}
"""The public datasets, and any folder of pairs, by name."""
