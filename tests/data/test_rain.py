import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from rain_sets import pair, write_pairs, write_splits
from raw_layouts import LAYOUTS, PUBLISHED, RAIN13K_TESTS, input_target
from tensorflow_datasets.core import shuffle

from drsformer_jax.config import RainConfig
from drsformer_jax.data import rain
from drsformer_jax.data.datasets import DatasetPairs, find_dataset, summary
from drsformer_jax.data.rain import Rain, build
from drsformer_jax.data.synthetic import Photograph, SyntheticRain
from drsformer_jax.data.verification import verify
from drsformer_jax.errors import InputError
from drsformer_jax.images.pixels import read_image, write_image

SKIP = {name: tfds.decode.SkipDecoding() for name in ("rainy", "clean")}
COUNTS = {
    "rain200l": (1800, 200),
    "rain200h": (1800, 200),
    "did_data": (12_000, 1_200),
    "ddn_data": (12_600, 1_400),
    "spa_data": (638_492, 1_000),
    "rain100l": (200, 100),
}


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    return write_splits(tmp_path_factory.mktemp("raw"))


@pytest.fixture(scope="module")
def built(raw, tmp_path_factory):
    return build("paired_folder", raw, tmp_path_factory.mktemp("data"))


def recorded(folder):
    return json.loads((folder / "metadata.json").read_text())["splits"]


def test_dataset_lies_where_tfds_expects_it_and_nothing_else_does(built):
    assert built.parts[-3:] == ("rain", "paired_folder", "1.0.0")
    assert {path.name for path in built.parents[2].iterdir()} == {"rain"}
    names = {path.name for path in built.iterdir()}
    assert {f"rain-{split}.array_record-00000-of-00001" for split in ("train", "test")} < names


def test_files_are_kept_byte_for_byte_in_the_order_of_their_names(tmp_path):
    names = ["2.png", "10.jpg", "1.jpeg"]
    folder = build("paired_folder", write_pairs(tmp_path / "raw", names), tmp_path / "data")
    records = tfds.builder_from_directory(folder).as_data_source("train", decoders=SKIP)
    assert [record["name"] for record in records] == [b"1.jpeg", b"2.png", b"10.jpg"]
    for record in records:
        for part, key in (("input", "rainy"), ("target", "clean")):
            assert record[key] == (tmp_path / "raw" / part / record["name"].decode()).read_bytes()


def test_tfds_reads_the_images_by_itself(built, raw):
    records = tfds.builder_from_directory(built).as_data_source("test")
    assert len(records) == 3
    for record in records:
        name = record["name"].decode()
        np.testing.assert_array_equal(record["rainy"], read_image(raw / "test/input" / name))
        np.testing.assert_array_equal(record["clean"], read_image(raw / "test/target" / name))


@pytest.mark.parametrize("extension", [".bmp", ".tif", ".webp"])
def test_other_formats_are_stored_as_png_without_loss(tmp_path, extension):
    raw = write_pairs(tmp_path / "raw", [f"1{extension}"])
    (record,) = tfds.builder_from_directory(
        build("paired_folder", raw, tmp_path / "data")
    ).as_data_source("train", decoders=SKIP)
    assert record["rainy"].startswith(b"\x89PNG")
    (stored,) = DatasetPairs(tmp_path / "data/rain/paired_folder/1.0.0", "train")
    np.testing.assert_array_equal(stored["rainy"], pair(0)[0])
    np.testing.assert_array_equal(stored["clean"], pair(0)[1])


