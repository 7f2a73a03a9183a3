"""Bounds of what programs need, and which of them measured rows exceed.

A file of bounds has a table for each machine ("v5e", "cpu"), with the most that each figure of each
row may be.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

Row = Mapping[str, Any]
Bounds = Mapping[str, Mapping[str, float]]
UNEVEN = 0.02
"""By how much the operations of a chip may differ with the number of chips."""


def exceeded(rows: Iterable[Row], bounds: Bounds) -> list[str]:
    """One line for each figure above its bound; a row without bounds has none."""
    lines = []
    for row in rows:
        for name, most in bounds.get(row["key"], {}).items():
            if "error" in row:
                lines.append(f"{row['key']}: {row['error']}; expected {name} of at most {most:.4g}")
            elif name not in row:
                lines.append(f"{row['key']}: {name} is unknown; expected at most {most:.4g}")
            elif row[name] > most:
                lines.append(
                    f"{row['key']}: {name} is {row[name]:.4g}; expected at most {most:.4g}"
                )
    return lines


def uneven(rows: Iterable[Row]) -> list[str]:
    """One line for each program whose chips do not compute as much as the first like it."""
    lines = []
    first: dict[tuple[Any, ...], Row] = {}
    for row in rows:
        if "error" in row:
            continue
        same = ("what", "batch", "height", "width", "preset", "dtype", "strips")
        other = first.setdefault(tuple(row[name] for name in same), row)
        if abs(row["flops"] / other["flops"] - 1) > UNEVEN:
            lines.append(
                f"{row['key']}: {row['flops']:.4g} operations a chip; expected those of "
                f"{other['key']}, {other['flops']:.4g}, to {UNEVEN:.0%}"
            )
    return lines


def bounds_of(rows: Iterable[Row], names: Iterable[str]) -> dict[str, dict[str, float]]:
    """Bounds of the named figures, where known, that these rows meet with a quarter to spare."""
    return {
        row["key"]: {name: float(f"{1.25 * row[name]:.4g}") for name in names if name in row}
        for row in rows
        if "error" not in row
    }
