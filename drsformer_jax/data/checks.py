"""Checks of a pair: one size, two different images, not swapped."""

from __future__ import annotations

import numpy as np

_LEAST_LIGHT = 0.5
"""Sum of the change as a share of its absolute sum; 0.88 or more in real pairs, 0.34 in one of
456 synthetic ones."""
_LEAST_REST = 1.0
"""Root mean square of the residual, of 255: rounding alone leaves 0.3 to 0.5."""
_LEAST_SKEWNESS = 0.05
"""Of the residual; noise alone had up to 0.02 in measurements."""


def problems(rainy: np.ndarray, clean: np.ndarray) -> list[str]:
    """Finds problems of a pair in its pixels.

    Args:
        rainy: uint8 of shape (h, w, 3), RGB, of any size.
        clean: the same, of the image without rain.

    Returns:
        A line for each problem: the sizes differ, the images are identical, or they seem swapped
        (see `seems_swapped`).
    """
    if rainy.shape != clean.shape:
        (h, w), (clean_h, clean_w) = rainy.shape[:2], clean.shape[:2]
        sizes = f"the clean image is {clean_w}x{clean_h}, the rainy one {w}x{h}"
        return [f"{sizes}; a pair must have one size"]
    if np.array_equal(rainy, clean):
        return ["the rainy and the clean image are identical; expected rain on one"]
    if seems_swapped(rainy, clean):
        return [
            "the rainy and the clean image seem swapped: the clean one is brighter and has the "
            "streaks; expected rain, which adds light, on the rainy one"
        ]
    return []


def seems_swapped(rainy: np.ndarray, clean: np.ndarray) -> bool:
    """Guesses whether the clean image is the one with rain.

    A streak reflects light from the whole sky, so it is thin and brighter than nearly everything
    behind it. Nearly all pixels that rain changes become brighter. Another exposure or haze also
    changes pixels, but linearly: rainy = a clean + b. This linear part is subtracted. The streaks
    are the tail of the residual, and its skewness shows which image has them. A pair counts as
    swapped if the sign of the change and the skewness agree; nearly equal images never do. Only
    green is used, because rain has no color.

    Measured on whole images: of 56 pairs of Rain100L, 6 of Rain200H and 3 of Rain200L, and of 240
    of `synthetic.add_rain` on scikit-image's 6 photographs, none counted as swapped. After swapping
    them all did but one of Rain200H, whose streaks cover most of the image. Of swapped crops of
    128x128 1 % were missed, of 32x32 4 %; no correct crop counted as swapped. A rainy image of 0.8
    times the exposure hides a swap. An image without rain that is blurred or compressed and also
    darker can count as swapped.

    Args:
        rainy: uint8 of shape (h, w, 3), RGB.
        clean: uint8 of the same shape.
    """
    base = rainy[..., 1].astype(np.float32)
    change = clean[..., 1] - base
    if change.sum() <= _LEAST_LIGHT * np.abs(change).sum():
        return False
    rest = _without_line(change, base)
    squares = rest * rest
    spread = float(np.sqrt(squares.mean()))
    return spread > _LEAST_REST and float((squares * rest).mean()) > _LEAST_SKEWNESS * spread**3


def _without_line(values: np.ndarray, base: np.ndarray) -> np.ndarray:
    """Subtracts the least-squares fit a base + b from the values."""
    base = base - base.mean()
    values = values - values.mean()
    spread = float((base * base).sum())
    if spread == 0:
        return values
    return values - float((base * values).sum()) / spread * base
