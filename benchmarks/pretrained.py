"""What checkpoints gain on rainy images and harm on clean ones, beside filters without a network.

python benchmarks/pretrained.py --checkpoint RUN --data Rain100L=DIR --photographs FOLDER

Each set of pairs is a column: those of --data, and synthetic rain of each kind on the photographs
that are for validation alone. Of a larger photograph a part of 512x512 pixels is scored, the same
for all kinds. The filters are those of scikit-image, with the settings that have the best mean PSNR
on that synthetic rain.

"Clean" are the same photographs without rain, which should stay as they are: the figures are the
least and the mean PSNR between photograph and result. It is infinite ("inf", null in JSON) where
nothing changes; the mean is over the photographs that do change.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import math
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filters import FILTERS, Restore, best_setting
from timing import Table, machine, seconds

from drsformer_jax.config import Protocol, RainConfig
from drsformer_jax.data.folders import find_images, find_pairs
from drsformer_jax.data.pairs import Cached, Pair, PairedFiles, Pairs, sizes_of
from drsformer_jax.data.sheets import contact_sheet, spread
from drsformer_jax.data.synthetic import SyntheticRain, photographs
from drsformer_jax.errors import InputError, one_line_errors
from drsformer_jax.files import check_writable, write_text
from drsformer_jax.images.pixels import check_extension, read_image, write_image
from drsformer_jax.restoring import Restorer
from drsformer_jax.scoring.evaluation import Scores, mean, score
from drsformer_jax.scoring.tables import figures
from drsformer_jax.training.reporting import finite

PROTOCOL: Protocol = "rain200_spa"
KINDS = ("light", "fine", "heavy")
CLEAN = "clean"
WINDOW = 512
"""Most pixels of a side of validation photographs and real images."""
_SEED = 0
_MEMORY = 2**30
"""Bytes of images of each dataset that are kept; others are read or rendered for each system."""
_ON_SHEET = 2
"""Pairs of each set."""
_REAL_ON_SHEET = 8
_LEGEND = (
    f"Luma PSNR in dB and SSIM by {PROTOCOL}: of the rainy images, and the gain of each "
    "method. Clean: PSNR of photographs without rain after restoration."
)


@dataclass(frozen=True)
class System:
    """What removes rain."""

    name: str
    restore: Restore
    setting: str = ""
    """Of a filter."""


RAINY = System("rainy", lambda image: image)
"""Leaves images as they are."""


@dataclass(frozen=True)
class Row:
    """What a system made of each set."""

    system: System
    scores: Mapping[str, Sequence[Scores]]
    """Of each pair of each set."""
    seconds_per_megapixel: float | None = None

    def clean(self) -> tuple[float, float]:
        """Least PSNR in dB of the photographs without rain, and the mean of those that changed."""
        found = [scores.restored_psnr for scores in self.scores[CLEAN]]
        changed = [value for value in found if math.isfinite(value)]
        return min(found), statistics.fmean(changed) if changed else math.inf


def main() -> None:
    """Prints the table, and writes the files that flags ask for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--checkpoint", type=Path, action="append", default=[], help="any network; may be repeated")
    add(
        "--data",
        nargs="+",
        action="extend",
        default=[],
        metavar="[NAME=]DIR[,DIR]",
        help="folders of input/ and target/; the name is the folder's where none is given",
    )
    add("--photographs", default="skimage", help="as training takes them; default skimage")
    add("--scenes", type=int, default=8, help="most photographs to use; default 8")
    add("--no-filters", action="store_true", help="score checkpoints alone")
    add("--sheet", type=Path, help="image file to draw some images of each set in")
    add("--real", type=Path, help=f"folder of rainy images, {_REAL_ON_SHEET} of them for the sheet")
    add("--json", type=Path, help="file for all figures, those of each image too")
    add("--markdown", type=Path, help="file for the table")
    arguments = parser.parse_args()
    with one_line_errors():
        compare(arguments)


