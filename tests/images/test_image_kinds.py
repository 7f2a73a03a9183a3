from __future__ import annotations

import logging
import re
import struct
import zlib

import numpy as np
import pytest
import tifffile
from image_files import GRAY, KINDS, SRGB, chunk, encoded, noise, phone, rejected, smooth
from PIL import Image

from drsformer_jax.errors import InputError
from drsformer_jax.images.image import LoadedImage, load_image, save_image
from drsformer_jax.images.pixels import WRITABLE_EXTENSIONS, image_size, read_image


def test_palettes_become_rgb_and_keep_their_transparency(tmp_path):
    image = Image.new("P", (3, 1))
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    image.putdata([2, 0, 1])
    image.save(tmp_path / "plain.png")
    image.save(tmp_path / "clear.png", transparency=b"\x00\x80\xff")
    plain, clear = load_image(tmp_path / "plain.png"), load_image(tmp_path / "clear.png")
    assert plain.rgb[0].tolist() == [[70, 80, 90], [10, 20, 30], [40, 50, 60]]
    assert clear.rgb.tolist() == plain.rgb.tolist()
    assert (plain.alpha, clear.alpha.tolist()) == (None, [[255, 0, 128]])
    assert not plain.gray


@pytest.mark.parametrize(
    ("depth", "kind", "row", "key", "rgb", "alpha"),
    [
        (1, 0, b"\x40", (1,), [[0] * 3, [255] * 3], [255, 0]),
        (2, 0, b"\x60", (1,), [[85] * 3, [170] * 3], [0, 255]),
        (4, 0, b"\x5a", (10,), [[85] * 3, [170] * 3], [255, 0]),
        (8, 0, b"\x05\x0a", (5,), [[5] * 3, [10] * 3], [0, 255]),
        (16, 0, b"\x05\0\x05\1", (0x501,), [[0x500] * 3, [0x501] * 3], [65535, 0]),
        (8, 2, b"\1\2\3\1\2\4", (1, 2, 3), [[1, 2, 3], [1, 2, 4]], [0, 255]),
        (16, 2, b"\0\1\0\2\0\3\0\1\0\2\0\4", (1, 2, 4), [[1, 2, 3], [1, 2, 4]], [65535, 0]),
    ],
)
def test_a_transparent_color_of_a_png_becomes_alpha(tmp_path, depth, kind, row, key, rgb, alpha):
    (tmp_path / "a.png").write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, depth, kind, 0, 0, 0))
        + chunk(b"tRNS", struct.pack(f">{len(key)}H", *key))
        + chunk(b"IDAT", zlib.compress(b"\0" + row))
        + chunk(b"IEND", b"")
    )
    loaded = load_image(tmp_path / "a.png")
    assert (loaded.rgb[0].tolist(), loaded.alpha[0].tolist()) == (rgb, alpha)
    assert loaded.gray == (kind == 0)


