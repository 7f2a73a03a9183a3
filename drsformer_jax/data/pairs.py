"""Pairs of a rainy and a clean image by index, wherever they are kept."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NotRequired, Protocol, TypedDict, TypeVar

import numpy as np

from drsformer_jax.data.folders import pair_size, read_pair
from drsformer_jax.errors import InputError

T = TypeVar("T")

_ATTEMPTS = 100


class Pair(TypedDict):
    """One rainy and clean image, each uint8 (h, w, 3)."""

    name: str
    rainy: np.ndarray
    clean: np.ndarray
    skipped: NotRequired[list[str]]
    """What could not be read and is replaced by this pair; one line each."""


class Pairs(Protocol):
    """Random access to pairs of images."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Pair: ...

    def size(self, index: int) -> tuple[int, int]:
        """(height, width) of a pair, without decoding it."""
        ...


class StoredPairs(Pairs, Protocol):
    """Pairs that lie somewhere."""

    def fingerprint(self) -> str:
        """What changes when the pairs change, for what is kept of them elsewhere."""
        ...


def sizes_of(pairs: Pairs) -> list[tuple[int, int]]:
    """(height, width) of each pair, without decoding them.

    Raises:
        InputError: if one cannot be told, or the sizes of a pair differ.
    """
    return [pairs.size(index) for index in range(len(pairs))]


class PairedFiles:
    """Pairs of image files. Can be pickled; reads the files at each access.

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

    def size(self, index: int) -> tuple[int, int]:
        """(height, width) of a pair, as its files tell without being decoded.

        Raises:
            InputError: if a file is no image or the sizes differ.
        """
        _, rainy, clean = self._pairs[index]
        return pair_size(rainy, clean)

    def fingerprint(self) -> str:
        """Of the files' places, lengths and times."""
        return fingerprint(
            (str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns)
            for _, *both in self._pairs
            for path in both
        )


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

    def size(self, index: int) -> tuple[int, int]:
        """(height, width) of a pair."""
        return self._pairs.size(index)

    def __reduce__(self) -> tuple[type[Cached], tuple[Pairs, int]]:
        # Another process starts with an empty cache.
        return Cached, (self._pairs, self._limit)


class Surviving:
    """Puts the next pair that can be read in the place of one that cannot.

    Which one depends on the pairs alone, so batches stay the same whoever reads them.
    """

    def __init__(self, pairs: StoredPairs) -> None:
        self._pairs = pairs

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> Pair:
        pair, skipped = self._first(self._pairs.__getitem__, index)
        return {**pair, "skipped": skipped} if skipped else pair

    def size(self, index: int) -> tuple[int, int]:
        """(height, width) of a pair, or of the next one whose size can be told."""
        return self._first(self._pairs.size, index)[0]

    def _first(self, read: Callable[[int], T], index: int) -> tuple[T, list[str]]:
        """What can be read from an index on, and what is wrong with those before."""
        skipped: list[str] = []
        attempts = min(len(self), _ATTEMPTS)
        for attempt in range(attempts):
            try:
                return read((index + attempt) % len(self)), skipped
            except InputError as error:
                skipped.append(str(error))
        raise InputError(f"{skipped[0]}; nor can {attempts - 1} pairs that follow be read")

    def fingerprint(self) -> str:
        """Of the pairs, and that some may stand for others."""
        return fingerprint(["surviving", self._pairs.fingerprint()])


class Share:
    """The pairs of one process: pairs i, i + p, i + 2 p, ... for process i of p.

    Args:
        pairs: all pairs.
        process: index of the process, from 0.
        processes: number of processes. Their shares differ by one pair at most.
    """

    def __init__(self, pairs: Pairs, process: int, processes: int) -> None:
        self._pairs = pairs
        self._process = process
        self._processes = processes

    def __len__(self) -> int:
        return len(range(self._process, len(self._pairs), self._processes))

    def __getitem__(self, index: int) -> Pair:
        return self._pairs[self.whole_index(index)]

    def size(self, index: int) -> tuple[int, int]:
        """(height, width) of a pair."""
        return self._pairs.size(self.whole_index(index))

    def whole_index(self, index: int) -> int:
        """Index among all pairs of a pair of the share."""
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is outside of 0 to {len(self) - 1}")
        return self._process + index * self._processes


def fingerprint(parts: Iterable[object]) -> str:
    """A short text that stands for some values: equal for equal ones."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(repr(part).encode() + b"\n")
    return digest.hexdigest()[:16]
