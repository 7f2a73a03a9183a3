"""Scores restored images: python eval.py --checkpoint RUN --input DIR --target DIR.

Or, for images that any program made: python eval.py --restored DIR --target DIR.
"""

from __future__ import annotations

from drsformer_jax.errors import InputError, before_imports, check_device, one_line_errors

if __name__ == "__main__":
    before_imports()

import dataclasses
import functools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import tyro

from drsformer_jax import remote, weights
from drsformer_jax.config import ModelConfig, Protocol
from drsformer_jax.data.datasets import default_data_dir, find_dataset, name_of, open_dataset
from drsformer_jax.data.folders import find_pairs_in, find_partners, read_pair
from drsformer_jax.data.pairs import PairedFiles, Pairs, sizes_of
from drsformer_jax.files import check_writable
from drsformer_jax.flags import parse
from drsformer_jax.images.pixels import png_name, read_image, write_image
from drsformer_jax.restoring import Restorer
from drsformer_jax.scoring import complexity, evaluation, published
from drsformer_jax.scoring.evaluation import Scores
from drsformer_jax.scoring.published import Dataset, System
from drsformer_jax.scoring.tables import (
    COLUMNS,
    RESTORED_COLUMNS,
    Column,
    figures,
    line,
    write_scores,
)
from drsformer_jax.training.reporting import finite

_SCORE_WIDTH = 13
_DATASET = ("data_folder", "data_split")
"""What scores say of a built dataset, beside what the user called it."""


@dataclass(frozen=True)
class Command:
    r"""Scores images against the ground truth: those that a checkpoint restores, or any program's.

    Files belong together if their names are equal except for the extension, or by --match.
    """

    checkpoint: Path | None = None
    """Network that restores the rainy images: a training run, a model folder (of drsformer
    convert), a .pth or .safetensors file of PyTorch, or builtin."""
    restored: Path | None = None
    """Folder of images that were restored before, instead of --checkpoint."""
    input: Path | None = None
    """Folder of rainy images; optional with --restored."""
    target: Path | None = None
    """Folder of clean images."""
    data: Path | None = None
    """Folder that holds input/ and target/, instead of these two flags. Or, with --checkpoint, a
    dataset that `drsformer build-data` built: rain200l, or a split of it such as rain13k:test100;
    default: its test split."""
    data_dir: Path | None = None
    """Folder of the built datasets; default: that of TFDS."""
    match: str | None = None
    r"""Regular expression searched in names without extension; its first group, or all that it
    matches, must be equal in files that belong together: '\d+' pairs norain-1.png with 1.png.
    Several rainy or restored images may share a clean one. With it, --input and --target may be
    one folder of rain-1.png and norain-1.png, as RainTrainL comes."""
    dataset: str | None = None
    """Benchmark whose protocol to score by, and whose published results to show: Rain200L,
    Rain200H, DID-Data, DDN-Data, SPA-Data, Rain100L, Rain100H, Test100, Test1200 or Test2800;
    default: that whose test split --data names, unless --protocol is given."""
    protocol: Protocol | None = None
    """did_ddn for DID-Data and DDN-Data, rain200_spa for all others; default: that of the dataset,
    or rain200_spa."""
    step: int | None = None
    """Checkpoint of a run; default: the best one."""
    save: Path | None = None
    """Folder for the images that the checkpoint restores, as PNG."""
    output: Path | None = None
    """Folder for scores.json and scores.csv; default: evaluation/NAME in the folder of the run,
    where NAME is the dataset or protocol, and the step if --step is given; or evaluation/WHAT/NAME
    in the current folder, where WHAT is the file of weights, the run in a bucket or the folder of
    --restored. Scores of
    other images or of another network are not overwritten."""

    @functools.cached_property
    def built(self) -> tuple[Path, str] | None:
        """The dataset that --data names, and its split; a bucket is asked once."""
        if self.data is None:
            return None
        return find_dataset(str(self.data), str(self.data_dir or ""))


@dataclass(frozen=True)
class Work:
    """Images to score, and how."""

    kind: Literal["checkpoint", "restored"]
    path: Path
    """The checkpoint, or the folder of restored images."""
    width: int
    """Characters of the longest name, or 0 if names are not known before."""
    results: Iterator[tuple[str, np.ndarray, Scores]]
    """Name, restored image and scores of each; computed lazily."""
    columns: Sequence[Column]
    """The scores that there are."""
    network: ModelConfig | None = None
    """None if it is not known."""
    step: int | None = None
    """Of the checkpoint, if it was named."""


def main() -> None:
    """Parses the command line and scores."""
    with one_line_errors():
        command = parse(functools.partial(tyro.cli, Command), prog="eval.py")
        check_device(jax.devices)
        score(command)


