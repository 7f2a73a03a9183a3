"""Few buckets hold many sizes, with little padding."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drsformer_jax.restoring.buckets import MOST_PROGRAMS, bucket_on_ladder, padded, plan_buckets

SIDES = st.integers(1, 1024)


def everything(size: tuple[int, int]) -> bool:
    return True


def holds(bucket: tuple[int, int], size: tuple[int, int]) -> bool:
    return bucket[0] >= size[0] and bucket[1] >= size[1]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(SIDES, SIDES), min_size=1, max_size=60))
def test_every_size_has_one_of_at_most_three_buckets(sizes):
    buckets = plan_buckets(sizes, everything)
    assert len(buckets) <= MOST_PROGRAMS
    assert all(any(holds(bucket, size) for bucket in buckets) for size in sizes)
    assert all(side % 8 == 0 for bucket in buckets for side in bucket)
    areas = [height * width for height, width in buckets]
    assert areas == sorted(areas)


def test_up_to_three_sizes_are_padded_to_multiples_of_8_alone():
    assert plan_buckets([(321, 481), (481, 321), (320, 480)] * 5, everything) == [
        (320, 480),
        (328, 488),
        (488, 328),
    ]


def test_buckets_of_few_sizes_add_the_fewest_pixels():
    sizes = [(64, 64), (72, 64), (256, 256), (256, 264), (512, 96)]
    counts = [1, 3, 2, 1, 1]
    images = [size for size, count in zip(sizes, counts, strict=True) for _ in range(count)]

    def pixels(buckets: list[tuple[int, int]]) -> float:
        return sum(
            min((h * w for h, w in buckets if holds((h, w), size)), default=np.inf)
            for size in images
        )

    corners = list(itertools.product({h for h, _ in sizes}, {w for _, w in sizes}))
    best = min(pixels(list(each)) for each in itertools.combinations(corners, 3))
    assert pixels(plan_buckets(images, everything)) == best


def test_no_bucket_grows_beyond_what_fits():
    wide_and_tall = [(8, 800), (800, 8), (16, 792), (792, 16), (24, 784), (784, 24)]
    buckets = plan_buckets(wide_and_tall, lambda size: size[0] * size[1] < 100_000)
    assert all(height * width < 100_000 for height, width in buckets)
    assert all(any(holds(bucket, size) for bucket in buckets) for size in wide_and_tall)


def test_no_bucket_of_many_sizes_grows_beyond_what_fits():
    random = np.random.default_rng(0)
    wide = [(int(h), int(w)) for h, w in random.integers((100, 1000), (500, 2000), (80, 2))]
    sizes = wide + [(w, h) for h, w in wide]

    def fits(size: tuple[int, int]) -> bool:
        return size[0] * size[1] <= 1_100_000

    buckets = plan_buckets(sizes, fits)
    assert all(map(fits, buckets))
    assert all(any(holds(bucket, size) for bucket in buckets) for size in sizes)
    assert len(buckets) <= 2 * MOST_PROGRAMS


def test_thousands_of_sizes_are_planned_at_once():
    sizes = np.random.default_rng(0).integers(1, 4000, (5000, 2)).tolist()
    assert len(plan_buckets([(h, w) for h, w in sizes], everything)) == MOST_PROGRAMS


@pytest.mark.parametrize(
    ("size", "bucket"),
    [
        ((1, 1), (8, 8)),
        ((9, 17), (16, 24)),
        ((64, 65), (64, 80)),
        ((321, 481), (384, 512)),
        ((768, 1024), (768, 1024)),
        ((1080, 1920), (1280, 2048)),
    ],
)
def test_ladder_has_four_rungs_an_octave(size, bucket):
    assert bucket_on_ladder(size) == bucket


@given(SIDES, SIDES)
def test_ladder_adds_less_than_a_quarter_to_a_side(height, width):
    bucket = bucket_on_ladder((height, width))
    for side, before in zip(bucket, padded((height, width)), strict=True):
        assert before <= side < 1.25 * before + 8
        assert side % 8 == 0
