"""Curves of the metrics of a training run, as SVG elements of a page."""

from __future__ import annotations

import contextlib
import io
import logging
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SEGMENTS = 500
"""Most points of a curve; of a longer one, each is the median of a segment."""
_SMOOTHED = 50
"""Curves of more points are pale, with their running median on top."""
_MARKED = 30
"""Curves of fewer points have markers."""
_TICKS = (1, 2, 2.5, 5, 10)

# Matplotlib does not know CSS variables: it draws in colors that are replaced by them.
_COLORS = {
    "#010101": "var(--soft)",
    "#020202": "var(--line)",
    "#030303": "var(--accent)",
    "#040404": "var(--pale)",
}
_SOFT, _LINE, _ACCENT, _PALE = _COLORS


def curve(steps: np.ndarray, values: np.ndarray, *, last: int, logarithmic: bool, salt: str) -> str:
    """Draws a curve. Equal arguments give equal text.

    Args:
        steps: float64 (n,), n at least 1.
        values: float64 (n,), finite.
        last: step at which the axis ends.
        logarithmic: whether the axis of the values is logarithmic if they are above 0 and differ
            much.
        salt: text that differs between the curves of a page, since the parts of each need ids of
            their own.

    Returns:
        An `<svg>` element in the colors --soft, --line, --accent and --pale of the page's CSS. Its
        length does not grow with n.
    """
    with _quiet():
        # Slow to import, and few programs draw.
        from matplotlib import style
        from matplotlib.figure import Figure

        # The defaults, whatever the user's own settings are.
        own = {"svg.hashsalt": salt, "svg.fonttype": "none", "path.simplify": False}
        with style.context(["default", own]):
            figure = Figure(figsize=(4.6, 2.4), layout="constrained")
            axes = figure.add_subplot()
            _draw(axes, steps, values)
            _scale(axes, values, last, logarithmic)
            text = io.StringIO()
            nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
            figure.savefig(text, format="svg", transparent=True, metadata=nothing)
    return _inlined(text.getvalue())


def _draw(axes: Axes, steps: np.ndarray, values: np.ndarray) -> None:
    parts = np.array_split(np.arange(len(steps)), min(len(steps), _SEGMENTS))
    middles = [np.median(steps[part]) for part in parts]
    medians = [np.median(values[part]) for part in parts]
    if len(values) > _SMOOTHED:
        ranges = [(values[part].min(), values[part].max()) for part in parts]
        axes.plot(np.repeat(middles, 2), np.ravel(ranges), color=_PALE, linewidth=0.8)
        medians = _running_median(np.array(medians), len(parts) // 30)
    marker = "o" if len(values) < _MARKED else ""
    axes.plot(middles, medians, color=_ACCENT, linewidth=1.5, marker=marker, markersize=3)


def _running_median(values: np.ndarray, reach: int) -> list[float]:
    """The median of each value and its neighbors, as many on either side."""
    reaches = [min(reach, at, len(values) - 1 - at) for at in range(len(values))]
    return [np.median(values[at - near : at + near + 1]) for at, near in enumerate(reaches)]


def _scale(axes: Axes, values: np.ndarray, last: int, logarithmic: bool) -> None:
    from matplotlib import ticker

    low, high = float(values.min()), float(values.max())
    if logarithmic and low > 0 and high >= 20 * low:
        axes.set_yscale("log")
        steps = (1, 2, 5) if high < 200 * low else (1,)
        axes.yaxis.set_major_locator(ticker.LogLocator(subs=steps, numticks=7))
        axes.set_ylim(low / 1.2, high * 1.2)
    else:
        # A curve that hardly changes is to look so, and needs labels that differ.
        space = max(0.05 * (high - low), 5e-4 * max(abs(low), abs(high))) or 1.0
        axes.set_ylim(0 if 0 <= low < high / 2 else low - space, high + space)
        axes.yaxis.set_major_locator(ticker.MaxNLocator(5, steps=_TICKS))
    axes.set_xlim(0, 1.02 * max(last, 1))
    axes.xaxis.set_major_locator(ticker.MaxNLocator(5, steps=_TICKS, integer=True))
    axes.xaxis.set_major_formatter(lambda step, _: f"{step:,.0f}")
    axes.yaxis.set_major_formatter(
        lambda value, _: f"{value:g}".replace("e-0", "e-").replace("-", "\N{MINUS SIGN}")
    )
    axes.minorticks_off()
    axes.tick_params(color=_LINE, labelcolor=_SOFT, labelsize=9)
    axes.grid(color=_LINE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)


def _inlined(document: str) -> str:
    """The element of an SVG document, without styles that affect the page and unused ids."""
    svg = document[document.index("<svg") :]
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)
    used = set(re.findall(r"#([\w.-]+)", svg))
    svg = re.sub(r' id="([^"]*)"', lambda name: name[0] if name[1] in used else "", svg)
    for ink, color in _COLORS.items():
        svg = svg.replace(ink, color)
    return svg


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences what Matplotlib logs about fonts when it is used for the first time."""
    logger = logging.getLogger("matplotlib")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