def score(command: Command) -> None:
    """Scores, prints a row per image, compares with published results, and writes the scores."""
    check_flags(command)
    dataset = benchmark_of(command)
    protocol = protocol_of(command, dataset)
    work = prepare(command, protocol)
    name = dataset.name if dataset else protocol
    output = command.output or default_output(work, name)
    document = {**described(work, command), "protocol": protocol}
    check_same(output, document)
    for folder in (output, command.save):
        if folder is not None:
            check_writable(folder)
    print(f"PSNR in dB and SSIM on luma, protocol {protocol}")
    scores, average = run(work, command.save)
    document["mean"] = figures(average, work.columns)
    if work.network is not None:
        document["complexity"] = network = {
            "parameters": complexity.parameters(work.network),
            "multiply_accumulates": complexity.macs(work.network),
        }
        print(
            f"{network['parameters']:,} parameters, {network['multiply_accumulates'] / 1e9:.2f} G "
            "MACs for an image of 256x256"
        )
    if dataset is not None:
        row = measured(work.path, average, document.get("complexity"))
        systems = published.compare(dataset, row, len(scores))
        document["dataset"] = {**dataclasses.asdict(dataset), "scored_pairs": len(scores)}
        document["systems"] = [finite(dataclasses.asdict(system)) for system in systems]
        print("\n" + published.table(dataset, systems, len(scores)) + "\n")
    rows = [{"image": name, **figures(each, work.columns)} for name, each in scores]
    write_scores(output, document, rows)
    print(f"scores are in {output / 'scores.json'} and {output / 'scores.csv'}")


def check_flags(command: Command) -> None:
    """Rejects flags that do not go together."""
    if command.checkpoint is not None and command.restored is not None:
        raise InputError("--checkpoint and --restored are both given; expected one of them")
    if command.checkpoint is None and command.restored is None:
        raise InputError("neither --checkpoint nor --restored is given; expected one of them")
    if command.restored is not None:
        for flag, value in (("--save", command.save), ("--step", command.step)):
            if value is not None:
                raise InputError(
                    f"{flag} is {value} beside --restored; expected --checkpoint for it"
                )
    may_be_none = command.data is None or command.data.is_dir()
    if command.data_dir is not None and may_be_none and command.built is None:
        raise InputError(
            f"--data-dir is {remote.shown(command.data_dir)} without a dataset; expected one as "
            "--data"
        )
    if command.data is not None:
        if command.input is not None or command.target is not None:
            raise InputError("--data is given beside --input or --target; expected it alone")
        return
    needed = {"--target": command.target}
    if command.checkpoint is not None:
        needed["--input"] = command.input
    for flag, value in needed.items():
        if value is None:
            raise InputError(f"{flag} is missing; expected it, or --data with input/ and target/")


def benchmark_of(command: Command) -> Dataset | None:
    """The benchmark that is named, or whose test split --data names, if any."""
    named = None if command.dataset is None else published.dataset(command.dataset)
    found = None
    if command.built is not None:
        folder, split = command.built
        part = split.partition("[")[0]
        if "+" not in split:
            found = published.find(name_of(folder) if part in ("", "test") else part)
    if named is None:
        return None if command.protocol else found
    if found not in (None, named):
        raise InputError(
            f"--dataset is {named.name} beside --data {command.data}, which is {found.name}; "
            "expected --data without --dataset, or --protocol instead of it"
        )
    return named


def described(work: Work, command: Command) -> dict[str, Any]:
    """What the scores are of."""
    paths: dict[str, Path | None] = {work.kind: work.path}
    if command.built is None:
        paths["input"], paths["target"] = folders_of(command)
    else:
        paths["data"], paths["data_folder"] = command.data, command.built[0]
    found = {name: remote.shown(path) for name, path in paths.items() if path is not None}
    if command.built is not None:
        found["data_split"] = command.built[1] or "test"
    found["current_folder"] = os.getcwd()  # That relative paths are relative to.
    return found if work.step is None else {**found, "step": work.step}


def check_same(folder: Path, document: Mapping[str, Any]) -> None:
    """Rejects to overwrite the scores of something else; those of older versions say too little."""
    path = folder / "scores.json"
    if not path.is_file():
        return
    try:
        before = dict(json.loads(path.read_text()))
    except (ValueError, TypeError):
        return
    if not before.keys() & {"restored", "checkpoint"}:
        return
    names, both = ["restored"], before.keys() & document.keys()
    run = Path(document.get("checkpoint", "")).resolve()
    if not folder.resolve().is_relative_to(run):  # In a run's own folder they are of that run.
        names.append("checkpoint")
    if before.keys() & {"data", "target"}:
        # Older versions did not say which folder the name of a dataset stood for.
        names += ["step", "target", *(_DATASET if {*_DATASET} <= both else ["data"])]
    names += both & {"input"}  # Rainy images may be added to the others.
    for name in names:
        found, new = before.get(name), document.get(name)
        if _named(name, before) != _named(name, document):
            raise InputError(
                f"{path} holds scores with {name} {found}, not {new}; expected that one, or "
                "another --output"
            )


