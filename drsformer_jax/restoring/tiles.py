"""Overlapping tiles whose blend shows no seams."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from drsformer_jax.config import SIZE_MULTIPLE
from drsformer_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Tiling:
    """Tiles of at most `side` pixels a side of which neighbors share at least `overlap`.

    Raises:
        InputError: if a value is impossible.
    """

    side: int
    overlap: int

    def __post_init__(self) -> None:
        if self.side < 2 * SIZE_MULTIPLE or self.side % SIZE_MULTIPLE:
            raise InputError(f"the tile is {self.side}; expected a multiple of 8, at least 16")
        if not 0 <= self.overlap <= self.side // 2:
            raise InputError(
                f"the overlap is {self.overlap}; expected 0 to half of the tile, {self.side // 2}"
            )

    def apply(self, restore: Callable[[np.ndarray], np.ndarray], image: np.ndarray) -> np.ndarray:
        """Restores tile by tile and blends: each tile fades out linearly where the next fades in.

        Args:
            restore: a tile of the image to float32 of its shape; always called with one shape.
            image: (h, w, 3), height and width multiples of 8.

        Returns:
            float32 (h, w, 3).
        """
        height, width, _ = image.shape
        rows, columns = (self._intervals(side) for side in (height, width))
        blended = np.zeros(image.shape, np.float32)
        for top, bottom, vertical in rows:
            for left, right, horizontal in columns:
                weight = (vertical[:, None] * horizontal)[..., None]
                tile = restore(image[top:bottom, left:right])
                blended[top:bottom, left:right] += weight * tile
        return blended

    def tiles(self, size: tuple[int, int]) -> tuple[tuple[int, int], int]:
        """((height, width) of each tile, number of tiles) of an image of this size."""
        rows, columns = (self._intervals(length) for length in size)
        height, width = (each[0][1] - each[0][0] for each in (rows, columns))
        return (height, width), len(rows) * len(columns)

    def _intervals(self, length: int) -> list[tuple[int, int, np.ndarray]]:
        """(start, end, weights) of the tiles along one side; the weights add up to 1."""
        # Sides and starts are multiples of 8, so that the network's levels see the pixels where
        # they would see them in the whole image.
        cells, most = length // SIZE_MULTIPLE, self.side // SIZE_MULTIPLE
        shared_cells = math.ceil(self.overlap / SIZE_MULTIPLE)
        steps = math.ceil(max(cells - most, 0) / (most - shared_cells))
        # As many tiles as the side asks for, and no larger than so many need to be.
        fitted = math.ceil((cells + steps * shared_cells) / (steps + 1))
        side = SIZE_MULTIPLE * fitted
        starts = [SIZE_MULTIPLE * ((cells - fitted) * i // max(steps, 1)) for i in range(steps + 1)]
        weights = np.zeros((len(starts), length), np.float32)
        for i, start in enumerate(starts):
            share = np.zeros(length, np.float32)
            share[start:] = 1
            if i:
                shared = starts[i - 1] + side - start
                share[start : start + shared] = (np.arange(shared) + 0.5) / shared
            weights[:i] *= 1 - share
            weights[i] = share
        return [
            (start, start + side, row[start : start + side])
            for start, row in zip(starts, weights, strict=True)
        ]
