"""Files of tensors, `.pth` of torch.save and `.safetensors`, read and written without torch."""

from __future__ import annotations

import io
import json
import struct
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from drsformer_jax.errors import InputError
from drsformer_jax.files import replacing
from drsformer_jax.weights import torch_pickle
from drsformer_jax.weights.state_dict import SAVE, kind
from drsformer_jax.weights.torch_pickle import Storage, shown

_SAFETENSORS = {
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
# A zip's directory of this size lists 200,000 tensors.
_MAX_READ = 16 * 2**20
_MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""0x1950a86a20f9469cfc6c as a pickled number, which torch wrote first before it wrote zips."""
NOTE = "drsformer_jax"
"""Name of what is noted beside the tensors, for this package alone."""
_EXPECTED = "expected a .pth of torch.save or a .safetensors file"


def read_tensors(path: Path) -> dict[Any, Any]:
    """Reads a `.pth` or a `.safetensors`, recognized by content.

    Nothing in the file is executed; memory and time are bounded by its length.

    Returns:
        What was saved: of a `.safetensors` names to arrays, of a `.pth` any nesting of containers,
        plain values and arrays. A parameter is its array there; a type or a device of torch is its
        name, an object of any other class, or a tensor of other numbers, a `torch_pickle.Inert`
        placeholder. Arrays are read-only, and tensors that shared memory share it. A `.safetensors`
        with notes of `write_safetensors` is as a `.pth` with them: tensors under `params`, each
        note beside.

    Raises:
        InputError: if the file cannot be read, is of another kind or is damaged.
    """
    try:
        return _read(path)
    except InputError as error:
        raise InputError(f"{path} {error}") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    except MemoryError as error:
        raise InputError(f"{path} does not fit into memory") from error
    except Exception as error:  # Whatever zipfile, pickletools and numpy raise on nonsense.
        reason = f"{type(error).__name__}: {shown(str(error))}"
        raise InputError(f"{path} is damaged or cut off ({reason}); {_EXPECTED}") from error


def write_pth(
    path: Path,
    tensors: Mapping[str, np.ndarray],
    top: str = "params",
    notes: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Writes `{top: tensors, **notes}` in one step, as torch.save would, for `torch.load(path)`.

    The same tensors give the same bytes. Storages are aligned for `torch.load(path, mmap=True)`.

    Raises:
        InputError: if a type of numbers is none of torch's.
        OSError: if the file system fails.
    """
    arrays = _native(path, tensors)
    with replacing(path) as file, zipfile.ZipFile(file, "w") as archive:
        _write_entry(archive, file.tell(), "data.pkl", torch_pickle.dumps(arrays, top, notes))
        _write_entry(archive, file.tell(), "byteorder", sys.byteorder.encode())
        for number, array in enumerate(arrays.values()):
            _write_entry(archive, file.tell(), f"data/{number}", array.tobytes())
        _write_entry(archive, file.tell(), "version", b"3\n")


def write_safetensors(
    path: Path, tensors: Mapping[str, np.ndarray], notes: Mapping[str, str] = MappingProxyType({})
) -> None:
    """Writes a `.safetensors`, with notes as its metadata, in one step; raises as `write_pth`."""
    content = safetensors.numpy.save(_native(path, tensors), dict(notes) or None)
    with replacing(path) as file:
        file.write(content)


def _native(path: Path, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors in this machine's byte order, each in one piece."""
    arrays = {}
    for key, tensor in tensors.items():
        array = np.asarray(tensor)
        if array.dtype.name not in torch_pickle.DTYPES:
            known = ", ".join(torch_pickle.DTYPES)
            raise InputError(f"{path}: {key} is {array.dtype}; expected one of {known}")
        arrays[key] = np.asarray(array, torch_pickle.DTYPES[array.dtype.name], order="C")
    return arrays


def _read(path: Path) -> dict[Any, Any]:
    with _CappedFile(path) as file:
        head = file.read(512)
        if head.startswith(b"PK\x03\x04"):
            return _read_pth(file)
    if head[8:9] == b"{":
        return _read_safetensors(path.read_bytes())
    raise InputError(_stranger(head, repr(str(path))))


def _stranger(head: bytes, path: str) -> str:
    """What a file is that is neither, by its first 512 bytes."""
    start = shown(head[:40].decode("latin-1"))
    if not head:
        return f"is empty; {_EXPECTED}"
    if _MAGIC in head[:32]:
        save = f"`torch.save(torch.load({path}, weights_only=True), {path})`"
        return f"is in the format of torch before 1.6; expected a zip, as of {save}"
    if head[257:262] == b"ustar":
        save = f"`torch.save(torch.load({path}, weights_only=False), {path})`"
        return f"is a tar, as of torch before 0.2; expected a zip, as (if you trust it) of {save}"
    if head.lstrip().startswith(b"<"):
        return f"is a web page that starts with {start}; {_EXPECTED}"
    if head.startswith(b"version https://git-lfs"):
        return f"is Git LFS's pointer to a file, not the file; {_EXPECTED}"
    return f"starts with {start}; {_EXPECTED}"


def _read_safetensors(content: bytes) -> dict[str, Any]:
    tensors = {}
    for key, entry in sorted(safetensors.deserialize(content), key=lambda item: item[0]):
        if entry["dtype"] not in _SAFETENSORS:
            known = ", ".join(_SAFETENSORS)
            raise InputError(f"has {shown(key)} as {entry['dtype']}; expected one of {known}")
        dtype = _SAFETENSORS[entry["dtype"]]
        array = np.frombuffer(_swapped(entry["data"], dtype, "little"), dtype)
        array.flags.writeable = False
        tensors[torch_pickle.checked_key(key)] = array.reshape(entry["shape"])
    # The library has checked the header, but does not give its metadata.
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    if NOTE not in (notes := header.get("__metadata__") or {}):
        return tensors
    return {"params": tensors, NOTE: notes[NOTE]}


def _swapped(content: bytes | bytearray, dtype: np.dtype, order: str) -> np.ndarray:
    """Bytes whose numbers are in the byte order `order`, in this machine's."""
    whole = np.frombuffer(content, f"u{dtype.itemsize}")
    return (whole if order == sys.byteorder else whole.byteswap()).view(np.uint8)


class _CappedFile(io.FileIO):
    """A file read in pieces: no length that it claims allocates more than a piece at once."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > _MAX_READ:
            raise InputError(f"claims a directory of {size} bytes; expected at most {_MAX_READ}")
        return super().read(size)


def _read_pth(file: _CappedFile) -> dict[Any, Any]:
    with zipfile.ZipFile(file) as archive:
        root = _root(archive.namelist())
        _check_entries(archive.infolist(), file.seek(0, io.SEEK_END))
        storages = _Storages(archive, root)
        pickle = _read_entry(archive, f"{root}/data.pkl", torch_pickle.MAX_LENGTH)
        value = torch_pickle.loads(pickle, storages.get)
    if not isinstance(value, dict):
        raise InputError(f"holds {kind(value)}; expected a dict of tensors; {SAVE}")
    return value


def _root(names: list[str]) -> str:
    """The folder in a zip that all entries of torch.save are in."""
    root = next((name[:-9] for name in names if name.endswith("/data.pkl")), None)
    if root is None:
        raise InputError("is a zip without the data.pkl of torch.save; expected a .pth")
    script = (f"{root}/constants.pkl", f"{root}/code/")
    if any(name.startswith(script) for name in names):
        raise InputError(
            "is a TorchScript archive of torch.jit.save; expected a state dict of torch.save"
        )
    return root


def _check_entries(entries: list[zipfile.ZipInfo], length: int) -> None:
    """Entries of torch are uncompressed, each once, so together they are shorter than the file."""
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
            name = shown(entry.filename)
            raise InputError(f"has {name} compressed; expected it stored, as torch.save does")
    if len({entry.filename for entry in entries}) < len(entries):
        raise InputError("has entries of one name; expected the zip of torch.save")
    claimed = sum(entry.file_size for entry in entries)
    if claimed > length:
        raise InputError(f"claims {claimed} bytes of entries; expected at most its own {length}")


def _read_entry(archive: zipfile.ZipFile, name: str, most: int | None = None) -> bytearray:
    size = archive.getinfo(name).file_size
    if most is not None and size > most:
        raise InputError(f"has {shown(name)} of {size} bytes; expected at most {most}")
    content = bytearray(size)
    with archive.open(name) as entry:
        for start in range(0, size, _MAX_READ):
            content[start : start + _MAX_READ] = entry.read(_MAX_READ)
    return content


class _Storages:
    """The storages of an archive, each read once, when it is first asked for."""

    def __init__(self, archive: zipfile.ZipFile, root: str) -> None:
        self._archive, self._root = archive, root
        self._known: dict[str, Storage] = {}
        self._order = "little"
        if f"{root}/byteorder" in archive.namelist():
            self._order = _read_entry(archive, f"{root}/byteorder", 16).decode()
        if self._order not in ("little", "big"):
            raise InputError(f"has byte order {shown(self._order)}; expected little or big")

    def get(self, key: str, dtype: np.dtype, count: int) -> Storage:
        """The storage `key` of `count` numbers."""
        if key not in self._known:
            try:
                content = _read_entry(self._archive, f"{self._root}/data/{key}")
            except KeyError:
                raise InputError(f"lacks the storage {shown(key)}; expected data/KEY") from None
            self._known[key] = Storage(dtype, _swapped(content, dtype, self._order))
        storage = self._known[key]
        if storage.dtype != dtype or storage.content.size != count * dtype.itemsize:
            found = f"{storage.content.size} bytes of {storage.dtype}"
            raise InputError(f"has {found} in storage {shown(key)}; expected {count} of {dtype}")
        return storage


def _write_entry(archive: zipfile.ZipFile, start: int, name: str, content: bytes) -> None:
    """Stores an entry whose content begins at a multiple of 64 bytes, as torch does."""
    info = zipfile.ZipInfo(f"archive/{name}")
    # Before it: 30 bytes of header, the name, 20 of zip64, and a filler with a header of 4.
    filler = -(start + 30 + len(info.filename) + 20 + 4) % 64
    info.extra = b"FB" + struct.pack("<H", filler) + b"Z" * filler
    with archive.open(info, "w", force_zip64=True) as entry:
        entry.write(content)
