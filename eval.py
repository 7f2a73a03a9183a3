"""Scores restored images: python eval.py --checkpoint RUN --input DIR --target DIR.

Or, for images that any program made: python eval.py --restored DIR --target DIR.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro

from drsformer_jax import weights
from drsformer_jax.config import ModelConfig, Protocol
from drsformer_jax.data.datasets import default_data_dir, find_dataset, open_dataset
from drsformer_jax.data.folders import find_pairs_in, read_pair
from drsformer_jax.data.pairs import PairedFiles, Pairs, sizes_of
from drsformer_jax.errors import InputError, one_line_errors
from drsformer_jax.files import write_text
from drsformer_jax.flags import parse
from drsformer_jax.images.pixels import read_image, write_image
from drsformer_jax.restoring import Restorer
from drsformer_jax.scoring import complexity, evaluation, published
from drsformer_jax.scoring.evaluation import Scores
from drsformer_jax.scoring.published import Dataset, System
from drsformer_jax.training.reporting import finite

_COLUMNS = {
    "rainy_psnr": ("rainy PSNR", ".2f"),
    "rainy_ssim": ("SSIM", ".4f"),
    "restored_psnr": ("restored PSNR", ".2f"),
    "restored_ssim": ("SSIM", ".4f"),
    "gain": ("gain", "+.2f"),
}
"""Heading and format of each score."""


@dataclass(frozen=True)
class Command:
    r"""Scores images against clean ones: those that a checkpoint restores, or any program's.

    Files belong together if their names are equal but for the extension, or by --match.
    """

    checkpoint: Path | None = None
    """What restores the rainy images: folder of a training run, or a file of weights."""
    restored: Path | None = None
    """Folder of images that were restored before, in place of --checkpoint."""
    input: Path | None = None
    """Folder of rainy images; with --restored it may be left out."""
    target: Path | None = None
    """Folder of clean images."""
    data: Path | None = None
    """Folder that holds input/ and target/, in place of the two flags. Or, with --checkpoint, a
    dataset that `drsformer build-data` built: rain200l, or a part of it such as rain13k:test100;
    its test split where no part is named."""
    data_dir: Path | None = None
    """Folder of the datasets that were built; that of TFDS where it is not given."""
    match: str | None = None
    r"""Regular expression searched in names without extension; its first group, or all that it
    matches, must be equal in files that belong together: '\d+' pairs norain-1.png with 1.png.
    Several rainy or restored images may share a clean one."""
    dataset: str | None = None
    """Benchmark whose protocol to score by, and whose published figures to show: Rain200L,
    Rain200H, DID-Data, DDN-Data, SPA-Data, Rain100L, Rain100H, Test100, Test1200 or Test2800."""
    protocol: Protocol | None = None
    """did_ddn for DID-Data and DDN-Data, rain200_spa for all others; the dataset's, or rain200_spa,
    where it is not given."""
    step: int | None = None
    """Checkpoint of a run to take; the best one where it is not given."""
    save: Path | None = None
    """Folder for the images that the checkpoint restores, as PNG."""
    output: Path | None = None
    """Folder for scores.json and scores.csv. Where it is not given: evaluation/NAME in the run's
    folder, NAME being the dataset or protocol; evaluation/WHAT/NAME in the current folder for
    WHAT, a file of weights or --restored."""


@dataclass(frozen=True)
class Work:
    """Images to score, and how."""

    kind: Literal["checkpoint", "restored"]
    path: Path
    """The checkpoint, or the folder of restored images."""
    width: int
    """Characters of the longest name, as far as names are known before."""
    results: Iterator[tuple[str, np.ndarray, Scores]]
    """Name, restored image and scores of each; computed as they are asked for."""
    columns: Sequence[str]
    """Which scores there are."""
    network: ModelConfig | None = None
    """What restores; None where that is not known."""


def main() -> None:
    """Parses the command line and scores."""
    with one_line_errors():
        score(parse(functools.partial(tyro.cli, Command), prog="eval.py"))


def score(command: Command) -> None:
    """Scores, prints a row an image, compares with what was published, and writes the scores."""
    dataset = None if command.dataset is None else published.dataset(command.dataset)
    protocol = protocol_of(command, dataset)
    work = prepare(command, protocol)
    output = command.output or default_output(work, dataset.name if dataset else protocol)
    for folder in (output, command.save):
        if folder is not None:  # Before the work, since a folder may not be writable.
            folder.mkdir(parents=True, exist_ok=True)
    print(f"PSNR in dB and SSIM on luma, protocol {protocol}")
    scores, average = run(work, command.save)
    document: dict[str, Any] = {work.kind: str(work.path), "protocol": protocol}
    document["mean"] = values(average, work.columns)
    if work.network is not None:
        document["complexity"] = network = size_of(work.network)
        print(
            f"{network['parameters']:,} parameters, {network['multiply_accumulates'] / 1e9:.2f} G "
            "multiply-accumulates for an image of 256x256"
        )
    if dataset is not None:
        systems = published.compare(dataset, measured(work, average), len(scores))
        document["dataset"] = {**dataclasses.asdict(dataset), "scored_pairs": len(scores)}
        document["systems"] = [finite(dataclasses.asdict(system)) for system in systems]
        print("\n" + published.table(dataset, systems, len(scores)) + "\n")
    rows = [{"image": name, **values(each, work.columns)} for name, each in scores]
    write_scores(output, document, rows)
    print(f"scores are in {output / 'scores.json'} and {output / 'scores.csv'}")


def protocol_of(command: Command, dataset: Dataset | None) -> Protocol:
    """The protocol of the dataset, or else the one that is asked for."""
    if dataset is None:
        return command.protocol or "rain200_spa"
    if command.protocol not in (None, dataset.protocol):
        raise InputError(
            f"--protocol is {command.protocol}, {dataset.name} is scored by {dataset.protocol}; "
            "expected --dataset without --protocol"
        )
    return dataset.protocol


def prepare(command: Command, protocol: Protocol) -> Work:
    """Finds the images and what restores them; refuses flags that do not go together."""
    if command.checkpoint is not None and command.restored is not None:
        raise InputError("--checkpoint and --restored are both given; expected one of them")
    if command.checkpoint is not None:
        return prepare_checkpoint(command, command.checkpoint, protocol)
    if command.restored is not None:
        return prepare_restored(command, command.restored, protocol)
    raise InputError("neither --checkpoint nor --restored is given; expected one of them")


def prepare_checkpoint(command: Command, checkpoint: Path, protocol: Protocol) -> Work:
    """Finds the rainy images and reads the network that is to restore them."""
    checkpoint, step = weights.run_of(checkpoint, command.step)
    pairs, width = pairs_of(command)
    sizes_of(pairs)  # Refuses pairs of two sizes before the network is read.
    restorer = Restorer.load(checkpoint, step)
    results = (
        (pair["name"], restored, scores)
        for pair, restored, scores in evaluation.evaluate(restorer, pairs, protocol)
    )
    return Work("checkpoint", checkpoint, width, results, tuple(_COLUMNS), restorer.config)


def pairs_of(command: Command) -> tuple[Pairs, int]:
    """The pairs to restore and score, of a dataset or of folders; and their names' width."""
    found = built_dataset(command)
    if found is not None:
        if command.match is not None:
            raise InputError(f"--match is {command.match} beside a dataset; expected folders")
        if command.input is not None or command.target is not None:
            raise InputError("--data is given beside --input or --target; expected it alone")
        return open_dataset(*found, "test"), 0
    input_dir, target_dir = folders_of(command)
    if input_dir is None:
        raise InputError("--input is missing; expected it, or --data with input/ and target/")
    for folder in (input_dir, target_dir):
        if command.save is not None and command.save.resolve() == folder.resolve():
            raise InputError(f"--save is {folder}, whose images are read; expected another folder")
    listed = find_pairs_in(input_dir, target_dir, command.match)
    return PairedFiles(listed), max(len(name) for name, *_ in listed)


