"""Statistics of the rain in pairs, beside those of the rain that we draw.

python benchmarks/rain_statistics.py --data DIR DATASET:train [--photographs DIR] [--json rain.json]

A row for each source and for each kind of synthetic rain: medians over the images, and the range of
some. JSON holds the least and the greatest value of every figure.

PSNR is of the three channels, not of luma as published scores are: 25.5 dB (18.6 to 33.3) for 56
pairs of Rain100L, whose luma has 25.5 dB (18.9 to 33.8), and 14.0 dB (9.6 to 25.6) for 6 pairs of
Rain200H.

Streaks are measured by the autocorrelation of what the rain added, less its mean nearby, so that
neither a veil nor a bright sky that hides the rain counts as a wide streak. Their direction is the
one along which it stays highest over the first pixels. Noise of a camera correlates with itself
at a lag of 0 alone, so the maximum there is extrapolated along the streaks from lags of 2 and 4.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import ndimage
from timing import Table

from drsformer_jax.config import DataConfig, RainConfig
from drsformer_jax.data.pairs import Pairs
from drsformer_jax.data.sources import open_pairs
from drsformer_jax.data.synthetic import SyntheticRain, photographs
from drsformer_jax.errors import InputError, one_line_errors
from drsformer_jax.files import check_writable

REACH = 128
"""Greatest lag that is looked at, and the most that a half-length can be, in pixels."""
_NEARBY = 97  # Side of the square that the mean nearby is taken over, in pixels.
_DIRECTIONS = np.radians(np.arange(-90, 90, 0.25))
_FIRST_LAGS = np.arange(1, 24, 0.5)


class Rain(NamedTuple):
    """What the rain of one image is like; levels are of 255, A being rainy minus clean."""

    psnr: float
    """Of the rainy image to the clean one in dB, over all three channels; infinite if equal."""
    added: float
    """Mean of A in levels."""
    over_8: float
    """Percent of pixels whose mean over the channels of A is above 8 levels."""
    over_30: float
    """The same above 30 levels."""
    half_length: float
    """Pixels along the streaks to half of the autocorrelation's maximum, at most about `REACH`:
    half the length of bars. NaN where nothing but a constant or noise was added."""
    half_width: float
    """The same across: 1.67 standard deviations of a Gaussian profile."""
    lean: float
    """Degrees of the streaks from the vertical, positive towards the lower right, from -90 to 90;
    NaN as above."""
    color: float
    """Greatest deviation of a channel's mean A from that of the three, as a share of it, over
    pixels of which no channel is at 255: 0 for gray. NaN where there the mean A is 0 or less."""
    blacks: float
    """2nd percentile of the rainy image's mean over the channels, in levels."""


def statistics_of(rainy: np.ndarray, clean: np.ndarray) -> Rain:
    """Measures the rain of a pair.

    What saturates counts as it is seen: rain that was cut at 255 adds what is left of it.

    Args:
        rainy: uint8 (h, w, 3).
        clean: The same without the rain.

    Raises:
        InputError: if the two are not uint8 (h, w, 3) of one size.
    """
    for name, image in (("rainy", rainy), ("clean", clean)):
        if image.dtype != np.uint8 or image.shape[2:] != (3,) or image.shape != rainy.shape:
            raise InputError(
                f"{name} is {image.dtype} of shape {image.shape}; expected both uint8 (h, w, 3) "
                "of one size"
            )
    added = rainy.astype(np.float64) - clean
    error = np.mean(added**2)
    layer = added.mean(2)
    by_channel = added[(rainy < 255).all(2)].sum(0)
    mean = by_channel.mean()
    lean, half_length, half_width = streaks(layer)
    return Rain(
        psnr=10 * math.log10(255**2 / error) if error else math.inf,
        added=float(added.mean()),
        over_8=100 * float((layer > 8).mean()),
        over_30=100 * float((layer > 30).mean()),
        half_length=half_length,
        half_width=half_width,
        lean=lean,
        color=float(abs(by_channel / mean - 1).max()) if mean > 0 else math.nan,
        blacks=float(np.percentile(rainy.mean(2), 2)),
    )


def streaks(layer: np.ndarray) -> tuple[float, float, float]:
    """Measures the streaks of a layer of rain, float64 (h, w), by its autocorrelation.

    Returns:
        (lean in degrees, half-length, half-width in pixels) as `Rain` has them.
    """
    correlation = autocorrelation(layer - ndimage.uniform_filter(layer, _NEARBY))
    peak = correlation[REACH, REACH]
    if peak < 1e-9:  # Of levels squared: what rounding leaves of a constant.
        return math.nan, math.nan, math.nan
    around = correlation[REACH - 1 : REACH + 2, REACH - 1 : REACH + 2].flatten()
    correlation[REACH, REACH] = np.delete(around, 4).max()
    coefficients = ndimage.spline_filter(correlation)
    rays = profile(coefficients, _FIRST_LAGS, _DIRECTIONS[:, None])
    lean = _DIRECTIONS[rays.mean(1).argmax()]
    near, far = profile(coefficients, np.array([2.0, 4.0]), lean)
    extrapolated = min(2 * near - far, peak)
    if extrapolated < 0.05 * peak:
        return math.nan, math.nan, math.nan
    correlation[REACH, REACH] = extrapolated
    coefficients = ndimage.spline_filter(correlation / extrapolated)
    half_length, half_width = (half_at(coefficients, lean + turn) for turn in (0, math.pi / 2))
    return math.degrees(lean), half_length, half_width


