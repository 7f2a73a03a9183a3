"""Scores in tables and files: their columns, aligned lines, and what eval.py writes."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drsformer_jax.files import write_text
from drsformer_jax.scoring.evaluation import Scores
from drsformer_jax.training.reporting import finite


@dataclass(frozen=True)
class Column:
    """One score of an image."""

    name: str
    """Attribute of `Scores`."""
    heading: str
    unit: str
    spec: str
    """Format of the number."""

    def of(self, scores: Scores) -> float:
        """The score itself."""
        return getattr(scores, self.name)

    def text(self, scores: Scores) -> str:
        """The score as plain text shows it."""
        return format(self.of(scores), self.spec)


COLUMNS = (
    Column("rainy_psnr", "rainy PSNR", "dB", ".2f"),
    Column("rainy_ssim", "rainy SSIM", "", ".4f"),
    Column("restored_psnr", "restored PSNR", "dB", ".2f"),
    Column("restored_ssim", "restored SSIM", "", ".4f"),
    Column("gain", "gain", "dB", "+.2f"),
)
RESTORED_COLUMNS = COLUMNS[2:4]
"""Those that need no rainy image."""


def figures(scores: Scores, columns: Sequence[Column] = COLUMNS) -> dict[str, float | None]:
    """The scores by name, for JSON and CSV; None where one is infinite or undefined."""
    return finite({column.name: column.of(scores) for column in columns})


def line(cells: Sequence[str], widths: Sequence[int]) -> str:
    """One line of a table of text, two blanks between the columns.

    Args:
        cells: the texts of a row.
        widths: characters of each column; texts are right-aligned, where negative left-aligned.
    """
    padded = (
        cell.ljust(-width) if width < 0 else cell.rjust(width)
        for cell, width in zip(cells, widths, strict=True)
    )
    return "  ".join(padded).rstrip()


def write_scores(
    folder: Path, document: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]
) -> None:
    """Writes scores.json (everything) and scores.csv (a row per image)."""
    table = io.StringIO()
    writer = csv.DictWriter(table, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    text = json.dumps({**document, "images": rows}, indent=2, allow_nan=False) + "\n"
    write_text(folder / "scores.json", text)
    write_text(folder / "scores.csv", table.getvalue())
