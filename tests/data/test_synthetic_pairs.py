"""Pairs of synthetic rain by index: the same for everyone, and each on its part of a photograph."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import os
import pickle
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from synthetic_rain import RAINY, of

from drsformer_jax.config import KINDS, DataConfig, RainConfig
from drsformer_jax.data.pipeline import batches
from drsformer_jax.data.sources import open_pairs, open_training
from drsformer_jax.data.synthetic import Photograph, SyntheticRain, add_rain, photographs
from drsformer_jax.data.synthetic import pairs as pairs_module
from drsformer_jax.data.synthetic.scene import GENERATOR_VERSION
from drsformer_jax.images.pixels import read_image, write_image

ROOT = Path(__file__).parents[2]
SKIMAGE = [each for part in photographs("skimage") for each in part]
UNCHANGED = RainConfig(overcast_share=0.0, fog_share=0.0)
"""Leaves the target as it is."""


@pytest.fixture
def two(tmp_path) -> list[Photograph]:
    for name, level in (("dark", 30), ("bright", 200)):
        write_image(tmp_path / f"{name}.png", np.full((50, 70, 3), level, np.uint8))
    return [Photograph(tmp_path / "dark.png"), Photograph(tmp_path / "bright.png")]


@pytest.fixture
def coded(tmp_path) -> list[Photograph]:
    """Two photographs, each of whose pixels says which row and column it is of."""
    found = []
    for name, (height, width) in (("wide", (90, 140)), ("small", (40, 200))):
        rows, columns = np.mgrid[:height, :width]
        image = np.stack([rows, columns, np.full_like(rows, 60)], axis=-1).astype(np.uint8)
        write_image(tmp_path / f"{name}.png", image)
        found.append(Photograph(tmp_path / f"{name}.png"))
    return found


@pytest.fixture
def reads(monkeypatch) -> Counter[str]:
    """How often each photograph was decoded."""
    counts: Counter[str] = Counter()

    def counted(path):
        counts[path.stem] += 1
        return read_image(path)

    monkeypatch.setattr("drsformer_jax.data.synthetic.pairs.read_image", counted)
    return counts


def digest(pair) -> str:
    sides = pair["rainy"].tobytes() + pair["clean"].tobytes()
    return f"{pair['name']} {hashlib.sha256(sides).hexdigest()}"


def digests(pairs) -> list[str]:
    return [digest(pairs[index]) for index in range(len(pairs))]


def test_items_are_named_and_ordered_by_photograph_then_rain(two):
    pairs = SyntheticRain(two, rains=3, seed=0, rain=UNCHANGED)
    assert len(pairs) == 6
    assert [pairs[i]["name"] for i in range(6)] == [
        "dark_000",
        "bright_000",
        "dark_001",
        "bright_001",
        "dark_002",
        "bright_002",
    ]
    assert [pairs[i]["clean"][0, 0, 0] for i in range(4)] == [30, 200, 30, 200]
    for index in (6, -1):
        with pytest.raises(IndexError, match=f"index {index} is outside of 0 to 5"):
            pairs[index]


def test_pairs_repeat_by_seed_and_differ_by_index(two):
    rain = dataclasses.replace(UNCHANGED, none=0.0)
    pairs, other = (SyntheticRain(two, rains=4, seed=seed, rain=rain) for seed in (7, 8))
    assert [digest(pairs[i]) for i in reversed(range(8))] == digests(pairs)[::-1]

    def added(pair):
        return (pair["rainy"].astype(int) - pair["clean"]).tobytes()

    assert len({added(source[i]) for source in (pairs, other) for i in range(8)}) == 16


def test_a_pair_stays_when_photographs_and_rains_are_added(two):
    for window in (0, 32):
        alone = SyntheticRain(two[1:], rains=1, seed=7, window=window)[0]
        among = SyntheticRain(two, rains=5, seed=7, window=window, memory=2**20)[1]
        assert alone["name"] == among["name"] == "bright_000"
        assert digest(alone) == digest(among)


OTHER_PROCESS = """
import hashlib, pickle, sys
pairs = pickle.load(sys.stdin.buffer)
for index in range(len(pairs)):
    pair = pairs[index]
    sides = pair["rainy"].tobytes() + pair["clean"].tobytes()
    print(pair["name"], hashlib.sha256(sides).hexdigest())
