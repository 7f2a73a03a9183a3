import json
import pickle
import re
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tensorflow_datasets as tfds
from rain_sets import pair, write_pairs, write_splits

from drsformer_jax.data import rain
from drsformer_jax.data.datasets import (
    DatasetPairs,
    default_data_dir,
    find_dataset,
    open_dataset,
    summary,
)
from drsformer_jax.data.pairs import sizes_of
from drsformer_jax.data.rain import build
from drsformer_jax.data.verification import verify
from drsformer_jax.errors import InputError
from drsformer_jax.images.pixels import read_image, write_image


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    raw = write_splits(tmp_path_factory.mktemp("raw"))
    build("paired_folder", raw, folder, name="mine")
    return folder


@pytest.fixture
def copy(data_dir, tmp_path):
    """A dataset that may be spoiled."""
    return shutil.copytree(data_dir / "rain/mine/1.0.0", tmp_path / "1.0.0")


@pytest.mark.parametrize("name", ["mine", "rain/mine", "mine:1.0.0"])
def test_dataset_is_found_by_name(data_dir, name):
    assert find_dataset(name, str(data_dir)) == (data_dir / "rain/mine/1.0.0", "")


@pytest.mark.parametrize("name", ["mine:train[:50%]", "rain/mine:1.0.0:train[:50%]"])
def test_part_of_a_dataset_is_found_by_name(data_dir, name):
    assert find_dataset(name, str(data_dir))[1] == "train[:50%]"


def test_dataset_is_found_by_its_folder_without_a_data_folder(data_dir):
    folder = data_dir / "rain/mine/1.0.0"
    assert find_dataset(str(folder)) == (folder, "")
    assert find_dataset(f"{folder}:test") == (folder, "test")


def test_newest_version_is_taken_and_others_by_number(tmp_path):
    for version in ("1.0.0", "1.10.0", "1.9.0", "incomplete.AB_2.0.0"):
        (tmp_path / "rain/mine" / version).mkdir(parents=True)
        (tmp_path / "rain/mine" / version / "dataset_info.json").touch()
    assert find_dataset("mine", str(tmp_path))[0].name == "1.10.0"
    assert find_dataset("mine:1.9.0", str(tmp_path))[0].name == "1.9.0"
    with pytest.raises(InputError, match=r"no version 3\.0\.0; expected 1\.0\.0 or 1\.9\.0 or 1\."):
        find_dataset("mine:3.0.0", str(tmp_path))


@pytest.mark.parametrize("name", ["nothing", "a/b", "", "mine/", "../mine", "no:such:thing:"])
def test_what_is_no_dataset_is_not_found(data_dir, name):
    assert find_dataset(name, str(data_dir)) is None


def test_data_folder_is_that_of_tfds(monkeypatch, tmp_path):
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_data_dir() == tmp_path / "tensorflow_datasets"
    monkeypatch.setenv("TFDS_DATA_DIR", "/data")
    assert str(default_data_dir()) == "/data"
    assert tfds.core.constants.get_default_data_dir() == "/data"


def test_pairs_of_a_part_are_those_of_its_range(data_dir):
    folder = data_dir / "rain/mine/1.0.0"
    whole = DatasetPairs(folder, "train")
    assert [each["name"] for each in whole] == [f"{number}.png" for number in range(1, 6)]
    np.testing.assert_array_equal(whole[2]["rainy"], pair(2)[0])
    np.testing.assert_array_equal(whole[2]["clean"], pair(2)[1])
    part = DatasetPairs(folder, "train[20%:80%]+test[1:]")
    assert [each["name"] for each in part] == [
        *("train/2.png", "train/3.png", "train/4.png"),
        *("test/2.png", "test/3.png"),
    ]
    assert sizes_of(part) == [(24, 32)] * 3 + [(26, 32)] * 2
    assert sizes_of(part) == [each["clean"].shape[:2] for each in part]
    with pytest.raises(IndexError):
        part[5]


@pytest.mark.parametrize("part", ["tost", "train[", "train[:100]", "train[3:3]", "Train"])
def test_an_impossible_part_is_rejected_with_those_there_are(data_dir, part):
    with pytest.raises(InputError, match=r"its splits are train \(5\), test \(3\)") as error:
        DatasetPairs(data_dir / "rain/mine/1.0.0", part)
    assert "\n" not in str(error.value)


