"""How fast pairs are read, decoded, cropped and put into batches, against decoding alone.

python benchmarks/input_pipeline.py --data DIR [--cores 1] [--json input_pipeline.json]
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from timing import Table

from drsformer_jax.config import KINDS, DataConfig, RainConfig
from drsformer_jax.data.folders import find_pairs
from drsformer_jax.data.pipeline import batches
from drsformer_jax.data.rain import build
from drsformer_jax.data.sources import open_training
from drsformer_jax.errors import InputError, one_line_errors
from drsformer_jax.images.pixels import decode_image

BATCH = 8
CROP = 128
DECODING = 70
"""Target: pairs of PNG images of 481x321 a second, on one core."""
DECODED = 900
"""The same for pairs that were decoded once."""
RAIN = 256
"""Side in pixels of the crops that synthetic rain is rendered on."""
RENDERED = 12
"""Target: pairs of that size a second, for every kind of rain."""


def main() -> None:
    """Prints pairs per second of each variant, and their ratio to decoding by Pillow alone."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of input/ and target/")
    parser.add_argument("--photographs", default="skimage", help="for rain (%(default)s)")
    parser.add_argument("--pairs", type=int, default=400, help="as many at least (default 400)")
    parser.add_argument("--cores", type=int, default=1, help="processor cores to use (default 1)")
    parser.add_argument("--seconds", type=float, default=2, help="of a run (default 2)")
    parser.add_argument("--runs", type=int, default=5, help="runs of each variant (default 5)")
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args()
    with one_line_errors():
        measure(arguments)


def measure(arguments: argparse.Namespace) -> None:
    """Lets all variants take turns."""
    if not hasattr(os, "sched_setaffinity"):
        raise InputError("this system keeps no program to some cores; expected Linux")
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.cores])
    with tempfile.TemporaryDirectory() as folder:
        data = repeated(arguments.data, arguments.pairs, Path(folder) / "pairs")
        variants = all_variants(data, Path(folder), arguments.cores, arguments.photographs)
        for variant in variants.values():  # Compiled, read from the disk and cached.
            next(variant)
        rates: dict[str, list[float]] = {name: [] for name in variants}
        for _, (name, variant) in itertools.product(range(arguments.runs), variants.items()):
            rates[name].append(rate(variant, arguments.seconds))
    table = Table(
        f"{len(find_pairs(arguments.data))} pairs again and again up to {arguments.pairs}, "
        f"{arguments.cores} cores, crops of {CROP}x{CROP} in batches of "
        f"{BATCH}; median of {arguments.runs} runs of {arguments.seconds:g} s in turn",
        {
            "variant": "<44",
            "pairs_per_s": "9.1f",
            "target": "5d",
            "ms_a_pair": "10.2f",
            "over_pillow": "11.2f",
        },
    )
    limit = statistics.median(next(iter(rates.values())))
    for name, found in rates.items():
        middle = statistics.median(found)
        table.add(
            variant=name,
            pairs_per_s=middle,
            target=target(name),
            ms_a_pair=1000 / middle,
            over_pillow=middle / limit,
            all=found,
        )
    table.write(arguments.json)


def target(variant: str) -> int | None:
    """Pairs a second that a variant to make batches should reach."""
    if "alone" in variant:
        return None
    if "rain" in variant:
        return RENDERED
    return DECODED if "decoded once" in variant else DECODING


def repeated(data: Path, count: int, folder: Path) -> Path:
    """A folder with the same pairs under several names.

    Grain's shuffle takes a time of its own for few pairs: 0.7 ms for each of 40.
    """
    pairs = find_pairs(data)
    for part in ("input", "target"):
        (folder / part).mkdir(parents=True)
    for copy in range(-(-count // len(pairs))):
        for name, rainy, clean in pairs:
            for part, path in (("input", rainy), ("target", clean)):
                (folder / part / f"{copy}_{name}").symlink_to(path.resolve())
    return folder


def all_variants(
    data: Path, folder: Path, cores: int, photographs: str
) -> dict[str, Iterator[int]]:
    """Endless iterators, each of which gives how many pairs it made in a step."""
    contents = [(rainy.read_bytes(), clean.read_bytes()) for _, rainy, clean in find_pairs(data)]
    build("paired_folder", data, folder)
    files = DataConfig(
        train=str(data),
        data_dir=str(folder),
        crop_size=CROP,
        global_batch=BATCH,
        cache_mib=0,
    )
    dataset = dataclasses.replace(files, train="paired_folder")
    variants = {
        "decoding alone, Pillow": decoding(contents, pillow),
        "decoding alone": decoding(contents, lambda content: decode_image(content, "")),
        "files, decoded each time": pipeline(files),
        "dataset, decoded each time": pipeline(dataset),
        "dataset, decoded once into memory": pipeline(
            dataclasses.replace(dataset, cache_mib=2**20)
        ),
        "dataset, decoded once into raw ArrayRecord": pipeline(
            dataclasses.replace(dataset, cache_dir=str(folder / "decoded"))
        ),
    }
    for kind in KINDS:
        rain = DataConfig(
            photographs=photographs,
            rains=8,
            rain=RainConfig.only(kind),
            window=RAIN,
            crop_size=RAIN,
            global_batch=BATCH,
        )
        variants[f"rain rendered on {RAIN}x{RAIN}, {kind}"] = pipeline(rain)
    if cores > 1:
        workers = dataclasses.replace(dataset, workers=cores)
        variants[f"dataset, decoded each time, {cores} workers"] = pipeline(workers)
    return variants


def pillow(content: bytes) -> np.ndarray:
    """The pixels of an image."""
    return np.array(Image.open(io.BytesIO(content)).convert("RGB"))


def decoding(
    contents: list[tuple[bytes, bytes]], decode: Callable[[bytes], np.ndarray]
) -> Iterator[int]:
    """Decodes pairs that are in memory, in one thread."""
    for rainy, clean in itertools.cycle(contents):
        decode(rainy)
        decode(clean)
        yield 1


def pipeline(config: DataConfig) -> Iterator[int]:
    """Makes batches as training does."""
    sources = open_training(config, seed=0)
    (source,) = sources
    for index in range(len(source.pairs)):  # What is decoded once is decoded here.
        source.pairs[index]
    for batch in batches(sources, config, seed=0):
        yield len(batch["name"])


def rate(variant: Iterator[int], seconds: float) -> float:
    """Pairs per second over a while."""
    made, start = 0, time.perf_counter()
    while (spent := time.perf_counter() - start) < seconds:
        made += next(variant)
    return made / spent


if __name__ == "__main__":
    main()