"""


def test_pairs_are_bitwise_the_same_in_another_process():
    """Also with other numbers of threads in its libraries."""
    pairs = SyntheticRain(SKIMAGE[::2], 8, 3, window=96, memory=2**25)
    threads = {"OPENBLAS_NUM_THREADS": "4", "OMP_NUM_THREADS": "4"}
    found = subprocess.run(
        [sys.executable, "-c", OTHER_PROCESS],
        input=pickle.dumps(pairs),
        capture_output=True,
        cwd=ROOT,
        env={**os.environ, **threads, "PYTHONHASHSEED": "1"},
        check=True,
    )
    assert found.stdout.decode().splitlines() == digests(pairs)


def test_pairs_are_the_same_after_a_passage_through_pickle(two):
    pairs = SyntheticRain(two, 3, 5, RainConfig.only("heavy"), 32, memory=2**20)
    before = digests(pairs)
    again = pickle.loads(pickle.dumps(pairs))
    assert digests(again) == before
    assert again.fingerprint() == pairs.fingerprint()
    assert len(pickle.dumps(pairs)) < 5000, "decoded photographs do not travel"


def test_pairs_are_the_same_whichever_threads_read_them():
    pairs = SyntheticRain(SKIMAGE, 4, 3, window=64, memory=2**25)
    expected = digests(SyntheticRain(SKIMAGE, 4, 3, window=64))
    found: list[list[str]] = [[] for _ in range(4)]

    def read(number: int) -> None:
        found[number] = [digest(pairs[index]) for index in range(number, len(pairs), 4)]

    threads = [threading.Thread(target=read, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[index % 4][index // 4] for index in range(len(pairs))] == expected


def test_worker_processes_give_the_same_batches():
    config = DataConfig(rains=3, window=48, crop_size=32, global_batch=3)
    both = [
        list(itertools.islice(batches(open_training(each, 5), each, seed=5), 4))
        for each in (config, dataclasses.replace(config, workers=2))
    ]
    for here, there in zip(*both, strict=True):
        assert here["name"] == there["name"]
        for side in ("rainy", "clean"):
            assert here[side].shape == (3, 32, 32, 3)
            np.testing.assert_array_equal(here[side], there[side])


@pytest.mark.parametrize("window", [0, 8, 40, 64, 90, 150, 1000])
def test_sizes_are_those_of_the_pairs(coded, window):
    pairs = SyntheticRain(coded, rains=2, seed=0, window=window)
    side = window or 1000
    for index in range(4):
        height, width = ((90, 140), (40, 200))[index % 2]
        expected = (min(side, height), min(side, width))
        assert pairs.size(index) == expected
        assert pairs[index]["rainy"].shape == pairs[index]["clean"].shape == (*expected, 3)


def test_sizes_are_read_without_decoding(coded, reads):
    pairs = SyntheticRain(coded, rains=2, seed=0, window=64)
    assert [pairs.size(index) for index in range(4)] == [(64, 64), (40, 64)] * 2
    assert not reads


def test_windows_are_squares_of_the_photograph_at_every_place(coded):
    pairs = SyntheticRain(coded[:1], rains=250, seed=0, rain=UNCHANGED, window=80)
    whole = read_image(coded[0].path)
    corners = set()
    for index in range(250):
        clean = pairs[index]["clean"]
        top, left, _ = (int(value) for value in clean[0, 0])
        np.testing.assert_array_equal(clean, whole[top : top + 80, left : left + 80])
        corners.add((top, left))
    assert {top for top, _ in corners} == set(range(90 - 80 + 1))
    assert {left for _, left in corners} == set(range(140 - 80 + 1))


@pytest.mark.parametrize("window", [0, 200])
def test_without_a_window_and_in_a_larger_one_a_photograph_is_whole(coded, window):
    pairs = SyntheticRain(coded, rains=1, seed=0, rain=UNCHANGED, window=window)
    for index, photograph in enumerate(coded):
        np.testing.assert_array_equal(pairs[index]["clean"], read_image(photograph.path))


@pytest.mark.parametrize("kind", KINDS)
def test_the_kind_of_rain_is_that_of_the_configuration(two, kind):
    rain = dataclasses.replace(RainConfig.only(kind), overcast_share=0.0)
    pairs = SyntheticRain(two, rains=3, seed=1, rain=rain)
    equal = [np.array_equal(pairs[i]["rainy"], pairs[i]["clean"]) for i in range(6)]
    assert equal == [kind == "none"] * 6


def test_photographs_are_decoded_once_where_there_is_memory(two, reads):
    pairs = SyntheticRain(two, rains=5, seed=0, memory=2 * 50 * 70 * 3)
    digests(pairs)
    digests(pairs)
    assert reads == {"dark": 1, "bright": 1}


def test_memory_counts_the_bytes_of_decoded_photographs(two, reads):
    digests(SyntheticRain(two, rains=5, seed=0, memory=2 * 50 * 70 * 3 - 1))
    assert reads == {"dark": 1, "bright": 5}


def test_photographs_are_decoded_each_time_without_memory(two, reads):
    digests(SyntheticRain(two, rains=5, seed=0))
    assert reads == {"dark": 5, "bright": 5}


def test_a_pair_does_not_change_the_photograph_that_is_kept(two):
    pairs = SyntheticRain(two, rains=1, seed=0, rain=UNCHANGED, memory=2**20)
    first = digest(pairs[0])
    pair = pairs[0]
    pair["rainy"][:], pair["clean"][:] = 0, 0
    assert digest(pairs[0]) == first


def test_clean_photographs_are_pairs_without_rain(coded):
    pairs = pickle.loads(pickle.dumps(pairs_module._CleanPhotographs(coded)))
    assert len(pairs) == 2
    for index, photograph in enumerate(coded):
        assert pairs[index]["name"] == photograph.name
        np.testing.assert_array_equal(pairs[index]["rainy"], read_image(photograph.path))
        np.testing.assert_array_equal(pairs[index]["clean"], pairs[index]["rainy"])
        assert pairs.size(index) == pairs[index]["clean"].shape[:2]


def test_fingerprints_change_with_what_decides_the_pairs(two, monkeypatch):
    def mark(rains=2, seed=0, rain=RainConfig(), window=32, memory=0, found=two):  # noqa: B008
        return SyntheticRain(found, rains, seed, rain, window, memory).fingerprint()

    heavier = dataclasses.replace(RainConfig().heavy_drops, scatter=3.0)
    marks = [
        mark(),
        mark(rains=3),
        mark(seed=1),
        mark(rain=RainConfig(heavy=0.3)),
        mark(rain=RainConfig(heavy_drops=heavier)),
        mark(window=40),
        mark(found=two[:1]),
    ]
    os.utime(two[0].path, ns=(0, 0))
    marks.append(mark())
    monkeypatch.setattr(pairs_module, "GENERATOR_VERSION", GENERATOR_VERSION + 1)
    marks.append(mark())
    assert len(set(marks)) == len(marks)
    assert mark(memory=2**20) == mark()


GOLDEN = {
    1: {
        "light": "0ffeb236b6dd",
        "ragged": "bce973cf2d62",
        "fine": "972cfafeead8",
        "heavy": "002bdacc65f2",
        "none": "cadc25fcbbad",
    }
}
"""By the generator's version, beginnings of the SHA-256 of a rainy and a clean image."""


