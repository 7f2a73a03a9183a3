"""A cache of decoded pairs in one file, of which training reads only the rows that it crops.

The file is an ArrayRecord without compression. Its records are strips of rows, from top to bottom,
of each pair's rainy and then its clean image; the last record holds names and sizes as JSON. Every
record has a checksum, so damage is detected when it is read.
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
from drsformer_jax.files import check_writable, remove_leftovers, replacing
from drsformer_jax.locks import locked

_VERSION = 1
_WRITER = "group_size:1,uncompressed"
_READER = "readahead_buffer_size:0,max_parallelism:0"
_STRIP = 2**16
"""Greatest size of a record in bytes. Larger ones hold more rows that a crop does not need, and
glibc returns their memory to the system each time: allocating it again took longer than reading."""


def write_raw_records(
    path: Path, pairs: Pairs, progress: Callable[[int], object] = lambda count: None
) -> None:
    """Decodes all pairs and writes them to a file, unless the file exists.

    Missing folders are created. Of several processes that write to one folder, one writes and the
    others wait, with a line each; then they find the file. A failure leaves no file. What a killed
    process leaves is hidden, and the next writer in the folder removes it.

    Args:
        path: the file, of 6 bytes for each pixel of a pair.
        pairs: what to write.
        progress: called after each pair with the number of pairs written so far.

    Raises:
        InputError: if there is no pair, one cannot be read, or the folder cannot be written or has
            no room for all.
        OSError: if the file system fails.
    """
    if len(pairs) == 0:
        raise InputError(f"there is no pair to write to {path}; expected at least one")
    if path.exists():
        return
    check_writable(path.parent)
    with locked(path.parent, f"write {path}"):
        remove_leftovers(path.parent)
        if path.exists():
            return
        size = _size(pairs)
        free = shutil.disk_usage(path.parent).free
        if size > free:
            raise InputError(
                f"{path} would take {_gib(size)}, {path.parent} has {_gib(free)} free; "
                "expected a folder with room for all decoded pairs"
            )
        with replacing(path) as file:
            temporary = Path(file.name)
            _write(path, temporary, pairs, progress)
            _check_written(path, temporary)


def _write(path: Path, temporary: Path, pairs: Pairs, progress: Callable[[int], object]) -> None:
    entries: list[tuple[str, int, int, list[str]]] = []
    with _one_line(path):
        writer = ArrayRecordWriter(str(temporary), _WRITER)
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
            writer.close()  # It reports failures that no call before has reported.


def _check_written(path: Path, temporary: Path) -> None:
    with contextlib.suppress(InputError):
        if temporary.stat().st_size >= _size(RawRecords(temporary)):
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
    """Number of rows of a strip."""
    return max(1, _STRIP // (3 * width))


class RawRecords:
    """The pairs of a file that `write_raw_records` wrote.

    Their images are `StoredImage`, whose rows are read when sliced. Thread-safe. Can be pickled;
    each process opens the file for itself.

    Args:
        path: the file.

    Raises:
        InputError: if the file is missing, damaged or of another format; also when an image is
            sliced.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)
        self._thread = threading.local()
        with self._one_line():
            count = self._reader().num_records()
            if count == 0:
                self._path.open().close()  # ArrayRecord does not report a missing file.
                raise ValueError("it is cut short or of another format")
            index = json.loads(self.record(count - 1))
            if not isinstance(index, dict) or index.get("version") != _VERSION:
                raise ValueError("its last record is no index of this version")
            self._entries: list[tuple[str, int, int, list[str]]] = index["pairs"]
            strips = [2 * -(-height // _rows(width)) for _, height, width, _ in self._entries]
            self._starts = list(itertools.accumulate(strips, initial=0))
            if self._starts[-1] + 1 != count:
                raise ValueError(f"it has {count} records instead of {self._starts[-1] + 1}")

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int) -> Pair:
        index = range(len(self))[index]
        name, height, width, skipped = self._entries[index]
        start, end = self._starts[index : index + 2]
        rainy, clean = (
            # It can be sliced and converted like an array.
            cast(np.ndarray, StoredImage(self, first, height, width))
            for first in (start, (start + end) // 2)
        )
        pair: Pair = {"name": name, "rainy": rainy, "clean": clean}
        return {**pair, "skipped": skipped} if skipped else pair

    def size(self, index: int) -> tuple[int, int]:
        """(height, width) of a pair, from the index."""
        _, height, width, _ = self._entries[index]
        return height, width

    def record(self, place: int) -> bytes:
        """One record of the file, by its position."""
        with self._one_line():
            reader = self._reader()
            reader.seek(place)  # `read([place])` takes several times as long for small records.
            return reader.read()

    def __reduce__(self) -> tuple[type[RawRecords], tuple[Path]]:
        return RawRecords, (self._path,)

    def _reader(self) -> ArrayRecordReader:
        """This thread's own, because a reader has a position."""
        if not hasattr(self._thread, "reader"):
            self._thread.reader = ArrayRecordReader(str(self._path), _READER)
        return self._thread.reader

    @contextlib.contextmanager
    def _one_line(self) -> Iterator[None]:
        try:
            yield
        except InputError:
            raise
        except (RuntimeError, IndexError, ValueError, OSError) as error:  # ArrayRecord's and JSON's
            self._thread.__dict__.clear()  # A reader that failed does not recover.
            reason = error.strerror if isinstance(error, OSError) else None
            reason = reason or " ".join(str(error).split(";")[0].split()) or type(error).__name__
            raise InputError(
                f"{self._path} is no file of decoded pairs that can be read ({reason}); "
                "remove it, and it is written again"
            ) from error


class StoredImage:
    """An image uint8 (h, w, 3) in a file; slicing reads the rows of the slice.

    Args:
        records: the file.
        first: position of its first strip.
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
            raise IndexError(f"rows are {rows}; expected some of {height}, with step 1")
        size = _rows(width)
        strips = []
        for start in range(top - top % size, bottom, size):
            record = self._records.record(self._first + start // size)
            strip = np.frombuffer(record, np.uint8).reshape(-1, width, 3)
            strips.append(strip[(slice(max(top - start, 0), bottom - start), *columns)])
        return np.concatenate(strips)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[:, :].astype(dtype or np.uint8, copy=False)
