"""Programs that are compiled for hardware that is not there, and what all such compilers tell.

`tpu_compile.py` and `gpu_compile.py` name the hardware, and read what its compiler alone writes.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from bounds import bounds_of, exceeded, uneven
from flax import nnx
from jax.sharding import Mesh

from drsformer_jax.config import PRESETS, MeshConfig, ModelConfig, TrainConfig
from drsformer_jax.errors import InputError
from drsformer_jax.files import write_text
from drsformer_jax.nn.drsformer import DRSformer
from drsformer_jax.ops.depthwise import average_pool, depthwise_conv, grouped_conv
from drsformer_jax.ops.gated import GatedWeights, gated
from drsformer_jax.ops.implementations import jit_for
from drsformer_jax.ops.linear import Affine, linear
from drsformer_jax.ops.mixed_scale import mixed_scale
from drsformer_jax.ops.mixed_scale_channels import MixedScaleWeights
from drsformer_jax.planning.programs import (
    TooLarge,
    bytes_held,
    everywhere,
    find_slice,
    restoring,
    train_step,
    try_compile,
)
from drsformer_jax.sharding import make_mesh

Row = dict[str, Any]
STAGES = (
    *("encoder_level0", "encoder_level1", "encoder_level2", "encoder_level3", "latent"),
    *("decoder_level3", "decoder_level2", "decoder_level1", "refinement"),
)
"""Submodules of the network that can be compiled alone."""


@dataclass(frozen=True)
class Work:
    """One program to compile."""

    what: str
    """forward, train, a stage's name or an op's."""
    batch: int
    """Images per chip."""
    height: int
    width: int
    preset: str = "drsformer"
    dtype: str = "bfloat16"
    topology: str = "v5e:2x4"
    chips: int = 1
    strips: int = 0
    """Rows of the strips that images are computed in; 0 for all at once."""
    variant: str = "xla"
    """`kernels` of `ModelConfig`."""
    saving: bool = False
    """`save_convolutions` of `ModelConfig`, where there is a backward pass."""

    @property
    def key(self) -> str:
        """Names the row in a file of bounds."""
        size = f"{self.batch}x{self.height}x{self.width}"
        rows = f" strips {self.strips}" if self.strips else ""
        variant = "" if self.variant == "xla" else f" {self.variant}"
        where = f"{self.topology} {self.chips}"
        saved = " saving" if self.saving else ""
        return f"{self.what} {self.preset} {size} {self.dtype} {where}{rows}{variant}{saved}"

    @property
    def config(self) -> ModelConfig:
        """The network; trained ones compute each layer again in the backward pass."""
        return dataclasses.replace(
            PRESETS[self.preset],
            dtype=self.dtype,
            remat=self.what == "train" or self.saving,
            save_convolutions=self.saving,
            kernels=self.variant,
        )


Build = Callable[[Work, Mesh], tuple[Callable[..., Any], tuple[Any, ...]]]
"""Makes a jitted function and its abstract arguments."""


def forward(work: Work, mesh: Mesh) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Restoring images."""
    return restoring(work.config, mesh, work.height, work.width, work.strips, work.batch)


def train(work: Work, mesh: Mesh) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """The training program's step."""
    if work.height != work.width:
        raise InputError(f"crops are {work.width}x{work.height}; expected squares")
    config = TrainConfig(model=work.config)
    return train_step(config, mesh, work.height, work.batch * work.chips)


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

        arguments = everywhere((nnx.to_pure_dict(params), x), mesh)
        return _jit_for(mesh, _gradient(run) if gradients else run), arguments

    return build