@pytest.mark.parametrize("extension", [".png", ".tif", ".bmp"])
def test_bilevel_images_are_gray(tmp_path, extension):
    levels = noise((5, 9)) > 127
    Image.fromarray(levels).save(tmp_path / f"a{extension}")
    loaded = load_image(tmp_path / f"a{extension}")
    assert loaded.gray
    np.testing.assert_array_equal(loaded.rgb, np.repeat(255 * levels[..., None], 3, 2))


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"compression": "lzw", "predictor": True},
        {"compression": "zlib"},
        {"compression": "packbits"},
        {"tile": (16, 16)},
        {"rowsperstrip": 2},
        {"byteorder": ">"},
        {"bigtiff": True},
        {"planarconfig": "separate"},
    ],
    ids=str,
)
def test_tiff_files_of_every_layout_are_read(tmp_path, channels, deep, options):
    pixels = noise((5, 7, channels) if channels > 1 else (5, 7), deep)
    if channels <= 2:  # libvips mixes planes of gray and alpha up
        options = {name: value for name, value in options.items() if name != "planarconfig"}
    stored = np.moveaxis(pixels, 2, 0) if "planarconfig" in options else pixels
    tifffile.imwrite(
        tmp_path / "a.tif",
        stored,
        **{
            "photometric": "rgb" if channels > 2 else "minisblack",
            "planarconfig": "contig" if channels > 1 else None,
            "extrasamples": ["unassalpha"] if channels in (2, 4) else None,
            "iccprofile": SRGB if channels > 2 else GRAY,
            "extratags": [(0x0112, 3, 1, 8, True), (0x013B, 2, 0, "Zoe", True)],
        }
        | options,
    )
    loaded = load_image(tmp_path / "a.tif")
    expected = np.rot90(np.atleast_3d(pixels))
    colors = expected[..., :3] if channels > 2 else expected[..., [0, 0, 0]]
    np.testing.assert_array_equal(loaded.rgb, colors)
    if channels in (2, 4):
        np.testing.assert_array_equal(loaded.alpha, expected[..., -1])
    assert loaded.metadata["icc-profile-data"] == (SRGB if channels > 2 else GRAY)
    assert loaded.lost == ("EXIF is dropped",)


def test_tiff_of_16_bits_with_white_at_zero(tmp_path):
    gray = noise((5, 7), True)
    tifffile.imwrite(tmp_path / "a.tif", gray, photometric="miniswhite")
    np.testing.assert_array_equal(load_image(tmp_path / "a.tif").rgb[..., 1], 65535 - gray)


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_colors_that_a_tiff_has_multiplied_by_alpha_are_divided_and_rounded(
    tmp_path, deep, channels
):
    colors, alpha = noise((300, 256, channels), deep), noise((300, 256, 1), deep, 1)
    white = np.iinfo(alpha.dtype).max
    stored = np.dstack([np.round(colors * (alpha / white)).astype(alpha.dtype), alpha])
    photometric = "rgb" if channels == 3 else "minisblack"
    tifffile.imwrite(
        tmp_path / "a.tif", stored, photometric=photometric, extrasamples=["assocalpha"]
    )
    loaded = load_image(tmp_path / "a.tif")
    np.testing.assert_array_equal(loaded.alpha, alpha[..., 0])
    # Half a step of what is stored, and half a step of the result.
    error = np.abs(loaded.rgb.astype(float) - colors)[alpha[..., 0] > 0]
    assert (error <= 0.5 * white / alpha[alpha > 0][:, None] + 0.51).all()


def test_tiff_of_16_bits_cmyk_multiplied_by_alpha_is_rejected(tmp_path):
    pixels = noise((4, 4, 5), True)
    options = {"photometric": "separated", "extrasamples": ["assocalpha"]}
    tifffile.imwrite(tmp_path / "a.tif", pixels, planarconfig="contig", **options)
    with pytest.raises(InputError, match="its 16-bit CMYK is multiplied by alpha"):
        load_image(tmp_path / "a.tif")


@pytest.mark.parametrize("read", [image_size, load_image])
@pytest.mark.parametrize("extra", [None, "unspecified"])
@pytest.mark.parametrize("channels", [3, 4])
def test_a_tiff_whose_colors_are_said_to_be_gray_is_rejected(tmp_path, channels, extra, read):
    """As GDAL writes RGB unless it is told."""
    tifffile.imwrite(
        tmp_path / "a.tif",
        noise((5, 7, channels)),
        photometric="minisblack",
        planarconfig="contig",
        extrasamples=None if extra is None else [extra] * (channels - 1),
    )
    reason = rf"\(its {channels} channels are said to be gray; use RGB\)"
    with pytest.raises(InputError, match=rejected(tmp_path / "a.tif")):
        read(tmp_path / "a.tif")
    with pytest.raises(InputError, match=reason):
        read(tmp_path / "a.tif")


