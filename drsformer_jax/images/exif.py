"""EXIF blocks and TIFF directories as bytes: both are lists of tags of one structure.

Structure and tags are those of TIFF 6.0, BigTIFF and Exif 3.0 (CIPA DC-008). Pillow's own writer
would do but for texts that are not ASCII and values whose kind it does not know.
"""

from __future__ import annotations

import contextlib
import re
import struct
from typing import Literal, NamedTuple

ORIENTATION, PROFILE = 0x0112, 0x8773
_EXIF, _GPS, _INTEROPERABILITY = 0x8769, 0x8825, 0xA005
_BELOW: dict[int, frozenset[int]] = {
    0: frozenset({_EXIF, _GPS}),
    _EXIF: frozenset({_INTEROPERABILITY}),
}
_SIDES = {0x0100: 0, 0x0101: 1, 0xA002: 0, 0xA003: 1}
"""Tags of the image's width (0) and height (1)."""
_CAMERA = frozenset(
    # Description, maker, model, orientation, resolution, software, date, artist, copyright.
    {0x010E, 0x010F, 0x0110, ORIENTATION, 0x011A, 0x011B, 0x0128, 0x0131, 0x0132, 0x013B, 0x8298}
    | {0x4746, 0x4749}  # stars given to the image
    | set(range(0x9C9B, 0x9CA0))  # title, comment, author, keywords, subject by Windows
    | {_EXIF, _GPS}
)
"""What of a TIFF file's first directory is about the photograph rather than about its bytes."""
_OF_ANY_FILE = {ORIENTATION, 0x011A, 0x011B, 0x0128, 0x0131}
"""What programs write into every TIFF file: orientation, resolution, their name."""

SHORT, LONG, UNDEFINED = 3, 4, 7
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
_WIDE_SIZES = _SIZES | {16: 8, 17: 8, 18: 8}
_LETTERS = {1: "B", SHORT: "H", LONG: "L", 13: "L", 16: "Q", 18: "Q"}


Order = Literal["<", ">"]
"""Which byte of a number comes first, as in `struct`."""


class Field(NamedTuple):
    """A tag's value: its kind by TIFF's number, and its bytes or the directory it points to."""

    kind: int
    content: bytes | dict[int, Field]


Fields = dict[int, Field]


class Directory(NamedTuple):
    """The first directory of a TIFF file or an EXIF block, and of those below it."""

    order: Order
    fields: Fields

    def numbers(self, tag: int) -> tuple[int, ...]:
        """The whole numbers that a tag holds; none if it is absent."""
        kind, content = self.fields.get(tag, Field(SHORT, b""))
        if isinstance(content, dict) or kind not in _LETTERS:
            return ()
        count = len(content) // _WIDE_SIZES[kind]
        return struct.unpack(f"{self.order}{count}{_LETTERS[kind]}", content)

    def number(self, tag: int, default: int) -> int:
        """The first of the whole numbers that a tag holds."""
        return next(iter(self.numbers(tag)), default)

    def camera(self) -> Fields:
        """What tells about the photograph, without what tells how its pixels are stored."""
        return {tag: field for tag, field in self.fields.items() if tag in _CAMERA}

    def block(self) -> bytes | None:
        """An EXIF block of what tells about the photograph; None if no more than any file has."""
        fields = self.camera()
        if fields.keys() <= _OF_ANY_FILE:
            return None
        return header(self.order, 8) + pack(self.order, fields, 8)


class _Row(NamedTuple):
    tag: int
    kind: int
    length: int  # how many values
    cell: int  # where the value stands, or where it is told where the value stands


def read_directory(data: bytes) -> Directory:
    """Reads the tags of a TIFF file or an EXIF block; values beyond its end are left out.

    Raises:
        ValueError, struct.error: if it is neither, or ends within the directory.
    """
    order, wide, start = _start(data)
    return Directory(order, _fields(data, order, wide, start, 0))


