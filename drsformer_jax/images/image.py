"""Image files with all that must survive their restoring: transparency, depth, metadata."""

from __future__ import annotations

import io
import os
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from drsformer_jax.errors import InputError
from drsformer_jax.files import write_bytes
from drsformer_jax.images.formats import (
    XMP_ORIENTATION,
    Format,
    OpenedImage,
    check_extension,
    image_file,
    in_one_line,
    open_image,
    read_content,
)
from drsformer_jax.images.jpeg import lost_of_jpeg
from drsformer_jax.images.pixels import composite, encode, to_8_bits, to_rgb
from drsformer_jax.images.png import EXIF_KEY, TEXTS, XMP_KEY, png_chunk
from drsformer_jax.images.tiff import Tags, tiff_tags
from drsformer_jax.images.vips import pyvips

_MOST_EXIF = 65_533
"""What JPEG's marker holds at most, in bytes; libexif keeps no more in other formats either."""
_LUMA = (19595, 38470, 7471)
"""ITU-R BT.601's 0.299, 0.587, 0.114 in units of 1/65536; their sum is 1, so that gray stays."""


@dataclass(frozen=True, eq=False)
class LoadedImage:
    """An image file's content: what the network reads, and what must survive its work.

    Attributes:
        rgb: uint8 or uint16 (h, w, 3), upright; uint16 if the file has more than 8 bits a channel.
        alpha: (h, w), of the same dtype, 0 where transparent; None if the file has none.
        gray: whether the file is gray; its luma is what is written.
        metadata: by libvips' names, such as `exif-data`, `xmp-data`, `icc-profile-data` and `xres`
            (pixels a millimeter); `png` are names and bytes of chunks.
        lost: what of the file is in none of these, one line each, as "GeoTIFF tags are dropped".

    Raises:
        InputError: if the arrays do not fit each other.
    """

    rgb: np.ndarray
    alpha: np.ndarray | None = None
    gray: bool = False
    metadata: Mapping[str, Any] = field(default_factory=dict)
    lost: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        rgb, alpha = self.rgb, self.alpha
        if rgb.dtype not in (np.uint8, np.uint16) or rgb.ndim != 3 or rgb.shape[2] != 3:
            raise InputError(f"rgb is {rgb.dtype} {rgb.shape}; expected uint8 or uint16 (h, w, 3)")
        if rgb.size == 0:
            raise InputError(f"rgb is {rgb.shape}; expected at least one pixel")
        if alpha is not None and (alpha.dtype, alpha.shape) != (rgb.dtype, rgb.shape[:2]):
            raise InputError(
                f"alpha is {alpha.dtype} {alpha.shape}; expected {rgb.dtype} {rgb.shape[:2]}"
            )


def load_image(path: str | os.PathLike[str]) -> LoadedImage:
    """Reads an image file of any of the formats, recognized by its content, and its metadata.

    The orientation is applied. Palette and CMYK images become RGB, CMYK with 8 bits. Of an
    animation the first image is read. Safe to call from several threads.

    Raises:
        InputError: if the file is missing, of another format, damaged, cut short, has values whose
            white is unknown or is larger than `MAX_PIXELS`.
    """
    with image_file(path) as file:
        content = read_content(file)
    with in_one_line(path):
        opened = open_image(io.BytesIO(content))
        values = opened.decode()
        metadata, lost = _read_metadata(opened, content)
    if opened.colors == 4:
        values = to_8_bits(values)
    rgb, alpha = to_rgb(values, opened)
    return LoadedImage(rgb, alpha, opened.colors == 1, metadata, tuple(lost))