@pytest.mark.parametrize("size", [1, 1000, 10**9])
def test_large_sets_are_written_in_several_files_in_order(raw, tmp_path, monkeypatch, size):
    monkeypatch.setattr(rain, "_SHARD_BYTES", size)
    # What TFDS sorts beyond this limit needs TensorFlow.
    monkeypatch.setattr(shuffle, "MAX_MEM_BUFFER_SIZE", 1)
    folder = build("paired_folder", raw, tmp_path)
    files = {path.name for path in folder.glob("rain-train.array_record-*")}
    count = {1: 5, 1000: 3, 10**9: 1}[size]
    assert files == {f"rain-train.array_record-{n:05}-of-{count:05}" for n in range(count)}
    pairs = DatasetPairs(folder, "train")
    assert [each["name"] for each in pairs] == [f"{number}.png" for number in range(1, 6)]
    assert [pairs.size(index) for index in range(5)] == [(24, 32)] * 5
    assert list(verify(folder)) == []
    part = DatasetPairs(folder, "train[1:4]")
    assert [each["name"] for each in part] == ["2.png", "3.png", "4.png"]


def test_halves_of_an_image_are_stored_as_png_without_loss(tmp_path):
    both = np.concatenate(pair(3), axis=1)
    write_image(tmp_path / "raw/train/Rain_Heavy/1.jpg", both)
    shown = read_image(tmp_path / "raw/train/Rain_Heavy/1.jpg")
    folder = build("did_data", tmp_path / "raw", tmp_path / "data", allow_partial=True)
    (stored,) = DatasetPairs(folder, "train")
    assert stored["name"] == "Rain_Heavy/1.jpg"
    np.testing.assert_array_equal(stored["rainy"], shown[:, :32])
    np.testing.assert_array_equal(stored["clean"], shown[:, 32:])


def test_an_image_that_cannot_be_halved_is_rejected_by_name(tmp_path):
    write_image(tmp_path / "raw/train/1.png", np.zeros((8, 33, 3), np.uint8))
    with pytest.raises(InputError, match=r"train/1\.png is 33x8; expected an even width"):
        build("did_data", tmp_path / "raw", tmp_path / "data", allow_partial=True)


@pytest.mark.parametrize("name", COUNTS)
def test_counts_that_differ_are_rejected_or_noted(tmp_path, name):
    write_pairs(tmp_path / "raw/train", ["1.png", "2.png"])
    train, test = COUNTS[name]
    with pytest.raises(InputError, match=f"train split of {name} has 2 pairs .* expected {train},"):
        build(name, tmp_path / "raw", tmp_path / "data")
    assert not (tmp_path / "data").exists()
    folder = build(name, tmp_path / "raw", tmp_path / "data", allow_partial=True)
    assert recorded(folder)["train"]["expected_pairs"] == train
    assert summary(folder)[0].startswith(f"train: 2 of {train} pairs, ")
    write_pairs(tmp_path / "raw/test", ["1.png"])
    both = recorded(build(name, tmp_path / "raw", tmp_path / "more", allow_partial=True))
    assert both["test"] == {**both["test"], "pairs": 1, "expected_pairs": test}


@pytest.mark.parametrize(
    ("dataset", "made"), [(name, made) for name in PUBLISHED for made in LAYOUTS[name]]
)
def test_every_layout_that_a_dataset_comes_in_is_built(tmp_path, dataset, made):
    expected = {split: made(tmp_path / "raw" / split) for split in ("train", "test")}
    folder = build(dataset, tmp_path / "raw", tmp_path / "data", allow_partial=True)
    for split, pairs in expected.items():
        stored = DatasetPairs(folder, split)
        assert [each["name"] for each in stored] == [each.name for each in pairs]
        for index, (_, rainy, clean) in enumerate(pairs):
            both = read_image(rainy)
            both = np.split(both, 2, axis=1) if clean is None else (both, read_image(clean))
            np.testing.assert_array_equal(stored[index]["rainy"], both[0])
            np.testing.assert_array_equal(stored[index]["clean"], both[1])


def test_rain13k_is_built_with_its_five_test_sets(tmp_path):
    input_target(tmp_path / "raw/train/Rain13K", "1.png", "2.png")
    for name in RAIN13K_TESTS:
        input_target(tmp_path / "raw/test" / name, "1.png")
    folder = build("rain13k", tmp_path / "raw", tmp_path / "data", allow_partial=True)
    assert {split: each["pairs"] for split, each in recorded(folder).items()} == {
        "train": 2,
        **{name.lower(): 1 for name in RAIN13K_TESTS},
    }


