"""PSNR and SSIM on luma, in the two protocols that published deraining results use.

One number an image; the score of a dataset is the mean over its images.

- `rain200_spa` (Rain200L, Rain200H, SPA-Data, Rain100L, Rain100H, Test100, Test1200, Test2800):
  luma is rounded half up to an integer; SSIM is of the image as it is.
- `did_ddn` (DID-Data, DDN-Data): luma is not rounded; SSIM is of the image reduced by an integer
  factor if its shorter side has 384 pixels or more.

Published results were seen to score up to 0.12 dB and 0.02 apart in the two, so a score is quoted
with its protocol.

The arithmetic is NumPy's in float64: a score does not depend on the accelerator, float32 is wrong
for nearly equal images, and nothing is compiled for each size of an image.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any, get_args

import numpy as np
from jaxtyping import Float64, UInt8, UInt32

from drsformer_jax.config import Protocol
from drsformer_jax.errors import InputError

_PEAK = 255
_LUMA_UNIT = 85_000  # the luma of an 8-bit color is a whole number of 1/85000 levels
_WINDOW = 11
_SIGMA = 1.5
_TILE = (32, 256)
"""Rows and columns that are computed at once, so that all arrays stay in the processor's cache."""
_PRODUCT = 32, 128
"""Columns of a matrix product along columns and along rows. A larger one would run in several
threads, which wait for one another wherever other work takes turns with them."""


def psnr(
    restored: UInt8[np.ndarray, "h w 3"], target: UInt8[np.ndarray, "h w 3"], protocol: Protocol
) -> float:
    """Peak signal-to-noise ratio of luma, for a peak of 255 levels.

    Args:
        restored: RGB image, uint8 (h, w, 3).
        target: What `restored` should be, of the same size.
        protocol: `rain200_spa` or `did_ddn`, see the module's description.

    Returns:
        Decibels; infinity where the two have equal luma everywhere.

    Raises:
        InputError: if the images are not uint8 (h, w, 3) of one size, or the protocol is unknown.
    """
    _check(restored, target, protocol)
    total = 0.0
    for tile in _tiles(restored.shape):
        # Whole numbers: the difference is exact, however close the two images are.
        lumas = (_luma(image[tile], protocol) for image in (restored, target))
        difference = np.subtract(*lumas, dtype=np.float64).ravel()
        total += difference @ difference
    error = total / _LUMA_UNIT**2 / math.prod(restored.shape[:2])
    return 10 * math.log10(_PEAK**2 / error) if error > 0 else math.inf


def ssim(
    restored: UInt8[np.ndarray, "h w 3"], target: UInt8[np.ndarray, "h w 3"], protocol: Protocol
) -> float:
    """Structural similarity of luma (Wang et al., "Image Quality Assessment", 2004).

    11x11 Gaussian window of sigma 1.5 where it lies inside the image, K = 0.01 and 0.03, L = 255.

    Args:
        restored: RGB image, uint8 (h, w, 3).
        target: What `restored` should be, of the same size.
        protocol: `rain200_spa` or `did_ddn`, see the module's description.

    Returns:
        A number of at most 1, which equal images have; NaN for an image with a side below 11
        pixels, where the window fits nowhere and SSIM is undefined.

    Raises:
        InputError: if the images are not uint8 (h, w, 3) of one size, or the protocol is unknown.
    """
    _check(restored, target, protocol)
    if min(restored.shape[:2]) < _WINDOW:
        return math.nan
    x, y = (_luma(image, protocol) / _LUMA_UNIT for image in (restored, target))
    if protocol == "did_ddn":
        x, y = _downsample(x), _downsample(y)
    positions = [side - _WINDOW + 1 for side in x.shape]
    tiles = _tiles(positions, _WINDOW - 1)
    # Exactly 1 for equal images.
    return 1 - sum(_dissimilarity(x[tile], y[tile]) for tile in tiles) / math.prod(positions)


def _check(restored: Any, target: Any, protocol: str) -> None:
    if protocol not in get_args(Protocol):
        raise InputError(
            f"protocol is {protocol!r}; expected one of {', '.join(get_args(Protocol))}"
        )
    for name, image in (("restored", restored), ("target", target)):
        found = None
        if not isinstance(image, np.ndarray):
            found = f"of type {type(image).__name__}"
        elif image.dtype != np.uint8 or image.shape[2:] != (3,) or image.size == 0:
            found = f"{image.dtype} of shape {image.shape}"
        if found:
            raise InputError(f"{name} is {found}; expected a numpy array, uint8 of shape (h, w, 3)")
    if restored.shape != target.shape:
        sizes = [f"{h}x{w} (h x w)" for h, w, _ in (restored.shape, target.shape)]
        raise InputError(f"restored is {sizes[0]}, target is {sizes[1]}; a pair must have one size")