def test_a_tiff_of_ycbcr_is_read_from_jpeg_alone(tmp_path):
    pixels = smooth(16, 24)
    tifffile.imwrite(tmp_path / "jpeg.tif", pixels, photometric="rgb", compression="jpeg")
    with tifffile.TiffFile(tmp_path / "jpeg.tif") as file:
        assert file.pages[0].photometric == 6
    assert np.abs(load_image(tmp_path / "jpeg.tif").rgb.astype(int) - pixels).mean() < 5
    for compression in (None, "zlib"):
        tifffile.imwrite(tmp_path / "a.tif", pixels, photometric=6, compression=compression)
        with pytest.raises(InputError, match=r"its colors are YCbCr without JPEG; use RGB"):
            load_image(tmp_path / "a.tif")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"subfiletype": 1}, "its first image is a thumbnail, as in camera raw files; use a dev"),
        ({"subfiletype": 3}, "its first image is a thumbnail, as in camera raw files; use a dev"),
        (
            {"extratags": [(50706, 1, 4, b"\1\4\0\0", True)]},
            "it is a camera raw file; use a developed image",
        ),
    ],
)
def test_a_camera_raw_file_is_rejected_not_its_thumbnail_restored(tmp_path, options, reason):
    tifffile.imwrite(tmp_path / "a.nef", noise((5, 7, 3)), photometric="rgb", **options)
    with pytest.raises(InputError, match=reason):
        load_image(tmp_path / "a.nef")
    tifffile.imwrite(tmp_path / "a.tif", noise((5, 7, 3)), photometric="rgb", subfiletype=2)
    np.testing.assert_array_equal(load_image(tmp_path / "a.tif").rgb, noise((5, 7, 3)))


def test_a_cr2_file_is_rejected_by_its_signature(tmp_path):
    (tmp_path / "a.cr2").write_bytes(b"II*\0\x10\0\0\0CR\2\0" + bytes(99))
    with pytest.raises(InputError, match="it is a camera raw file; use a developed image"):
        load_image(tmp_path / "a.cr2")


def test_a_tiff_channel_that_is_not_said_to_be_alpha_is_left_out(tmp_path):
    pixels = noise((5, 7, 4), True)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", extrasamples=["unspecified"])
    loaded = load_image(tmp_path / "a.tif")
    assert loaded.alpha is None
    assert loaded.lost == ("channels that are not said to be alpha are dropped",)
    np.testing.assert_array_equal(loaded.rgb, pixels[..., :3])


def test_tiff_of_16_bits_cmyk_is_read_as_rgb(tmp_path):
    ink = np.zeros((4, 4, 4), np.uint16)
    ink[..., 1:3] = 65535
    tifffile.imwrite(tmp_path / "a.tif", ink, photometric="separated", planarconfig="contig")
    assert load_image(tmp_path / "a.tif").rgb[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize(
    ("pixels", "reason"),
    [
        (np.ones((3, 3), np.float32), "32 bits a channel, whose white is unknown; use 8 or 16"),
        (np.ones((3, 3), np.int32), "32 bits a channel, whose white is unknown; use 8 or 16"),
        (np.ones((3, 3), np.int16), "16 bits a channel, whose white is unknown; use 8 or 16"),
        (np.ones((3, 3), np.float16), "16 bits a channel, whose white is unknown; use 8 or 16"),
        (np.ones((3, 3, 3), np.float32), ".+"),
        (np.ones((3, 3), np.float64), ".+"),
    ],
    ids=str,
)
def test_values_without_a_known_white_are_rejected(tmp_path, pixels, reason):
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb" if pixels.ndim > 2 else None)
    with pytest.raises(InputError, match=rf"a\.tif is no image that can be read \(.*{reason}\);"):
        load_image(tmp_path / "a.tif")


def test_of_an_animation_the_first_image_is_read(tmp_path):
    frames = [Image.fromarray(noise((6, 6, 3), seed=seed)) for seed in (1, 2)]
    exact = {"quality": 100, "subsampling": "4:4:4"}
    several = {"a.png": {}, "a.webp": {"lossless": True}, "a.tif": {}, "a.avif": exact}
    for name, options in several.items():
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], **options)
        loaded = load_image(tmp_path / name)
        difference = np.abs(loaded.rgb.astype(int) - frames[0]).max()
        assert difference <= (2 if name == "a.avif" else 0)
        assert loaded.lost == ("only the first of 2 images is kept",)
    deep = noise((2, 6, 6, 3), True)
    tifffile.imwrite(tmp_path / "a.tif", deep, photometric="rgb")
    np.testing.assert_array_equal(load_image(tmp_path / "a.tif").rgb, deep[0])


