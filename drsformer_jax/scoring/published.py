"""The benchmarks, and what was published on them: `published_results.json` says by whom."""

from __future__ import annotations

import functools
import importlib.resources
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from drsformer_jax.config import Protocol
from drsformer_jax.errors import InputError


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
    """Millions of parameters; None where they are not known, like the next."""
    multiply_accumulates_g: float | None
    """Billions of multiply-accumulates for an image of 256x256."""
    source: Literal["published", "measured"]


def dataset(name: str) -> Dataset:
    """A benchmark by its name; capitals, `-` and `_` do not matter.

    Raises:
        InputError: if no benchmark has the name.
    """
    for known in DATASETS.values():
        if _plain(known.name) == _plain(name):
            return known
    raise InputError(f"the dataset is {name!r}; expected one of {', '.join(DATASETS)}")


def results(dataset: Dataset) -> list[System]:
    """Published rows of a benchmark, oldest system first; none where no figures are at hand."""
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
        pairs: how many pairs that was. Where they are not the whole test set the row does not
            compare with the others, and stands at the end.
    """
    rows = results(dataset)
    if pairs == dataset.test_pairs:
        return sorted([*rows, measured], key=lambda row: row.psnr)
    return [*sorted(rows, key=lambda row: row.psnr), measured]


def table(dataset: Dataset, systems: Sequence[System], pairs: int) -> str:
    """What `compare` returns, as lines for people; `>` marks what was measured."""
    if len(systems) == 1:
        lines = [f"no published figures on {dataset.name} are at hand"]
    else:
        width = max(len(row.system) for row in systems)
        lines = [
            f"{dataset.name}, protocol {dataset.protocol}; complexity for 256x256 pixels",
            f"  {'system':{width}}    PSNR    SSIM  parameters  multiply-accumulates",
        ]
        for row in systems:
            mark = ">" if row.source == "measured" else " "
            size = "" if row.parameters_m is None else f"{row.parameters_m:.4g} M"
            work = (
                "" if row.multiply_accumulates_g is None else f"{row.multiply_accumulates_g:.4g} G"
            )
            lines.append(
                f"{mark} {row.system:{width}}  {row.psnr:6.2f}  {row.ssim:6.4f}  {size:>10}  "
                f"{work:>20}  {row.source}"
            )
    if pairs != dataset.test_pairs:
        of = f"{pairs} of the" if pairs < dataset.test_pairs else f"{pairs} pairs instead of the"
        lines.append(
            f"{of} {dataset.test_pairs} pairs: averages do not compare with published ones"
        )
    return "\n".join(lines)


@functools.cache
def figures() -> Mapping[str, Any]:
    """All of `published_results.json`."""
    file = importlib.resources.files("drsformer_jax.scoring") / "published_results.json"
    return json.loads(file.read_text(encoding="utf-8"))


def _plain(name: str) -> str:
    return name.casefold().replace("-", "").replace("_", "")
