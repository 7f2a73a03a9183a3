"""Decoded pairs in one file, of which training reads no more than the rows that it crops.

The file is an ArrayRecord without compression. Its records are strips of rows, from above to below,
of each pair's rainy and then its clean image; the last one holds names and sizes as JSON. Every
record has a checksum, so damage is found when it is read.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from drsformer_jax.data.pairs import Pair, Pairs, sizes_of
from drsformer_jax.errors import InputError
from drsformer_jax.files import replacing

_VERSION = 1
_WRITER = "group_size:1,uncompressed"
_READER = "readahead_buffer_size:0,max_parallelism:0"
_STRIP = 2**16
"""Bytes of a record at most. Larger ones hold more rows that a crop has no use for, and glibc hands
their memory back to the system each time: to get it anew took longer than to read the file."""


def write_raw_records(
    path: Path, pairs: Pairs, progress: Callable[[int], object] = lambda count: None
) -> None:
    """Decodes all pairs and writes them to one file, in one step.

    Folders that are missing are made. A failure or a killed process leaves `path` as it was.

    Args:
        path: the file; it takes 6 bytes a pixel of each pair.
        pairs: what to write.
        progress: is told after each pair how many are written.

    Raises:
        InputError: if there is no pair, one cannot be read, or the disk has no room for all.
        OSError: if the file system fails.
    """
    if len(pairs) == 0:
        raise InputError(f"there is no pair to write to {path}; expected at least one")
    with replacing(path) as file:
        unfinished = Path(file.name)
        size = _size(pairs)
        free = shutil.disk_usage(unfinished).free
        if size > free:
            raise InputError(
                f"{path} would take {_gib(size)}, {path.parent} has {_gib(free)} free; "
                "expected a folder with room for all decoded pairs"
            )
        _write(path, unfinished, pairs, progress)
        _check_written(path, unfinished)


def _write(path: Path, unfinished: Path, pairs: Pairs, progress: Callable[[int], object]) -> None:
    entries: list[tuple[str, int, int, list[str]]] = []
    with _one_line(path):
        writer = ArrayRecordWriter(str(unfinished), _WRITER)
    try:
        for place in range(len(pairs)):
            pair = pairs[place]
            height, width, _ = pair["rainy"].shape
            entries.append((pair["name"], height, width, pair.get("skipped", [])))
            with _one_line(path):
                for image in (pair["rainy"], pair["clean"]):
                    for top in range(0, height, _rows(width)):
                        writer.write(image[top : top + _rows(width)].tobytes())
            progress(len(entries))
        index = {"version": _VERSION, "pairs": entries}
        with _one_line(path):
            writer.write(json.dumps(index).encode())
    finally:
        with _one_line(path):
            writer.close()  # which tells of failures that no call before has told


def _check_written(path: Path, unfinished: Path) -> None:
    with contextlib.suppress(InputError):
        if unfinished.stat().st_size >= _size(RawRecords(unfinished)):
            return
    raise OSError(f"{path} is not what was written; the disk of {path.parent} loses data")


def _size(pairs: Pairs) -> int:
    return sum(6 * height * width for height, width in sizes_of(pairs))


@contextlib.contextmanager
def _one_line(path: Path) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # such as "write() failed: No space left on device; writing ..."
        raise InputError(
            f"{path} cannot be written ({str(error).split(';')[0]}); "
            "expected a disk with room for all decoded pairs"
        ) from error


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"


def _rows(width: int) -> int:
    """How many rows a strip has."""
    return max(1, _STRIP // (3 * width))


class RawRecords:
    """The pairs of a file that `write_raw_records` made.

    Their images are `StoredImage`, which is read where it is sliced. Safe with threads. Can be
    pickled; another process opens the file for itself.

    Args:
        path: the file.

    Raises:
        InputError: if the file is missing, another or damaged; when an image is sliced too.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)
        self._thread = threading.local()
        with self._refusal():
            count = self._reader().num_records()
            if count == 0:
                self._path.open().close()  # ArrayRecord does not tell when there is no file.
                raise ValueError("it is cut short or of another format")
            self._index: dict[str, Any] = json.loads(self.record(count - 1))
            strips = [2 * -(-height // _rows(width)) for height, width in sizes_of(self)]
            self._starts = list(itertools.accumulate(strips, initial=0))
            if (self._index["version"], self._starts[-1] + 1) != (_VERSION, count):
                raise ValueError(f"{count} records of version {self._index['version']}")

    def __len__(self) -> int:
        return len(self._index["pairs"])

    def __getitem__(self, index: int) -> Pair:
        index = range(len(self))[index]
        name, height, width, skipped = self._index["pairs"][index]
        start, end = self._starts[index : index + 2]
        rainy, clean = (
            # It takes an array's place wherever one is sliced or made an array.
            cast(np.ndarray, StoredImage(self, first, height, width))
            for first in (start, (start + end) // 2)
        )
        pair: Pair = {"name": name, "rainy": rainy, "clean": clean}
        return {**pair, "skipped": skipped} if skipped else pair

    def size(self, index: int) -> tuple[int, int]:
        """(height, width) of a pair, known without reading it."""
        _, height, width, _ = self._index["pairs"][index]
        return height, width

    def record(self, place: int) -> bytes:
        """One record of the file, by its place."""
        with self._refusal():
            reader = self._reader()
            reader.seek(place)  # Its `read(places)` takes several times as long for small records.
            return reader.read()

    def __reduce__(self) -> tuple[type[RawRecords], tuple[Path]]:
        return RawRecords, (self._path,)

    def _reader(self) -> ArrayRecordReader:
        """This thread's own, because a reader has a position."""
        if not hasattr(self._thread, "reader"):
            self._thread.reader = ArrayRecordReader(str(self._path), _READER)
        return self._thread.reader

    @contextlib.contextmanager
    def _refusal(self) -> Iterator[None]:
        try:
            yield
        except InputError:
            raise
        except Exception as error:  # ArrayRecord and JSON let errors of many kinds out
            self._thread.__dict__.clear()  # A reader that has failed does not recover.
            reason = error.strerror if isinstance(error, OSError) else None
            reason = reason or " ".join(str(error).split(";")[0].split()) or type(error).__name__
            raise InputError(
                f"{self._path} is no file of decoded pairs that can be read ({reason}); "
                "remove it, and it is made anew"
            ) from error


class StoredImage:
    """An image uint8 (h, w, 3) in a file, of which slicing reads the rows asked for.

    Args:
        records: the file.
        first: place of its first strip.
        height: its height.
        width: its width.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, records: RawRecords, first: int, height: int, width: int) -> None:
        self._records = records
        self._first = first
        self.shape = (height, width, 3)

    def __getitem__(self, key: tuple[slice, ...]) -> np.ndarray:
        """Reads `[top:bottom, left:right]`; the array is new and writable."""
        rows, *columns = key
        height, width, _ = self.shape
        top, bottom, step = rows.indices(height)
        if step != 1 or top >= bottom:
            raise IndexError(f"rows are {rows}; expected some of {height}, one by one")
        size = _rows(width)
        strips = []
        for start in range(top - top % size, bottom, size):
            record = self._records.record(self._first + start // size)
            strip = np.frombuffer(record, np.uint8).reshape(-1, width, 3)
            strips.append(strip[(slice(max(top - start, 0), bottom - start), *columns)])
        return np.concatenate(strips)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[:, :].astype(dtype or np.uint8, copy=False)
