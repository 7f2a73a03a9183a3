"""What scikit-image removes rain with: classical denoising, each filter with a few settings."""

from __future__ import annotations

import functools
import importlib.util
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from skimage import filters, restoration

from drsformer_jax.config import Protocol
from drsformer_jax.data.pairs import Pair
from drsformer_jax.metrics import psnr

Restore = Callable[[np.ndarray], np.ndarray]
"""Rainy image in, the image without rain out, both uint8 (h, w, 3)."""


class Filter(NamedTuple):
    """A filter and the settings to choose among."""

    apply: Callable[..., np.ndarray]
    """Takes an image, uint8 (h, w, 3), and a setting by keywords; returns the same shape."""
    settings: Sequence[Mapping[str, Any]]


def median(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Median of each channel in a window of `size`, (height, width) in pixels."""
    return filters.median(image, np.ones((*size, 1), bool))


def bilateral(image: np.ndarray, sigma_color: float, sigma_spatial: float) -> np.ndarray:
    """Mean of near pixels of like color; sigmas are of light, 1 being white, and in pixels."""
    # By default the borders are blurred with black.
    return _to_8_bits(
        restoration.denoise_bilateral(
            _light(image),
            sigma_color=sigma_color,
            sigma_spatial=sigma_spatial,
            mode="edge",
            channel_axis=-1,
        )
    )


def non_local_means(image: np.ndarray, h: float) -> np.ndarray:
    """Mean of pixels whose 5x5 px surroundings are alike; `h` is the decay, 1 being white."""
    return _to_8_bits(
        restoration.denoise_nl_means(
            _light(image), patch_size=5, patch_distance=6, h=h, fast_mode=True, channel_axis=-1
        )
    )


def total_variation(image: np.ndarray, weight: float) -> np.ndarray:
    """Least total variation near the image (Chambolle, 2004); a greater weight smooths more."""
    return _to_8_bits(
        restoration.denoise_tv_chambolle(_light(image), weight=weight, channel_axis=-1)
    )


def wavelet(image: np.ndarray, method: str, sigma: float) -> np.ndarray:
    """Soft thresholds on wavelets of luma and chroma; `sigma` is the noise's, 1 being white."""
    return _to_8_bits(
        restoration.denoise_wavelet(
            _light(image),
            sigma=sigma,
            method=method,
            convert2ycbcr=True,
            rescale_sigma=True,
            channel_axis=-1,
        )
    )


FILTERS = {
    # Rain streaks are steep, so windows that are one row high are among the sizes.
    "median": Filter(
        median,
        [{"size": size} for size in ((1, 3), (1, 5), (1, 7), (1, 9), (1, 13), (3, 3), (5, 5))],
    ),
    "bilateral": Filter(
        bilateral,
        [
            {"sigma_color": color, "sigma_spatial": spatial}
            for color in (0.01, 0.02, 0.05)
            for spatial in (1, 3)
        ],
    ),
    "non-local means": Filter(non_local_means, [{"h": h} for h in (0.005, 0.01, 0.02, 0.04, 0.08)]),
    "TV": Filter(
        total_variation, [{"weight": weight} for weight in (0.005, 0.01, 0.02, 0.05, 0.1)]
    ),
}
"""Names and grids."""
# scikit-image does without PyWavelets.
if importlib.util.find_spec("pywt") is not None:
    FILTERS["wavelet"] = Filter(
        wavelet,
        [
            {"method": method, "sigma": sigma}
            for method in ("BayesShrink", "VisuShrink")
            for sigma in (0.005, 0.01, 0.02, 0.05, 0.1)
        ],
    )


def best_setting(
    found: Filter, scenes: Sequence[Pair], protocol: Protocol
) -> tuple[Mapping[str, Any], Restore]:
    """Chooses a filter's setting by the mean PSNR over scenes.

    Args:
        found: the filter.
        scenes: at least one pair.
        protocol: of the PSNR.

    Returns:
        (the setting, the filter with it).
    """

    def score(setting: Mapping[str, Any]) -> float:
        return statistics.fmean(
            psnr(found.apply(scene["rainy"], **setting), scene["clean"], protocol)
            for scene in scenes
        )

    setting = max(found.settings, key=score)
    return setting, functools.partial(found.apply, **setting)


def _light(image: np.ndarray) -> np.ndarray:
    """Float32 in [0, 1]; scikit-image itself would compute in float64, at half the speed."""
    return image / np.float32(255)


def _to_8_bits(light: np.ndarray) -> np.ndarray:
    return np.rint(np.clip(light, 0, 1) * 255).astype(np.uint8)
