from __future__ import annotations

import io
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
from image_files import (
    CMYK,
    GRAY,
    METADATA,
    SRGB,
    camera,
    chunk,
    encoded,
    metadata,
    noise,
    phone,
    saved,
)
from PIL import Image, TiffImagePlugin
from PIL.ExifTags import IFD

from drsformer_jax.images.image import LoadedImage, load_image, save_image
from drsformer_jax.images.pixels import image_size, read_image


@pytest.mark.parametrize("target", [".png", ".jpg", ".webp"])
@pytest.mark.parametrize(
    ("source", "deep"), [(".png", False), (".jpg", False), (".webp", False), (".png", True)]
)
def test_directories_of_camera_and_place_come_through(source, deep, target, tmp_path):
    block = phone(6)
    (tmp_path / f"a{source}").write_bytes(encoded(noise((5, 7, 3), deep), source, block=block))
    loaded = load_image(tmp_path / f"a{source}")
    assert loaded.rgb.shape == (7, 5, 3)
    assert save_image(tmp_path / f"b{target}", loaded) == ["16 bits become 8"] * (
        deep and target != ".png"
    )
    maker, orientation, taken, related, place = camera(metadata(tmp_path / f"b{target}")[1])
    assert (maker, orientation) == ("Maker", 1)
    assert (
        taken.items()
        >= {
            0x9003: "2024:05:06 07:08:09",
            0x927C: b"maker's \0 notes",
            0xA002: 5,
            0xA003: 7,
        }.items()
    )
    assert related == {1: "R98"}
    assert place == {1: "N", 2: (48.0, 8.0, 30.5)}


@pytest.mark.parametrize(("source", "target"), [(".tif", ".png"), (".png", ".tif")])
def test_camera_data_of_tiff_is_dropped_with_a_note(tmp_path, source, target):
    content = encoded(noise((5, 7, 3)), source, block=phone(6))
    (tmp_path / f"a{source}").write_bytes(content)
    loaded = load_image(tmp_path / f"a{source}")
    assert loaded.rgb.shape == (7, 5, 3)
    assert save_image(tmp_path / f"b{target}", loaded) == ["EXIF is dropped"]


def test_the_thumbnail_of_the_rainy_image_is_left_out(tmp_path):
    main = struct.pack(">HHHLHHL", 1, 0x0112, 3, 1, 6, 0, 8 + 18)
    inside = struct.pack(">HHHLLHHLLL", 2, 0x0201, 4, 1, 56, 0x0202, 4, 1, 4, 0)
    block = b"Exif\0\0MM\0*\0\0\0\x08" + main + inside + b"\xff\xd8\xff\xd9"
    (tmp_path / "a.jpg").write_bytes(encoded(noise((5, 7, 3)), ".jpg", block=block))
    assert metadata(tmp_path / "a.jpg")[1].get_ifd(IFD.IFD1)
    save_image(tmp_path / "b.jpg", load_image(tmp_path / "a.jpg"))
    assert metadata(tmp_path / "b.jpg")[1].get_ifd(IFD.IFD1) == {}


@pytest.mark.parametrize("target", [".png", ".jpg", ".webp"])
def test_texts_that_are_not_ascii_and_big_endian_data_come_through(tmp_path, target):
    artist = "Zoë Łuk".encode()
    block = b"MM\0*" + struct.pack(">LHHHLLL", 8, 1, 0x013B, 2, len(artist) + 1, 26, 0)
    block += artist + b"\0"
    loaded = LoadedImage(noise((3, 4, 3)), metadata={"exif-data": b"Exif\0\0" + block})
    save_image(tmp_path / f"a{target}", loaded)
    assert load_image(tmp_path / f"a{target}").metadata["exif-data"].count(artist) == 1


