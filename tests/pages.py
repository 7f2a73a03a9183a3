"""The page of a run of made-up numbers, and a reader of pages."""

from __future__ import annotations

import math
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
from recipe import SMALL

from drsformer_jax.config import DataConfig, TrainConfig
from drsformer_jax.report.page import Example, write_report
from drsformer_jax.scoring.evaluation import Scores

CONFIG = TrainConfig(model=SMALL, data=DataConfig(global_batch=7), steps=200)
SCORES = [
    ("a.png", Scores(20.123, 0.51234, 30.456, 0.91234)),
    ("b.png", Scores(25.5, 0.75, 25.25, 0.74)),
    ("same.png", Scores(math.inf, 1.0, math.inf, 1.0)),
    ("small.png", Scores(math.nan, math.nan, 31.0, math.nan)),
    ("worse.png", Scores(math.inf, 1.0, 40.0, 0.99)),
]
VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """Reads a page, and fails where tags are not balanced."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.rows: list[list[str]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.attributes.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.attributes.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not data.strip():
            return
        self.texts.append((self.open[-1], data))
        if self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data

    def all(self, tag: str, name: str) -> list[str]:
        return [values[name] for each, values in self.attributes if each == tag and name in values]

    def within(self, tag: str) -> list[str]:
        return [text for each, text in self.texts if each == tag]


def noise(h: int, w: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (h, w, 3), dtype=np.uint8)


def image(name: str, gain: float = 1.0, size: tuple[int, int] = (20, 30)) -> Example:
    scores = Scores(20.0, 0.5, 20.0 + gain, 0.625)
    return Example(name, scores, *(noise(*size, seed) for seed in range(3)))


def training(steps: int) -> list[dict[str, float]]:
    draw = np.random.default_rng(0).random(steps)
    return [
        {
            "step": step,
            "loss": 0.1 / step + 0.01 * value,
            "grad_norm": 1.0 + value,
            "learning_rate": 3e-4,
            "images_per_second": 10.0 + value,
        }
        for step, value in enumerate(draw, 1)
    ]


def write(path: Path, **changes) -> str:
    arguments = {
        "title": "a run",
        "config": CONFIG,
        "metrics": [
            *training(200),
            {"step": 200, "validation/did_ddn/psnr": 30.0, "validation/did_ddn/ssim": 0.9},
        ],
        "scores": SCORES,
        "examples": [image("best"), image("worst", -1.0)],
    }
    write_report(path, **{**arguments, **changes})
    return path.read_text()
