"""Pairs of a rainy and a clean image by index, from any storage."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NotRequired, Protocol, TypedDict, TypeVar

import numpy as np
from tqdm import tqdm

from drsformer_jax.data.folders import pair_size, read_pair
from drsformer_jax.errors import InputError, held_signals

T = TypeVar("T")
U = TypeVar("U")

_ATTEMPTS = 100
_THREADS = 8
_CHUNK = 64
"""Most calls of one task of a thread: many are quick, and tasks of one call would take longer."""


class Pair(TypedDict):
    """One rainy image and its ground truth, each uint8 (h, w, 3)."""

    name: str
    rainy: np.ndarray
    clean: np.ndarray
    skipped: NotRequired[list[str]]
    """Pairs that could not be read and are replaced by this one; one line each."""


class Pairs(Protocol):
    """Random access to pairs of images."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Pair: ...

    def size(self, index: int) -> tuple[int, int]:
        """(height, width) of a pair, without decoding it."""
        ...


class StoredPairs(Pairs, Protocol):
    """Pairs with a fingerprint."""

    def fingerprint(self) -> str:
        """Changes when the pairs change; identifies their cache."""
        ...


def sizes_of(pairs: Pairs, count: int | None = None) -> list[tuple[int, int]]:
    """Reads (height, width) of each pair in several threads, without decoding images.

    A progress bar appears if it takes more than a second.

    Args:
        pairs: the pairs.
        count: of the first pairs alone; default: of all.

    Raises:
        InputError: for the first pair whose size cannot be read or whose images differ in size.
    """
    return list(map_in_threads(pairs.size, range(len(pairs))[:count], "image sizes"))


def map_in_threads(function: Callable[[U], T], items: Sequence[U], title: str) -> Iterator[T]:
    """Calls a function that waits for files with each item, in several threads.

    A progress bar appears if it takes more than a second. Results are small: they are not held
    back where they are used slowly.

    Yields:
        The results in the order of the items; raises what the function raises first in that order.
    """
    chunk = max(1, min(_CHUNK, len(items) // (4 * _THREADS)))

    def call(start: int) -> list[T]:
        return [function(item) for item in items[start : start + chunk]]

    with (
        ThreadPoolExecutor(_THREADS) as pool,
        tqdm(desc=title, total=len(items), delay=1, disable=None) as bar,
    ):
        with held_signals():
            parts = pool.map(call, range(0, len(items), chunk))
        for results in parts:
            yield from results
            bar.update(len(results))


def check_two_files(pairs: Sequence[tuple[Path, Path]]) -> None:
    """Rejects a rainy and a clean image that are one file, also through links.

    Raises:
        InputError: if a file is missing or the two are the same.
    """

    def check(pair: tuple[Path, Path]) -> None:
        rainy, clean = pair
        try:
            same = os.path.samefile(rainy, clean)
        except OSError as error:
            raise InputError(
                f"{error.filename} cannot be read ({error.strerror}); expected an image"
            ) from error
        if same:
            raise InputError(
                f"{rainy} and {clean} are the same file; expected a rainy and a clean image"
            )

    for _ in map_in_threads(check, pairs, "files"):
        pass


class PairedFiles:
    """Pairs of image files. Can be pickled; reads the files at each access.

    Args:
        pairs: (name, rainy file, clean file) of each, as from `find_pairs`.
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
        """(height, width) of a pair, from the headers of its files.

        Raises:
            InputError: if a file is no image or the sizes differ.
        """
        _, rainy, clean = self._pairs[index]
        return pair_size(rainy, clean)

    def fingerprint(self) -> str:
        """Depends on the files' paths, lengths and times."""
        files = [path for _, *both in self._pairs for path in both]
        return fingerprint(map_in_threads(_file_state, files, "files"))

    def digest(self) -> str:
        """Depends on the pairs' names and the files' lengths, wherever they are."""

        def lengths(pair: tuple[str, Path, Path]) -> tuple[str, int, int]:
            name, rainy, clean = pair
            return name, rainy.stat().st_size, clean.stat().st_size

        return fingerprint(map_in_threads(lengths, self._pairs, "files"))


def _file_state(path: Path) -> tuple[str, int, int]:
    state = path.stat()
    return str(path.resolve()), state.st_size, state.st_mtime_ns


class Cached:
    """Caches pairs in memory up to a limit. Thread-safe.

    Args:
        pairs: the pairs to cache.
        limit: memory in bytes.

    Attributes:
        pairs: likewise.
    """

    def __init__(self, pairs: Pairs, limit: int) -> None:
        self.pairs = pairs
        self._limit = self._room = limit
        self._kept: dict[int, Pair] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Pair:
        pair = self._kept.get(index)
        if pair is None:
            pair = self.pairs[index]
            size = pair["rainy"].nbytes + pair["clean"].nbytes
            with self._lock:
                if size <= self._room and index not in self._kept:
                    self._kept[index] = pair
                    self._room -= size
        return pair

    def size(self, index: int) -> tuple[int, int]:
        """(height, width) of a pair."""
        return self.pairs.size(index)

    def __reduce__(self) -> tuple[type[Cached], tuple[Pairs, int]]:
        # Another process starts with an empty cache.
        return Cached, (self.pairs, self._limit)


class SkippingUnreadable:
    """Replaces a pair that cannot be read by the next one that can.

    The replacement depends on the pairs alone, so batches do not depend on who reads them.

    Args:
        pairs: the pairs.

    Attributes:
        pairs: likewise.
    """

    def __init__(self, pairs: StoredPairs) -> None:
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Pair:
        pair, skipped = self._first(self.pairs.__getitem__, index)
        return {**pair, "skipped": skipped} if skipped else pair

    def size(self, index: int) -> tuple[int, int]:
        """(height, width) of a pair, or of the next one whose size can be read."""
        return self._first(self.pairs.size, index)[0]

    def _first(self, read: Callable[[int], T], index: int) -> tuple[T, list[str]]:
        """The first that can be read from an index on, and the errors of those before."""
        skipped: list[str] = []
        attempts = min(len(self), _ATTEMPTS)
        for attempt in range(attempts):
            try:
                return read((index + attempt) % len(self)), skipped
            except InputError as error:
                skipped.append(str(error))
        raise InputError(f"{skipped[0]}; nor can {attempts - 1} pairs that follow be read")

    def fingerprint(self) -> str:
        """Differs from that of the pairs, because some may be replaced."""
        return fingerprint(["surviving", self.pairs.fingerprint()])


class Shard:
    """The pairs of one of several processes: every `processes`-th, so that none is read twice.

    Args:
        pairs: all pairs.
        process: index of the process, from 0.
        processes: number of processes; their shards differ by one pair at most.
    """

    def __init__(self, pairs: Pairs, process: int, processes: int) -> None:
        self._pairs = pairs
        self._process = process
        self._processes = processes

    def __len__(self) -> int:
        return len(range(self._process, len(self._pairs), self._processes))

    def __getitem__(self, index: int) -> Pair:
        return self._pairs[self.global_index(index)]

    def size(self, index: int) -> tuple[int, int]:
        """(height, width) of a pair."""
        return self._pairs.size(self.global_index(index))

    def global_index(self, index: int) -> int:
        """Index among all pairs."""
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is outside of 0 to {len(self) - 1}")
        return self._process + index * self._processes


def fingerprint(parts: Iterable[object]) -> str:
    """A short hash of values."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(repr(part).encode() + b"\n")
    return digest.hexdigest()[:16]