def operation(name: str, channels: int, gradients: bool) -> Build:
    """One operation of `drsformer_jax.ops`, such as depthwise5, grouped3, dilated7, mixed_scale."""
    parts = re.fullmatch(r"(depthwise|dilated|grouped|pool|linear|mixed_scale|gated)(\d*)", name)
    if parts is None:
        raise InputError(f"the operation is {name!r}; expected, say, depthwise5, grouped3, linear")
    kind, side = parts[1], int(parts[2] or 3)

    def build(work: Work, mesh: Mesh) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        def image(channels: int) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((work.batch, work.height, work.width, channels), work.dtype)

        def weights(*shape: int) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(shape, jnp.float32)

        kernels = work.config.implementation
        hidden = work.config.hidden(channels)
        affine = functools.partial(Affine, bias=None)
        run, arguments = {
            "mixed_scale": (
                lambda layers, x: mixed_scale(x, layers, None, kernels),
                (
                    MixedScaleWeights(
                        affine(weights(channels, 2 * hidden)),
                        affine(weights(3, 3, 2 * hidden)),
                        affine(weights(5, 5, 2 * hidden)),
                        affine(weights(3, 3, 2, hidden)),
                        affine(weights(5, 5, 2, hidden)),
                        affine(weights(2 * hidden, channels)),
                    ),
                    image(channels),
                ),
            ),
            "gated": (
                lambda layers, x: gated(x, layers, None, kernels),
                (
                    GatedWeights(
                        affine(weights(channels, 2 * hidden)),
                        affine(weights(3, 3, 2 * hidden)),
                        affine(weights(hidden, channels)),
                    ),
                    image(channels),
                ),
            ),
            "depthwise": (
                lambda kernel, x: depthwise_conv(x, kernel, 1, kernels),
                (weights(side, side, channels), image(channels)),
            ),
            "dilated": (
                lambda kernel, x: depthwise_conv(x, kernel, 2, kernels),
                (weights(side, side, channels), image(channels)),
            ),
            "grouped": (
                lambda kernel, x: grouped_conv([x[0], x[1]], kernel, kernels),
                (weights(side, side, 2, channels), (image(channels), image(channels))),
            ),
            "pool": (
                lambda _, x: average_pool(x, side, None, kernels),
                (weights(), image(channels)),
            ),
            "linear": (
                lambda kernel, x: linear(x, kernel),
                (weights(channels, channels), image(channels)),
            ),
        }[kind]
        return _jit_for(mesh, _gradient(run) if gradients else run), everywhere(arguments, mesh)

    return build


def _jit_for(mesh: Mesh, function: Callable[..., Any]) -> Callable[..., Any]:
    return jit_for(mesh.devices.flat[0].platform, function)


def _gradient(run: Callable[[Any, Any], jax.Array]) -> Callable[..., Any]:
    def of(params: Any, x: Any) -> tuple[Any, Any]:
        y, pull = jax.vjp(run, params, x)
        return y, pull(y)

    return of


def mesh_of(work: Work) -> Mesh:
    """Some chips of a topology; none of them need exist."""
    # A GPU's name alone is one GPU; a slice of TPUs has a shape.
    name = work.topology if ":" in work.topology else f"{work.topology}:{work.chips}"
    devices = find_slice(name).devices
    if not 1 <= work.chips <= len(devices):
        raise InputError(
            f"--chips is {work.chips}; expected 1 to {len(devices)}, the chips of {work.topology}"
        )
    return make_mesh(MeshConfig(data=work.chips), devices[: work.chips])


def compiled(work: Work, build: Build) -> tuple[Row, Any]:
    """Compiles a program.

    Returns:
        What it needs on one chip, and the program; where it does not fit `error` and
        `wanted_bytes`, and None.
    """
    row: Row = {"key": work.key, **dataclasses.asdict(work)}
    function, arguments = build(work, mesh_of(work))
    lowered = function.lower(*arguments)
    start, start_work = time.perf_counter(), time.process_time()
    program = try_compile(lowered)
    if isinstance(program, TooLarge):
        return row | {"error": "RESOURCE_EXHAUSTED", "wanted_bytes": program.needs}, None
    row["compile_seconds"] = time.perf_counter() - start
    row["compile_cpu_seconds"] = time.process_time() - start_work
    memory = program.memory_analysis()
    row["temporaries"] = memory.temp_size_in_bytes
    row["arguments"] = memory.argument_size_in_bytes
    row["outputs"] = memory.output_size_in_bytes
    row["code"] = memory.generated_code_size_in_bytes
    row["hbm"] = bytes_held(memory) + row["temporaries"] + row["code"]
    return row, program


