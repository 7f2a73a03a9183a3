"""The pairs of every published dataset are found in each layout that it is published in."""

from __future__ import annotations

import pytest
from raw_layouts import (
    LAYOUTS,
    NORAIN,
    PUBLISHED,
    RAIN13K_TESTS,
    equal_names,
    ground_truth,
    images,
    in_x2,
    input_target,
    listed,
    one_folder,
    text_list,
)

from drsformer_jax.data import layouts
from drsformer_jax.data.layouts import DATASETS, RawPair, find_raw_pairs, instructions


@pytest.mark.parametrize(
    ("dataset", "made"), [(name, made) for name in PUBLISHED for made in LAYOUTS[name]]
)
@pytest.mark.parametrize("splits", [("train", "test"), ("Training", "TESTING"), ("TEST",)])
def test_pairs_of_every_layout_are_found_in_order(tmp_path, dataset, made, splits):
    expected = {split.lower().removesuffix("ing"): made(tmp_path / split) for split in splits}
    images(tmp_path / "elsewhere", "1.png")
    assert find_raw_pairs(dataset, str(tmp_path)) == expected


@pytest.mark.parametrize("extra", [False, True])
def test_rain100l_may_come_in_one_folder(tmp_path, extra, recwarn):
    """As RainTrainL, with streaks and regions of rain, which belong to no pair."""
    expected = one_folder(tmp_path / "train")
    if extra:
        kinds = ("rainstreak", "rainregion")
        images(tmp_path / "train", *(f"{kind}-{n}.png" for kind in kinds for n in (2, 10)))
    assert find_raw_pairs("rain100l", tmp_path) == {"train": expected}
    assert [str(each.message) for each in recwarn] == [
        f"4 images of streaks or regions in {tmp_path / 'train'} belong to no pair and are left "
        "out, such as rainregion-2.png"
    ] * extra


def test_train_and_test_may_come_in_two_layouts(tmp_path):
    expected = {"train": equal_names(tmp_path / "train"), "test": in_x2(tmp_path / "test")}
    assert find_raw_pairs("rain100l", tmp_path) == expected


def test_names_of_folders_may_have_capitals_and_underlines(tmp_path):
    made = ground_truth(tmp_path / "test")
    (tmp_path / "test" / "rainy image").rename(tmp_path / "test" / "Rainy_Image")
    found = find_raw_pairs("ddn_data", tmp_path)["test"]
    assert [pair.name for pair in found] == [pair.name for pair in made]
    assert found[0].rainy == tmp_path / "test" / "Rainy_Image" / "9_1.jpg"


def test_a_repackaged_image_belongs_to_one_of_another_extension(tmp_path):
    images(tmp_path / "train" / "input", "1.jpg")
    images(tmp_path / "train" / "target", "1.png")
    (pair,) = find_raw_pairs("did_data", tmp_path)["train"]
    assert (pair.name, pair.rainy.name, pair.clean.name) == ("1.jpg", "1.jpg", "1.png")


def test_side_by_side_images_may_lie_in_the_split_folder_itself(tmp_path):
    images(tmp_path / "test", "10.jpg", "9.jpg")
    listed(tmp_path / "test" / "readme.txt", "hello")
    assert find_raw_pairs("did_data", tmp_path) == {
        "test": [RawPair(name, tmp_path / "test" / name, None) for name in ("9.jpg", "10.jpg")]
    }


@pytest.mark.parametrize("deeper", ["Rain13K", "rain13k", ""])
def test_rain13k_has_five_test_sets(tmp_path, deeper):
    expected = {"train": equal_names(tmp_path / "train" / deeper)}
    for count, name in enumerate(RAIN13K_TESTS, 1):
        names = [f"{index}.png" for index in range(count)]
        expected[name.lower()] = input_target(tmp_path / "test" / name, *names)
    assert find_raw_pairs("rain13k", tmp_path) == expected


def test_rain13k_may_come_in_parts(tmp_path):
    expected = {"rain100h": equal_names(tmp_path / "Test" / "rain100h")}
    assert find_raw_pairs("rain13k", tmp_path) == expected