def test_other_pixels_come_with_another_version():
    """A cache that was written before would be used otherwise: increase GENERATOR_VERSION."""
    rows, columns = np.mgrid[:48, :64]
    channels = [4 * rows, rows + 2 * columns, 255 - rows - 3 * columns]
    photograph = np.stack(channels, axis=-1).astype(np.uint8)
    found = {}
    for kind in [*RAINY, "none"]:
        pair = add_rain(photograph, np.random.default_rng(0), of(kind, veil_share=1.0))
        found[kind] = hashlib.sha256(b"".join(image.tobytes() for image in pair)).hexdigest()[:12]
    assert {GENERATOR_VERSION: found} == GOLDEN


def test_training_draws_in_windows_and_validation_on_whole_photographs():
    rain = RainConfig(none=1e4, fine=0, heavy=0, overcast_share=0)
    config = DataConfig(rains=5, validation_rains=3, window=160, rain=rain)
    train = open_pairs("synthetic", "train", config, 0)
    validation = open_pairs("synthetic", "validation", config, 0)
    assert (len(train), len(validation)) == (4 * 5, 2 * 3)
    assert {train.size(index) for index in range(len(train))} == {(160, 160)}
    assert [validation.size(index) for index in range(2)] == [(300, 451), (400, 600)]
    np.testing.assert_array_equal(train[3]["rainy"], train[3]["clean"])
    assert (validation[3]["rainy"] != validation[3]["clean"]).any()


def test_training_in_windows_decodes_each_photograph_once(reads):
    config = DataConfig(rains=6, window=64, crop_size=64, global_batch=6)
    ((pairs, _),) = open_training(config, 0)
    digests(pairs)
    assert set(reads.values()) == {1}
    assert len(reads) == 4
