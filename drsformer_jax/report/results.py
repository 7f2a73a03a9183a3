"""What a finished run leaves to look at: restored images, a sheet of some, and the report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from drsformer_jax.config import TrainConfig
from drsformer_jax.data.pairs import Pair, Pairs
from drsformer_jax.data.sheets import contact_sheet
from drsformer_jax.images.pixels import write_image
from drsformer_jax.report.page import Shown, write_report
from drsformer_jax.restoring import Restorer
from drsformer_jax.scoring.evaluation import Scores
from drsformer_jax.training.reporting import read_metrics

_IMAGES = 8
_ON_SHEET = 4
_EXTREMES = 3
_TITLES = ("rainy", "restored", "clean")


def sheet(restorer: Restorer, pairs: Sequence[Pair]) -> np.ndarray:
    """Rainy, restored and clean images side by side, a row a pair: uint8 (h, w, 3)."""
    return contact_sheet([_row(restorer, pair) for pair in pairs], _TITLES)


def write_results(
    folder: Path,
    config: TrainConfig,
    step: int,
    restorer: Restorer,
    pairs: Pairs,
    scores: Sequence[Scores],
) -> None:
    """Restores some validation images again and writes all that a run ends with.

    The first images go to `validation/`, fewer of them to `comparison.png`; `report.html` has the
    curves, all scores, and the images that gained most and least.

    Args:
        folder: the run's folder, which holds `metrics.jsonl`.
        config: of the run.
        step: of the checkpoint that restores.
        restorer: that checkpoint.
        pairs: the validation pairs.
        scores: of all of them, in order.

    Raises:
        OSError: if the file system fails.
    """
    first = [pairs[index] for index in range(min(len(pairs), _IMAGES))]
    for pair in first:
        name = Path(pair["name"]).with_suffix(".png")
        for part, image in zip(("input", "restored", "target"), _row(restorer, pair), strict=True):
            write_image(folder / "validation" / part / name, image)
    write_image(folder / "comparison.png", sheet(restorer, first[:_ON_SHEET]))
    shown = [(pairs[index], scores[index]) for index in _extremes(scores)]
    write_report(
        folder / "report.html",
        title=f"{folder.name}, step {step}",
        config=config,
        metrics=read_metrics(folder / "metrics.jsonl"),
        scores=[(pairs[index]["name"], score) for index, score in enumerate(scores)],
        shown=[Shown(pair["name"], score, *_row(restorer, pair)) for pair, score in shown],
    )


def _row(restorer: Restorer, pair: Pair) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return pair["rainy"], restorer(pair["rainy"]), pair["clean"]


def _extremes(scores: Sequence[Scores]) -> list[int]:
    """Which images gained most and least, from most to least."""
    order = sorted(range(len(scores)), key=lambda index: -scores[index].gain)
    return order if len(order) <= 2 * _EXTREMES else order[:_EXTREMES] + order[-_EXTREMES:]
