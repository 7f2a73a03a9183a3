"""How much restored videos flicker, and what neighboring frames would change.

    python benchmarks/flicker.py
    python benchmarks/flicker.py --checkpoint RUN --photographs FOLDER --json flicker.json

A video here is a window of a photograph that moves to the right by a number of pixels a frame,
under rain. Each frame has drops of its own, since they fall farther between two frames than their
streaks are long; wind, density and brightness stay the same.

"Flicker" is the mean absolute difference of one frame and the next, in levels of 255, of the pixels
that both show: 0 without rain. It is followed by the PSNR in dB. "Alone" restores each frame by
itself, as `drsformer derain` does. The other two use the frames before and after: the median of the
three restored ones, and the restored median of the three rainy ones.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from filters import Restore
from pretrained import KINDS, PROTOCOL
from timing import Table

from drsformer_jax import load
from drsformer_jax.config import RainConfig
from drsformer_jax.config.rain import DropRanges, Kind, NoiseRanges
from drsformer_jax.data.synthetic import Photograph, add_rain, photographs
from drsformer_jax.errors import InputError, one_line_errors
from drsformer_jax.files import check_writable
from drsformer_jax.images.pixels import read_image
from drsformer_jax.metrics import psnr

SYSTEMS = ("rainy", "alone", "median_of_restored", "restored_median")
"""As `results_of` returns them."""
PARTS = {"": "7.2f", "_db": "7.2f"}
"""Columns of a system: flicker and PSNR."""
Video = Sequence[np.ndarray]
"""Frames, uint8 of shape (h, w, 3)."""


def main() -> None:
    """Prints a row for each kind of rain and each motion."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--checkpoint", help="default: the built-in network")
    add("--photographs", default="skimage", help="those for validation are filmed (%(default)s)")
    add("--scenes", type=int, default=4, help="photographs (%(default)s)")
    add("--frames", type=int, default=8, help="of each video (%(default)s)")
    add("--side", type=int, default=256, help="of a frame, in pixels (%(default)s)")
    add("--moves", type=int, nargs="+", default=[0, 1, 4], help="pixels a frame (%(default)s)")
    add("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args()
    with one_line_errors():
        least = {"scenes": 1, "frames": 4, "side": 16}
        for name, value in least.items():
            if getattr(arguments, name) < value:
                found = f"--{name} is {getattr(arguments, name)}"
                raise InputError(f"{found}; expected at least {value}")
        if min(arguments.moves) < 0:
            raise InputError(f"--moves has {min(arguments.moves)}; expected 0 or more")
        if arguments.json:
            check_writable(arguments.json.parent)
        measure(arguments)


def measure(arguments: argparse.Namespace) -> None:
    """Restores every video in each way."""
    restore = load(arguments.checkpoint)
    scenes = photographs(arguments.photographs)[1][: arguments.scenes]
    table = Table(
        f"flicker in levels and PSNR in dB; {len(scenes)} scenes, {arguments.frames} frames of "
        f"{arguments.side}x{arguments.side}",
        {"rain": "<6", "move": "5d"}
        | {f"{name}{part}": spec for name in SYSTEMS for part, spec in PARTS.items()},
    )
    for kind in KINDS:
        for move in arguments.moves:
            videos = [filmed(each, kind, move, arguments) for each in scenes]
            row: dict[str, Any] = {}
            results = [results_of(restore, rainy) for rainy, _ in videos]
            for name, videos_of_system in zip(SYSTEMS, zip(*results, strict=True), strict=True):
                row[name] = np.mean([flicker(video, move) for video in videos_of_system])
                row[f"{name}_db"] = np.mean(
                    [
                        psnr(*frames, PROTOCOL)
                        for video, (_, clean) in zip(videos_of_system, videos, strict=True)
                        for frames in zip(video, clean[1:-1], strict=True)
                    ]
                )
            table.add(rain=kind, move=move, **row)
    table.write(arguments.json)


def filmed(
    photograph: Photograph, kind: Kind, move: int, arguments: argparse.Namespace
) -> tuple[Video, Video]:
    """The frames with and without rain.

    Raises:
        InputError: if the photograph is too small.
    """
    whole, side = read_image(photograph.path), arguments.side
    width = side + move * (arguments.frames - 1)
    if whole.shape[0] < side or whole.shape[1] < width:
        found = f"{whole.shape[1]}x{whole.shape[0]}"
        raise InputError(f"{photograph.name} is {found}; expected at least {width}x{side}")
    clean = [whole[:side, move * i : move * i + side] for i in range(arguments.frames)]
    rng = np.random.default_rng(0)
    return [add_rain(frame, rng, steady(kind))[0] for frame in clean], clean


def steady(kind: Kind) -> RainConfig:
    """Rain of one kind that has the middle of every range, and no gray sky, fog or veil."""
    mix = RainConfig.only(kind)
    fields = {field.name: getattr(mix, field.name) for field in dataclasses.fields(mix)}
    fields |= {name: middle(value) for name, value in fields.items()}
    whole = ("ragged_layers", "fine_layers", "heavy_layers", "jpeg_quality")
    fields |= {name: tuple(map(int, fields[name])) for name in whole}
    fields |= dict.fromkeys((name for name in fields if name.endswith("_share")), 0.0)
    still = dict.fromkeys(("lean", "lean_of_layers", "heavy_lean_of_layers", "veil"), 0.0)
    return RainConfig(**fields | still)


def middle(value: Any) -> Any:
    """A range without width, at its middle; anything else as it is."""
    if isinstance(value, DropRanges | NoiseRanges):
        fields = dataclasses.fields(value)
        return type(value)(*(middle(getattr(value, field.name)) for field in fields))
    return (sum(value) / 2,) * 2 if isinstance(value, tuple) else value


def results_of(restore: Restore, rainy: Video) -> tuple[Video, ...]:
    """What each system makes of the frames that have two neighbors."""
    restored = [restore(frame) for frame in rainy]
    median = [restore(frame) for frame in medians(rainy)]
    return rainy[1:-1], restored[1:-1], medians(restored), median


def medians(video: Video) -> Video:
    """Of each frame with two neighbors and these."""
    triples = zip(video, video[1:], video[2:], strict=False)
    return [np.median(three, axis=0).astype(np.uint8) for three in triples]


def flicker(video: Video, move: int) -> float:
    """Mean absolute difference of successive frames, once their motion is undone."""
    frames = [frame.astype(float) for frame in video]
    return float(
        np.mean(
            [
                np.abs(first[:, move:] - then[:, : then.shape[1] - move]).mean()
                for first, then in itertools.pairwise(frames)
            ]
        )
    )


if __name__ == "__main__":
    main()
