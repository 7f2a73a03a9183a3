"""Measures what benchmarks/bounds.json bounds, and fails with one line for each bound exceeded.

python benchmarks/check_bounds.py
python benchmarks/check_bounds.py --measure   # prints bounds of 1.25 times what it finds

It takes about ten minutes and wants a machine that does nothing else. What cannot be measured here
(PyTorch or libtpu is not installed) is said, and not a failure.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from drsformer_jax.errors import InputError, one_line_errors

FOLDER = Path(__file__).parent
BOUNDS = FOLDER / "bounds.json"
SLACK = 1.25
"""Bounds over what was measured; counts have none."""
SIZES = {"drsformer": 256, "drsformer_no_mefc": 256}
"""Networks that are raced against PyTorch, and the sides of their pictures."""

Figures = dict[str, Any]
"""Numbers by name; nested."""


def main() -> None:
    """Runs the benchmarks and compares."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--measure", action="store_true", help="print bounds, and check nothing")
    arguments = parser.parse_args()
    with one_line_errors():
        found = {"cpu": {**ratios_to_torch(), **folder_of_pictures()}}
        if arguments.measure:
            print(json.dumps(with_slack(found), indent=2))
            return
        problems = exceeded(json.loads(BOUNDS.read_text())["cpu"], found["cpu"], "cpu")
        print("\n".join(problems))
        if not tpu_holds():
            problems.append("v5e")
        if problems:
            raise InputError(f"{len(problems)} bounds are exceeded; expected none")
        print("no bound is exceeded")


def exceeded(bounds: Mapping[str, Any], found: Mapping[str, Any], place: str) -> list[str]:
    """One line for each figure that is above its bound, or has none."""
    lines = []
    for name, value in flat(found, place):
        bound = dict(flat(bounds, place)).get(name)
        if bound is None:
            lines.append(f"{name} is {value:.4g}; expected a bound in {BOUNDS.name}")
        elif not value <= bound:
            lines.append(f"{name} is {value:.4g}; expected {bound:g} at most")
    return lines


def flat(figures: Mapping[str, Any], place: str) -> Iterator[tuple[str, float]]:
    """The numbers of nested figures, with names such as cpu.sizes_compiled."""
    for name, value in figures.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{place}.{name}")
        else:
            yield f"{place}.{name}", value


def with_slack(figures: Figures) -> Figures:
    """What is measured becomes what is allowed."""
    return {
        name: with_slack(value)
        if isinstance(value, dict)
        else value
        if isinstance(value, int)
        else float(f"{SLACK * value:.3g}")
        for name, value in figures.items()
    }


def ratios_to_torch() -> Figures:
    """Our time over PyTorch's, float32 forward, by network."""
    if importlib.util.find_spec("torch") is None:
        print("PyTorch is not installed: the ratio to it is not checked")
        return {}
    ratios = {}
    for preset, side in SIZES.items():
        command = ["against_torch.py", "--preset", preset, "--size", str(side), str(side)]
        rows = benchmark(*command, "--dtypes", "float32", "--ways", "eager", "--runs", "3")
        ratios[f"{preset} {side}x{side}"] = rows[-1]["ours_float32_over_it"]
    return {"ratio_to_torch": ratios}


def folder_of_pictures() -> Figures:
    """What a folder of pictures of many sizes takes."""
    first, second = benchmark("derain_folder.py", "--runs", "1")
    return {
        "derain_folder": {
            "sizes_compiled": first["sizes_compiled"],
            "seconds_to_first_picture": second["first_picture_s"],
        }
    }


def benchmark(program: str, *arguments: str) -> list[dict[str, Any]]:
    """The rows that a benchmark prints."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "figures.json"
        command = [sys.executable, str(FOLDER / program), *arguments, "--json", str(file)]
        if subprocess.run(command).returncode:
            raise InputError(f"{program} failed; expected figures of it")
        return json.loads(file.read_text())["rows"]


def tpu_holds() -> bool:
    """Whether what is compiled for a TPU keeps its bounds; true where that is not possible."""
    if importlib.util.find_spec("libtpu") is None:
        print("libtpu is not installed: programs for TPUs are not checked")
        return True
    return not subprocess.run(
        [sys.executable, str(FOLDER / "tpu_compile.py"), "--check"]
    ).returncode


if __name__ == "__main__":
    main()
