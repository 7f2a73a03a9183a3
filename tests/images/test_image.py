from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_files import (
    GRAY,
    SRGB,
    UPRIGHT,
    camera,
    decoded,
    encoded,
    metadata,
    noise,
    phone,
    tiff_metadata,
)
from PIL import Image

from drsformer_jax.errors import InputError
from drsformer_jax.images.image import LoadedImage, load_image, save_image
from drsformer_jax.images.pixels import read_image


@st.composite
def files(draw) -> dict:
    extension = draw(st.sampled_from([".png", ".jpg", ".webp", ".bmp", ".tif"]))
    deep = extension in (".png", ".tif") and draw(st.booleans())
    gray = extension != ".webp" and draw(st.booleans())
    alpha = extension not in (".jpg", ".bmp") and draw(st.booleans())
    known = extension != ".bmp"
    return {
        "extension": extension,
        "deep": deep,
        "channels": (1 if gray else 3) + alpha,
        "size": (draw(st.integers(1, 9)), draw(st.integers(1, 9))),
        "orientation": draw(st.integers(1, 8)) if known and draw(st.booleans()) else None,
        "profile": known and draw(st.booleans()),
        "seed": draw(st.integers(0, 99)),
        "target": draw(st.sampled_from([".png", ".jpg", ".webp", ".bmp", ".tif"])),
    }


@settings(max_examples=300, deadline=None, derandomize=True)
@given(file=files())
def test_every_file_comes_through_unchanged_but_for_what_the_notes_tell(tmp_path_factory, file):
    folder = tmp_path_factory.mktemp("f")
    channels, deep, target = file["channels"], file["deep"], file["target"]
    gray, alpha = channels < 3, channels % 2 == 0
    shape = (*file["size"], channels) if channels > 1 else file["size"]
    stored = noise(shape, deep, file["seed"])
    profile = (GRAY if gray else SRGB) if file["profile"] else None
    block = phone(file["orientation"]) if file["orientation"] else None
    source = folder / f"source{file['extension']}"
    source.write_bytes(encoded(stored, file["extension"], profile=profile, block=block))

    loaded = load_image(source)
    with_channels = stored if channels > 1 else stored[..., None]
    if file["extension"] == ".jpg":
        with_channels = np.atleast_3d(np.asarray(Image.open(source)))
    expected = UPRIGHT[file["orientation"] or 1](with_channels)
    colors = np.repeat(expected[..., :1], 3, 2) if gray else expected[..., :3]
    assert loaded.rgb.dtype == stored.dtype
    np.testing.assert_array_equal(loaded.rgb, colors)
    assert loaded.rgb.flags.writeable
    assert loaded.rgb.flags.c_contiguous
    assert (loaded.alpha is not None) == alpha
    if alpha:
        np.testing.assert_array_equal(loaded.alpha, expected[..., -1])
    assert loaded.gray == gray
    assert loaded.metadata.get("icc-profile-data") == profile
    from_tiff = file["extension"] == ".tif"
    assert ("exif-data" in loaded.metadata) == (block is not None and not from_tiff)

    notes = save_image(folder / f"target{target}", loaded)
    path = folder / f"target{target}"
    becomes_8 = deep and target not in (".png", ".tif")
    flat = alpha and target in (".jpg", ".bmp") and loaded.alpha.min() < np.iinfo(stored.dtype).max
    kept_profile = profile and target != ".bmp" and not (gray and target == ".webp")
    assert ("16 bits become 8" in notes) == becomes_8
    assert ("transparency is laid on white" in notes) == flat
    assert ("the ICC profile is dropped" in notes) == bool(profile and not kept_profile)
    drops_exif = from_tiff or target in (".bmp", ".tif")  # libvips keeps none in TIFF
    assert ("EXIF is dropped" in notes) == bool(block and drops_exif)
    assert len(notes) == len(set(notes))

    found_profile, found_exif = (tiff_metadata if target == ".tif" else metadata)(path)
    assert found_profile == (profile if kept_profile else None)
    if block and not drops_exif:
        assert camera(found_exif)[:2] == ("Maker", 1)
    found = np.atleast_3d(decoded(path))
    assert found.dtype == (np.uint16 if deep and not becomes_8 else np.uint8)
    if becomes_8:
        expected = np.round(expected / 257).astype(np.uint8)
    if gray and target == ".webp":
        expected = np.concatenate([expected[..., [0, 0, 0]], expected[..., 1:]], 2)
    if alpha and target in (".jpg", ".bmp"):
        weight = expected[..., -1:] / 255
        expected = np.round(expected[..., :-1] * weight + 255 * (1 - weight)).astype(np.uint8)
    assert found.shape == expected.shape
    if target != ".jpg":
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("extension", [".png", ".jpg", ".bmp", ".tif"])
@pytest.mark.parametrize("deep", [False, True])
def test_a_restored_gray_image_is_written_as_luma(tmp_path, extension, deep):
    rgb = noise((64, 64, 3), deep)
    save_image(tmp_path / f"a{extension}", LoadedImage(rgb, gray=True))
    luma = rgb @ np.array([0.299, 0.587, 0.114])
    found = decoded(tmp_path / f"a{extension}").squeeze()
    assert found.ndim == 2
    if deep and extension in (".jpg", ".bmp"):
        luma = luma / 257
    if extension == ".jpg":
        assert np.abs(found - luma).mean() < 2
    else:  # half a step for rounding, and of 16 bits as much for weights of 16 bits
        assert np.abs(found - luma).max() <= (0.9 if found.dtype == np.uint16 else 0.51)