def test_every_dataset_names_its_citation_license_and_folders(tmp_path):
    for name in COUNTS | {"rain13k": ()}:
        info = Rain(config=name, data_dir=tmp_path).info
        assert "booktitle={CVPR}" in info.citation
        assert info.description
        assert info.redistribution_info.license
        assert name in Rain.MANUAL_DOWNLOAD_INSTRUCTIONS


def test_checksum_is_of_the_pixels_whatever_files_hold_them(built, raw, tmp_path):
    for path in raw.rglob("*.png"):
        copy = tmp_path / "raw" / path.relative_to(raw).with_suffix(".bmp")
        write_image(copy, read_image(path))
    other = recorded(build("paired_folder", tmp_path / "raw", tmp_path / "data"))
    assert {split: each["sha256"] for split, each in other.items()} == {
        split: each["sha256"] for split, each in recorded(built).items()
    }
    changed = tmp_path / "raw/train/target/3.bmp"
    image = read_image(changed)
    image[5, 5, 1] ^= 1
    write_image(changed, image)
    third = recorded(build("paired_folder", tmp_path / "raw", tmp_path / "more"))
    assert third["train"]["sha256"] != other["train"]["sha256"]
    assert third["test"] == other["test"]


def test_synthetic_rain_is_built_of_photographs(tmp_path):
    for number in range(3):
        write_image(tmp_path / f"photos/{number}.png", pair(number)[1])
    folder = build("synthetic", tmp_path / "photos", tmp_path / "data")
    train, test = (DatasetPairs(folder, split) for split in ("train", "test"))
    assert (len(train), len(test)) == (2 * 16, 4)
    photographs = [Photograph(tmp_path / f"photos/{number}.png") for number in range(2)]
    drawn = SyntheticRain(photographs, 16, 0, RainConfig(none=0))
    for index in (0, 31):
        for side in ("rainy", "clean"):
            np.testing.assert_array_equal(train[index][side], drawn[index][side])
    assert len({each["rainy"].tobytes() for each in train}) == 32
    assert list(verify(folder)) == []


def test_folders_of_pairs_have_names_of_their_own(raw, tmp_path):
    folder = build("paired_folder", raw, tmp_path, name="my_rain")
    assert folder == tmp_path / "rain/my_rain/1.0.0"
    assert len(DatasetPairs(folder, "train")) == 5


@pytest.mark.parametrize(
    ("dataset", "name"),
    [
        ("rain100l", "mine"),
        ("paired_folder", "../mine"),
        ("paired_folder", ""),
        ("paired_folder", "rain200l"),
    ],
)
def test_an_impossible_name_is_rejected(raw, tmp_path, dataset, name):
    with pytest.raises(InputError, match="expected one of letters, digits and _"):
        build(dataset, raw, tmp_path / "data", name=name, allow_partial=True)
    assert not (tmp_path / "data").exists()


def test_what_is_there_is_never_built_over(built, raw):
    before = {path: path.read_bytes() for path in built.iterdir()}
    with pytest.raises(InputError, match=r"1\.0\.0 exists; expected"):
        build("paired_folder", raw, built.parents[2])
    assert {path: path.read_bytes() for path in built.iterdir()} == before


def test_an_unknown_dataset_is_rejected(tmp_path):
    with pytest.raises(InputError, match="rain200x is unknown; expected one of rain200l, "):
        build("rain200x", tmp_path, tmp_path / "data")


def test_two_images_of_one_name_are_rejected(tmp_path):
    for extension in ("jpg", "png"):
        write_image(tmp_path / f"raw/train/1.{extension}", np.zeros((8, 32, 3), np.uint8))
    with pytest.raises(InputError, match=r"1\.jpg and .*1\.png have one name before the extension"):
        build("did_data", tmp_path / "raw", tmp_path / "data", allow_partial=True)


