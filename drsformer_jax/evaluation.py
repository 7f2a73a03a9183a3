"""Scores of restored pictures against clean ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from drsformer_jax import metrics
from drsformer_jax.config import Protocol
from drsformer_jax.data.pipeline import Pairs
from drsformer_jax.data.synthetic import Pair


@dataclass(frozen=True)
class Scores:
    """PSNR in dB and SSIM of a rainy and of the restored picture, both against the clean one."""

    rainy_psnr: float
    rainy_ssim: float
    restored_psnr: float
    restored_ssim: float

    @property
    def gain(self) -> float:
        """What restoring adds to the PSNR, in dB; 0 where both are infinite."""
        if self.restored_psnr == self.rainy_psnr:
            return 0.0
        return self.restored_psnr - self.rainy_psnr


def evaluate(
    restore: Callable[[np.ndarray], np.ndarray], pairs: Pairs, protocol: Protocol
) -> Iterator[tuple[Pair, np.ndarray, Scores]]:
    """Restores and scores pairs one after another.

    Args:
        restore: uint8 (h, w, 3) to the same.
        pairs: what to score on.
        protocol: how; see `drsformer_jax.metrics`.

    Yields:
        (pair, restored picture, its scores).
    """
    for index in range(len(pairs)):
        pair = pairs[index]
        restored = restore(pair["rainy"])
        scores = [
            score(picture, pair["clean"], protocol=protocol)
            for picture in (pair["rainy"], restored)
            for score in (metrics.psnr, metrics.ssim)
        ]
        yield pair, restored, Scores(*scores)


def mean(scores: Sequence[Scores]) -> Scores:
    """The mean over pictures, as published results are averaged.

    Pictures below 11 pixels have no SSIM (NaN) and are left out of its mean.
    """
    columns = np.array([dataclasses.astuple(score) for score in scores]).T
    return Scores(*(_mean_of_defined(column) for column in columns))


def _mean_of_defined(values: np.ndarray) -> float:
    defined = values[~np.isnan(values)]
    return float(np.mean(defined)) if len(defined) else float("nan")
