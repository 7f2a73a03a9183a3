"""Reading and writing images as arrays: uint8 RGB of shape (h, w, 3) everywhere in this module."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from drsformer_jax.errors import InputError
from drsformer_jax.files import write_bytes
from drsformer_jax.images.formats import (
    EXTENSIONS,
    MAX_PIXELS,
    WRITABLE_EXTENSIONS,
    Format,
    OpenedImage,
    check_extension,
    image_file,
    in_one_line,
    open_image,
    read_content,
)
from drsformer_jax.images.vips import pyvips

__all__ = [
    "EXTENSIONS",
    "MAX_PIXELS",
    "WRITABLE_EXTENSIONS",
    "check_extension",
    "content_size",
    "decode_image",
    "encode_image",
    "image_file",
    "image_size",
    "png_name",
    "read_image",
    "to_8_bits",
    "write_image",
]

_TO_8_BITS = ((np.arange(65536) + 128) // 257).astype(np.uint8)
"""65535 = 255 * 257, so this rounds to nearest."""
_WHITE = np.full((1, 1, 1), 255, np.uint8)


def read_image(path: str | os.PathLike[str]) -> np.ndarray:
    """Reads a PNG, JPEG, WebP, BMP, TIFF, AVIF or GIF file, recognized by its content.

    The orientation is applied. Gray, palette and CMYK images become RGB, transparent ones are laid
    on white, 16 bits a channel become 8, of an animation the first image is read. Color profiles
    and gamma are ignored, as the benchmarks' programs do. Safe to call from several threads.

    Args:
        path: the file.

    Returns:
        uint8 of shape (h, w, 3), RGB, writable.

    Raises:
        InputError: if the file is missing, of another format, damaged, cut short or larger than
            `MAX_PIXELS`.
    """
    with image_file(path) as file:
        content = read_content(file)
    return decode_image(content, path)


def decode_image(content: bytes, name: str | os.PathLike[str]) -> np.ndarray:
    """Decodes the content of an image's file, as `read_image` reads the file.

    Args:
        content: all bytes of the file.
        name: what an error calls it.

    Raises:
        InputError: as `read_image`.
    """
    with in_one_line(name):
        opened = open_image(io.BytesIO(content))
        values = to_8_bits(opened.decode())
    colors, alpha = to_rgb(values, opened)
    return colors if alpha is None else composite(colors, alpha, _WHITE)


def image_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Reads the (height, width) of an image, upright, without decoding it.

    Raises:
        InputError: as `read_image`, as far as the file's head can tell.
    """
    with image_file(path) as file:
        return open_image(file).size


def content_size(content: bytes, name: str) -> tuple[int, int]:
    """Reads the (height, width) from the content of an image's file, as `image_size` does.

    Raises:
        InputError: as `image_size`; it calls the image `name`.
    """
    with in_one_line(name):
        return open_image(io.BytesIO(content)).size


def write_image(path: str | os.PathLike[str], image: np.ndarray) -> None:
    """Writes an image in the format that the extension names, in one step.

    JPEG is written at quality 95 and AVIF at 90, both without chroma subsampling, the other formats
    without loss. Folders that are missing are made. A failure or a killed process leaves `path` as
    it was.

    Args:
        path: a file whose name ends in one of `WRITABLE_EXTENSIONS`, in either case.
        image: uint8 of shape (h, w, 3), RGB.

    Raises:
        InputError: if the extension is none of these, or the format has no room for the image.
        OSError: if the file system fails.
    """
    path = Path(path)
    # Into memory first: encoders do not name the file, and some do not see that a disk is full.
    write_bytes(path, encode(path, image))


def png_name(name: str) -> Path:
    """The name of an image as PNG: a known extension is replaced, any other part is kept."""
    path = Path(name)
    return path.with_suffix(".png") if path.suffix.lower() in EXTENSIONS else Path(f"{name}.png")


def encode_image(
    image: np.ndarray,
    extension: str,
    *,
    quality: int | None = None,
    subsampling: Literal["4:4:4", "4:2:0"] = "4:4:4",
) -> bytes:
    """Gives the content of the file that `write_image` writes.

    Args:
        image: uint8 of shape (h, w, 3), RGB.
        extension: one of `WRITABLE_EXTENSIONS`.
        quality: 1 to 100, of JPEG, AVIF and lossy WebP; default: as `write_image`.
        subsampling: of the chroma, in JPEG and AVIF.

    Raises:
        InputError: as `write_image`.
    """
    return encode(Path(f"image{extension}"), image, quality=quality, subsampling=subsampling)