def test_pairs_travel_to_other_processes_and_are_safe_with_threads(data_dir):
    pairs = DatasetPairs(data_dir / "rain/mine/1.0.0", "train")
    revived = pickle.loads(pickle.dumps(pairs))
    assert revived[4]["name"] == "5.png"
    assert revived.fingerprint() == pairs.fingerprint()
    with ThreadPoolExecutor(4) as pool:
        names = list(pool.map(lambda index: pairs[index % 5]["name"], range(200)))
    assert names == [f"{index % 5 + 1}.png" for index in range(200)]


def test_fingerprint_differs_between_parts_and_contents(data_dir, tmp_path):
    folder = data_dir / "rain/mine/1.0.0"
    other = build("paired_folder", write_splits(tmp_path / "raw", train=4), tmp_path)
    marks = [DatasetPairs(folder, part).fingerprint() for part in ("train", "test", "train[1:]")]
    marks.append(DatasetPairs(other, "train").fingerprint())
    assert len(set(marks)) == 4


def test_a_part_without_pairs_is_reported(data_dir):
    with pytest.raises(InputError, match=r"has no split train\[:1%\] \(it is empty\)"):
        DatasetPairs(data_dir / "rain/mine/1.0.0", "train[:1%]")


def test_a_pair_of_two_sizes_in_a_dataset_is_reported(tmp_path, monkeypatch):
    raw = write_pairs(tmp_path / "raw", ["1.png"])
    write_image(raw / "target/1.png", pair(0, height=25)[1])
    monkeypatch.setattr(rain, "check_sizes", lambda *_: None)
    pairs = DatasetPairs(build("paired_folder", raw, tmp_path), "train")
    with pytest.raises(InputError, match=r"clean 1\.png, record 0 of train .* is 32x25, rainy 1"):
        pairs[0]


def test_without_a_test_split_all_but_train_are_tested_on(tmp_path):
    for name in ("Test100", "Rain100L"):
        write_pairs(tmp_path / "raw/test" / name, ["1.png", "2.png"])
    write_pairs(tmp_path / "raw/train/Rain13K", ["1.png"])
    folder = build("rain13k", tmp_path / "raw", tmp_path, allow_partial=True)
    assert len(open_dataset(folder, "", "test")) == 4
    assert len(open_dataset(folder, "", "train")) == 1
    assert len(open_dataset(folder, "rain100l", "test")) == 2
    alone = build("paired_folder", tmp_path / "raw/train/Rain13K", tmp_path)
    with pytest.raises(InputError, match=r"has no split test .*; its splits are train \(1\)"):
        open_dataset(alone, "", "test")


def test_a_dataset_without_the_features_is_rejected(tmp_path):
    folder = build("paired_folder", write_pairs(tmp_path / "raw", ["1.png"]), tmp_path)
    features = json.loads((folder / "features.json").read_text())
    entries = features["featuresDict"]["features"]
    entries["input"] = entries.pop("rainy")
    (folder / "features.json").write_text(json.dumps(features))
    with pytest.raises(InputError, match=r"the features \['clean', 'input', 'name'\]; exp"):
        DatasetPairs(folder, "train")


def test_a_dataset_of_another_builder_is_read_without_notes(copy):
    (copy / "metadata.json").unlink()
    pairs = DatasetPairs(copy, "test")
    assert pairs.recorded() == {}
    assert sizes_of(pairs) == [(26, 32)] * 3
    assert pairs[0]["name"] == "1.png"
    assert summary(copy)[1].startswith("test: 3 pairs, ")
    assert [line.split(" of ")[0] for line in verify(copy)] == ["metadata.json"] * 2
    description = (copy / "dataset_info.json").read_text()
    (copy / "dataset_info.json").write_text(description.replace("drsformer_jax", "another"))
    assert list(verify(copy)) == []


@pytest.mark.parametrize(
    "notes",
    [[], {"a": 1}, {"splits": []}, {"splits": {"test": {}}}, {"splits": {"test": {"sizes": "x"}}}],
)
def test_notes_that_are_none_are_reported_by_the_checks_and_else_do_without(copy, notes):
    (copy / "metadata.json").write_text(json.dumps(notes))
    assert sizes_of(DatasetPairs(copy, "test")) == [(26, 32)] * 3
    assert len(list(verify(copy))) == 2