@pytest.mark.parametrize(
    "form",
    [
        "/real/{0}.png /real_gt/{0}.png",
        "./real/{0}.png\treal_gt/{0}.png",
        "  real//{0}.png \t  /real_gt/./{0}.png\r\n",
        r"\real\{0}.png   .\real_gt\{0}.png",
    ],
)
@pytest.mark.parametrize("above", [False, True])
def test_lists_are_read_in_the_forms_that_are_about(tmp_path, form, above):
    """Paths start at the list's folder, or at the one above."""
    root = tmp_path if above else tmp_path / "test"
    expected = text_list(tmp_path / "test", form, root=root)
    assert find_raw_pairs("spa_data", tmp_path) == {"test": expected}


def test_lists_in_their_own_folders_name_come_first(tmp_path):
    text_list(tmp_path / "test", root=tmp_path)
    expected = text_list(tmp_path / "test")
    assert find_raw_pairs("spa_data", tmp_path)["test"] == expected


def test_a_list_may_begin_with_a_mark_and_end_without_a_line_break(tmp_path):
    expected = text_list(tmp_path / "test")
    file = tmp_path / "test" / "real_world.txt"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().rstrip())
    listed(tmp_path / "test" / "._real_world.txt", "what another system left")
    assert find_raw_pairs("spa_data", tmp_path)["test"] == expected


def test_rainy_images_may_share_a_listed_clean_one(tmp_path):
    images(tmp_path / "test", "a.png", "b.png", "c.png")
    listed(tmp_path / "test" / "list.txt", "a.png c.png", "", "b.png c.png")
    assert [pair[1:] for pair in find_raw_pairs("spa_data", tmp_path)["test"]] == [
        (tmp_path / "test" / name, tmp_path / "test" / "c.png") for name in ("a.png", "b.png")
    ]


def test_own_pairs_lie_in_the_folder_itself_or_in_splits(tmp_path):
    expected = equal_names(tmp_path / "a")
    assert find_raw_pairs("paired_folder", tmp_path / "a") == {"train": expected}
    both = {"train": equal_names(tmp_path / "b/train"), "test": equal_names(tmp_path / "b/test")}
    assert find_raw_pairs("paired_folder", tmp_path / "b") == both
    only = {"test": equal_names(tmp_path / "c" / "testing")}
    assert find_raw_pairs("paired_folder", tmp_path / "c") == only


@pytest.mark.parametrize("name", ["val", "Validation"])
def test_own_pairs_to_validate_on_are_the_test_split_if_there_is_no_other(tmp_path, name):
    expected = {"test": equal_names(tmp_path / name)}
    assert find_raw_pairs("paired_folder", tmp_path) == expected
    expected["train"] = equal_names(tmp_path / "train")
    assert find_raw_pairs("paired_folder", tmp_path) == expected


@pytest.mark.parametrize("parts", [[""], ["input"]], ids=str)
def test_own_folder_that_is_no_test_split_is_told_and_the_others_are_built(tmp_path, parts):
    expected = {"train": equal_names(tmp_path / "train")}
    for part in parts:
        images(tmp_path / "val" / part, "1.png")
    with pytest.warns(UserWarning, match=r"val/ with images belong to no split and are left out"):
        assert find_raw_pairs("paired_folder", tmp_path) == expected


def test_own_folders_with_images_that_belong_to_no_split_are_told(tmp_path):
    both = {split: equal_names(tmp_path / split) for split in ("train", "test")}
    equal_names(tmp_path / "val")
    images(tmp_path / "more" / "deep", "1.png")
    images(tmp_path / ".hidden", "1.png")
    (tmp_path / "notes").mkdir()
    with pytest.warns(UserWarning, match=r"more/ and val/ with images belong to no split and are"):
        assert find_raw_pairs("paired_folder", tmp_path) == both


@pytest.mark.parametrize("name", ["pairs.txt", "pairs.tsv", "Pairs.TSV"])
@pytest.mark.parametrize("split", ["", "train"])
def test_own_pairs_of_other_names_are_listed(tmp_path, name, split):
    expected = text_list(tmp_path / split, name=name)
    listed(tmp_path / split / "notes.txt", "no list")
    assert find_raw_pairs("paired_folder", tmp_path) == {"train": expected}


