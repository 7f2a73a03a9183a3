"""Compiles for TPUs without one, and says what the programs need.

    python benchmarks/tpu_compile.py --suite --check benchmarks/bounds.json
    python benchmarks/tpu_compile.py forward --height 256 --width 256
    python benchmarks/tpu_compile.py forward --height 2160 --width 3840 --strips 128
    python benchmarks/tpu_compile.py train --batch 4 --height 128 --width 128
    python benchmarks/tpu_compile.py stages --gradients
    python benchmarks/tpu_compile.py op depthwise5 grouped5 --channels 254

It needs `pip install "jax[tpu]"`, no TPU. Figures of memory and bytes are the compiler's and repeat
exactly; seconds depend on the machine. Only one such program can run at a time (libtpu holds a
lock). Loops are multiplied out by `hlo_cost`; "once" is what `cost_analysis` returns, which counts
them once, over what `hlo_cost` counts in that way, for FLOPs and bytes: 1 where the rules agree.
"HBM" bytes leave out what the compiler keeps in the core's own memory; "ms" are the bundles of its
schedules (see `bundles`) at a v5e's 1.5 GHz, a lower bound that no chip has confirmed, followed by
the shares of sums of taps, matrix products and copies.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bundles
import hlo_cost
from bounds import bounds_of, exceeded, uneven, wanted_bytes

os.environ.update(
    LIBTPU_INIT_ARGS=bundles.flags(),
    TPU_SKIP_MDS_QUERY="1",
    TPU_ACCELERATOR_TYPE="v5litepod-8",
    TPU_WORKER_HOSTNAMES="localhost",
    JAX_PLATFORMS="cpu",
    # Compilers' notes would stand between the rows.
    TPU_STDERR_LOG_LEVEL="3",
    TF_CPP_MIN_LOG_LEVEL="3",
)

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh

from drsformer_jax.config import PRESETS, ModelConfig, TrainConfig
from drsformer_jax.errors import InputError, one_line_errors
from drsformer_jax.files import write_text
from drsformer_jax.nn.drsformer import DRSformer
from drsformer_jax.nn.functional import abstract_params, apply
from drsformer_jax.nn.rows import AT_ONCE, Strips
from drsformer_jax.ops.depthwise import average_pool, depthwise_conv, grouped_conv
from drsformer_jax.ops.linear import linear
from drsformer_jax.sharding import batch_sharding, replicated
from drsformer_jax.training import abstract_state, compiled_step

HBM = 15.75 * 2**30
"""Bytes of a v5e chip that programs may use."""
CLOCK = 1.5e9
"""Cycles of a v5e core in a second: 197 TFLOP/s over four 128 x 128 arrays."""


@dataclass(frozen=True)
class Work:
    """One program to compile."""

    what: str
    """forward, train, a stage's name or an op's."""
    batch: int
    """Images a chip."""
    height: int
    width: int
    preset: str = "drsformer"
    dtype: str = "bfloat16"
    topology: str = "v5e:2x4"
    chips: int = 1
    strips: int = 0
    """Rows of the strips that images are computed in; 0 for all at once."""

    @property
    def key(self) -> str:
        """Names the row in a file of bounds."""
        size = f"{self.batch}x{self.height}x{self.width}"
        rows = f" strips {self.strips}" if self.strips else ""
        return f"{self.what} {self.preset} {size} {self.dtype} {self.topology} {self.chips}{rows}"

    @property
    def config(self) -> ModelConfig:
        """The network; trained ones compute each layer again in the backward pass."""
        return dataclasses.replace(
            PRESETS[self.preset], dtype=self.dtype, remat=self.what == "train"
        )


Build = Callable[[Work, Mesh], tuple[Callable[..., Any], tuple[Any, ...]]]
"""Makes a jitted function and its abstract arguments."""


def suite() -> list[Work]:
    """The rows of the targets."""
    return [
        Work("forward", 1, 256, 256),
        Work("forward", 1, 2160, 3840, strips=128),
        Work("train", 4, 128, 128),
        Work("train", 16, 128, 128),
        Work("train", 4, 128, 128, chips=4),
        Work("train", 4, 128, 128, topology="v5e:16x16", chips=256),
    ]


def mesh_of(work: Work) -> Mesh:
    """Some chips of a topology; none of them need exist."""
    devices = topologies.get_topology_desc(platform="tpu", topology_name=work.topology).devices
    chosen = np.array(devices[: work.chips]).reshape(-1, 1, 1)
    return Mesh(chosen, ("data", "fsdp", "rows"), axis_types=(AxisType.Auto,) * 3)


def placed(tree: Any, mesh: Mesh) -> Any:
    """Shapes and types, whole on every chip."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=replicated(mesh)), tree
    )


