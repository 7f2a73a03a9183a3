"""TIFF files as bytes: pixels of 16 bits are read, all are written.

Pillow reads those of 8 bits; of colors of 16 it would keep 8, and it loses camera data in writing.
"""

from __future__ import annotations

import contextlib
import struct
from typing import BinaryIO

import imagecodecs
import numpy as np

from drsformer_jax.images import exif
from drsformer_jax.images.pixels import check_size


def deep_pixels(data: bytes, directory: exif.Directory) -> np.ndarray | None:
    """The pixels of a TIFF file of 16 bits, (h, w, 1 to 4); None if Pillow is to read it."""
    number = directory.number
    photometric = number(0x0106, -1)
    if set(directory.numbers(0x0102)) != {16} or photometric not in (0, 1, 2):
        return None
    if number(0x0153, 1) != 1:
        raise ValueError("its 16 bits are signed or floating, whose white is unknown")
    width, height, samples = number(0x0100, 0), number(0x0101, 0), number(0x0115, 1)
    check_size(width, height)
    colors = 3 if photometric == 2 else 1
    if not colors <= samples <= 16:
        raise ValueError(f"it has {samples} values a pixel for {colors} colors")
    pixels = imagecodecs.tiff_decode(data, index=0)
    if number(0x011C, 1) == 2 and samples > 1:
        pixels = np.moveaxis(pixels, 0, -1)
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    if pixels.shape != (height, width, samples) or pixels.dtype != np.uint16:
        raise ValueError(f"it holds {pixels.dtype} {pixels.shape}, not what its tags tell")
    if photometric == 0:
        pixels[..., 0] = 65535 - pixels[..., 0]
    extra = number(0x0152, 0)
    if extra not in (1, 2) or samples == colors:
        return pixels[..., :colors]
    if extra == 1:  # The colors have been multiplied with alpha.
        alpha = pixels[..., colors:][..., :1].astype(np.uint32)
        quotient = (pixels[..., :colors] * np.uint32(65535) + alpha // 2) // np.maximum(alpha, 1)
        pixels[..., :colors] = np.minimum(quotient, 65535)
    return pixels[..., : colors + 1]


def write(file: BinaryIO, pixels: np.ndarray, profile: bytes | None, block: bytes | None) -> None:
    """Writes a TIFF file without compression: head, pixels, tags."""
    camera = exif.Directory("<", {})
    if block:
        with contextlib.suppress(ValueError, struct.error):
            camera = exif.read_directory(block)
    order = camera.order
    height, width = pixels.shape[:2]
    channels = pixels.shape[2] if pixels.ndim == 3 else 1
    bits = 8 * pixels.itemsize
    end = 8 + pixels.nbytes + pixels.nbytes % 2
    fields = camera.camera() | {
        tag: exif.numbers(order, kind, *values)
        for tag, kind, values in (
            (0x0100, exif.LONG, [width]),
            (0x0101, exif.LONG, [height]),
            (0x0102, exif.SHORT, [bits] * channels),
            (0x0103, exif.SHORT, [1]),  # no compression
            (0x0106, exif.SHORT, [2 if channels > 2 else 1]),  # RGB, or black is zero
            (0x0111, exif.LONG, [8]),  # the one strip starts behind the head,
            (0x0115, exif.SHORT, [channels]),
            (0x0116, exif.LONG, [height]),  # has all rows
            (0x0117, exif.LONG, [pixels.nbytes]),  # and this length
            (0x011C, exif.SHORT, [1]),  # a pixel's values stand together
            (0x0152, exif.SHORT, [2] * (channels % 2 == 0)),  # the last is alpha, colors as seen
        )
        if values
    }
    if profile:
        fields[exif.PROFILE] = exif.Field(exif.UNDEFINED, profile)
    file.write(exif.header(order, end))
    file.write(pixels.astype(pixels.dtype.newbyteorder(order), copy=False).tobytes())
    file.write(bytes(end - file.tell()) + exif.pack(order, fields, end))
