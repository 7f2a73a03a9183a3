"""Segments of JPEG files, which hold what libvips does not hand on."""

from __future__ import annotations

import re

_MARKER = re.compile(rb"\xff([^\0\xd0-\xd7\xff])", re.DOTALL)
"""Any number of 0xFF before a marker fills space; among pixels 0 or a restart number follows it."""
_IMAGE = re.compile(rb"[\0\xff]*?(?=\xff\xd8\xff)", re.DOTALL)
_END, _NO_LENGTH = b"\xd9", (b"\x01", b"\xd8")
_BESIDE = "images beside the main one, such as an HDR gain map, are dropped"
_STARTS = (
    (b"\xfe", b"", "the JPEG comment is dropped"),
    (b"\xe1", b"http://ns.adobe.com/xmp/extension/\0", "extended XMP is dropped"),
    (b"\xe2", b"MPF\0", _BESIDE),
    (b"\xeb", b"JP", "JUMBF, such as Content Credentials (C2PA), is dropped"),
)
"""Marker and start of segments that are dropped, and the line that says so."""


def lost_of_jpeg(content: bytes) -> list[str]:
    """Lines about what a JPEG file holds beside one image and what libvips reads of its data."""
    lost: dict[str, None] = {}
    end = _read(content, 0, lost)
    while image := _IMAGE.match(content, end):
        lost[_BESIDE] = None
        end = _read(content, image.end(), {})
    if content[end:].strip(b"\0\xff\r\n\t "):
        lost["data behind the image, such as the video of a motion photo, is dropped"] = None
    return list(lost)


def _read(content: bytes, at: int, lost: dict[str, None]) -> int:
    """Adds lines about an image's segments, and gives where the image ends."""
    at += 2
    while marker := _MARKER.search(content, at):
        kind, at = marker[1], marker.end()
        if kind == _END:
            return at
        if kind in _NO_LENGTH:
            continue
        for each, start, line in _STARTS:
            if each == kind and content.startswith(start, at + 2):
                lost[line] = None
        at += int.from_bytes(content[at : at + 2])
    return len(content)