def compare(arguments: argparse.Namespace) -> None:
    """Scores all systems on all sets."""
    if arguments.scenes < 1:
        raise InputError(f"--scenes is {arguments.scenes}; expected 1 or more")
    if arguments.real and not arguments.sheet:
        raise InputError(f"--real is {arguments.real} without --sheet; expected a file to draw in")
    if arguments.sheet:
        check_extension(arguments.sheet)
    for path in filter(None, (arguments.sheet, arguments.json, arguments.markdown)):
        check_writable(path.parent)  # Before the work, whose figures would be lost.
    real = real_images(arguments.real) if arguments.real else []
    sets = open_sets(arguments.data) | open_scenes(arguments.photographs, arguments.scenes)
    sizes = [size for pairs in sets.values() for size in sizes_of(pairs)]
    sizes += [image.shape[:2] for image in real]
    networks = []
    for path in arguments.checkpoint:
        restorer = Restorer.load(path)
        restorer.plan(sizes)
        networks.append(System(str(path), restorer))
    systems = networks if arguments.no_filters else [*networks, *best_filters(sets)]

    heads = headings(sets)
    widths = [f"<{max(len(system.name) for system in (RAINY, *systems))}"]
    widths += [">14"] * len(sets) + [">6"] * 2
    table = Table(_LEGEND, dict(zip(heads, widths, strict=True)))
    rows = []
    for row in score_all(systems, sets):
        table.add(**dict(zip(heads, cells(row), strict=True)))
        rows.append(row)
    if arguments.json:
        write_text(arguments.json, json.dumps(document(rows, sets), indent=2) + "\n")
    if arguments.markdown:
        write_text(arguments.markdown, markdown(rows, sets))
    if arguments.sheet:
        write_image(arguments.sheet, sheet(networks or systems, sets, real))


def open_sets(arguments: Sequence[str]) -> dict[str, Pairs]:
    """Opens folders of pairs.

    Args:
        arguments: of `--data`: each a folder, or several with commas between them, after `NAME=`
            or alone.

    Returns:
        The pairs by name, in the order given.

    Raises:
        InputError: if a folder has no pairs, or two sets have one name.
    """
    named = []
    for argument in arguments:
        name, _, folders = argument.rpartition("=")
        paths = [Path(folder) for folder in folders.split(",")]
        named.append((name or paths[0].resolve().name, paths))
    counts = Counter([*KINDS, CLEAN, *(name for name, _ in named)])
    sets: dict[str, Pairs] = {}
    for name, paths in named:
        if counts[name] > 1:
            raise InputError(
                f"--data has {counts[name]} sets of the name {name}, such as {paths[0]}; expected "
                "NAME=DIR with a name of its own"
            )
        found = [
            (f"{path.name}/{file}" if len(paths) > 1 else file, rainy, clean)
            for path in paths
            for file, rainy, clean in find_pairs(path)
        ]
        sets[name] = Cached(PairedFiles(found), _MEMORY)
    return sets


def open_scenes(source: str, count: int) -> dict[str, Pairs]:
    """Opens synthetic rain of each kind on validation photographs, and these without rain.

    Args:
        source: as `drsformer_jax.data.synthetic.photographs` takes it.
        count: most photographs; they are spread evenly over all that are for validation.

    Raises:
        InputError: as `photographs`.
    """
    _, validation = photographs(source)
    chosen = [validation[index] for index in spread(len(validation), count)]
    rains = {kind: RainConfig.only(kind) for kind in KINDS}
    rains[CLEAN] = dataclasses.replace(RainConfig.only("none"), overcast_share=0.0)
    return {
        name: Cached(SyntheticRain(chosen, 1, _SEED, rain=rain, window=WINDOW), _MEMORY)
        for name, rain in rains.items()
    }


