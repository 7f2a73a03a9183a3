"""Contact sheets: images side by side, to compare them by eye."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from drsformer_jax.config import KINDS, DataConfig, RainConfig
from drsformer_jax.data.pairs import Pairs
from drsformer_jax.data.pipeline import batches
from drsformer_jax.data.sources import Source
from drsformer_jax.data.synthetic import SyntheticRain, photographs

_SHEET_GAP = 8
_TITLE_SIZE = 16
_RAIN_SIDE = 320
"""Pixels of a photograph that `rain_sheet` shows."""


def contact_sheet(rows: Sequence[Sequence[np.ndarray]], titles: Sequence[str] = ()) -> np.ndarray:
    """Lays images out on white.

    Args:
        rows: the images, uint8 (h, w, 3), of any sizes; columns are as wide as their widest.
        titles: titles of the columns, for instance rainy, restored, clean.

    Returns:
        uint8 of shape (H, W, 3).
    """
    font = ImageFont.load_default(size=_TITLE_SIZE)
    widths = [int(np.ceil(font.getlength(title))) for title in titles]
    widths += [0] * (max(len(row) for row in rows) - len(titles))
    for row in rows:
        for column, image in enumerate(row):
            widths[column] = max(widths[column], image.shape[1])
    heights = [max(image.shape[0] for image in row) for row in rows]
    head = _TITLE_SIZE + 2 * _SHEET_GAP if titles else _SHEET_GAP
    lefts = np.cumsum([_SHEET_GAP] + [width + _SHEET_GAP for width in widths])
    tops = np.cumsum([head] + [height + _SHEET_GAP for height in heights])
    sheet = Image.new("RGB", (int(lefts[-1]), int(tops[-1])), "white")
    for row, top in zip(rows, tops, strict=False):
        for image, left in zip(row, lefts, strict=False):
            sheet.paste(Image.fromarray(image), (int(left), int(top)))
    draw = ImageDraw.Draw(sheet)
    for title, left in zip(titles, lefts, strict=False):
        draw.text((int(left), _SHEET_GAP), title, fill="black", font=font)
    return np.array(sheet)


def data_sheet(pairs: Pairs, rows: int, config: DataConfig, seed: int) -> np.ndarray:
    """Shows pairs, and crops as training samples them.

    Args:
        pairs: the pairs.
        rows: number of pairs to show, spread evenly.
        config: the crops; the first global batch of them is shown.
        seed: seed of the crops.

    Returns:
        uint8 of shape (H, W, 3): rainy and clean images, below them rainy and clean crops.

    Raises:
        InputError: if a pair cannot be read.
    """
    shown = [pairs[index] for index in spread(len(pairs), rows)]
    whole = contact_sheet([(pair["rainy"], pair["clean"]) for pair in shown], ("rainy", "clean"))
    return contact_sheet([(whole,), (_crops(pairs, config, seed),)])


def rain_sheet(pairs: Pairs, columns: int, config: DataConfig, seed: int) -> np.ndarray:
    """Shows each kind of synthetic rain, and crops of their mix as training samples them.

    Args:
        pairs: the mix.
        columns: pairs of each kind, at most one for each photograph.
        config: the photographs and the crops; the first global batch of them is shown.
        seed: seed of the rain and the crops.

    Returns:
        uint8 of shape (H, W, 3): a row of rainy and clean images for each kind, below them crops.

    Raises:
        InputError: if there are no such photographs.
    """
    train, _ = photographs(config.photographs)
    rows = []
    for kind in KINDS:
        rain = SyntheticRain(train, 1, seed, RainConfig.only(kind), _RAIN_SIDE)
        shown = [rain[index] for index in spread(len(train), columns)]
        images = [image for pair in shown for image in (pair["rainy"], pair["clean"])]
        rows.append((contact_sheet([images], (f"{kind}, clean", "") * len(shown)),))
    return contact_sheet([*rows, (_crops(pairs, config, seed),)])


def spread(length: int, count: int) -> list[int]:
    """At most `count` indices, spread evenly over a sequence."""
    return np.linspace(0, length - 1, min(count, length)).astype(int).tolist()


def _crops(pairs: Pairs, config: DataConfig, seed: int) -> np.ndarray:
    batch = next(batches([Source(pairs, 1.0)], config, seed=seed))
    return contact_sheet([tuple(batch["rainy"]), tuple(batch["clean"])], ("rainy, clean crops",))
