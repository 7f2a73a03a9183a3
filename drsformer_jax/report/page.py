"""The page that a training run leaves: one HTML file that needs no network, script or font."""

from __future__ import annotations

import base64
import html
import io
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from drsformer_jax.config import TrainConfig
from drsformer_jax.config.file import to_dict
from drsformer_jax.files import write_text
from drsformer_jax.report.curves import curve
from drsformer_jax.scoring.complexity import multiply_accumulates, parameters
from drsformer_jax.scoring.evaluation import Scores, mean

_CURVES = {
    "loss": "Loss",
    "grad_norm": "Gradient norm",
    "learning_rate": "Learning rate",
    "images_per_second": "Images per second",
}
"""Metrics that are drawn, beside those of the validation, and their headings."""
_LOGARITHMIC = {"loss", "grad_norm"}
_VALIDATION = re.compile(r"validation/(.+)/(psnr|ssim)")
_MEASURES = {"psnr": "PSNR, dB", "ssim": "SSIM"}
_COLUMNS = {
    "rainy_psnr": ("rainy PSNR, dB", ".2f"),
    "rainy_ssim": ("rainy SSIM", ".4f"),
    "restored_psnr": ("restored PSNR, dB", ".2f"),
    "restored_ssim": ("restored SSIM", ".4f"),
    "gain": ("gain, dB", "+.2f"),
}
"""Heading and format of each score."""
_OPEN_ROWS = 20
"""Longer tables are folded."""

_NOTHING = "&ndash;"

_LARGEST = 1e100
"""Of numbers beyond, Matplotlib would overflow."""

_WIDEST, _HIGHEST = 480, 720
"""Pixels of an image on the page; larger ones are scaled down."""
_TINY = 128 * 128
"""Pixels of images that are kept without loss."""

