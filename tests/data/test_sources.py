import dataclasses
import os
import pickle
import shutil
import threading
import warnings

import numpy as np
import pytest
from rain_sets import pair, write_pairs

from drsformer_jax.config import DataConfig, RainConfig
from drsformer_jax.data.pairs import Cached, PairedFiles, Shard, SkippingUnreadable, sizes_of
from drsformer_jax.data.pipeline import batches
from drsformer_jax.data.rain import build
from drsformer_jax.data.raw_records import RawRecords
from drsformer_jax.data.sources import (
    decode_validation,
    find_training,
    open_pairs,
    open_training,
    open_validation,
)
from drsformer_jax.data.synthetic import SyntheticRain
from drsformer_jax.errors import InputError
from drsformer_jax.images.pixels import write_image


class Listed(list):
    """Pairs in a list; counts how often each is read, and fails for those that are None."""

    def __init__(self, pairs):
        super().__init__(pairs)
        self.reads = 0

    def __getitem__(self, index):
        self.reads += 1
        found = super().__getitem__(index)
        if found is None:
            raise InputError(f"{index}.png is no image")
        return found

    def size(self, index):
        return self[index]["rainy"].shape[:2]

    def fingerprint(self):
        return "listed"


def as_pair(number):
    rainy, clean = pair(number)
    return {"name": f"{number}.png", "rainy": rainy, "clean": clean}


PAIRS = [as_pair(number) for number in range(7)]


@pytest.fixture
def folder(tmp_path):
    return write_pairs(tmp_path / "pairs", ["0.png", "1.png"])


def config(folder, **changes):
    names = {"train": str(folder), "validation": str(folder), "global_batch": 2, "crop_size": 8}
    return DataConfig(**{**names, **changes})


def test_paired_folder_gives_its_pairs_by_name(folder):
    ((pairs, weight),) = open_training(config(folder), seed=0)
    assert (len(pairs), weight) == (2, 1.0)
    assert pairs[1]["name"] == "1.png"
    np.testing.assert_array_equal(pairs[1]["rainy"], PAIRS[1]["rainy"])
    np.testing.assert_array_equal(pairs[1]["clean"], PAIRS[1]["clean"])


@pytest.mark.parametrize("open_any", [open_training, open_validation])
def test_pair_of_two_sizes_is_rejected_before_training(folder, open_any):
    write_image(folder / "target" / "1.png", PAIRS[1]["clean"][:-1])
    with pytest.raises(
        InputError, match=r"target/1\.png is 32x23.*input/1\.png is 32x24.*one size"
    ):
        open_any(config(folder), 0)


@pytest.mark.parametrize("open_any", [open_training, open_validation])
def test_file_that_is_no_image_is_rejected_before_training(folder, open_any):
    (folder / "input" / "0.png").write_text("no image")
    with pytest.raises(InputError, match=r"input/0\.png is no image"):
        open_any(config(folder), 0)


