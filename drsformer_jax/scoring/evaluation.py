"""Scores of restored images against clean ones."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import jax
import numpy as np

from drsformer_jax import metrics
from drsformer_jax.config import Protocol
from drsformer_jax.data.pairs import Pair, Pairs, Shard, sizes_of
from drsformer_jax.restoring import Restorer
from drsformer_jax.sharding import least
from drsformer_jax.training.processes import in_order
from drsformer_jax.training.watchdog import waits_for


@dataclass(frozen=True)
class Scores:
    """PSNR in dB and SSIM of a rainy and of the restored image, both against the clean one."""

    rainy_psnr: float
    """NaN, like the SSIM, without a rainy image."""
    rainy_ssim: float
    restored_psnr: float
    restored_ssim: float

    @property
    def gain(self) -> float:
        """What restoring adds to the PSNR, in dB; 0 if both are infinite."""
        if self.restored_psnr == self.rainy_psnr:
            return 0.0
        return self.restored_psnr - self.rainy_psnr


def score(
    rainy: np.ndarray | None, restored: np.ndarray, clean: np.ndarray, protocol: Protocol
) -> Scores:
    """Scores one image.

    Args:
        rainy: uint8 (h, w, 3); None if it is not available.
        restored: the restored image, of the same shape and dtype.
        clean: the ground truth, likewise.
        protocol: see `drsformer_jax.metrics`.

    Raises:
        InputError: if the images are not uint8 (h, w, 3) of one size.
    """
    undefined = math.nan, math.nan
    before = undefined if rainy is None else metrics.scores(rainy, clean, protocol)
    return Scores(*before, *metrics.scores(restored, clean, protocol))


def evaluate(
    restorer: Restorer, pairs: Pairs, protocol: Protocol
) -> Iterator[tuple[Pair, np.ndarray, Scores]]:
    """Restores and scores pairs one after another.

    Args:
        restorer: the network; its buckets are planned for these pairs.
        pairs: rainy images and their ground truth.
        protocol: see `drsformer_jax.metrics`.

    Yields:
        (pair, restored image, its scores).
    """
    restorer.plan(sizes_of(pairs))
    for start in range(0, len(pairs), restorer.together):
        yield from _evaluated(restorer, _some(pairs, start, restorer.together), protocol)


def _some(pairs: Pairs, start: int, count: int) -> list[Pair]:
    return [pairs[index] for index in range(start, min(start + count, len(pairs)))]


def _evaluated(
    restorer: Restorer, pairs: Sequence[Pair], protocol: Protocol
) -> Iterator[tuple[Pair, np.ndarray, Scores]]:
    """Restores some pairs together, always by the program for as many as that is best for."""
    images = restorer.batch([pair["rainy"] for pair in pairs], restorer.together)
    for pair, restored in zip(pairs, images, strict=True):
        yield pair, restored, score(pair["rainy"], restored, pair["clean"], protocol)


def shared_scores(
    restorer: Restorer,
    pairs: Pairs,
    protocol: Protocol,
    stop: Callable[[], bool] = lambda: False,
    seen: Callable[[int, Pair, np.ndarray, Scores], None] = lambda *_: None,
) -> list[Scores] | None:
    """Scores pairs, of which each process takes a shard; the result is the same for any number.

    All processes call it together.

    Args:
        restorer: the network, the same in each process.
        pairs: rainy images and their ground truth, likewise.
        protocol: see `drsformer_jax.metrics`.
        stop: asked before each pair whether to give up, or before as many as devices restore
            together. All processes call it equally often, also one whose shard is shorter, so that
            the same call may tell all to.
        seen: called with each pair of this process, as soon as it is scored: its index among all
            pairs, the pair, the restored image and the scores.

    Returns:
        The scores of all pairs in order; None if `stop` said so.
    """
    waits_for("the sizes of the images to evaluate", limited=False)
    # By it images are computed at once or in strips, which differ by rounding.
    restorer.memory = least(restorer.memory)
    restorer.plan(sizes_of(pairs))
    together = least(restorer.together)  # All ask equally often.
    shard = Shard(pairs, jax.process_index(), jax.process_count())
    rows = np.zeros((len(shard), len(dataclasses.fields(Scores))))
    for start in range(0, math.ceil(len(pairs) / jax.process_count()), together):
        if stop():
            return None
        if start >= len(shard):
            break
        image = f"image {start + 1} of {len(shard)} of the evaluation"
        waits_for(image)
        some = _some(shard, start, together)
        buckets = {restorer.bucket(pair["rainy"].shape[:2]) for pair in some}
        programs = {(restorer.group(bucket, together), bucket) for bucket in buckets}
        waits_for(image, limited=programs <= restorer.programs.keys())  # Else it may be compiled.
        for index, (pair, restored, scores) in enumerate(
            _evaluated(restorer, some, protocol), start
        ):
            rows[index] = dataclasses.astuple(scores)
            seen(shard.global_index(index), pair, restored, scores)
    waits_for("the scores of the other processes", limited=False)
    return [Scores(*map(float, row)) for row in in_order(rows, len(pairs))]


def mean(scores: Sequence[Scores]) -> Scores:
    """The mean over images, as published results are averaged.

    Images below 11 pixels have no SSIM (NaN) and are left out of its mean.
    """
    columns = np.array([dataclasses.astuple(score) for score in scores]).T
    return Scores(*(_mean_of_defined(column) for column in columns))


def _mean_of_defined(values: np.ndarray) -> float:
    defined = values[~np.isnan(values)]
    return float(np.mean(defined)) if len(defined) else float("nan")
