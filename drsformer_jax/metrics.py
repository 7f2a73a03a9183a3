"""PSNR and SSIM on luma, in the two protocols that published deraining results use.

One number an image; the score of a dataset is the mean over its images.

- `rain200_spa` (Rain200L, Rain200H, SPA-Data, Rain100L, Rain100H, Test100, Test1200, Test2800):
  luma is rounded half up to an integer; SSIM is of the image as it is.
- `did_ddn` (DID-Data, DDN-Data): luma is not rounded; SSIM is of the image reduced by an integer
  factor if its shorter side has 384 pixels or more.

The two differ, so a score is quoted with its protocol.

The arithmetic is in float64 on the CPU whatever the default device is: a score does not depend on
the accelerator, and float32 is wrong for nearly equal images. Images of all sizes share few
compiled programs, which compute an image in strips inside a larger array.
"""

from __future__ import annotations

import functools
import math
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float64, Int32, UInt8

from drsformer_jax.config import Protocol
from drsformer_jax.errors import InputError

_PEAK = 255
_LUMA_UNIT = 85_000  # the luma of an 8-bit color is a whole number of 1/85000 levels
_WINDOW = 11
_SIGMA = 1.5
_STRIP = 64
"""Rows of SSIM that are computed at once."""
_COLUMNS = 64
"""Arrays have a multiple of this many columns."""


def scores(
    restored: UInt8[np.ndarray, "h w 3"], target: UInt8[np.ndarray, "h w 3"], protocol: Protocol
) -> tuple[float, float]:
    """`psnr` and `ssim` of an image in one pass; same arguments and errors."""
    return _scores(restored, target, protocol)


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
    return _scores(restored, target, protocol)[0]


