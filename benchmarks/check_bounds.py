"""Measures what benchmarks/bounds.json bounds, and fails with one line for each bound exceeded.

python benchmarks/check_bounds.py [--write-bounds]

It takes 12 minutes, for GPUs 7 more and for TPUs an hour, and wants a machine that does nothing
else. What cannot be measured here (PyTorch or a compiler is not installed) is said, and not a
failure.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bounds import Row, bounds_of, exceeded

from drsformer_jax.errors import InputError, one_line_errors
from drsformer_jax.files import write_text

FOLDER = Path(__file__).parent
BOUNDS = FOLDER / "bounds.json"
NETWORKS = ("drsformer", "drsformer_no_mefc")
SIZE = "256x256"
PROGRAMS = (
    ("libtpu", "tpu_compile.py", "xla"),
    ("jax_cuda12_plugin", "gpu_compile.py", "xla"),
    ("jax_cuda12_plugin", "gpu_compile.py", "pallas"),
)
"""What compiles them, our program, and its kernels."""


def main() -> None:
    """Runs the benchmarks and compares."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--write-bounds", action="store_true", help="of 1.25 times what is found; checks nothing"
    )
    arguments = parser.parse_args()
    with one_line_errors():
        bounds = json.loads(BOUNDS.read_text())
        rows = [*ratios_to_torch(), folder_of_images()]
        if arguments.write_bounds:
            for row in rows:
                bounds["cpu"] |= bounds_of([row], row.keys() - {"key"})
            write_text(BOUNDS, json.dumps(bounds, indent=2) + "\n")
            return
        lines = exceeded(rows, bounds["cpu"])
        print("\n".join(lines) or "all bounds of the CPU hold")
        holds = [programs_hold(*row) for row in PROGRAMS]
        sys.exit(1 if lines or not all(holds) else 0)


def ratios_to_torch() -> list[Row]:
    """Our time over PyTorch's for the float32 forward, by network."""
    if importlib.util.find_spec("torch") is None:
        print("PyTorch is not installed: the ratio to it is not checked")
        return []
    row: dict[str, Any] = {"key": "ratio_to_torch"}
    for preset in NETWORKS:
        network = ("--preset", preset, "--size", SIZE)
        found = figures("against_torch.py", *network, "--dtypes", "float32", "--modes", "eager")[-1]
        if "failed" in found:
            raise InputError(f"{found['program']} failed ({found['failed']}); expected its time")
        row[f"{preset} {SIZE}"] = found["ours_float32_over_it"]
    return [row]


def folder_of_images() -> Row:
    """What a folder of images of many sizes takes."""
    first, second = figures("derain_folder.py")
    return {
        "key": "derain_folder",
        "sizes_compiled": first["sizes_compiled"],
        "second_first_image_s": second["first_image_s"],
    }


def figures(program: str, *arguments: str) -> list[dict[str, Any]]:
    """The rows that a benchmark prints."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "figures.json"
        command = [sys.executable, str(FOLDER / program), *arguments, "--json", str(file)]
        if subprocess.run(command).returncode:
            raise InputError(f"{program} failed; expected figures of it")
        return json.loads(file.read_text())["rows"]


def programs_hold(compiler: str, program: str, kernels: str) -> bool:
    """Whether programs compiled for a TPU or a GPU keep their bounds.

    True where they cannot be compiled, because the package `compiler` is missing.
    """
    if importlib.util.find_spec(compiler) is None:
        print(f"{compiler} is not installed: {program} --kernels {kernels} is not checked")
        return True
    options = ("--suite", "--kernels", kernels, "--check", str(BOUNDS))
    return not subprocess.run([sys.executable, str(FOLDER / program), *options]).returncode


if __name__ == "__main__":
    main()