def prepare_restored(command: Command, folder: Path, protocol: Protocol) -> Work:
    """Finds images that were restored before, and the rainy ones if their folder is known."""
    for flag, value in (("--save", command.save), ("--step", command.step)):
        if value is not None:
            raise InputError(f"{flag} is {value} beside --restored; expected --checkpoint for it")
    if built_dataset(command) is not None:
        raise InputError(
            f"--data is {command.data}, a dataset, beside --restored; expected folders"
        )
    input_dir, target_dir = folders_of(command)
    pairs = find_pairs_in(folder, target_dir, command.match)
    rainy_pairs = [] if input_dir is None else find_pairs_in(folder, input_dir, command.match)
    for each in (pairs, rainy_pairs):
        sizes_of(PairedFiles(each))
    rainy_paths = {name: path for name, _, path in rainy_pairs}

    def results() -> Iterator[tuple[str, np.ndarray, Scores]]:
        for name, path, target_path in pairs:
            restored, clean = read_pair(path, target_path)
            rainy = read_image(rainy_paths[name]) if rainy_paths else None
            yield name, restored, evaluation.score(rainy, restored, clean, protocol)

    columns = tuple(_COLUMNS) if rainy_paths else ("restored_psnr", "restored_ssim")
    width = max(len(name) for name, *_ in pairs)
    return Work("restored", folder, width, results(), columns)


