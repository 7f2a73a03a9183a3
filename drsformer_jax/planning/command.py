"""The command `drsformer plan`."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import tyro
from jax.sharding import Mesh

from drsformer_jax.config import DType, Kernels, MeshConfig, TrainConfig
from drsformer_jax.config.file import load_config
from drsformer_jax.errors import InputError
from drsformer_jax.files import check_writable, write_text
from drsformer_jax.flags import check_unused, image_size
from drsformer_jax.nn.functional import wide_types
from drsformer_jax.planning import hlo_cost, programs
from drsformer_jax.planning.exchanges import exchanged
from drsformer_jax.planning.plan import bounds, whole_run
from drsformer_jax.planning.programs import Slice, TooLarge
from drsformer_jax.restoring.buckets import padded
from drsformer_jax.restoring.restorer import STRIPS
from drsformer_jax.sharding import batch_shards, check_batches, make_mesh
from drsformer_jax.training.step import microbatches

Row = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """Estimates memory and time of training or restoring on TPUs or GPUs that you do not have."""

    config: Path
    """Python file whose get_config() returns the TrainConfig."""
    topology: str
    """v4, v5e, v5p or v6e with the shape of a slice (v5e:16x16, v5p:2x2x1), or h100, a100 or l4
    with a number of GPUs (h100:8)."""
    restore: str | None = None
    """WIDTHxHEIGHT of an image: plan restoring it on one chip, in place of training. The program is
    that of derain, which estimates memory and may choose lower strips."""
    fsdp: int | None = None
    """Chips that parameters and optimizer state are sharded over; default: as configured."""
    rows: int | None = None
    """Chips that the rows of each image are sharded over; default: as configured."""
    device_batch: int | None = None
    """Largest microbatch of a chip, in crops; default: as configured."""
    global_batch: int | None = None
    """Images of a step of the last stage, earlier ones in proportion; default: as
    configured."""
    remat: Annotated[bool | None, tyro.conf.arg(metavar="{True,False}")] = None
    """Whether the backward pass computes activations again; default: as configured."""
    save_convolutions: Annotated[bool | None, tyro.conf.arg(metavar="{True,False}")] = None
    """Whether it then keeps the results of depthwise convolutions; default: as configured."""
    dtype: DType | None = None
    """What the network computes in; default: as configured."""
    kernels: Kernels | None = None
    """xla or pallas; default: as configured."""
    search: bool = False
    """Try meshes, on TPUs saved convolutions, and smaller microbatches, all with remat; each is
    compiled, and the best that fits is printed."""
    efficiency: float = 0.5
    """Share of the bound that is assumed to be reached."""
    json: Path | None = None
    """File for the figures."""

    def run(self) -> None:
        """Prints the plan.

        Raises:
            InputError: if the topology is unknown or a flag is wrong, or nothing fits.
        """
        if not 0 < self.efficiency <= 1:
            raise InputError(f"--efficiency is {self.efficiency}; expected more than 0, at most 1")
        saving = ("remat", "save_convolutions")
        of_training = ("search", "fsdp", "rows", "device_batch", "global_batch", *saving)
        if self.restore is not None:
            check_unused(self, of_training, "beside --restore")
        if self.search:
            check_unused(self, ("fsdp", "device_batch", *saving), "beside --search")
        config = self._configured(load_config(self.config))
        if self.json:
            check_writable(self.json.parent)  # Compiling takes minutes.
        programs.prepare()
        chips = programs.find_slice(self.topology)
        with wide_types(config.model):
            row = self._restoring(config, chips) if self.restore else self._training(config, chips)
        if "error" not in row:
            print(text(row))
        if self.json:
            write_text(self.json, json.dumps(row, indent=2) + "\n")
        if "error" in row:
            raise InputError(row["error"])

    def _configured(self, config: TrainConfig) -> TrainConfig:
        """The run with the flags that were given."""
        model = _given(
            remat=self.remat,
            save_convolutions=self.save_convolutions,
            dtype=self.dtype,
            kernels=self.kernels,
        )
        mesh = _given(fsdp=self.fsdp, rows=self.rows, device_batch=self.device_batch)
        data = config.data
        if self.global_batch is not None:
            factor = self.global_batch / data.stages()[-1][2]
            progressive = tuple(
                (first, side, round(factor * batch)) for first, side, batch in data.progressive
            )
            data = replace(data, global_batch=self.global_batch, progressive=progressive)
        return replace(
            config,
            model=replace(config.model, **model),
            # All chips of the slice, whatever was there when the recipe was written.
            mesh=_over_all(config.mesh, **mesh),
            data=data,
        )

    def _training(self, config: TrainConfig, chips: Slice) -> Row:
        if self.search:
            return self._best(config, chips)
        row = self._step(config, chips)
        if "error" not in row:
            return row
        for smaller in _smaller(config, chips):
            found = self._step(smaller, chips)
            if "error" not in found:
                memory = _gib(found["memory"]["total"])
                fits = f"{_flags(smaller)}, which needs {memory}"
                return row | {"error": f"{row['error']}; expected less, such as {fits}"}
        return row | {
            "error": f"{row['error']}; nor does one crop at a time: expected larger chips, or more "
            "of them that share the state or the rows (--fsdp, --rows)"
        }

    def _best(self, config: TrainConfig, chips: Slice) -> Row:
        """The fastest of what fits; a line for each that was compiled."""
        rows = []
        for family in _families(config, chips):
            for candidate in family:
                row = self._step(candidate, chips)
                fits = "error" not in row
                said = (
                    f"{_gib(row['memory']['total'])}, {1e3 * row['bound']:.1f} ms per step"
                    if fits
                    else "does not fit"
                )
                print(f"{_flags(candidate)}: {said}", flush=True)
                if fits:
                    rows.append(row)
                    break  # Smaller microbatches take longer.
        if not rows:
            raise InputError(f"nothing fits {chips.name}; expected larger chips or smaller crops")
        return min(rows, key=lambda row: row["bound"])

    def _step(self, config: TrainConfig, chips: Slice) -> Row:
        """Figures of one configuration."""
        mesh = make_mesh(config.mesh, chips.devices)
        check_batches(config.data, mesh)
        stages = config.data.stages()
        _, side, batch = max(stages, key=lambda stage: stage[1] ** 2 * stage[2])
        row: Row = {
            "what": f"the training step of {self.config}, {config.model.dtype}",
            "flags": _flags(config),
            "side": side,
            "global_batch": batch,
            "microbatches": microbatches(config, mesh, batch, side),
            **_slice(chips, mesh),
        }
        found = self._compiled(row, chips, mesh, *programs.train_step(config, mesh, side, batch))
        if "error" in found:
            return row | found
        step = found["bound"] / self.efficiency
        seconds = whole_run(config, stages, batch * side**2, step)
        return (
            row
            | found
            | {
                "steps_per_s": 1 / step,
                "steps": config.steps,
                "hours": seconds / 3600,
                "chip_hours": seconds / 3600 * mesh.size,
                "pairs_per_s": batch / step,
                "pairs_per_s_of_host": batch / step / chips.hosts,
            }
        )

    def _restoring(self, config: TrainConfig, chips: Slice) -> Row:
        """Figures of restoring one image, in the largest strips that fit."""
        width, height = image_size("--restore", self.restore or "")
        one = replace(chips, devices=chips.devices[:1])
        mesh = make_mesh(MeshConfig(data=1), one.devices)
        row: Row = {}
        for strip in (0, *STRIPS):
            if strip >= height:
                continue
            row = {
                "what": f"{width}x{height} with the network of {self.config}, {config.model.dtype}",
                "strips": strip,
                **_slice(one, mesh),
            }
            size = padded((height, width))
            work = programs.restoring(config.model.without_remat(), mesh, *size, strip)
            row |= self._compiled(row, one, mesh, *work)
            if "error" not in row:
                return row | {"images_per_s": self.efficiency / row["bound"]}
        return row

    def _compiled(
        self, row: Row, chips: Slice, mesh: Mesh, function: programs.Function, arguments: Any
    ) -> Row:
        """What the compiler makes of a program."""
        print(f"compiling {row['what']} for {chips.name}", file=sys.stderr, flush=True)
        found = programs.compiled(function, arguments)
        memory = chips.chip.memory * chips.chip.usable
        if isinstance(found, TooLarge) or found.memory.total > memory:
            needs = found.needs if isinstance(found, TooLarge) else found.memory.total
            most = _gib(memory)
            needed = f"{_gib(needs)} of {most}" if needs else f"more than {most}"
            line = f"{row['what']} does not fit {chips.name}: it needs {needed} per chip"
            return {"error": line, "needs": needs}
        limits = bounds(found, chips.chip, mesh.shape)
        return {
            "compile_s": found.seconds,
            "memory": {
                **dataclasses.asdict(found.memory),
                "total": found.memory.total,
                "available": memory,
            },
            "flops": found.cost.flops,
            "matrix_flops": found.cost.matrix_flops,
            "bytes": found.cost.hbm_bytes,
            "exchanged": [
                {"axes": axes, "kind": kind, "times": times, "bytes": size}
                for (axes, kind), (times, size) in exchanged(found.exchanges, mesh.shape).items()
            ],
            "unclear": found.unclear,
            "bounds": limits,
            "bound": max(limits.values()),
            "efficiency": self.efficiency,
        }


def text(row: Row) -> str:
    """A plan as a table of two columns."""
    return "\n".join(f"{name:20} {value}" for name, value in _lines(row))


def _lines(row: Row) -> Iterator[tuple[str, str]]:
    yield "what", row["what"]
    yield (
        "where",
        f"{row['topology']}: {_count(row['chips'], 'chip')}, {_count(row['hosts'], 'host')}",
    )
    if "global_batch" in row:
        mesh = ", ".join(f"{name} {size}" for name, size in row["mesh"].items())
        yield "mesh", f"{mesh}; {row['flags']}"
        micro = f", {row['microbatches']} microbatches" if row["microbatches"] > 1 else ""
        yield "step", f"{row['global_batch']} crops of {row['side']}x{row['side']}{micro}"
    else:
        yield "computed", f"in strips of {row['strips']} rows" if row["strips"] else "all at once"
    yield "compiled in", f"{row['compile_s']:.0f} s"
    memory = row["memory"]
    parts = ("parameters", "optimizer", "images", "temporaries", "code")
    listed = ", ".join(f"{part} {memory[part] / 2**30:.2f}" for part in parts)
    free = (memory["available"] - memory["total"]) / 2**30
    yield "memory per chip", f"{_gib(memory['total'])} of {_gib(memory['available'])}"
    yield "", f"{listed}; free {free:.2f}"
    yield (
        "compute per chip",
        f"{row['flops'] / 1e9:.1f} GFLOP, "
        f"{row['matrix_flops'] / 1e9:.1f} of them in matrix products",
    )
    yield "memory traffic", f"{row['bytes'] / 1e9:.2f} GB per chip"
    for one in row["exchanged"]:
        yield (
            f"along {one['axes']}",
            f"{_count(one['times'], one['kind'])}, {one['bytes'] / 1e6:.1f} MB",
        )
    if row["unclear"] and "schedule" in row["bounds"]:
        yield "not counted", f"{hlo_cost.unclear_line(row['unclear'])}: the schedule is too short"
    ranked = sorted(row["bounds"].items(), key=lambda item: -item[1])
    yield "takes at least", ", ".join(f"{name} {1e3 * value:.1f} ms" for name, value in ranked)
    at = f"at {row['efficiency']:.0%} of that bound (projected)"
    if "images_per_s" in row:
        yield "images per second", f"{row['images_per_s']:.2f} {at}"
        return
    yield "steps per second", f"{row['steps_per_s']:.2f} {at}"
    yield (
        f"{row['steps']:,} steps",
        (f"{row['hours']:.1f} hours, {row['chip_hours']:.0f} chip-hours {at}"),
    )
    yield (
        "input pairs",
        f"{row['pairs_per_s']:.0f} per second, {row['pairs_per_s_of_host']:.0f} per host",
    )


def _over_all(mesh: MeshConfig, **changes: int) -> MeshConfig:
    """The changed mesh, with all chips that its other axes leave along `data` or the axis of -1."""
    changed = replace(mesh, data=1, **changes)
    rest = -1 in (changed.fsdp, changed.rows)
    return replace(changed, data=max(1, mesh.data) if rest else -1)


def _families(config: TrainConfig, chips: Slice) -> Iterator[list[TrainConfig]]:
    """What `--search` tries: in each family the microbatches become smaller."""
    for fsdp in sorted({1, max(1, len(chips.devices) // max(1, config.mesh.rows))}):
        # Saving gains nothing on GPUs, and without remat all chips need far more memory.
        for saving in (True, False) if chips.chip.platform == "tpu" else (False,):
            first = replace(
                config,
                model=replace(config.model, remat=True, save_convolutions=saving),
                mesh=_over_all(config.mesh, fsdp=fsdp, device_batch=0),
            )
            yield [first, *_halved(first, chips)]


def _smaller(config: TrainConfig, chips: Slice) -> Iterator[TrainConfig]:
    """What needs less memory, the cheapest first."""
    rematerialized = replace(
        config, model=replace(config.model, remat=True, save_convolutions=False)
    )
    if config != rematerialized:
        yield rematerialized
    yield from _halved(rematerialized, chips)


def _halved(config: TrainConfig, chips: Slice) -> Iterator[TrainConfig]:
    """Smaller and smaller microbatches, down to one crop."""
    mesh = make_mesh(config.mesh, chips.devices)
    pixels = max(side**2 * batch for _, side, batch in config.data.stages())
    crops = pixels // (batch_shards(mesh) * config.data.crop_size**2 * mesh.shape["rows"])
    limit = min(crops, config.mesh.device_batch or crops)
    while limit > 1:
        limit //= 2
        yield replace(config, mesh=replace(config.mesh, device_batch=limit))


def _flags(config: TrainConfig) -> str:
    """The flags of a run that the search changes."""
    mesh = config.mesh
    model = config.model
    saving = f"--remat {model.remat}"
    if model.remat:
        saving += f" --save-convolutions {model.save_convolutions}"
    return f"--fsdp {mesh.fsdp} {saving} --device-batch {mesh.device_batch}"


def _slice(chips: Slice, mesh: Mesh) -> Row:
    return {
        "topology": chips.name,
        "chips": mesh.size,
        "hosts": chips.hosts,
        "mesh": dict(mesh.shape),
    }


def _given(**flags: Any) -> dict[str, Any]:
    return {name: value for name, value in flags.items() if value is not None}


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f} GiB"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"