_STYLE = """
:root { color-scheme: light dark; --page: #f6f7f9; --card: #fff; --ink: #1b1f24; --soft: #667080;
  --line: #dfe3e8; --accent: #1f6feb; --pale: #b6d0f7; --good: #1a7f4b; }
@media (prefers-color-scheme: dark) { :root { --page: #101418; --card: #181d23; --ink: #e6eaef;
  --soft: #97a1ae; --line: #2c343d; --accent: #62a0ff; --pale: #2b456d; --good: #4cc38a; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); line-height: 1.5;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 72rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .4rem; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .8rem; }
h3 { font-size: 1rem; margin: 1.5rem 0 .6rem; color: var(--soft); }
p, dl, figure { margin: 0; }
.soft, figcaption span, small, caption, dt { color: var(--soft); }
.cards, .curves { display: grid; gap: 1rem; }
.cards { grid-template-columns: repeat(auto-fit, minmax(10rem, 1fr)); margin-top: 1.5rem; }
.curves { grid-template-columns: repeat(auto-fit, minmax(min(20rem, 100%), 1fr)); }
.settings { columns: 22rem; column-gap: 2rem; }
.settings table { break-inside: avoid; }
.card, figure, details { background: var(--card); border: 1px solid var(--line);
  border-radius: .6rem; padding: .9rem 1.1rem; min-width: 0; }
dd { margin: 0; font-size: 1.35rem; font-weight: 600; font-variant-numeric: tabular-nums; }
dd small { font-size: .85rem; font-weight: 400; display: block; }
.good dd { color: var(--good); }
figcaption { display: flex; justify-content: space-between; gap: 1rem; margin-bottom: .5rem; }
figcaption b { font-weight: 600; overflow-wrap: anywhere; }
figcaption span { white-space: nowrap; font-variant-numeric: tabular-nums; }
.curve figcaption { flex-direction: column; gap: 0; }
.curve span { font-size: .85rem; white-space: normal; overflow-wrap: anywhere; }
svg { display: block; width: 100%; height: auto; }
svg text { font-family: inherit !important; fill: var(--soft); }
.shown { display: grid; gap: 1rem; }
.three { display: grid; grid-template-columns: repeat(3, minmax(0, 1fr)); gap: .6rem; }
@media (max-width: 36rem) { .three { grid-template-columns: minmax(0, 1fr); } }
img { display: block; max-width: 100%; height: auto; border-radius: .3rem; }
small { font-variant-numeric: tabular-nums; }
summary { cursor: pointer; font-weight: 600; }
.wide { overflow-x: auto; margin-top: .6rem; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; }
caption { text-align: left; font-weight: 600; padding: .5rem 0 .2rem; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid var(--line); text-align: right;
  font-variant-numeric: tabular-nums; vertical-align: top; }
th:first-child, .settings td { text-align: left; }
th { font-weight: 400; }
thead th { color: var(--soft); border-bottom-width: 2px; }
tfoot th, tfoot td { font-weight: 600; border-bottom: 0; }
tbody th, .settings td { overflow-wrap: anywhere; min-width: 7rem; }
.settings th { color: var(--soft); white-space: nowrap; }
"""

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
<h1>{title}</h1>
{body}
</main>
</body>
</html>
"""


@dataclass(frozen=True)
class Shown:
    """An image that the report shows, its three forms uint8 (h, w, 3) of one size."""

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
    shown: Sequence[Shown],
) -> None:
    """Writes the page, in one step; of the same arguments the same bytes.

    Args:
        path: the file, which ends in .html.
        title: its heading, such as the run's name.
        config: the run's.
        metrics: of each line of `metrics.jsonl` the "step" and any numbers or None; see
            `reporting.read_metrics`. Those that are missing are left out of the page.
        scores: name and scores of each image, by `config.protocol`.
        shown: images to show, from the largest gain to the smallest.

    Raises:
        OSError: if the file system fails.
    """
    metrics = [line for line in metrics if "step" in line]
    body = [
        _summary(config, metrics, [each for _, each in scores]),
        _section("Curves", _curves(metrics), '<div class="curves">{}</div>'),
        _images(shown),
        _section("Scores", [_table(scores)] if scores else []),
        _section("Configuration", [_settings(config)]),
    ]
    page = _PAGE.format(title=_text(title), style=_STYLE, body="\n".join(filter(None, body)))
    write_text(path, page)


def _text(value: object) -> str:
    """Text as HTML has it; names of files may hold bytes that no text has."""
    return html.escape(str(value).encode(errors="replace").decode())


def _number(value: float, form: str) -> str:
    if math.isnan(value):
        return _NOTHING
    if math.isinf(value):
        return "&infin;" if value > 0 else "&minus;&infin;"
    return format(value, form).replace("-", "&minus;")


def _count(images: Sequence[object]) -> str:
    return f"{len(images):,} image{'s' if len(images) > 1 else ''}"


def _section(heading: str, parts: Iterable[str], frame: str = "{}") -> str:
    """Parts below a heading, in a frame; nothing where there are none."""
    inside = "\n".join(filter(None, parts))
    return f"<section>\n<h2>{heading}</h2>\n{frame.format(inside)}\n</section>" if inside else ""


def _summary(
    config: TrainConfig, metrics: Sequence[Mapping[str, Any]], scores: Sequence[Scores]
) -> str:
    cards = []
    if scores:
        average = mean(scores)
        for kind in ("rainy", "restored"):
            psnr, ssim = getattr(average, f"{kind}_psnr"), getattr(average, f"{kind}_ssim")
            note = f"SSIM {_number(ssim, '.4f')}"
            cards.append(_card(kind.capitalize(), f"{_number(psnr, '.2f')} dB", note))
        note = f"mean of {_count(scores)}"
        kind = "card good" if average.gain > 0 else "card"
        cards.append(_card("Gain", f"{_number(average.gain, '+.2f')} dB", note, kind))
    if metrics:
        step = max(line["step"] for line in metrics)
        cards.append(_card("Steps", f"{step:,}", f"of {config.steps:,}"))
    network = (
        f"{parameters(config.model):,} parameters, "
        f"{multiply_accumulates(config.model) / 1e9:,.2f} G multiply-accumulates for an image of "
        f"256&times;256. PSNR in dB and SSIM on luma, protocol {_text(config.protocol)}."
    )
    return f'<p class="soft">{network}</p>\n<dl class="cards">\n{"".join(cards)}</dl>'


def _card(name: str, value: str, note: str, kind: str = "card") -> str:
    return f'<div class="{kind}"><dt>{name}</dt><dd>{value}<small>{note}</small></dd></div>\n'


def _table(scores: Sequence[tuple[str, Scores]]) -> str:
    heads = "".join(f"<th>{heading}</th>" for heading, _ in _COLUMNS.values())
    rows = "\n".join(_row(name, each) for name, each in scores)
    opened = " open" if len(scores) <= _OPEN_ROWS else ""
    return (
        f"<details{opened}><summary>{_count(scores)}</summary>\n"
        f'<div class="wide"><table>\n<thead><tr><th>image</th>{heads}</tr></thead>\n'
        f"<tbody>\n{rows}\n</tbody>\n"
        f"<tfoot>\n{_row('mean', mean([each for _, each in scores]))}\n</tfoot>\n"
        "</table></div></details>"
    )


def _row(name: str, scores: Scores) -> str:
    cells = (
        f"<td>{_number(getattr(scores, column), form)}</td>"
        for column, (_, form) in _COLUMNS.items()
    )
    return f"<tr><th>{_text(name)}</th>{''.join(cells)}</tr>"


def _settings(config: TrainConfig) -> str:
    tables = []
    for caption, values in _groups("run", to_dict(config)):
        rows = "\n".join(
            f"<tr><th>{_text(name)}</th><td>{_setting(value)}</td></tr>"
            for name, value in values.items()
        )
        tables.append(
            f"<table><caption>{_text(caption)}</caption><tbody>\n{rows}\n</tbody></table>"
        )
    return (
        "<details><summary>Every setting</summary>\n"
        f'<div class="settings">{"".join(tables)}</div></details>'
    )


def _groups(name: str, values: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The settings of each configuration by its name, the outer ones first."""
    inner = {key: value for key, value in values.items() if isinstance(value, dict)}
    yield name, {key: value for key, value in values.items() if key not in inner}
    for key, value in inner.items():
        yield from _groups(key, value)