def ssim(
    restored: UInt8[np.ndarray, "h w 3"], target: UInt8[np.ndarray, "h w 3"], protocol: Protocol
) -> float:
    """Structural similarity of luma (Wang et al., "Image Quality Assessment", 2004).

    11x11 Gaussian window of sigma 1.5 where it is inside the image, K = 0.01 and 0.03, L = 255.

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
    return _scores(restored, target, protocol)[1]


def _scores(restored: Any, target: Any, protocol: Any) -> tuple[float, float]:
    _check(restored, target, protocol)
    height, width = restored.shape[:2]
    factor = max(1, (min(height, width) + 128) // 256) if protocol == "did_ddn" else 1
    x, y = _padded(restored, factor), _padded(target, factor)
    square_error, dissimilarity = _run_on_cpu(x, y, (height, width), protocol, factor)
    square_error /= _LUMA_UNIT**2 * height * width
    psnr = 10 * math.log10(_PEAK**2 / square_error) if square_error > 0 else math.inf
    if min(height, width) < _WINDOW:
        return psnr, math.nan
    positions = math.prod(_positions((height, width), factor))
    return psnr, 1 - dissimilarity / positions  # exactly 1 for equal images


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


def _padded(image: UInt8[np.ndarray, "h w 3"], factor: int) -> UInt8[np.ndarray, "h2 w2 3"]:
    """An image inside a zero array of one of few sizes: whole strips, and 10 rows for the window.

    For a factor above 1 the image begins floor((factor - 1)/2) pixels from the corner, and is
    reflected around its border, the border pixel included.
    """
    if factor > 1:
        border = ((factor - 1) // 2, factor)
        image = np.pad(image, (border, border, (0, 0)), mode="symmetric")
    height, width = (math.ceil(side / factor) for side in image.shape[:2])
    strips = 2 ** (math.ceil(height / _STRIP) - 1).bit_length()
    rows, columns = strips * _STRIP + _WINDOW - 1, math.ceil(width / _COLUMNS) * _COLUMNS
    array = np.zeros((rows * factor, columns * factor, 3), np.uint8)
    array[: image.shape[0], : image.shape[1]] = image
    return array


def _positions(size: Any, factor: int) -> tuple[Any, Any]:
    """Positions of the window along the sides of an image that is downsampled by a factor."""
    height, width = ((side + factor - 1) // factor - _WINDOW + 1 for side in size)
    return height, width


def cpu_device() -> jax.Device:
    """The device that metrics are computed on.

    Raises:
        InputError: if JAX has none.
    """
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        found = jax.default_backend()
        raise InputError(
            f"JAX has no backend but {found}; expected JAX_PLATFORMS={found},cpu for the metrics"
        ) from None


def _run_on_cpu(
    restored: np.ndarray,
    target: np.ndarray,
    size: tuple[int, int],
    protocol: Protocol,
    factor: int,
) -> list[float]:
    cpu = cpu_device()
    # A mesh of its own, because a caller's mesh would claim the program for other devices.
    mesh = jax.sharding.Mesh([cpu], ("cpu",))
    with jax.enable_x64(True), jax.set_mesh(mesh):
        arguments = jax.device_put((restored, target, np.array(size, np.int32)), cpu)
        found = jax.device_get(_sums(*arguments, protocol=protocol, factor=factor))
        return [float(each) for each in found]


@functools.partial(jax.jit, static_argnames=("protocol", "factor"))
def _sums(
    restored: UInt8[Array, "h w 3"],
    target: UInt8[Array, "h w 3"],
    size: Int32[Array, " 2"],
    protocol: Protocol,
    factor: int,
) -> tuple[Float64[Array, ""], Float64[Array, ""]]:
    """Sums of the squared differences of luma, in units of 1/85000, and of 1 - SSIM.

    Args:
        restored: `_padded` image.
        target: likewise.
        size: (height, width) of the image itself.
        protocol: `rain200_spa` or `did_ddn`.
        factor: by which the images are downsampled for SSIM.
    """
    before = (factor - 1) // 2
    height, width = _positions(size, factor)

    def strip(index: Array, sums: tuple[Array, Array]) -> tuple[Array, Array]:
        start, count = index * _STRIP * factor, (_STRIP + _WINDOW - 1) * factor
        x, y = (
            _luma(jax.lax.dynamic_slice_in_dim(image, start, count), protocol)
            for image in (restored, target)
        )
        # Whole numbers: the difference is exact, however close the two images are.
        difference = (x - y)[: _STRIP * factor]
        valid_mask = _within(difference.shape, start - before, size[0], -before, size[1])
        squares = jnp.sum(jnp.square(difference), where=valid_mask)
        x, y = (_downsample(luma / _LUMA_UNIT, factor) for luma in (x, y))
        losses = _dissimilarity(x, y)
        valid_mask = _within(losses.shape, index * _STRIP, height, 0, width)
        return sums[0] + squares, sums[1] + jnp.sum(losses, where=valid_mask)

    strips = (size[0] + before + _STRIP * factor - 1) // (_STRIP * factor)
    return jax.lax.fori_loop(0, strips, strip, (jnp.float64(0), jnp.float64(0)))


def _within(
    shape: tuple[int, ...], top: Any, height: Any, left: Any, width: Any
) -> Bool[Array, "h w"]:
    """Where rows counted from `top` and columns from `left` are inside an image."""
    rows, columns = (jnp.arange(length, dtype=jnp.int32) for length in shape)
    rows, columns = top + rows[:, None], left + columns
    return (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)


def _dissimilarity(x: Float64[Array, "h w"], y: Float64[Array, "h w"]) -> Float64[Array, "h2 w2"]:
    """1 - SSIM at each position of the window."""
    # With s = x + y and d = x - y, and means m and variances v in the window,
    # 2 mx my = (ms^2 - md^2) / 2, mx^2 + my^2 = (ms^2 + md^2) / 2,
    # 2 cov(x, y) = (vs - vd) / 2, vx + vy = (vs + vd) / 2: four blurs instead of five, and equal
    # images give exactly 0. The halves are in c1 and c2.
    s, d = x + y, x - y
    ms, md, ss, dd = _blur(jnp.stack([s, d, s * s, d * d]))
    ms2, md2 = ms * ms, md * md
    vs, vd = ss - ms2, dd - md2
    c1, c2 = 2 * (0.01 * _PEAK) ** 2, 2 * (0.03 * _PEAK) ** 2
    return 1 - (ms2 - md2 + c1) * (vs - vd + c2) / ((ms2 + md2 + c1) * (vs + vd + c2))


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


def _downsample(luma: Float64[Array, "h w"], factor: int) -> Float64[Array, "h2 w2"]:
    """Means of factor x factor pixels.

    In `did_ddn` the factor is the shorter side / 256, rounded half up; `_padded` has moved the
    image so that each mean belongs to every factor-th pixel.
    """
    # Sums of slices, since XLA takes many times as long for a mean over two axes on a CPU.
    groups = luma.reshape(-1, factor, luma.shape[1])
    rows = sum(groups[:, offset] for offset in range(1, factor)) + groups[:, 0]
    sums = sum(rows[:, offset::factor] for offset in range(1, factor)) + rows[:, ::factor]
    return sums / factor**2


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
