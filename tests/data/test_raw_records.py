from __future__ import annotations

import pickle
import re
import resource
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from drsformer_jax.config import DataConfig
from drsformer_jax.data.pairs import Pair, sizes_of
from drsformer_jax.data.pipeline import RandomCrop, batches
from drsformer_jax.data.raw_records import RawRecords, write_raw_records
from drsformer_jax.data.sources import Source
from drsformer_jax.errors import InputError

SIZES = [(45, 481), (46, 481), (321, 481), (481, 321), (1, 1), (7, 22000), (40, 30), (2, 21845)]
"""Among them images of one strip, of strips that end with the image, and of a row a strip."""


class Noise:
    """Pairs in memory, each of other values."""

    def __init__(self, sizes: list[tuple[int, int]]) -> None:
        self._sizes = sizes

    def __len__(self) -> int:
        return len(self._sizes)

    def __getitem__(self, index: int) -> Pair:
        random = np.random.default_rng(index)
        rainy, clean = random.integers(0, 256, (2, *self._sizes[index], 3), dtype=np.uint8)
        return {"name": f"ß {index}.png", "rainy": rainy, "clean": clean}

    def size(self, index: int) -> tuple[int, int]:
        return self._sizes[index]


class Failing(Noise):
    """Fails at the third pair."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(SIZES)
        self._error = error

    def __getitem__(self, index: int) -> Pair:
        if index == 2:
            raise self._error
        return super().__getitem__(index)


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("cache") / "new" / "pairs.array_record"
    write_raw_records(path, Noise(SIZES))
    return path


def assert_equal(found: Pair, expected: Pair) -> None:
    assert found["name"] == expected["name"]
    for name in ("rainy", "clean"):
        array = np.asarray(found[name])
        np.testing.assert_array_equal(array, expected[name], strict=True)


def assert_empty(folder: Path) -> None:
    """Whether there is no file but the lock."""
    assert [path.name for path in folder.iterdir()] == [".lock"]


def rejected(path: Path, reason: str = ".+") -> str:
    return (
        rf"^{re.escape(str(path))} is no file of decoded pairs that can be read \({reason}\); "
        "remove it, and it is written again$"
    )


def test_pairs_of_all_sizes_come_back_whole(path):
    records = RawRecords(str(path))
    assert len(records) == len(SIZES)
    assert sizes_of(records) == SIZES
    for index in range(len(SIZES)):
        assert_equal(records[index], Noise(SIZES)[index])
    assert records[-1]["name"] == records[len(SIZES) - 1]["name"]
    with pytest.raises(IndexError):
        records[len(SIZES)]


def test_any_slice_is_that_of_the_image(path):
    records, random = RawRecords(path), np.random.default_rng(0)
    for index, (height, width) in enumerate(SIZES):
        whole, stored = Noise(SIZES)[index]["clean"], records[index]["clean"]
        assert stored.shape == whole.shape
        for _ in range(20):
            top, left = random.integers(height), random.integers(width)
            bottom, right = top + 1 + random.integers(150), left + 1 + random.integers(150)
            crop = stored[top:bottom, left:right]
            np.testing.assert_array_equal(crop, whole[top:bottom, left:right], strict=True)
            assert crop.flags.writeable
            assert crop.base is None, "it keeps a record in memory"


@pytest.mark.parametrize(
    "rows", [slice(3, 3), slice(40, 50), slice(0, 9, 2), slice(None, None, -1)]
)
def test_rows_that_are_none_or_not_in_order_are_rejected(path, rows):
    with pytest.raises(IndexError, match="expected some of 40, with step 1"):
        RawRecords(path)[6]["rainy"][rows, :]


def test_random_crops_equal_those_of_the_source(path):
    records, source = RawRecords(path), Noise(SIZES)
    crop = RandomCrop(48, augment=True)
    for index in range(len(SIZES)):
        for seed in range(8):
            found = crop(records[index], np.random.default_rng(seed))
            assert_equal(found, crop(source[index], np.random.default_rng(seed)))


def test_batches_equal_those_of_the_source(path):
    config = DataConfig(crop_size=16, global_batch=4)
    streams = [
        batches([Source(pairs, 1.0)], config, seed=3) for pairs in (RawRecords(path), Noise(SIZES))
    ]
    for _ in range(6):
        found, expected = (next(stream) for stream in streams)
        assert found["name"] == expected["name"]
        np.testing.assert_array_equal(found["rainy"], expected["rainy"], strict=True)
        np.testing.assert_array_equal(found["clean"], expected["clean"], strict=True)


def test_a_crop_reads_no_more_than_its_strips(path, monkeypatch):
    records, places = RawRecords(path), []
    image = records[2]["rainy"]  # of 321 rows, 45 a strip; two pairs of 1 and 2 before
    record = records.record
    # Not of the class: batches of another test may still be read ahead.
    monkeypatch.setattr(records, "record", lambda k: places.append(k) or record(k))
    image[100:228, 10:138]
    assert places == [6 + 2, 6 + 3, 6 + 4, 6 + 5]


def test_what_was_skipped_is_reported_again(tmp_path):
    class Skipping(Noise):
        def __getitem__(self, index: int) -> Pair:
            return {**super().__getitem__(index), "skipped": ["0.png is damaged"] * (index == 1)}

    write_raw_records(tmp_path / "a", Skipping(SIZES[:3]))
    records = RawRecords(tmp_path / "a")
    assert [records[index].get("skipped") for index in range(3)] == [
        None,
        ["0.png is damaged"],
        None,
    ]


def test_another_process_reads_what_was_pickled(path, tmp_path):
    records = RawRecords(path)
    np.asarray(records[0]["rainy"])
    (tmp_path / "a.pickle").write_bytes(pickle.dumps([records, records[3]["clean"]]))
    program = (
        "import pickle, sys, numpy as np\n"
        "records, image = pickle.load(open(sys.argv[1], 'rb'))\n"
        "print(np.asarray(records[3]['clean']).sum(), np.asarray(image).sum(), len(records))"
    )
    run = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "a.pickle"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    total = Noise(SIZES)[3]["clean"].sum()
    assert (run.stdout, run.stderr) == (f"{total} {total} {len(SIZES)}\n", "")


def test_several_threads_read_the_same(path):
    records, source = RawRecords(path), list(map(Noise(SIZES).__getitem__, range(len(SIZES))))
    with ThreadPoolExecutor(8) as pool:
        found = pool.map(lambda k: np.asarray(records[k % len(SIZES)]["clean"]), range(200))
        for index, image in enumerate(found):
            np.testing.assert_array_equal(image, source[index % len(SIZES)]["clean"])


def test_progress_is_reported_after_each_pair(tmp_path):
    counts: list[int] = []
    write_raw_records(tmp_path / "a", Noise(SIZES), counts.append)
    assert counts == list(range(1, len(SIZES) + 1))


@pytest.mark.parametrize(
    "error", [InputError("bad.png is bad"), KeyboardInterrupt("stop"), OSError("x")]
)
def test_a_failure_halfway_leaves_no_file(tmp_path, error):
    with pytest.raises(type(error), match=re.escape(str(error))):
        write_raw_records(tmp_path / "a", Failing(error))
    assert_empty(tmp_path)


def test_a_file_that_exists_is_left_as_it_is(tmp_path):
    (tmp_path / "a").write_bytes(b"old")
    write_raw_records(tmp_path / "a", Failing(AssertionError("decoded")))
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]


def test_no_pair_is_rejected(tmp_path):
    with pytest.raises(
        InputError, match=r"there is no pair to write to .*a; expected at least one$"
    ):
        write_raw_records(tmp_path / "a", Noise([]))
    assert list(tmp_path.iterdir()) == []


def test_more_than_the_disk_has_is_rejected_before_anything_is_decoded(tmp_path):
    class Huge(Noise):
        def size(self, index: int) -> tuple[int, int]:
            return 2**30, 2**30

        def __getitem__(self, index: int) -> Pair:
            raise AssertionError("decoded")

    message = r"a would take \d+\.0 GiB, .+ has [0-9.]+ GiB free; expected a folder with room"
    with pytest.raises(InputError, match=message):
        write_raw_records(tmp_path / "a", Huge(SIZES))
    assert_empty(tmp_path)


@pytest.mark.parametrize("share", [0.2, 0.999])
def test_a_disk_that_fills_up_is_reported_and_leaves_nothing(path, tmp_path, share):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    room = int(path.stat().st_size * share)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
    try:
        message = r"a cannot be written \(write\(\) failed: File too large\); expected a disk with"
        with pytest.raises(InputError, match=message):
            write_raw_records(tmp_path / "a", Noise(SIZES))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert_empty(tmp_path)


def test_a_file_that_the_disk_has_lost_a_part_of_is_not_left(tmp_path, monkeypatch):
    from drsformer_jax.data import raw_records

    class Losing:
        def __init__(self, path: str, options: str) -> None:
            self._path = path

        def write(self, record: bytes) -> None:
            pass

        def close(self) -> None:
            Path(self._path).write_bytes(bytes(2**16))

    monkeypatch.setattr(raw_records, "ArrayRecordWriter", Losing)
    with pytest.raises(OSError, match=r"a is not what was written; the disk of .+ loses data"):
        write_raw_records(tmp_path / "a", Noise(SIZES))
    assert_empty(tmp_path)


def test_missing_and_other_files_are_rejected(tmp_path):
    with pytest.raises(InputError, match=rejected(tmp_path / "a", "No such file or directory")):
        RawRecords(tmp_path / "a")
    with pytest.raises(InputError, match=rejected(tmp_path, "Is a directory")):
        RawRecords(tmp_path)
    for content in (b"", b"notes", bytes(2**17)):
        (tmp_path / "a").write_bytes(content)
        with pytest.raises(
            InputError, match=rejected(tmp_path / "a", "it is cut short or of an.+")
        ):
            RawRecords(tmp_path / "a")


def test_an_array_record_of_something_else_is_rejected(tmp_path):
    from array_record.python.array_record_module import ArrayRecordWriter

    for last in (
        b"text",
        b"{}",
        b"[]",
        b'{"version": 1, "pairs": []}',
        b'{"version": 2, "pairs": []}',
    ):
        writer = ArrayRecordWriter(str(tmp_path / "a"), "group_size:1")
        writer.write(b"first")
        writer.write(last)
        writer.close()
        with pytest.raises(InputError, match=rejected(tmp_path / "a")):
            RawRecords(tmp_path / "a")


@pytest.mark.parametrize("share", [0.01, 0.5, 0.9, 0.99, 0.99999])
def test_a_truncated_file_is_rejected(path, tmp_path, share):
    content = path.read_bytes()
    (tmp_path / "a").write_bytes(content[: int(len(content) * share)])
    with pytest.raises(InputError, match=rejected(tmp_path / "a")):
        RawRecords(tmp_path / "a")


def test_damage_is_found_when_it_is_read_and_elsewhere_does_no_harm(path, tmp_path):
    content, damaged = path.read_bytes(), tmp_path / "a"
    source = [Noise(SIZES)[index] for index in range(len(SIZES))]
    refusals = []
    for place in np.linspace(0, len(content) - 1, 40).astype(int):
        changed = bytearray(content)
        changed[place] ^= 1
        damaged.write_bytes(changed)
        for index, expected in enumerate(source):
            try:
                assert_equal(RawRecords(damaged)[index], expected)
            except InputError as error:
                refusals.append(str(error))
    assert all(re.match(rejected(damaged), message) for message in refusals)
    assert 30 <= len(refusals) < 40 * len(SIZES) / 2


def test_a_thread_reads_on_after_damage(path, tmp_path):
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    (tmp_path / "a").write_bytes(content)
    records = RawRecords(tmp_path / "a")
    with pytest.raises(InputError):
        np.asarray(records[0]["rainy"])
    assert_equal(records[3], Noise(SIZES)[3])


@pytest.mark.parametrize("error", [MemoryError, AssertionError, TypeError])
def test_what_is_no_damage_is_not_called_damage(path, monkeypatch, error):
    def fail(_):
        raise error("a bug")

    records = RawRecords(path)
    monkeypatch.setattr(RawRecords, "_reader", fail)
    with pytest.raises(error, match="a bug"):
        np.asarray(records[0]["rainy"])