def save_image(
    path: str | os.PathLike[str],
    image: LoadedImage,
    *,
    quality: int | None = None,
    background: tuple[int, int, int] = (255, 255, 255),
) -> list[str]:
    """Writes an image in the format that the extension names, in one step, and all it can hold.

    What the format cannot hold is laid on the background (transparency in JPEG and BMP), rounded
    (16 bits but in PNG and TIFF, to 12 in AVIF, else to 8) or dropped (metadata). PNG, WebP, BMP
    and TIFF are written without loss. Folders that are missing are made. A failure or a killed
    process leaves `path` as it was.

    Args:
        path: a file whose name ends in one of `WRITABLE_EXTENSIONS`, in either case.
        image: what to write.
        quality: 1 to 100, of JPEG (default: 95), AVIF (default: 90) and WebP (default: without
            loss); other formats have no use for it.
        background: red, green and blue, 0 to 255.

    Returns:
        what could not be kept, one line each, such as "16 bits become 8".

    Raises:
        InputError: if the extension or the quality is none of these, or the format has no room for
            the image.
        OSError: if the file system fails.
    """
    path = Path(path)
    format = check_extension(path)
    name = format.name
    values, notes = _values_for(format, image, background)
    metadata = dict(image.metadata)
    if not _profile_fits(metadata.get("icc-profile-data"), image.gray and name != "WebP"):
        metadata.pop("icc-profile-data", None)
    if name != "JPEG":  # libvips would write its packets as they are into TIFF's tag for IPTC
        metadata.pop("iptc-data", None)
    if len(metadata.get("exif-data", b"")) > _MOST_EXIF:
        del metadata["exif-data"]
    chunks = b"".join(chunk for _, chunk in metadata.pop("png", ()))
    if name == "PNG" and "xmp-data" in metadata:  # which libvips writes as a text of a wrong kind
        chunks += png_chunk(b"iTXt", XMP_KEY + bytes(4) + metadata.pop("xmp-data"))
    try:
        content = encode(path, values, metadata, quality=quality)
    except InputError:
        if metadata.pop("icc-profile-data", None) is None:
            raise
        # PNG's encoder rejects profiles that others accept.
        content = encode(path, values, metadata, quality=quality)
    if name == "PNG":
        content = content[:33] + chunks + content[33:]  # behind the size
    with in_one_line(path):  # What a writer drops in silence is found by reading.
        found, _ = _read_metadata(open_image(io.BytesIO(content)), content)
        notes += _not_kept(image.metadata, found)
    write_bytes(path, content)
    return list(dict.fromkeys([*notes, *image.lost]))


def _values_for(
    format: Format, image: LoadedImage, background: tuple[int, int, int]
) -> tuple[np.ndarray, list[str]]:
    """What to write: (h, w) or (h, w, 2 to 4); and what of it is lost."""
    notes = []
    colors, alpha, backdrop = image.rgb, image.alpha, np.array([[background]], np.uint8)
    if image.gray:
        colors, backdrop = _luma(colors), _luma(backdrop)
    if colors.dtype == np.uint16 and format.bits < 16:
        notes.append(f"16 bits become {format.bits}")
        if format.bits == 8:
            colors, alpha = to_8_bits(colors), None if alpha is None else to_8_bits(alpha)
    if alpha is not None and not format.alpha:
        if alpha.min() < 255:
            color = "white" if background == (255, 255, 255) else f"the color {background}"
            notes.append(f"transparency is laid on {color}")
            colors = composite(colors, alpha, backdrop)
    elif alpha is not None:
        colors = np.dstack([colors, alpha])
    return (colors[..., 0] if colors.shape[2] == 1 else colors), notes


def _luma(rgb: np.ndarray) -> np.ndarray:
    total = np.full(rgb.shape[:2], 32768, np.uint32)
    for channel, weight in enumerate(_LUMA):
        total += rgb[..., channel] * np.uint32(weight)
    return (total >> 16).astype(rgb.dtype)[..., None]


def _profile_fits(profile: bytes | None, gray: bool) -> bool:
    # Bytes 16 to 19 of a profile's head name its colors, 36 to 39 are its mark (ICC.1, 7.2).
    return (
        profile is not None
        and profile[36:40] == b"acsp"
        and profile[16:20] == (b"GRAY" if gray else b"RGB ")
    )