def built_dataset(command: Command) -> tuple[Path, str] | None:
    """The dataset that --data names, and the part of it."""
    if command.data is None:
        return None
    return find_dataset(str(command.data), str(command.data_dir or ""))


def folders_of(command: Command) -> tuple[Path | None, Path]:
    """The folders of rainy and of clean images."""
    if command.data is not None:
        if command.input is not None or command.target is not None:
            raise InputError("--data is given beside --input or --target; expected it alone")
        if not command.data.is_dir():
            place = command.data_dir or default_data_dir()
            raise InputError(
                f"--data is {command.data}, no folder and no dataset in {place}; expected one of "
                "them"
            )
        return command.data / "input", command.data / "target"
    if command.target is None:
        raise InputError("--target is missing; expected it, or --data with input/ and target/")
    return command.input, command.target


def default_output(work: Work, name: str) -> Path:
    """A run keeps its scores; beside a file or in another program's folder nothing is written."""
    if work.kind == "checkpoint" and work.path.is_dir():
        return work.path / "evaluation" / name
    return Path("evaluation") / work.path.resolve().name / name


def run(work: Work, save: Path | None) -> tuple[list[tuple[str, Scores]], Scores]:
    """Prints a row an image and their mean; returns both."""
    width = max(16, work.width)
    headings = " ".join(f"{_COLUMNS[column][0]:>13}" for column in work.columns)
    print(f"{'image':{width}} {headings}")
    scores: list[tuple[str, Scores]] = []
    for name, restored, each in work.results:
        scores.append((name, each))
        print(row(name, each, work.columns, width), flush=True)
        if save is not None:
            # Without loss, also where the rainy image is a JPEG.
            write_image(save / Path(name).with_suffix(".png"), restored)
    average = evaluation.mean([each for _, each in scores])
    print(row(f"mean of {len(scores)}", average, work.columns, width))
    return scores, average


def row(name: str, scores: Scores, columns: Sequence[str], width: int) -> str:
    """One line of the table."""
    cells = (f"{getattr(scores, column):{_COLUMNS[column][1]}}" for column in columns)
    return f"{name:{width}} " + " ".join(f"{cell:>13}" for cell in cells)


def size_of(network: ModelConfig) -> dict[str, int]:
    """Parameters, and multiply-accumulates for an image of 256x256."""
    return {
        "parameters": complexity.parameters(network),
        "multiply_accumulates": complexity.multiply_accumulates(network),
    }


def measured(work: Work, average: Scores) -> System:
    """The row of what was scored here."""
    size = {} if work.network is None else size_of(work.network)
    return System(
        work.path.resolve().name,
        average.restored_psnr,
        average.restored_ssim,
        size["parameters"] / 1e6 if size else None,
        size["multiply_accumulates"] / 1e9 if size else None,
        "measured",
    )


def values(scores: Scores, columns: Sequence[str]) -> dict[str, float | None]:
    """The scores by name; None where one is infinite or undefined."""
    return finite({column: getattr(scores, column) for column in columns})


def write_scores(
    folder: Path, document: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]
) -> None:
    """Writes scores.json (everything) and scores.csv (a row an image)."""
    table = io.StringIO()
    writer = csv.DictWriter(table, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    text = json.dumps({**document, "images": rows}, indent=2, allow_nan=False) + "\n"
    write_text(folder / "scores.json", text)
    write_text(folder / "scores.csv", table.getvalue())


if __name__ == "__main__":
    main()