def real_images(folder: Path) -> list[np.ndarray]:
    """Reads the middle of some images of a folder, each uint8 (h, w, 3)."""
    paths = find_images(folder)
    images = []
    for index in spread(len(paths), _REAL_ON_SHEET):
        image = read_image(paths[index])
        top, left = (max(side - WINDOW, 0) // 2 for side in image.shape[:2])
        images.append(image[top : top + WINDOW, left : left + WINDOW])
    return images


def each(pairs: Pairs) -> Iterator[Pair]:
    """The pairs, one after another."""
    return (pairs[index] for index in range(len(pairs)))


def best_filters(sets: Mapping[str, Pairs]) -> list[System]:
    """The filters with their best settings on the synthetic rain, which are printed."""
    scenes = [scene for kind in KINDS for scene in each(sets[kind])]
    systems = []
    for name, candidate in FILTERS.items():
        setting, restore = best_setting(candidate, scenes, PROTOCOL)
        text = ", ".join(f"{key} {value}" for key, value in setting.items())
        print(f"{name}: {text} is the best of {len(candidate.settings)} settings", flush=True)
        systems.append(System(name, restore, text))
    if "wavelet" not in FILTERS:
        print("wavelet: left out, for PyWavelets is not installed")
    return systems


def score_all(systems: Sequence[System], sets: Mapping[str, Pairs]) -> Iterator[Row]:
    """Scores the rainy images as they are, and then what each system makes of them."""
    for system in (RAINY, *systems):
        scores: dict[str, list[Scores]] = {}
        spent = pixels = 0.0
        for name, pairs in sets.items():
            scores[name] = [
                score(pair["rainy"], system.restore(pair["rainy"]), pair["clean"], PROTOCOL)
                for pair in each(pairs)
            ]
            # What this image needs was compiled above.
            image = pairs[0]["rainy"]
            spent += seconds(functools.partial(system.restore, image))
            pixels += image.size / 3
        yield Row(system, scores, None if system is RAINY else spent / pixels * 1e6)


def headings(sets: Mapping[str, Pairs]) -> list[str]:
    """The headings of the columns."""
    counted = [f"{name} ({len(pairs)})" for name, pairs in sets.items() if name != CLEAN]
    return ["system", *counted, "clean, least", "clean, mean", "s/megapixel"]


def cells(row: Row) -> list[str]:
    """The texts of a row of the table, in the order of `headings`."""
    texts = []
    for name, scores in row.scores.items():
        average = mean(scores)
        if name == CLEAN:
            texts += [f"{value:.2f}" for value in row.clean()]
        elif row.system is RAINY:
            texts.append(f"{average.rainy_psnr:.2f} {average.rainy_ssim:.4f}")
        else:
            texts.append(f"{average.gain:+.2f} {ssim_gain(average):+.4f}")
    time = row.seconds_per_megapixel
    return [row.system.name, *texts, "-" if time is None else f"{time:.2f}"]


def ssim_gain(scores: Scores) -> float:
    """What restoring adds to the SSIM."""
    return scores.restored_ssim - scores.rainy_ssim


def document(rows: Sequence[Row], sets: Mapping[str, Pairs]) -> dict[str, Any]:
    """All figures, for JSON."""

    def all_of(scores: Scores) -> dict[str, Any]:
        return figures(scores) | finite({"ssim_gain": ssim_gain(scores)})

    names = {name: [pair["name"] for pair in each(pairs)] for name, pairs in sets.items()}
    return {
        "protocol": PROTOCOL,
        "machine": machine(),
        "systems": [
            {
                "system": row.system.name,
                "setting": row.system.setting,
                "seconds_per_megapixel": row.seconds_per_megapixel,
                "clean_psnr": finite(dict(zip(("least", "mean"), row.clean(), strict=True))),
                "sets": {
                    name: {
                        "mean": all_of(mean(scores)),
                        "images": [
                            {"name": image, **all_of(found)}
                            for image, found in zip(names[name], scores, strict=True)
                        ],
                    }
                    for name, scores in row.scores.items()
                },
            }
            for row in rows
        ],
    }


def markdown(rows: Sequence[Row], sets: Mapping[str, Pairs]) -> str:
    """The table for a README, with the filters' settings below."""
    heads = headings(sets)
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *map(cells, rows)]
    settings = [f"{row.system.name}: {row.system.setting}" for row in rows if row.system.setting]
    escaped = ([cell.replace("|", "\\|") for cell in line] for line in lines)
    parts = [
        _LEGEND,
        "\n".join(f"| {' | '.join(line)} |" for line in escaped),
        f"Times on {machine()}.",
    ]
    if settings:
        parts.append(f"Settings of the filters: {'; '.join(settings)}.")
    return "\n\n".join(parts) + "\n"


def sheet(
    systems: Sequence[System], sets: Mapping[str, Pairs], real: Sequence[np.ndarray]
) -> np.ndarray:
    """Rainy, restored and clean images of each set, below them real ones: uint8 (h, w, 3).

    Args:
        systems: a column each.
        sets: pairs by name.
        real: rainy images.
    """

    def restored(image: np.ndarray) -> list[np.ndarray]:
        return [image, *(system.restore(image) for system in systems)]

    names = [system.name for system in systems]
    parts = []
    for name, pairs in sets.items():
        shown = [pairs[index] for index in spread(len(pairs), _ON_SHEET)]
        lines = [[*restored(pair["rainy"]), pair["clean"]] for pair in shown]
        parts.append([contact_sheet(lines, (f"{name}: rainy", *names, "clean"))])
    if real:
        parts.append([contact_sheet(list(map(restored, real)), ("real: rainy", *names))])
    return contact_sheet(parts)


if __name__ == "__main__":
    main()
