"""HTML of what the page shows of an image: how far it is, and before and after under a slider."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from pathlib import Path

from drsformer_jax.images.pixels import encode_image, read_image
from drsformer_jax.images.vips import pyvips

_SIDE = 1600
"""Longer side of what is shown, at most, in pixels."""

_HTML = """<figure class="compare" style="--at: 50%">
<div class="images">
<img class="after" src="{after}" alt="{name} without rain">
<img class="before" src="{before}" alt="{name} as it was">
<span class="name left">before</span><span class="name right">after</span>
<input type="range" min="0" max="100" value="50" step="1"
 aria-label="How much of the image before, in percent from the left; the rest is after"
 oninput="this.closest('figure').style.setProperty('--at', this.value + '%')">
<div class="line"></div>
</div>
<figcaption>{caption}</figcaption>
</figure>"""


def comparison(before: Path, after: Path, lines: Sequence[str]) -> str:
    """HTML of two image files under a slider, smaller and in 8 bits where a browser needs it.

    Args:
        before: the rainy image, of any of the formats.
        after: the restored one, of its size.
        lines: what is said below.

    Raises:
        InputError: if one cannot be read.
    """
    return _HTML.format(
        before=_shown(before),
        after=_shown(after),
        name=html.escape(before.name),
        caption="<br>".join(map(html.escape, lines)),
    )


def progress(text: str, done: int, total: int | None) -> str:
    """HTML of a bar.

    Args:
        text: what is done.
        done: tiles that are.
        total: number of tiles; None if there are none, and the progress is unknown.
    """
    share, said = ("", "") if total is None else (f'value="{done}"', f" Tile {done} of {total}.")
    return f'<label>{text}{said}<progress {share} max="{total or 1}"></progress></label>'


def _shown(path: Path) -> str:
    """An image as the address of itself."""
    image = read_image(path)
    if max(image.shape[:2]) > _SIDE:
        large = pyvips.Image.new_from_array(image)
        image = large.thumbnail_image(_SIDE, height=_SIDE, size="down").numpy()
    content = base64.b64encode(encode_image(image, ".jpg")).decode()
    return f"data:image/jpeg;base64,{content}"
