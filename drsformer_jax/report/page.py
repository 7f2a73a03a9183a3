"""The page that a training run leaves: one HTML file that needs no network, script or font.

`page.html.jinja` lays the page out and `page.css` styles it; this module gathers the values.
"""

from __future__ import annotations

import base64
import functools
import io
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from PIL import Image

from drsformer_jax.config import TrainConfig
from drsformer_jax.config.file import to_dict
from drsformer_jax.files import write_text
from drsformer_jax.report.curves import curve
from drsformer_jax.scoring.complexity import macs, parameters
from drsformer_jax.scoring.evaluation import Scores, mean
from drsformer_jax.scoring.tables import COLUMNS

_CURVES = {
    "loss": "Loss",
    "grad_norm": "Gradient norm",
    "learning_rate": "Learning rate",
    "images_per_second": "Images per second",
}
"""Metrics that have a curve, besides those of the validation, and their headings."""
_LOGARITHMIC = {"loss", "grad_norm"}
_VALIDATION = re.compile(r"validation/(.+)/(psnr|ssim)")
_MEASURES = {"psnr": "PSNR, dB", "ssim": "SSIM"}
_OPEN_ROWS = 20
"""Longer tables are folded."""

_NOTHING = "\N{EN DASH}"
_MINUS = "\N{MINUS SIGN}"

_LARGEST = 1e100
"""Matplotlib overflows on numbers beyond."""

_WIDEST, _HIGHEST = 480, 720
"""Pixels of an image on the page; larger ones are scaled down."""
_TINY = 128 * 128
"""Pixels of images that are kept without loss."""


@dataclass(frozen=True)
class Example:
    """A validation image on the page: rainy, restored and clean, each uint8 (h, w, 3)."""

    name: str
    scores: Scores
    rainy: np.ndarray
    restored: np.ndarray
    clean: np.ndarray


def write_report(
    path: Path,
    *,
    title: str,
    config: TrainConfig,
    metrics: Sequence[Mapping[str, Any]],
    scores: Sequence[tuple[str, Scores]],
    examples: Sequence[Example],
) -> None:
    """Writes the page in one step. Equal arguments give equal bytes.

    Args:
        path: the file, which ends in .html.
        title: heading of the page, such as the run's name.
        config: configuration of the run.
        metrics: lines of `metrics.jsonl`, each with its "step" and numbers or None; see
            `reporting.read_metrics`. The page omits metrics that are missing.
        scores: name and scores of each image, by `config.protocol`.
        examples: images to show, from the largest gain to the smallest.

    Raises:
        OSError: if the file system fails.
    """
    metrics = [line for line in metrics if "step" in line]
    page = _environment().get_template("page.html.jinja")
    text = page.render(
        title=title,
        config=config,
        parameters=parameters(config.model),
        macs=macs(config.model),
        average=mean([each for _, each in scores]) if scores else None,
        count=f"{len(scores):,} image{'s' if len(scores) > 1 else ''}",
        last_step=max((line["step"] for line in metrics), default=None),
        curves=list(_curves(metrics)),
        examples=_grouped(examples),
        scores=scores,
        columns=COLUMNS,
        open_rows=_OPEN_ROWS,
        settings=list(_settings("run", to_dict(config))),
    )
    write_text(path, text + "\n")


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("drsformer_jax", "report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": _number, "setting": _setting, "embedded": _embedded}
    return environment


def _number(value: float, spec: str) -> str:
    if math.isnan(value):
        return _NOTHING
    if math.isinf(value):
        return "\N{INFINITY}" if value > 0 else f"{_MINUS}\N{INFINITY}"
    return format(value, spec).replace("-", _MINUS)


def _setting(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text or _NOTHING


def _settings(name: str, values: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The settings of each nested configuration by its name, outer ones first."""
    inner = {key: value for key, value in values.items() if isinstance(value, dict)}
    yield name, {key: value for key, value in values.items() if key not in inner}
    for key, value in inner.items():
        yield from _settings(key, value)


def _curves(metrics: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, str]]:
    """Heading, note and drawing of each metric that has a number: loss, validation, others."""
    last = max((line["step"] for line in metrics), default=0)
    validation = sorted({name for line in metrics for name in line if _VALIDATION.fullmatch(name)})
    loss, *others = _CURVES
    for name in (loss, *validation, *others):
        points = [
            (line["step"], line[name])
            for line in metrics
            if isinstance(line.get(name), int | float) and abs(line[name]) < _LARGEST
        ]
        if not points:
            continue
        steps, values = np.array(points, np.float64).T
        if match := _VALIDATION.fullmatch(name):
            heading, protocol = f"Validation {_MEASURES[match[2]]}", f", protocol {match[1]}"
            kind, at = "best", int(np.argmax(values))
        else:
            heading, protocol, kind, at = _CURVES[name], "", "last", -1
        logarithmic = name in _LOGARITHMIC
        svg = curve(steps, values, last=last, logarithmic=logarithmic, salt=ascii(name))
        yield {
            "heading": heading,
            "note": f"{kind} {_number(values[at], '.4g')}, step {steps[at]:,.0f}{protocol}",
            "svg": svg,
        }


def _grouped(examples: Sequence[Example]) -> list[tuple[str, Sequence[Example]]]:
    """The half with the larger gain under one heading, the other, smallest first, under another."""
    half = (len(examples) + 1) // 2
    if len(examples) < 2:
        return [("", examples)] if examples else []
    return [("Largest gain", examples[:half]), ("Smallest gain", examples[half:][::-1])]


def _embedded(pixels: np.ndarray) -> dict[str, Any]:
    """An image as a data URI, with its width and height on the page."""
    image = Image.fromarray(pixels)
    image.thumbnail((_WIDEST, _HIGHEST), Image.Resampling.LANCZOS)
    content = io.BytesIO()
    if image.width * image.height <= _TINY:
        kind = "png"
        image.save(content, "PNG")
    else:
        kind = "webp"
        image.save(content, "WEBP", quality=85)
    text = base64.b64encode(content.getvalue()).decode()
    return {
        "uri": f"data:image/{kind};base64,{text}",
        "width": image.width,
        "height": image.height,
    }
