"""How long importing the package and listing the commands take: python benchmarks/startup.py.

The median of several new processes each. The first two exceed `LIMIT` on no quiet machine.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

LIMIT = 1.5
"""Seconds."""
_RUNS = 9
_COMMANDS = {
    "import drsformer_jax": ["-c", "import drsformer_jax"],
    "drsformer --help": ["-m", "drsformer_jax", "--help"],
    "drsformer derain --help": ["-m", "drsformer_jax", "derain", "--help"],
}


def seconds(arguments: list[str]) -> float:
    """Of a Python process with these arguments."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    """Prints a row for each command."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    print(f"median of {_RUNS} processes; limit {LIMIT} s")
    medians = []
    for name, arguments in _COMMANDS.items():
        medians.append(statistics.median(seconds(arguments) for _ in range(_RUNS)))
        print(f"{name:25} {medians[-1]:.2f} s")
    if max(medians[:2]) > LIMIT:
        sys.exit(f"error: {max(medians[:2]):.2f} s; expected at most {LIMIT} s on a quiet machine")


if __name__ == "__main__":
    main()
