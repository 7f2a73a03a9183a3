"""Every orientation, depth and kind of color becomes upright RGB of 8 bits."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from image_files import noise, saved, smooth
from PIL import Image

from drsformer_jax.errors import InputError
from drsformer_jax.images import pixels as images

ORIENTED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a),
}


@pytest.mark.parametrize("orientation", ORIENTED)
@pytest.mark.parametrize(
    ("format_name", "options"),
    [
        ("PNG", {}),
        ("WEBP", {"lossless": True}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_deflate"}),
    ],
)
def test_exif_orientation_is_applied_once(tmp_path, orientation, format_name, options):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "a"
    path.write_bytes(saved(noise((5, 8, 3)), format_name, exif=exif, **options))
    np.testing.assert_array_equal(images.read_image(path), ORIENTED[orientation](noise((5, 8, 3))))


@pytest.mark.parametrize("orientation", ORIENTED)
@pytest.mark.parametrize("mode", ["L", "RGBA"])
def test_uncompressed_gray_and_rgba_tiff_images_are_turned_too(tmp_path, orientation, mode):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(noise((5, 8, 3))).convert(mode)
    image.save(tmp_path / "a.tif", exif=exif)
    np.testing.assert_array_equal(
        images.read_image(tmp_path / "a.tif"),
        ORIENTED[orientation](np.array(image.convert("RGB"))),
    )


def test_impossible_exif_orientation_is_ignored(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 9
    (tmp_path / "a.png").write_bytes(saved(noise((5, 8, 3)), "PNG", exif=exif))
    np.testing.assert_array_equal(images.read_image(tmp_path / "a.png"), noise((5, 8, 3)))


def test_a_phone_jpeg_is_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "a.jpg"
    path.write_bytes(saved(smooth(40, 64), "JPEG", quality=95, exif=exif))
    read = images.read_image(path)
    assert read.shape == (64, 40, 3)
    assert np.abs(read.astype(int) - np.rot90(smooth(40, 64), -1)).mean() < 2


def test_broken_camera_data_neither_spoils_nor_warns(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 1
    exif[0x010F] = "a maker's name of some length"
    path = tmp_path / "a.jpg"
    path.write_bytes(saved(smooth(8, 8), "JPEG", exif=exif.tobytes()[:-20]))
    (tmp_path / "b.jpg").write_bytes(saved(smooth(8, 8), "JPEG", exif=b"Exif\0\0nonsense"))
    program = (
        "import sys; from drsformer_jax.images.pixels import read_image\n"
        "for path in sys.argv[1:]: print(read_image(path).shape)"
    )
    run = subprocess.run(
        [sys.executable, "-c", program, path, tmp_path / "b.jpg"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert (run.stdout, run.stderr) == ("(8, 8, 3)\n(8, 8, 3)\n", "")


@pytest.mark.parametrize("format_name", ["PNG", "TIFF"])
def test_16_bit_gray_is_scaled_and_rounded(tmp_path, format_name):
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    path = tmp_path / "a"
    path.write_bytes(saved(values, format_name))
    expected = np.round(values / 65535 * 255).astype(np.uint8)
    np.testing.assert_array_equal(images.read_image(path), np.stack([expected] * 3, -1))


def test_16_bits_of_any_shape_become_the_nearest_8_bits():
    values = np.arange(65536, dtype=np.uint16)
    expected = np.round(values / 65535 * 255).astype(np.uint8)
    for shape in ((65536,), (64, 1024), (64, 256, 4)):
        rounded = images.to_8_bits(values.reshape(shape))
        np.testing.assert_array_equal(rounded, expected.reshape(shape), strict=True)


def test_32_bit_images_are_rejected(tmp_path):
    path = tmp_path / "a.tif"
    path.write_bytes(saved(np.ones((3, 3), np.float32), "TIFF"))
    with pytest.raises(InputError, match=r"32 bits a channel, whose white is unknown; use 8 or 16"):
        images.read_image(path)


def test_8_bit_gray_bilevel_and_cmyk_become_rgb(tmp_path):
    gray = noise((6, 7))
    (tmp_path / "gray.png").write_bytes(saved(gray, "PNG"))
    np.testing.assert_array_equal(
        images.read_image(tmp_path / "gray.png"), np.stack([gray] * 3, -1)
    )
    Image.fromarray(gray > 127).save(tmp_path / "bilevel.png")
    np.testing.assert_array_equal(
        images.read_image(tmp_path / "bilevel.png"), np.stack([255 * (gray > 127)] * 3, -1)
    )
    Image.new("CMYK", (4, 4), (0, 255, 255, 0)).save(tmp_path / "cmyk.tif")
    assert images.read_image(tmp_path / "cmyk.tif")[0, 0].tolist() == [255, 0, 0]


def test_palette_colors_are_looked_up(tmp_path):
    image = Image.new("P", (3, 1))
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    image.putdata([2, 0, 1])
    image.save(tmp_path / "plain.png")
    image.save(tmp_path / "clear.png", transparency=b"\x00\xff\xff")
    colors = [[70, 80, 90], [10, 20, 30], [40, 50, 60]]
    assert images.read_image(tmp_path / "plain.png")[0].tolist() == colors
    colors[1] = [255, 255, 255]
    assert images.read_image(tmp_path / "clear.png")[0].tolist() == colors


@pytest.mark.parametrize("format_name", ["PNG", "WEBP", "TIFF"])
def test_transparent_images_are_laid_on_white(tmp_path, format_name):
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[0, :, :3] = (100, 0, 200)
    rgba[0, :, 3] = (255, 0, 51)
    path = tmp_path / "a"
    options = {"lossless": True} if format_name == "WEBP" else {}
    path.write_bytes(saved(rgba, format_name, **options))
    expected = [[100, 0, 200], [255, 255, 255], [224, 204, 244]]
    assert images.read_image(path)[0].tolist() == expected


def test_an_animation_gives_its_first_image(tmp_path):
    frames = [Image.fromarray(noise((6, 6, 3), seed=seed)) for seed in (1, 2)]
    for name, options in (("a.png", {}), ("a.webp", {"lossless": True}), ("a.tif", {})):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], **options)
        np.testing.assert_array_equal(images.read_image(tmp_path / name), noise((6, 6, 3), seed=1))
