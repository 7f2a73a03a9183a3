"""Formats of image files: how each is recognized, opened by libvips without decoding, and named.

BMP, for which the binary of libvips has no codec, is read and written by Pillow.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import BmpImagePlugin

from drsformer_jax.errors import InputError
from drsformer_jax.images.png import read_png
from drsformer_jax.images.tiff import ASSOCIATED, EXTRA, Tags, check_covered, check_kind, tiff_tags
from drsformer_jax.images.vips import pyvips

MAX_PIXELS = 2**27
"""Larger images are rejected: 134 million pixels take 384 MiB, and cameras seldom have more."""


_LARGE_FILE, _LARGEST_FILE = 2**26, 2**32
"""Bytes of files whose head is read first, and that are read at all: `MAX_PIXELS` take 2**30."""


class Format(NamedTuple):
    """How files of one format are recognized, opened and written, and what they can hold.

    Attributes:
        name: of the format, also Pillow's.
        signature: what a file of it begins with.
        codec: begins the names of libvips' operations; Pillow is used if it is empty.
        extensions: of files, in lower case; the first one is the usual one.
        options: of libvips' writer; None if the format is only read.
        largest_side: in pixels.
        quality_options: options that change when a quality is given; None if it has no quality.
        bits: most bits a channel that are written.
        alpha: whether it can hold alpha.
        exif_resolution: whether the resolution is in EXIF.
    """

    name: str
    signature: re.Pattern[bytes]
    codec: str
    extensions: tuple[str, ...]
    options: dict[str, Any] | None
    largest_side: int = 2**31 - 1
    quality_options: dict[str, Any] | None = None
    bits: int = 8
    alpha: bool = True
    exif_resolution: bool = False


def _signature(pattern: bytes) -> re.Pattern[bytes]:
    return re.compile(pattern, re.DOTALL)


FORMATS = (
    Format(
        "PNG",
        _signature(rb"\x89PNG\r\n\x1a\n"),
        "png",
        (".png",),
        # Level 2 takes as long as level 1 and makes files a third smaller; level 6 gains 1 % more.
        {"compression": 2, "filter": "up"},
        bits=16,
    ),
    Format(
        "JPEG",
        _signature(rb"\xff\xd8\xff"),
        "jpeg",
        (".jpg", ".jpeg", ".jpe", ".jfif", ".jif"),
        {"Q": 95, "subsample_mode": "off"},
        largest_side=65_500,
        quality_options={},
        alpha=False,
        exif_resolution=True,
    ),
    Format(
        "WebP",
        _signature(rb"RIFF....WEBP"),
        "webp",
        (".webp",),
        {"lossless": True, "exact": True},
        largest_side=16_383,
        quality_options={"lossless": False},
        exif_resolution=True,
    ),
    Format("BMP", _signature(rb"BM"), "", (".bmp",), {}, alpha=False),
    Format("TIFF", _signature(rb"II[*+]\0|MM\0[*+]"), "tiff", (".tif", ".tiff"), {}, bits=16),
    Format(
        "AVIF",
        _signature(rb"....ftyp(avi|mif1|msf1|hei|hev)"),
        "heif",
        (".avif",),
        {"Q": 90, "subsample_mode": "off", "compression": "av1", "effort": 2},
        largest_side=16_384,
        quality_options={},
        bits=12,
        exif_resolution=True,
    ),
    Format("GIF", _signature(rb"GIF8[79]a"), "gif", (".gif",), None),
)
EXTENSIONS = tuple(each for format in FORMATS for each in format.extensions)
"""What the names of images end in, in lower case."""
WRITABLE_EXTENSIONS = tuple(
    each for format in FORMATS if format.options is not None for each in format.extensions
)
"""Those of the formats that can be written."""
_READABLE = ", ".join(format.name for format in FORMATS[:-1]) + f" or {FORMATS[-1].name}"

UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda values: values[:, ::-1],
    3: lambda values: values[::-1, ::-1],
    4: lambda values: values[::-1],
    5: lambda values: values.swapaxes(0, 1),
    6: lambda values: values[::-1].swapaxes(0, 1),
    7: lambda values: values[::-1, ::-1].swapaxes(0, 1),
    8: lambda values: values[:, ::-1].swapaxes(0, 1),
}
"""How values (h, w, ...) of each EXIF orientation but 1 are turned upright."""
XMP_ORIENTATION = re.compile(rb"(tiff:Orientation(?:>|=[\"']))([1-8])")


class UnreadableError(Exception):
    """Why a file cannot be read."""


class OpenedImage(NamedTuple):
    """An image whose head is read.

    `colors` are 1 (gray), 3 (RGB) or 4 (CMYK), `channels` with alpha; `frames` are images in the
    file; `tags` those of TIFF, `chunks` names and bytes of those of PNG, but its pixels.
    """

    format: Format
    source: Any
    """`pyvips.Image`, or Pillow's of BMP."""
    width: int
    height: int
    colors: int
    channels: int
    orientation: int
    frames: int = 1
    tags: Mapping[int, tuple[int, int]] = {}
    chunks: tuple[tuple[bytes, bytes], ...] = ()

    @property
    def size(self) -> tuple[int, int]:
        """(height, width), upright."""
        size = (self.height, self.width)
        return size[::-1] if self.orientation > 4 else size

    def decode(self) -> np.ndarray:
        """Gives uint8 or uint16 (h, w, channels), upright and writable."""
        if self.format.codec:
            buffer = self.source.write_to_memory()
            dtype = np.uint8 if self.source.format == "uchar" else np.uint16
            values = np.frombuffer(buffer, dtype).reshape(self.height, self.width, -1)
        else:
            with _unreadable():
                self.source.load()
            mode = {1: "L", 3: "RGB", 4: "RGBA"}[self.channels]
            values = np.asarray(self.source.convert(mode)).reshape(self.height, self.width, -1)
        values = values[..., : self.channels]
        if self.channels > self.colors and self.tags.get(EXTRA) == (1, ASSOCIATED):
            values = _round_unpremultiplied(values)
        if self.format.name == "AVIF" and values.dtype == np.uint16:
            values = values | values >> self.source.get("bits-per-sample")  # else white is less
        if self.orientation in UPRIGHT:
            values = UPRIGHT[self.orientation](values)
        return np.require(values, requirements=["C", "W"])


