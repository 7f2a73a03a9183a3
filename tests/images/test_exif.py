from __future__ import annotations

import io
import struct
import zlib
from dataclasses import replace

import numpy as np
import pytest
import tifffile
from image_files import (
    CMYK,
    GRAY,
    KINDS,
    METADATA,
    SRGB,
    camera,
    chunk,
    encoded,
    metadata,
    noise,
    phone,
    tiff_metadata,
)
from PIL import Image
from PIL.ExifTags import IFD

from drsformer_jax.images.photo import Photo, read_photo, write_photo


@pytest.mark.parametrize("target", METADATA)
@pytest.mark.parametrize(
    ("source", "deep"),
    KINDS,
)
def test_directories_of_camera_and_place_come_through(tmp_path, source, deep, target):
    if deep and source == ".tif":
        write_photo(tmp_path / "a.tif", Photo(noise((5, 7, 3), True), exif=phone(6)[6:]))
    else:
        block = phone(6)
        (tmp_path / f"a{source}").write_bytes(encoded(noise((5, 7, 3), deep), source, block=block))
    photo = read_photo(tmp_path / f"a{source}")
    write_photo(tmp_path / f"b{target}", photo)
    maker, orientation, taken, related, place = camera(
        (tiff_metadata if target == ".tif" else metadata)(tmp_path / f"b{target}")[1]
    )
    assert photo.rgb.shape == (7, 5, 3)
    assert (maker, orientation) == ("Maker", 1)
    assert taken == {
        0x9003: "2024:05:06 07:08:09",
        0x927C: b"maker's \0 notes",
        0xA002: 5,
        0xA003: 7,
    }
    # Pillow writes no interoperability directory into a TIFF file of its own.
    assert related == ({} if source == ".tif" and not deep else {1: "R98"})
    assert place == {1: "N", 2: (48.0, 8.0, 30.5)}


@pytest.mark.parametrize("extension", [".png", ".jpg", ".webp"])
def test_camera_data_stays_byte_for_byte_where_it_is_right(tmp_path, extension):
    block = phone(1)
    (tmp_path / "a").write_bytes(encoded(noise((5, 7, 3)), extension, block=block))
    assert read_photo(tmp_path / "a").exif == phone(1, 7, 5)[6:].replace(
        struct.pack(">HHLHH", 0xA002, 3, 1, 7, 0), struct.pack(">HHLL", 0xA002, 4, 1, 7)
    ).replace(struct.pack(">HHLHH", 0xA003, 3, 1, 5, 0), struct.pack(">HHLL", 0xA003, 4, 1, 5))


def test_the_thumbnail_of_the_rainy_image_is_unlinked(tmp_path):
    main = struct.pack(">HHHLHHL", 1, 0x0112, 3, 1, 6, 0, 8 + 18)
    thumbnail = struct.pack(">HHHLLL", 1, 0x0202, 4, 1, 1234, 0)
    block = b"MM\0*\0\0\0\x08" + main + thumbnail
    (tmp_path / "a").write_bytes(encoded(noise((5, 7, 3)), ".jpg", block=b"Exif\0\0" + block))
    before, after = Image.Exif(), Image.Exif()
    before.load(block)
    after.load(read_photo(tmp_path / "a").exif)
    assert (dict(before), before.get_ifd(IFD.IFD1)) == ({0x0112: 6}, {0x0202: 1234})
    assert (dict(after), after.get_ifd(IFD.IFD1)) == ({0x0112: 1}, {})


def test_texts_that_are_not_ascii_and_big_endian_data_come_through_tiff(tmp_path):
    artist = "Zoë Łuk".encode()
    block = b"MM\0*" + struct.pack(">LHHHLLL", 8, 1, 0x013B, 2, len(artist) + 1, 26, 0)
    block += artist + b"\0"
    photo = Photo(noise((3, 4, 3), True), exif=block)
    write_photo(tmp_path / "a.tif", photo)
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        assert file.byteorder == ">"
        assert file.pages[0].tags[0x013B].value == "Zoë Łuk"
        np.testing.assert_array_equal(file.pages[0].asarray(), photo.rgb)
    write_photo(tmp_path / "b.png", read_photo(tmp_path / "a.tif"))
    assert read_photo(tmp_path / "b.png").exif.count(artist) == 1


def test_camera_data_that_imagemagick_wrote_as_text_is_kept(tmp_path):
    block = phone(6)
    text = b"\nexif\n" + b"%8d\n" % len(block) + block.hex().encode() + b"\n"
    part = chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(text))
    data = encoded(noise((5, 7, 3)), ".png")
    (tmp_path / "a.png").write_bytes(data[:33] + part + data[33:])
    photo = read_photo(tmp_path / "a.png")
    assert photo.rgb.shape == (7, 5, 3)
    assert camera(photo.exif)[:2] == ("Maker", 1)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize(
    "block", [b"Exif\0\0nonsense", phone(1)[:20], b"Exif\0\0II*\0\xff\xff\xff\xff"]
)
def test_broken_camera_data_is_left_out(tmp_path, block):
    (tmp_path / "a.jpg").write_bytes(encoded(noise((8, 8, 3)), ".jpg", block=block))
    assert read_photo(tmp_path / "a.jpg").exif is None


