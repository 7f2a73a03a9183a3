"""Scores a checkpoint: python eval.py --checkpoint RUN --input DIR --target DIR."""

from __future__ import annotations

import csv
import dataclasses
import functools
import io
import json
from dataclasses import dataclass
from pathlib import Path

import tyro

from drsformer_jax.config import Protocol
from drsformer_jax.data.folders import find_pairs_in
from drsformer_jax.data.images import write_picture
from drsformer_jax.data.pipeline import PairedFiles
from drsformer_jax.errors import one_line_errors
from drsformer_jax.evaluation import Scores, evaluate, mean
from drsformer_jax.files import write_text
from drsformer_jax.flags import parse
from drsformer_jax.reporting import finite
from drsformer_jax.restore import Restorer

_COLUMNS = ("rainy PSNR", "SSIM", "restored PSNR", "SSIM", "gain")


@dataclass(frozen=True)
class Command:
    """Restores rainy pictures and scores them against clean ones."""

    checkpoint: Path
    """Folder of a training run."""
    input: Path
    """Folder of rainy pictures."""
    target: Path
    """Folder of clean pictures under the same names."""
    protocol: Protocol = "rain200_spa"
    """rain200_spa for Rain200L/H, SPA-Data, Rain100L/H and Test100/1200/2800; did_ddn for DID-Data
    and DDN-Data."""
    step: int | None = None
    """Checkpoint to take; the best one where it is not given."""
    save: Path | None = None
    """Folder for the restored pictures, as PNG."""
    output: Path | None = None
    """Folder for scores.json and scores.csv; where not given, evaluation/PROTOCOL/ in the run's."""


def main() -> None:
    """Parses the command line and scores."""
    with one_line_errors():
        score(parse(functools.partial(tyro.cli, Command), prog="eval.py"))


def score(command: Command) -> None:
    """Restores, scores, prints a row a picture, and writes the scores."""
    pairs = PairedFiles(find_pairs_in(command.input, command.target))
    pairs.sizes()
    restorer = Restorer.load(command.checkpoint, command.step)
    output = command.output or command.checkpoint / "evaluation" / command.protocol
    for folder in (output, command.save):
        if folder is not None:  # Before the work, since a folder may not be writable.
            folder.mkdir(parents=True, exist_ok=True)
    results: dict[str, Scores] = {}
    width = max(len(pairs[0]["name"]), 16)
    print(f"PSNR in dB and SSIM on luma, protocol {command.protocol}")
    print(f"{'picture':{width}} " + " ".join(f"{column:>13}" for column in _COLUMNS))
    for pair, restored, scores in evaluate(restorer, pairs, command.protocol):
        results[pair["name"]] = scores
        print(row(pair["name"], scores, width), flush=True)
        if command.save is not None:
            # Without loss, also where the rainy picture is a JPEG.
            write_picture(command.save / f"{Path(pair['name']).stem}.png", restored)
    average = mean(list(results.values()))
    print(row(f"mean of {len(results)}", average, width))
    write_scores(output, command, results, average)
    print(f"scores are in {output / 'scores.json'} and {output / 'scores.csv'}")


def row(name: str, scores: Scores, width: int) -> str:
    """One line of the table."""
    values = (
        f"{scores.rainy_psnr:.2f}",
        f"{scores.rainy_ssim:.4f}",
        f"{scores.restored_psnr:.2f}",
        f"{scores.restored_ssim:.4f}",
        f"{scores.gain:+.2f}",
    )
    return f"{name:{width}} " + " ".join(f"{value:>13}" for value in values)


def write_scores(
    folder: Path, command: Command, results: dict[str, Scores], average: Scores
) -> None:
    """Writes scores.json (everything) and scores.csv (a row a picture)."""
    rows = [{"picture": name, **values(scores)} for name, scores in results.items()]
    document = {
        "checkpoint": str(command.checkpoint),
        "protocol": command.protocol,
        "mean": values(average),
        "pictures": rows,
    }
    table = io.StringIO()
    writer = csv.DictWriter(table, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(folder / "scores.json", json.dumps(document, indent=2, allow_nan=False) + "\n")
    write_text(folder / "scores.csv", table.getvalue())


def values(scores: Scores) -> dict[str, float | None]:
    """The scores and the gain by name; None where one is infinite or undefined."""
    return finite({**dataclasses.asdict(scores), "gain": scores.gain})


if __name__ == "__main__":
    main()