def test_small_images_give_one_warning_or_are_rejected(folder):
    small = config(folder, crop_size=64)
    with pytest.warns(UserWarning, match="2 of 2 images are smaller than the crop of 64x64"):
        sources = open_training(small, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert next(batches(sources, small, seed=0))["rainy"].shape == (2, 64, 64, 3)
    with pytest.raises(InputError, match=r"0\.png of .*pairs is 32x24; expected at .* 64x64"):
        open_training(config(folder, crop_size=64, small_images="error"), 0)


def test_of_synthetic_rain_small_photographs_are_counted_not_rains(tmp_path):
    for name, height in (("a", 24), ("b", 80), ("c", 80), ("d", 80)):
        write_image(tmp_path / f"{name}.png", np.zeros((height, 80, 3), np.uint8))
    rain = DataConfig(photographs=str(tmp_path), rains=5, crop_size=64)
    message = (
        r"^1 of 3 photographs are smaller than the crop of 64x64 .*\(a_000 of synthetic is 80x24"
    )
    for corrupt in ("error", "skip"):
        with pytest.warns(UserWarning, match=message):
            open_training(dataclasses.replace(rain, corrupt=corrupt), 0)


def test_of_synthetic_rain_the_size_of_each_photograph_is_read_once(tmp_path, monkeypatch):
    for name in "abcde":
        write_image(tmp_path / f"{name}.png", PAIRS[0]["clean"])
    read, size = [], SyntheticRain.size
    monkeypatch.setattr(
        SyntheticRain, "size", lambda self, index: read.append(index) or size(self, index)
    )
    find_training(DataConfig(photographs=str(tmp_path), rains=50, crop_size=8), 0)
    assert sorted(read) == [0, 1, 2, 3]


def test_decoded_images_to_validate_on_are_kept_and_synthetic_ones_are_not_made(folder):
    pairs, settings = Listed(PAIRS), config(folder)
    decode_validation(Cached(pairs, 2**20), settings)
    assert pairs.reads == len(PAIRS)
    kept = Cached(pairs, 2**20)
    decode_validation(kept, settings)
    reads = pairs.reads
    assert kept[3]["name"] == "3.png"
    assert pairs.reads == reads
    decode_validation(pairs, config("x", validation="synthetic"))
    assert pairs.reads == reads


@pytest.mark.parametrize("kind", ["folder", "file", "hard link"])
@pytest.mark.parametrize("open_any", [open_training, open_validation])
def test_a_rainy_and_a_clean_image_of_one_file_are_rejected(folder, kind, open_any):
    target = folder / "target"
    if kind == "folder":
        shutil.rmtree(target)
        target.symlink_to(folder / "input")
    else:
        (target / "1.png").unlink()
        link = os.symlink if kind == "file" else os.link
        link(folder / "input/1.png", target / "1.png")
    message = r"input/(\d)\.png and .*target/\1\.png are the same file; expected a rainy and a"
    if kind == "folder":
        message = r"input and .*target hold the same files; expected rainy"
    with pytest.raises(InputError, match=message):
        open_any(config(folder), 0)


@pytest.mark.parametrize("name", ["train", "validation", "photographs"])
def test_an_empty_name_is_not_the_current_folder(folder, name, monkeypatch):
    monkeypatch.chdir(folder)
    chosen = DataConfig(**{name: ""})
    with pytest.raises(InputError, match="empty"):
        (open_training if name == "train" else open_validation)(chosen, 0)


def test_an_empty_cache_folder_is_none(folder, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    ((pairs, _),) = open_training(config(folder, cache_dir=""), 0)
    assert isinstance(pairs, Cached)
    assert list(tmp_path.iterdir()) == [folder]


class Counting(Listed):
    """Says which threads asked for sizes."""

    def __init__(self, count):
        super().__init__(range(count))
        self.threads = set()
        self.both = threading.Barrier(2)

    def size(self, index):
        if index in (0, 64):
            self.both.wait(timeout=30)  # Passes if two threads are here at the same time.
        self.threads.add(threading.current_thread())
        return index, index


def test_sizes_are_read_in_several_threads_and_come_in_order():
    pairs = Counting(1000)
    assert sizes_of(pairs) == [(index, index) for index in range(1000)]
    assert len(pairs.threads) > 1


@pytest.mark.parametrize("error", [InputError, MemoryError])
def test_the_first_pair_whose_size_cannot_be_read_is_reported(error):
    class Failing(Counting):
        def size(self, index):
            if index in (700, 130, 999):
                raise error(f"pair {index}")
            return super().size(index)

    with pytest.raises(error, match=r"^pair 130$"):
        sizes_of(Failing(1000))


def test_synthetic_validation_pairs_show_photographs_that_training_never_sees():
    photographs = []
    for split in ("train", "validation"):
        pairs = open_pairs("synthetic", split, DataConfig(rains=1), 0)
        photographs.append({pairs[i]["name"].rsplit("_", 1)[0] for i in range(len(pairs))})
    assert all(photographs)
    assert not photographs[0] & photographs[1]


def test_a_dataset_is_opened_by_its_name_train_and_test_apart(tmp_path):
    for split, names in (("train", ["1.png", "2.png", "3.png"]), ("test", ["1.png"])):
        write_pairs(tmp_path / "raw" / split, names)
    build("paired_folder", tmp_path / "raw", tmp_path, name="mine")
    named = config("mine", data_dir=str(tmp_path))
    ((pairs, _),) = open_training(named, 0)
    assert [pairs[index]["name"] for index in range(len(pairs))] == ["1.png", "2.png", "3.png"]
    assert len(open_validation(named, 0)) == 1
    part = config("mine", data_dir=str(tmp_path), validation="mine:train[2:]")
    assert open_validation(part, 0)[0]["name"] == "3.png"


def test_sources_take_the_place_of_train(folder, tmp_path):
    other = write_pairs(tmp_path / "other", ["a.png"])
    mixed = config("nowhere", sources=((str(folder), 3.0), (str(other), 1.0)))
    sources = open_training(mixed, 0)
    assert [(len(pairs), weight) for pairs, weight in sources] == [(2, 3.0), (1, 1.0)]
    stream = batches(sources, mixed, seed=0)
    names = [name for _ in range(6) for name in next(stream)["name"]]
    assert names.count("a.png") == 3


def test_what_is_neither_folder_nor_dataset_is_reported_with_what_could_be(tmp_path):
    with pytest.raises(InputError, match=r"^rain200l is no folder and no dataset in .*build-data"):
        open_training(config("rain200l", data_dir=str(tmp_path)), 0)


def test_sources_of_equal_length_have_orders_of_their_own(folder, tmp_path):
    names = [f"{number}.png" for number in range(8)]
    mixed = config(
        "nowhere",
        sources=tuple((str(write_pairs(tmp_path / part, names)), 1.0) for part in ("a", "b")),
    )
    stream = batches(open_training(mixed, 0), mixed, seed=0)
    both = [next(stream)["name"] for _ in range(8)]
    first, second = zip(*both, strict=True)
    assert sorted(first) == sorted(second) == names
    assert first != second


def test_sources_share_the_memory(folder, tmp_path):
    mixed = config("nowhere", cache_mib=1, sources=((str(folder), 1.0),) * 4)
    assert {source.pairs._limit for source in open_training(mixed, 0)} == {2**18}


def test_fingerprints_change_with_what_is_read(folder):
    listed = [("0.png", folder / "input/0.png", folder / "target/0.png")]
    marks = [PairedFiles(listed).fingerprint()]
    path = folder / "input/0.png"
    written = path.stat().st_mtime_ns
    os.utime(path, ns=(written, written + 1))
    marks.append(PairedFiles(listed).fingerprint())
    path.write_bytes(path.read_bytes() + b"\0")
    os.utime(path, ns=(written, written))
    marks.append(PairedFiles(listed).fingerprint())
    marks.append(SkippingUnreadable(PairedFiles(listed)).fingerprint())
    for rains, seed in ((1, 0), (2, 0), (1, 1)):
        marks.append(open_pairs("synthetic", "train", DataConfig(rains=rains), seed).fingerprint())
    assert len(set(marks)) == len(marks)


def test_memory_keeps_what_fits_and_reads_it_once():
    size = PAIRS[0]["rainy"].nbytes * 2
    source = Listed(PAIRS)
    cached = Cached(source, 2 * size)
    for _ in range(2):
        assert [cached[index]["name"] for index in range(3)] == ["0.png", "1.png", "2.png"]
    assert source.reads == 3 + 1
    revived = pickle.loads(pickle.dumps(Cached(PAIRS, size)))
    assert revived[1]["name"] == "1.png"


def test_disk_keeps_decoded_pairs_until_their_files_change(folder, tmp_path):
    kept = config(folder, cache_dir=str(tmp_path / "cache"))
    ((pairs, _),) = open_training(kept, 0)
    assert isinstance(pairs, RawRecords)
    np.testing.assert_array_equal(pairs[1]["rainy"], PAIRS[1]["rainy"])
    (file,) = (tmp_path / "cache").glob("*.array_record")
    written = file.stat().st_mtime_ns
    open_training(kept, 0)
    assert file.stat().st_mtime_ns == written
    write_image(folder / "input/1.png", PAIRS[2]["rainy"])
    ((pairs, _),) = open_training(kept, 0)
    np.testing.assert_array_equal(pairs[1]["rainy"], PAIRS[2]["rainy"])
    assert len(list((tmp_path / "cache").glob("*.array_record"))) == 2


@pytest.mark.parametrize("kind", ["none", "memory", "disk"])
def test_batches_do_not_depend_on_where_decoded_pairs_are_kept(folder, tmp_path, kind):
    reference = config(folder)
    changes = {"none": {"cache_mib": 0}, "memory": {}, "disk": {"cache_dir": str(tmp_path)}}[kind]
    chosen = config(folder, **changes)
    streams = [batches(open_training(each, 0), each, seed=1) for each in (reference, chosen)]
    for _ in range(4):
        expected, found = (next(stream) for stream in streams)
        assert found["name"] == expected["name"]
        np.testing.assert_array_equal(found["rainy"], expected["rainy"])
        np.testing.assert_array_equal(found["clean"], expected["clean"])


def test_the_next_pair_takes_the_place_of_one_that_cannot_be_read():
    survivors = SkippingUnreadable(Listed([PAIRS[0], None, None, PAIRS[3]]))
    assert [survivors[index]["name"] for index in range(4)] == ["0.png", "3.png", "3.png", "3.png"]
    assert survivors[1]["skipped"] == ["1.png is no image", "2.png is no image"]
    assert "skipped" not in survivors[0]
    with pytest.raises(InputError, match=r"0\.png is no image; nor can 1 pairs that follow"):
        SkippingUnreadable(Listed([None, None]))[0]


@pytest.mark.parametrize("head", [True, False])
def test_pairs_that_cannot_be_read_stop_a_run_or_are_skipped_and_named(folder, head):
    stopping = open_training(config(folder, cache_mib=0), 0)
    skipping = open_training(config(folder, corrupt="skip", cache_mib=0), 0)
    path = folder / "input/1.png"
    path.write_bytes(path.read_bytes()[: 60 if head else 0])
    with pytest.raises(InputError, match=r"input/1\.png is no image that can be read"):
        next(batches(stopping, config(folder), seed=0))
    stream = batches(skipping, config(folder), seed=0)
    epoch = next(stream)
    assert epoch["name"] == ["0.png", "0.png"]
    assert sizes_of(skipping[0].pairs) == [(24, 32)] * 2
    assert len(epoch["skipped"]) == 1
    assert "input/1.png is no image that can be read" in epoch["skipped"][0]


def test_decoded_pairs_on_disk_still_name_what_was_skipped(folder, tmp_path):
    write_pairs(folder, ["0.png", "1.png", "2.png"], height=64, width=64)
    path = folder / "input/1.png"
    path.write_bytes(path.read_bytes()[:200])
    kept = {"cache_dir": str(tmp_path / "cache")}
    for _ in range(2):  # When they are written, and when they are read again.
        ((pairs, _),) = open_training(config(folder, corrupt="skip", **kept), 0)
        assert [pairs[index]["name"] for index in range(3)] == ["0.png", "2.png", "2.png"]
        assert "input/1.png is no image" in pairs[1]["skipped"][0]
    with pytest.raises(InputError, match=r"input/1\.png is no image"):
        open_training(config(folder, **kept), 0)


@pytest.mark.parametrize("count", [1, 3, 6, 7])
@pytest.mark.parametrize("processes", [1, 2, 3, 4])
def test_shares_of_processes_are_disjoint_and_complete(count, processes):
    shares = [Shard(Listed(PAIRS[:count]), process, processes) for process in range(processes)]
    names = [[share[index]["name"] for index in range(len(share))] for share in shares]
    assert sorted(name for share in names for name in share) == sorted(
        each["name"] for each in PAIRS[:count]
    )
    assert max(map(len, names)) - min(map(len, names)) <= 1
    for share in shares:
        assert sizes_of(share) == [(24, 32)] * len(share)
    # In the order of the images when one is taken of each share in turn.
    assert [names[k % processes][k // processes] for k in range(count)] == [
        each["name"] for each in PAIRS[:count]
    ]
    for read in (shares[0].__getitem__, shares[0].size):
        with pytest.raises(IndexError):
            read(len(shares[0]))


def test_validation_has_no_dry_images_whose_score_would_be_infinite(tmp_path):
    for name in "abcdefghij":
        write_image(tmp_path / f"{name}.png", PAIRS[0]["clean"])
    mostly_dry = RainConfig(none=20.0)
    rain = DataConfig(photographs=str(tmp_path), rain=mostly_dry, rains=10)
    pairs = open_validation(rain, 0)
    assert all((pair["rainy"] != pair["clean"]).any() for pair in (pairs[i] for i in range(8)))
    ((train, _),) = open_training(dataclasses.replace(rain, crop_size=8), 0)
    assert any((train[i]["rainy"] == train[i]["clean"]).all() for i in range(20))
    dry = dataclasses.replace(rain, rain=RainConfig.only("none"))
    with pytest.raises(InputError, match=r"data\.rain has none of light, fine and heavy; expected"):
        open_validation(dry, 0)


@pytest.mark.parametrize("corrupt", ["error", "skip"])
def test_rain_on_windows_is_drawn_each_time_and_never_stored(tmp_path, corrupt):
    for name in "ab":
        write_image(tmp_path / "photographs" / f"{name}.png", PAIRS[0]["clean"])
    drawn = DataConfig(
        photographs=str(tmp_path / "photographs"),
        window=16,
        crop_size=16,
        corrupt=corrupt,
        cache_dir=str(tmp_path / "cache"),
    )
    ((pairs, _),) = open_training(drawn, 0)
    np.testing.assert_array_equal(pairs[3]["rainy"], pairs[3]["rainy"])
    assert pairs[3]["rainy"] is not pairs[3]["rainy"]
    assert not (tmp_path / "cache").exists()
