"""The pairs of every published dataset are found in each layout that it is published in."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

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
    rain_norain,
    text_list,
)

from drsformer_jax.data import layouts
from drsformer_jax.data.layouts import DATASETS, RawPair, find_raw_pairs, instructions
from drsformer_jax.errors import InputError


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
    refused("rain100l", tmp_path, message)


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


def refused(dataset: str, folder: Path, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        find_raw_pairs(dataset, folder)
    assert "\n" not in str(caught.value)


def test_unknown_names_and_missing_folders_are_told(tmp_path):
    known = "expected rain200l or .* or paired_folder$"
    refused("rain", tmp_path, f"^'rain' is no known dataset; {known}")
    with pytest.raises(InputError, match=known):
        instructions("rain")
    refused("rain100l", tmp_path / "x", r"/x does not exist; expected the folder that rain100l was")
    file = images(tmp_path, "a.png") / "a.png"
    refused("rain100l", file, r"/a\.png is a file; expected the folder that rain100l was unpacked")


@pytest.mark.parametrize("dataset", DATASETS)
def test_a_folder_without_splits_says_what_was_found_and_what_is_expected(tmp_path, dataset):
    place = "train/Rain13K/ or train/ or test/Test100/" if dataset == "rain13k" else "train/ or "
    expected = rf"expected {place}.*, with input/ and target/ with equal file names"
    refused(dataset, tmp_path, rf"^{re.escape(str(tmp_path))} holds nothing; {expected}")
    images(tmp_path / "Rain", "1.png")
    refused(dataset, tmp_path, rf" holds Rain/; {expected}")
    for name in "fedcba":
        (tmp_path / name).touch()
    refused(dataset, tmp_path, rf" holds Rain/, a, b, c and 3 more; {expected}")


@pytest.mark.parametrize("dataset", [name for name in DATASETS if name != "did_data"])
def test_a_split_of_no_known_layout_is_told_even_beside_a_good_one(tmp_path, dataset):
    equal_names(tmp_path / "test" / ("Test100" if dataset == "rain13k" else ""))
    images(tmp_path / "train" / "images", "1.png")
    refused(dataset, tmp_path, r"/train holds images/; expected input/ and target/ with equal")


def test_a_split_without_an_image_is_told(tmp_path):
    listed(tmp_path / "train" / "readme.txt", "hello")
    refused("did_data", tmp_path, r"/train holds readme\.txt; expected .* side by side$")


def test_texts_beside_the_folders_of_spa_data_are_no_lists(tmp_path):
    pairs = equal_names(tmp_path / "train")
    (tmp_path / "train" / "readme.txt").write_text("What this is.")
    assert find_raw_pairs("spa_data", tmp_path) == {"train": pairs}


@pytest.mark.parametrize(
    ("dataset", "made"), [(name, made) for name in PUBLISHED[:-1] for made in LAYOUTS[name][1:]]
)
def test_two_layouts_at_once_are_refused(tmp_path, dataset, made):
    made(tmp_path / "train")
    equal_names(tmp_path / "train")
    refused(dataset, tmp_path, r"split train is in \S+ \(input/ and .*\) and .*; expected one of")


def test_a_split_in_two_places_is_refused(tmp_path):
    equal_names(tmp_path / "train")
    equal_names(tmp_path / "train" / "Rain13K")
    refused("rain13k", tmp_path, r"split train is in \S+/train/Rain13K \(.*\) and \S+/train \(")
    equal_names(tmp_path)
    refused("paired_folder", tmp_path, r"split train is in \S+/train \(.*\) and \S+ \(input/")
    equal_names(tmp_path / "training")
    refused("rain100l", tmp_path, r"/train and \S+/training both exist; expected one$")


def test_rainy_images_in_and_beside_x2_are_refused(tmp_path):
    in_x2(tmp_path / "train")
    images(tmp_path / "train" / "rain", "norain-2x2.png")
    refused(
        "rain200h", tmp_path, r"/train/rain has images beside X2/; expected them in one folder$"
    )


def test_files_in_the_place_of_folders_are_told(tmp_path):
    (tmp_path / "train").touch()
    refused("rain100l", tmp_path, r"/train is a file; expected a folder$")
    equal_names(tmp_path / "a" / "train")
    (tmp_path / "a" / "train" / "rain").touch()
    refused("rain100l", tmp_path / "a", r"/train/rain is a file; expected a folder$")


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
def test_one_folder_of_two_is_told(tmp_path, dataset, there, missing):
    images(tmp_path / "train" / there, "1.png")
    refused(dataset, tmp_path, rf"/train has {there}/ but no {missing}/; expected both$")


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
def test_missing_partners_are_told(tmp_path, dataset, made, lost, message):
    made(tmp_path / "test")
    (tmp_path / "test" / lost).unlink()
    refused(dataset, tmp_path, message)


def test_names_of_another_kind_are_told(tmp_path):
    ground_truth(tmp_path / "test")
    images(tmp_path / "test" / "rainy image", "cover.jpg")
    refused("ddn_data", tmp_path, r"finds nothing in the name of \S+ image/cover\.jpg; expected")


def test_two_rainy_images_of_one_clean_one_are_refused_in_rain200(tmp_path):
    rain_norain(tmp_path / "test")
    images(tmp_path / "test" / "rain", "norain-2.png")
    message = r"/rain/norain-2\.png and \S+/norain-2x2\.png both belong to \S+/norain-2\.png; "
    refused("rain200l", tmp_path, message + "expected one$")


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
def test_damaged_lists_are_told_by_line(tmp_path, content, message):
    refused("spa_data", damaged(tmp_path, content), r"/test/real_world\.txt" + message)


def test_two_lists_are_refused(tmp_path):
    text_list(tmp_path / "test")
    text_list(tmp_path / "test", name="a.txt")
    message = r"/test/a\.txt and \S+/test/real_world\.txt both exist; expected one list$"
    refused("spa_data", tmp_path, message)
    listed(tmp_path / "pairs.txt")
    listed(tmp_path / "pairs.tsv")
    refused("paired_folder", tmp_path, r"/pairs\.tsv and \S+/pairs\.txt both exist; expected")


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
