from __future__ import annotations

import os
import re
import resource
import stat
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from image_files import noise, saved, smooth
from PIL import Image, JpegImagePlugin

from drsformer_jax.data.folders import find_images
from drsformer_jax.errors import InputError
from drsformer_jax.images import pixels as images
from drsformer_jax.images.image import LoadedImage, save_image

FORMATS = ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "AVIF"]
LOSSLESS = [".png", ".webp", ".bmp", ".tif", ".tiff"]


def rejected(path: Path, reason: str) -> str:
    return (
        f"^{re.escape(str(path))} is no image that can be read \\({reason}\\); "
        "expected PNG, JPEG, WebP, BMP, TIFF, AVIF or GIF$"
    )


def images_equal(a: Path, b: Path) -> None:
    with Image.open(a) as one, Image.open(b) as other:
        assert JpegImagePlugin.get_sampling(one) == JpegImagePlugin.get_sampling(other)
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


@pytest.mark.parametrize("extension", LOSSLESS)
@pytest.mark.parametrize("size", [(1, 1), (7, 13), (1, 50)])
def test_lossless_formats_return_every_pixel(tmp_path, extension, size):
    image = noise((*size, 3))
    images.write_image(tmp_path / f"a{extension}", image)
    read = images.read_image(str(tmp_path / f"a{extension}"))
    np.testing.assert_array_equal(read, image)
    assert read.dtype == np.uint8
    assert read.flags.writeable


@pytest.mark.parametrize(
    ("extension", "format_name"),
    [
        *((name, "JPEG") for name in (".JPG", ".jpeg", ".jpe", ".JFIF")),
        *((".Png", "PNG"), (".webp", "WEBP"), (".TIF", "TIFF"), (".tiff", "TIFF")),
        (".avif", "AVIF"),
    ],
)
def test_the_extension_chooses_the_format(tmp_path, extension, format_name):
    images.write_image(tmp_path / f"a{extension}", smooth(9, 9))
    with Image.open(tmp_path / f"a{extension}") as image:
        assert image.format == format_name


def test_jpeg_is_written_at_quality_95_without_chroma_subsampling(tmp_path):
    images.write_image(tmp_path / "a.jpg", noise((64, 64, 3)))
    (tmp_path / "b.jpg").write_bytes(
        saved(noise((64, 64, 3)), "JPEG", quality=95, subsampling="4:4:4")
    )
    images_equal(tmp_path / "a.jpg", tmp_path / "b.jpg")


def test_unknown_extension_is_rejected_before_anything_is_made(tmp_path):
    with pytest.raises(
        InputError,
        match=r"a\.gif has the extension '\.gif'; "
        r"expected one of \.png \.jpg \.jpeg \.jpe \.jfif \.jif \.webp \.bmp \.tif \.tiff \.avif$",
    ):
        images.write_image(tmp_path / "new" / "a.gif", smooth(4, 4))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "limit"), [("a.webp", 16383), ("a.jpg", 65500)])
def test_a_side_too_long_for_the_format_is_rejected(tmp_path, name, limit):
    images.write_image(tmp_path / name, np.zeros((1, limit, 3), np.uint8))
    before = (tmp_path / name).read_bytes()
    with pytest.raises(
        InputError, match=rf"{name} is {limit + 1}x1; expected sides of at most {limit} in "
    ):
        images.write_image(tmp_path / name, np.zeros((1, limit + 1, 3), np.uint8))
    assert (tmp_path / name).read_bytes() == before


def test_missing_folders_are_made_and_the_file_has_ordinary_permissions(tmp_path):
    images.write_image(tmp_path / "x" / "y" / "a.png", smooth(4, 4))
    (tmp_path / "plain").touch()
    modes = [stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / "x/y/a.png", tmp_path / "plain")]
    assert modes[0] == modes[1]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_failing_halfway_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, error):
    path = tmp_path / "a.png"
    images.write_image(path, smooth(8, 8))
    before = path.read_bytes()

    def fail(unfinished, target):
        assert unfinished.parent == target.parent == tmp_path, "not beside the target"
        assert unfinished.stat().st_size > 0
        raise error("no space")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(error):
        images.write_image(path, noise((8, 8, 3)))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("extension", images.WRITABLE_EXTENSIONS)
