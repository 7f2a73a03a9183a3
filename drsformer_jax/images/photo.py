"""Image files with all that must survive their restoring: transparency, depth, camera data.

Pillow reads and writes what has 8 bits a channel, imagecodecs (libpng, libtiff) what has 16.
"""

from __future__ import annotations

import io
import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import imagecodecs
import numpy as np
from PIL import Image, PngImagePlugin, TiffImagePlugin
from PIL.ImageFile import ImageFile

from drsformer_jax.errors import InputError
from drsformer_jax.files import write_bytes
from drsformer_jax.images import exif, tiff
from drsformer_jax.images.pixels import (
    UPRIGHT,
    encoding,
    format_of,
    image_file,
    open_image,
    orientation_of,
    refuse_32_bits,
    to_8_bits,
)

_PNG_HEAD = 33  # bytes of the signature and the first chunk, which tells size and depth
_PNG_DEPTH = 24  # where the depth stands in it
_JPEG_EXIF, _JPEG_PROFILE = 65_533 - 6, 255 * 65_519
"""What JPEG's markers hold at most, in bytes."""
_LUMA = (19595, 38470, 7471)
"""ITU-R BT.601's 0.299, 0.587, 0.114 in units of 1/65536; their sum is 1, so that gray stays."""


@dataclass(frozen=True, eq=False)
class Photo:
    """An image file's content: what the network reads, and what must survive its work.

    Attributes:
        rgb: uint8 or uint16 (h, w, 3), upright; uint16 if the file has 16 bits a channel.
        alpha: (h, w), of the same type, 0 where transparent; None if the file has none.
        gray: whether the file is gray; its luma is what is written.
        icc_profile: the profile that the values of `rgb`, or of its luma, are meant in.
        exif: the camera's data from the byte order on, orientation 1.
        frames: images or pages in the file, of which this is the first.

    Raises:
        InputError: if the arrays do not fit each other.
    """

    rgb: np.ndarray
    alpha: np.ndarray | None = None
    gray: bool = False
    icc_profile: bytes | None = None
    exif: bytes | None = None
    frames: int = 1

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


class _Planes(NamedTuple):
    """The pixels of a `Photo`."""

    rgb: np.ndarray
    alpha: np.ndarray | None
    gray: bool


def read_photo(path: str | os.PathLike[str]) -> Photo:
    """Reads a PNG, JPEG, WebP, BMP or TIFF file, told by its content whatever its name.

    The EXIF orientation is applied. Palette and CMYK images become RGB and CMYK profiles are
    dropped; CMYK of 16 bits is read with 8. Of an animation the first image is read. Safe to call
    from several threads.

    Raises:
        InputError: if the file is missing, of another format, damaged, cut short, has 32 bits a
            channel or is larger than `images.MAX_PIXELS`.
    """
    with image_file(path) as file:
        head = file.read(_PNG_HEAD)
        format_class = format_of(head)
        if format_class is TiffImagePlugin.TiffImageFile:
            return _read_tiff(file)
        image = open_image(file)
        frames = _frames(image)
        image.load()
        orientation = orientation_of(image)
        if format_class is PngImagePlugin.PngImageFile and head[_PNG_DEPTH] == 16:
            planes = _deep(imagecodecs.png_decode(_bare_png(file)), orientation)
        else:
            if format_class is PngImagePlugin.PngImageFile:
                _mend_transparency(image, head)
            planes = _shallow(image, orientation)
        return _photo(planes, image.info.get("icc_profile"), _exif_of(image), frames)


