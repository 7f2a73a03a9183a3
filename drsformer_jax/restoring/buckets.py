"""Few sizes that many images fit into, so that few programs are compiled."""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable

import numpy as np

from drsformer_jax.config import SIZE_MULTIPLE

Size = tuple[int, int]
"""(height, width) in pixels."""

MOST_PROGRAMS = 3
"""Buckets that a set of images is given, where none of them grows beyond what fits."""
_STEPS = 7


def padded(size: Size) -> Size:
    """The size that the official program pads an image to: the next multiples of 8."""
    height, width = size
    return height + -height % SIZE_MULTIPLE, width + -width % SIZE_MULTIPLE


def bucket_on_ladder(size: Size) -> Size:
    """The bucket of an image about whose fellows nothing is known.

    Each side is rounded up to a multiple of a quarter of the power of two below it (..., 256, 320,
    384, 448, 512, 640, ...): a side grows by less than a quarter, and by a tenth on average.
    """
    height, width = padded(size)
    return _rung(height), _rung(width)


def plan_buckets(sizes: Iterable[Size], fits: Callable[[Size], bool]) -> list[Size]:
    """Chooses at most `MOST_PROGRAMS` buckets so that every image fits into one.

    Where there are more sizes, the two buckets whose union adds the fewest pixels, counted over all
    images, become one, again and again.

    Args:
        sizes: of all images.
        fits: whether a bucket fits into memory; a union that does not is never formed, which may
            leave more buckets.

    Returns:
        Buckets, the smallest area first.
    """
    counts = Counter(padded(size) for size in sizes)
    if len(counts) > _STEPS**2:  # Pairs of thousands of sizes would take long to try.
        counts = _coarse(counts, fits)
    while len(counts) > MOST_PROGRAMS:
        unions = [
            (_added(a, b, counts), a, b)
            for a, b in itertools.combinations(counts, 2)
            if fits(_union(a, b))
        ]
        if not unions:
            break
        _, a, b = min(unions)
        together = counts.pop(a) + counts.pop(b)
        counts[_union(a, b)] += together
    return sorted(counts, key=_area)


def _coarse(counts: Counter[Size], fits: Callable[[Size], bool]) -> Counter[Size]:
    """Rounds heights and widths up to few values each, with equally many images between them."""
    sides = np.array(list(counts.elements())).T
    steps = np.linspace(0, 1, _STEPS + 1)[1:]
    heights, widths = (np.quantile(side, steps, method="higher").tolist() for side in sides)
    coarse: Counter[Size] = Counter()
    for (height, width), count in counts.items():
        rounded = heights[bisect_left(heights, height)], widths[bisect_left(widths, width)]
        candidates = (rounded, bucket_on_ladder((height, width)), (height, width))
        coarse[next(filter(fits, candidates), (height, width))] += count
    return coarse


def _rung(side: int) -> int:
    step = max(SIZE_MULTIPLE, 2 ** ((side - 1).bit_length() - 1) // 4)
    return side + -side % step


def _area(size: Size) -> int:
    return size[0] * size[1]


def _union(a: Size, b: Size) -> Size:
    return max(a[0], b[0]), max(a[1], b[1])


def _added(a: Size, b: Size, counts: Counter[Size]) -> int:
    together = _area(_union(a, b))
    return sum(counts[size] * (together - _area(size)) for size in (a, b))
