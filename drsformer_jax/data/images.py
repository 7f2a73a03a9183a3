"""Reading and writing pictures safely: by content, in one step, one line for what is wrong.

A picture is uint8 RGB of shape (h, w, 3) everywhere in this module.
"""

from __future__ import annotations

import contextlib
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import (
    BmpImagePlugin,
    Image,
    ImageDraw,
    ImageFont,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)
from PIL.ImageFile import ImageFile

from drsformer_jax.errors import InputError
from drsformer_jax.files import replacing

# Pillow warns of odd metadata (resolution, camera data), none of which is used here. A filter set
# once, unlike `warnings.catch_warnings`, leaves nothing to restore and so is safe with threads.
warnings.filterwarnings("ignore", module=r"PIL\.(Tiff|Png)ImagePlugin")

MAX_PIXELS = 2**27
"""Larger pictures are refused: 134 million pixels take 384 MiB, and cameras seldom have more."""

_READABLE = "PNG, JPEG, WebP, BMP or TIFF"
_SIGNATURES: tuple[tuple[re.Pattern[bytes], type[ImageFile]], ...] = (
    (re.compile(rb"\x89PNG\r\n\x1a\n"), PngImagePlugin.PngImageFile),
    (re.compile(rb"\xff\xd8\xff"), JpegImagePlugin.JpegImageFile),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), WebPImagePlugin.WebPImageFile),
    (re.compile(rb"BM"), BmpImagePlugin.BmpImageFile),
    (re.compile(rb"II[*+]\0|MM\0[*+]"), TiffImagePlugin.TiffImageFile),
)
_WRITERS: dict[str, tuple[str, dict[str, Any]]] = {
    ".png": ("PNG", {}),
    ".jpg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".jpeg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".webp": ("WEBP", {"lossless": True}),
    ".bmp": ("BMP", {}),
    ".tif": ("TIFF", {}),
    ".tiff": ("TIFF", {}),
}
_LARGEST_SIDE = {"JPEG": 65_500, "WEBP": 16_383}
_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TURNED = {5, 6, 7, 8}
_SHEET_GAP = 8
_TITLE_SIZE = 16


def read_picture(path: str | os.PathLike[str]) -> np.ndarray:
    """Reads a PNG, JPEG, WebP, BMP or TIFF file, told by its content whatever its name.

    The EXIF orientation is applied. Grey, palette and CMYK pictures become RGB, transparent ones
    are laid on white, 16 bits a channel become 8, of an animation the first picture is read. Colour
    profiles are ignored, as the benchmarks' programs do. Safe to call from several threads.

    Args:
        path: the file.

    Returns:
        uint8 of shape (h, w, 3), RGB, writable.

    Raises:
        InputError: if the file is missing, of another format, damaged, cut short or larger than
            `MAX_PIXELS`.
    """
    with _opened(path) as image:
        image.load()
        return np.array(_upright(image))


