"""Chunks of PNG files, which hold what libvips does not hand on."""

from __future__ import annotations

import io
import struct
import zlib
from typing import BinaryIO

TEXTS = (b"tEXt", b"zTXt", b"iTXt")
XMP_KEY, EXIF_KEY = b"XML:com.adobe.xmp\0", b"Raw profile type exif\0"
_EMPTY = b"\0\0\0\0IDAT\x35\xaf\x06\x1e"
_MOST_CHUNKS, _LEAST_CHUNK = 10_000, 1024
"""More chunks than the first are read of a file if each has so many bytes on the mean."""


def png_chunk(name: bytes, data: bytes) -> bytes:
    """A chunk of a PNG file: length, name, data, checksum."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def read_png(file: BinaryIO) -> tuple[bytes, tuple[tuple[bytes, bytes], ...]]:
    """Gives what libvips is to read, and all chunks but the pixels.

    Of a file that is not in memory the pixels are left out. libvips reads no chunk behind the
    pixels, where ExifTool writes XMP. Texts are kept from it since it changes their letters.

    Raises:
        ValueError: if the file is made of tiny chunks, which would take minutes and gigabytes.
    """
    chunks, pixels, at, odd, count = [], [], 8, False, 0
    while len(head := read_at(file, at, 8)) == 8:
        length, name = struct.unpack(">I4s", head)
        end = at + 12 + length
        count += 1
        if count > _MOST_CHUNKS + at // _LEAST_CHUNK:
            raise ValueError(f"it has {count:,} chunks in {at:,} bytes")
        if name == b"IDAT":
            pixels += [at, end]
        else:
            chunk = read_at(file, at, end - at)
            odd |= name in TEXTS or (bool(pixels) and name != b"IEND")
            chunks.append((name, chunk))
        at = end
        if name == b"IEND":
            break
    if isinstance(file, io.BytesIO) and not odd:
        return file.getvalue(), tuple(chunks)
    names = {name for name, _ in chunks}
    parts = [read_at(file, 0, 8)]
    for name, chunk in chunks:
        if name not in (*TEXTS, b"IEND") or chunk[8:].startswith(XMP_KEY):
            parts.append(chunk)
        elif b"eXIf" not in names and (block := _exif_in_text(chunk[8:-4])):
            parts.append(png_chunk(b"eXIf", block))
    if isinstance(file, io.BytesIO) and pixels:
        parts.append(file.getvalue()[pixels[0] : pixels[-1]])
    else:
        parts.append(_EMPTY)
    parts += [chunk for name, chunk in chunks if name == b"IEND"]
    return b"".join(parts), tuple(chunks)


def read_at(file: BinaryIO, at: int, count: int) -> bytes:
    """Reads at most `count` bytes at a place."""
    rest = max(0, file.seek(0, io.SEEK_END) - at)
    file.seek(at)
    return file.read(min(count, rest))  # Damaged lengths would take as much memory.


def _exif_in_text(text: bytes) -> bytes:
    # How ImageMagick wrote it before PNG had a chunk for it: a name, a length and hexadecimal
    # digits, each on a line of its own.
    if not text.startswith(EXIF_KEY):
        return b""
    value = text.removeprefix(EXIF_KEY)
    try:
        if value.startswith(b"\0"):
            value = zlib.decompressobj().decompress(value[1:], 2**20)
        return bytes.fromhex("".join(value.decode("ascii").split("\n")[3:]))[6:]
    except (ValueError, zlib.error):
        return b""
