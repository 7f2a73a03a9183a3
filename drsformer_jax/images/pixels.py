"""Reading and writing images safely: by content, in one step, one line for what is wrong.

An image is uint8 RGB of shape (h, w, 3) everywhere in this module.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import (
    BmpImagePlugin,
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)
from PIL.ImageFile import ImageFile

from drsformer_jax.errors import InputError
from drsformer_jax.files import write_bytes
from drsformer_jax.images.decoding import fast_pixels, is_plain_png
from drsformer_jax.images.exif import ORIENTATION

# Pillow warns of odd metadata (resolution, camera data), none of which is used here. A filter set
# once, unlike `warnings.catch_warnings`, leaves nothing to restore and so is safe with threads.
warnings.filterwarnings("ignore", module=r"PIL\.(Tiff|Png)ImagePlugin")

MAX_PIXELS = 2**27
"""Larger images are refused: 134 million pixels take 384 MiB, and cameras seldom have more."""

_READABLE = "PNG, JPEG, WebP, BMP or TIFF"
_SIGNATURES: tuple[tuple[re.Pattern[bytes], type[ImageFile]], ...] = (
    (re.compile(rb"\x89PNG\r\n\x1a\n"), PngImagePlugin.PngImageFile),
    (re.compile(rb"\xff\xd8\xff"), JpegImagePlugin.JpegImageFile),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), WebPImagePlugin.WebPImageFile),
    (re.compile(rb"BM"), BmpImagePlugin.BmpImageFile),
    (re.compile(rb"II[*+]\0|MM\0[*+]"), TiffImagePlugin.TiffImageFile),
)
_WRITERS: dict[str, tuple[str, dict[str, Any]]] = {
    # Of photographs Pillow's usual level 6 took four times as long and made files 1 % larger.
    ".png": ("PNG", {"compress_level": 1}),
    ".jpg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".jpeg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".webp": ("WEBP", {"lossless": True}),
    ".bmp": ("BMP", {}),
    ".tif": ("TIFF", {}),
    ".tiff": ("TIFF", {}),
}
EXTENSIONS = tuple(_WRITERS)
"""What the names of images end in."""
_LARGEST_SIDE = {"JPEG": 65_500, "WEBP": 16_383}
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""How an image of each EXIF orientation but 1 is turned upright."""
_TURNED = {5, 6, 7, 8}
_TO_8_BITS = ((np.arange(65536) + 128) // 257).astype(np.uint8)
"""65535 = 255 * 257, so this rounds to nearest."""


def read_image(path: str | os.PathLike[str]) -> np.ndarray:
    """Reads a PNG, JPEG, WebP, BMP or TIFF file, told by its content whatever its name.

    The EXIF orientation is applied. Gray, palette and CMYK images become RGB, transparent ones
    are laid on white, 16 bits a channel become 8, of an animation the first image is read. Color
    profiles are ignored, as the benchmarks' programs do. Safe to call from several threads.

    Args:
        path: the file.

    Returns:
        uint8 of shape (h, w, 3), RGB, writable.

    Raises:
        InputError: if the file is missing, of another format, damaged, cut short or larger than
            `MAX_PIXELS`.
    """
    with image_file(path) as file:
        return _pixels(file)


def decode_image(content: bytes, name: str) -> np.ndarray:
    """Decodes the content of an image's file, as `read_image` reads the file.

    Args:
        content: all bytes of the file.
        name: what an error calls it.

    Raises:
        InputError: as `read_image`.
    """
    with _in_one_line(name):
        return _pixels(io.BytesIO(content))


def image_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Reads the (height, width) of an image, upright, without decoding it.

    Raises:
        InputError: as `read_image`, as far as the file's head can tell.
    """
    with image_file(path) as file:
        return _size(file)


def content_size(content: bytes, name: str) -> tuple[int, int]:
    """Reads the (height, width) from the content of an image's file, as `image_size` does.

    Raises:
        InputError: as `image_size`; it calls the image `name`.
    """
    with _in_one_line(name):
        return _size(io.BytesIO(content))


@contextlib.contextmanager
def image_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Opens an image's file; whatever goes wrong with it inside becomes one line."""
    with _in_one_line(path), open(path, "rb") as file:
        yield file


@contextlib.contextmanager
def _in_one_line(name: str | os.PathLike[str]) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # decoders let errors of many kinds out of damaged files
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        reason = " ".join(reason.split()) or type(error).__name__
        raise InputError(
            f"{name} is no image that can be read ({reason}); expected {_READABLE}"
        ) from error


def open_image(file: BinaryIO) -> ImageFile:
    """Opens an image of any of the formats, not yet decoded, for use inside `image_file`."""
    file.seek(0)
    head = file.read(12)
    file.seek(0)
    # The format's class is called directly because `Image.open` has a limit on the size
    # that is one for the whole process, and warns below it. It is not told the file's name because
    # it then maps uncompressed files into memory, which garbles TIFF images that lie on a side.
    image = format_of(head)(file)
    check_size(image.width, image.height)
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        _check_covered(image)
    return image


def write_image(path: str | os.PathLike[str], image: np.ndarray) -> None:
    """Writes an image in the format that the extension names, in one step.

    JPEG is written at quality 95 without chroma subsampling, the other formats without loss.
    Folders that are missing are made. A failure or a killed process leaves `path` as it was.

    Args:
        path: a file ending in .png, .jpg, .jpeg, .webp, .bmp, .tif or .tiff.
        image: uint8 of shape (h, w, 3), RGB.

    Raises:
        InputError: if the extension is none of these, or the format has no room for the image.
        OSError: if the file system fails.
    """
    path = Path(path)
    format_name, options = encoding(path, *image.shape[:2])
    # Into memory first: Pillow writes to files by itself and does not see that a disk is full.
    write_bytes(path, _encoded(image, format_name, options))


def encode_image(image: np.ndarray, extension: str, **options: Any) -> bytes:
    """Gives the content of the file that `write_image` writes.

    Args:
        image: uint8 of shape (h, w, 3), RGB.
        extension: .png, .jpg, .jpeg, .webp, .bmp, .tif or .tiff.
        **options: of Pillow's writer, such as quality, in place of those of `write_image`.

    Raises:
        InputError: as `write_image`.
    """
    format_name, usual = encoding(Path(f"image{extension}"), *image.shape[:2])
    return _encoded(image, format_name, {**usual, **options})


def _encoded(image: np.ndarray, format_name: str, options: dict[str, Any]) -> bytes:
    content = io.BytesIO()
    Image.fromarray(image).save(content, format_name, **options)
    return content.getvalue()


def encoding(path: Path, height: int, width: int) -> tuple[str, dict[str, Any]]:
    """Gives the format that a name asks for and Pillow's options for it.

    Raises:
        InputError: if the extension is unknown, or the format has no room for such an image.
    """
    check_extension(path)
    format_name, options = _WRITERS[path.suffix.lower()]
    limit = _LARGEST_SIDE.get(format_name)
    if limit and max(height, width) > limit:
        raise InputError(
            f"{path} is {width}x{height}; expected sides of at most {limit} in {format_name}, "
            "or another format such as PNG"
        )
    return format_name, options


def check_extension(path: Path) -> None:
    """Checks that `write_image` knows the format that a name asks for.

    Raises:
        InputError: if it does not.
    """
    if path.suffix.lower() not in EXTENSIONS:
        raise InputError(
            f"{path} has the extension {path.suffix!r}; expected one of {' '.join(EXTENSIONS)}"
        )


def format_of(head: bytes) -> type[ImageFile]:
    """Tells a format from a file's first 12 bytes, for use inside `image_file`."""
    for signature, format_class in _SIGNATURES:
        if signature.match(head):
            return format_class
    raise ValueError("the file is empty" if not head else "its content is of another format")


def check_size(width: int, height: int) -> None:
    """Refuses an image larger than `MAX_PIXELS`, for use inside `image_file`."""
    if width * height > MAX_PIXELS:
        raise ValueError(f"{width}x{height} exceeds the limit of {MAX_PIXELS} pixels")


def to_8_bits(values: np.ndarray) -> np.ndarray:
    """Rounds uint16 of any shape, 0 to 65535, to the nearest uint8, 0 to 255."""
    return _TO_8_BITS[values]


def _check_covered(image: TiffImagePlugin.TiffImageFile) -> None:
    """Refuses strips or tiles that leave a part of the image out, which would become black."""
    in_planes = image.tag_v2.get(TiffImagePlugin.PLANAR_CONFIGURATION) == 2
    planes = len(image.getbands()) if in_planes else 1
    expected, found = planes * image.width * image.height, 0
    for codec, box, place, _ in image.tile:
        if codec == "libtiff":
            return  # It reads what is compressed, and looks by itself.
        left, top, right, bottom = box or (0, 0, *image.size)
        if place:
            found += (right - left) * (bottom - top)
    if found < expected:
        raise ValueError(f"its strips or tiles hold {found} of {expected} values")


def _pixels(file: BinaryIO) -> np.ndarray:
    image = open_image(file)
    pixels = fast_pixels(image, file)
    if pixels is None:
        image.load()
        pixels = np.array(_upright(image))
    return pixels


def _size(file: BinaryIO) -> tuple[int, int]:
    image = open_image(file)
    turned = not is_plain_png(image, file) and orientation_of(image) in _TURNED
    return (image.width, image.height) if turned else (image.height, image.width)


def _upright(image: Image.Image) -> Image.Image:
    # After loading, because Pillow turns TIFF images itself and then drops the tag.
    orientation = orientation_of(image)
    rgb = _to_rgb(image)
    return rgb.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else rgb


def orientation_of(image: Image.Image) -> int | None:
    """Reads the EXIF orientation, 1 to 8 where a camera wrote it."""
    try:
        return image.getexif().get(ORIENTATION)
    except Exception:  # camera data that cannot be parsed does not spoil the image
        return None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        # Pillow's own conversion clips at 255.
        return Image.fromarray(to_8_bits(np.asarray(image))).convert("RGB")
    refuse_32_bits(image)
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def refuse_32_bits(image: Image.Image) -> None:
    """Refuses an image whose values have no known white, for use inside `image_file`."""
    if image.mode in ("I", "F"):
        raise ValueError("it has 32 bits a channel, whose white is unknown; use 8 or 16")