def _named(name: str, document: Mapping[str, Any]) -> Any:
    """What a value of scores names, wherever they were made."""
    value = document.get(name)
    if not isinstance(value, str) or name == "data_split":
        return value
    if remote.address(value) or weights.is_builtin(value):
        return value
    return Path(document.get("current_folder", ""), value).resolve()


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
    """Finds the images and the network that restores them."""
    if command.restored is not None:
        return prepare_restored(command, command.restored, protocol)
    assert command.checkpoint is not None
    return prepare_checkpoint(command, command.checkpoint, protocol)


def prepare_checkpoint(command: Command, checkpoint: Path, protocol: Protocol) -> Work:
    """Finds the rainy images and reads the network that is to restore them."""
    checkpoint, step = weights.run_of(checkpoint, command.step)
    pairs, width = pairs_of(command)
    sizes_of(pairs)  # Rejects pairs of two sizes before the network is read.
    restorer = Restorer.load(checkpoint, step)
    results = (
        (pair["name"], restored, scores)
        for pair, restored, scores in evaluation.evaluate(restorer, pairs, protocol)
    )
    return Work("checkpoint", checkpoint, width, results, COLUMNS, restorer.config, step)


def pairs_of(command: Command) -> tuple[Pairs, int]:
    """The pairs to restore and score, of a dataset or of folders; and the width of their names."""
    found = command.built
    if found is not None:
        if command.match is not None:
            raise InputError(f"--match is {command.match} beside a dataset; expected folders")
        return open_dataset(*found, "test"), 0
    input_dir, target_dir = folders_of(command)
    assert input_dir is not None
    for folder in (input_dir, target_dir):
        if command.save is not None and command.save.resolve() == folder.resolve():
            raise InputError(f"--save is {folder}, whose images are read; expected another folder")
    listed = find_pairs_in(input_dir, target_dir, command.match)
    return PairedFiles(listed), width_of(listed)


def prepare_restored(command: Command, folder: Path, protocol: Protocol) -> Work:
    """Finds images that were restored before, and the rainy ones if their folder is given."""
    if command.built is not None:
        raise InputError(
            f"--data is {command.data}, a dataset, beside --restored; expected folders"
        )
    input_dir, target_dir = folders_of(command)
    pairs = find_partners(folder, target_dir, "norain", command.match)
    rainy_pairs = (
        [] if input_dir is None else find_partners(folder, input_dir, "rain", command.match)
    )
    for each in (pairs, rainy_pairs):
        sizes_of(PairedFiles(each))
    rainy_paths = {name: path for name, _, path in rainy_pairs}

    def results() -> Iterator[tuple[str, np.ndarray, Scores]]:
        for name, path, target_path in pairs:
            restored, clean = read_pair(path, target_path)
            rainy = read_image(rainy_paths[name]) if rainy_paths else None
            yield name, restored, evaluation.score(rainy, restored, clean, protocol)

    columns = COLUMNS if rainy_paths else RESTORED_COLUMNS
    return Work("restored", folder, width_of(pairs), results(), columns)


def width_of(pairs: Sequence[tuple[str, Path, Path]]) -> int:
    """Characters of the longest name."""
    return max(len(name) for name, *_ in pairs)


def folders_of(command: Command) -> tuple[Path | None, Path]:
    """The folders of rainy and of clean images."""
    if command.data is None:
        assert command.target is not None
        return command.input, command.target
    if not command.data.is_dir():
        folder = command.data_dir or default_data_dir()
        raise InputError(
            f"--data is {command.data}, no folder and no dataset in {remote.shown(folder)}; "
            "expected one of them"
        )
    return command.data / "input", command.data / "target"


def default_output(work: Work, name: str) -> Path:
    """In the folder of a run, but never beside a file or in the folder of another program."""
    name = name if work.step is None else f"{name}_{work.step}"
    if work.kind == "checkpoint" and work.path.is_dir():
        return work.path / "evaluation" / name
    return Path("evaluation") / work.path.resolve().name / name


def run(work: Work, save: Path | None) -> tuple[list[tuple[str, Scores]], Scores]:
    """Prints a row per image and their mean; returns both."""
    widths = [-max(16, work.width)] + [_SCORE_WIDTH] * len(work.columns)

    def show(name: str, cells: Sequence[str]) -> None:
        print(line([name, *cells], widths), flush=True)

    show("image", [column.heading for column in work.columns])
    scores: list[tuple[str, Scores]] = []
    for name, restored, each in work.results:
        scores.append((name, each))
        show(name, [column.text(each) for column in work.columns])
        if save is not None:
            # Lossless, also where the rainy image is a JPEG.
            write_image(save / png_name(name), restored)
    average = evaluation.mean([each for _, each in scores])
    show(f"mean of {len(scores)}", [column.text(average) for column in work.columns])
    return scores, average


def measured(path: Path, average: Scores, size: Mapping[str, int] | None) -> System:
    """The row of these scores beside published ones."""
    return System(
        path.resolve().name,
        average.restored_psnr,
        average.restored_ssim,
        size["parameters"] / 1e6 if size else None,
        size["multiply_accumulates"] / 1e9 if size else None,
        "measured",
    )


if __name__ == "__main__":
    main()