@pytest.mark.parametrize("extension", [".png", ".tif"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("share", [0.001, 0.01, 0.1, 0.5, 0.9])
def test_truncated_files_of_16_bits_are_rejected(tmp_path, extension, channels, share):
    data = encoded(noise((50, 50, channels) if channels > 1 else (50, 50), True), extension)
    path = tmp_path / "cut"
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(InputError, match=rejected(path)):
        load_image(path)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize(
    ("extension", "deep"),
    KINDS,
)
def test_damaged_files_are_read_or_rejected_in_one_line(tmp_path, extension, deep):
    data = encoded(noise((9, 9, 3), deep), extension, profile=SRGB, block=phone(6))
    random = np.random.default_rng(0)
    path, refusals = tmp_path / "a", []
    for _ in range(150):
        broken = bytearray(data)
        # The heads, where sizes and places stand, are hit as often as all the rest.
        spans = (64, len(data)) if extension != ".tif" else (len(data), len(data))
        for span in spans:
            broken[random.integers(span)] = random.integers(256)
        path.write_bytes(broken)
        try:
            load_image(path)
        except InputError as error:
            refusals.append(str(error))
    assert refusals
    assert [line for line in refusals if not re.match(rejected(path), line)] == []


@pytest.mark.parametrize("title", ["rain", "Zoë"])
def test_a_profile_that_libpng_warns_of_prints_and_logs_nothing(tmp_path, capfd, caplog, title):
    """Nor runs Python code in a thread of libvips, as logging would."""
    caplog.set_level(logging.WARNING)
    broken = SRGB[:68] + bytes(12) + SRGB[80:]  # its illuminant
    data = encoded(noise((5, 7, 3)), ".png")
    part = chunk(b"iCCP", title.encode("latin-1") + b"\0\0" + zlib.compress(broken))
    (tmp_path / "a.png").write_bytes(data[:33] + part + data[33:])
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), noise((5, 7, 3)))
    assert image_size(tmp_path / "a.png") == (5, 7)
    load_image(tmp_path / "a.png")
    assert caplog.records == []
    assert capfd.readouterr() == ("", "")


def test_a_profile_of_other_colors_in_a_16_bit_png_prints_nothing(tmp_path, capfd):
    (tmp_path / "a.png").write_bytes(encoded(noise((5, 7), True), ".png", profile=SRGB))
    np.testing.assert_array_equal(load_image(tmp_path / "a.png").rgb[..., 0], noise((5, 7), True))
    assert capfd.readouterr() == ("", "")


