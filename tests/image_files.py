"""Image files made and read without the package."""

from __future__ import annotations

import io
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image, ImageCms

from drsformer_jax.images.vips import pyvips

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
GRAY = SRGB[:16] + b"GRAY" + SRGB[20:]
CMYK = SRGB[:16] + b"CMYK" + SRGB[20:]
KINDS = [(name, False) for name in (".png", ".jpg", ".webp", ".tif")] + [
    (name, True) for name in (".png", ".tif")
]
"""What can hold camera data: the extension, and whether a channel has 16 bits."""
METADATA = [".png", ".jpg", ".webp", ".tif"]
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}


def noise(shape: tuple[int, ...], deep: bool = False, seed: int = 0) -> np.ndarray:
    dtype = np.uint16 if deep else np.uint8
    return np.random.default_rng(seed).integers(0, 65536 if deep else 256, shape, dtype=dtype)


def smooth(h: int, w: int) -> np.ndarray:
    y, x = np.mgrid[:h, :w]
    return np.stack([255 * y / h, 255 * x / w, 255 * (x + y) / (h + w)], -1).astype(np.uint8)


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(
        ">I", zlib.crc32(name + content)
    )  # fmt: skip


def phone(orientation: int, width: int = 7, height: int = 5) -> bytes:
    """A phone's EXIF block: main, camera, interoperability and place directories."""
    exif = Image.Exif()
    exif[0x010F] = "Maker"
    exif[0x0112] = orientation
    exif[0x8769] = {
        0x9003: "2024:05:06 07:08:09",
        0x927C: b"maker's \0 notes",
        0xA002: width,
        0xA003: height,
        0xA005: {1: "R98"},
    }
    exif[0x8825] = {1: "N", 2: (48.0, 8.0, 30.5)}
    return exif.tobytes()


def camera(block: bytes | Image.Exif) -> tuple[str, int, dict, dict, dict]:
    """What `phone` wrote, as Pillow reads it; sub-directories' places in the file left out."""
    exif = block
    if isinstance(block, bytes):
        exif = Image.Exif()
        exif.load(block)
    taken = {k: v for k, v in exif.get_ifd(0x8769).items() if k != 0xA005}
    related = exif.get_ifd(0xA005) if 0xA005 in exif.get_ifd(0x8769) else {}
    return exif[0x010F], exif[0x0112], taken, related, exif.get_ifd(0x8825)


def saved(pixels: np.ndarray, format_name: str, **options: object) -> bytes:
    """An image file by Pillow."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format_name, **options)
    return stream.getvalue()


def encoded(
    pixels: np.ndarray,
    extension: str,
    *,
    profile: bytes | None = None,
    block: bytes | None = None,
    **options: object,
) -> bytes:
    """An image file made without the package; in TIFF of 16 bits `block` is the orientation."""
    stream = io.BytesIO()
    if pixels.dtype == np.uint8:
        name = {".jpg": "JPEG", ".tif": "TIFF"}.get(extension, extension[1:].upper())
        if block and name == "TIFF":
            exif = Image.Exif()
            exif.load(block)
        extra = {"lossless": True, "exact": True} if name == "WEBP" else {}
        known = {"icc_profile": profile} if profile else {}
        known |= {"exif": exif if name == "TIFF" else block} if block else {}
        Image.fromarray(pixels).save(stream, name, **extra, **known, **options)
        return stream.getvalue()
    channels = pixels.shape[2] if pixels.ndim == 3 else 1
    if extension == ".png":
        kind = "grey16" if channels < 3 else "rgb16"
        data = pyvips.Image.new_from_array(pixels, interpretation=kind).pngsave_buffer(keep="none")
        parts = b""
        if profile:
            parts += chunk(b"iCCP", b"x\0\0" + zlib.compress(profile))
        if block:
            parts += chunk(b"eXIf", block.removeprefix(b"Exif\0\0"))
        return data[:33] + parts + data[33:]
    tags = []
    if block:
        maker, orientation, *_ = camera(block)
        tags = [(0x0112, "H", 1, orientation, True), (0x010F, "s", 0, maker, True)]
    tifffile.imwrite(
        stream,
        pixels,
        photometric="rgb" if channels > 2 else "minisblack",
        planarconfig="contig" if channels > 1 else None,
        extrasamples=["unassalpha"] if channels in (2, 4) else None,
        iccprofile=profile,
        extratags=tags,
        metadata=None,
        **options,
    )
    return stream.getvalue()


def png_values(data: bytes) -> np.ndarray:
    """A decoder of PNG files without interlacing, after the specification (W3C, 9.2)."""
    chunks, at = {}, 8
    while at < len(data):
        (length,) = struct.unpack_from(">I", data, at)
        name = data[at + 4 : at + 8]
        chunks[name] = chunks.get(name, b"") + data[at + 8 : at + 8 + length]
        at += 12 + length
    width, height, depth, kind = struct.unpack(">IIBB", chunks[b"IHDR"][:10])
    channels = {0: 1, 2: 3, 4: 2, 6: 4}[kind]
    step = channels * depth // 8
    raw, above, rows = zlib.decompress(chunks[b"IDAT"]), bytearray(step * width), []
    for y in range(height):
        way, *row = raw[y * (step * width + 1) : (y + 1) * (step * width + 1)]
        for x in range(len(row)):
            a, b = row[x - step] if x >= step else 0, above[x]
            c = above[x - step] if x >= step else 0
            nearest = min((a, b, c), key=lambda v: abs(a + b - c - v))
            row[x] = (row[x] + (0, a, b, (a + b) // 2, nearest)[way]) % 256
        rows.append(bytes(row))
        above = row
    values = np.frombuffer(b"".join(rows), f">u{depth // 8}").reshape(height, width, channels)
    return values.astype(f"u{depth // 8}")


def decoded(path: Path) -> np.ndarray:
    """The file's own values, read without the package."""
    if path.suffix == ".png":
        return png_values(path.read_bytes())
    if path.suffix == ".tif":
        with tifffile.TiffFile(path) as file:
            return file.pages[0].asarray()
    with Image.open(path) as image:
        return np.asarray(image)


def metadata(path: Path) -> tuple[bytes | None, Image.Exif]:
    with Image.open(path) as image:
        return image.info.get("icc_profile"), image.getexif()


def tiff_metadata(path: Path) -> tuple[bytes | None, Image.Exif]:
    """As `metadata`, of files whose pixels Pillow does not read."""
    exif = Image.Exif()
    exif.load(path.read_bytes())
    return exif.get(0x8773), exif


def rejected(path: Path) -> str:
    return (
        rf"^{re.escape(str(path))} is no image that can be read \(.+\); "
        "expected PNG, JPEG, WebP, BMP, TIFF, AVIF or GIF$"
    )
