"""Pairs to validate on are decoded before training, and a digest tells whether pairs are others."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from rain_sets import pair, write_pairs

from drsformer_jax.config import DataConfig
from drsformer_jax.data.rain import build
from drsformer_jax.data.sources import (
    decode_validation,
    digest_of,
    find_training,
    open_validation,
)
from drsformer_jax.errors import InputError
from drsformer_jax.images.pixels import write_image


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_pairs(tmp_path / "pairs", ["0.png", "1.png"])


def config(folder: object, **changes: object) -> DataConfig:
    names = {"train": str(folder), "validation": str(folder), "crop_size": 8}
    return DataConfig(**{**names, **changes})


@pytest.mark.parametrize("cache_mib", [0, 1])
def test_damaged_image_to_validate_on_is_found_before_training_by_the_process_that_has_it(
    folder, cache_mib
):
    write_pairs(folder, ["0.png", "1.png", "2.png"], height=64, width=64)
    path = folder / "target/1.png"
    path.write_bytes(path.read_bytes()[:200])
    settings = config(folder, cache_mib=cache_mib)
    pairs = open_validation(settings, 0)
    for process in ((0, 1), (1, 2)):
        with pytest.raises(InputError, match=r"target/1\.png is no image that can be read"):
            decode_validation(pairs, settings, *process)
    decode_validation(pairs, settings, 0, 2)


def test_digest_of_pairs_is_of_what_they_are_and_not_of_where(folder, tmp_path):
    def digest():
        return digest_of([open_validation(config(folder), 0)])

    first = digest()
    moved = shutil.copytree(folder, tmp_path / "moved")
    assert digest_of([open_validation(config(moved), 0)]) == first
    os.utime(folder / "input/0.png", ns=(0, 0))
    assert digest() == first
    ((survivors,), (plain,)) = (
        find_training(config(folder, corrupt=corrupt), 0) for corrupt in ("skip", "error")
    )
    assert digest_of([survivors]) == digest_of([plain]) == first
    assert digest_of([plain, plain]) != first
    write_pairs(folder, ["2.png"])
    more = digest()
    write_image(folder / "input/0.png", pair(3)[0])
    assert len({first, more, digest()}) == 3


def test_digest_of_a_dataset_changes_with_the_pixels_that_its_builder_recorded(tmp_path):
    digests = []
    for place, count in (("a", 2), ("b", 2), ("c", 3)):
        write_pairs(tmp_path / place / "raw/train", [f"{number}.png" for number in range(count)])
        build("paired_folder", tmp_path / place / "raw", tmp_path / place, name="mine")
        named = config("mine", data_dir=str(tmp_path / place))
        digests.append(digest_of(find_training(named, 0)))
    assert digests[0] == digests[1] != digests[2]


def test_digest_of_synthetic_rain_changes_with_the_photographs(tmp_path):
    for name in "abcdef":
        write_image(tmp_path / f"{name}.png", pair(0)[1])
    rain = DataConfig(photographs=str(tmp_path), crop_size=8)
    first = digest_of(find_training(rain, 0))
    assert digest_of(find_training(rain, 0)) == first
    write_image(tmp_path / "a.png", pair(0)[0])
    assert digest_of(find_training(rain, 0)) != first