def bomb(tags: dict[int, tuple[int, int]]) -> bytes:
    rows = [
        struct.pack("<HHLL", tag, kind, 1, value) for tag, (kind, value) in sorted(tags.items())
    ]
    return b"II*\0" + struct.pack("<LH", 8, len(rows)) + b"".join(rows) + bytes(4)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({0x0100: (4, 100_000), 0x0101: (4, 100_000)}, "100000x100000 exceeds the limit of"),
        ({0x0115: (3, 60_000)}, "it is damaged"),
        ({0x0115: (3, 0)}, "it is damaged"),
        ({0x0100: (4, 0)}, "Cannot handle zero|no image"),
        ({0x0111: (4, 2**31)}, "no image"),
    ],
)
def test_tiff_files_that_promise_too_much_are_rejected(tmp_path, changed, reason):
    tags = {0x0100: (4, 9), 0x0101: (4, 9), 0x0102: (3, 16), 0x0103: (3, 1), 0x0106: (3, 1)}
    tags |= {0x0111: (4, 8), 0x0115: (3, 1), 0x0116: (4, 9), 0x0117: (4, 162)}
    (tmp_path / "fine").write_bytes(bomb(tags) + bytes(200))
    assert load_image(tmp_path / "fine").rgb.shape == (9, 9, 3)
    (tmp_path / "bomb").write_bytes(bomb(tags | changed) + bytes(200))
    with pytest.raises(InputError, match=reason):
        load_image(tmp_path / "bomb")


ONE_STRIP = {0x0111: (4, 8), 0x0116: (4, 5), 0x0117: (4, 70)}
ONE_TILE = {0x0142: (4, 16), 0x0143: (4, 16), 0x0144: (4, 8), 0x0145: (4, 512)}
PLANES = {0x0106: (3, 2), 0x0115: (3, 3), 0x011C: (3, 2)}


@pytest.mark.parametrize(
    ("tags", "size", "reason"),
    [
        (ONE_STRIP, (7, 3000), "it has 1 of its 600 strips or tiles"),
        (ONE_STRIP, (7, 6), "it has 1 of its 2 strips or tiles"),
        (ONE_STRIP | {0x0116: (4, 0)}, (7, 5), "it is damaged"),
        (ONE_STRIP | PLANES, (7, 5), "it has 1 of its 3 strips or tiles"),
        (ONE_TILE, (16, 17), "it has 1 of its 2 strips or tiles"),
        (ONE_TILE, (17, 16), "it has 1 of its 2 strips or tiles"),
    ],
    ids=str,
)
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("read", [image_size, read_image, load_image])
def test_tiff_files_whose_strips_or_tiles_leave_a_part_out_are_rejected(
    tmp_path, read, bits, tags, size, reason
):
    path = tmp_path / "a"
    tags = {0x0102: (3, bits), 0x0103: (3, 1), 0x0106: (3, 1), 0x0115: (3, 1)} | tags
    tags |= {0x0100: (4, size[0]), 0x0101: (4, size[1])}
    path.write_bytes(bomb(tags) + bytes(600))
    with pytest.raises(InputError, match=rejected(path)):
        read(path)
    with pytest.raises(InputError, match=reason):
        read(path)


def test_a_tiff_file_of_a_strip_that_is_nowhere_is_rejected(tmp_path):
    tags = {0x0100: (4, 7), 0x0101: (4, 5), 0x0102: (3, 8), 0x0103: (3, 1), 0x0106: (3, 1)}
    tags |= {0x0111: (4, 0), 0x0115: (3, 1), 0x0116: (4, 5), 0x0117: (4, 0)}
    (tmp_path / "a").write_bytes(bomb(tags) + bytes(600))
    with pytest.raises(InputError, match=rejected(tmp_path / "a")):
        read_image(tmp_path / "a")


def test_a_png_bomb_of_16_bits_is_rejected_without_decoding(tmp_path):
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 16, 6, 0, 0, 0)
    (tmp_path / "a.png").write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"x" * 99)
    )
    with pytest.raises(InputError, match="100000x100000 exceeds the limit of 134217728 pixels"):
        load_image(tmp_path / "a.png")


@pytest.mark.parametrize("extension", WRITABLE_EXTENSIONS)
def test_an_opaque_image_of_8_bits_is_read_as_for_training(tmp_path, extension):
    save_image(tmp_path / f"a{extension}", LoadedImage(noise((9, 12, 3))))
    loaded = load_image(tmp_path / f"a{extension}")
    np.testing.assert_array_equal(loaded.rgb, read_image(tmp_path / f"a{extension}"))
