import dataclasses
import itertools
import multiprocessing

import numpy as np
import pytest

from drsformer_jax.config import DataConfig, MeshConfig
from drsformer_jax.data.pipeline import RandomCrop, batches, flip_and_rotate, on_device
from drsformer_jax.data.sources import Source
from drsformer_jax.errors import InputError
from drsformer_jax.sharding import batch_sharding, make_mesh

CROP = 8


def coded_pair(number, height=24, width=32):
    """Every pixel says which pair, row and column it is; clean is rainy with blue + 100."""
    rows, columns = np.mgrid[:height, :width]
    rainy = np.stack([rows, columns, np.full_like(rows, number)], axis=-1).astype(np.uint8)
    return {"name": f"{number}.png", "rainy": rainy, "clean": rainy + np.uint8([0, 0, 100])}


CODED = [coded_pair(number) for number in range(7)]


ONE = [Source(CODED, 1.0)]
MIX = [Source(CODED[:4], 3.0), Source(CODED[4:], 1.0)]
GROWING = DataConfig(crop_size=24, progressive=((0, 8, 8), (3, 16, 4), (5, 24, 4)))


def config(**changes):
    return DataConfig(crop_size=CROP, global_batch=4, **changes)


def take(count, sources=ONE, settings=None, **options):
    return list(itertools.islice(batches(sources, settings or config(), seed=3, **options), count))


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
        matching = [n for n in range(8) if np.array_equal(flip_and_rotate(window, n), crop)]
        assert len(matching) == 1
        seen.update(matching)
    assert seen == set(range(8))


def test_the_8_symmetries_differ_and_are_closed_under_composition():
    image = coded_pair(0, CROP, CROP)["rainy"]
    all_eight = {flip_and_rotate(image, n).tobytes() for n in range(8)}
    assert len(all_eight) == 8
    composed = {
        flip_and_rotate(flip_and_rotate(image, n), m).tobytes() for n in range(8) for m in range(8)
    }
    assert composed == all_eight


def test_without_augmentation_crops_are_upright():
    stream = batches(ONE, config(augment=False), seed=0)
    for crop in np.concatenate([next(stream)["rainy"] for _ in range(3)]):
        assert crop[0, 0, 0] + CROP - 1 == crop[-1, 0, 0]
        assert crop[0, 0, 1] + CROP - 1 == crop[0, -1, 1]


def test_every_pair_is_seen_once_an_epoch(straight):
    names = [name for batch in straight for name in batch["name"]]
    for epoch in range(5):
        assert sorted(names[epoch * 7 : epoch * 7 + 7]) == [f"{n}.png" for n in range(7)]
    assert names[:7] != names[7:14]


STREAMS = {"one": (ONE, config()), "mix": (MIX, config()), "growing": (MIX, GROWING)}
"""What must not depend on who reads it."""


@pytest.fixture(scope="module", params=STREAMS)
def stream(request):
    """Sources, configuration and the first batches as a single process with threads reads them."""
    sources, settings = STREAMS[request.param]
    return sources, settings, take(8, sources, settings)


@pytest.mark.parametrize("start", [1, 3, 5])
def test_a_stream_started_at_a_later_step_continues_the_same_batches(stream, start):
    sources, settings, straight = stream
    resumed = take(8 - start, sources, settings, start=start)
    for ours, original in zip(resumed, straight[start:], strict=True):
        assert_equal(ours, original)


@pytest.mark.parametrize("start", [0, 4])
@pytest.mark.parametrize("processes", [2, 4])
def test_shares_of_several_processes_make_up_the_global_batches(stream, processes, start):
    """Also of a run that is resumed on another number of them."""
    sources, settings, straight = stream
    shares = [
        take(8 - start, sources, settings, start=start, process=process, processes=processes)
        for process in range(processes)
    ]
    for whole, *parts in zip(straight[start:], *shares, strict=True):
        assert len({len(part["name"]) for part in parts}) == 1
        # A global array is made of its processes' parts in turn.
        assert [name for part in parts for name in part["name"]] == whole["name"]
        for image in ("rainy", "clean"):
            np.testing.assert_array_equal(
                np.concatenate([part[image] for part in parts]), whole[image]
            )


@pytest.mark.parametrize("workers", [1, 2])
def test_worker_processes_give_the_same_batches(stream, workers):
    sources, settings, straight = stream
    ours = take(6, sources, dataclasses.replace(settings, workers=workers))
    for batch, original in zip(ours, straight, strict=False):
        assert_equal(batch, original)


