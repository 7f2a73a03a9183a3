"""Compiles the training step and the restoring program for hardware that is not there.

For TPUs that needs libtpu (`pip install "jax[tpu]"`), for NVIDIA's GPUs JAX's plugin and NVIDIA's
assembler (`pip install jax-cuda12-plugin jax-cuda12-pjrt nvidia-cuda-nvcc-cu12`, of JAX's version).
Both work on any machine.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh

from drsformer_jax.config import ModelConfig, TrainConfig
from drsformer_jax.errors import InputError, is_out_of_memory, reason
from drsformer_jax.nn.functional import abstract_params
from drsformer_jax.nn.rows import AT_ONCE, Strips
from drsformer_jax.planning import bundles, hlo_cost
from drsformer_jax.planning.chips import CHIPS, Chip
from drsformer_jax.planning.exchanges import Exchange, exchanges
from drsformer_jax.restoring.program import compiled_for
from drsformer_jax.sharding import batch_sharding, replicated
from drsformer_jax.training import TrainState, abstract_state, compiled_step

_GPUS = Path(__file__).parent / "gpus"
"""Descriptions of GPUs as XLA publishes them."""
_GPUS_OF_A_MACHINE = 8
_HOSTS = {"1x1": (1, 1, 1), "2x4": (2, 4, 1)}
"""Slices of v5e and v6e that are one host; libtpu divides all into hosts of 2x2 unless told."""
Function = Any
"""A jitted function."""


@dataclass(frozen=True)
class Slice:
    """Chips that work together: a slice of a TPU pod, or the GPUs of a machine."""

    name: str
    """As it was asked for, such as v5e:2x4 or h100:8."""
    chip: Chip
    devices: list[Any]

    @property
    def hosts(self) -> int:
        """Machines that the chips belong to."""
        return len({device.process_index for device in self.devices})


def prepare() -> None:
    """Sets the environment of compilers; before JAX finds its devices.

    The process computes on its CPU alone from then on.
    """
    jax.config.update("jax_platforms", "cpu")
    os.environ.update(
        LIBTPU_INIT_ARGS=bundles.flags(),
        TPU_SKIP_MDS_QUERY="1",
        ALLOW_MULTIPLE_LIBTPU_LOAD="1",  # It compiles without chips that only one could use.
        TPU_ACCELERATOR_TYPE="v5litepod-8",
        TPU_WORKER_HOSTNAMES="localhost",
        # Compilers' notes would stand between the lines of ours.
        TPU_STDERR_LOG_LEVEL="3",
        TF_CPP_MIN_LOG_LEVEL="3",
    )


def find_slice(name: str) -> Slice:
    """The chips of a topology.

    Args:
        name: such as v5e:16x16, v5p:2x2x1 or h100:8; a GPU's name alone is one GPU.

    Raises:
        InputError: if there is no such topology, or what compiles for it is not installed.
    """
    kind, _, shape = name.partition(":")
    if kind not in CHIPS:
        raise InputError(f"the topology is {name!r}; expected one of {', '.join(CHIPS)} before ':'")
    chip = CHIPS[kind]
    devices = _tpus(name) if chip.platform == "tpu" else _gpus(kind, shape or "1")
    return Slice(name, chip, devices)


def _tpus(name: str) -> list[Any]:
    if importlib.util.find_spec("libtpu") is None:
        raise InputError('libtpu is missing; expected it, as by: pip install "jax[tpu]"')
    kind, _, shape = name.partition(":")
    host = _HOSTS.get(shape) if kind in ("v5e", "v6e") else None
    options: dict[str, Any] = {"chips_per_host_bounds": host} if host else {}
    if kind == "v4":
        options["chip_config_name"] = "megacore"  # Both cores of a chip as one device.
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=name, **options)
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        raise InputError(
            f"the topology is {name!r} ({reason(error)}); expected one such as v5e:2x4 or v5p:2x2x1"
        ) from error
    return list(found.devices)


def _gpus(kind: str, count: str) -> list[Any]:
    if not re.fullmatch(r"[1-9]\d*", count) or int(count) > _GPUS_OF_A_MACHINE:
        raise InputError(
            f"the topology is {kind}:{count}; expected 1 to {_GPUS_OF_A_MACHINE} GPUs of a machine"
        )
    if importlib.util.find_spec("jax_cuda12_plugin") is None:
        raise InputError(
            "JAX's plugin for GPUs is missing; expected it, as by: pip install "
            f"jax-cuda12-plugin=={jax.__version__} jax-cuda12-pjrt=={jax.__version__} "
            "nvidia-cuda-nvcc-cu12"
        )
    found = topologies.get_topology_desc(
        platform="cuda",
        target_config=(_GPUS / f"{kind}.txtpb").read_text(),
        topology=f"1x1x{_GPUS_OF_A_MACHINE}",
    )
    return list(found.devices)[: int(count)]


@dataclass(frozen=True)
class Memory:
    """Bytes of one chip that a program needs."""

    parameters: int = 0
    optimizer: int = 0
    """Its state, and the moving average of the parameters."""
    images: int = 0
    """The batch, and what comes out beside the state."""
    temporaries: int = 0
    """What the program keeps while it runs: activations for the backward pass above all."""
    code: int = 0

    @property
    def total(self) -> int:
        """All of it."""
        return sum(dataclasses.astuple(self))


@dataclass(frozen=True)
class Compiled:
    """A program on one chip."""

    memory: Memory
    cost: hlo_cost.Cost
    """Loops multiplied out; bundles only where the compiler wrote its schedule."""
    unclear: dict[str, int]
    """What its bundles lack, as `hlo_cost.unclear` has it."""
    exchanges: list[Exchange]
    seconds: float
    """That compiling took, on this machine."""


@dataclass(frozen=True)
class TooLarge:
    """A program that does not fit."""

    needs: int | None
    """Bytes of one chip, where the compiler says so."""


def train_step(
    config: TrainConfig, mesh: Mesh, side: int, batch: int
) -> tuple[Function, tuple[Any, ...]]:
    """The training program's step, and its abstract arguments.

    Args:
        config: the run.
        mesh: of the chips.
        side: height and width of the patches.
        batch: images of the global batch.
    """
    images = jax.ShapeDtypeStruct((batch, side, side, 3), jnp.uint8, sharding=batch_sharding(mesh))
    state = abstract_state(config, mesh)
    return compiled_step(config, mesh), (state, {"rainy": images, "clean": images})


def restoring(
    config: ModelConfig, mesh: Mesh, height: int, width: int, strip: int = 0, batch: int = 1
) -> tuple[Function, tuple[Any, ...]]:
    """The program that `Restorer` runs for images on one chip, and its abstract arguments.

    Args:
        config: the network.
        mesh: of the chip.
        height: of the image, in pixels.
        width: likewise.
        strip: rows of the strips that it is computed in; 0 for all at once.
        batch: images of one size that are computed together.
    """
    arrays = (
        abstract_params(config),
        jax.ShapeDtypeStruct((batch, height, width, 3), jnp.uint16),
        jax.ShapeDtypeStruct((batch, 1, 1, 1), jnp.float32),
        jax.ShapeDtypeStruct((batch, 2), jnp.int32),
    )
    rows = Strips(height=strip) if strip else AT_ONCE
    function = compiled_for(mesh.devices.flat[0].platform)
    return function, (config, rows, *everywhere(arrays, mesh))


def everywhere(tree: Any, mesh: Mesh) -> Any:
    """Shapes and types, whole on every chip."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=replicated(mesh)), tree
    )


