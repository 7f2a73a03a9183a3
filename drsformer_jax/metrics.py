"""PSNR and SSIM on luma, in the two protocols that published deraining results use.

One number an image; the score of a dataset is the mean over its images.

- `rain200_spa` (Rain200L, Rain200H, SPA-Data, Rain100L, Rain100H, Test100, Test1200, Test2800):
  luma is rounded half up to an integer; SSIM is of the image as it is.
- `did_ddn` (DID-Data, DDN-Data): luma is not rounded; SSIM is of the image reduced by an integer
  factor if its shorter side has 384 pixels or more.

Published results were seen to score up to 0.12 dB and 0.02 apart in the two, so a score is quoted
with its protocol.

The arithmetic is in float64 on the CPU whatever the default device is: a score does not depend on
the accelerator, and float32 is wrong for nearly equal images.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float64, UInt8

from drsformer_jax.config import Protocol
from drsformer_jax.errors import InputError

_PEAK = 255
_LUMA_UNIT = 85_000  # the luma of an 8-bit color is a whole number of 1/85000 levels
_WINDOW = 11
_SIGMA = 1.5


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
    error = _run_on_cpu(_mean_square_error, restored, target, protocol)
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
    return _run_on_cpu(_mean_similarity, restored, target, protocol)


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


def _run_on_cpu(
    program: Callable[..., Array], restored: np.ndarray, target: np.ndarray, protocol: Protocol
) -> float:
    try:
        cpu = jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        found = jax.default_backend()
        raise InputError(
            f"JAX has no backend but {found}; expected JAX_PLATFORMS={found},cpu for the metrics"
        ) from None
    # A mesh of its own, because a caller's mesh would claim the program for other devices.
    mesh = jax.sharding.Mesh([cpu], ("cpu",))
    with jax.enable_x64(True), jax.set_mesh(mesh):
        pair = jax.device_put((restored, target), cpu)
        return float(jax.device_get(program(*pair, protocol=protocol)))


@functools.partial(jax.jit, static_argnames="protocol")
def _mean_square_error(
    restored: UInt8[Array, "h w 3"], target: UInt8[Array, "h w 3"], protocol: Protocol
) -> Float64[Array, ""]:
    # Whole numbers: the difference is exact, however close the two images are.
    difference = _luma(restored, protocol) - _luma(target, protocol)
    return jnp.mean(jnp.square(difference / _LUMA_UNIT))


@functools.partial(jax.jit, static_argnames="protocol")
def _mean_similarity(
    restored: UInt8[Array, "h w 3"], target: UInt8[Array, "h w 3"], protocol: Protocol
) -> Float64[Array, ""]:
    x, y = (_luma(image, protocol) / _LUMA_UNIT for image in (restored, target))
    if protocol == "did_ddn":
        x, y = _downsample(x), _downsample(y)
    # With s = x + y and d = x - y, and means m and variances v in the window,
    # 2 mx my = (ms^2 - md^2) / 2, mx^2 + my^2 = (ms^2 + md^2) / 2,
    # 2 cov(x, y) = (vs - vd) / 2, vx + vy = (vs + vd) / 2: four blurs instead of five, and equal
    # images give exactly 1. The halves are in c1 and c2.
    s, d = x + y, x - y
    ms, md, ss, dd = _blur(jnp.stack([s, d, s * s, d * d]))
    ms2, md2 = ms * ms, md * md
    vs, vd = ss - ms2, dd - md2
    c1, c2 = 2 * (0.01 * _PEAK) ** 2, 2 * (0.03 * _PEAK) ** 2
    similarity = (ms2 - md2 + c1) * (vs - vd + c2) / ((ms2 + md2 + c1) * (vs + vd + c2))
    return 1 - jnp.mean(1 - similarity)  # exactly 1 for equal images, where a plain mean rounds


def _luma(image: UInt8[Array, "h w 3"], protocol: Protocol) -> Float64[Array, "h w"]:
    """Luma Y of ITU-R BT.601, 16 to 235, in units of 1/85000: whole numbers.

    Y = 16 + (65.481 R + 128.553 G + 24.966 B) / 255 with R, G, B in 0..255, times 1000/3 above and
    below the line.
    """
    # Unsigned, because XLA divides signed integers at half the speed on a CPU.
    r, g, b = (image[..., channel].astype(jnp.uint32) for channel in range(3))
    luma = 16 * _LUMA_UNIT + 21827 * r + 42851 * g + 8322 * b
    if protocol == "rain200_spa":
        luma = (luma + _LUMA_UNIT // 2) // _LUMA_UNIT * _LUMA_UNIT
    return luma.astype(jnp.float64)


def _downsample(luma: Float64[Array, "h w"]) -> Float64[Array, "h2 w2"]:
    """Means of f x f pixels at every f-th pixel, f = shorter side / 256 rounded half up.

    A window starts floor((f - 1)/2) before its pixel. Beyond the border the image is reflected,
    the border pixel included.
    """
    factor = max(1, (min(luma.shape) + 128) // 256)
    before = (factor - 1) // 2
    h, w = (math.ceil(side / factor) for side in luma.shape)
    padded = jnp.pad(luma, (before, factor), mode="symmetric")
    blocks = padded[: h * factor, : w * factor].reshape(h, factor, w, factor)
    return blocks.mean(axis=(1, 3))


def _blur(planes: Float64[Array, "n h w"]) -> Float64[Array, "n h2 w2"]:
    """Weighted means in the Gaussian window, for each of its places inside the image."""
    offset = np.arange(_WINDOW) - _WINDOW // 2
    window = np.exp(-(offset**2) / (2 * _SIGMA**2))
    window /= window.sum()
    layout = ("NHWC", "HWIO", "NHWC")
    planes = planes[..., None]
    for shape in ((_WINDOW, 1, 1, 1), (1, _WINDOW, 1, 1)):  # the window is separable
        planes = jax.lax.conv_general_dilated(
            planes, jnp.reshape(window, shape), (1, 1), "VALID", dimension_numbers=layout
        )
    return planes[..., 0]
