"""Checks a built dataset pair by pair."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator
from pathlib import Path

import grain

from drsformer_jax.data.checks import problems
from drsformer_jax.data.datasets import DatasetPairs, in_threads, pixel_digest, splits_of
from drsformer_jax.errors import InputError


def verify(folder: Path) -> Iterator[str]:
    """Reads every pair of a dataset and checks it.

    A pair must decode, have one size, and hold two different images that do not seem swapped. The
    number of pairs, their sizes and all pixels must be those that the builder recorded.

    Args:
        folder: the dataset's folder.

    Yields:
        A line for each problem.

    Raises:
        InputError: if the folder is no dataset.
    """
    for split in splits_of(folder):
        pairs = DatasetPairs(folder, split)
        digest = hashlib.sha256()
        checks = grain.MapDataset.range(len(pairs)).map(functools.partial(_check, pairs))
        for lines, pixels in in_threads(checks, split):
            digest.update(pixels)
            yield from lines
        recorded = pairs.recorded().get(split)
        if recorded is None:
            if pairs.is_ours():
                yield f"metadata.json of {folder} has no record of {split}; expected the builder's"
        elif (recorded["pairs"], recorded["sha256"]) != (len(pairs), digest.hexdigest()):
            yield (
                f"{split} of {folder} has {len(pairs)} pairs of SHA-256 {digest.hexdigest()}; "
                f"expected {recorded['pairs']} of {recorded['sha256']}, as recorded"
            )


def _check(pairs: DatasetPairs, index: int) -> tuple[list[str], bytes]:
    """The problems of a pair, and the digest of its pixels."""
    try:
        pair = pairs[index]
    except InputError as error:
        return [str(error)], b""
    found = problems(pair["rainy"], pair["clean"])
    size, recorded = pair["rainy"].shape[:2], pairs.size(index)
    if size != recorded:
        found.append(
            f"it is {size[1]}x{size[0]}; expected {recorded[1]}x{recorded[0]}, as recorded"
        )
    lines = [f"{pair['name']} ({pairs.place(index)}): {each}" for each in found]
    return lines, pixel_digest(pair["rainy"], pair["clean"])
