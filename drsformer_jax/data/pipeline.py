"""Pairs by index, and batches of random crops that depend on the seed and the step alone."""

from __future__ import annotations

import os
import threading
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, Protocol, TypedDict

import numpy as np

from drsformer_jax.config import DataConfig
from drsformer_jax.data.folders import find_pairs, pair_size, read_pair
from drsformer_jax.data.synthetic import Pair, SyntheticRain, photographs
from drsformer_jax.errors import InputError

_VALIDATION_RAINS = 4
_READ_AHEAD = 8
_EPOCHS = 10**9  # Endless, but without the overflow that Grain's own endless repeat can meet.


class Pairs(Protocol):
    """Random access to pairs of pictures."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Pair: ...

    def sizes(self) -> list[tuple[int, int]]:
        """(height, width) of each pair, without decoding it."""
        ...


class Batch(TypedDict):
    """Crops of several pairs."""

    name: list[str]
    """Where each crop comes from."""
    rainy: np.ndarray
    """uint8 (b, h, w, 3)."""
    clean: np.ndarray
    """uint8 (b, h, w, 3)."""


class PairedFiles:
    """Pairs of picture files. Can be pickled; reads the files at each access.

    Args:
        pairs: (name, rainy file, clean file) of each, as `find_pairs` lists them.
    """

    def __init__(self, pairs: Sequence[tuple[str, Path, Path]]) -> None:
        self._pairs = pairs

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> Pair:
        name, input_path, target_path = self._pairs[index]
        rainy, clean = read_pair(input_path, target_path)
        return {"name": name, "rainy": rainy, "clean": clean}

    def sizes(self) -> list[tuple[int, int]]:
        """(height, width) of each pair, from the files' heads.

        Raises:
            InputError: if a file is no picture or the sizes of a pair differ.
        """
        return [pair_size(rainy, clean) for _, rainy, clean in self._pairs]


class Cached:
    """Keeps pairs in memory until a limit is reached; safe with threads.

    Args:
        pairs: where pairs come from.
        limit: bytes to keep at most.
    """

    def __init__(self, pairs: Pairs, limit: int) -> None:
        self._pairs = pairs
        self._limit = self._room = limit
        self._kept: dict[int, Pair] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> Pair:
        pair = self._kept.get(index)
        if pair is None:
            pair = self._pairs[index]
            size = pair["rainy"].nbytes + pair["clean"].nbytes
            with self._lock:
                if size <= self._room and index not in self._kept:
                    self._kept[index] = pair
                    self._room -= size
        return pair

    def sizes(self) -> list[tuple[int, int]]:
        """As those of what is kept."""
        return self._pairs.sizes()

    def __reduce__(self) -> tuple[type[Cached], tuple[Pairs, int]]:
        # Another process starts with an empty cache.
        return Cached, (self._pairs, self._limit)


def open_pairs(config: DataConfig, split: Literal["train", "validation"], seed: int) -> Pairs:
    """Finds the pairs of a split and checks what can be checked without decoding them.

    Warns once if pictures are smaller than the training crop.

    Raises:
        InputError: if a folder, a partner or a photograph is missing, sizes differ, a file is no
            picture, or a picture is smaller than the crop under `small_images="error"`.
    """
    source = getattr(config, split)
    if source == "synthetic":
        train, validation = photographs(config.photographs)
        chosen, rains = (train, config.rains) if split == "train" else (validation, None)
        pairs: Pairs = SyntheticRain(chosen, rains or _VALIDATION_RAINS, seed)
        names = [str(photo.path) for photo in chosen]
    else:
        listed = find_pairs(source)
        pairs = PairedFiles(listed)
        names = [str(path) for _, path, _ in listed]
    sizes = dict(zip(names, pairs.sizes(), strict=False))  # Synthetic rains repeat the photographs.
    if split == "train":
        _check_small(sizes, config)
    return Cached(pairs, config.cache_mib * 2**20)


def _check_small(sizes: dict[str, tuple[int, int]], config: DataConfig) -> None:
    crop = config.crop_size
    small = [name for name, size in sizes.items() if min(size) < crop]
    if not small:
        return
    height, width = sizes[small[0]]
    found = f"{small[0]} is {width}x{height}"
    if config.small_images == "error":
        raise InputError(f"{found}; expected at least the crop, {crop}x{crop}")
    warnings.warn(
        f"{len(small)} of {len(sizes)} pictures are smaller than the crop of {crop}x{crop} and are "
        f"padded by reflection ({found})",
        stacklevel=3,
    )


def batches(
    pairs: Pairs,
    config: DataConfig,
    *,
    seed: int,
    start: int = 0,
    process: int = 0,
    processes: int = 1,
) -> Iterator[Batch]:
    """Endless batches of random crops.

    Batch k depends on the seed and k alone: neither on threads, workers or restarts, nor on how
    many processes share it.

    Args:
        pairs: where crops come from.
        config: crop, batch and symmetries.
        seed: 0 or more.
        start: number of the first batch.
        process: which share of each global batch to read.
        processes: how many shares there are.

    Raises:
        InputError: if the shares do not divide the global batch.
    """
    if config.global_batch % processes:
        raise InputError(
            f"data.global-batch is {config.global_batch}; expected a multiple of the {processes} "
            "processes"
        )
    import grain

    dataset = (
        grain.MapDataset.source(pairs)
        .seed(seed)
        .shuffle()
        .repeat(_EPOCHS)
        .random_map(RandomCrop(config.crop_size, augment=config.augment))
    )
    share = dataset[process::processes].batch(config.global_batch // processes, batch_fn=_stack)
    threads = min(4, os.cpu_count() or 1)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=_READ_AHEAD)
    stream = share[start:].to_iter_dataset(options)
    if config.workers:
        from absl import flags

        flags.FLAGS.mark_as_parsed()  # Grain's worker processes read absl's flags.
        stream = stream.mp_prefetch(grain.MultiprocessingOptions(num_workers=config.workers))
    return iter(stream)


class RandomCrop:
    """Cuts one random square out of both pictures of a pair, in one of the 8 symmetries.

    A picture smaller than the square is first padded right and below by half-sample symmetric
    reflection, as in the official training program.
    """

    def __init__(self, size: int, *, augment: bool) -> None:
        self._size = size
        self._augment = augment

    def __call__(self, pair: Pair, rng: np.random.Generator) -> Pair:
        """Crops a pair; `rng` decides where and how."""
        size = self._size
        height, width, _ = pair["rainy"].shape
        top = int(rng.integers(max(height - size, 0) + 1))
        left = int(rng.integers(max(width - size, 0) + 1))
        symmetry = int(rng.integers(8)) if self._augment else 0

        def cut(picture: np.ndarray) -> np.ndarray:
            crop = picture[top : top + size, left : left + size]
            missing = [(0, size - crop.shape[0]), (0, size - crop.shape[1]), (0, 0)]
            return transform(np.pad(crop, missing, mode="symmetric"), symmetry)

        return {"name": pair["name"], "rainy": cut(pair["rainy"]), "clean": cut(pair["clean"])}


def transform(picture: np.ndarray, symmetry: int) -> np.ndarray:
    """One of the 8 symmetries of the square: quarter turns (0 to 3), then those mirrored (4 to 7).

    Args:
        picture: (h, w, c).
        symmetry: 0 is the picture itself.
    """
    turned = np.rot90(picture, symmetry % 4)
    return turned[:, ::-1] if symmetry >= 4 else turned


def _stack(pairs: Sequence[Pair]) -> Batch:
    return {
        "name": [pair["name"] for pair in pairs],
        "rainy": np.stack([pair["rainy"] for pair in pairs]),
        "clean": np.stack([pair["clean"] for pair in pairs]),
    }


def describe(names: Sequence[str]) -> str:
    """The names of a batch in one line, each once with its count."""
    return ", ".join(
        name if count == 1 else f"{name} ({count} crops)" for name, count in Counter(names).items()
    )
