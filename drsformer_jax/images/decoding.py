"""A faster way to the pixels of ordinary PNG and JPEG files, equal to Pillow's in every value.

Pillow reads the head of each file and has the last word: whatever is unusual, damaged or unknown
here is left to it. PNG is inflated by libdeflate, which is twice as fast as zlib, and its rows'
filters are undone by libpng; JPEG is decoded by libjpeg-turbo straight into the array.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
from PIL import JpegImagePlugin, PngImagePlugin
from PIL.ImageFile import ImageFile

_END = b"\0\0\0\0IEND\xae\x42\x60\x82"
_PLAIN_RGB = b"\x08\x02\0\0\0"
"""Of IHDR: 8 bits, red green blue, deflate, the five filters, rows in order."""
_HARMLESS = {
    *("dpi", "aspect", "gamma", "chromaticity", "srgb", "icc_profile"),
    *("Author", "Comment", "Copyright", "Creation Time", "Description", "Software", "Source"),
    *("Title", "date:create", "date:modify", "date:timestamp"),
}
"""What Pillow may know of a PNG file without its pixels depending on it. Any other text might hold
an orientation, or be taken by Pillow for transparency or interlacing."""
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
"""Of JPEG's markers those that end a scan: not restarts, fill bytes and values of 255."""
_TAIL = 2**16
"""Bytes behind the pixels that are looked through."""


def fast_pixels(image: ImageFile, file: BinaryIO) -> np.ndarray | None:
    """Decodes an ordinary image of 8 bits a channel that needs no turning.

    Args:
        image: the image, opened but not loaded, its size already checked.
        file: what it was opened from; its position is kept.

    Returns:
        uint8 of shape (h, w, 3), writable, equal to what Pillow makes of it; None if Pillow must be
        asked.
    """
    if type(image) not in _DECODERS or image.mode != "RGB":
        return None
    place = file.tell()
    try:
        return _DECODERS[type(image)](image, _content(file), place)
    except Exception:  # Pillow finds out what is wrong, or that nothing is.
        return None


def is_plain_png(image: ImageFile, file: BinaryIO) -> bool:
    """Whether an image is a PNG file without an orientation, as far as its chunks' names tell.

    Pillow would have to decode it to find that out. Takes what `fast_pixels` takes.
    """
    if not isinstance(image, PngImagePlugin.PngImageFile) or image.info.keys() - _HARMLESS:
        return False
    try:
        return _compressed(_content(file)) is not None
    except ValueError:
        return False


def _content(file: BinaryIO) -> bytes:
    place = file.tell()
    file.seek(0)
    content = file.read()
    file.seek(place)
    return content


def _png(image: ImageFile, content: bytes, _: int) -> np.ndarray | None:
    import imagecodecs  # here, so that without it Pillow does all the work

    if image.info.keys() - _HARMLESS or content[24:29] != _PLAIN_RGB:
        return None
    compressed = _compressed(content)
    if compressed is None:
        return None
    size = image.height * (1 + 3 * image.width)  # each row has its filter's number before it
    rows = imagecodecs.deflate_decode(compressed, out=size)  # which checks the checksum
    if len(rows) != size:
        return None
    data = [b"IDAT", *_stored(rows)]
    length = struct.pack(">I", sum(map(len, data)) - 4)
    check = 0
    for part in data:
        check = zlib.crc32(part, check)
    # libpng gets what it needs alone, because it prints warnings of what is odd.
    plain = b"".join([content[:33], length, *data, struct.pack(">I", check), _END])
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    imagecodecs.png_decode(plain, out=pixels)
    return pixels


def _stored(data: bytes | bytearray) -> list[bytes | memoryview]:
    """Parts of a zlib stream that holds `data` uncompressed (RFC 1950, and RFC 1951, 3.2.4)."""
    parts: list[bytes | memoryview] = [b"\x78\x01"]
    for start in range(0, len(data), 65535):
        block = memoryview(data)[start : start + 65535]
        is_last = start + 65535 >= len(data)
        parts += [struct.pack("<BHH", is_last, len(block), len(block) ^ 0xFFFF), block]
    return [*parts, struct.pack(">I", zlib.adler32(data))]


def _compressed(content: bytes) -> bytes | None:
    """What the IDAT chunks hold; None unless they are in a row and harmless ones follow."""
    parts, end = [], 0
    for name, start, stop in _chunks(content):
        if name == b"IDAT":
            if end not in (0, start):
                return None
            parts.append(content[start + 8 : stop - 4])
            end = stop
        elif end and not _harmless(name, content[start + 8 : stop - 4]):
            return None
    return b"".join(parts) if len(content) - end <= _TAIL else None


def _harmless(name: bytes, data: bytes) -> bool:
    keyword = data.split(b"\0")[0].decode("latin-1")
    return name in (b"IEND", b"tIME") or (name == b"tEXt" and keyword in _HARMLESS)


def _chunks(content: bytes) -> Iterator[tuple[bytes, int, int]]:
    """The name of each chunk and where it starts and stops.

    Raises:
        ValueError: unless the file ends with its last chunk.
    """
    start = 8  # behind the signature
    name = b""
    while start + 12 <= len(content):
        length, name = struct.unpack_from(">I4s", content, start)
        yield name, start, start + 12 + length
        start += 12 + length
        if name == b"IEND":
            break
    if name != b"IEND" or start != len(content):
        raise ValueError("cut short, or followed by something else")


def _jpeg(image: ImageFile, content: bytes, scan: int) -> np.ndarray | None:
    import imagecodecs

    if image.info.keys() & {"exif", "xmp"}:  # which may ask for the image to be turned
        return None
    # imagecodecs fills what is missing with gray. With the end marker in place, and no other marker
    # between, nothing is missing; of progressive files that is not as easy to tell.
    marker = _MARKER.search(content, scan)
    if marker is None or content[marker.start() :] != b"\xff\xd9":
        return None
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    imagecodecs.jpeg8_decode(content, out=pixels)
    return pixels


_DECODERS = {PngImagePlugin.PngImageFile: _png, JpegImagePlugin.JpegImageFile: _jpeg}