def test_what_is_too_long_for_a_jpeg_marker_is_dropped_with_a_note(tmp_path):
    fits = phone(1)[6:] + bytes(65_527 - len(phone(1)[6:]))
    photo = Photo(noise((4, 4, 3)), exif=fits, icc_profile=SRGB)
    assert write_photo(tmp_path / "a.jpg", photo) == []
    assert metadata(tmp_path / "a.jpg")[0] == SRGB
    assert read_photo(tmp_path / "a.jpg").exif is not None
    long = replace(photo, exif=fits + b"\0", icc_profile=SRGB + bytes(255 * 65_519))
    assert write_photo(tmp_path / "a.jpg", long) == [
        "the ICC profile is dropped",
        "EXIF is dropped",
    ]
    assert write_photo(tmp_path / "a.png", long) == []


@pytest.mark.parametrize("extension", [".jpg", ".tif"])
def test_a_cmyk_image_becomes_rgb_without_its_profile(tmp_path, extension):
    stream = io.BytesIO()
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(
        stream, {".jpg": "JPEG", ".tif": "TIFF"}[extension], icc_profile=CMYK
    )
    (tmp_path / "a").write_bytes(stream.getvalue())
    photo = read_photo(tmp_path / "a")
    assert photo.icc_profile is None
    assert not photo.gray
    assert np.abs(photo.rgb[0, 0].astype(int) - [255, 0, 0]).max() <= 2


def test_profiles_go_with_the_colors_they_are_for(tmp_path):
    (tmp_path / "gray.png").write_bytes(encoded(noise((3, 4)), ".png", profile=SRGB))
    (tmp_path / "rgb.png").write_bytes(encoded(noise((3, 4, 3)), ".png", profile=GRAY))
    (tmp_path / "odd.png").write_bytes(encoded(noise((3, 4, 3)), ".png", profile=b"nonsense" * 9))
    for name in ("gray.png", "rgb.png", "odd.png"):
        assert read_photo(tmp_path / name).icc_profile is None
    photo = Photo(noise((3, 4, 3)), icc_profile=SRGB)
    for wrong in (replace(photo, gray=True), replace(photo, icc_profile=GRAY)):
        for extension in METADATA:
            notes = write_photo(tmp_path / f"a{extension}", wrong)
            if not (wrong.gray and extension == ".webp"):
                assert notes == ["the ICC profile is dropped"]
                assert metadata(tmp_path / f"a{extension}")[0] is None


def test_every_tag_about_the_photograph_comes_through_tiff_at_even_places(tmp_path):
    texts = {
        tag: "odd" + "!" * (tag % 2) for tag in (0x010E, 0x010F, 0x0110, 0x0131, 0x013B, 0x8298)
    }
    others = {0x0132: "2024:05:06 07:08:09", 0x0128: 2, 0x4746: 5, 0x4749: 99, 0x011A: 72.0}
    windows = {tag: "title".encode("utf-16le") + b"\0\0" for tag in range(0x9C9B, 0x9CA0)}
    exif = Image.Exif()
    exif.update(texts | others | windows)
    exif[0x0102] = 8  # of the pixels, which a block may tell too
    write_photo(tmp_path / "a.tif", Photo(noise((3, 3, 3)), exif=exif.tobytes()[6:]))
    data = (tmp_path / "a.tif").read_bytes()
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        assert file.pages[0].offset % 2 == 0
        assert all(tag.valueoffset % 2 == 0 for tag in file.pages[0].tags)
        assert file.pages[0].bitspersample == 8
    found = Image.Exif()
    found.load(data)
    assert {tag: found[tag] for tag in (*texts, *others, *windows)} == texts | others | windows
    write_photo(tmp_path / "b.png", read_photo(tmp_path / "a.tif"))
    found = metadata(tmp_path / "b.png")[1]
    assert dict(found) == texts | others | windows


def test_a_broken_directory_of_the_camera_leaves_the_rest(tmp_path):
    maker = struct.pack(">HHL4s", 0x010F, 2, 4, b"abc")
    broken = struct.pack(">HHLL", 0x8769, 4, 1, 9999)
    block = b"MM\0*\0\0\0\x08\0\2" + maker + broken + bytes(4)
    (tmp_path / "a.jpg").write_bytes(encoded(noise((4, 4, 3)), ".jpg", block=b"Exif\0\0" + block))
    assert read_photo(tmp_path / "a.jpg").exif == block
    write_photo(tmp_path / "b.tif", read_photo(tmp_path / "a.jpg"))
    found = tiff_metadata(tmp_path / "b.tif")[1]
    assert (found[0x010F], 0x8769 in found) == ("abc", False)


def test_values_that_overlap_do_not_grow(tmp_path):
    # Two thousand values of the camera's directory are the same hundred kilobytes.
    write_photo(tmp_path / "a.tif", Photo(noise((4, 4, 3), True)))
    data = bytearray((tmp_path / "a.tif").read_bytes())
    (main,) = struct.unpack_from("<L", data, 4)
    (count,) = struct.unpack_from("<H", data, main)
    rows = data[main + 2 : main + 2 + 12 * count]
    camera_at = len(data) + len(data) % 2
    data += bytes(camera_at - len(data)) + struct.pack("<H", 2000)
    place = camera_at + 2 + 12 * 2000 + 4
    data += b"".join(struct.pack("<HHLL", tag, 7, 100_000, place) for tag in range(2000))
    data += bytes(100_004)
    struct.pack_into("<L", data, 4, len(data))
    data += struct.pack("<H", count + 1) + rows
    data += struct.pack("<HHLLL", 0x8769, 4, 1, camera_at, 0)
    (tmp_path / "b.tif").write_bytes(data)
    photo = read_photo(tmp_path / "b.tif")
    assert 100_000 <= len(photo.exif) <= len(data)