def try_compile(lowered: jax.stages.Lowered) -> jax.stages.Compiled | TooLarge:
    """Compiles a lowered program."""
    bundles.clear()
    try:
        return lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return TooLarge(wanted_bytes(str(error)))


def compiled(function: Function, arguments: tuple[Any, ...]) -> Compiled | TooLarge:
    """Compiles a program, and counts it.

    Args:
        function: jitted.
        arguments: abstract; the first tree of arrays is a train state or the parameters.
    """
    lowered = function.lower(*arguments)
    start = time.perf_counter()
    program = try_compile(lowered)
    seconds = time.perf_counter() - start
    if isinstance(program, TooLarge):
        return program
    text, analysis = program.as_text() or "", program.memory_analysis()
    if analysis is None:
        raise RuntimeError("the compiler tells nothing of memory; expected it to")
    state = next(each for each in arguments if isinstance(each, TrainState | dict))
    params = bytes_of(state.params if isinstance(state, TrainState) else state)
    memory = Memory(
        parameters=params,
        optimizer=bytes_of(state) - params,
        images=bytes_held(analysis) - bytes_of(state),
        temporaries=analysis.temp_size_in_bytes,
        code=analysis.generated_code_size_in_bytes,
    )
    schedules = bundles.Schedules()
    cost, unclear = hlo_cost.cost(text, schedules), hlo_cost.unclear(text, schedules)
    return Compiled(memory, cost, unclear, exchanges(text), seconds)


def bytes_held(analysis: Any) -> int:
    """Bytes of what goes into a program and comes out, by its `memory_analysis`; shared ones once.

    Temporaries and code are beside them.
    """
    total = analysis.argument_size_in_bytes + analysis.output_size_in_bytes
    return int(total - analysis.alias_size_in_bytes)


def bytes_of(tree: Any) -> int:
    """Bytes of abstract arrays on one chip."""
    return sum(
        int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def wanted_bytes(message: str) -> int | None:
    """How much memory a program needs, by the compiler's message that it does not fit."""
    units = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}
    found = re.search(r"Used ([\d.]+)([KMG]?) of", message)
    return int(float(found[1]) * units[found[2]]) if found else None
