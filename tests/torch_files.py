"""Files of torch.save made by hand, opcode by opcode."""

from __future__ import annotations

import pickle
import struct
import zipfile
from pathlib import Path


def zipped(path: Path, data: bytes, *storages: bytes, **entries: bytes) -> Path:
    """A `.pth` around a pickle, its sums right."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", data)
        for number, storage in enumerate(storages):
            archive.writestr(f"x/data/{number}", storage)
        for name, content in entries.items():
            archive.writestr(f"x/{name}", content)
    return path


def text(value: str) -> bytes:
    return pickle.BINUNICODE + struct.pack("<I", len(value)) + value.encode()


def number(value: int) -> bytes:
    content = pickle.encode_long(value)
    return pickle.LONG1 + bytes([len(content)]) + content


def pickled_tuple(*items: bytes) -> bytes:
    return pickle.MARK + b"".join(items) + pickle.TUPLE


def saved(value: bytes) -> bytes:
    """The pickle of a dict with one value."""
    return b"\x80\x02}" + text("w") + value + b"s."


def tensor(
    size: tuple[int, ...] = (4,),
    stride: tuple[int, ...] = (1,),
    offset: int = 0,
    key: str = "0",
    count: int = 4,
    last: bytes = b"",
) -> bytes:
    """The pickle of a dict with a tensor of float32."""
    kind = b"ctorch\nFloatStorage\n"
    storage = pickled_tuple(text("storage"), kind, text(key), text("cpu"), number(count))
    sizes, strides = (pickled_tuple(*map(number, counts)) for counts in (size, stride))
    hooks = b"ccollections\nOrderedDict\n)R"
    rebuilt = (storage + b"Q", number(offset), sizes, strides, pickle.NEWFALSE, hooks, last)
    function = b"ctorch._utils\n_rebuild_tensor_v2\n"
    return saved(function + pickled_tuple(*rebuilt) + b"R")


def call(module: str, name: str, argument: str) -> bytes:
    """The pickle of a dict with what a function makes of a text."""
    return saved(f"c{module}\n{name}\n".encode() + text(argument) + b"\x85R")


def passed(value: bytes, function: str, calls: int) -> bytes:
    """As `call`, of a list of what `calls` calls make of one value, which is memoised."""
    repeated = f"c{function}\n".encode() + b"h\x01R"
    return saved(b"](" + value + b"\x85q\x01" + repeated * calls + b"e")