def picture_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Reads the (height, width) of a picture, upright, without decoding it.

    Raises:
        InputError: as `read_picture`, as far as the file's head can tell.
    """
    with _opened(path) as image:
        turned = _orientation(image) in _TURNED
        return (image.width, image.height) if turned else (image.height, image.width)


@contextlib.contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[ImageFile]:
    """Opens a picture; whatever goes wrong with it inside becomes one line."""
    try:
        with open(path, "rb") as file:
            head = file.read(12)
            file.seek(0)
            # The format's class is called directly because `Image.open` has a limit on the size
            # that is one for the whole process, and warns below it.
            image = _format_of(head)(file, os.fspath(path))
            _check_size(image)
            yield image
    except InputError:
        raise
    except Exception as error:  # Pillow lets errors of many kinds out of damaged files
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        reason = " ".join(reason.split()) or type(error).__name__
        raise InputError(
            f"{path} is no picture that can be read ({reason}); expected {_READABLE}"
        ) from error


def write_picture(path: str | os.PathLike[str], picture: np.ndarray) -> None:
    """Writes a picture in the format that the extension names, in one step.

    JPEG is written at quality 95 without chroma subsampling, the other formats without loss.
    Folders that are missing are made. A failure or a killed process leaves `path` as it was.

    Args:
        path: a file ending in .png, .jpg, .jpeg, .webp, .bmp, .tif or .tiff.
        picture: uint8 of shape (h, w, 3), RGB.

    Raises:
        InputError: if the extension is none of these, or the format has no room for the picture.
        OSError: if the file system fails.
    """
    path = Path(path)
    check_extension(path)
    format_name, options = _WRITERS[path.suffix.lower()]
    image = Image.fromarray(picture)
    if max(image.size) > _LARGEST_SIDE.get(format_name, max(image.size)):
        raise InputError(
            f"{path} is {image.width}x{image.height}; expected sides of at most "
            f"{_LARGEST_SIDE[format_name]} in {format_name}, or another format such as PNG"
        )
    with replacing(path) as file:
        image.save(file, format_name, **options)


def check_extension(path: Path) -> None:
    """Checks that `write_picture` knows the format that a name asks for.

    Raises:
        InputError: if it does not.
    """
    if path.suffix.lower() not in _WRITERS:
        raise InputError(
            f"{path} has the extension {path.suffix!r}; expected one of {' '.join(_WRITERS)}"
        )


def find_pictures(folder: str | os.PathLike[str]) -> list[Path]:
    """Lists a folder's picture files, told by their extension, with 2.png before 10.png.

    Hidden files, subfolders and what is in them are left out.

    Raises:
        InputError: if the folder is missing, is a file or has no picture.
    """
    folder = Path(folder)
    if not folder.is_dir():
        found = "is a file" if folder.exists() else "does not exist"
        raise InputError(f"{folder} {found}; expected a folder of pictures")
    pictures = [
        path
        for path in folder.iterdir()
        if path.suffix.lower() in _WRITERS and not path.name.startswith(".") and path.is_file()
    ]
    if not pictures:
        raise InputError(f"{folder} holds no picture; expected files named {' '.join(_WRITERS)}")
    return sorted(pictures, key=lambda path: _natural(path.name))


def find_pairs(folder: str | os.PathLike[str]) -> list[tuple[str, Path, Path]]:
    """Lists the pairs of a folder with rainy pictures in `input/` and clean ones in `target/`.

    Returns:
        (file name, rainy file, clean file) of each pair, in natural order.

    Raises:
        InputError: if a folder is missing or empty, or a picture has no partner.
    """
    folder = Path(folder)
    for part in ("input", "target"):
        if not (folder / part).is_dir():
            raise InputError(
                f"{folder} has no folder {part}/; expected input/ and target/ with equal file names"
            )
    return find_pairs_in(folder / "input", folder / "target")


def find_pairs_in(
    input_dir: str | os.PathLike[str], target_dir: str | os.PathLike[str]
) -> list[tuple[str, Path, Path]]:
    """Lists the pictures that have one name in both folders, as `find_pairs` does.

    Raises:
        InputError: if a folder is missing or empty, or a picture has no partner.
    """
    inputs, targets = (
        {path.name: path for path in find_pictures(folder)} for folder in (input_dir, target_dir)
    )
    alone = sorted(inputs.keys() ^ targets.keys(), key=_natural)
    if alone:
        found, other = (inputs, target_dir) if alone[0] in inputs else (targets, input_dir)
        raise InputError(
            f"{found[alone[0]]} has no partner in {other} ({len(alone)} of "
            f"{len(inputs) + len(targets)} pictures have none); expected equal file names"
        )
    return [(name, path, targets[name]) for name, path in inputs.items()]


def read_pair(
    input_path: str | os.PathLike[str], target_path: str | os.PathLike[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Reads a rainy and a clean picture of one size.

    Returns:
        (rainy, clean), each uint8 of shape (h, w, 3).

    Raises:
        InputError: if a file cannot be read or the sizes differ.
    """
    rainy, clean = read_picture(input_path), read_picture(target_path)
    if rainy.shape != clean.shape:
        raise InputError(
            f"{target_path} is {clean.shape[1]}x{clean.shape[0]}, "
            f"{input_path} is {rainy.shape[1]}x{rainy.shape[0]}; a pair must have one size"
        )
    return rainy, clean


def contact_sheet(rows: Sequence[Sequence[np.ndarray]], titles: Sequence[str] = ()) -> np.ndarray:
    """Lays pictures out on white for comparing them by eye.

    Args:
        rows: the pictures, uint8 (h, w, 3), of any sizes; columns are as wide as their widest.
        titles: what stands above the columns, for instance rainy, restored, clean.

    Returns:
        uint8 of shape (H, W, 3).
    """
    font = ImageFont.load_default(size=_TITLE_SIZE)
    widths = [int(np.ceil(font.getlength(title))) for title in titles]
    widths += [0] * (max(len(row) for row in rows) - len(titles))
    for row in rows:
        for column, picture in enumerate(row):
            widths[column] = max(widths[column], picture.shape[1])
    heights = [max(picture.shape[0] for picture in row) for row in rows]
    head = _TITLE_SIZE + 2 * _SHEET_GAP if titles else _SHEET_GAP
    lefts = np.cumsum([_SHEET_GAP] + [width + _SHEET_GAP for width in widths])
    tops = np.cumsum([head] + [height + _SHEET_GAP for height in heights])
    sheet = Image.new("RGB", (int(lefts[-1]), int(tops[-1])), "white")
    for row, top in zip(rows, tops, strict=False):
        for picture, left in zip(row, lefts, strict=False):
            sheet.paste(Image.fromarray(picture), (int(left), int(top)))
    draw = ImageDraw.Draw(sheet)
    for title, left in zip(titles, lefts, strict=False):
        draw.text((int(left), _SHEET_GAP), title, fill="black", font=font)
    return np.array(sheet)


def _format_of(head: bytes) -> type[ImageFile]:
    for signature, format_class in _SIGNATURES:
        if signature.match(head):
            return format_class
    raise ValueError("the file is empty" if not head else "its content is of another format")


def _check_size(image: Image.Image) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(f"{image.width}x{image.height} exceeds the limit of {MAX_PIXELS} pixels")


def _upright(image: Image.Image) -> Image.Image:
    # After loading, because Pillow turns TIFF pictures itself and then drops the tag.
    orientation = _orientation(image)
    rgb = _to_rgb(image)
    return rgb.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else rgb


def _orientation(image: Image.Image) -> int | None:
    try:
        return image.getexif().get(_ORIENTATION_TAG)
    except Exception:  # camera data that cannot be parsed does not spoil the picture
        return None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        # Pillow's own conversion clips at 255. 65535 = 255 * 257, so this rounds to nearest.
        values = np.asarray(image).astype(np.uint32)
        return Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError("it has 32 bits a channel, whose white is unknown; use 8 or 16")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def _natural(name: str) -> tuple[list[str | int], str]:
    parts = re.split("([0-9]+)", name.lower())
    return [int(part) if index % 2 else part for index, part in enumerate(parts)], name