def test_a_tab_lets_listed_names_hold_blanks_beside_folders_of_unequal_names(tmp_path):
    images(tmp_path / "input", "a rainy day.png")
    images(tmp_path / "target", "the next day.png")
    listed(tmp_path / "pairs.txt", "input/a rainy day.png\ttarget/the next day.png")
    rainy, clean = tmp_path / "input/a rainy day.png", tmp_path / "target/the next day.png"
    assert find_raw_pairs("paired_folder", tmp_path) == {
        "train": [RawPair("input/a rainy day.png", rainy, clean)]
    }


@pytest.mark.parametrize(
    ("dataset", "words"),
    [
        *((name, ["train/", "test/", "input/", "target/"]) for name in PUBLISHED),
        *((name, ["rain/", "rain/X2/", "norain/"]) for name in NORAIN),
        *((name, ["norain-Nx2.png", "norain-N.png"]) for name in NORAIN),
        *((name, ["1800 pairs", "200 pairs"]) for name in ("rain200l", "rain200h")),
        ("rain100l", ["200 pairs", "100 pairs", "rain-N.png and norain-N.png in one folder"]),
        ("did_data", ["side by side", "left", "subfolders", "12000 pairs", "1200 pairs"]),
        ("ddn_data", ["rainy image/", "ground truth/", "N_k.jpg", "1 to 14", "N.jpg"]),
        ("ddn_data", ["12600 pairs", "1400 pairs"]),
        ("spa_data", ["*.txt", "tab or spaces", "638492 pairs", "1000 pairs"]),
        ("rain13k", ["train/Rain13K/ or train/", "13712 pairs", "2800 pairs", "input/", "target/"]),
        ("rain13k", [f"test/{name}/" for name in RAIN13K_TESTS]),
        ("paired_folder", ["the folder itself", "train/", "test/", "pairs.txt", "pairs.tsv"]),
        ("paired_folder", ["input/", "target/", "tab or spaces", "any number of pairs"]),
    ],
)  # fmt: skip
def test_instructions_name_every_folder_and_count(dataset, words):
    text = instructions(dataset)
    assert all(word in text for word in words)
    assert len(text.splitlines()) <= 12


def test_expected_counts_are_the_published_ones():
    counts = {name: dict(raw.expected) for name, raw in DATASETS.items()}
    assert counts == {
        "rain200l": {"train": 1800, "test": 200},
        "rain200h": {"train": 1800, "test": 200},
        "did_data": {"train": 12000, "test": 1200},
        "ddn_data": {"train": 12600, "test": 1400},
        "spa_data": {"train": 638492, "test": 1000},
        "rain100l": {"train": 200, "test": 100},
        "rain13k": {
            "train": 13712,
            "test100": 100,
            "rain100l": 100,
            "rain100h": 100,
            "test1200": 1200,
            "test2800": 2800,
        },
        "paired_folder": {},
    }


def test_a_long_list_looks_into_each_folder_once(tmp_path, monkeypatch):
    """Not at each file: SPA-Data has a million, and its disk may be far."""
    scanned = []
    scan = layouts.os.scandir
    monkeypatch.setattr(layouts.os, "scandir", lambda path: scanned.append(path) or scan(path))
    expected = text_list(tmp_path / "train")
    scanned.clear()
    assert layouts._listed(tmp_path / "train" / "real_world.txt") == expected
    assert scanned == [tmp_path / "train" / "real", tmp_path / "train" / "real_gt"]


@pytest.mark.parametrize(
    ("dataset", "folder", "counts"),
    [
        ("rain100l", "Rain100L", {"train": 40, "test": 16}),
        ("rain200h", "Rain200H", {"train": 3, "test": 3}),
        ("rain200l", "Rain200L", {"test": 3}),
    ],
)
def test_real_pairs_are_found(shared, dataset, folder, counts):
    found = find_raw_pairs(dataset, shared / "data" / folder)
    assert {split: len(pairs) for split, pairs in found.items()} == counts
    for pairs in found.values():
        assert all(
            pair.rainy.parent.name == "input"
            and pair.clean == pair.rainy.parents[1] / "target" / pair.name
            for pair in pairs
        )
