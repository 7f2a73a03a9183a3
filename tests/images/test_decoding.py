"""Decoded values against Pillow's."""

from __future__ import annotations

import contextlib
import io
import re
import struct
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from image_files import SRGB, UPRIGHT, chunk, noise, phone, saved
from PIL import Image, ImageOps

from drsformer_jax.errors import InputError
from drsformer_jax.images import formats
from drsformer_jax.images import pixels as images
from drsformer_jax.images.image import load_image
from drsformer_jax.images.vips import pyvips

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
SIGNATURE = b"\x89PNG\r\n\x1a\n"
END = chunk(b"IEND", b"")


def scene(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Slopes with some noise, so that PNG uses every filter and JPEG few bytes."""
    y, x = np.mgrid[:height, :width]
    slopes = np.stack([2 * x + y, 3 * y - x, x * y // 50], -1)
    return ((slopes + noise((height, width, 3), seed=seed) % 5) % 256).astype(np.uint8)


def pillow(content: bytes) -> np.ndarray:
    """What Pillow makes of it, by its public functions alone."""
    with Image.open(io.BytesIO(content)) as image:
        image.load()
        upright = ImageOps.exif_transpose(image)
        if upright.has_transparency_data:
            white = Image.new("RGBA", upright.size, "white")
            upright = Image.alpha_composite(white, upright.convert("RGBA"))
        return np.array(upright.convert("RGB"))


def assert_as_pillow(content: bytes) -> None:
    pixels = images.decode_image(content, "x")
    np.testing.assert_array_equal(pixels, pillow(content), strict=True)
    assert pixels.flags.writeable
    assert pixels.flags.c_contiguous
    assert images.content_size(content, "x") == pixels.shape[:2]


def png(pixels: np.ndarray, *, before: bytes = b"", after: bytes = b"", pieces: int = 1) -> bytes:
    """A PNG file with further chunks, and its pixels in several pieces."""
    plain = saved(pixels, "PNG")
    data = rows_of(plain)
    step = -(-len(data) // pieces)
    cut = [chunk(b"IDAT", data[at : at + step]) for at in range(0, len(data), step)]
    return plain[:33] + before + b"".join(cut) + after + END


def rows_of(content: bytes) -> bytes:
    """The compressed rows of a PNG file."""
    at, parts = 8, []
    while at < len(content):
        (length,) = struct.unpack_from(">I", content, at)
        if content[at + 4 : at + 8] == b"IDAT":
            parts.append(content[at + 8 : at + 8 + length])
        at += 12 + length
    return b"".join(parts)


@pytest.mark.parametrize("size", [(1, 1), (1, 90), (90, 1), (63, 65), (200, 301)])
@pytest.mark.parametrize("level", [0, 1, 9])
def test_png_of_8_bit_rgb_is_decoded(size, level):
    assert_as_pillow(saved(scene(*size), "PNG", compress_level=level))
    decoded = images.decode_image(saved(scene(*size), "PNG"), "x")
    np.testing.assert_array_equal(decoded, scene(*size))


@pytest.mark.parametrize("name", ["none", "sub", "up", "avg", "paeth"])
def test_each_filter_of_png_is_undone(name):
    rows = pyvips.Image.new_from_array(scene(20, 30)).pngsave_buffer(filter=name)
    (number,) = {*zlib.decompress(rows_of(rows))[1 + 3 * 30 :: 1 + 3 * 30]}
    assert number == ["none", "sub", "up", "avg", "paeth"].index(name)
    assert_as_pillow(rows)


HARMLESS = {
    "time": chunk(b"tIME", bytes(7)),
    "date": chunk(b"tEXt", b"date:create\0" + b"2024-05-06"),
    "program": chunk(b"tEXt", b"Software\0Some program"),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_what_programs_commonly_add_to_png_does_no_harm(name):
    assert_as_pillow(png(scene(30, 40), before=HARMLESS[name]))
    assert_as_pillow(png(scene(30, 40), after=HARMLESS[name]))
    assert_as_pillow(png(scene(30, 40), before=HARMLESS[name], pieces=7))


def test_resolution_and_profile_of_png_do_no_harm():
    assert_as_pillow(saved(scene(30, 40), "PNG", dpi=(72, 72), icc_profile=SRGB))


def xmp(orientation: int) -> bytes:
    return b'<x tiff:Orientation="%d"/>' % orientation


EXIF = b"\n\n\n" + phone(6).hex().encode()
TURNING = {
    "eXIf": chunk(b"eXIf", phone(6).removeprefix(b"Exif\0\0")),
    "ImageMagick's": chunk(b"tEXt", b"Raw profile type exif\0" + EXIF),
    "packed": chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(EXIF)),
    "XMP": chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp(6)),
}


@pytest.mark.parametrize("name", TURNING)
@pytest.mark.parametrize("place", ["before", "after"])
def test_orientation_of_png_is_found_before_and_after_the_pixels(name, place):
    content = png(scene(30, 40), **{place: TURNING[name]})
    assert_as_pillow(content)
    turned = images.decode_image(content, "x")
    np.testing.assert_array_equal(turned, np.rot90(scene(30, 40), -1))
    assert images.content_size(content, "x") == (40, 30)


def test_png_that_is_no_plain_rgb_is_decoded():
    pixels = scene(9, 11)
    alpha = np.dstack([pixels, pixels[..., 0]])
    for other in (pixels[..., 0], alpha, alpha[..., 2:]):
        assert_as_pillow(saved(other, "PNG"))
    image, stream = Image.fromarray(pixels), io.BytesIO()
    image.quantize(8).save(stream, "PNG")
    assert_as_pillow(stream.getvalue())
    key = struct.pack(">3H", *pixels[2, 3])
    transparent = png(pixels, before=chunk(b"tRNS", key))
    assert_as_pillow(transparent)
    assert images.decode_image(transparent, "x")[2, 3].tolist() == [255, 255, 255]


def test_interlaced_and_animated_png_are_decoded():
    pixels = scene(1, 1)
    plain = saved(pixels, "PNG")
    interlaced = plain[:8] + chunk(b"IHDR", plain[16:28] + b"\1") + plain[33:]
    assert_as_pillow(interlaced)
    frames, stream = [Image.fromarray(scene(6, 6, seed)) for seed in (1, 2)], io.BytesIO()
    frames[0].save(stream, "PNG", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(images.decode_image(stream.getvalue(), "x"), scene(6, 6, 1))


@pytest.mark.parametrize("keyword", ["transparency", "interlace", "bbox", "exif", "anything"])
def test_a_text_of_png_changes_no_pixel(keyword):
    content = png(scene(9, 9), before=chunk(b"tEXt", keyword.encode() + b"\0x"))
    np.testing.assert_array_equal(images.decode_image(content, "x"), scene(9, 9))


Change = Callable[[bytes], bytes]
BAD_ROWS: dict[str, Change] = {
    "fewer rows": lambda rows: zlib.compress(zlib.decompress(rows)[:-91]),
    "an incomplete row": lambda rows: zlib.compress(zlib.decompress(rows)[:-1]),
    "an unknown filter": lambda rows: zlib.compress(b"\5" + zlib.decompress(rows)[1:]),
    "other data": lambda rows: b"no rows",
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_png_with_valid_chunks_of_bad_rows_is_rejected(name, capfd):
    plain = saved(scene(20, 30), "PNG")
    bad = BAD_ROWS[name](rows_of(plain))
    with pytest.raises(InputError, match=r"^x is no image that can be read"):
        images.decode_image(plain[:33] + chunk(b"IDAT", bad) + END, "x")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("place", range(16, 29))
def test_png_of_a_damaged_head_prints_nothing(place, capfd):
    plain = saved(scene(20, 30), "PNG")
    for value in (1, 2, 16, 255):
        head = bytearray(plain[16:29])
        head[place - 16] ^= value
        with contextlib.suppress(InputError):
            images.decode_image(plain[:8] + chunk(b"IHDR", bytes(head)) + plain[33:], "x")
    assert capfd.readouterr() == ("", "")


SAMPLING = ["444", "422", "420", "440", "411"]


@pytest.mark.parametrize("sampling", SAMPLING)
@pytest.mark.parametrize("size", [(1, 1), (7, 9), (33, 47), (64, 80), (131, 129)])
@pytest.mark.parametrize("quality", [30, 95])
def test_jpeg_is_decoded_in_every_sampling(sampling, size, quality):
    content = imagecodecs.jpeg8_encode(scene(*size), level=quality, subsampling=sampling)
    assert_as_pillow(content)


@pytest.mark.parametrize(
    "options",
    [
        {"restart_marker_rows": 1},
        {"restart_marker_blocks": 3},
        {"optimize": True},
        {"keep_rgb": True},
        {"comment": b"some text"},
        {"icc_profile": SRGB},
    ],
)
def test_jpeg_of_several_kinds_is_decoded(options):
    assert_as_pillow(saved(scene(70, 90), "JPEG", quality=80, **options))


@pytest.mark.parametrize("transform", [None, 0, 1, 2])
@pytest.mark.parametrize("jfif", [True, False])
@pytest.mark.parametrize("names", [b"\1\2\3", b"RGB", b"\0\1\2"])
def test_colors_of_jpeg_are_recognized_as_by_pillow(transform, jfif, names):
    content = bytearray(saved(scene(20, 30), "JPEG", subsampling=0))
    frame, scan = content.find(b"\xff\xc0"), content.find(b"\xff\xda")
    for component in range(3):
        content[frame + 10 + 3 * component] = names[component]
        content[scan + 5 + 2 * component] = names[component]
    adobe = b"\xff\xee\0\x0eAdobe\0d\0\0\0\0"
    start = b"\xff\xd8" + (b"" if transform is None else adobe + bytes([transform]))
    assert_as_pillow(start + bytes(content[2 if jfif else 20 :]))


def test_jpeg_that_is_no_plain_rgb_is_decoded():
    assert_as_pillow(saved(scene(20, 30)[..., 0], "JPEG"))
    assert_as_pillow(saved(scene(20, 30), "JPEG", progressive=True))
    stream = io.BytesIO()
    Image.fromarray(scene(20, 30)).convert("CMYK").save(stream, "JPEG")
    assert_as_pillow(stream.getvalue())


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("kind", ["exif", "xmp"])
def test_orientation_of_jpeg_is_applied(orientation, kind):
    block = phone(orientation) if kind == "exif" else xmp(orientation)
    content = saved(scene(20, 30), "JPEG", subsampling=0, **{kind: block})
    assert_as_pillow(content)
    plain = saved(scene(20, 30), "JPEG", subsampling=0)
    turned = UPRIGHT[orientation](pillow(plain))
    np.testing.assert_array_equal(images.decode_image(content, "x"), turned)
    assert images.content_size(content, "x") == turned.shape[:2]


def test_what_stands_behind_the_end_of_a_jpeg_is_ignored():
    content = saved(scene(20, 30), "JPEG")
    for more in (b"\0", b"\n", content, b"\xff\xd9"):
        assert_as_pillow(content + more)


def mutations(content: bytes, count: int, seed: int) -> list[bytes]:
    """Files cut short, with other bits and bytes, and with parts left out, repeated or added."""
    random = np.random.default_rng(seed)
    changed = []
    for _ in range(count):
        data, at, length = bytearray(content), *random.integers((len(content), 40))
        # A JPEG's marks stand in its first bytes, which random places seldom meet.
        at = at if random.integers(2) else at % 700
        kind = random.integers(6)
        if kind == 0:
            del data[at:]
        elif kind == 1:
            data[at] ^= 1 << random.integers(8)
        elif kind == 2:
            data[at] = random.choice([0, 1, 2, 3, 255, 0xD9, 0xDA])
        elif kind == 3:
            del data[at : at + length]
        elif kind == 4:
            data[at:at] = random.bytes(length)
        else:
            source = random.integers(len(data))
            data[at : at + length] = data[source : source + length]
        changed.append(bytes(data))
    return changed


@pytest.mark.parametrize("format_name", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF", "GIF", "BMP"])
def test_damaged_files_are_decoded_or_rejected(format_name, capfd):
    content, lines = saved(scene(50, 60), format_name), []
    for changed in mutations(content, 300, 0):
        try:
            images.decode_image(changed, "x")
        except InputError as error:
            lines.append(str(error))
    assert len(lines) > 30
    right = re.compile(r"x is no image that can be read \([^\n]+\); expected [^\n]+")
    assert [line for line in lines if not right.fullmatch(line)] == []
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("format_name", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF", "GIF", "BMP"])
def test_a_file_cut_short_anywhere_is_rejected(format_name):
    content = saved(scene(20, 30), format_name)
    # Without the last bytes all pixels may be there.
    for length in range(0, len(content) - 16, 1 + len(content) // 200):
        with pytest.raises(InputError):
            images.decode_image(content[:length], "x")


def test_an_image_beyond_the_limit_is_rejected_before_decoding(monkeypatch):
    monkeypatch.setattr(formats, "MAX_PIXELS", 599)
    monkeypatch.setattr(formats.OpenedImage, "decode", lambda self: pytest.fail("decoded"))
    for format_name in ("PNG", "JPEG", "WEBP", "TIFF", "AVIF", "GIF", "BMP"):
        with pytest.raises(InputError, match="30x20 exceeds the limit of 599 pixels"):
            images.decode_image(saved(scene(20, 30), format_name), "x")


@pytest.mark.parametrize("format_name", ["PNG", "JPEG"])
def test_several_threads_decode_the_same(format_name):
    contents = [saved(scene(60, 70, seed), format_name) for seed in range(8)]
    expected = [pillow(content) for content in contents]
    with ThreadPoolExecutor(8) as pool:
        decoded = pool.map(images.decode_image, contents * 8, "x" * 64)
        for got, want in zip(decoded, expected * 8, strict=True):
            np.testing.assert_array_equal(got, want)


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared")
def test_benchmark_images_are_decoded():
    paths = sorted(SHARED.rglob("*.png"))[::5]
    assert len(paths) > 10
    for path in paths:
        assert_as_pillow(path.read_bytes())


def test_a_gif_gives_its_first_image_on_white():
    stream = io.BytesIO()
    image = Image.fromarray(scene(9, 11)).quantize(64)
    image.info["transparency"] = image.getpixel((3, 2))
    image.save(stream, "GIF", save_all=True, append_images=[Image.new("P", (11, 9))])
    assert_as_pillow(stream.getvalue())
    assert (images.decode_image(stream.getvalue(), "x")[2, 3] == 255).all()


@pytest.mark.parametrize("bits", [8, 10, 12])
def test_avif_of_every_depth_reaches_white(tmp_path, bits):
    values = np.full((16, 16, 3), 65535 if bits > 8 else 255, np.uint16 if bits > 8 else np.uint8)
    image = pyvips.Image.new_from_array(values, interpretation="rgb16" if bits > 8 else "srgb")
    content = image.heifsave_buffer(compression="av1", bitdepth=bits, lossless=True)
    (tmp_path / "a.avif").write_bytes(content)
    np.testing.assert_array_equal(load_image(tmp_path / "a.avif").rgb, values, strict=True)


def test_a_program_error_and_a_lack_of_memory_are_not_reported_as_a_damaged_file(monkeypatch):
    for error in (MemoryError, AttributeError, KeyError, TypeError):

        def fail(self, error=error):
            raise error

        monkeypatch.setattr(formats.OpenedImage, "decode", fail)
        with pytest.raises(error):
            images.decode_image(saved(scene(9, 9), "PNG"), "x")


@pytest.mark.parametrize("format_name", ["PNG", "JPEG", "TIFF", "WEBP", "AVIF"])
def test_the_size_is_read_from_a_part_of_the_file(tmp_path, format_name, monkeypatch):
    content = saved(noise((1000, 1500, 3)), format_name)
    path = tmp_path / "a"
    path.write_bytes(content)
    monkeypatch.setattr(formats.OpenedImage, "decode", lambda self: pytest.fail("decoded"))
    before = read_bytes_of_process()
    assert images.image_size(path) == (1000, 1500)
    assert read_bytes_of_process() - before < len(content) / 3


def read_bytes_of_process() -> int:
    """Bytes that this process has read by system calls."""
    return int(re.search(r"rchar: (\d+)", Path("/proc/self/io").read_text())[1])


def test_a_file_that_was_replaced_is_read_anew(tmp_path):
    for seed in range(3):
        image = scene(9 + seed, 9, seed)
        (tmp_path / "a.png").write_bytes(saved(image, "PNG"))
        assert images.image_size(tmp_path / "a.png") == (9 + seed, 9)
        np.testing.assert_array_equal(images.read_image(tmp_path / "a.png"), image)
        assert pyvips.cache_get_size() == 0
