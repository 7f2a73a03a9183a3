"""The fast way to pixels against Pillow's, value for value."""

from __future__ import annotations

import contextlib
import io
import struct
import sys
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from image_files import SRGB, UPRIGHT, chunk, noise, phone
from PIL import Image, ImageOps

from drsformer_jax.errors import InputError
from drsformer_jax.images import decoding
from drsformer_jax.images import pixels as images

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
SIGNATURE = b"\x89PNG\r\n\x1a\n"
END = chunk(b"IEND", b"")


def scene(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Slopes with some noise, so that PNG uses every filter and JPEG few bytes."""
    y, x = np.mgrid[:height, :width]
    slopes = np.stack([2 * x + y, 3 * y - x, x * y // 50], -1)
    return ((slopes + noise((height, width, 3), seed=seed) % 5) % 256).astype(np.uint8)


def saved(pixels: np.ndarray, format_name: str, **options: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format_name, **options)
    return stream.getvalue()


def fast(content: bytes) -> np.ndarray | None:
    """What the fast way gives; None where Pillow is asked."""
    file = io.BytesIO(content)
    return decoding.fast_pixels(images.open_image(file), file)


def pillow(content: bytes) -> np.ndarray:
    """What Pillow makes of it, by its public functions alone."""
    with Image.open(io.BytesIO(content)) as image:
        image.load()
        upright = ImageOps.exif_transpose(image)
        if upright.has_transparency_data:
            white = Image.new("RGBA", upright.size, "white")
            upright = Image.alpha_composite(white, upright.convert("RGBA"))
        return np.array(upright.convert("RGB"))


def assert_fast(content: bytes) -> None:
    pixels = fast(content)
    assert pixels is not None
    np.testing.assert_array_equal(pixels, pillow(content), strict=True)
    assert pixels.flags.writeable
    assert pixels.flags.c_contiguous


def assert_left_to_pillow(content: bytes) -> None:
    assert fast(content) is None
    np.testing.assert_array_equal(images.decode_image(content, "x"), pillow(content))


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
def test_png_of_8_bit_rgb_is_decoded_fast(size, level):
    assert_fast(saved(scene(*size), "PNG", compress_level=level))
    np.testing.assert_array_equal(fast(saved(scene(*size), "PNG")), scene(*size))


@pytest.mark.parametrize("number", range(5))
def test_each_filter_of_png_is_undone(number):
    pixels = scene(20, 30)
    rows = imagecodecs.png_encode(pixels, filter=[8, 16, 32, 64, 128][number])
    assert {*zlib.decompress(rows_of(rows))[:: 1 + 3 * 30]} == {number}
    np.testing.assert_array_equal(fast(rows), pixels)


HARMLESS = {
    "time": chunk(b"tIME", bytes(7)),
    "date": chunk(b"tEXt", b"date:create\0" + b"2024-05-06"),
    "program": chunk(b"tEXt", b"Software\0Some program"),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_what_programs_commonly_add_to_png_does_no_harm(name):
    assert_fast(png(scene(30, 40), before=HARMLESS[name]))
    assert_fast(png(scene(30, 40), after=HARMLESS[name]))
    assert_fast(png(scene(30, 40), before=HARMLESS[name], pieces=7))


def test_resolution_and_profile_of_png_do_no_harm():
    assert_fast(saved(scene(30, 40), "PNG", dpi=(72, 72), icc_profile=SRGB))


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
    assert_left_to_pillow(content)
    turned = images.decode_image(content, "x")
    np.testing.assert_array_equal(turned, np.rot90(scene(30, 40), -1))
    assert images.content_size(content, "x") == (40, 30)


def test_png_that_is_no_plain_rgb_is_left_to_pillow():
    pixels = scene(9, 11)
    alpha = np.dstack([pixels, pixels[..., 0]])
    for other in (pixels[..., 0], alpha, alpha[..., 2:]):
        assert_left_to_pillow(saved(other, "PNG"))
    assert fast(bytes(imagecodecs.png_encode(noise((5, 7, 3), deep=True)))) is None
    image, stream = Image.fromarray(pixels), io.BytesIO()
    image.quantize(8).save(stream, "PNG")
    assert_left_to_pillow(stream.getvalue())
    key = struct.pack(">3H", *pixels[2, 3])
    transparent = png(pixels, before=chunk(b"tRNS", key))
    assert_left_to_pillow(transparent)
    assert images.decode_image(transparent, "x")[2, 3].tolist() == [255, 255, 255]


def test_interlaced_and_animated_png_are_left_to_pillow():
    pixels = scene(1, 1)
    plain = saved(pixels, "PNG")
    interlaced = plain[:8] + chunk(b"IHDR", plain[16:28] + b"\1") + plain[33:]
    assert_left_to_pillow(interlaced)
    frames, stream = [Image.fromarray(scene(6, 6, seed)) for seed in (1, 2)], io.BytesIO()
    frames[0].save(stream, "PNG", save_all=True, append_images=frames[1:])
    assert fast(stream.getvalue()) is None
    np.testing.assert_array_equal(images.decode_image(stream.getvalue(), "x"), scene(6, 6, 1))


@pytest.mark.parametrize("keyword", ["transparency", "interlace", "bbox", "exif", "anything"])
def test_text_that_pillow_might_take_for_something_else_is_left_to_it(keyword):
    assert fast(png(scene(9, 9), before=chunk(b"tEXt", keyword.encode() + b"\0x"))) is None


Change = Callable[[bytes], bytes]
BAD_ROWS: dict[str, Change] = {
    "fewer rows": lambda rows: zlib.compress(zlib.decompress(rows)[:-91]),
    "an incomplete row": lambda rows: zlib.compress(zlib.decompress(rows)[:-1]),
    "an unknown filter": lambda rows: zlib.compress(b"\5" + zlib.decompress(rows)[1:]),
    "a false checksum": lambda rows: rows[:-1] + bytes([rows[-1] ^ 1]),
    "no checksum": lambda rows: rows[:-4],
    "other data": lambda rows: b"no rows",
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_png_with_valid_chunks_of_bad_rows_is_left_to_pillow(name):
    plain = saved(scene(20, 30), "PNG")
    bad = BAD_ROWS[name](rows_of(plain))
    assert fast(plain[:33] + chunk(b"IDAT", bad) + END) is None


@pytest.mark.parametrize("end", [b"", END[:-1], END + b"x", chunk(b"IDAT", b"") + END + END])
def test_png_that_does_not_end_as_it_should_is_left_to_pillow(end):
    plain = saved(scene(20, 30), "PNG")
    assert fast(plain[: -len(END)] + end) is None


@pytest.mark.parametrize("place", range(16, 29))
def test_png_of_a_damaged_head_prints_nothing(place, capfd):
    plain = saved(scene(20, 30), "PNG")
    for value in (1, 2, 16, 255):
        head = bytearray(plain[16:29])
        head[place - 16] ^= value
        file = io.BytesIO(plain[:8] + chunk(b"IHDR", bytes(head)) + plain[33:])
        with contextlib.suppress(Exception):  # Pillow refuses some
            assert decoding.fast_pixels(images.open_image(file), file) is None
    assert capfd.readouterr() == ("", "")


SAMPLING = ["444", "422", "420", "440", "411"]


@pytest.mark.parametrize("sampling", SAMPLING)
@pytest.mark.parametrize("size", [(1, 1), (7, 9), (33, 47), (64, 80), (131, 129)])
@pytest.mark.parametrize("quality", [30, 95])
def test_jpeg_is_decoded_fast_in_every_sampling(sampling, size, quality):
    assert_fast(imagecodecs.jpeg8_encode(scene(*size), level=quality, subsampling=sampling))


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
def test_jpeg_of_several_kinds_is_decoded_fast(options):
    assert_fast(saved(scene(70, 90), "JPEG", quality=80, **options))


@pytest.mark.parametrize("transform", [None, 0, 1, 2])
@pytest.mark.parametrize("jfif", [True, False])
@pytest.mark.parametrize("names", [b"\1\2\3", b"RGB", b"\0\1\2"])
def test_colors_of_jpeg_are_told_as_pillow_tells_them(transform, jfif, names):
    content = bytearray(saved(scene(20, 30), "JPEG", subsampling=0))
    frame, scan = content.find(b"\xff\xc0"), content.find(b"\xff\xda")
    for component in range(3):
        content[frame + 10 + 3 * component] = names[component]
        content[scan + 5 + 2 * component] = names[component]
    adobe = b"\xff\xee\0\x0eAdobe\0d\0\0\0\0"
    start = b"\xff\xd8" + (b"" if transform is None else adobe + bytes([transform]))
    assert_fast(start + bytes(content[2 if jfif else 20 :]))


def test_jpeg_that_is_no_plain_rgb_is_left_to_pillow():
    assert_left_to_pillow(saved(scene(20, 30)[..., 0], "JPEG"))
    assert_left_to_pillow(saved(scene(20, 30), "JPEG", progressive=True))
    stream = io.BytesIO()
    Image.fromarray(scene(20, 30)).convert("CMYK").save(stream, "JPEG")
    assert_left_to_pillow(stream.getvalue())


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("kind", ["exif", "xmp"])
def test_orientation_of_jpeg_is_applied(orientation, kind):
    block = phone(orientation) if kind == "exif" else xmp(orientation)
    content = saved(scene(20, 30), "JPEG", subsampling=0, **{kind: block})
    assert_left_to_pillow(content)
    plain = saved(scene(20, 30), "JPEG", subsampling=0)
    turned = UPRIGHT[orientation](fast(plain))
    np.testing.assert_array_equal(images.decode_image(content, "x"), turned)
    assert images.content_size(content, "x") == turned.shape[:2]


def test_jpeg_with_something_behind_its_end_is_left_to_pillow():
    content = saved(scene(20, 30), "JPEG")
    for more in (b"\0", b"\n", content, b"\xff\xd9"):
        assert_left_to_pillow(content + more)


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


def with_valid_checks(content: bytes) -> bytes:
    """A damaged PNG file whose chunks' checksums do not tell of it."""
    data, at = bytearray(content), 8
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        if at + 12 + length <= len(data):
            struct.pack_into(
                ">I", data, at + 8 + length, zlib.crc32(data[at + 4 : at + 8 + length])
            )
        at += 12 + length
    return bytes(data)


def count_fast(contents: list[bytes], monkeypatch) -> int:
    """How many are decoded fast; all that are equal what is read without the fast way."""
    count = 0
    for content in contents:
        try:
            pixels = fast(content)
        except Exception:  # Pillow refuses the head
            continue
        if pixels is None:
            continue
        count += 1
        with monkeypatch.context() as patch:
            patch.setattr(images, "fast_pixels", lambda image, file: None)
            np.testing.assert_array_equal(images.decode_image(content, "x"), pixels, strict=True)
    return count


@pytest.mark.parametrize("seed", range(4))
def test_damaged_png_is_decoded_as_pillow_does_or_refused(seed, monkeypatch):
    plain = png(scene(30 + seed, 40), before=HARMLESS["date"], after=HARMLESS["time"], pieces=5)
    damaged = mutations(plain, 600, seed)
    assert count_fast(damaged, monkeypatch) < 60
    assert count_fast([with_valid_checks(content) for content in damaged], monkeypatch) < 60
    rows = zlib.decompress(rows_of(plain))
    again = [
        plain[:33] + chunk(b"IDAT", zlib.compress(changed)) + END
        for changed in mutations(rows, 200, seed)
    ]
    assert 20 < count_fast(again, monkeypatch) < 150


@pytest.mark.parametrize("options", [{}, {"restart_marker_rows": 1}, {"progressive": True}])
@pytest.mark.parametrize("sampling", [0, 2])
def test_damaged_jpeg_is_decoded_as_pillow_does_or_refused(options, sampling, monkeypatch):
    content = saved(scene(50, 60), "JPEG", quality=85, subsampling=sampling, **options)
    count = count_fast(mutations(content, 1000, sampling), monkeypatch)
    assert count == 0 if "progressive" in options else 150 < count < 900


@pytest.mark.parametrize("format_name", ["PNG", "JPEG"])
def test_a_file_cut_short_anywhere_is_left_to_pillow(format_name):
    content = saved(scene(20, 30), format_name)
    for length in range(len(content)):
        try:
            assert fast(content[:length]) is None
        except Exception:  # Pillow refuses the head
            continue


@pytest.mark.parametrize("codecs", [None, "raising"])
@pytest.mark.parametrize("format_name", ["PNG", "JPEG"])
def test_pillow_decodes_where_imagecodecs_is_missing_or_fails(format_name, codecs, monkeypatch):
    content = saved(scene(20, 30), format_name)
    expected = fast(content)
    monkeypatch.setitem(sys.modules, "imagecodecs", codecs)
    assert_left_to_pillow(content)
    np.testing.assert_array_equal(images.decode_image(content, "x"), expected)


def test_an_image_beyond_the_limit_is_refused_before_decoding(monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 599)
    monkeypatch.setattr(images, "fast_pixels", lambda image, file: pytest.fail("decoded"))
    for format_name in ("PNG", "JPEG"):
        with pytest.raises(InputError, match="30x20 exceeds the limit of 599 pixels"):
            images.decode_image(saved(scene(20, 30), format_name), "x")


@pytest.mark.parametrize("format_name", ["PNG", "JPEG"])
def test_several_threads_decode_the_same(format_name):
    contents = [saved(scene(60, 70, seed), format_name) for seed in range(8)]
    expected = [pillow(content) for content in contents]
    with ThreadPoolExecutor(8) as pool:
        for got, want in zip(pool.map(fast, contents * 8), expected * 8, strict=True):
            np.testing.assert_array_equal(got, want)


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared")
def test_benchmark_images_are_decoded_fast():
    paths = sorted(SHARED.rglob("*.png"))[::5]
    assert len(paths) > 10
    for path in paths:
        assert_fast(path.read_bytes())
