"""EXIF that is damaged, says nothing or is too long."""

from __future__ import annotations

import struct

import pytest
from image_files import encoded, metadata, noise, phone
from PIL import Image

from drsformer_jax.images.image import LoadedImage, load_image, save_image


@pytest.mark.parametrize(
    "block", [b"Exif\0\0nonsense", phone(1)[:20], b"Exif\0\0II*\0\xff\xff\xff\xff"]
)
def test_broken_camera_data_is_left_out(tmp_path, block):
    (tmp_path / "a.jpg").write_bytes(encoded(noise((8, 8, 3)), ".jpg", block=block))
    loaded = load_image(tmp_path / "a.jpg")
    assert "exif-data" not in loaded.metadata
    assert save_image(tmp_path / "b.jpg", loaded) == ["EXIF that cannot be understood is dropped"]


@pytest.mark.parametrize("extension", [".jpg", ".png", ".webp"])
@pytest.mark.parametrize(
    "tags",
    [
        {0x011A: 300.0, 0x011B: 300.0, 0x0128: 2},
        {0x8769: {0x9000: b"0231", 0xA001: 1}},
        {0x011A: 300.0, 0x011B: 300.0, 0x0128: 2, 0x8769: {0x9000: b"0231"}},
    ],
    ids=str,
)
def test_exif_of_nothing_that_is_not_kept_otherwise_is_dropped_without_a_note(
    tmp_path, tags, extension
):
    exif = Image.Exif()
    exif.update(tags)
    content = encoded(noise((8, 8, 3)), extension, block=exif.tobytes())
    (tmp_path / f"a{extension}").write_bytes(content)
    loaded = load_image(tmp_path / f"a{extension}")
    assert save_image(tmp_path / "b.png", loaded) == []
    found = load_image(tmp_path / "b.png").metadata.get("xres", 0) * 25.4
    assert found == pytest.approx(300 if 0x011A in tags else 0, abs=0.1)


def test_exif_whose_camera_data_is_nowhere_is_dropped_with_a_note(tmp_path):
    block = b"Exif\0\0MM\0*" + struct.pack(">LHHHLLL", 8, 1, 0x8769, 4, 1, 9999, 0)
    (tmp_path / "a.jpg").write_bytes(encoded(noise((8, 8, 3)), ".jpg", block=block))
    lost = ("EXIF that cannot be understood is dropped",)
    assert load_image(tmp_path / "a.jpg").lost == lost


@pytest.mark.parametrize("extension", [".jpg", ".png", ".webp"])
@pytest.mark.parametrize("rows", [4, 20, 2000])
def test_a_directory_of_camera_data_that_ends_too_early_is_left_out(tmp_path, extension, rows):
    """Of 4 tags and more that it claims to hold; libexif reads what there is."""
    tags = [(0x010F, b"Make"), (0x0110, b"Mode"), (0x0131, b"Soft"), (0x013B, b"Name")]
    entries = b"".join(struct.pack(">HHL4s", tag, 2, 4, text) for tag, text in tags)
    block = b"Exif\0\0MM\0*" + struct.pack(">LH", 8, rows) + entries + bytes(4)
    (tmp_path / f"a{extension}").write_bytes(encoded(noise((8, 8, 3)), extension, block=block))
    loaded = load_image(tmp_path / f"a{extension}")
    expected = [] if rows == 4 else ["EXIF that cannot be understood is dropped"]
    assert save_image(tmp_path / f"b{extension}", loaded) == expected
    assert load_image(tmp_path / f"b{extension}").rgb.shape == (8, 8, 3)


@pytest.mark.parametrize("target", [".jpg", ".png", ".webp"])
def test_exif_of_64_kilobytes_is_kept_and_more_is_dropped_with_a_note(tmp_path, target):
    exif = Image.Exif()
    for size, notes in ((64_000, []), (70_000, ["EXIF is dropped"])):
        exif[0x8769] = {0x927C: bytes(size)}
        loaded = LoadedImage(noise((4, 4, 3)), metadata={"exif-data": exif.tobytes()})
        assert save_image(tmp_path / f"a{target}", loaded) == notes
        found = metadata(tmp_path / f"a{target}")[1].get_ifd(0x8769)
        assert found == {} if notes else found[0x927C] == bytes(size)
