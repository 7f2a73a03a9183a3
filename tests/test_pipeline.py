import itertools
import pickle
import warnings

import numpy as np
import pytest

from drsformer_jax.config import DataConfig
from drsformer_jax.data.images import write_picture
from drsformer_jax.data.pipeline import (
    Cached,
    RandomCrop,
    batches,
    describe,
    open_pairs,
    transform,
)
from drsformer_jax.errors import InputError

CROP = 8


def coded_pair(number, height=24, width=32):
    """Every pixel says which pair, row and column it is; clean is rainy with blue + 100."""
    rows, columns = np.mgrid[:height, :width]
    rainy = np.stack([rows, columns, np.full_like(rows, number)], axis=-1).astype(np.uint8)
    return {"name": f"{number}.png", "rainy": rainy, "clean": rainy + np.uint8([0, 0, 100])}


CODED = [coded_pair(number) for number in range(7)]


def config(**changes):
    return DataConfig(crop_size=CROP, global_batch=4, **changes)


def take(count, **options):
    return list(itertools.islice(batches(CODED, config(), seed=3, **options), count))


def assert_equal(ours, theirs):
    assert ours["name"] == theirs["name"]
    np.testing.assert_array_equal(ours["rainy"], theirs["rainy"])
    np.testing.assert_array_equal(ours["clean"], theirs["clean"])


@pytest.fixture(scope="module")
def straight():
    return take(9)


def test_crops_of_rainy_and_clean_are_cut_at_the_same_place(straight):
    for batch in straight:
        assert batch["rainy"].shape == batch["clean"].shape == (4, CROP, CROP, 3)
        np.testing.assert_array_equal(batch["rainy"] + np.uint8([0, 0, 100]), batch["clean"])
        assert [f"{crop[0, 0, 2]}.png" for crop in batch["rainy"]] == batch["name"]


def test_every_crop_is_a_square_of_its_pair_in_one_of_the_8_symmetries(straight):
    seen = set()
    for crop in np.concatenate([batch["rainy"] for batch in straight]):
        rows, columns = crop[..., 0], crop[..., 1]
        window = CODED[crop[0, 0, 2]]["rainy"][
            rows.min() : rows.min() + CROP, columns.min() : columns.min() + CROP
        ]
        matching = [n for n in range(8) if np.array_equal(transform(window, n), crop)]
        assert len(matching) == 1
        seen.update(matching)
    assert seen == set(range(8))


def test_the_8_symmetries_differ_and_are_closed_under_composition():
    picture = coded_pair(0, CROP, CROP)["rainy"]
    all_eight = {transform(picture, n).tobytes() for n in range(8)}
    assert len(all_eight) == 8
    composed = {transform(transform(picture, n), m).tobytes() for n in range(8) for m in range(8)}
    assert composed == all_eight


def test_without_augmentation_crops_are_upright():
    stream = batches(CODED, config(augment=False), seed=0)
    for crop in np.concatenate([next(stream)["rainy"] for _ in range(3)]):
        assert crop[0, 0, 0] + CROP - 1 == crop[-1, 0, 0]
        assert crop[0, 0, 1] + CROP - 1 == crop[0, -1, 1]


def test_every_pair_is_seen_once_an_epoch(straight):
    names = [name for batch in straight for name in batch["name"]]
    for epoch in range(5):
        assert sorted(names[epoch * 7 : epoch * 7 + 7]) == [f"{n}.png" for n in range(7)]
    assert names[:7] != names[7:14]


def test_a_stream_started_at_a_later_step_continues_the_same_batches(straight):
    for resumed, original in zip(take(4, start=5), straight[5:], strict=True):
        assert_equal(resumed, original)


def test_shares_of_2_processes_make_up_the_global_batch(straight):
    shares = [take(3, process=process, processes=2) for process in range(2)]
    for first, second, whole in zip(*shares, straight, strict=False):
        for index, share in enumerate((first, second)):
            np.testing.assert_array_equal(share["rainy"], whole["rainy"][index::2])


def test_another_seed_gives_other_batches(straight):
    other = next(batches(CODED, config(), seed=4))
    assert not np.array_equal(other["rainy"], straight[0]["rainy"])


def test_worker_processes_give_the_same_batches(straight):
    stream = batches(CODED, config(workers=1), seed=3)
    for original in straight[:3]:
        assert_equal(next(stream), original)


def test_a_small_picture_is_padded_right_and_below_by_half_sample_reflection():
    pair = coded_pair(0, 5, 6)
    crop = RandomCrop(CROP, augment=False)(pair, np.random.default_rng(0))
    assert crop["rainy"][:, 0, 0].tolist() == [0, 1, 2, 3, 4, 4, 3, 2]
    assert crop["rainy"][0, :, 1].tolist() == [0, 1, 2, 3, 4, 5, 5, 4]


def test_cache_keeps_what_fits_and_reads_it_once():
    class Counting(list):
        reads = 0

        def __getitem__(self, index):
            self.reads += 1
            return super().__getitem__(index)

    size = CODED[0]["rainy"].nbytes * 2
    source = Counting(CODED)
    cached = Cached(source, 2 * size)
    for _ in range(2):
        assert [cached[index]["name"] for index in range(3)] == ["0.png", "1.png", "2.png"]
    assert source.reads == 3 + 1
    revived = pickle.loads(pickle.dumps(Cached(CODED, size)))
    assert revived[1]["name"] == "1.png"


@pytest.fixture
def folder(tmp_path):
    for pair in CODED[:2]:
        write_picture(tmp_path / "input" / pair["name"], pair["rainy"])
        write_picture(tmp_path / "target" / pair["name"], pair["clean"])
    return tmp_path


def test_paired_folder_gives_its_pairs_by_name(folder):
    pairs = open_pairs(config(train=str(folder)), "train", 0)
    assert len(pairs) == 2
    assert_equal(pairs[1], CODED[1])


def test_pair_of_two_sizes_is_refused_before_training(folder):
    write_picture(folder / "target" / "1.png", CODED[1]["clean"][:-1])
    with pytest.raises(
        InputError, match=r"target/1\.png is 32x23.*input/1\.png is 32x24.*one size"
    ):
        open_pairs(config(train=str(folder)), "train", 0)


def test_file_that_is_no_picture_is_refused_before_training(folder):
    (folder / "input" / "0.png").write_text("no picture")
    with pytest.raises(InputError, match=r"input/0\.png is no picture"):
        open_pairs(config(train=str(folder)), "train", 0)


def test_small_pictures_give_one_warning_or_are_refused(folder):
    small = DataConfig(train=str(folder), crop_size=64, global_batch=1)
    with pytest.warns(UserWarning, match="2 of 2 pictures are smaller than the crop of 64x64"):
        pairs = open_pairs(small, "train", 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert next(batches(pairs, small, seed=0))["rainy"].shape == (1, 64, 64, 3)
    refusing = DataConfig(train=str(folder), crop_size=64, small_images="error")
    with pytest.raises(InputError, match=r"input/0\.png is 32x24; expected at least .* 64x64"):
        open_pairs(refusing, "train", 0)


def test_synthetic_validation_pairs_show_photographs_that_training_never_sees():
    small = config(rains=1)
    photographs = []
    for split in ("train", "validation"):
        pairs = open_pairs(small, split, 0)
        photographs.append({pairs[i]["name"].rsplit("_", 1)[0] for i in range(len(pairs))})
    assert all(photographs)
    assert not photographs[0] & photographs[1]


def test_batch_is_described_by_its_names_in_one_line():
    assert describe(["a.png", "b.png", "a.png"]) == "a.png (2 crops), b.png"
