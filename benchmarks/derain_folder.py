"""Times `drsformer derain` on a folder of images of many sizes, in processes as users have it.

python benchmarks/derain_folder.py [--checkpoint RUN] [--runs 3] [--json F.json]

The first process compiles; the second finds what the first compiled. Both are held against the
seconds that the network alone takes, measured in this process.
"""

from __future__ import annotations

import argparse
import functools
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from timing import Table, machine, seconds

from drsformer_jax import weights
from drsformer_jax.config import PRESETS
from drsformer_jax.data.synthetic import SyntheticRain, photographs
from drsformer_jax.errors import InputError, one_line_errors
from drsformer_jax.images.pixels import read_image, write_image
from drsformer_jax.nn.functional import init_params
from drsformer_jax.restoring import Restorer

ROOT = Path(__file__).parents[1]
IMAGES = 20
LARGEST = (768, 1024)
SMALLEST = (192, 256)
MOST_PROGRAMS = 3
SOON = 10
"""Target for the first image of the second process: seconds, for `tiny` on a CPU."""


class Attempt(NamedTuple):
    """What one process took."""

    programs: int
    """Sizes that were compiled, or found compiled."""
    seconds: float
    """From start to end."""
    first: float
    """From the start to the first result."""


def main() -> None:
    """Prints what the two processes take, and the share of it that is no computing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, help="default: tiny, untrained")
    parser.add_argument("--runs", type=int, default=3, help="of both processes (default 3)")
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args()
    with one_line_errors(), tempfile.TemporaryDirectory() as folder:
        measure(arguments, Path(folder))


def measure(arguments: argparse.Namespace, folder: Path) -> None:
    """Makes the images, starts the processes in turn, and compares."""
    # What the processes compile need not be compiled here.
    jax.config.update("jax_compilation_cache_dir", str(folder / "compiled"))
    write_images(folder / "rainy")
    checkpoint = arguments.checkpoint
    if checkpoint is None:
        checkpoint, config = folder / "model", PRESETS["tiny"]
        weights.save(checkpoint, config, init_params(config, jax.random.key(0)))
    restorer = Restorer.load(checkpoint)
    names = ("first, compiles", "second, finds it compiled")
    attempts: dict[str, list[Attempt]] = {name: [] for name in names}
    computing = []
    for _ in range(arguments.runs):
        shutil.rmtree(folder / "compiled", ignore_errors=True)
        for name in names:
            attempts[name].append(derain(checkpoint, folder))
        computing.append(compute(restorer, folder / "rainy"))
    alone = statistics.median(computing)
    table = Table(
        f"drsformer derain, {IMAGES} sizes up to {LARGEST[1]}x{LARGEST[0]}; {machine()}; median "
        f"of {arguments.runs} runs; the network alone takes {alone:.1f} s",
        {
            "process": "<26",
            "sizes_compiled": "14d",
            "first_image_s": "15.1f",
            "seconds": "8.1f",
            "images_per_s": "10.2f",
            "not_computing": "13.0%",
        },
    )
    for name, found in attempts.items():
        spent = statistics.median(attempt.seconds for attempt in found)
        table.add(
            process=name,
            sizes_compiled=max(attempt.programs for attempt in found),
            first_image_s=statistics.median(attempt.first for attempt in found),
            seconds=spent,
            images_per_s=IMAGES / spent,
            not_computing=1 - alone / spent,
        )
    print(
        f"targets: {MOST_PROGRAMS} sizes compiled at most; the second process's first image within "
        f"{SOON} s, for the tiny network on a CPU"
    )
    table.write(arguments.json)


def write_images(folder: Path) -> None:
    """Writes rain on parts of photographs, each of another size, as PNG and JPEG in turn."""
    random = np.random.default_rng(0)
    rain = SyntheticRain([each for part in photographs("skimage") for each in part], IMAGES, 0)
    sizes = [LARGEST]
    while len(sizes) < IMAGES:
        size = tuple(random.integers(SMALLEST, LARGEST, endpoint=True).tolist())
        if size not in sizes:
            sizes.append(size)
    for index, (height, width) in enumerate(sizes):
        rainy = rain[index]["rainy"]
        missing = max(0, height - rainy.shape[0]), max(0, width - rainy.shape[1])
        rainy = np.pad(rainy, ((0, missing[0]), (0, missing[1]), (0, 0)), "symmetric")
        path = folder / f"{index:02d}{('.png', '.jpg')[index % 2]}"
        write_image(path, rainy[:height, :width])


def derain(checkpoint: Path, folder: Path) -> Attempt:
    """Runs the command as users do, but with a compile cache of its own."""
    results = folder / "results"
    shutil.rmtree(results, ignore_errors=True)
    command = [sys.executable, "-m", "drsformer_jax", "derain", folder / "rainy", results]
    start, first = time.perf_counter(), None
    with subprocess.Popen(
        [*command, "--checkpoint", checkpoint],
        cwd=ROOT,
        env={**os.environ, "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled")},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        while process.poll() is None:
            if first is None and list(results.glob("[0-9]*")):
                first = time.perf_counter() - start
            time.sleep(0.02)
        spent = time.perf_counter() - start
        found = re.search(r"restored (\d+) .*sizes compiled: (\d+)", process.stdout.read())
    if process.returncode or first is None or not found or int(found[1]) != IMAGES:
        raise InputError(
            f"drsformer derain ended with status {process.returncode}; expected {IMAGES} results"
        )
    return Attempt(int(found[2]), spent, first)


def compute(restorer: Restorer, folder: Path) -> float:
    """Seconds that the network takes for all images, already read and compiled."""
    images = [read_image(path) for path in sorted(folder.iterdir())]
    restorer.plan(image.shape[:2] for image in images)
    for image in {restorer.bucket(each.shape[:2]): each for each in images}.values():
        restorer(image)
    return sum(seconds(functools.partial(restorer, each)) for each in images)


if __name__ == "__main__":
    main()
