"""The benchmarks and their published results, whose sources are in `published_results.json`."""

from __future__ import annotations

import functools
import importlib.resources
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from drsformer_jax.config import Protocol
from drsformer_jax.errors import InputError
from drsformer_jax.scoring.tables import line


@dataclass(frozen=True)
class Dataset:
    """A benchmark: the protocol of its published scores, and the pairs of its official test set."""

    name: str
    protocol: Protocol
    test_pairs: int


DATASETS: Mapping[str, Dataset] = {
    each.name: each
    for each in (
        Dataset("Rain200L", "rain200_spa", 200),
        Dataset("Rain200H", "rain200_spa", 200),
        Dataset("DID-Data", "did_ddn", 1200),
        Dataset("DDN-Data", "did_ddn", 1400),
        Dataset("SPA-Data", "rain200_spa", 1000),
        Dataset("Rain100L", "rain200_spa", 100),
        Dataset("Rain100H", "rain200_spa", 100),
        Dataset("Test100", "rain200_spa", 100),
        Dataset("Test1200", "rain200_spa", 1200),
        Dataset("Test2800", "rain200_spa", 2800),
    )
}


@dataclass(frozen=True)
class System:
    """One row of a comparison on a benchmark."""

    system: str
    psnr: float
    """In dB, on luma."""
    ssim: float
    parameters_m: float | None
    """Millions of parameters; None if unknown, like the next."""
    multiply_accumulates_g: float | None
    """Billions of MACs for an image of 256x256."""
    source: Literal["published", "measured"]


def dataset(name: str) -> Dataset:
    """A benchmark by its name, whatever the case and with or without `-` and `_`.

    Raises:
        InputError: if no benchmark has the name.
    """
    if (found := find(name)) is None:
        raise InputError(f"the dataset is {name!r}; expected one of {', '.join(DATASETS)}")
    return found


def find(name: str) -> Dataset | None:
    """As `dataset`, but None if no benchmark has the name."""
    return next((each for each in DATASETS.values() if _plain(each.name) == _plain(name)), None)


def results(dataset: Dataset) -> list[System]:
    """Published rows of a benchmark, oldest system first; empty if none are available."""
    return [
        System(
            name,
            **entry["quality"][dataset.name],
            parameters_m=entry.get("complexity", {}).get("parameters_m"),
            multiply_accumulates_g=entry.get("complexity", {}).get("multiply_accumulates_g"),
            source="published",
        )
        for name, entry in figures()["systems"].items()
        if dataset.name in entry["quality"]
    ]


def compare(dataset: Dataset, measured: System, pairs: int) -> list[System]:
    """Published rows by rising PSNR, and a measured one.

    Args:
        dataset: the benchmark.
        measured: what was measured on it.
        pairs: number of pairs that were scored. Unless it is the whole test set, the measured row
            does not compare with the others and comes last.
    """
    rows = results(dataset)
    if pairs == dataset.test_pairs:
        return sorted([*rows, measured], key=lambda row: row.psnr)
    return [*sorted(rows, key=lambda row: row.psnr), measured]


def table(dataset: Dataset, systems: Sequence[System], pairs: int) -> str:
    """The rows of `compare` as text, with `>` before the measured one."""
    if len(systems) == 1:
        lines = [f"no published results on {dataset.name} are available"]
    else:
        widths = [-max(len(row.system) for row in systems) - 2, 6, 6, 10, 7, -9]
        lines = [
            f"{dataset.name}, protocol {dataset.protocol}; parameters, MACs for 256x256 pixels",
            line(["  system", "PSNR", "SSIM", "parameters", "MACs", ""], widths),
            *(line(_cells(row), widths) for row in systems),
        ]
    if pairs != dataset.test_pairs:
        of = f"{pairs} of the" if pairs < dataset.test_pairs else f"{pairs} pairs instead of the"
        lines.append(f"{of} {dataset.test_pairs} pairs: not comparable with published averages")
    return "\n".join(lines)


def _cells(row: System) -> list[str]:
    parameters, macs = row.parameters_m, row.multiply_accumulates_g
    return [
        f"{'>' if row.source == 'measured' else ' '} {row.system}",
        f"{row.psnr:.2f}",
        f"{row.ssim:.4f}",
        "" if parameters is None else f"{parameters:.4g} M",
        "" if macs is None else f"{macs:.4g} G",
        row.source,
    ]


@functools.cache
def figures() -> Mapping[str, Any]:
    """The content of `published_results.json`."""
    file = importlib.resources.files("drsformer_jax.scoring") / "published_results.json"
    return json.loads(file.read_text(encoding="utf-8"))


def _plain(name: str) -> str:
    return name.casefold().replace("-", "").replace("_", "")
