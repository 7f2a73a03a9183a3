"""Times the training step as train.py takes it, on one device.

python benchmarks/train_step.py [--presets tiny] [--crops 128] [--batches 4 16] [--json F.json]
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from timing import Table, compiled, machine, race, temporaries

from drsformer_jax.config import PRESETS, DataConfig, MeshConfig, ModelConfig, TrainConfig
from drsformer_jax.errors import one_line_errors
from drsformer_jax.scoring.complexity import training_operations
from drsformer_jax.sharding import batch_sharding, global_arrays, make_mesh
from drsformer_jax.training import abstract_state, compiled_step, sharded_state
from drsformer_jax.training.hardware import peak_flops

CASE = ("preset", "crop", "batch", "dtype", "remat", "unroll", "kernels")
"""What a row is of."""


def main() -> None:
    """Prints seconds of compilation, milliseconds, crops per second, memory and operations."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--presets", nargs="+", choices=PRESETS, default=["tiny"], help="(%(default)s)"
    )
    parser.add_argument("--crops", nargs="+", type=int, default=[64], help="sides in pixels (64)")
    parser.add_argument("--batches", nargs="+", type=int, default=[4], help="crops a step (4)")
    parser.add_argument(
        "--dtypes", nargs="+", default=["float32", "bfloat16"], help="(%(default)s)"
    )
    parser.add_argument(
        "--remat", nargs="+", choices=("no", "yes"), default=["no"], help="'no yes' for both (no)"
    )
    parser.add_argument(
        "--unroll", nargs="+", choices=("no", "yes"), default=["no"], help="likewise (no)"
    )
    parser.add_argument(
        "--kernels", nargs="+", choices=("xla", "pallas"), default=["xla"], help="(%(default)s)"
    )
    parser.add_argument("--runs", type=int, default=5, help="of each, in turn (default 5)")
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args()
    with one_line_errors():
        measure(arguments)


def measure(arguments: argparse.Namespace) -> None:
    """Compiles all, and lets them take turns."""
    cases = itertools.product(
        arguments.presets,
        arguments.crops,
        arguments.batches,
        arguments.dtypes,
        arguments.remat,
        arguments.unroll,
        arguments.kernels,
    )
    made = {}
    for case in cases:
        of = dict(zip(CASE, case, strict=True))
        switches = {name: of[name] == "yes" for name in ("remat", "unroll")}
        model = dataclasses.replace(
            PRESETS[of["preset"]], dtype=of["dtype"], kernels=of["kernels"], **switches
        )
        made[case] = prepared(model, of["crop"], of["batch"])
    times = race({case: step for case, (step, _, _) in made.items()}, arguments.runs)
    table = Table(
        f"training step; {machine()}; median of {arguments.runs} runs in turn",
        {
            "preset": "<18",
            "crop": "5d",
            "batch": "5d",
            "dtype": "<8",
            "remat": "<5",
            "unroll": "<6",
            "kernels": "<7",
            "compile_s": "9.1f",
            "ms": "9.1f",
            "crops_per_s": "8.2f",
            "temporaries_mib": "15.0f",
            "gflop_per_s": "8.0f",
            "of_peak": "7.1%",
        },
    )
    peak = peak_flops(jax.devices()[:1])
    for case, spent in times.items():
        _, compile_seconds, mib = made[case]
        of = dict(zip(CASE, case, strict=True))
        speed = training_operations(PRESETS[of["preset"]], of["batch"], of["crop"]) / spent
        table.add(
            **of,
            compile_s=compile_seconds,
            ms=1e3 * spent,
            crops_per_s=of["batch"] / spent,
            temporaries_mib=mib,
            gflop_per_s=speed / 1e9,
            of_peak=speed / peak if peak else None,
        )
    table.write(arguments.json)


def prepared(
    model: ModelConfig, crop: int, batch: int
) -> tuple[Callable[[], object], float, float]:
    """A step that continues from the last one, its seconds of compilation, and its MiB."""
    config = TrainConfig(
        model=model,
        data=DataConfig(crop_size=crop, global_batch=batch),
        mesh=MeshConfig(data=1),
    )
    mesh = make_mesh(config.mesh)
    random = np.random.default_rng(0)
    pairs = global_arrays(
        {
            part: random.integers(0, 256, (batch, crop, crop, 3), np.uint8)
            for part in ("rainy", "clean")
        },
        batch_sharding(mesh),
    )
    program, spent = compiled(compiled_step(config, mesh), abstract_state(config, mesh), pairs)
    state = sharded_state(config, mesh)

    def step() -> None:
        nonlocal state
        state, _ = jax.block_until_ready(program(state, pairs))

    return step, spent, temporaries(program)


if __name__ == "__main__":
    main()