def test_camera_data_that_imagemagick_wrote_as_text_is_kept(tmp_path):
    block = phone(6)
    text = b"\nexif\n" + b"%8d\n" % len(block) + block.hex().encode() + b"\n"
    part = chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(text))
    data = encoded(noise((5, 7, 3)), ".png")
    (tmp_path / "a.png").write_bytes(data[:33] + part + data[33:])
    loaded = load_image(tmp_path / "a.png")
    assert loaded.rgb.shape == (7, 5, 3)
    save_image(tmp_path / "b.png", loaded)
    assert camera(metadata(tmp_path / "b.png")[1])[:2] == ("Maker", 1)


@pytest.mark.parametrize("extension", [".jpg", ".tif"])
def test_a_cmyk_image_becomes_rgb_without_its_profile(tmp_path, extension):
    stream = io.BytesIO()
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(
        stream, {".jpg": "JPEG", ".tif": "TIFF"}[extension], icc_profile=CMYK
    )
    (tmp_path / "a").write_bytes(stream.getvalue())
    loaded = load_image(tmp_path / "a")
    assert "icc-profile-data" not in loaded.metadata
    assert save_image(tmp_path / "b.png", loaded) == ["the ICC profile is dropped"]
    assert not loaded.gray
    assert np.abs(loaded.rgb[0, 0].astype(int) - [255, 0, 0]).max() <= 2


def test_profiles_go_with_the_colors_they_are_for(tmp_path):
    (tmp_path / "gray.png").write_bytes(encoded(noise((3, 4)), ".png", profile=SRGB))
    (tmp_path / "rgb.png").write_bytes(encoded(noise((3, 4, 3)), ".png", profile=GRAY))
    (tmp_path / "odd.png").write_bytes(encoded(noise((3, 4, 3)), ".png", profile=b"nonsense" * 9))
    for name in ("gray.png", "rgb.png", "odd.png"):
        loaded = load_image(tmp_path / name)
        assert "icc-profile-data" not in loaded.metadata
        assert save_image(tmp_path / "out.png", loaded) == ["the ICC profile is dropped"]
    loaded = LoadedImage(noise((3, 4, 3)), metadata={"icc-profile-data": SRGB})
    gray = {"icc-profile-data": GRAY}
    for wrong in (replace(loaded, gray=True), replace(loaded, metadata=gray)):
        for extension in METADATA:
            notes = save_image(tmp_path / f"a{extension}", wrong)
            if not (wrong.gray and extension == ".webp"):
                assert notes == ["the ICC profile is dropped"]
                assert metadata(tmp_path / f"a{extension}")[0] is None


@pytest.mark.parametrize("length", [0, 7, len(SRGB) + 4])
def test_a_profile_of_a_wrong_length_fails_no_image(tmp_path, length):
    """PNG's encoder rejects it, others write it."""
    damaged = struct.pack(">L", length) + SRGB[4:]
    (tmp_path / "a.webp").write_bytes(encoded(noise((3, 4, 3)), ".webp", profile=damaged))
    loaded = load_image(tmp_path / "a.webp")
    for target, notes in ((".png", ["the ICC profile is dropped"]), (".webp", [])):
        assert save_image(tmp_path / f"b{target}", loaded) == notes
        np.testing.assert_array_equal(load_image(tmp_path / f"b{target}").rgb, loaded.rgb)
    assert load_image(tmp_path / "b.webp").metadata["icc-profile-data"] == damaged


def test_tags_about_the_photograph_come_through_and_a_note_tells_which_do_not(tmp_path):
    texts = {
        tag: "odd" + "!" * (tag % 2) for tag in (0x010E, 0x010F, 0x0110, 0x0131, 0x013B, 0x8298)
    }
    others = {0x0132: "2024:05:06 07:08:09"}
    windows = {tag: "title".encode("utf-16le") + b"\0\0" for tag in range(0x9C9B, 0x9CA0)}
    exif = Image.Exif()
    exif.update(texts | others | windows | {0x4746: 5, 0xC7A1: 99})
    loaded = LoadedImage(noise((3, 3, 3)), metadata={"exif-data": exif.tobytes()})
    for target in (".jpg", ".png", ".webp"):
        notes = save_image(tmp_path / f"a{target}", loaded)
        assert notes == ["the EXIF tags 18246 51105 are dropped"]  # libexif does not know them
        found = dict(metadata(tmp_path / f"a{target}")[1])
        assert found.items() >= (texts | others | windows).items()


XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/">GPano:ProjectionType="equirectangular"</x:xmpmeta>'
KEEPING = [".png", ".jpg", ".webp", ".avif", ".tif"]


def with_chunks(content: bytes, *chunks: bytes, behind: bool = False) -> bytes:
    at = content.index(b"IEND") - 4 if behind else 33
    return content[:at] + b"".join(chunks) + content[at:]


def chunks_of(path: Path) -> dict[bytes, list[bytes]]:
    content, at, found = path.read_bytes(), 8, {}
    while at < len(content):
        (length,) = struct.unpack_from(">I", content, at)
        found.setdefault(content[at + 4 : at + 8], []).append(content[at + 8 : at + 8 + length])
        at += 12 + length
    return found


LARGE = {
    "XMP": chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP.ljust(1_500_000)),
    "packed XMP": chunk(
        b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(XMP.ljust(1_500_000))
    ),
    "zTXt": chunk(b"zTXt", b"large\0\0" + zlib.compress(noise((2_000_000,)).tobytes(), 0)),
    "zTXt that grows": chunk(b"zTXt", b"large\0\0" + zlib.compress(b"t" * 20_000_000)),
    "profile": chunk(b"iCCP", b"x\0\0" + zlib.compress(SRGB + noise((1_300_000,)).tobytes())),
}


@pytest.mark.parametrize("name", LARGE)
@pytest.mark.parametrize("behind", [False, True])
def test_a_png_file_of_large_metadata_is_read_and_keeps_it(tmp_path, name, behind):
    if behind and name == "profile":
        behind = False  # which must stand before the pixels
    content = with_chunks(encoded(noise((5, 7, 3)), ".png"), LARGE[name], behind=behind)
    (tmp_path / "a.png").write_bytes(content)
    assert image_size(tmp_path / "a.png") == (5, 7)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), noise((5, 7, 3)))
    loaded = load_image(tmp_path / "a.png")
    assert save_image(tmp_path / "b.png", loaded) == []
    again = load_image(tmp_path / "b.png")
    assert loaded.metadata.keys() == again.metadata.keys() != set()
    assert loaded.metadata.get("png") == again.metadata.get("png")
    for key in ("xmp-data", "icc-profile-data"):
        assert loaded.metadata.get(key) == again.metadata.get(key)


@pytest.mark.parametrize("target", [*KEEPING, ".bmp"])
@pytest.mark.parametrize("source", KEEPING)
def test_xmp_and_resolution_come_through_or_a_note_tells(tmp_path, source, target):
    image = LoadedImage(
        noise((20, 30, 3)), metadata={"xmp-data": XMP, "xres": 300 / 25.4, "yres": 300 / 25.4}
    )
    assert save_image(tmp_path / f"a{source}", image) == []
    loaded = load_image(tmp_path / f"a{source}")
    assert loaded.metadata["xres"] * 25.4 == pytest.approx(300, abs=0.1)
    notes = save_image(tmp_path / f"b{target}", loaded)
    found = load_image(tmp_path / f"b{target}").metadata
    # The resolution is a part of EXIF where formats have no other place for it.
    from_exif = "exif-data" in loaded.metadata and target in (".bmp", ".tif")
    assert notes == ["EXIF is dropped"] * from_exif + ["XMP is dropped"] * (target == ".bmp")
    assert found.get("xmp-data") == (None if target == ".bmp" else XMP)
    assert found["xres"] * 25.4 == pytest.approx(300, abs=0.1)


def test_an_orientation_in_xmp_is_applied_once(tmp_path):
    xmp = XMP.replace(b">GPano", b' tiff:Orientation="6">GPano')
    (tmp_path / "a.jpg").write_bytes(encoded(noise((5, 7, 3)), ".jpg", xmp=xmp))
    loaded = load_image(tmp_path / "a.jpg")
    assert loaded.rgb.shape == (7, 5, 3)
    save_image(tmp_path / "b.png", loaded)
    np.testing.assert_array_equal(load_image(tmp_path / "b.png").rgb, loaded.rgb)


