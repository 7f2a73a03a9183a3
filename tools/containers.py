"""Files in which packages keep photographs: Qt resource files (.rcc) and Edje files (.edj)."""

from __future__ import annotations

import re
import struct
import zlib

import imagecodecs

from drsformer_jax.errors import InputError, reason

_ZLIB, _FOLDER, _ZSTD = 1, 2, 4
_JPEG_START = re.compile(rb"\xff\xd8\xff")
_JPEG_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])")
"""Compressed data holds only the markers that this leaves out."""
_JPEG_END = b"\xd9"


class QtResources:
    """The files in a Qt resource file (.rcc), of format version 1 to 3.

    Args:
        content: all bytes of the file.
        name: what an error calls it.

    Raises:
        InputError: if it is damaged or no such file.
    """

    def __init__(self, content: bytes, name: str):
        self._content, self._name = content, name
        try:
            self._files = self._walk()
        except (struct.error, ValueError) as error:
            raise self._damaged(error) from error

    def read(self, member: str) -> bytes:
        """Gives the content of one file.

        Raises:
            InputError: if it is missing or damaged.
        """
        if member not in self._files:
            raise InputError(
                f"{self._name} has no {member} among its {len(self._files)} files; expected it"
            )
        flags, start = self._files[member]
        try:
            (size,) = struct.unpack_from(">I", self._content, start)
            content = self._content[start + 4 : start + 4 + size]
            if len(content) < size:
                raise ValueError(f"{len(content)} of {size} bytes are there")
            if flags & _ZSTD:
                return bytes(imagecodecs.zstd_decode(content))
            return zlib.decompress(content[4:]) if flags & _ZLIB else content
        except (struct.error, ValueError, MemoryError, zlib.error, imagecodecs.ZstdError) as error:
            raise self._damaged(error, f", {member},") from error

    def _walk(self) -> dict[str, tuple[int, int]]:
        """Finds the flags and the place of each file, by its path."""
        magic, version, tree, data, names = struct.unpack_from(">4s4I", self._content)
        if magic != b"qres" or not 1 <= version <= 3:
            raise ValueError(f"it starts with {self._content[:8]!r}")
        node_size = 14 if version == 1 else 22  # since version 2 with a time
        files, seen, waiting = {}, set(), [("", 0)]
        while waiting:
            folder, index = waiting.pop()
            if index in seen:
                raise ValueError("its tree has a node twice")
            seen.add(index)
            name, flags, count, first = struct.unpack_from(
                ">IHII", self._content, tree + index * node_size
            )
            path = folder + self._string(names + name) if index else ""
            if not flags & _FOLDER:
                files[path] = flags, data + first
            elif tree + (first + count) * node_size > len(self._content):
                raise ValueError("its tree is cut short")
            else:
                inside = f"{path}/" if index else ""
                waiting += [(inside, child) for child in range(first, first + count)]
        return files

    def _string(self, start: int) -> str:
        (length,) = struct.unpack_from(">H", self._content, start)
        text = start + 6  # behind a hash
        if text + 2 * length > len(self._content):
            raise ValueError("its names are cut short")
        return self._content[text : text + 2 * length].decode("utf-16-be")

    def _damaged(self, error: Exception, where: str = "") -> InputError:
        return InputError(
            f"{self._name}{where} is damaged ({reason(error)}); expected a Qt resource file"
        )


def largest_jpeg(content: bytes, name: str) -> bytes:
    """Gives the longest JPEG stream in a file, such as the image in an Edje file (.edj).

    Raises:
        InputError: if there is none; it calls the file `name`.
    """
    streams = (_jpeg_at(content, match.start()) for match in _JPEG_START.finditer(content))
    longest = max(streams, key=len, default=b"")
    if not longest:
        raise InputError(f"{name} holds no whole JPEG stream; expected one")
    return longest


def _jpeg_at(content: bytes, start: int) -> bytes:
    """Gives the JPEG stream that starts there; empty if it has no end."""
    place = start + 2
    while marker := _JPEG_MARKER.search(content, place):
        place = marker.end()
        if marker[1] == _JPEG_END:
            return content[start:place]
        place += int.from_bytes(content[place : place + 2])
    return b""
