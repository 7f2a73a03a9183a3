"""Clean photographs that synthetic rain falls on are found, and split by scene."""

from __future__ import annotations

import re

import numpy as np
import pytest

from drsformer_jax.data.synthetic import PHOTOGRAPHS, photographs
from drsformer_jax.errors import InputError
from drsformer_jax.images.pixels import read_image, write_image


def touched(folder, *names):
    """A folder with empty files of these names."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def names_of(found):
    return [photograph.path.name for photograph in found]


def test_skimage_photographs_are_read_in_color_and_never_split_a_scene():
    train, validation = photographs("skimage")
    names = [photograph.name for photograph in train]
    assert names == ["astronaut", "motorcycle_left", "motorcycle_right", "rocket"]
    assert [photograph.name for photograph in validation] == ["chelsea", "coffee"]
    assert [*PHOTOGRAPHS["train"], *PHOTOGRAPHS["validation"]] == names_of(train + validation)
    for photograph in train + validation:
        image = read_image(photograph.path)
        assert min(image.shape[:2]) >= 300
        assert np.ptp(image.astype(int), axis=-1).mean() > 5, "not in color"


def test_skimage_photographs_equal_scikit_images_own():
    data = pytest.importorskip("skimage.data")
    train, validation = photographs("skimage")
    for photograph in [train[0], train[3], *validation]:
        np.testing.assert_array_equal(read_image(photograph.path), getattr(data, photograph.name)())
    left, right, _ = data.stereo_motorcycle()
    np.testing.assert_array_equal(read_image(train[1].path), left)
    np.testing.assert_array_equal(read_image(train[2].path), right)


def test_missing_scikit_image_is_reported_in_one_line(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"^scikit-image is not installed; expected it, or a "):
        photographs("skimage")


@pytest.mark.parametrize(("count", "held_out"), [(2, 1), (5, 1), (9, 1), (10, 2), (12, 2)])
def test_the_last_fifth_of_a_folder_is_for_validation(tmp_path, count, held_out):
    train, validation = photographs(str(touched(tmp_path, *(f"{n}.png" for n in range(count)))))
    assert [int(p.name) for p in train + validation] == list(range(count))
    assert len(validation) == held_out


def test_photographs_in_subfolders_are_left_out_and_told(tmp_path):
    for name in ("a.png", "b.png", "city/c.png"):
        write_image(tmp_path / name, np.zeros((4, 4, 3), np.uint8))
    with pytest.warns(UserWarning, match=r"1 file is left out: c\.png$"):
        train, validation = photographs(tmp_path)
    assert [each.name for each in (*train, *validation)] == ["a", "b"]


def test_a_folder_of_train_and_validation_is_split_by_those(tmp_path):
    touched(tmp_path, "train/10.png", "train/2.jpg", "validation/1.webp", "validation/3.png")
    touched(tmp_path, "outside.png", "train/notes.txt", "train/deeper/4.png")
    with pytest.warns(UserWarning, match=r"train 2 files are left out: 4\.png, notes\.txt$"):
        train, validation = photographs(tmp_path)
    assert names_of(train) == ["2.jpg", "10.png"]
    assert names_of(validation) == ["1.webp", "3.png"]
    assert train[0].path.parent == tmp_path / "train"


@pytest.mark.parametrize("part", ["train", "validation"])
def test_one_of_the_two_folders_alone_is_no_split(tmp_path, part):
    touched(tmp_path, f"{part}/9.png", "1.png", "2.png")
    with pytest.warns(UserWarning, match=r"1 file is left out: 9\.png$"):
        train, validation = photographs(tmp_path)
    assert names_of(train) + names_of(validation) == ["1.png", "2.png"]


def test_one_image_is_enough_in_each_of_the_two_folders(tmp_path):
    touched(tmp_path, "train/a.png", "validation/b.png")
    assert [names_of(part) for part in photographs(tmp_path)] == [["a.png"], ["b.png"]]


@pytest.mark.parametrize("empty", ["train", "validation"])
def test_an_empty_part_is_rejected(tmp_path, empty):
    touched(tmp_path, "train/a.png", "validation/b.png")
    for path in (tmp_path / empty).iterdir():
        path.unlink()
    with pytest.raises(InputError, match=f"/{empty} holds no .*; expected files named"):
        photographs(tmp_path)


@pytest.mark.parametrize(
    "names",
    [
        ("train/a.png", "validation/a.jpg"),
        ("train/a.jpg", "validation/a.jpg"),
        ("train/a.jpg", "train/a.png", "validation/b.png"),
        ("a.jpg", "a.png"),
    ],
)
def test_two_images_of_one_name_are_rejected_in_one_line(tmp_path, names):
    touched(tmp_path, *names)
    one, two = (re.escape(str(tmp_path / name)) for name in names[:2])
    with pytest.raises(
        InputError,
        match=f"^{one} and {two} have one name; expected names that differ before the extension$",
    ):
        photographs(tmp_path)


def test_unusable_folders_of_photographs_are_reported_in_one_line(tmp_path):
    touched(tmp_path, "a.png")
    with pytest.raises(InputError, match=r"holds 1 image; expected 2 or more, to train and to"):
        photographs(tmp_path)
    with pytest.raises(InputError, match=r"/none does not exist; expected a folder of "):
        photographs(tmp_path / "none")