def autocorrelation(layer: np.ndarray) -> np.ndarray:
    """Mean product of a layer, (h, w) of mean 0, and itself moved, over the pixels that both have.

    Returns:
        (2 * REACH + 1, 2 * REACH + 1), by row and column of the move; the middle is none.
    """
    h, w = layer.shape
    padded = (h + REACH, w + REACH)  # Nothing comes back at the other side.
    power = abs(np.fft.rfft2(layer, padded)) ** 2
    lags = np.arange(-REACH, REACH + 1)
    rows, columns = (np.maximum(side - abs(lags), 1) for side in (h, w))
    return np.fft.irfft2(power, padded)[lags[:, None], lags] / (rows[:, None] * columns)


def profile(coefficients: np.ndarray, lags: np.ndarray, lean: Any) -> np.ndarray:
    """A cubic spline through the autocorrelation, at lags in pixels along a lean in radians."""
    places = np.broadcast_arrays(REACH + lags * np.cos(lean), REACH + lags * np.sin(lean))
    return ndimage.map_coordinates(coefficients, places, prefilter=False)


def half_at(coefficients: np.ndarray, lean: float) -> float:
    """The first lag at which an autocorrelation of maximum 1 is a half; the last if there is none.

    Lags are in pixels, along a lean in radians.
    """
    lags = np.arange(0, REACH - 2, 0.1)
    values = profile(coefficients, lags, lean)
    below = int((values <= 0.5).argmax())
    if not below:
        return float(lags[-1])
    return float(np.interp(0.5, values[[below, below - 1]], lags[[below, below - 1]]))


def main() -> None:
    """Prints a row for each source of pairs and for each kind of synthetic rain."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data",
        nargs="+",
        default=[],
        metavar="[NAME=]SOURCE[,SOURCE]",
        help="folders of input/ and target/, or built datasets such as rain200h or rain200h:test; "
        "a row each, or one for several with commas between them",
    )
    parser.add_argument("--data-dir", default="", help="folder of the built datasets")
    parser.add_argument(
        "--photographs", default="skimage", help="folder of clean images (default: skimage's)"
    )
    parser.add_argument("--count", type=int, default=40, help="images a row (default 40)")
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args()
    with one_line_errors():
        compare(arguments)


def compare(arguments: argparse.Namespace) -> None:
    """Measures every source; all are opened before the first is measured."""
    count = arguments.count
    if count < 1:
        raise InputError(f"--count is {count}; expected at least 1")
    if arguments.json:
        check_writable(arguments.json.parent)  # Before the work, whose figures would be lost.
    config = DataConfig(data_dir=arguments.data_dir)
    sources: dict[str, list[Pairs]] = {}
    for argument in arguments.data:
        name, _, parts = argument.rpartition("=")
        opened = [open_pairs(part, "train", config, seed=0) for part in parts.split(",")]
        name = name or parts
        if name in sources or name.startswith("synthetic "):
            raise InputError(
                f"--data has {name} twice; expected NAME=SOURCE with names that differ"
            )
        sources[name] = opened
    train, validation = photographs(arguments.photographs)
    clean = [*train, *validation]
    for kind in ("light", "fine", "heavy"):
        rains = math.ceil(count / len(clean))
        sources[f"synthetic {kind}"] = [SyntheticRain(clean, rains, 0, RainConfig.only(kind))]
    table = Table(
        f"Rain of up to {count} images a row, medians: dB, levels of 255, percent, pixels, degrees "
        "(lean without its sign)",
        {
            "source": f"<{max(map(len, sources))}",
            "pairs": "5d",
            "psnr": "5.1f",
            "psnr_from_to": ">10",
            "added": "5.1f",
            "added_from_to": ">10",
            "over_8": "6.1f",
            "over_30": "6.1f",
            "half_length": "6.1f",
            "half_width": "6.2f",
            "lean": "5.1f",
            "lean_from_to": ">10",
            "color": "6.3f",
            "blacks": "5.0f",
        },
    )
    for name, parts in sources.items():
        places = [(pairs, index) for pairs in parts for index in range(len(pairs))]
        # Spread over the source, for neighbors are often alike.
        chosen = np.linspace(0, len(places) - 1, min(count, len(places))).round().astype(int)
        found = (pairs[index] for pairs, index in (places[which] for which in chosen))
        measured = [statistics_of(pair["rainy"], pair["clean"]) for pair in found]
        table.add(source=name, pairs=len(measured), **summary(measured))
    table.write(arguments.json)


def summary(rains: Iterable[Rain]) -> dict[str, Any]:
    """Median of each figure, `minimum` and `maximum` of all, and some ranges as texts.

    NaNs are left out; None stands for what no image has, and for the infinite.
    """
    medians, minimum, maximum, ranges = {}, {}, {}, {}
    for name, values in zip(Rain._fields, zip(*rains, strict=True), strict=True):
        known = [value for value in values if not math.isnan(value)] or [math.nan]
        minimum[name], maximum[name] = min(known), max(known)
        medians[name] = statistics.median(map(abs, known) if name == "lean" else known)
        if name in ("psnr", "added", "lean") and math.isfinite(min(known)):
            ranges[f"{name}_from_to"] = f"{min(known):.1f}..{max(known):.1f}"
    medians, minimum, maximum = (
        {name: value if math.isfinite(value) else None for name, value in each.items()}
        for each in (medians, minimum, maximum)
    )
    return {**medians, **ranges, "minimum": minimum, "maximum": maximum}


if __name__ == "__main__":
    main()
