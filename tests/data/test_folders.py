"""Images and pairs are found by name; what is missing is reported in one line."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import numpy as np
import pytest

from drsformer_jax.data import folders
from drsformer_jax.errors import InputError
from drsformer_jax.images.pixels import write_image


def noise(h: int, w: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (h, w, 3), dtype=np.uint8)


def touch(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()
    return folder


def test_images_are_listed_in_natural_order_without_hidden_and_other_files(tmp_path):
    touch(tmp_path, "10.png", "2.png", "b2.JPG", "B10.jpg", "1.tif", "a.webp", "02.png")
    touch(tmp_path, ".3.png", "notes.txt")
    touch(tmp_path / "deeper.png", "4.png")
    names = [path.name for path in folders.find_images(str(tmp_path))]
    assert names == ["1.tif", "02.png", "2.png", "10.png", "a.webp", "b2.JPG", "B10.jpg"]


def test_folders_without_images_are_reported_in_one_line(tmp_path):
    with pytest.raises(InputError, match=r"/x does not exist; expected a folder of images$"):
        folders.find_images(tmp_path / "x")
    file = touch(tmp_path, "a.png") / "a.png"
    with pytest.raises(InputError, match=r"a\.png is a file; expected a folder of images$"):
        folders.find_images(file)
    with pytest.raises(InputError, match=r"/e holds no image; expected files named \.png \.jpg"):
        folders.find_images(touch(tmp_path / "e", ".a.png"))
    with pytest.raises(InputError, match=r"/e holds no image \(1 file is left out: a\.svg\); exp"):
        folders.find_images(touch(tmp_path / "e", "a.svg"))


def test_links_to_images_are_followed_and_links_to_folders_are_not(tmp_path):
    touch(tmp_path / "other", "1.png")
    folder = touch(tmp_path / "in", "2.png")
    (folder / "3.png").symlink_to(tmp_path / "other" / "1.png")
    (folder / "loop").symlink_to(".")
    (folder / "other").symlink_to(tmp_path / "other")
    for nested in (False, True):
        assert [path.name for path in folders.find_images(folder, nested=nested)] == [
            "2.png",
            "3.png",
        ]


def test_what_is_left_out_is_described_in_one_line(tmp_path):
    folder = touch(tmp_path, "1.png", "10.svg", "2.heic", ".hidden")
    (folder / "broken.png").symlink_to("nowhere")
    (folder / "link").symlink_to(".")
    touch(folder / "sub", "a.psd", ".hidden")
    touch(folder / ".hidden_folder", "a.psd")
    _, left_out = folders.scan_folder(folder, nested=True)
    assert [path.name for path in left_out] == ["2.heic", "10.svg", "broken.png", "link", "a.psd"]
    assert folders.describe_left_out(left_out) == (
        "5 files are left out: 2.heic, 10.svg, broken.png: a broken link, ..."
    )
    assert folders.describe_left_out(left_out[3:]) == (
        "2 files are left out: link: a link to a folder, a.psd"
    )
    _, left_out = folders.scan_folder(folder)
    assert [path.name for path in left_out] == ["2.heic", "10.svg", "broken.png"]


def test_what_pairs_leave_out_is_told(tmp_path):
    touch(tmp_path / "input", "1.png", "4.heic", ".hidden")
    touch(tmp_path / "input" / "more", "2.png")
    touch(tmp_path / "target", "1.png")
    expected = rf"^of {tmp_path / 'input'} 2 files are left out: 4\.heic, 2\.png$"
    with pytest.warns(UserWarning, match=expected) as told:
        (pair,) = folders.find_pairs(tmp_path)
    assert (pair[0], len(told)) == ("1.png", 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Of a folder in the other one, whose images are used.
        touch(tmp_path / "data", "1.png")
        touch(tmp_path / "data" / "clean", "1.png")
        folders.find_pairs_in(tmp_path / "data", tmp_path / "data" / "clean")


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is closed to root")
def test_pairs_are_found_beside_a_folder_that_cannot_be_read(tmp_path):
    """As lost+found, in the folder where a disk is mounted."""
    touch(tmp_path / "input", "1.png")
    touch(tmp_path / "target", "1.png")
    (tmp_path / "input" / "lost+found").mkdir(0)
    assert len(folders.find_pairs(tmp_path)) == 1


def test_pairs_have_equal_names_in_natural_order(tmp_path):
    touch(tmp_path / "input", "10.png", "9.png")
    touch(tmp_path / "target", "9.png", "10.png")
    assert folders.find_pairs(tmp_path) == [
        (name, tmp_path / "input" / name, tmp_path / "target" / name)
        for name in ("9.png", "10.png")
    ]
    assert folders.find_pairs_in(tmp_path / "target", tmp_path / "input")[0] == (
        "9.png",
        tmp_path / "target" / "9.png",
        tmp_path / "input" / "9.png",
    )


def test_a_folder_without_input_or_target_is_reported_in_one_line(tmp_path):
    with pytest.raises(InputError, match=r"has no folder input/; expected input/ and target/ with"):
        folders.find_pairs(tmp_path)
    touch(tmp_path / "input", "1.png")
    with pytest.raises(InputError, match=r"has no folder target/; expected input/ and target/"):
        folders.find_pairs(tmp_path)
    touch(tmp_path / "target")
    with pytest.raises(InputError, match=r"/target holds no image; expected files named"):
        folders.find_pairs(tmp_path)


def test_missing_partners_are_counted_and_the_first_is_named(tmp_path):
    touch(tmp_path / "input", "1.png", "10.png", "3.png")
    touch(tmp_path / "target", "1.png", "10.png")
    with pytest.raises(
        InputError,
        match=r"/input/3\.png has no partner in \S+/target \(1 of 5 images have none\); "
        r"expected equal file names$",
    ):
        folders.find_pairs(tmp_path)
    touch(tmp_path / "target", "2.png", "20.png")
    with pytest.raises(
        InputError, match=r"/target/2\.png has no partner in \S+/input \(3 of 7 images"
    ):
        folders.find_pairs(tmp_path)


def test_the_extension_is_no_part_of_a_pairs_name(tmp_path):
    """Restored images are saved as PNG, also those of a benchmark whose images are JPEG."""
    touch(tmp_path / "input", "1.jpg", "2.png", "1.5.JPEG")
    touch(tmp_path / "target", "1.png", "2.png", "1.5.png")
    pairs = folders.find_pairs(tmp_path)
    assert [name for name, _, _ in pairs] == ["1.5.JPEG", "1.jpg", "2.png"]
    assert [(path.name, other.name) for _, path, other in pairs] == [
        ("1.5.JPEG", "1.5.png"),
        ("1.jpg", "1.png"),
        ("2.png", "2.png"),
    ]


@pytest.mark.parametrize("match", [None, r"\d+"])
def test_two_files_of_one_name_are_rejected(tmp_path, match):
    one, two = touch(tmp_path / "one", "1.png"), touch(tmp_path / "two", "1.png", "1.tif")
    with pytest.raises(
        InputError, match=r"/two/1\.png and \S+/two/1\.tif both have the name '1'; expected one$"
    ):
        folders.find_pairs_in(two, one, match)
    with pytest.raises(
        InputError, match=r"/two/1\.png and \S+/two/1\.tif both have the (name|key)"
    ):
        folders.find_pairs_in(one, two, match)


def paired(first: Path, second: Path, match: str) -> list[tuple[str, str]]:
    return [
        (path.name, other.name) for _, path, other in folders.find_pairs_in(first, second, match)
    ]


@pytest.mark.parametrize("match", [r"\d+", r"^(?:norain-)?(\d+)(_DR)?$"])
def test_a_pattern_finds_the_key_of_a_pair(tmp_path, match):
    restored = touch(tmp_path / "restored", "1_DR.png", "12_DR.png")
    target = touch(tmp_path / "target", "norain-1.png", "norain-12.jpg")
    assert paired(restored, target, match) == [
        ("1_DR.png", "norain-1.png"),
        ("12_DR.png", "norain-12.jpg"),
    ]


def test_several_images_share_a_target_by_their_key_and_keep_to_their_own_names(tmp_path):
    rainy = touch(tmp_path / "rainy", "1_1.jpg", "1_2.jpg", "2_1.jpg")
    target = touch(tmp_path / "target", "1.jpg", "2.jpg")
    restored = touch(tmp_path / "restored", "1_1.png", "1_2.png", "2_1.png")
    assert [other for _, other in paired(rainy, target, r"^\d+")] == ["1.jpg", "1.jpg", "2.jpg"]
    assert [other for _, other in paired(restored, rainy, r"^\d+")] == [
        "1_1.jpg",
        "1_2.jpg",
        "2_1.jpg",
    ]
    (restored / "1_2.png").unlink()
    with pytest.raises(
        InputError, match=r"/rainy/1_2\.jpg has no partner in \S+/restored \(1 of 5"
    ):
        folders.find_pairs_in(restored, rainy, r"^\d+")


def test_two_targets_of_one_key_are_rejected(tmp_path):
    rainy = touch(tmp_path / "rainy", "1_x.png")
    target = touch(tmp_path / "target", "1_a.png", "1_b.png")
    with pytest.raises(
        InputError,
        match=r"/target/1_a\.png and \S+/target/1_b\.png both have the key '1' of \S+/1_x\.png; "
        r"expected one$",
    ):
        folders.find_pairs_in(rainy, target, r"\d+")


@pytest.mark.parametrize(
    ("match", "message"),
    [
        ("(", r"^the pattern '\(' is invalid \(.*\); expected one such as '\\d\+'$"),
        ("[a-z]+", r"^'\[a-z\]\+' finds nothing in the name of \S+/1\.png; expected a key$"),
        ("(x)?", r"^'\(x\)\?' finds nothing in the name of \S+/1\.png; expected a key$"),
        (
            r"\d+",
            r"/input/1\.png has no partner in \S+ \(2 of 2 .*\); expected one that '\\d\+' finds",
        ),
    ],
)
def test_a_pattern_that_pairs_nothing_is_reported_in_one_line(tmp_path, match, message):
    touch(tmp_path / "input", "1.png")
    touch(tmp_path / "target", "2.png")
    with pytest.raises(InputError, match=message):
        folders.find_pairs_in(tmp_path / "input", tmp_path / "target", match)


def test_a_pair_is_read_and_one_of_two_sizes_is_rejected(tmp_path):
    write_image(tmp_path / "a.png", noise(4, 6, 1))
    write_image(tmp_path / "b.png", noise(4, 6, 2))
    write_image(tmp_path / "c.png", noise(6, 4))
    rainy, clean = folders.read_pair(tmp_path / "a.png", tmp_path / "b.png")
    np.testing.assert_array_equal(rainy, noise(4, 6, 1))
    np.testing.assert_array_equal(clean, noise(4, 6, 2))
    with pytest.raises(
        InputError, match=r"/c\.png is 4x6, \S+/a\.png is 6x4; a pair must have one size$"
    ):
        folders.read_pair(tmp_path / "a.png", tmp_path / "c.png")


def test_the_size_of_a_pair_is_read_and_two_sizes_are_rejected(tmp_path):
    write_image(tmp_path / "a.png", noise(4, 6))
    write_image(tmp_path / "b.png", noise(4, 6))
    write_image(tmp_path / "c.png", noise(4, 5))
    assert folders.pair_size(tmp_path / "a.png", tmp_path / "b.png") == (4, 6)
    with pytest.raises(
        InputError, match=r"/c\.png is 5x4, \S+/a\.png is 6x4; a pair must have one size$"
    ):
        folders.pair_size(tmp_path / "a.png", tmp_path / "c.png")