def test_a_resolution_of_zero_is_none(tmp_path):
    content = bytearray(encoded(noise((3, 4, 3)), ".bmp"))
    content[38:46] = bytes(8)
    (tmp_path / "a.bmp").write_bytes(content)
    loaded = load_image(tmp_path / "a.bmp")
    assert save_image(tmp_path / "b.png", loaded) == []


def test_a_file_without_resolution_and_metadata_is_written_without(tmp_path):
    for target in KEEPING:
        save_image(tmp_path / f"a{target}", LoadedImage(noise((20, 30, 3))))
        assert load_image(tmp_path / f"a{target}").metadata == {}


PHOTOSHOP = b"Photoshop 3.0\x008BIM\x04\x04\0\0\0\0\0\x0a\x1c\x02\x78\0\x05hello"


@pytest.mark.parametrize("target", KEEPING)
def test_iptc_of_jpeg_comes_through_jpeg_or_a_note_tells(tmp_path, target):
    content = encoded(noise((20, 30, 3)), ".jpg")
    segment = b"\xff\xed" + struct.pack(">H", 2 + len(PHOTOSHOP)) + PHOTOSHOP
    (tmp_path / "a.jpg").write_bytes(content[:20] + segment + content[20:])
    notes = save_image(tmp_path / f"b{target}", load_image(tmp_path / "a.jpg"))
    assert notes == ([] if target == ".jpg" else ["IPTC is dropped"])
    assert (PHOTOSHOP in (tmp_path / f"b{target}").read_bytes()) == (target == ".jpg")


@pytest.mark.parametrize("target", [".tif", ".jpg", ".png"])
def test_iptc_of_tiff_is_dropped_with_a_note(tmp_path, target):
    iptc = b"\x1c\x02\x78\0\x05hello\0\0"
    tags = [(33723, "B", len(iptc), iptc, True)]
    tifffile.imwrite(tmp_path / "a.tif", noise((5, 7, 3)), extratags=tags, metadata=None)
    loaded = load_image(tmp_path / "a.tif")
    assert save_image(tmp_path / f"b{target}", loaded) == ["IPTC is dropped"]


TEXTS = {
    b"tEXt": b"Author\0Zo\xeb",
    b"zTXt": b"Comment\0\0" + zlib.compress(b"rain"),
    b"iTXt": "Title\0\0\0de\0Titel\0Zoë Łuk".encode(),
}
COLORS = {
    b"gAMA": struct.pack(">I", 100_000),
    b"cHRM": struct.pack(">8I", 31270, 32900, 70800, 29200, 17000, 79700, 13100, 4600),
    b"cICP": bytes([9, 16, 0, 1]),
    b"cLLI": struct.pack(">2I", 10_000_000, 4_000_000),
}


@pytest.mark.parametrize("behind", [False, True])
def test_texts_and_what_colors_mean_come_through_png_byte_for_byte(tmp_path, behind):
    content = with_chunks(
        encoded(noise((5, 7, 3)), ".png"), *(chunk(*each) for each in COLORS.items())
    )
    content = with_chunks(content, *(chunk(*each) for each in TEXTS.items()), behind=behind)
    (tmp_path / "a.png").write_bytes(content)
    loaded = load_image(tmp_path / "a.png")
    np.testing.assert_array_equal(loaded.rgb, noise((5, 7, 3)))
    assert save_image(tmp_path / "b.png", loaded) == []
    found = chunks_of(tmp_path / "b.png")
    for name, data in {**TEXTS, **COLORS}.items():
        assert found[name] == [data]
    for target in (".jpg", ".webp", ".tif", ".bmp"):
        assert save_image(tmp_path / f"b{target}", loaded) == [
            "the PNG chunks cICP cLLI are dropped",  # where cICP counts, gAMA and cHRM do not
            "PNG text is dropped",
        ]


