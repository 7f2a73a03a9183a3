"""Times restoring images: what a network, a size, a batch and a type cost.

python benchmarks/forward.py [--presets drsformer] [--sizes 256x256 1024x768] [--json F.json]
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from timing import Table, compiled, image_size, jitted, machine, race, ready, size_text, temporaries

from drsformer_jax.config import PRESETS
from drsformer_jax.errors import one_line_errors
from drsformer_jax.nn.functional import apply, init_params


def main() -> None:
    """Prints seconds of compilation, milliseconds, pixels per second and memory of each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--presets", nargs="+", choices=PRESETS, default=["tiny", "drsformer"], help="(%(default)s)"
    )
    parser.add_argument(
        "--sizes", nargs="+", type=image_size, default=[(128, 128)], help="WxH (128x128)"
    )
    parser.add_argument("--batches", nargs="+", type=int, default=[1], help="images (1)")
    parser.add_argument(
        "--dtypes", nargs="+", default=["float32", "bfloat16"], help="(%(default)s)"
    )
    parser.add_argument("--runs", type=int, default=5, help="of each, in turn (default 5)")
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args()
    with one_line_errors():
        measure(arguments)


def measure(arguments: argparse.Namespace) -> None:
    """Compiles all, and lets them take turns."""
    random, made = np.random.default_rng(0), {}
    cases = itertools.product(
        arguments.presets, arguments.sizes, arguments.batches, arguments.dtypes
    )
    for preset, size, batch, dtype in cases:
        config = dataclasses.replace(PRESETS[preset], dtype=dtype)
        params = init_params(config, jax.random.key(0))
        rainy = jnp.asarray(random.random((batch, *size, 3), np.float32))
        program, spent = compiled(jitted(functools.partial(apply, config)), params, rainy)
        made[preset, size, batch, dtype] = (program, spent, (params, rainy))
    times = race(
        {case: ready(program, *inputs) for case, (program, _, inputs) in made.items()},
        arguments.runs,
    )
    table = Table(
        f"forward; {machine()}; median of {arguments.runs} runs in turn",
        {
            "preset": "<18",
            "size": "<9",
            "batch": "5d",
            "dtype": "<8",
            "compile_s": "9.1f",
            "ms": "9.1f",
            "megapixels_per_s": "12.3f",
            "temporaries_mib": "15.0f",
        },
    )
    for (preset, size, batch, dtype), spent in times.items():
        program, compile_seconds, _ = made[preset, size, batch, dtype]
        table.add(
            preset=preset,
            size=size_text(*size),
            batch=batch,
            dtype=dtype,
            compile_s=compile_seconds,
            ms=1e3 * spent,
            megapixels_per_s=batch * size[0] * size[1] / spent / 1e6,
            temporaries_mib=temporaries(program),
        )
    table.write(arguments.json)


if __name__ == "__main__":
    main()