def _tiles(shape: Sequence[int], overlap: int = 0) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of the tiles of an array, each with so many of the next tile's."""
    height, width = shape[:2]
    return (
        (slice(top, top + _TILE[0] + overlap), slice(left, left + _TILE[1] + overlap))
        for top in range(0, height, _TILE[0])
        for left in range(0, width, _TILE[1])
    )


def _dissimilarity(x: Float64[np.ndarray, "h w"], y: Float64[np.ndarray, "h w"]) -> float:
    """Sum of 1 - SSIM over the positions of the window."""
    # With s = x + y and d = x - y, and means m and variances v in the window,
    # 2 mx my = (ms^2 - md^2) / 2, mx^2 + my^2 = (ms^2 + md^2) / 2,
    # 2 cov(x, y) = (vs - vd) / 2, vx + vy = (vs + vd) / 2: four blurs instead of five. The halves
    # are in c1 and c2.
    height, width = x.shape
    planes = np.empty((height, 4, width))
    np.add(x, y, out=planes[:, 0])
    np.subtract(x, y, out=planes[:, 1])
    np.square(planes[:, :2], out=planes[:, 2:])
    planes = _blur(planes)
    means, variances = np.square(planes[:, :2]), planes[:, 2:]
    variances -= means
    c1, c2 = 2 * (0.01 * _PEAK) ** 2, 2 * (0.03 * _PEAK) ** 2
    likeness, bound = 1.0, 1.0
    for (of_sum, of_difference), c in ((means.swapaxes(0, 1), c1), (variances.swapaxes(0, 1), c2)):
        likeness = likeness * (of_sum - of_difference + c)
        bound = bound * (of_sum + of_difference + c)
    return float(np.sum((bound - likeness) / bound))


def _luma(image: UInt8[np.ndarray, "h w 3"], protocol: Protocol) -> UInt32[np.ndarray, "h w"]:
    """Luma Y of ITU-R BT.601, 16 to 235, in units of 1/85000: whole numbers.

    Y = 16 + (65.481 R + 128.553 G + 24.966 B) / 255 with R, G, B in 0..255, times 1000/3 above and
    below the line.
    """
    r, g, b = (image[..., channel].astype(np.uint32) for channel in range(3))
    luma = 16 * _LUMA_UNIT + 21827 * r + 42851 * g + 8322 * b
    if protocol == "rain200_spa":
        luma = (luma + _LUMA_UNIT // 2) // _LUMA_UNIT * _LUMA_UNIT
    return luma


def _downsample(luma: Float64[np.ndarray, "h w"]) -> Float64[np.ndarray, "h2 w2"]:
    """Means of f x f pixels at every f-th pixel, f = shorter side / 256 rounded half up.

    A window starts floor((f - 1)/2) before its pixel. Beyond the border the image is reflected,
    the border pixel included.
    """
    factor = max(1, (min(luma.shape) + 128) // 256)
    if factor == 1:
        return luma
    before = (factor - 1) // 2
    h, w = (math.ceil(side / factor) for side in luma.shape)
    padded = np.pad(luma, (before, factor), mode="symmetric")
    blocks = padded[: h * factor, : w * factor].reshape(h, factor, w, factor)
    return blocks.mean(axis=(1, 3))


def _blur(planes: Float64[np.ndarray, "h n w"]) -> Float64[np.ndarray, "h2 n w2"]:
    """Weighted means in the Gaussian window, at each of its positions inside the image."""
    # The window is separable, and a matrix product is NumPy's fastest sum of products.
    height, count, width = planes.shape
    planes = planes.reshape(height, count * width)
    height -= _WINDOW - 1
    rows = np.empty((height, count * width))
    windows = _windows(height)
    for start in range(0, count * width, _PRODUCT[1]):
        columns = slice(start, start + _PRODUCT[1])
        np.matmul(windows, planes[:, columns], out=rows[:, columns])
    rows = rows.reshape(height * count, width)
    width -= _WINDOW - 1
    blurred = np.empty((height * count, width))
    for start in range(0, width, _PRODUCT[0]):
        stop = min(start + _PRODUCT[0], width)
        covered = rows[:, start : stop + _WINDOW - 1]
        np.matmul(covered, _windows(stop - start).T, out=blurred[:, start:stop])
    return blurred.reshape(height, count, width)


@functools.cache
def _windows(count: int) -> Float64[np.ndarray, "n m"]:
    """The Gaussian window at so many neighboring positions, one a row."""
    offset = np.arange(_WINDOW) - _WINDOW // 2
    window = np.exp(-(offset**2) / (2 * _SIGMA**2))
    matrix = np.zeros((count, count + _WINDOW - 1))
    for position in range(count):
        matrix[position, position : position + _WINDOW] = window / window.sum()
    return matrix
