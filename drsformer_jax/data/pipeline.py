"""Batches of random crops that depend on the seed and their running index alone."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections import Counter, deque
from collections.abc import Generator, Iterator, Sequence
from multiprocessing import resource_tracker
from typing import TYPE_CHECKING, TypedDict

import jax
import numpy as np

from drsformer_jax.config import DataConfig
from drsformer_jax.data.pairs import Pair
from drsformer_jax.data.sources import Source
from drsformer_jax.errors import InputError
from drsformer_jax.sharding import global_arrays

if TYPE_CHECKING:
    import grain

_READ_AHEAD = 8
_EPOCHS = 10**9  # Endless, but without the overflow that Grain's own endless repeat can meet.


class Batch(TypedDict):
    """Crops of several pairs."""

    name: list[str]
    """Where each crop comes from."""
    rainy: np.ndarray
    """uint8 (b, h, w, 3)."""
    clean: np.ndarray
    """uint8 (b, h, w, 3)."""
    skipped: list[str]
    """What could not be read and is replaced by other pairs; one line each."""


def batches(
    sources: Sequence[Source],
    config: DataConfig,
    *,
    seed: int,
    start: int = 0,
    process: int = 0,
    processes: int = 1,
) -> Generator[Batch]:
    """Endless batches of random crops.

    Every crop has a running index, counted over all batches of all processes, and depends on the
    seed and that index alone: neither on threads, workers or restarts, nor on how many processes
    share a batch.

    Args:
        sources: what crops come from; a crop's source follows from its running index too.
        config: crop, batch and symmetries, and how patches grow.
        seed: 0 or more.
        start: number of the first batch.
        process: which share of each global batch to read.
        processes: how many shares there are.

    Raises:
        InputError: if the shares do not divide a global batch, or, from the iterator, if a pair
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
    """Pairs by running index: each source shuffled anew every epoch, mixed by weight."""
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
    first = 0  # Running index of a stage's first crop.
    for (begin, side, batch), end in zip(stages, ends, strict=True):
        if end is None or start < end:
            crop = RandomCrop(config.crop_size, side, augment=config.augment)
            crops = samples.random_map(crop)[first:]
            # Of each global batch a process takes a block, as the global array lies on devices.
            shares = crops.batch(batch // processes, batch_fn=_stack)[process::processes]
            steps = slice(max(start - begin, 0), None if end is None else end - begin)
            yield from _stream(shares[steps], config)
        if end is not None:
            first += (end - begin) * batch


def _stream(dataset: grain.MapDataset, config: DataConfig) -> Generator[Batch]:
    """Reads ahead, in threads or in worker processes."""
    import grain

    threads = min(4, os.cpu_count() or 1)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=_READ_AHEAD)
    stream = dataset.to_iter_dataset(options)
    if config.workers:
        from absl import flags

        flags.FLAGS.mark_as_parsed()  # Grain's worker processes read absl's flags.
        # Batches come through pipes. Grain returns shared memory late, or at exit not at all, and
        # containers have little of it.
        piped = grain.experimental.DatasetOptions(min_shm_size=sys.maxsize)
        stream = grain.experimental.WithOptionsIterDataset(stream, piped)
        workers = grain.MultiprocessingOptions(num_workers=config.workers)
        stream = stream.mp_prefetch(workers, worker_init_fn=_bind_to_parent)
    with contextlib.closing(iter(stream)) as iterator:  # Ends the workers.
        with _signals_blocked():
            first = next(iterator)
        yield first
        yield from iterator


@contextlib.contextmanager
def _signals_blocked() -> Iterator[None]:
    """Lets worker processes start such that Ctrl-C and SIGTERM do not end them before their parent.

    A terminal and a cluster send them to workers too. Those inherit what this thread blocks, and
    for good; in this process other threads take note of a signal meanwhile.
    """
    resource_tracker.ensure_running()  # Else it starts with the first worker, and unblocks them.
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def _bind_to_parent(worker: int, workers: int) -> None:
    """Makes a worker end with its parent, even a killed one."""
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def on_device(
    stream: Generator[Batch], sharding: jax.sharding.Sharding, ahead: int = 2
) -> Generator[tuple[Batch, dict[str, jax.Array]]]:
    """Copies batches to the devices while the ones before them are computed on.

    Args:
        stream: this process's shares of batches.
        sharding: how a global batch lies on all devices.
        ahead: how many batches to copy before they are asked for.

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
    """Cuts one random square out of both images of a pair, in one of the 8 symmetries.

    An image smaller than the square is first padded right and below by half-sample symmetric
    reflection, as in the official training program.

    Args:
        size: side of the square.
        patch: side of a patch that is cut from it at random in turn; the square itself where it is
            not given.
        augment: whether to turn and flip.
    """

    def __init__(self, size: int, patch: int | None = None, *, augment: bool) -> None:
        self._size = size
        self._patch = patch or size
        self._augment = augment

    def __call__(self, pair: Pair, rng: np.random.Generator) -> Pair:
        """Crops a pair; `rng` decides where and how."""
        size, patch = self._size, self._patch
        height, width, _ = pair["rainy"].shape
        top = int(rng.integers(max(height - size, 0) + 1))
        left = int(rng.integers(max(width - size, 0) + 1))
        symmetry = int(rng.integers(8)) if self._augment else 0
        down, right = (int(each) for each in rng.integers(size - patch + 1, size=2))

        def cut(image: np.ndarray) -> np.ndarray:
            crop = image[top : top + size, left : left + size]
            missing = [(0, size - crop.shape[0]), (0, size - crop.shape[1]), (0, 0)]
            if any(after for _, after in missing):
                crop = np.pad(crop, missing, mode="symmetric")
            turned = transform(crop[down : down + patch, right : right + patch], symmetry)
            return np.array(turned, order="C")  # A copy lets go of the whole image.

        return {**pair, "rainy": cut(pair["rainy"]), "clean": cut(pair["clean"])}


def transform(image: np.ndarray, symmetry: int) -> np.ndarray:
    """One of the 8 symmetries of the square: quarter turns (0 to 3), then those mirrored (4 to 7).

    Args:
        image: (h, w, c).
        symmetry: 0 is the image itself.
    """
    turned = np.rot90(image, symmetry % 4)
    return turned[:, ::-1] if symmetry >= 4 else turned


def _stack(pairs: Sequence[Pair]) -> Batch:
    return {
        "name": [pair["name"] for pair in pairs],
        "rainy": np.stack([pair["rainy"] for pair in pairs]),
        "clean": np.stack([pair["clean"] for pair in pairs]),
        "skipped": [line for pair in pairs for line in pair.get("skipped", [])],
    }


def describe(names: Sequence[str]) -> str:
    """The names of a batch in one line, each once with its count."""
    return ", ".join(
        name if count == 1 else f"{name} ({count} crops)" for name, count in Counter(names).items()
    )
