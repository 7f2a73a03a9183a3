"""Where arrays lie: the mesh of devices, and states and batches on it.

The mesh has three axes. `data` and `fsdp` share the images of a batch; of `fsdp` each device
keeps only its part of the parameters and the optimizer state between steps (as in "ZeRO: Memory
Optimizations Toward Training Trillion Parameter Models", SC 2020; within a step it has all
parameters); `rows` shares the rows of each image. What is computed is the same on every mesh, up
to the order of sums.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, Sharding

from drsformer_jax.config import SIZE_MULTIPLE, DataConfig, MeshConfig
from drsformer_jax.errors import InputError

_AXES = ("data", "fsdp", "rows")
_IMAGES = ("data", "fsdp")
"""Axes that share the images of a batch."""
_STACK = "layers"
"""Name of the modules whose parameters are stacked along a first axis and scanned."""


def make_mesh(config: MeshConfig) -> Mesh:
    """Lays out the devices of all processes; a single process may leave some of its own unused.

    Raises:
        InputError: if the devices cannot be laid out so.
    """
    # By process, so that each one holds a block of every batch, whatever the network's topology.
    devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    sizes = [config.data, config.fsdp, config.rows]
    found = f"the mesh is {', '.join(map('{} {}'.format, _AXES, sizes))}"
    if -1 in sizes:
        others = math.prod(size for size in sizes if size != -1)
        sizes[sizes.index(-1)] = max(len(devices) // others, 1)
    count = math.prod(sizes)
    fits = count <= len(devices) if jax.process_count() == 1 else count == len(devices)
    if not fits or (-1 in (config.data, config.fsdp, config.rows) and count != len(devices)):
        raise InputError(f"{found}; expected a product of {len(devices)}, the number of devices")
    if jax.process_count() > 1 and jax.local_device_count() % sizes[2]:
        raise InputError(
            f"{found}; expected rows to divide {jax.local_device_count()}, the devices of a process"
        )
    return Mesh(np.array(devices[:count]).reshape(sizes), _AXES, axis_types=(AxisType.Auto,) * 3)


def batch_shards(mesh: Mesh) -> int:
    """Into how many parts a batch is cut."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def check_batches(config: DataConfig, mesh: Mesh) -> None:
    """Refuses batches that cannot be shared evenly.

    Raises:
        InputError: names the batch or the side of a patch.
    """
    shards, rows = batch_shards(mesh), mesh.shape["rows"]
    for _, side, batch in config.stages():
        if batch % shards:
            raise InputError(
                f"the global batch is {batch}; expected a multiple of {shards}, the devices that "
                "share it, or fewer of them (--mesh.data, or --mesh.rows with several processes)"
            )
        # Each device halves its rows three times.
        if side % (SIZE_MULTIPLE * rows):
            raise InputError(
                f"the patches have {side} rows; expected a multiple of {SIZE_MULTIPLE * rows}, "
                f"{SIZE_MULTIPLE} for each of the {rows} devices that share them"
            )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Images (b, h, w, 3), cut along the batch over `data` and `fsdp` and along `rows`."""
    return NamedSharding(mesh, PartitionSpec(_IMAGES, "rows"))


def replicated(mesh: Mesh) -> NamedSharding:
    """Arrays that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def state_sharding(state: Any, mesh: Mesh) -> Any:
    """How parameters, and what has their names and shapes, lie on the mesh.

    The longest axis that `fsdp` divides is cut, the last of equal ones. Never the axis of a stack,
    whose slices are used one after another; and never vectors, which are small.

    Args:
        state: arrays or their shapes, in a tree.
        mesh: the devices.
    """

    def placed(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        stacked = any(getattr(key, "key", None) == _STACK for key in path)
        return NamedSharding(mesh, _cut(leaf.shape, int(stacked), mesh.shape["fsdp"]))

    return jax.tree_util.tree_map_with_path(placed, state)


def _cut(shape: tuple[int, ...], first: int, shards: int) -> PartitionSpec:
    axes = [axis for axis in range(first, len(shape)) if shape[axis] % shards == 0]
    if shards == 1 or len(shape) - first < 2 or not axes:
        return PartitionSpec()
    longest = max(axes, key=lambda axis: (shape[axis], axis))
    return PartitionSpec(*["fsdp" if axis == longest else None for axis in range(longest + 1)])


def averaged_over_shards(
    gradient: Callable[[Any, jax.Array, jax.Array], tuple[jax.Array, Any]], mesh: Mesh
) -> Callable[[Any, jax.Array, jax.Array], tuple[jax.Array, Any]]:
    """Lets each device work on its own images, or rows of them, and averages what they find.

    The compiler is not asked to share this work: it cannot share loops over images.

    Args:
        gradient: of whole parameters and some images and their targets, (n, h, w, 3): their mean
            loss, and its gradient. Where devices share `rows` it is given those of one device, and
            the gradient is that of the sum of all these devices' losses.
        mesh: the devices.

    Returns:
        The same function of parameters that lie on the mesh and all images; its gradient lies as
        the parameters do.
    """

    def shared(params: Any, rainy: jax.Array, clean: jax.Array) -> tuple[jax.Array, Any]:
        specs = jax.tree.map(lambda place: place.spec, state_sharding(params, mesh))

        def whole(leaf: jax.Array, spec: PartitionSpec) -> jax.Array:
            if "fsdp" not in spec:
                return leaf
            return jax.lax.all_gather(leaf, "fsdp", axis=spec.index("fsdp"), tiled=True)

        def average(leaf: jax.Array, spec: PartitionSpec) -> jax.Array:
            if "fsdp" not in spec:
                return jax.lax.pmean(leaf, _AXES)
            axis = spec.index("fsdp")
            own = jax.lax.psum_scatter(leaf, "fsdp", scatter_dimension=axis, tiled=True)
            return jax.lax.psum(own, ("data", "rows")) / mesh.size

        def of_own_images(params: Any, rainy: jax.Array, clean: jax.Array) -> tuple[jax.Array, Any]:
            loss, grads = gradient(jax.tree.map(whole, params, specs), rainy, clean)
            return jax.lax.pmean(loss, _AXES), jax.tree.map(average, grads, specs)

        images = PartitionSpec(_IMAGES, "rows")
        return jax.shard_map(
            of_own_images,
            mesh=mesh,
            in_specs=(specs, images, images),
            out_specs=(PartitionSpec(), specs),
            check_vma=False,
        )(params, rainy, clean)

    return shared


def rows_mesh(count: int) -> Mesh:
    """Devices of this process that share the rows of images."""
    return Mesh(np.array(jax.local_devices()[:count]), ("rows",), axis_types=(AxisType.Auto,))


def over_rows(network: Callable[..., jax.Array], count: int) -> Callable[..., jax.Array]:
    """Lets devices of this process share the rows of images, (b, h, w, 3).

    Args:
        network: of parameters, some rows of images, and whatever else each device reads whole; it
            computes with `nn.rows.Shards`.
        count: the devices.
    """
    images, whole = PartitionSpec(None, "rows"), PartitionSpec()

    def shared(params: Any, rainy: jax.Array, *others: jax.Array) -> jax.Array:
        return jax.shard_map(
            network,
            mesh=rows_mesh(count),
            in_specs=(whole, images, *[whole for _ in others]),
            out_specs=images,
            check_vma=False,
        )(params, rainy, *others)

    return shared


def place(arrays: Mapping[str, np.ndarray], sharding: Sharding) -> dict[str, jax.Array]:
    """Makes global arrays of what each process holds of them.

    Args:
        arrays: this process's part along the first axis.
        sharding: how the whole lies on the devices of all processes.

    Returns:
        The global arrays; the copies to the devices may still be under way.
    """
    return {
        name: jax.make_array_from_process_local_data(sharding, array)
        for name, array in arrays.items()
    }


def gathered(tree: Any, mesh: Mesh) -> Any:
    """Copies of arrays, whole on one device of each process; all processes call it together."""
    whole = jax.jit(_same, out_shardings=replicated(mesh))(tree)
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), whole)


def _same(tree: Any) -> Any:
    return tree