def _round_unpremultiplied(values: np.ndarray) -> np.ndarray:
    """Rounds to nearest where libvips, dividing colors by alpha in float32, rounds down."""
    white = np.uint32(np.iinfo(values.dtype).max)  # Its square and itself fit into 32 bits.
    result = np.empty_like(values)
    rows = max(1, 2**16 // values.shape[1])
    for start in range(0, len(values), rows):
        strip = values[start : start + rows].astype(np.uint32)
        colors, alpha = strip[..., :-1], strip[..., -1:]
        divisor = np.maximum(alpha, 1)
        stored = (colors * alpha + (white - 1)) // white  # what the file has, or one more
        divided = stored.astype(np.float32) * (np.float32(white) / divisor.astype(np.float32))
        stored -= divided >= colors + 1
        result[start : start + rows, :, :-1] = (stored * white + divisor // 2) // divisor
        result[start : start + rows, :, -1:] = alpha
    return result


@contextlib.contextmanager
def image_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Opens an image's file; whatever is wrong with it inside becomes one line."""
    with in_one_line(path), open(path, "rb", buffering=0) as file:
        yield file


@contextlib.contextmanager
def in_one_line(name: str | os.PathLike[str]) -> Iterator[None]:
    """Turns what is wrong with an image's file into one line that names it."""
    try:
        yield
    except (pyvips.Error, OSError, UnreadableError, UnicodeDecodeError) as error:
        # The last is what pyvips raises if a message of libvips quotes letters of the file.
        raise InputError(
            f"{name} is no image that can be read ({_reason(error)}); expected {_READABLE}"
        ) from error


def _reason(error: Exception) -> str:
    # libvips has one list of messages for all threads, so another image's could be reported here.
    if isinstance(error, (pyvips.Error, UnicodeDecodeError)):
        return "it is damaged, cut short or of a kind that libvips cannot read"
    return getattr(error, "strerror", None) or str(error)


def read_content(file: BinaryIO) -> bytes:
    """Reads an image's file, for use within `image_file`; of a large one the head is checked first.

    So no file that is larger than memory is read.
    """
    size = os.fstat(file.fileno()).st_size
    if size > _LARGE_FILE:
        open_image(file)
        if size > _LARGEST_FILE:
            raise UnreadableError(f"{size:,} bytes exceed the limit of {_LARGEST_FILE:,}")
        file.seek(0)
    return file.read()


def format_of(head: bytes) -> Format | None:
    """The format that a file's first 32 bytes are of, if any."""
    return next((format for format in FORMATS if format.signature.match(head)), None)


def open_image(file: BinaryIO) -> OpenedImage:
    """Opens an image of any of the formats, not yet decoded, for use within `in_one_line`.

    Args:
        file: the content as `BytesIO`, or an open file, which is good for its size alone.
    """
    file.seek(0)
    head = file.read(32)
    format = format_of(head)
    if format is None:
        raise UnreadableError("its content is of another format" if head else "the file is empty")
    if head[8:11] in (b"hei", b"hev"):
        raise UnreadableError("it is HEIC, which libvips has no codec for")
    if head[4:11] == b"\x10\0\0\0CR\2":  # CR2, a TIFF otherwise
        raise UnreadableError("it is a camera raw file; use a developed image")
    file.seek(0)
    if not format.codec:
        return _open_bmp(file, format)
    chunks: tuple[tuple[bytes, bytes], ...] = ()
    if format.name == "PNG":
        with _unreadable():
            content, chunks = read_png(file)
        file = io.BytesIO(content)
    options: dict[str, Any] = {"fail_on": "error"}
    if isinstance(file, io.BytesIO):
        image = getattr(pyvips.Image, f"{format.codec}load_buffer")(file.getvalue(), **options)
    else:
        source = pyvips.Source.new_from_descriptor(file.fileno())
        image = getattr(pyvips.Image, f"{format.codec}load_source")(source, **options)
    tags: Tags = {}
    if format.name == "TIFF":
        with _unreadable():
            tags = tiff_tags(file)
            check_kind(image, tags)
    return _checked(image, format, tags, chunks)


def _checked(
    image: pyvips.Image, format: Format, tags: Tags, chunks: tuple[tuple[bytes, bytes], ...]
) -> OpenedImage:
    _check_size(image.width, image.height)
    fields = set(image.get_fields())
    colors = {"b-w": 1, "grey16": 1, "srgb": 3, "rgb": 3, "rgb16": 3, "cmyk": 4}.get(
        image.interpretation
    )
    bits = image.get("bits-per-sample") if "bits-per-sample" in fields else 8
    if image.format not in ("uchar", "ushort") or (tags and bits not in (1, 2, 4, 8, 16)):
        raise UnreadableError(
            f"it has {image.format} values of {bits} bits a channel, whose white is unknown; "
            "use 8 or 16"
        )
    if colors is None or not colors <= image.bands <= 16:
        raise UnreadableError(f"it has {image.bands} channels of {image.interpretation}")
    if tags:
        with _unreadable():
            check_covered(image, tags)
    if colors == 4 and bits == 16 and tags.get(EXTRA, (0, 0))[1] == ASSOCIATED:
        raise UnreadableError("its 16-bit CMYK is multiplied by alpha")  # libvips divides wrongly
    has_alpha = image.bands > colors and tags.get(EXTRA, (1, 2))[1] in (1, 2)
    orientation = image.get("orientation") if "orientation" in fields else 0
    if orientation not in range(1, 9) and "xmp-data" in fields and format.name != "AVIF":
        found = XMP_ORIENTATION.search(image.get("xmp-data"))
        orientation = int(found[2]) if found else 0
    frames = image.get("n-pages") if "n-pages" in fields else 1
    for name, chunk in chunks:
        if name == b"acTL":
            frames = int.from_bytes(chunk[8:12])
    channels = colors + has_alpha
    size = image.width, image.height
    return OpenedImage(format, image, *size, colors, channels, orientation, frames, tags, chunks)


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise UnreadableError(f"{width}x{height} exceeds the limit of {MAX_PIXELS} pixels")


@contextlib.contextmanager
def _unreadable() -> Iterator[None]:
    try:
        yield
    except (SyntaxError, ValueError, EOFError, struct.error) as error:  # Pillow's, too
        raise UnreadableError(str(error)) from error


def _open_bmp(file: BinaryIO, format: Format) -> OpenedImage:
    with _unreadable():
        # Not by `Image.open`, whose limit on the size is one for the whole process.
        image = BmpImagePlugin.BmpImageFile(file)
    _check_size(image.width, image.height)
    colors = 1 if image.mode in ("1", "L") else 3
    channels = 4 if image.mode == "RGBA" else colors
    return OpenedImage(format, image, image.width, image.height, colors, channels, 1)


def check_extension(path: Path) -> Format:
    """Gives the format that a name asks for.

    Raises:
        InputError: if images are not written under such a name.
    """
    extension = path.suffix.lower()
    for format in FORMATS:
        if extension in format.extensions and format.options is not None:
            return format
    raise InputError(
        f"{path} has the extension {path.suffix!r}; expected one of {' '.join(WRITABLE_EXTENSIONS)}"
    )