def _setting(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return _text(text) or _NOTHING


def _curves(metrics: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A figure for each metric that is a number anywhere."""
    last = max((line["step"] for line in metrics), default=0)
    for name in _drawn(metrics):
        points = [
            (line["step"], line[name])
            for line in metrics
            if isinstance(line.get(name), int | float) and abs(line[name]) < _LARGEST
        ]
        if not points:
            continue
        steps, values = np.array(points, np.float64).T
        if match := _VALIDATION.fullmatch(name):
            heading, note = f"Validation {_MEASURES[match[2]]}", f", protocol {match[1]}"
            told, at = "best", int(np.argmax(values))
        else:
            heading, note, told, at = _CURVES[name], "", "last", -1
        logarithmic = name in _LOGARITHMIC
        drawing = curve(steps, values, last=last, logarithmic=logarithmic, salt=_text(name))
        yield (
            f'<figure class="curve"><figcaption><b>{heading}</b><span>{told} '
            f"{_number(values[at], '.4g')}, step {steps[at]:,.0f}{_text(note)}</span></figcaption>"
            f"{drawing}</figure>"
        )


def _drawn(metrics: Sequence[Mapping[str, Any]]) -> list[str]:
    """Metrics to draw, in order: the loss, the validation's, the others."""
    found = sorted({name for line in metrics for name in line if _VALIDATION.fullmatch(name)})
    first, *others = _CURVES
    return [first, *found, *others]


def _images(shown: Sequence[Shown]) -> str:
    """The better half under one heading and the other, the worst first, under another."""
    half = (len(shown) + 1) // 2
    groups = {"Largest gain": shown[:half], "Smallest gain": shown[half:][::-1]}
    parts = [
        (f"<h3>{heading}</h3>\n" if len(shown) > 1 else "")
        + f'<div class="shown">{"".join(map(_figure, group))}</div>'
        for heading, group in groups.items()
        if group
    ]
    return _section("Images", parts)


def _figure(shown: Shown) -> str:
    scores, name = shown.scores, _text(shown.name)
    parts = []
    for kind, image, notes in (
        ("rainy", shown.rainy, (scores.rainy_psnr, scores.rainy_ssim)),
        ("restored", shown.restored, (scores.restored_psnr, scores.restored_ssim)),
        ("clean", shown.clean, ()),
    ):
        told = [kind]
        if notes:
            told += [f"{_number(notes[0], '.2f')} dB", f"SSIM {_number(notes[1], '.4f')}"]
        source, width, height = _data_uri(image)
        parts.append(
            f'<div><img src="{source}" width="{width}" height="{height}" alt="{name}, {kind}">'
            f"<small>{' &middot; '.join(told)}</small></div>"
        )
    return (
        f"<figure><figcaption><b>{name}</b>"
        f"<span>gain {_number(scores.gain, '+.2f')} dB</span></figcaption>"
        f'<div class="three">{"".join(parts)}</div></figure>'
    )


def _data_uri(pixels: np.ndarray) -> tuple[str, int, int]:
    """An image as a data URI, and its width and height on the page."""
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
    return f"data:image/{kind};base64,{text}", image.width, image.height