def test_sizes_that_were_noted_wrong_are_reported_by_the_checks(copy):
    notes = json.loads((copy / "metadata.json").read_text())
    notes["splits"]["test"]["sizes"] = [[26, 32, 2], [27, 32, 1]]
    (copy / "metadata.json").write_text(json.dumps(notes))
    (line,) = verify(copy)
    assert re.match(r"3\.png \(record 2 of test .*: it is 32x26; expected 32x27, as recorded", line)


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json", "metadata.json"])
def test_a_damaged_description_is_reported_in_one_line(copy, name):
    (copy / name).write_text("{")
    with pytest.raises(InputError, match="is no dataset that can be read") as error:
        DatasetPairs(copy, "train")
    assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def noisy(tmp_path_factory):
    """Four pairs of noise, so that each record is far longer than its frame."""
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("noisy")
    for number in range(4):
        for part in ("input", "target"):
            image = rng.integers(0, 256, (64, 96, 3), dtype=np.uint8)
            write_image(folder / f"raw/{part}/{number}.png", image)
    return build("paired_folder", folder / "raw", folder)


def spoil(folder):
    """Turns a bit in the middle of the third of four records."""
    file = folder / "rain-train.array_record-00000-of-00001"
    content = bytearray(file.read_bytes())
    used = len(content.rstrip(b"\0"))
    content[used * 9 // 16] ^= 1
    file.write_bytes(content)


def test_a_damaged_record_is_named_and_the_others_are_read(noisy, tmp_path):
    folder = shutil.copytree(noisy, tmp_path / "1.0.0")
    spoil(folder)
    pairs = DatasetPairs(folder, "train")
    failed = []
    for index in range(4):
        try:
            assert pairs[index]["name"] == f"{index}.png"
        except InputError as error:
            failed.append(str(error))
    (line,) = failed
    assert line.startswith(f"record 2 of train in {folder} cannot be read (Corrupted Riegeli")
    assert line.endswith("remove the folder and build the dataset again")
    found = list(verify(folder))
    assert found[0] == line
    assert "has 4 pairs of SHA-256" in found[1]


def test_a_missing_record_file_is_reported_for_each_pair(noisy, tmp_path):
    folder = shutil.copytree(noisy, tmp_path / "1.0.0")
    (folder / "rain-train.array_record-00000-of-00001").unlink()
    with pytest.raises(InputError, match=r"record 0 of train .* No such file or directory"):
        DatasetPairs(folder, "train")[0]


def test_whole_data_sets_pass_the_checks(data_dir):
    assert list(verify(data_dir / "rain/mine/1.0.0")) == []


def test_pairs_that_are_swapped_or_equal_are_named_by_the_checks(tmp_path):
    raw = write_pairs(
        tmp_path / "raw", [f"{number}.png" for number in range(4)], height=48, width=64
    )
    rainy, clean = (read_image(raw / part / "1.png") for part in ("input", "target"))
    write_image(raw / "input/1.png", clean)
    write_image(raw / "target/1.png", rainy)
    write_image(raw / "target/3.png", read_image(raw / "input/3.png"))
    swapped, equal = verify(build("paired_folder", raw, tmp_path))
    assert swapped.startswith("1.png (record 1 of train in ")
    assert "swapped" in swapped
    assert equal.startswith("3.png (record 3 of train in ")
    assert "identical" in equal


def test_names_in_another_encoding_are_shown_by_their_bytes(copy):
    from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

    file = copy / "rain-test.array_record-00000-of-00001"
    reader = ArrayRecordReader(str(file))
    records = [reader.read([index])[0].replace(b"1.png", b"\xfc.png") for index in range(3)]
    reader.close()
    writer = ArrayRecordWriter(str(file), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()
    pairs = DatasetPairs(copy, "test")
    assert [pairs[index]["name"] for index in range(3)] == [r"\xfc.png", "2.png", "3.png"]


def test_a_dataset_in_another_file_format_is_reported(copy):
    description = (copy / "dataset_info.json").read_text()
    (copy / "dataset_info.json").write_text(description.replace("array_record", "tfrecord"))
    with pytest.raises(InputError, match=r"1\.0\.0.* \(.*array_record.*\)") as error:
        DatasetPairs(copy, "train")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("error", [MemoryError, AssertionError, AttributeError])
def test_what_is_no_damage_is_not_called_damage(copy, monkeypatch, error):
    def fail(*_):
        raise error("a bug")

    pairs = DatasetPairs(copy, "train")
    monkeypatch.setattr(type(pairs._source), "__getitem__", fail)
    with pytest.raises(error, match="a bug"):
        pairs[0]