def test_a_killed_worker_process_ends_the_batches_with_one_line():
    stream = batches(ONE, config(workers=1), seed=3)
    others = multiprocessing.active_children()
    next(stream)
    (worker,) = (each for each in multiprocessing.active_children() if each not in others)
    worker.kill()
    line = "^a worker of --data.workers ended with status -9; expected memory for it: fewer worke"
    with pytest.raises(InputError, match=line):
        for _ in stream:
            pass


def test_shares_that_do_not_divide_a_global_batch_are_rejected_at_once():
    with pytest.raises(InputError, match="global batch is 4; expected a multiple of the 3 proc"):
        batches(ONE, config(), seed=0, processes=3)
    with pytest.raises(InputError, match="global batch is 4; expected a multiple of the 8 proc"):
        batches(MIX, GROWING, seed=0, processes=8)


def test_a_mix_draws_from_each_source_by_its_weight():
    names = [name for batch in take(40, MIX) for name in batch["name"]]
    first = [name for name in names if name in {f"{n}.png" for n in range(4)}]
    assert len(first) == len(names) * 3 / 4
    # And goes through each source once an epoch.
    assert sorted(first[:4]) == sorted(first[4:8]) == [f"{n}.png" for n in range(4)]


def test_patches_grow_and_the_running_index_counts_every_crop():
    growing = take(8, ONE, GROWING)
    assert [batch["rainy"].shape[:2] for batch in growing] == (
        [(8, 8)] * 3 + [(4, 16)] * 2 + [(4, 24)] * 3
    )
    names = [name for batch in growing for name in batch["name"]]
    for epoch in range(6):
        assert sorted(names[epoch * 7 : epoch * 7 + 7]) == [f"{n}.png" for n in range(7)]


def test_patches_are_cut_at_random_from_random_crops_and_align():
    rng = np.random.default_rng(0)
    crop = RandomCrop(24, CROP, augment=False)
    corners = set()
    for _ in range(600):
        pair = crop(CODED[0], rng)
        rainy = pair["rainy"]
        np.testing.assert_array_equal(rainy + np.uint8([0, 0, 100]), pair["clean"])
        top, left, _ = (int(value) for value in rainy[0, 0])
        window = CODED[0]["rainy"][top : top + CROP, left : left + CROP]
        np.testing.assert_array_equal(rainy, window)
        corners.add((top, left))
    # A crop of 24 has one place in the height of 24, and 9 in the width; the patch moves inside.
    assert {top for top, _ in corners} == set(range(24 - CROP + 1))
    assert {left for _, left in corners} == set(range(32 - CROP + 1))


def test_a_patch_of_an_image_smaller_than_the_crop_is_cut_after_padding():
    rng = np.random.default_rng(0)
    pair = coded_pair(0, 12, 12)
    crop = RandomCrop(24, CROP, augment=False)
    padded = np.pad(pair["rainy"], [(0, 12), (0, 12), (0, 0)], mode="symmetric")
    windows = {
        padded[top : top + CROP, left : left + CROP].tobytes(): (top, left)
        for top in range(17)
        for left in range(17)
    }
    places = {windows[crop(pair, rng)["rainy"].tobytes()] for _ in range(300)}
    assert {top for top, _ in places} == {left for _, left in places} == set(range(17))


def test_a_crop_does_not_keep_its_image_in_memory():
    crop = RandomCrop(CROP, augment=False)(CODED[0], np.random.default_rng(0))
    assert crop["rainy"].base is None


def test_batches_on_the_device_are_the_same_and_in_order(straight):
    sharding = batch_sharding(make_mesh(MeshConfig(data=1)))
    copied = list(on_device((batch for batch in straight), sharding))
    assert len(copied) == len(straight)
    for (batch, images), original in zip(copied, straight, strict=True):
        assert_equal(batch, original)
        for name, image in images.items():
            assert image.sharding == sharding
            np.testing.assert_array_equal(image, original[name])


def test_batches_are_copied_ahead_of_their_use(straight):
    taken = []

    def watched():
        for number, batch in enumerate(straight):
            taken.append(number)
            yield batch

    next(on_device(watched(), batch_sharding(make_mesh(MeshConfig(data=1))), ahead=2))
    assert taken == [0, 1, 2]


def test_another_seed_gives_other_batches(straight):
    other = next(batches(ONE, config(), seed=4))
    assert not np.array_equal(other["rainy"], straight[0]["rainy"])


def test_a_small_image_is_padded_right_and_below_by_half_sample_reflection():
    pair = coded_pair(0, 5, 6)
    crop = RandomCrop(CROP, augment=False)(pair, np.random.default_rng(0))
    assert crop["rainy"][:, 0, 0].tolist() == [0, 1, 2, 3, 4, 4, 3, 2]
    assert crop["rainy"][0, :, 1].tolist() == [0, 1, 2, 3, 4, 5, 5, 4]