@pytest.mark.parametrize("deep", [False, True])
def test_every_gray_comes_back_exactly(tmp_path, deep):
    grays = np.arange(65536 if deep else 256).reshape(256, -1).astype("u2" if deep else "u1")
    for extension in [".png", ".tif"]:
        loaded = LoadedImage(np.repeat(grays[..., None], 3, 2), gray=True)
        save_image(tmp_path / f"a{extension}", loaded)
        np.testing.assert_array_equal(load_image(tmp_path / f"a{extension}").rgb, loaded.rgb)


@pytest.mark.parametrize("extension", [".jpg", ".bmp"])
@pytest.mark.parametrize("gray", [False, True])
def test_transparency_is_laid_on_the_background_where_the_format_has_none(
    tmp_path, extension, gray
):
    colors = np.full((16, 16, 3), 100 if gray else (100, 0, 200), np.uint8)
    loaded = LoadedImage(colors, np.full((16, 16), 51, np.uint8), gray=gray)
    notes = save_image(tmp_path / f"a{extension}", loaded, background=(10, 10, 10))
    assert notes == ["transparency is laid on the color (10, 10, 10)"]
    with Image.open(tmp_path / f"a{extension}") as image:
        assert image.mode == ("L" if gray else "RGB")
        found = np.asarray(image.convert("RGB"))[8, 8].astype(int)
    assert np.abs(found - ([28, 28, 28] if gray else [28, 8, 48])).max() <= 2 * (
        extension == ".jpg"
    )
    opaque = replace(loaded, alpha=np.full((16, 16), 255, np.uint8))
    assert save_image(tmp_path / f"a{extension}", opaque) == []


def test_webp_keeps_the_colors_below_what_is_transparent(tmp_path):
    loaded = LoadedImage(noise((8, 8, 3)), np.zeros((8, 8), np.uint8))
    save_image(tmp_path / "a.webp", loaded)
    np.testing.assert_array_equal(load_image(tmp_path / "a.webp").rgb, loaded.rgb)