def forward(work: Work, mesh: Mesh) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Restoring images."""
    x = jax.ShapeDtypeStruct((work.batch, work.height, work.width, 3), jnp.float32)
    arguments = placed((abstract_params(work.config), x), mesh)
    rows = Strips(height=work.strips) if work.strips else AT_ONCE
    return jax.jit(lambda params, x: apply(work.config, params, x, rows=rows)), arguments


def train(work: Work, mesh: Mesh) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """The training program's step; its state and batch lie on all chips as in training."""
    config = TrainConfig(model=work.config)
    shape = (work.batch * work.chips, work.height, work.width, 3)
    images = jax.ShapeDtypeStruct(shape, jnp.uint8, sharding=batch_sharding(mesh))
    batch = {"rainy": images, "clean": images}
    return compiled_step(config, mesh), (abstract_state(config, mesh), batch)


def stage(name: str, gradients: bool) -> Build:
    """One submodule of the network alone, on inputs of the shape that it has there."""

    def build(work: Work, mesh: Mesh) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        config = dataclasses.replace(work.config, remat=gradients)
        level = int(name[-1]) - 1 if name[-1] in "1234" else 3 if name == "latent" else 0
        wide = name in ("decoder_level1", "refinement")
        channels = config.channels(level) * (2 if wide else 1)
        shape = (work.batch, work.height >> level, work.width >> level, channels)
        x = jax.ShapeDtypeStruct(shape, config.dtype)
        network = nnx.eval_shape(lambda: DRSformer(config, rngs=nnx.Rngs(params=0)))
        definition, params = nnx.split(getattr(network, name))

        def run(params: Any, x: jax.Array) -> jax.Array:
            return nnx.merge(definition, params)(x)

        arguments = placed((nnx.to_pure_dict(params), x), mesh)
        return jax.jit(_gradient(run) if gradients else run), arguments

    return build


def operation(name: str, channels: int, gradients: bool) -> Build:
    """One operation of `drsformer_jax.ops`, such as depthwise5, grouped3, dilated7, linear."""
    parts = re.fullmatch(r"(depthwise|dilated|grouped|pool|linear)(\d*)", name)
    if parts is None:
        raise InputError(f"the operation is {name!r}; expected, say, depthwise5, grouped3, linear")
    kind, side = parts[1], int(parts[2] or 3)

    def build(work: Work, mesh: Mesh) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        def image(channels: int) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((work.batch, work.height, work.width, channels), work.dtype)

        def weights(*shape: int) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(shape, jnp.float32)

        run, arguments = {
            "depthwise": (
                lambda kernel, x: depthwise_conv(x, kernel),
                (weights(side, side, channels), image(channels)),
            ),
            "dilated": (
                lambda kernel, x: depthwise_conv(x, kernel, 2),
                (weights(side, side, channels), image(channels)),
            ),
            "grouped": (
                lambda kernel, x: grouped_conv([x[0]], [x[1]], kernel),
                (weights(side, side, 2, channels), (image(channels), image(channels))),
            ),
            "pool": (lambda _, x: average_pool(x, side), (weights(), image(channels))),
            "linear": (
                lambda kernel, x: linear(x, kernel),
                (weights(channels, channels), image(channels)),
            ),
        }[kind]
        return jax.jit(_gradient(run) if gradients else run), placed(arguments, mesh)

    return build


def _gradient(run: Callable[[Any, Any], jax.Array]) -> Callable[..., Any]:
    def of(params: Any, x: Any) -> tuple[Any, Any]:
        y, pull = jax.vjp(run, params, x)
        return y, pull(y)

    return of


