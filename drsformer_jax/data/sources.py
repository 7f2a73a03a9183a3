"""The pairs of a training run: from datasets, folders, or synthetic rain."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from tqdm import tqdm

from drsformer_jax import remote
from drsformer_jax.config import DataConfig, RainConfig
from drsformer_jax.data.datasets import DatasetPairs, default_data_dir, find_dataset, open_dataset
from drsformer_jax.data.folders import find_pairs
from drsformer_jax.data.pairs import (
    Cached,
    PairedFiles,
    Pairs,
    Shard,
    SkippingUnreadable,
    StoredPairs,
    check_two_files,
    fingerprint,
    map_in_threads,
    sizes_of,
)
from drsformer_jax.data.raw_records import RawRecords, write_raw_records
from drsformer_jax.data.synthetic import SyntheticRain, photographs
from drsformer_jax.errors import InputError
from drsformer_jax.files import check_writable

Split = Literal["train", "validation"]


class Source(NamedTuple):
    """Pairs, and their weight in a mix."""

    pairs: Pairs
    weight: float


def open_training(config: DataConfig, seed: int) -> list[Source]:
    """Opens the pairs to train on with their caches; raises as `find_training` and `cached`."""
    return cached(find_training(config, seed), config)


def find_training(config: DataConfig, seed: int) -> list[StoredPairs]:
    """Opens the pairs of each source to train on; checks what can be checked without decoding.

    Warns once for each source with images smaller than the crop.

    Raises:
        InputError: as `open_pairs`, if an image is smaller than the crop under
            `small_images="error"`, or the folder of the cache cannot be written.
    """
    opened = []
    for name, _ in config.named():
        pairs = open_pairs(name, "train", config, seed)
        photographs = pairs.photographs if isinstance(pairs, SyntheticRain) else None
        if config.corrupt == "skip":
            pairs = SkippingUnreadable(pairs)
        _check_small(name, pairs, config, photographs)
        opened.append(pairs)
    if config.cache_dir and any(_is_cached(name, config) for name, _ in config.named()):
        check_writable(Path(config.cache_dir))
    return opened


def cached(found: Sequence[StoredPairs], config: DataConfig) -> list[Source]:
    """Caches decoded pairs on disk, which may take hours, or in memory.

    Args:
        found: what `find_training` gave.
        config: the caches.

    Raises:
        InputError: if a pair cannot be read or the cache cannot be written.
    """
    sources = []
    for pairs, (name, weight) in zip(found, config.named(), strict=True):
        kept = _kept(pairs, config, len(found)) if _is_cached(name, config) else pairs
        sources.append(Source(kept, weight))
    return sources


def uncached(found: Sequence[StoredPairs], config: DataConfig) -> list[Source]:
    """The same without a cache."""
    named = zip(found, config.named(), strict=True)
    return [Source(pairs, weight) for pairs, (_, weight) in named]


def open_validation(config: DataConfig, seed: int) -> Cached:
    """Opens the pairs to validate on, with their cache; raises as `open_pairs`."""
    pairs = open_pairs(config.validation, "validation", config, seed)
    sizes_of(pairs)  # Rejects files that are no image before training starts.
    return Cached(pairs, config.cache_mib * 2**20)


def decode_validation(
    pairs: Pairs, config: DataConfig, process: int = 0, processes: int = 1
) -> None:
    """Decodes a process's share of the pairs to validate on; the cache keeps those that fit.

    So a damaged image is found before training starts, and not hours later. A progress bar appears
    if it takes more than a second.

    Args:
        pairs: what `open_validation` gave.
        config: it names them.
        process: index of the process.
        processes: number of processes.

    Raises:
        InputError: for the first pair that cannot be read.
    """
    if config.validation == "synthetic":  # Nothing is damaged there, and rain takes long.
        return
    shard = Shard(pairs, process, processes)

    def decode(index: int) -> str:
        return shard[index]["name"]

    for _ in map_in_threads(decode, range(len(shard)), "validation images"):
        pass


def digest_of(sources: Sequence[Pairs]) -> str:
    """A short hash of the pairs of sources, the same where their files are moved or copied.

    It depends on names and lengths of files, or on the checksums that the builder of a dataset
    recorded; of other datasets, on the number of pairs.
    """
    return fingerprint(map(_digest, sources))


def _digest(pairs: Pairs) -> str:
    if isinstance(pairs, Cached | SkippingUnreadable):
        return _digest(pairs.pairs)
    if isinstance(pairs, PairedFiles | SyntheticRain | DatasetPairs):
        return pairs.digest()
    return fingerprint([len(pairs)])


def open_pairs(source: str, split: Split, config: DataConfig, seed: int) -> StoredPairs:
    """Opens pairs by name, as described at `DataConfig.train`.

    Args:
        source: `synthetic`, a dataset, or a folder.
        split: the photographs to use, or the default split of a dataset.
        config: the folder of datasets, and the settings of synthetic rain.
        seed: seed of synthetic rain.

    Raises:
        InputError: if there is nothing of that name, a partner or a photograph is missing, or a
            rainy and a clean image are the same file.
    """
    if source == "synthetic":
        train, validation = photographs(config.photographs)
        # Of whole photographs the pairs are kept, see `_kept`.
        memory = config.cache_mib * 2**20 // len(config.named()) if config.window else 0
        if split == "train":
            return SyntheticRain(train, config.rains, seed, config.rain, config.window, memory)
        return SyntheticRain(validation, config.validation_rains, seed, _rain_to_score(config.rain))
    found = find_dataset(source, config.data_dir, config.cache_dir)
    if found is not None:
        return open_dataset(*found, "train" if split == "train" else "test")
    if source and Path(source).exists():
        listed = find_pairs(source)
        check_two_files([(rainy, clean) for _, rainy, clean in listed])
        return PairedFiles(listed)
    data_dir = remote.shown(config.data_dir or default_data_dir())
    raise InputError(
        f"{source or 'an empty name'} is no folder and no dataset in {data_dir}; "
        "expected one that `drsformer build-data` built, a folder with input/ and target/, or "
        "synthetic"
    )


def _rain_to_score(rain: RainConfig) -> RainConfig:
    """The mix without rainless images, whose PSNR can be infinite."""
    if not rain.light + rain.fine + rain.heavy:
        raise InputError(
            "the validation is synthetic and data.rain has none of light, fine and heavy; expected "
            "some rain to score on"
        )
    return dataclasses.replace(rain, none=0.0)


def _is_cached(name: str, config: DataConfig) -> bool:
    # Rain on a random window is seldom used twice; it keeps the photographs instead.
    return not (name == "synthetic" and config.window)


def _kept(pairs: StoredPairs, config: DataConfig, sources: int) -> Pairs:
    """Caches decoded pairs on disk, or in this source's part of the memory."""
    if not config.cache_dir:
        return Cached(pairs, config.cache_mib * 2**20 // sources)
    path = Path(config.cache_dir) / f"{pairs.fingerprint()}.array_record"
    with tqdm(desc=str(path), total=len(pairs), unit=" pairs", delay=1, disable=None) as bar:
        write_raw_records(path, pairs, lambda count: bar.update())
    return RawRecords(path)


def _check_small(source: str, pairs: Pairs, config: DataConfig, photographs: int | None) -> None:
    """Warns of images smaller than the crop, or rejects them.

    Args:
        source: name of the pairs.
        pairs: their sizes are read.
        config: the crop and what to do.
        photographs: of synthetic rain how many there are: the first pairs are one of each.
    """
    crop = config.crop_size
    sizes = sizes_of(pairs, photographs)
    small = [index for index, size in enumerate(sizes) if min(size) < crop]
    if not small:
        return
    height, width = sizes[small[0]]
    found = f"{pairs[small[0]]['name']} of {source} is {width}x{height}"
    if config.small_images == "error":
        raise InputError(f"{found}; expected at least the crop, {crop}x{crop}")
    kind = "images" if photographs is None else "photographs"
    warnings.warn(
        f"{len(small)} of {len(sizes)} {kind} are smaller than the crop of {crop}x{crop} and are "
        f"padded by reflection ({found})",
        stacklevel=3,
    )