def write_photo(
    path: str | os.PathLike[str],
    photo: Photo,
    *,
    quality: int | None = None,
    background: tuple[int, int, int] = (255, 255, 255),
) -> list[str]:
    """Writes an image in the format that the extension names, in one step, and all it can hold.

    What the format cannot hold is laid on the background (transparency in JPEG and BMP), rounded to
    8 bits (16 bits but in PNG and TIFF) or dropped (a profile for other than the written colors,
    camera data in BMP). PNG, WebP, BMP and TIFF are written without loss. Folders that are missing
    are made. A failure or a killed process leaves `path` as it was.

    Args:
        path: a file ending in .png, .jpg, .jpeg, .webp, .bmp, .tif or .tiff.
        photo: what to write.
        quality: 1 to 100, of JPEG (95 by default, never with chroma subsampling) and WebP (without
            loss by default); other formats have no use for it.
        background: red, green and blue, 0 to 255.

    Returns:
        what could not be kept, one line each, such as "16 bits become 8".

    Raises:
        InputError: if the extension or the quality is none of these, or the format has no room for
            the image.
        OSError: if the file system fails.
    """
    path = Path(path)
    format_name, options = encoding(path, *photo.rgb.shape[:2])
    if quality is not None and not 1 <= quality <= 100:
        raise InputError(f"quality is {quality}; expected 1 to 100")
    pixels, lost = _pixels_for(format_name, photo, background)
    profile, block, dropped = _data_for(format_name, photo)
    # Into memory first: Pillow writes to files by itself and does not see that a disk is full.
    file = io.BytesIO()
    if format_name == "TIFF":
        tiff.write(file, pixels, profile, block)
    elif pixels.dtype == np.uint16:
        _write_deep_png(file, pixels, profile, block)
    else:
        kept: dict[str, Any] = dict(options)
        if profile:
            kept["icc_profile"] = profile
        if block:
            kept["exif"] = b"Exif\0\0" + block
        if format_name == "WEBP":
            # `exact` keeps the colors below what is fully transparent.
            kept |= {"exact": True} if quality is None else {"lossless": False}
        if quality is not None and format_name in ("JPEG", "WEBP"):
            kept["quality"] = quality
        Image.fromarray(pixels).save(file, format_name, **kept)
    write_bytes(path, file.getbuffer())
    further = [f"only the first of {photo.frames} images is kept"] if photo.frames > 1 else []
    return lost + dropped + further


def _read_tiff(file: BinaryIO) -> Photo:
    file.seek(0)
    data = file.read()
    directory = exif.read_directory(data)
    pixels, frames = tiff.deep_pixels(data, directory), 1
    if pixels is None:
        image = open_image(file)
        frames = _frames(image)
        image.load()
        planes = _shallow(image, orientation_of(image))  # none: Pillow turns TIFF images itself
    else:
        planes = _deep(pixels, directory.number(exif.ORIENTATION, 1))
    _, profile = directory.fields.get(exif.PROFILE, (0, None))
    if not isinstance(profile, bytes):
        profile = None
    return _photo(planes, profile, directory.block(), frames)


def _frames(image: ImageFile) -> int:
    try:
        return getattr(image, "n_frames", 1)
    except Exception:  # damage behind the first image does not spoil it
        return 1


def _bare_png(file: BinaryIO) -> bytes:
    """A PNG file's pixels and transparency, without what libpng would print warnings about."""
    file.seek(0)
    data = file.read()
    parts, at = [data[:8]], 8
    while at + 8 <= len(data):
        length, name = struct.unpack_from(">L4s", data, at)
        if name in (b"IHDR", b"tRNS", b"IDAT", b"IEND"):
            parts.append(data[at : at + 12 + length])
        at += 12 + length
    return b"".join(parts)


def _mend_transparency(image: ImageFile, head: bytes) -> None:
    # Pillow scales grays of less than 8 bits, but in many versions not the transparent one.
    depth, color_type = head[_PNG_DEPTH : _PNG_DEPTH + 2]
    key = image.info.get("transparency")
    if depth < 8 and color_type == 0 and isinstance(key, int) and key < 2**depth:
        image.info["transparency"] = key * 255 // (2**depth - 1)


def _shallow(image: Image.Image, orientation: int | None) -> _Planes:
    refuse_32_bits(image)
    if image.mode.startswith("I;16"):
        raise ValueError("it has more than 8 bits a channel but not 16")
    gray = image.mode in ("1", "L", "LA", "La")
    if image.has_transparency_data:
        image = image.convert("LA" if gray else "RGBA")
    if orientation in UPRIGHT:
        image = image.transpose(UPRIGHT[orientation])
    alpha = np.array(image.getchannel("A")) if image.mode in ("LA", "RGBA") else None
    rgb = image if image.mode == "RGB" else image.convert("RGB")  # which would copy
    return _Planes(np.array(rgb), alpha, gray)


def _deep(pixels: np.ndarray, orientation: int | None) -> _Planes:
    planes = list(np.moveaxis(np.atleast_3d(pixels), 2, 0))
    if orientation in UPRIGHT:
        turn = UPRIGHT[orientation]
        planes = [np.array(Image.fromarray(plane.copy()).transpose(turn)) for plane in planes]
    gray = len(planes) < 3
    alpha = planes[-1].copy() if len(planes) % 2 == 0 else None
    return _Planes(np.stack(planes[:1] * 3 if gray else planes[:3], axis=-1), alpha, gray)


