"""What a finished run leaves to look at: restored images, a sheet of some, and the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from drsformer_jax.config import TrainConfig
from drsformer_jax.data.pairs import Pair, Pairs
from drsformer_jax.data.sheets import contact_sheet
from drsformer_jax.images.pixels import png_name, write_image
from drsformer_jax.report.page import Example, write_report
from drsformer_jax.restoring import Restorer
from drsformer_jax.scoring.evaluation import Scores
from drsformer_jax.training.reporting import METRICS_FILE, read_metrics

_IMAGES = 8
"""First validation images, which are written as files."""
_ON_SHEET = 4
_EXTREMES = 3
"""Images of the largest and of the smallest gain that the report shows, each."""
_PARTS = {"input": "rainy", "restored": "restored", "target": "clean"}
"""Folders of `validation/`, and what is in them."""


class Kept:
    """Validation images that a report may show, kept while all of them are scored.

    These are the first ones and those of the largest and smallest gain so far, so that a large
    validation set needs no more memory than a small one.
    """

    def __init__(self) -> None:
        self.names: dict[int, str] = {}
        """Of all pairs that were scored, by index."""
        self.examples: dict[int, Example] = {}
        """The images that are kept, likewise."""

    def add(self, index: int, pair: Pair, restored: np.ndarray, scores: Scores) -> None:
        """Keeps a pair and its restored image, uint8 (h, w, 3), if it may be shown."""
        self.names[index] = pair["name"]
        self.examples[index] = Example(pair["name"], scores, pair["rainy"], restored, pair["clean"])
        gains = {other: example.scores.gain for other, example in self.examples.items()}
        for other in gains.keys() - {*range(_IMAGES), *_extremes(gains)}:
            del self.examples[other]


Scored = tuple[list[Scores], Kept]
"""Scores of all validation pairs, and the images that a report may show."""


def sheet(examples: Sequence[Example]) -> np.ndarray:
    """Rainy, restored and clean images side by side, one row each: uint8 (h, w, 3)."""
    rows = [[getattr(each, kind) for kind in _PARTS.values()] for each in examples]
    return contact_sheet(rows, list(_PARTS.values()))


def write_results(
    folder: Path,
    config: TrainConfig,
    restorer: Restorer,
    pairs: Pairs,
    scores: Sequence[Scores],
    kept: Kept,
    *,
    title: str,
) -> None:
    """Writes all that a run ends with.

    The first images go to `validation/`, fewer of them to `comparison.png`; `report.html` has the
    curves, all scores, and the images of the largest and the smallest gain.

    Args:
        folder: the run's folder, which holds `metrics.jsonl`.
        config: configuration of the run.
        restorer: the network that is shown. It restores what `kept` lacks: images that another
            process of the run has scored.
        pairs: the validation pairs.
        scores: scores of all of them, in order.
        kept: what this process kept of the pairs that it scored.
        title: of the report.

    Raises:
        OSError: if the file system fails.
    """
    first = range(min(len(pairs), _IMAGES))
    extremes = _extremes({index: each.gain for index, each in enumerate(scores)})
    for index in {*first, *extremes} - kept.examples.keys():
        pair = pairs[index]
        kept.add(index, pair, restorer(pair["rainy"]), scores[index])
    examples = [kept.examples[index] for index in first]
    for example in examples:
        name = png_name(example.name)
        for part, kind in _PARTS.items():
            write_image(folder / "validation" / part / name, getattr(example, kind))
    write_image(folder / "comparison.png", sheet(examples[:_ON_SHEET]))
    names = [kept.names.get(index) or pairs[index]["name"] for index in range(len(pairs))]
    write_report(
        folder / "report.html",
        title=title,
        config=config,
        metrics=read_metrics(folder / METRICS_FILE),
        scores=list(zip(names, scores, strict=True)),
        examples=[kept.examples[index] for index in extremes],
    )


def _extremes(gains: Mapping[int, float]) -> list[int]:
    """Indices of the largest and smallest gains, from the largest to the smallest."""
    order = sorted(gains, key=lambda index: (-gains[index], index))
    return order if len(order) <= 2 * _EXTREMES else order[:_EXTREMES] + order[-_EXTREMES:]