def test_quality_is_that_of_jpeg_and_webp(tmp_path):
    loaded = LoadedImage(noise((64, 64, 3)))

    def pillows(name: str, **options: object) -> bytes:
        stream = io.BytesIO()
        Image.fromarray(loaded.rgb).save(stream, name, **options)
        return stream.getvalue()

    def equal(name: str, reference: bytes) -> None:
        with Image.open(io.BytesIO(reference)) as image:
            np.testing.assert_array_equal(read_image(tmp_path / name), np.asarray(image))

    for quality, options in ((None, {"quality": 95}), (60, {"quality": 60})):
        save_image(tmp_path / "a.jpg", loaded, quality=quality)
        equal("a.jpg", pillows("JPEG", subsampling=0, **options))
    save_image(tmp_path / "a.webp", loaded, quality=60)
    equal("a.webp", pillows("WEBP", quality=60))
    sizes = []
    for quality in (None, 30):
        save_image(tmp_path / "a.avif", loaded, quality=quality)
        sizes.append((tmp_path / "a.avif").stat().st_size)
    assert sizes[0] > 2 * sizes[1]
    save_image(tmp_path / "a.png", loaded, quality=60)
    np.testing.assert_array_equal(load_image(tmp_path / "a.png").rgb, loaded.rgb)
    for quality in (0, 101):
        with pytest.raises(InputError, match=f"^quality is {quality}; expected 1 to 100$"):
            save_image(tmp_path / "new" / "a.png", loaded, quality=quality)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_failing_halfway_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, name):
    loaded = LoadedImage(noise((5, 7, 3), True), metadata={"exif-data": phone(1)})
    save_image(tmp_path / name, loaded)
    before = (tmp_path / name).read_bytes()

    def fail(*_: object, **__: object) -> None:
        raise OSError("no space")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="no space"):
        save_image(tmp_path / name, replace(loaded, rgb=loaded.rgb[::-1]))
    assert (tmp_path / name).read_bytes() == before
    assert list(tmp_path.iterdir()) == [tmp_path / name]


def test_the_extension_and_the_size_are_checked_before_anything_is_made(tmp_path):
    loaded = LoadedImage(np.zeros((1, 16384, 3), np.uint16))
    with pytest.raises(
        InputError, match=r"a\.gif has the extension '\.gif'; expected one of \.png"
    ):
        save_image(tmp_path / "new" / "a.gif", loaded)
    with pytest.raises(InputError, match=r"is 16384x1; expected sides of at most 16383 in WebP"):
        save_image(tmp_path / "new" / "a.webp", loaded)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("rgb", "alpha", "message"),
    [
        (np.zeros((2, 3, 3)), None, r"rgb is float64 \(2, 3, 3\); expected uint8 or uint16"),
        (np.zeros((2, 3), np.uint8), None, r"rgb is uint8 \(2, 3\); expected uint8 or uint16"),
        (np.zeros((0, 3, 3), np.uint8), None, r"rgb is \(0, 3, 3\); expected at least one pixel"),
        (
            np.zeros((2, 3, 3), np.uint8),
            np.zeros((2, 3), np.uint16),
            r"alpha is uint16 \(2, 3\); expected uint8 \(2, 3\)",
        ),
        (
            np.zeros((2, 3, 3), np.uint8),
            np.zeros((3, 2), np.uint8),
            r"alpha is uint8 \(3, 2\); expected uint8 \(2, 3\)",
        ),
    ],
)
def test_an_image_of_arrays_that_do_not_fit_is_rejected(rgb, alpha, message):
    with pytest.raises(InputError, match=f"^{message}"):
        LoadedImage(rgb, alpha)


def test_several_threads_read_and_write_the_same(tmp_path):
    images = [
        LoadedImage(noise((40, 30, 3), seed % 2 > 0, seed), noise((40, 30), seed % 2 > 0, seed))
        for seed in range(8)
    ]

    def there_and_back(number: int) -> LoadedImage:
        path = tmp_path / f"{number}{('.png', '.tif')[number // 2 % 2]}"
        save_image(path, images[number % 8])
        return load_image(path)

    with ThreadPoolExecutor(8) as pool:
        for number, loaded in enumerate(pool.map(there_and_back, range(64))):
            np.testing.assert_array_equal(loaded.rgb, images[number % 8].rgb)
            np.testing.assert_array_equal(loaded.alpha, images[number % 8].alpha)
