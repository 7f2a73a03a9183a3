"""Batches of random crops, determined by the seed and the index of each crop alone."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import signal
import sys
import threading
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from multiprocessing import resource_tracker
from typing import TYPE_CHECKING, TypedDict

import jax
import numpy as np

from drsformer_jax.config import DataConfig
from drsformer_jax.data.pairs import Pair
from drsformer_jax.data.sources import Source
from drsformer_jax.errors import InputError, ending_signals
from drsformer_jax.sharding import global_arrays

if TYPE_CHECKING:
    import grain

_READ_AHEAD = 8
_ENDED = re.compile(r"terminated unexpectedly with exit code (-?\d+)")
"""What Grain says of a worker process that has ended."""
_EPOCHS = 10**9  # Endless, but without the overflow that Grain's own endless repeat can meet.


class Batch(TypedDict):
    """Crops of several pairs."""

    name: list[str]
    """Name of each crop's pair."""
    rainy: np.ndarray
    """uint8 (b, h, w, 3)."""
    clean: np.ndarray
    """uint8 (b, h, w, 3)."""
    skipped: list[str]
    """Pairs that could not be read and are replaced by others; one line each."""


def batches(
    sources: Sequence[Source],
    config: DataConfig,
    *,
    seed: int,
    start: int = 0,
    process: int = 0,
    processes: int = 1,
) -> Generator[Batch]:
    """Yields an endless stream of batches of random crops.

    Every crop has a global index, counted over all batches of all processes. The seed and this
    index determine its source, pair, position, flip and rotation, so batches do not depend on the
    number of threads, workers or processes, or on restarts.

    Args:
        sources: the pairs to sample from.
        config: crop, batch, flips and rotations, progressive patches.
        seed: 0 or more.
        start: index of the first batch.
        process: index of the shard of each global batch to read.
        processes: number of shards.

    Raises:
        InputError: if a global batch is no multiple of the shards; from the iterator, if a pair
            cannot be read.
    """
    stages = config.stages()
    for _, _, batch in stages:
        if batch % processes:
            raise InputError(
                f"the global batch is {batch}; expected a multiple of the {processes} processes"
            )
    return _stages(_samples(sources, seed), config, start, process, processes)


def _samples(sources: Sequence[Source], seed: int) -> grain.MapDataset:
    """Pairs by global index: each source reshuffled every epoch, mixed by weight."""
    import grain

    shuffled = [
        grain.MapDataset.source(pairs).seed(seed + number).shuffle().repeat(_EPOCHS)
        for number, (pairs, _) in enumerate(sources)
    ]
    if len(shuffled) == 1:
        return shuffled[0]
    return grain.MapDataset.mix(shuffled, [weight for _, weight in sources]).seed(seed)


def _stages(
    samples: grain.MapDataset, config: DataConfig, start: int, process: int, processes: int
) -> Generator[Batch]:
    stages = config.stages()
    ends = [begin for begin, _, _ in stages[1:]] + [None]
    first = 0  # Global index of a stage's first crop.
    for (begin, side, batch), end in zip(stages, ends, strict=True):
        if end is None or start < end:
            crop = RandomCrop(config.crop_size, side, augment=config.augment)
            crops = samples.random_map(crop)[first:]
            # A process reads one block of each global batch: the shard on its devices.
            shards = crops.batch(batch // processes, batch_fn=_stack)[process::processes]
            steps = slice(max(start - begin, 0), None if end is None else end - begin)
            yield from _stream(shards[steps], config)
        if end is not None:
            first += (end - begin) * batch


def _stream(dataset: grain.MapDataset, config: DataConfig) -> Generator[Batch]:
    """Prefetches batches, in threads or in worker processes."""
    import grain

    threads = min(4, os.cpu_count() or 1)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=_READ_AHEAD)
    stream = dataset.to_iter_dataset(options)
    if config.workers:
        from absl import flags

        flags.FLAGS.mark_as_parsed()  # Grain's worker processes read absl's flags.
        # Batches are sent through pipes: Grain frees shared memory late, or not at all at exit, and
        # containers have little of it.
        piped = grain.experimental.DatasetOptions(min_shm_size=sys.maxsize)
        stream = grain.experimental.WithOptionsIterDataset(stream, piped)
        workers = grain.MultiprocessingOptions(num_workers=config.workers)
        stream = stream.mp_prefetch(workers, worker_init_fn=_bind_to_parent)
    with _endings_told(), contextlib.closing(iter(stream)) as iterator:  # Ends the workers.
        with _signals_blocked():
            first = next(iterator)
        yield first
        yield from iterator


