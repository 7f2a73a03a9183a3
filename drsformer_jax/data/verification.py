"""A dataset that was built, read again and checked pair by pair."""

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

    A pair must decode, have one size, show two images that differ, and the rainy one in its
    place. Numbers, sizes and all pixels must be those that the builder noted.

    Args:
        folder: that of the dataset.

    Yields:
        A line for each thing that is wrong.

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
        noted = pairs.noted().get(split)
        if noted is None:
            if pairs.is_ours():
                yield f"metadata.json of {folder} does not tell of {split}; expected what was noted"
        elif (noted["pairs"], noted["sha256"]) != (len(pairs), digest.hexdigest()):
            yield (
                f"{split} of {folder} has {len(pairs)} pairs of SHA-256 {digest.hexdigest()}; "
                f"expected {noted['pairs']} of {noted['sha256']}, noted when it was built"
            )


def _check(pairs: DatasetPairs, index: int) -> tuple[list[str], bytes]:
    """What is wrong with a pair, and the digest of its pixels."""
    try:
        pair = pairs[index]
    except InputError as error:
        return [str(error)], b""
    found = problems(pair["rainy"], pair["clean"])
    size, noted = pair["rainy"].shape[:2], pairs.size(index)
    if size != noted:
        found.append(
            f"it is {size[1]}x{size[0]}; expected {noted[1]}x{noted[0]}, noted when it was built"
        )
    lines = [f"{pair['name']} ({pairs.place(index)}): {each}" for each in found]
    return lines, pixel_digest(pair["rainy"], pair["clean"])