def measure(work: Work, build: Build) -> dict[str, Any]:
    """Compiles a program.

    Returns:
        What it needs on one chip; `error` and `wanted_bytes` instead where it does not fit.
    """
    row: dict[str, Any] = {"key": work.key, **dataclasses.asdict(work)}
    bundles.clear()
    function, arguments = build(work, mesh_of(work))
    start = time.perf_counter()
    lowered = function.lower(*arguments)
    row["lower_seconds"] = time.perf_counter() - start
    start, start_work = time.perf_counter(), time.process_time()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return row | {"error": "RESOURCE_EXHAUSTED", "wanted_bytes": wanted_bytes(str(error))}
    row["compile_seconds"] = time.perf_counter() - start
    row["compile_cpu_seconds"] = time.process_time() - start_work
    memory = compiled.memory_analysis()
    row["temporaries"] = memory.temp_size_in_bytes
    row["arguments"] = memory.argument_size_in_bytes
    row["outputs"] = memory.output_size_in_bytes
    row["code"] = memory.generated_code_size_in_bytes
    row["hbm"] = (
        row["temporaries"] + row["arguments"] + row["outputs"] - memory.alias_size_in_bytes
    ) + row["code"]
    text = compiled.as_text()
    once = compiled.cost_analysis()
    counted = hlo_cost.cost_once(text)
    row["once_flops"] = once["flops"] / max(counted.flops, 1)
    row["once_bytes"] = once["bytes accessed"] / max(counted.bytes, 1)
    schedules = bundles.Schedules()
    row |= _figures(hlo_cost.cost(text, schedules))
    row["loops"] = [
        {"name": loop.name, "trips": loop.trips, **_figures(loop.trip * loop.trips)}
        for loop in hlo_cost.loops(text, schedules)
    ]
    return row


def _figures(cost: hlo_cost.Cost) -> dict[str, float]:
    """Figures of a table's row; without schedules there are no bundles."""
    figures = {"flops": cost.flops, "bytes": cost.bytes, "hbm_bytes": cost.hbm_bytes}
    if cost.bundles:
        kinds = {kind: getattr(cost, kind) for kind in ("bundles", "taps", "products", "copies")}
        figures |= kinds
    return figures


HEADER = (
    f"{'program':47} {'compile s':>9} {'CPU s':>6} {'temp GB':>8} {'args GB':>8} {'outs GB':>8} "
    f"{'of HBM':>7} {'moved GB':>9} {'HBM GB':>8} {'GFLOP':>8} {'ms':>8} "
    f"{'taps':>5} {'products':>8} {'copies':>6} {'once':>10}"
)


def line(row: dict[str, Any]) -> str:
    """A row of the table, with those of its loops below it."""
    if "error" in row:
        wanted = f"{row['wanted_bytes'] / 1e9:.2f} GB" if row["wanted_bytes"] else "unknown"
        return f"{row['key']:47} {row['error']}: wanted {wanted}, there are {HBM / 1e9:.2f} GB"
    parts = [
        f"{row['key']:47} {row['compile_seconds']:9.1f} "
        f"{row['compile_cpu_seconds']:6.0f} {row['temporaries'] / 1e9:8.3f} "
        f"{row['arguments'] / 1e9:8.3f} {row['outputs'] / 1e9:8.3f} {row['hbm'] / HBM:7.1%} "
        f"{_line_of_figures(row)} {row['once_flops']:5.2f}{row['once_bytes']:5.2f}"
    ]
    for loop in row["loops"]:
        name = f"  {loop['trips']} x {re.sub(r'jit.[^/]*./|/while$', '', loop['name'])}"
        parts.append(f"{name[:98]:98} {_line_of_figures(loop)}")
    return "\n".join(parts)


def _line_of_figures(row: dict[str, Any]) -> str:
    return (
        f"{row['bytes'] / 1e9:9.2f} {row['hbm_bytes'] / 1e9:8.2f} {row['flops'] / 1e9:8.1f} "
        f"{_bundles(row)}"
    )


def _bundles(row: dict[str, Any]) -> str:
    if "bundles" not in row:
        return f"{'-':>8} {'-':>5} {'-':>8} {'-':>6}"
    taps, products, copies = (row[kind] / row["bundles"] for kind in ("taps", "products", "copies"))
    milliseconds = 1e3 * row["bundles"] / CLOCK
    return f"{milliseconds:8.2f} {taps:5.0%} {products:8.0%} {copies:6.0%}"