@pytest.mark.parametrize(
    ("chunks", "notes"),
    [
        ({b"gAMA": COLORS[b"gAMA"]}, ["the PNG chunks gAMA are dropped"]),
        ({b"gAMA": struct.pack(">I", 45_455)}, []),
        ({b"sRGB": b"\0", **{name: COLORS[name] for name in (b"gAMA", b"cHRM")}}, []),
        ({b"tIME": bytes(7)}, []),
    ],
    ids=str,
)
def test_notes_tell_of_the_gamma_only_where_it_changes_the_look(tmp_path, chunks, notes):
    content = encoded(noise((5, 7, 3)), ".png")
    content = with_chunks(content, *(chunk(*each) for each in chunks.items()))
    (tmp_path / "a.png").write_bytes(content)
    assert save_image(tmp_path / "b.jpg", load_image(tmp_path / "a.png")) == notes


def test_a_chunk_that_must_not_be_copied_is_dropped_with_a_note(tmp_path):
    for name in (b"abCD", b"abCd"):
        content = with_chunks(encoded(noise((5, 7, 3)), ".png"), chunk(name, b"x"))
        (tmp_path / f"{name.decode()}.png").write_bytes(content)
    assert save_image(tmp_path / "b.png", load_image(tmp_path / "abCD.png")) == [
        "the PNG chunk abCD is dropped"
    ]
    assert save_image(tmp_path / "b.png", load_image(tmp_path / "abCd.png")) == []
    assert chunks_of(tmp_path / "b.png")[b"abCd"] == [b"x"]


def test_colors_of_an_avif_file_for_bright_screens_are_kept_in_png(tmp_path):
    content = encoded(noise((20, 30, 3)), ".avif")
    at = content.index(b"colrnclx") + 8
    changed = content[:at] + struct.pack(">2H", 9, 16) + content[at + 4 :]
    (tmp_path / "b.avif").write_bytes(changed)
    loaded = load_image(tmp_path / "b.avif")
    assert save_image(tmp_path / "c.png", loaded) == []
    assert chunks_of(tmp_path / "c.png")[b"cICP"] == [bytes([9, 16, 0, 1])]
    assert save_image(tmp_path / "c.avif", loaded) == ["the PNG chunks cICP are dropped"]


def test_tags_of_geotiff_and_others_that_tiff_holds_are_reported(tmp_path):
    tags = [(33550, "d", 3, (1.0, 1.0, 0.0), True), (65000, "H", 1, 7, True)]
    tifffile.imwrite(tmp_path / "a.tif", noise((5, 7, 3)), extratags=tags, description="Rain")
    loaded = load_image(tmp_path / "a.tif")
    lost = ["GeoTIFF tags are dropped", "the TIFF tags 65000 are dropped"]
    assert save_image(tmp_path / "b.tif", loaded) == lost
    with tifffile.TiffFile(tmp_path / "b.tif") as file:
        assert file.pages[0].description == "Rain"
    assert save_image(tmp_path / "b.png", loaded) == ["the image description is dropped", *lost]


@pytest.mark.parametrize(
    ("number", "unit", "notes"),
    [(1, 1, ()), (300, 1, ()), (2**32 - 1, 2, ("the resolution is dropped",))],
)
@pytest.mark.parametrize("format_name", ["JPEG", "WEBP"])
def test_a_resolution_that_is_none_is_not_kept(tmp_path, format_name, number, unit, notes):
    exif = Image.Exif()
    exif[0x011A] = exif[0x011B] = TiffImagePlugin.IFDRational(number, 1)
    exif[0x0128], exif[0x010F] = unit, "Maker"
    path = tmp_path / "a"
    path.write_bytes(saved(noise((5, 7, 3)), format_name, exif=exif))
    loaded = load_image(path)
    assert "xres" not in loaded.metadata
    assert loaded.lost == notes
    for name in ("b.bmp", "b.png", "b.jpg"):
        save_image(tmp_path / name, loaded)
