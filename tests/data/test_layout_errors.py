"""What fits no published layout is rejected in one line."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import pytest
from raw_layouts import (
    LAYOUTS,
    PUBLISHED,
    equal_names,
    ground_truth,
    images,
    in_x2,
    listed,
    one_folder,
    rain_norain,
    text_list,
)

from drsformer_jax.data.layouts import DATASETS, find_raw_pairs, instructions
from drsformer_jax.errors import InputError


def rejected(dataset: str, folder: Path, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        find_raw_pairs(dataset, folder)
    assert "\n" not in str(caught.value)


def test_unknown_names_and_missing_folders_are_reported(tmp_path):
    known = "expected rain200l or .* or paired_folder$"
    rejected("rain", tmp_path, f"^'rain' is no known dataset; {known}")
    with pytest.raises(InputError, match=known):
        instructions("rain")
    rejected(
        "rain100l", tmp_path / "x", r"/x does not exist; expected the folder that rain100l was"
    )
    file = images(tmp_path, "a.png") / "a.png"
    rejected("rain100l", file, r"/a\.png is a file; expected the folder that rain100l was unpacked")


@pytest.mark.parametrize("dataset", DATASETS)
def test_a_folder_without_splits_says_what_was_found_and_what_is_expected(tmp_path, dataset):
    place = "train/Rain13K/ or train/ or test/Test100/" if dataset == "rain13k" else "train/ or "
    expected = rf"expected {place}.*, with input/ and target/ with equal file names"
    rejected(dataset, tmp_path, rf"^{re.escape(str(tmp_path))} holds nothing; {expected}")
    images(tmp_path / "Rain", "1.png")
    rejected(dataset, tmp_path, rf" holds Rain/; {expected}")
    for name in "fedcba":
        (tmp_path / name).touch()
    rejected(dataset, tmp_path, rf" holds Rain/, a, b, c and 3 more; {expected}")


@pytest.mark.parametrize("dataset", [name for name in DATASETS if name != "did_data"])
def test_a_split_of_no_known_layout_is_reported_even_beside_a_good_one(tmp_path, dataset):
    equal_names(tmp_path / "test" / ("Test100" if dataset == "rain13k" else ""))
    images(tmp_path / "train" / "images", "1.png")
    rejected(dataset, tmp_path, r"/train holds images/; expected input/ and target/ with equal")


def test_a_split_without_an_image_is_reported(tmp_path):
    listed(tmp_path / "train" / "readme.txt", "hello")
    rejected("did_data", tmp_path, r"/train holds readme\.txt; expected .* side by side$")


def test_texts_beside_the_folders_of_spa_data_are_no_lists(tmp_path):
    pairs = equal_names(tmp_path / "train")
    (tmp_path / "train" / "readme.txt").write_text("What this is.")
    assert find_raw_pairs("spa_data", tmp_path) == {"train": pairs}


@pytest.mark.parametrize(
    ("dataset", "made"), [(name, made) for name in PUBLISHED[:-1] for made in LAYOUTS[name][1:]]
)
def test_two_layouts_at_once_are_rejected(tmp_path, dataset, made):
    made(tmp_path / "train")
    equal_names(tmp_path / "train")
    rejected(dataset, tmp_path, r"split train is in \S+ \(input/ and .*\) and .*; expected one of")


def test_a_split_in_two_places_is_rejected(tmp_path):
    equal_names(tmp_path / "train")
    equal_names(tmp_path / "train" / "Rain13K")
    rejected("rain13k", tmp_path, r"split train is in \S+/train/Rain13K \(.*\) and \S+/train \(")
    equal_names(tmp_path)
    rejected("paired_folder", tmp_path, r"split train is in \S+/train \(.*\) and \S+ \(input/")
    equal_names(tmp_path / "training")
    rejected("rain100l", tmp_path, r"/train and \S+/training both exist; expected one$")


def test_rainy_images_in_and_beside_x2_are_rejected(tmp_path):
    in_x2(tmp_path / "train")
    images(tmp_path / "train" / "rain", "norain-2x2.png")
    rejected(
        "rain200h", tmp_path, r"/train/rain has images beside X2/; expected them in one folder$"
    )


def test_files_in_the_place_of_folders_are_reported(tmp_path):
    (tmp_path / "train").touch()
    rejected("rain100l", tmp_path, r"/train is a file; expected a folder$")
    equal_names(tmp_path / "a" / "train")
    (tmp_path / "a" / "train" / "rain").touch()
    rejected("rain100l", tmp_path / "a", r"/train/rain is a file; expected a folder$")


@pytest.mark.parametrize(
    ("dataset", "there", "missing"),
    [
        ("rain200l", "input", "target"),
        ("rain200l", "target", "input"),
        ("rain200l", "rain", "norain"),
        ("rain200l", "norain", "rain"),
        ("ddn_data", "rainy image", "ground truth"),
        ("did_data", "input", "target"),
        ("paired_folder", "input", "target"),
    ],
)
def test_one_folder_of_two_is_reported(tmp_path, dataset, there, missing):
    images(tmp_path / "train" / there, "1.png")
    rejected(dataset, tmp_path, rf"/train has {there}/ but no {missing}/; expected both$")


@pytest.mark.parametrize(
    ("dataset", "made", "lost", "message"),
    [
        ("rain100l", equal_names, "target/10.png", r"/input/10\.png has no partner in \S+/target"),
        ("rain100l", equal_names, "input/10.png", r"/target/10\.png has no partner in \S+/input"),
        ("rain200l", rain_norain, "norain/norain-2.png", r"-2x2\.png has no partner .*\(1 of 5"),
        ("rain200l", in_x2, "rain/X2/norain-10x2.png", r"n-10\.png has no partner in \S+/rain/X2"),
        ("ddn_data", ground_truth, "ground truth/9.jpg", r"/9_1\.jpg has no partner .*\(14 of 29"),
    ],
)
def test_missing_partners_are_reported(tmp_path, dataset, made, lost, message):
    made(tmp_path / "test")
    (tmp_path / "test" / lost).unlink()
    rejected(dataset, tmp_path, message)


def test_names_of_another_kind_are_reported(tmp_path):
    ground_truth(tmp_path / "test")
    images(tmp_path / "test" / "rainy image", "cover.jpg")
    rejected("ddn_data", tmp_path, r"finds nothing in the name of \S+ image/cover\.jpg; expected")


def test_two_rainy_images_of_one_clean_one_are_rejected_in_rain200(tmp_path):
    rain_norain(tmp_path / "test")
    images(tmp_path / "test" / "rain", "norain-2.png")
    message = r"/rain/norain-2\.png and \S+/norain-2x2\.png both belong to \S+/norain-2\.png; "
    rejected("rain200l", tmp_path, message + "expected one$")


def damaged(folder: Path, content: Iterable[str] | bytes) -> Path:
    text_list(folder / "test")
    file = folder / "test" / "real_world.txt"
    if isinstance(content, bytes):
        file.write_bytes(content)
        return folder
    listed(file, *content)
    return folder


GOOD = "real/2.png real_gt/2.png"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], r" is empty; expected a rainy and a clean path on each line$"),
        (["", "  ", "\t"], r" is empty; expected a rainy and a clean path on each line$"),
        ([GOOD, "real/3.png"], r", line 2: 'real/3\.png'; expected two paths inside, separated "),
        ([GOOD, "", "a b c"], r", line 3: 'a b c'; expected two paths inside, separated by"),
        (["a\tb\tc"], r", line 1: 'a\\tb\\tc'; expected two paths inside"),
        (["x" * 10**6], r", line 1: 'x{80}'; expected two paths inside"),
        ([GOOD, "real/3.png ../../secret.png"], r", line 2: .*\.\./secret\.png'; expected two pa"),
        ([GOOD, "real/4.png real_gt/2.png"], r", line 2: \S+/test/real/4\.png is missing; expect"),
        ([GOOD, "real/3.png real_gt/4.png"], r", line 2: \S+/test/real_gt/4\.png is missing; exp"),
        (["real/4.png real_gt/2.png"], r", line 1: \S+/test/real/4\.png is missing; expected an i"),
        (["real real_gt"], r", line 1: \S+/test/real is missing; expected an image$"),
        (["real/2.png a\0b/c.png"], r", line 1: \S+/test/a\0b/c\.png is missing; expected"),
        (["real/2.png .."], r", line 1: \S+/test/\.\. is missing; expected an image$"),
        ([GOOD, "real/3.png real_gt/3.png", "/real//2.png real_gt/3.png"],
         r", line 3: real/2\.png is also in line 1; expected it once$"),
        (b"\xff\xfe\x00", r" cannot be read \(.*\); expected text in UTF-8$"),
    ],
)  # fmt: skip
def test_damaged_lists_are_reported_by_line(tmp_path, content, message):
    rejected("spa_data", damaged(tmp_path, content), r"/test/real_world\.txt" + message)


def test_two_lists_are_rejected(tmp_path):
    text_list(tmp_path / "test")
    text_list(tmp_path / "test", name="a.txt")
    message = r"/test/a\.txt and \S+/test/real_world\.txt both exist; expected one list$"
    rejected("spa_data", tmp_path, message)
    listed(tmp_path / "pairs.txt")
    listed(tmp_path / "pairs.tsv")
    rejected("paired_folder", tmp_path, r"/pairs\.tsv and \S+/pairs\.txt both exist; expected")


@pytest.mark.parametrize(
    ("added", "message"),
    [
        ("rain-3.png", r"/train/rain-3\.png has no partner; expected norain-3\.png$"),
        ("norain-3.png", r"/train/norain-3\.png has no partner; expected rain-3\.png$"),
        ("rain-10.jpg", r"/rain-10\.jpg and .*/rain-10\.png have the same name; expected one of"),
        ("cover.png", r"/cover\.png has an unknown name; expected rain-N\.png or norain-N\.png$"),
    ],
)
def test_other_images_in_one_folder_are_rejected(tmp_path, added, message):
    one_folder(tmp_path / "train")
    images(tmp_path / "train", added)
    rejected("rain100l", tmp_path, message)