def upright(block: bytes, width: int, height: int) -> bytes | None:
    """Sets an EXIF block right for an image that has been turned upright.

    The orientation becomes 1, sizes become those given, the thumbnail is unlinked since it shows
    the image as it was. Nothing else moves, so that a maker's notes keep their places.

    Args:
        block: from a file, with or without the mark `Exif` at its head.
        width: of the upright image, in pixels.
        height: likewise.

    Returns:
        the block without the mark, or None if it cannot be understood.
    """
    block = re.sub(rb"^(Exif\0\0)+", b"", block)
    patched = bytearray(block)
    try:
        order, wide, start = _start(block)
        rows, end = _rows(block, order, wide, start)
        if wide:
            return None
        _patch(patched, order, rows, width, height)
        for row in rows:
            if row.tag == _EXIF:
                (below,) = struct.unpack_from(f"{order}L", block, row.cell)
                with contextlib.suppress(ValueError, struct.error):  # the rest may still be of use
                    _patch(patched, order, _rows(block, order, wide, below)[0], width, height)
    except (ValueError, struct.error):
        return None
    patched[end : end + 4] = bytes(len(patched[end : end + 4]))
    return bytes(patched)


def header(order: Order, at: int) -> bytes:
    """The eight bytes that a TIFF file or an EXIF block starts with; `at`: its directory."""
    return (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HL", 42, at)


def pack(order: Order, fields: Fields, at: int) -> bytes:
    """The bytes of a directory that is to stand at `at`, with all that it points to."""
    free = at + 2 + 12 * len(fields) + 4
    rows, values = struct.pack(f"{order}H", len(fields)), b""
    for tag, (kind, content) in sorted(fields.items()):
        place = free + len(values)
        if isinstance(content, dict):
            count, cell = 1, struct.pack(f"{order}L", place)
            values += pack(order, content, place)
        elif len(content) <= 4:
            count, cell = len(content) // _SIZES[kind], content.ljust(4, b"\0")
        else:
            count, cell = len(content) // _SIZES[kind], struct.pack(f"{order}L", place)
            values += content + bytes(len(content) % 2)
        rows += struct.pack(f"{order}HHL", tag, kind, count) + cell
    return rows + bytes(4) + values


def numbers(order: Order, kind: int, *values: int) -> Field:
    """A field of whole numbers."""
    return Field(kind, struct.pack(f"{order}{len(values)}{_LETTERS[kind]}", *values))


def _start(data: bytes) -> tuple[Order, bool, int]:
    if data[:2] not in (b"II", b"MM"):
        raise ValueError("it starts with no byte order")
    order: Order = "<" if data[:2] == b"II" else ">"
    (version,) = struct.unpack_from(f"{order}H", data, 2)
    if version not in (42, 43):
        raise ValueError(f"it is of the unknown version {version}")
    wide = version == 43
    (start,) = struct.unpack_from(order + ("Q" if wide else "L"), data, 8 if wide else 4)
    return order, wide, start


def _rows(data: bytes, order: Order, wide: bool, at: int) -> tuple[list[_Row], int]:
    """The rows of a directory, and where it ends."""
    (count,) = struct.unpack_from(order + ("Q" if wide else "H"), data, at)
    at, size = (at + 8, 20) if wide else (at + 2, 12)
    if at + count * size > len(data):
        raise ValueError("it ends within its directory")
    layout = struct.Struct(order + ("HHQ" if wide else "HHL"))
    ends = at + count * size
    starts = range(at, ends, size)
    return [_Row._make((*layout.unpack_from(data, row), row + layout.size)) for row in starts], ends


def _fields(data: bytes, order: Order, wide: bool, at: int, parent: int) -> Fields:
    fields: Fields = {}
    room = len(data)
    word, letter = (8, "Q") if wide else (4, "L")
    for tag, kind, count, cell in _rows(data, order, wide, at)[0]:
        size = count * _WIDE_SIZES.get(kind, 0)
        if size > word:
            (place,) = struct.unpack_from(order + letter, data, cell)
        else:
            place = cell
        if not 0 < size <= len(data) - place:
            continue
        room -= size  # values that overlap could take more memory than any file
        if room < 0:
            break
        content: bytes | Fields = data[place : place + size]
        if tag in _BELOW.get(parent, ()):
            (below,) = struct.unpack_from(order + letter, data, cell)
            try:
                content, kind = _fields(data, order, wide, below, tag), LONG
            except (ValueError, struct.error):
                continue
        if kind in _SIZES:
            fields[tag] = Field(kind, content)
    return fields


def _patch(block: bytearray, order: Order, rows: list[_Row], width: int, height: int) -> None:
    for row in rows:
        if row.tag == ORIENTATION:
            struct.pack_into(f"{order}HLHH", block, row.cell - 6, SHORT, 1, 1, 0)
        elif row.tag in _SIDES:
            side = (width, height)[_SIDES[row.tag]]
            struct.pack_into(f"{order}HLL", block, row.cell - 6, LONG, 1, side)
