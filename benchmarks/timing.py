"""Programs that take turns, and tables of what they took: what the benchmarks share."""

from __future__ import annotations

import json
import os
import re
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from drsformer_jax.files import write_text
from drsformer_jax.ops.implementations import jit_for
from drsformer_jax.scoring.tables import line


def race(
    programs: Mapping[Any, Callable[[], object]], runs: int, pause: float = 0
) -> dict[Any, float]:
    """Median seconds of programs that take turns, after a turn of each that does not count.

    Args:
        programs: each ends when its work is done, not when it is under way.
        runs: of each, that count.
        pause: seconds between turns.
    """
    times: dict[Any, list[float]] = {name: [] for name in programs}
    for turn in range(runs + 1):
        for name, program in programs.items():
            time.sleep(pause)
            spent = seconds(program)
            if turn:
                times[name].append(spent)
    return {name: statistics.median(found) for name, found in times.items()}


def seconds(program: Callable[[], object]) -> float:
    """Time that a program takes, once."""
    start = time.perf_counter()
    program()
    return time.perf_counter() - start


def jitted(function: Callable[..., Any]) -> Any:
    """A jitted function as the package's programs are."""
    return jit_for(jax.default_backend(), function)


def compiled(function: Any, *inputs: Any) -> tuple[jax.stages.Compiled, float]:
    """The program of a jitted function for such inputs, and the seconds that compiling it took."""
    jax.config.update("jax_enable_compilation_cache", False)
    start = time.perf_counter()
    program = function.lower(*inputs).compile()
    return program, time.perf_counter() - start


def ready(program: Callable[..., Any], *inputs: Any) -> Callable[[], object]:
    """A program with its inputs, which ends when the result is there."""
    return lambda: jax.block_until_ready(program(*inputs))


def temporaries(program: jax.stages.Compiled) -> float:
    """MiB that a program takes beside its inputs and outputs."""
    return program.memory_analysis().temp_size_in_bytes / 2**20


def machine(device: jax.Device | None = None) -> str:
    """What the figures are of; the first device where none is named."""
    kind = (device or jax.devices()[0]).device_kind
    linux = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if linux else os.cpu_count()
    return f"{kind}, {cores} CPU cores, JAX {jax.__version__}"


def size_text(height: int, width: int) -> str:
    """A size as it is written, width first."""
    return f"{width}x{height}"


def image_size(text: str) -> tuple[int, int]:
    """(height, width) of a size as `size_text` writes it; for argparse."""
    width, height = map(int, text.split("x"))
    return height, width


class Table:
    """Rows that are printed as they come, and written together.

    Args:
        title: what the figures are of.
        columns: name of each figure to its format, such as `<24` for texts and `9.1f` for numbers;
            the heading is the name, its underscores as blanks and `_per_` as a slash.
    """

    def __init__(self, title: str, columns: Mapping[str, str]) -> None:
        self.title = title
        self.rows: list[dict[str, Any]] = []
        self._columns = columns
        headings = {name: name.replace("_per_", "/").replace("_", " ") for name in columns}
        self._widths = [
            max(int(re.findall(r"\d+", spec)[0]), len(headings[name]))
            * (-1 if spec[0] == "<" else 1)
            for name, spec in columns.items()
        ]
        print(title)
        self._print(headings)

    def add(self, **row: Any) -> None:
        """Prints and keeps a row; None is shown as a dash, and more than the columns is kept."""
        self.rows.append(row)
        self._print(
            {
                name: "-" if row.get(name) is None else format(row[name], spec)
                for name, spec in self._columns.items()
            }
        )

    def write(self, path: Path | None) -> None:
        """Writes title and rows as JSON, where a file is named."""
        if path:
            write_text(path, json.dumps({"title": self.title, "rows": self.rows}, indent=2) + "\n")

    def _print(self, cells: Mapping[str, str]) -> None:
        print(line([cells[name].strip() for name in self._columns], self._widths), flush=True)