@contextlib.contextmanager
def _endings_told() -> Iterator[None]:
    """The end of a worker process, as by a system that has no memory left, in one line."""
    try:
        yield
    except RuntimeError as error:
        if (found := _ENDED.search(str(error))) is None:
            raise
        raise InputError(
            f"a worker of --data.workers ended with status {found[1]}; expected memory for it: "
            "fewer workers, or a smaller --data.cache-mib"
        ) from error


@contextlib.contextmanager
def _signals_blocked() -> Iterator[None]:
    """Starts worker processes such that signals do not end them before their parent.

    A terminal and a cluster send signals to workers too. Workers inherit the signals that this
    thread blocks; in this process other threads receive them meanwhile.
    """
    resource_tracker.ensure_running()  # Else the first worker starts it, which unblocks signals.
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ending_signals())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def _bind_to_parent(worker: int, workers: int) -> None:
    """Makes a worker end with its parent, even if the parent is killed."""
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def on_device(
    stream: Generator[Batch], sharding: jax.sharding.Sharding, ahead: int = 2
) -> Generator[tuple[Batch, dict[str, jax.Array]]]:
    """Copies batches to the devices while earlier batches are computed.

    Args:
        stream: this process's shards of batches.
        sharding: sharding of a global batch.
        ahead: number of batches to copy in advance.

    Yields:
        A batch, and its images "rainy" and "clean" as global arrays (global b, h, w, 3).
    """
    waiting: deque[tuple[Batch, dict[str, jax.Array]]] = deque()
    with contextlib.closing(stream):
        for batch in stream:
            images = {"rainy": batch["rainy"], "clean": batch["clean"]}
            waiting.append((batch, global_arrays(images, sharding)))
            if len(waiting) > ahead:
                yield waiting.popleft()
        yield from waiting


class RandomCrop:
    """Crops a random square from both images of a pair, and flips and rotates it.

    An image smaller than the square is first padded at the right and bottom by half-sample
    symmetric reflection, as in the official training program.

    Args:
        size: side of the square.
        patch: side of a random patch of the square; default: the square itself.
        augment: whether to flip and rotate.
    """

    def __init__(self, size: int, patch: int | None = None, *, augment: bool) -> None:
        self._size = size
        self._patch = patch or size
        self._augment = augment

    def __call__(self, pair: Pair, rng: np.random.Generator) -> Pair:
        """Crops a pair at a position, flip and rotation sampled from `rng`."""
        size, patch = self._size, self._patch
        height, width, _ = pair["rainy"].shape
        top = int(rng.integers(max(height - size, 0) + 1))
        left = int(rng.integers(max(width - size, 0) + 1))
        variant = int(rng.integers(8)) if self._augment else 0
        down, right = (int(each) for each in rng.integers(size - patch + 1, size=2))

        def cut(image: np.ndarray) -> np.ndarray:
            crop = image[top : top + size, left : left + size]
            missing = [(0, size - crop.shape[0]), (0, size - crop.shape[1]), (0, 0)]
            if any(after for _, after in missing):
                crop = np.pad(crop, missing, mode="symmetric")
            result = flip_and_rotate(crop[down : down + patch, right : right + patch], variant)
            return np.array(result, order="C")  # A copy, so that the whole image is freed.

        return {**pair, "rainy": cut(pair["rainy"]), "clean": cut(pair["clean"])}


def flip_and_rotate(image: np.ndarray, variant: int) -> np.ndarray:
    """One of the 8 flips and rotations: by quarter turns (0 to 3), then these flipped (4 to 7).

    Args:
        image: (h, w, c).
        variant: 0 to 7; 0 is the image itself.
    """
    rotated = np.rot90(image, variant % 4)
    return rotated[:, ::-1] if variant >= 4 else rotated


def _stack(pairs: Sequence[Pair]) -> Batch:
    return {
        "name": [pair["name"] for pair in pairs],
        "rainy": np.stack([pair["rainy"] for pair in pairs]),
        "clean": np.stack([pair["clean"] for pair in pairs]),
        "skipped": [line for pair in pairs for line in pair.get("skipped", [])],
    }
