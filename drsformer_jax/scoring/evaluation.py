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
from drsformer_jax.training.processes import in_order, least


@dataclass(frozen=True)
class Scores:
    """PSNR in dB and SSIM of a rainy and of the restored image, both against the clean one."""

    rainy_psnr: float
    """NaN, like the SSIM, where there is no rainy image."""
    rainy_ssim: float
    restored_psnr: float
    restored_ssim: float

    @property
    def gain(self) -> float:
        """What restoring adds to the PSNR, in dB; 0 where both are infinite."""
        if self.restored_psnr == self.rainy_psnr:
            return 0.0
        return self.restored_psnr - self.rainy_psnr


def score(
    rainy: np.ndarray | None, restored: np.ndarray, clean: np.ndarray, protocol: Protocol
) -> Scores:
    """Scores one image.

    Args:
        rainy: uint8 (h, w, 3); None where it is not at hand.
        restored: what a program made of it.
        clean: what it should have made.
        protocol: how; see `drsformer_jax.metrics`.

    Raises:
        InputError: if the images are not uint8 (h, w, 3) of one size.
    """
    return Scores(
        *(
            math.nan if image is None else metric(image, clean, protocol=protocol)
            for image in (rainy, restored)
            for metric in (metrics.psnr, metrics.ssim)
        )
    )


def evaluate(
    restorer: Restorer, pairs: Pairs, protocol: Protocol
) -> Iterator[tuple[Pair, np.ndarray, Scores]]:
    """Restores and scores pairs one after another.

    Args:
        restorer: what restores; its buckets are chosen for these pairs.
        pairs: what to score on.
        protocol: how; see `drsformer_jax.metrics`.

    Yields:
        (pair, restored image, its scores).
    """
    restorer.plan(sizes_of(pairs))
    for index in range(len(pairs)):
        pair = pairs[index]
        restored = restorer(pair["rainy"])
        yield pair, restored, score(pair["rainy"], restored, pair["clean"], protocol)


def shared_scores(
    restorer: Restorer,
    pairs: Pairs,
    protocol: Protocol,
    stop: Callable[[], bool] = lambda: False,
) -> list[Scores] | None:
    """Scores pairs that all processes share; the result does not depend on how many they are.

    Args:
        restorer: what restores, the same in each process.
        pairs: what to score on, likewise.
        protocol: how; see `drsformer_jax.metrics`.
        stop: asked before each pair whether to give up; of one process alone.

    Returns:
        The scores of all pairs in order; None where that was given up.
    """
    # By it images are computed at once or in strips, which differ by rounding.
    restorer.memory = least(restorer.memory)
    restorer.plan(sizes_of(pairs))
    share = Shard(pairs, jax.process_index(), jax.process_count())
    rows = np.zeros((len(share), len(dataclasses.fields(Scores))))
    for index in range(len(share)):
        if stop():
            return None
        pair = share[index]
        scores = score(pair["rainy"], restorer(pair["rainy"]), pair["clean"], protocol)
        rows[index] = dataclasses.astuple(scores)
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