BOUNDED = ("compile_cpu_seconds", "temporaries", "hbm", "bytes", "hbm_bytes", "bundles")
"""Figures that have bounds, each 1.25 times what was measured."""


def programs(arguments: argparse.Namespace) -> Iterator[tuple[Work, Build]]:
    """What the command line asks for."""
    whole: dict[str, Build] = {"forward": forward, "train": train}
    if arguments.suite:
        yield from ((work, whole[work.what]) for work in suite())
        return
    asked = Work(
        *(arguments.what, arguments.batch, arguments.height, arguments.width),
        *(arguments.preset, arguments.dtype, arguments.topology),
        *(arguments.chips, arguments.strips),
    )
    suffix = "'" if arguments.gradients else ""
    if asked.what in whole:
        yield asked, whole[asked.what]
    elif asked.what == "op":
        for name in arguments.names or ["depthwise3", "depthwise5", "grouped3", "grouped5"]:
            work = dataclasses.replace(asked, what=f"{name}{suffix} of {arguments.channels}")
            yield work, operation(name, arguments.channels, arguments.gradients)
    else:
        for name in arguments.names or STAGES:
            if name not in STAGES:
                raise InputError(f"the stage is {name!r}; expected one of {', '.join(STAGES)}")
            work = dataclasses.replace(asked, what=f"{name}{suffix}")
            yield work, stage(name, arguments.gradients)


STAGES = (
    *("encoder_level0", "encoder_level1", "encoder_level2", "encoder_level3", "latent"),
    *("decoder_level3", "decoder_level2", "decoder_level1", "refinement"),
)


def command_line() -> argparse.Namespace:
    """Reads the arguments."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "what", nargs="?", choices=("forward", "train", "stages", "op"), default="forward"
    )
    parser.add_argument("names", nargs="*", help="stages or operations, such as dilated7")
    parser.add_argument("--suite", action="store_true", help="all rows that have targets")
    parser.add_argument("--preset", choices=PRESETS, default="drsformer")
    parser.add_argument("--batch", type=int, default=1, help="images a chip")
    parser.add_argument("--height", type=int, default=256)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--topology", default="v5e:2x4", help="such as v5e:16x16")
    parser.add_argument("--chips", type=int, default=1, help="how many of them share the batch")
    parser.add_argument("--strips", type=int, default=0, help="rows of each (all at once)")
    parser.add_argument("--channels", type=int, default=254, help="of an operation")
    parser.add_argument("--gradients", action="store_true", help="stages and operations with both")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--check", type=Path, metavar="FILE", help="bounds that must hold")
    parser.add_argument("--write-bounds", type=Path, metavar="FILE", help="sets them anew")
    return parser.parse_intermixed_args()


def write_bounds(path: Path, rows: list[dict[str, Any]]) -> None:
    """Replaces the bounds of these rows in a file, and keeps all others."""
    bounds = json.loads(path.read_text()) if path.exists() else {}
    bounds["v5e"] = bounds.get("v5e", {}) | bounds_of(rows, BOUNDED)
    write_text(path, json.dumps(bounds, indent=2) + "\n")


def main() -> None:
    """Prints the table."""
    with one_line_errors():
        table(command_line())


def table(arguments: argparse.Namespace) -> None:
    """Compiles, and compares with bounds where they are asked for."""
    if importlib.util.find_spec("libtpu") is None:
        raise InputError('libtpu is missing; expected it, as by: pip install "jax[tpu]"')
    bounds = json.loads(arguments.check.read_text())["v5e"] if arguments.check else {}
    print(HEADER)
    rows = []
    for work, build in programs(arguments):
        rows.append(measure(work, build))
        print(line(rows[-1]), flush=True)
        # After each row: a suite takes long, and may be stopped.
        if arguments.json:
            write_text(arguments.json, json.dumps(rows, indent=2) + "\n")
        if arguments.write_bounds:
            write_bounds(arguments.write_bounds, rows)
    if arguments.check:
        for row in rows:
            if row["key"] not in bounds:
                print(f"no bounds for {row['key']}")
        lines = exceeded(rows, bounds) + uneven(rows)
        print("\n".join(lines) or "all bounds hold")
        sys.exit(1 if lines else 0)


if __name__ == "__main__":
    main()