_NAMES = {
    "icc-profile-data": "the ICC profile is dropped",
    "exif-data": "EXIF is dropped",
    "xmp-data": "XMP is dropped",
    "iptc-data": "IPTC is dropped",
    "image-description": "the image description is dropped",
    "xres": "the resolution is dropped",
}
"""What is kept of metadata by libvips' names, and the note where a format cannot hold it."""
_REWRITTEN = {
    *(b"IHDR", b"PLTE", b"tRNS", b"IEND", b"bKGD", b"hIST", b"sBIT", b"sPLT", b"tIME"),
    *(b"acTL", b"fcTL", b"fdAT", b"eXIf", b"iCCP", b"pHYs"),
}
"""Chunks of PNG about pixels that change, and those that libvips reads and writes."""
_COLOR = {b"gAMA", b"cHRM", b"sRGB", b"cICP", b"mDCV", b"cLLI", b"mDCv", b"cLLi"}
_USUAL_GAMMA = (45455).to_bytes(4)
_NCLX = re.compile(rb"colrnclx\0(.)\0(.)", re.DOTALL)
"""Color primaries and transfer of an AVIF file, by the numbers of ITU-T H.273."""
_SAMPLES = re.compile(rb"stsz\0{4}.{4}(.{4})", re.DOTALL)
"""The box of an AVIF file with the number of frames of an animation (ISO/IEC 14496-12, 8.7.3)."""
_STRUCTURE = {
    *(254, 255, 256, 257, 258, 259, 262, 263, 264, 265, 266, 269, 270, 273, 274, 277, 278, 279),
    *(280, 281, 282, 283, 284, 285, 288, 289, 290, 291, 292, 293, 296, 297, 305, 317, 320, 321),
    *(322, 323, 324, 325, 330, 332, 334, 338, 339, 340, 341, 347, 529, 530, 531, 532),
    *(700, 34675),
}
"""TIFF's tags of how pixels are stored, and those that libvips keeps."""
_OF_ANY_EXIF = {
    *("XResolution", "YResolution", "ResolutionUnit"),
    *("ExifVersion", "FlashpixVersion", "ColorSpace"),
}
"""What libvips reports of every EXIF block, even of one that it cannot parse."""
_CAMERA_DATA = 34665
_OF_ANY_DIRECTORY, _OF_ANY_CAMERA = {282, 283, 296, _CAMERA_DATA}, {36864, 40960, 40961}
"""The same by its numbers, in an EXIF block's first directory and in that of camera data."""
_IPTC = 33723
_GEO = {33550, 33922, 34264, 34735, 34736, 34737, 42112, 42113}
_CAMERA = {271, 272, 306, 315, 33432, 34665, 34853, 18246, 18249, *range(40091, 40096)}


def _read_metadata(opened: OpenedImage, content: bytes) -> tuple[dict[str, Any], list[str]]:
    """What is kept of a file beside its pixels, and lines about what is not."""
    lost = []
    frames = opened.frames
    if opened.format.name == "AVIF":  # libvips does not count those of an animation
        frames = max([frames, *(int.from_bytes(each[1]) for each in _SAMPLES.finditer(content))])
    if frames > 1:
        lost.append(f"only the first of {frames} images is kept")
    if not opened.format.codec:
        dpi = opened.source.info.get("dpi", (72, 72))
        return _resolution(dpi[0] / 25.4, dpi[1] / 25.4, lost), lost
    image, fields = opened.source, opened.source.get_fields()
    metadata = {name: image.get(name) for name in (*_NAMES, "yres") if name in fields}
    parsed = {name[10:] for name in fields if name.startswith("exif-ifd")} - _OF_ANY_EXIF
    if (block := metadata.pop("exif-data", None)) is not None:
        if parsed and _exif_tags(block) is not None:
            metadata["exif-data"] = _without_thumbnail(block)
        elif not _says_nothing(block):
            lost.append("EXIF that cannot be understood is dropped")
    profile = metadata.get("icc-profile-data", dict(opened.chunks).get(b"iCCP"))
    if profile is not None and not _profile_fits(profile, opened.colors == 1):
        metadata.pop("icc-profile-data", None)
        lost.append("the ICC profile is dropped")
    if "xmp-data" in metadata:
        metadata["xmp-data"] = XMP_ORIENTATION.sub(rb"\g<1>1", metadata["xmp-data"])
    resolution = metadata.pop("xres"), metadata.pop("yres")
    if opened.format.exif_resolution:
        resolution = _exif_resolution(image, "x"), _exif_resolution(image, "y")
    metadata |= _resolution(*resolution, lost)
    if opened.tags and image.bands > opened.channels:
        lost.append("channels that are not said to be alpha are dropped")
    if opened.format.name == "JPEG":
        lost += lost_of_jpeg(content)
    tags = opened.tags.keys() - _STRUCTURE
    lost += ["EXIF is dropped"] * bool(tags & _CAMERA)
    lost += ["GeoTIFF tags are dropped"] * bool(tags & _GEO)
    if opened.tags and metadata.pop("iptc-data", None):  # of which libvips reads a quarter
        lost.append("IPTC is dropped")
    if others := sorted(tags - _CAMERA - _GEO - {_IPTC}):
        lost.append(f"the TIFF tags {' '.join(map(str, others))} are dropped")
    if chunks := _chunks(opened, content, lost):
        metadata["png"] = chunks
    return metadata, lost