def encode(
    path: Path,
    values: np.ndarray,
    metadata: dict[str, Any] | None = None,
    *,
    quality: int | None = None,
    subsampling: Literal["4:4:4", "4:2:0"] = "4:4:4",
) -> bytes:
    """Gives the content of a file of values, uint8 or uint16 (h, w) or (h, w, 2 to 4).

    Args:
        path: the file, for its format and for messages.
        values: gray or RGB, with or without alpha.
        metadata: libvips' fields, and their values.
        quality: as `encode_image`.
        subsampling: as `encode_image`.

    Raises:
        InputError: as `write_image`, or if the quality is not 1 to 100.
    """
    format = check_extension(path)
    height, width = values.shape[:2]
    if max(height, width) > format.largest_side:
        raise InputError(
            f"{path} is {width}x{height}; expected sides of at most {format.largest_side} in "
            f"{format.name}, or another format such as PNG"
        )
    if quality is not None and not 1 <= quality <= 100:
        raise InputError(f"quality is {quality}; expected 1 to 100")
    metadata = metadata or {}
    if not format.codec:
        stream = io.BytesIO()
        dpi = {}
        if "xres" in metadata:
            dpi["dpi"] = metadata["xres"] * 25.4, metadata["yres"] * 25.4
        Image.fromarray(values).save(stream, format.name, **dpi)
        return stream.getvalue()
    options = dict(format.options or {})
    if quality is not None and format.quality_options is not None:
        options |= {"Q": quality, **format.quality_options}
    if "subsample_mode" in options and subsampling == "4:2:0":
        options["subsample_mode"] = "on"
    return _encode(path, values, format, options, metadata)


def _encode(
    path: Path,
    values: np.ndarray,
    format: Format,
    options: dict[str, Any],
    metadata: dict[str, Any],
) -> bytes:
    gray, deep = values.ndim == 2 or values.shape[2] == 2, values.dtype == np.uint16
    kind = ("grey16" if gray else "rgb16") if deep else ("b-w" if gray else "srgb")
    try:
        image = pyvips.Image.new_from_array(values, interpretation=kind)
        resolution = {name: metadata[name] for name in ("xres", "yres") if name in metadata}
        image = image.copy(**{"xres": 72 / 25.4, "yres": 72 / 25.4} | resolution)
        for name, value in metadata.items():
            if name not in resolution:
                image.set_type(_TYPES[type(value)], name, value)
        image.set_type(pyvips.GValue.gint_type, "orientation", 1)  # after EXIF, which has another
        keep = [flag for flag in ("exif", "icc", "iptc", "xmp") if any(flag in n for n in metadata)]
        if resolution and format.exif_resolution:
            keep.append("exif")  # libvips makes one
        save = getattr(image, f"{format.codec}save_buffer")
        return save(keep="|".join([*keep, "other"]), **options)
    except (pyvips.Error, UnicodeDecodeError) as error:
        raise InputError(
            f"{path} cannot be encoded as {format.name}; expected another format"
        ) from error


_TYPES: dict[type, Any] = {bytes: pyvips.GValue.blob_type, str: pyvips.GValue.gstr_type}


def to_rgb(values: np.ndarray, opened: OpenedImage) -> tuple[np.ndarray, np.ndarray | None]:
    """Splits values (h, w, channels) into RGB (h, w, 3), where CMYK is uint8, and alpha (h, w)."""
    colors = values[..., : opened.colors]
    alpha = values[..., -1].copy() if opened.channels > opened.colors else None
    if opened.colors == 1:
        colors = np.repeat(colors, 3, 2)
    elif opened.colors == 4:
        light = 255 - colors[..., 3:].astype(np.int32)
        ink = (colors[..., :3] * light + 127) // 255
        colors = (light - ink).astype(np.uint8)
    return np.ascontiguousarray(colors), alpha


def composite(colors: np.ndarray, alpha: np.ndarray, background: np.ndarray) -> np.ndarray:
    """Lays colors on a background where they are transparent; all are uint8.

    Args:
        colors: (h, w, channels).
        alpha: (h, w), 0 where transparent.
        background: (1, 1, channels) or (1, 1, 1).
    """
    weight = alpha[..., None].astype(np.uint16)
    total = colors * weight  # at most 255 * 255 in all, and the half that rounds
    total += background * (255 - weight)
    total += 127
    return (total // 255).astype(np.uint8)


def to_8_bits(values: np.ndarray) -> np.ndarray:
    """Rounds uint16 of any shape, 0 to 65535, to the nearest uint8, 0 to 255; keeps uint8."""
    return values if values.dtype == np.uint8 else _TO_8_BITS[values]
