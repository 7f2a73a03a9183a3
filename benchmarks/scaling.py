"""Compiles the training step for slices of growing size: does a chip's work stay the same?

    python benchmarks/scaling.py
    python benchmarks/scaling.py --fsdp 4 --config configs/quickstart.py --crops 1

It needs `pip install "jax[tpu]"`, no TPU. Each slice is planned by `drsformer plan` in a process of
its own. FLOPs of a chip must not depend on the number of chips, and what it exchanges must be what
the mesh says: without fsdp the gradient, once; with fsdp each sharded array is gathered and its
gradient scattered over `fsdp`, its shard summed over `data`, and all other gradients over both.
The compiler may gather less, such as bfloat16, and write a scatter as a sum of which a chip keeps
its shard. Ends with status 1 where a figure is further than 2% from that.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
from bounds import UNEVEN
from jax.sharding import AbstractMesh

from drsformer_jax.config import TrainConfig
from drsformer_jax.config.file import load_config
from drsformer_jax.errors import InputError, one_line_errors
from drsformer_jax.nn.functional import abstract_params
from drsformer_jax.sharding import state_shardings

Row = Mapping[str, Any]
Bytes = dict[tuple[str, str], float]
"""What a chip gets in a step, by axes of the mesh and kind of exchange."""


def expected(config: TrainConfig, mesh: Mapping[str, int]) -> Bytes:
    """What a chip must get in a step.

    Args:
        config: the run.
        mesh: sizes of the axes; rows must be 1.
    """
    axes = AbstractMesh(tuple(mesh.values()), tuple(mesh))
    params = abstract_params(config.model)
    shardings = state_shardings(params, axes, config.mesh.fsdp_min_size)
    sizes = {True: 0, False: 0}
    for leaf, sharding in zip(jax.tree.leaves(params), jax.tree.leaves(shardings), strict=True):
        sizes["fsdp" in sharding.spec] += math.prod(leaf.shape) * leaf.dtype.itemsize
    along = ", ".join(name for name, size in mesh.items() if size > 1)
    found: Bytes = {(along, "all-reduce"): sizes[False]}
    if mesh["fsdp"] > 1:
        shard = sizes[True] / mesh["fsdp"]
        found |= {("fsdp", "all-gather"): sizes[True], ("fsdp", "reduce-scatter"): shard}
        found["data", "all-reduce"] = found.get(("data", "all-reduce"), 0) + shard
    return {key: size for key, size in found.items() if size and key[0]}


def differences(row: Row, first: Row, wanted: Bytes) -> list[str]:
    """What of a plan is not as it must be, a line each."""
    lines = []
    if not math.isclose(row["flops"], first["flops"], rel_tol=UNEVEN):
        lines.append(f"FLOPs a chip are {row['flops']:.4g}; expected {first['flops']:.4g}")
    found = {(one["axes"], one["kind"]): one["bytes"] for one in row["exchanged"]}
    if shards := found.pop(("fsdp", "all-reduce"), 0) / row["mesh"]["fsdp"]:
        found["fsdp", "reduce-scatter"] = found.get(("fsdp", "reduce-scatter"), 0) + shards
    for axes, kind in sorted({*found, *wanted}):
        size, right = found.get((axes, kind), 0), wanted.get((axes, kind), 0)
        fits = math.isclose(size, right, rel_tol=UNEVEN)
        if not fits and not (kind == "all-gather" and size < right):
            lines.append(f"{kind} along {axes} has {size:,.0f} bytes; expected {right:,.0f}")
    return lines


def planned(arguments: argparse.Namespace, chips: int) -> Row:
    """Plans a square slice with `drsformer plan`."""
    side = math.isqrt(max(chips, 0))
    if not side or side**2 != chips:
        raise InputError(f"--chips has {chips}; expected squares, such as 4 16 64 256")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "plan.json"
        command = [sys.executable, "-m", "drsformer_jax", "plan", "--config", arguments.config]
        command += ["--topology", f"{arguments.chip}:{side}x{side}", "--json", file]
        command += ["--global-batch", chips * arguments.crops, "--fsdp", arguments.fsdp]
        command += ["--dtype", arguments.dtype]
        status = subprocess.run(list(map(str, command)), stdout=subprocess.DEVNULL).returncode
        if status:
            raise InputError(f"drsformer plan ended with status {status}; expected 0")
        return json.loads(file.read_text())


def line(row: Row, first: Row) -> str:
    """A row of the table."""
    exchanged = ", ".join(
        f"{one['times']} {one['kind']} along {one['axes']} {one['bytes'] / 1e6:.1f} MB"
        for one in row["exchanged"]
    )
    return (
        f"{row['topology']:10} {row['chips']:5} {row['compile_s']:9.0f} {row['flops'] / 1e9:10.1f} "
        f"{row['flops'] / first['flops']:6.3f} {row['memory']['total'] / 2**30:6.2f}  {exchanged}"
    )


def main(arguments: Iterable[str] | None = None) -> None:
    """Plans all slices, prints a table, and says what is not as it must be."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--config", type=Path, default=Path("configs/rain200h.py"))
    parser.add_argument("--chip", default="v5e", help="v5e or v6e")
    parser.add_argument("--chips", type=int, nargs="+", default=[4, 16, 64, 256])
    parser.add_argument("--crops", type=int, default=4, help="crops of a chip")
    parser.add_argument("--fsdp", type=int, default=1)
    parser.add_argument("--dtype", default="bfloat16")
    options = parser.parse_args(None if arguments is None else list(arguments))
    config = load_config(options.config)
    config = dataclasses.replace(config, mesh=dataclasses.replace(config.mesh, fsdp=options.fsdp))
    rows, wrong = [], []
    print(f"{'slice':10} {'chips':>5} {'compile s':>9} {'GFLOP/chip':>10} {'ratio':>6} {'GiB':>6}")
    for chips in options.chips:
        rows.append(planned(options, chips))
        print(line(rows[-1], rows[0]), flush=True)
        found = differences(rows[-1], rows[0], expected(config, rows[-1]["mesh"]))
        wrong += [f"{rows[-1]['topology']}: {each}" for each in found]
    if wrong:
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    with one_line_errors():
        main()