def _exif_of(image: ImageFile) -> bytes | None:
    # The text is how ImageMagick wrote it before PNG had a chunk for it: a name, a length and
    # hexadecimal digits.
    text = image.info.get("Raw profile type exif")
    if "exif" in image.info or text is None:
        return image.info.get("exif")
    try:
        return bytes.fromhex("".join(text.split("\n")[3:]))
    except ValueError:
        return None


def _photo(planes: _Planes, profile: bytes | None, block: bytes | None, frames: int) -> Photo:
    height, width, _ = planes.rgb.shape
    return Photo(
        *planes,
        icc_profile=profile if _profile_fits(profile, planes.gray) else None,
        exif=exif.upright(block, width, height) if block else None,
        frames=frames,
    )


def _profile_fits(profile: bytes | None, gray: bool) -> bool:
    # Bytes 16 to 19 of a profile's head name its colors, 36 to 39 are its mark (ICC.1, 7.2).
    return (
        profile is not None
        and profile[36:40] == b"acsp"
        and profile[16:20] == (b"GRAY" if gray else b"RGB ")
    )


def _pixels_for(
    format_name: str, photo: Photo, background: tuple[int, int, int]
) -> tuple[np.ndarray, list[str]]:
    """What to write: (h, w) or (h, w, 2 to 4); and what of it is lost."""
    lost = []
    pixels, alpha, paper = photo.rgb, photo.alpha, np.array([[background]], np.uint8)
    if photo.gray:
        pixels, paper = _luma(pixels), _luma(paper)
    if pixels.dtype == np.uint16 and format_name not in ("PNG", "TIFF"):
        pixels = to_8_bits(pixels)
        alpha = None if alpha is None else to_8_bits(alpha)
        lost.append("16 bits become 8")
    if alpha is not None and format_name in ("JPEG", "BMP"):
        if alpha.min() < 255:
            name = "white" if background == (255, 255, 255) else f"the color {background}"
            lost.append(f"transparency is laid on {name}")
            pixels = _laid_on(paper, pixels, alpha)
    elif alpha is not None:
        pixels = np.dstack([pixels, alpha])
    return pixels, lost


def _luma(rgb: np.ndarray) -> np.ndarray:
    total = np.full(rgb.shape[:2], 32768, np.uint32)
    for channel, weight in enumerate(_LUMA):
        total += rgb[..., channel] * np.uint32(weight)
    return (total >> 16).astype(rgb.dtype)


def _laid_on(paper: np.ndarray, pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    weight = alpha.reshape(alpha.shape + (1,) * (pixels.ndim - 2)).astype(np.uint16)
    total = pixels * weight  # at most 255 * 255 in all, and the half that rounds
    total += paper * (255 - weight)
    total += 127
    return (total // 255).astype(np.uint8)


def _data_for(format_name: str, photo: Photo) -> tuple[bytes | None, bytes | None, list[str]]:
    """The profile and the camera's data as the format holds them; and what is dropped."""
    profile, block, dropped = photo.icc_profile, photo.exif, []
    written_gray = photo.gray and format_name != "WEBP"
    if profile is not None and (
        format_name == "BMP"
        or not _profile_fits(profile, written_gray)
        or (format_name == "JPEG" and len(profile) > _JPEG_PROFILE)
    ):
        profile = None
        dropped.append("the ICC profile is dropped")
    if block is not None and (
        format_name == "BMP" or (format_name == "JPEG" and len(block) > _JPEG_EXIF)
    ):
        block = None
        dropped.append("EXIF is dropped")
    return profile, block, dropped


def _write_deep_png(
    file: BinaryIO, pixels: np.ndarray, profile: bytes | None, block: bytes | None
) -> None:
    # Of photographs libpng's defaults took three times as long and made files 10 % larger.
    data = imagecodecs.png_encode(pixels, level=1, filter=imagecodecs.PNG.FILTER.SUB)
    file.write(data[:_PNG_HEAD])
    if profile:
        file.write(_chunk(b"iCCP", b"ICC Profile\0\0" + zlib.compress(profile)))
    if block:
        file.write(_chunk(b"eXIf", block))
    file.write(memoryview(data)[_PNG_HEAD:])


def _chunk(name: bytes, content: bytes) -> bytes:
    check = zlib.crc32(name + content)
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", check)