def test_a_name_that_is_no_utf8_is_reported(tmp_path):
    raw = write_pairs(tmp_path / "raw", ["1.png"])
    for part in ("input", "target"):
        os.rename(raw / part / "1.png", os.fsencode(raw / part) + b"/\xff.png")
    with pytest.raises(InputError, match="has a name that is no UTF-8; expected another"):
        build("paired_folder", raw, tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_the_home_folder_may_be_written_as_a_tilde(raw, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = build("paired_folder", raw, Path("~/data"), name="mine")
    assert folder == tmp_path / "data/rain/mine/1.0.0"
    assert find_dataset("mine", "~/data") == (folder, "")


DAMAGE = {
    "no image": (lambda path: path.write_text("text"), "is no image that can be read"),
    "cut": (lambda path: path.write_bytes(path.read_bytes()[:60]), "is no image that can be"),
    "size": (
        lambda path: Image.new("RGB", (32, 25)).save(path),
        r"input/2\.png is 32x24; a pair must have one size",
    ),
    "missing": (Path.unlink, "has no partner"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_wrong_files_are_named_and_nothing_is_left(tmp_path, damage):
    raw = write_splits(tmp_path / "raw")
    change, message = DAMAGE[damage]
    change(raw / "train/target/2.png")
    with pytest.raises(InputError, match=message) as error:
        build("paired_folder", raw, tmp_path / "data")
    assert "2.png" in str(error.value)
    assert not list((tmp_path / "data").rglob("*1.0.0*"))


def test_a_data_folder_that_cannot_be_written_is_rejected(raw, tmp_path):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file/below"):
        with pytest.raises(InputError, match="cannot be written"):
            build("paired_folder", raw, place)


@pytest.fixture
def disk(tmp_path):
    """A disk of 1 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a disk can be mounted by root alone")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_is_reported_in_one_line_and_leaves_nothing(disk, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)
    for part in ("input", "target"):
        for number in range(3):
            write_image(tmp_path / f"raw/{part}/{number}.png", noise)
    with pytest.raises(InputError, match=r"cannot be written .*No space left on device") as error:
        build("paired_folder", tmp_path / "raw", disk)
    assert "\n" not in str(error.value)
    assert not list(disk.rglob("*1.0.0*"))


def test_a_read_only_disk_is_reported_in_one_line(disk, raw):
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    with pytest.raises(InputError, match=r"cannot be written .*Read-only file system"):
        build("paired_folder", raw, disk / "data")


BUILD = """
import sys, time
from pathlib import Path
from drsformer_jax.data import rain
from drsformer_jax.errors import one_line_errors

read = rain._read
rain._read = lambda path: (time.sleep(float(sys.argv[3])), read(path))[1]
with one_line_errors():
    rain.build("paired_folder", Path(sys.argv[1]), Path(sys.argv[2]))
assert not any(name.split(".")[0] in ("tensorflow", "torch") for name in sys.modules)
"""


def test_building_imports_no_other_framework(raw, tmp_path):
    command = [sys.executable, "-c", BUILD, str(raw), str(tmp_path / "data"), "0"]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    assert list(verify(tmp_path / "data/rain/paired_folder/1.0.0")) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_a_build_that_is_interrupted_leaves_no_dataset_and_can_be_repeated(
    tmp_path, number, capsys
):
    raw = write_splits(tmp_path / "raw")
    command = [sys.executable, "-c", BUILD, str(raw), str(tmp_path / "data")]
    place = tmp_path / "data/rain/paired_folder"
    with subprocess.Popen([*command, "0.5"], stderr=subprocess.PIPE, text=True) as process:
        while not list(place.glob("incomplete*")):
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.02)
        process.send_signal(number)
        errors = process.communicate()[1]
    assert "Traceback" not in errors
    assert process.returncode != 0
    assert not (place / "1.0.0").exists()
    build("paired_folder", raw, tmp_path / "data")
    said = capsys.readouterr().err
    assert ("left by a build that was killed" in said) == (number == signal.SIGKILL)
    assert list(verify(place / "1.0.0")) == []