def command_line(description: str, topology: str) -> argparse.Namespace:
    """Reads the arguments.

    Args:
        description: of the program.
        topology: the default one.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "what", nargs="?", choices=("forward", "train", "stages", "op"), default="forward"
    )
    parser.add_argument("names", nargs="*", help="stages or operations, such as dilated7")
    parser.add_argument("--suite", action="store_true", help="all rows that have targets")
    parser.add_argument("--preset", choices=PRESETS, default="drsformer")
    parser.add_argument("--batch", type=int, default=1, help="images per chip")
    parser.add_argument("--height", type=int, default=256)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--topology", default=topology, help=f"default: {topology}")
    parser.add_argument("--chips", type=int, default=1, help="how many of them share the batch")
    parser.add_argument("--strips", type=int, default=0, help="rows of each (all at once)")
    parser.add_argument("--kernels", choices=("xla", "pallas"), default="xla")
    parser.add_argument(
        "--save-convolutions",
        dest="saving",
        action="store_true",
        help="keep their results for the backward pass, which computes all else again",
    )
    parser.add_argument("--channels", type=int, default=254, help="of an operation")
    parser.add_argument("--gradients", action="store_true", help="stages and operations with both")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--check", type=Path, metavar="FILE", help="bounds that must hold")
    parser.add_argument("--write-bounds", type=Path, metavar="FILE", help="sets them anew")
    return parser.parse_intermixed_args()


def programs(arguments: argparse.Namespace, suite: Iterable[Work]) -> Iterator[tuple[Work, Build]]:
    """What the command line asks for."""
    whole: dict[str, Build] = {"forward": forward, "train": train}
    layers = arguments.what == "train" or (arguments.what == "stages" and arguments.gradients)
    if arguments.saving and (arguments.suite or not layers):
        raise InputError(
            "--save-convolutions is given; expected it beside train, or stages and --gradients"
        )
    if arguments.suite:
        variant = arguments.kernels
        yield from ((replace(work, variant=variant), whole[work.what]) for work in suite)
        return
    asked = Work(
        *(arguments.what, arguments.batch, arguments.height, arguments.width),
        *(arguments.preset, arguments.dtype, arguments.topology),
        *(arguments.chips, arguments.strips, arguments.kernels, arguments.saving),
    )
    suffix = "'" if arguments.gradients else ""
    if asked.what in whole:
        yield asked, whole[asked.what]
    elif asked.what == "op":
        for name in arguments.names or ["depthwise3", "depthwise5", "grouped3", "grouped5"]:
            work = replace(asked, what=f"{name}{suffix} of {arguments.channels}")
            yield work, operation(name, arguments.channels, arguments.gradients)
    else:
        config = PRESETS[arguments.preset]
        stages = [name for name in STAGES if getattr(config, name, "") != "none"]
        for name in arguments.names or stages:
            if name not in stages:
                raise InputError(f"the stage is {name!r}; expected one of {', '.join(stages)}")
            work = replace(asked, what=f"{name}{suffix}")
            yield work, stage(name, arguments.gradients)


def table(
    arguments: argparse.Namespace,
    rows: Iterable[Row],
    line: Callable[[Row], str],
    machine: str,
    bounded: Iterable[str],
) -> None:
    """Prints rows as they come, writes them, and compares them with bounds.

    Args:
        arguments: of the command line.
        rows: of the programs.
        line: a row of the table.
        machine: the table in files of bounds.
        bounded: figures that have bounds, each 1.25 times what was measured.
    """
    bounds = json.loads(arguments.check.read_text()).get(machine, {}) if arguments.check else {}
    found = []
    for row in rows:
        found.append(row)
        print(line(row), flush=True)
        # After each row: a suite takes long, and may be stopped.
        if arguments.json:
            write_text(arguments.json, json.dumps(found, indent=2) + "\n")
        if arguments.write_bounds:
            _write_bounds(arguments.write_bounds, machine, found, bounded)
    if arguments.check:
        for row in found:
            if row["key"] not in bounds:
                print(f"no bounds for {row['key']}")
        lines = exceeded(found, bounds) + uneven(found)
        print("\n".join(lines) or "all bounds hold")
        sys.exit(1 if lines else 0)


def _write_bounds(path: Path, machine: str, rows: list[Row], bounded: Iterable[str]) -> None:
    """Replaces the bounds of these rows in a file, and keeps all others."""
    bounds = json.loads(path.read_text()) if path.exists() else {}
    bounds[machine] = bounds.get(machine, {}) | bounds_of(rows, bounded)
    write_text(path, json.dumps(bounds, indent=2) + "\n")
