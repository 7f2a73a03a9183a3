"""Tags of TIFF files, and what they tell of images that libvips reads wrongly."""

from __future__ import annotations

import struct
from typing import BinaryIO

from drsformer_jax.images.png import read_at
from drsformer_jax.images.vips import pyvips

EXTRA, ASSOCIATED = 338, 1
"""The tag of channels beside the colors, and its value for alpha that colors are multiplied by."""
_KIND, _COMPRESSION, _PHOTOMETRIC, _DNG_VERSION = 254, 259, 262, 50706
_PLANAR, _STRIPS, _TILES = 284, 273, 324
_ROWS, _TILE_WIDTH, _TILE_HEIGHT = 278, 322, 323
_GRAY, _YCBCR, _JPEG = (0, 1), 6, (6, 7)
"""Values of `_PHOTOMETRIC` and of `_COMPRESSION`."""
_TYPES = range(1, 19)
"""Types of values, those of BigTIFF included."""
_LETTERS = {3: "H", 4: "L", 16: "Q"}
Tags = dict[int, tuple[int, int]]
"""Of a TIFF file: how many values each tag has, and the first if it is in the directory."""


def tiff_tags(file: BinaryIO, place: int | None = None) -> Tags:
    """Reads a directory of a TIFF file, or of an EXIF block, which has its structure.

    Args:
        file: the file or block.
        place: where the directory is; default: the first one.

    Raises:
        ValueError: if it is damaged.
    """
    head = read_at(file, 0, 16)
    order, wide = ("<" if head[:2] == b"II" else ">"), head[2:4] in (b"+\0", b"\0+")
    count, number = ("Q", "Q") if wide else ("H", "L")
    row = struct.Struct(f"{order}HH{number}8s" if wide else f"{order}HH{number}4s")
    tags = {}
    try:
        (first,) = struct.unpack_from(order + number, head, 8 if wide else 4)
        at, start = first if place is None else place, struct.calcsize(count)
        (rows,) = struct.unpack(order + count, read_at(file, at, start))
        directory = read_at(file, at + start, min(rows, 2**16) * row.size)
        for tag, kind, values, cell in row.iter_unpack(directory):
            if kind not in _TYPES:  # Readers skip what they do not know (TIFF 6.0, section 2).
                continue
            tags[tag] = values, struct.unpack_from(order + _LETTERS.get(kind, "B"), cell)[0]
    except struct.error:
        raise ValueError("its directory of tags is damaged") from None
    return tags


def check_kind(image: pyvips.Image, tags: Tags) -> None:
    """Rejects images that libvips reads, but not as what they show.

    Raises:
        ValueError: says what the file holds.
    """
    if tags.get(_KIND, (1, 0))[1] & 1:
        raise ValueError(
            "its first image is a thumbnail, as in camera raw files; use a developed image"
        )
    if _DNG_VERSION in tags:
        raise ValueError("it is a camera raw file; use a developed image")
    photometric = tags.get(_PHOTOMETRIC, (1, None))[1]
    if photometric in _GRAY and image.bands > 2:
        raise ValueError(f"its {image.bands} channels are said to be gray; use RGB")
    if photometric == _YCBCR and tags.get(_COMPRESSION, (1, 1))[1] not in _JPEG:
        raise ValueError("its colors are YCbCr without JPEG; use RGB")


def check_covered(image: pyvips.Image, tags: Tags) -> None:
    """Rejects strips or tiles that leave a part of the image out, which would become black.

    Raises:
        ValueError: says how many are missing.
    """
    height = tags.get(_TILE_HEIGHT, tags.get(_ROWS, (1, image.height)))[1]
    width = tags.get(_TILE_WIDTH, (1, image.width))[1]
    parts = -(-image.height // max(height, 1)) * -(-image.width // max(width, 1))
    if tags.get(_PLANAR, (1, 1))[1] == 2:
        parts *= image.bands
        if image.bands == 2:  # libvips 8.18 mixes them up
            raise ValueError("its gray and alpha are in separate planes")
    found = tags.get(_TILES if _TILE_WIDTH in tags else _STRIPS, (0, 0))[0]
    if found < parts:
        raise ValueError(f"it has {found} of its {parts} strips or tiles")
