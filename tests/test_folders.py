"""Pictures and pairs are found by name; what is missing is told in one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from drsformer_jax.data import folders
from drsformer_jax.data.images import write_picture
from drsformer_jax.errors import InputError


def noise(h: int, w: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (h, w, 3), dtype=np.uint8)


def touch(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()
    return folder


def test_pictures_are_listed_in_natural_order_without_hidden_and_other_files(tmp_path):
    touch(tmp_path, "10.png", "2.png", "b2.JPG", "B10.jpg", "1.tif", "a.webp", "02.png")
    touch(tmp_path, ".3.png", "notes.txt")
    touch(tmp_path / "deeper.png", "4.png")
    names = [path.name for path in folders.find_pictures(str(tmp_path))]
    assert names == ["1.tif", "02.png", "2.png", "10.png", "a.webp", "b2.JPG", "B10.jpg"]


def test_folders_without_pictures_are_told_in_one_line(tmp_path):
    with pytest.raises(InputError, match=r"/x does not exist; expected a folder of pictures$"):
        folders.find_pictures(tmp_path / "x")
    file = touch(tmp_path, "a.png") / "a.png"
    with pytest.raises(InputError, match=r"a\.png is a file; expected a folder of pictures$"):
        folders.find_pictures(file)
    with pytest.raises(InputError, match=r"/e holds no picture; expected files named \.png \.jpg"):
        folders.find_pictures(touch(tmp_path / "e", "notes.txt", ".a.png"))


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


def test_a_folder_without_input_or_target_is_told_in_one_line(tmp_path):
    with pytest.raises(InputError, match=r"has no folder input/; expected input/ and target/ with"):
        folders.find_pairs(tmp_path)
    touch(tmp_path / "input", "1.png")
    with pytest.raises(InputError, match=r"has no folder target/; expected input/ and target/"):
        folders.find_pairs(tmp_path)
    touch(tmp_path / "target")
    with pytest.raises(InputError, match=r"/target holds no picture; expected files named"):
        folders.find_pairs(tmp_path)


def test_missing_partners_are_counted_and_the_first_is_named(tmp_path):
    touch(tmp_path / "input", "1.png", "10.png", "3.png")
    touch(tmp_path / "target", "1.png", "10.png")
    with pytest.raises(
        InputError,
        match=r"/input/3\.png has no partner in \S+/target \(1 of 5 pictures have none\); "
        r"expected equal file names$",
    ):
        folders.find_pairs(tmp_path)
    touch(tmp_path / "target", "2.png", "20.png")
    with pytest.raises(
        InputError, match=r"/target/2\.png has no partner in \S+/input \(3 of 7 pictures"
    ):
        folders.find_pairs(tmp_path)


def test_the_extension_is_part_of_a_pairs_name(tmp_path):
    touch(tmp_path / "input", "1.jpg")
    touch(tmp_path / "target", "1.png")
    with pytest.raises(InputError, match=r"/input/1\.jpg has no partner"):
        folders.find_pairs(tmp_path)


def test_a_pair_is_read_and_one_of_two_sizes_is_refused(tmp_path):
    write_picture(tmp_path / "a.png", noise(4, 6, 1))
    write_picture(tmp_path / "b.png", noise(4, 6, 2))
    write_picture(tmp_path / "c.png", noise(6, 4))
    rainy, clean = folders.read_pair(tmp_path / "a.png", tmp_path / "b.png")
    np.testing.assert_array_equal(rainy, noise(4, 6, 1))
    np.testing.assert_array_equal(clean, noise(4, 6, 2))
    with pytest.raises(
        InputError, match=r"/c\.png is 4x6, \S+/a\.png is 6x4; a pair must have one size$"
    ):
        folders.read_pair(tmp_path / "a.png", tmp_path / "c.png")