@pytest.mark.parametrize("size", [(9, 9), (200, 300)])
def test_a_full_disk_is_reported_and_leaves_nothing(tmp_path, extension, size):
    path = tmp_path / f"a{extension}"
    images.write_image(path, noise((*size, 3)))
    whole = path.stat().st_size
    path.unlink()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (whole - 1, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            images.write_image(path, noise((*size, 3)))
        with pytest.raises(OSError, match="File too large") as error:
            save_image(path, LoadedImage(noise((*size, 3))))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert error.value.filename == str(path)
    assert list(tmp_path.iterdir()) == []


def test_an_unfinished_file_is_no_image_of_the_folder(tmp_path, monkeypatch):
    images.write_image(tmp_path / "a.png", smooth(8, 8))
    seen = []
    replace = os.replace

    def look(unfinished, target):
        seen.extend(find_images(tmp_path))
        replace(unfinished, target)

    monkeypatch.setattr(os, "replace", look)
    images.write_image(tmp_path / "b.png", smooth(8, 8))
    assert seen == [tmp_path / "a.png"]


@pytest.mark.parametrize("format_name", FORMATS)
@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a"])
def test_format_is_recognized_by_content_whatever_the_name(tmp_path, format_name, name):
    path = tmp_path / name
    path.write_bytes(saved(smooth(40, 30), format_name))
    read = images.read_image(path)
    assert read.shape == (40, 30, 3)
    assert np.abs(read.astype(int) - smooth(40, 30)).max() <= 24


@pytest.mark.parametrize("format_name", FORMATS)
@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.9])
def test_truncated_files_are_rejected(tmp_path, format_name, share):
    data = saved(noise((200, 200, 3)), format_name)
    path = tmp_path / "cut.png"
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(InputError, match=rejected(path, ".+")):
        images.read_image(path)


def test_damaged_pixels_are_rejected(tmp_path):
    data = bytearray(saved(noise((64, 64, 3)), "PNG"))
    data[len(data) // 2] ^= 0xFF
    path = tmp_path / "a.png"
    path.write_bytes(data)
    with pytest.raises(InputError, match=rejected(path, ".+")):
        images.read_image(path)


def test_the_reason_of_a_damaged_image_is_the_same_in_every_thread(tmp_path):
    contents = [saved(noise((60, 60, 3)), name) for name in ("PNG", "JPEG", "TIFF")]
    for index, content in enumerate(contents):
        (tmp_path / f"{index}").write_bytes(content)
        (tmp_path / f"{index}cut").write_bytes(content[: len(content) // 2])

    def reason(number: int) -> str | None:
        path = tmp_path / f"{number % 3}{'cut' * (number % 2)}"
        try:
            images.read_image(path)
        except InputError as error:
            return str(error).replace(str(path), "x")
        return None

    with ThreadPoolExecutor(8) as pool:
        assert len({*pool.map(reason, range(600))}) == 2


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (b"notes, not an image", "its content is of another format"),
        (saved(smooth(8, 8), "PPM"), "its content is of another format"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), ".+"),
        (b"BM" + bytes(100), ".+"),
        (b"RIFF\x10\n\0\0WEBP" + bytes(100), ".+"),
        (b"\xff\xd8\xff" + bytes(100), ".+"),
        (b"II*\0\x08\0\0\0" + bytes(100), ".+"),
        (b"\0\0\0\x18ftypheic" + bytes(100), "it is HEIC, which libvips has no codec for"),
    ],
)
def test_what_is_no_image_is_reported_in_one_line(tmp_path, content, reason):
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(InputError, match=rejected(path, reason)):
        images.read_image(path)


def test_missing_file_and_folder_are_reported_in_one_line(tmp_path):
    with pytest.raises(InputError, match=rejected(tmp_path / "a.png", "No such file or directory")):
        images.read_image(tmp_path / "a.png")
    with pytest.raises(InputError, match=rejected(tmp_path, "Is a directory")):
        images.read_image(tmp_path)


def png_chunk(name: bytes, content: bytes) -> bytes:
    crc = zlib.crc32(name + content)
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", crc)


@pytest.mark.parametrize(("w", "h"), [(12000, 12000), (100_000, 100_000)])
def test_an_image_beyond_the_limit_is_rejected_without_decoding(tmp_path, w, h):
    header = struct.pack(">IIBBBBB", w, h, 8, 2, 0, 0, 0)
    path = tmp_path / "bomb.png"
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", b"x" * 99)
    )
    with pytest.raises(
        InputError, match=rejected(path, f"{w}x{h} exceeds the limit of 134217728 pixels")
    ):
        images.read_image(path)


def test_a_photograph_of_48_megapixels_is_read(tmp_path):
    path = tmp_path / "large.png"
    Image.new("L", (8000, 6000), 7).save(path, compress_level=1)
    read = images.read_image(path)
    assert read.shape == (6000, 8000, 3)
    assert read[-1, -1].tolist() == [7, 7, 7]


@pytest.mark.parametrize("format_name", FORMATS)
def test_several_threads_read_the_same(tmp_path, format_name):
    paths = []
    for seed in range(8):
        paths.append(tmp_path / f"{seed}.png")
        paths[-1].write_bytes(saved(noise((64, 64, 3), seed=seed), format_name))
    expected = [images.read_image(path) for path in paths]
    with ThreadPoolExecutor(8) as pool:
        for got, want in zip(pool.map(images.read_image, paths * 8), expected * 8, strict=True):
            np.testing.assert_array_equal(got, want)