def _chunks(opened: OpenedImage, content: bytes, lost: list[str]) -> list[tuple[bytes, bytes]]:
    """The chunks that a PNG file must have beside those that libvips writes."""
    if opened.format.name == "AVIF" and (found := _NCLX.search(content)):
        primaries, transfer = found[1][0], found[2][0]
        if primaries not in (1, 2) or transfer not in (1, 2, 6, 13, 14, 15):
            return [(b"cICP", png_chunk(b"cICP", bytes([primaries, transfer, 0, 1])))]
    chunks = []
    for name, chunk in opened.chunks:
        if name in _REWRITTEN or chunk[8:].startswith((XMP_KEY, EXIF_KEY)):
            continue
        if name in _COLOR or name[3:].islower():  # others must not be copied to other pixels
            chunks.append((name, chunk))
        else:
            lost.append(f"the PNG chunk {name.decode('latin-1')} is dropped")
    return chunks


def _exif_tags(block: bytes, place: int | None = None) -> Tags | None:
    """Tags of the first directory of an EXIF block, or of that at a place; None if damaged."""
    try:
        return tiff_tags(io.BytesIO(block.removeprefix(b"Exif\0\0")), place)
    except ValueError:
        return None


def _says_nothing(block: bytes) -> bool:
    """Whether an EXIF block is sound, but has only what every such block has."""
    first = _exif_tags(block)
    if first is None or not first.keys() <= _OF_ANY_DIRECTORY:
        return False
    camera = _exif_tags(block, first[_CAMERA_DATA][1]) if _CAMERA_DATA in first else {}
    return camera is not None and camera.keys() <= _OF_ANY_CAMERA


def _without_thumbnail(block: bytes) -> bytes:
    """Unlinks the second directory of an EXIF block, whose thumbnail shows the rainy image."""
    block = block.removeprefix(b"Exif\0\0")
    order = "<" if block.startswith(b"II") else ">"
    try:
        (at,) = struct.unpack_from(f"{order}L", block, 4)
        (rows,) = struct.unpack_from(f"{order}H", block, at)
    except struct.error:
        return block
    end = at + 2 + 12 * rows
    return b"Exif\0\0" + block[:end] + bytes(4) + block[end + 4 :]


def _resolution(x: float, y: float, lost: list[str]) -> dict[str, float]:
    """What of pixels a millimeter is kept."""
    # As libvips has it where there is none, or as files say so.
    if round(x * 25.4, 1) in (25.4, 72) or 0 in (x, y):
        return {}
    if not all(0.01 <= value <= 10_000 for value in (x, y)):
        lost.append(_NAMES["xres"])
        return {}
    return {"xres": x, "yres": y}


def _exif_resolution(image: Any, axis: str) -> float:
    """Pixels a millimeter along x or y, which libvips has of JPEG alone."""
    try:
        numerator, denominator = (
            image.get(f"exif-ifd0-{axis.upper()}Resolution").split()[0].split("/")
        )
        unit = image.get("exif-ifd0-ResolutionUnit")[0]
        if unit == "1":  # The shape of pixels alone.
            return 1.0
        return int(numerator) / int(denominator) / (10 if unit == "3" else 25.4)
    except (pyvips.Error, ValueError, ZeroDivisionError):
        return float(image.get(f"{axis}res"))


def _not_kept(source: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """Lines about what a written file lacks of what it should have."""
    notes = [line for name, line in _NAMES.items() if name in source and name not in found]
    if "exif-data" in source and "exif-data" in found:
        before, after = (_exif_tags(each["exif-data"]) or {} for each in (source, found))
        if missing := sorted(before.keys() - after.keys()):
            notes.append(f"the EXIF tags {' '.join(map(str, missing))} are dropped")
    if "png" in source and "png" not in found:
        chunks = dict(source["png"])
        usual = chunks.keys() & {b"sRGB", b"cICP"} or "icc-profile-data" in source
        if usual or chunks.get(b"gAMA", b"")[8:-4] == _USUAL_GAMMA:
            chunks = {n: chunk for n, chunk in chunks.items() if n not in (b"gAMA", b"cHRM")}
        chunks.pop(b"sRGB", None)
        if names := chunks.keys() - set(TEXTS):
            dropped = " ".join(sorted(name.decode("latin-1") for name in names))
            notes.append(f"the PNG chunks {dropped} are dropped")
        if chunks.keys() & set(TEXTS):
            notes.append("PNG text is dropped")
    return notes
