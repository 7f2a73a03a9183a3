"""The mesh of devices, and how train states and batches are sharded over it.

The mesh has three axes. A batch is sharded over `data` and `fsdp`. Parameters and optimizer state
are sharded over `fsdp` between steps and gathered within one (as in "ZeRO: Memory Optimizations
Toward Training Trillion Parameter Models", SC 2020). The rows of each image are sharded over
`rows`. The result is the same on every mesh, up to floating-point summation order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, Sharding

from drsformer_jax.config import SIZE_MULTIPLE, DataConfig, MeshConfig
from drsformer_jax.errors import InputError

_AXES = ("data", "fsdp", "rows")
_IMAGES = ("data", "fsdp")
"""Axes that a batch is sharded over."""
_STACK = "layers"
"""Name of the modules whose parameters are stacked along the first axis and scanned."""


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Makes the mesh of the devices of all processes; a single process may leave some unused.

    Args:
        config: the sizes of the axes.
        devices: to use; default: all that JAX finds.

    Raises:
        InputError: if the sizes of the axes do not fit the devices.
    """
    devices = _by_process(jax.devices() if devices is None else devices)
    processes = len({device.process_index for device in devices})
    sizes = [config.data, config.fsdp, config.rows]
    found = f"the mesh is {', '.join(map('{} {}'.format, _AXES, sizes))}"
    if -1 in sizes:
        others = math.prod(size for size in sizes if size != -1)
        sizes[sizes.index(-1)] = max(len(devices) // others, 1)
    count = math.prod(sizes)
    fits = count <= len(devices) if processes == 1 else count == len(devices)
    if not fits or (-1 in (config.data, config.fsdp, config.rows) and count != len(devices)):
        raise InputError(f"{found}; expected a product of {len(devices)}, the number of devices")
    local = len(devices) // processes
    if processes > 1 and local % sizes[2]:
        raise InputError(f"{found}; expected rows to divide {local}, the devices of a process")
    return Mesh(np.array(devices[:count]).reshape(sizes), _AXES, axis_types=(AxisType.Auto,) * 3)


def _by_process(devices: Sequence[jax.Device]) -> list[jax.Device]:
    """Devices by process, so that each one holds a block of every batch, and in it along its links.

    JAX's order of a whole slice, by its links, gives most processes parts of several blocks.
    """
    of_process: dict[int, list[jax.Device]] = {}
    for device in sorted(devices, key=lambda each: each.id):
        of_process.setdefault(device.process_index, []).append(device)
    return [device for _, own in sorted(of_process.items()) for device in _linked(own)]


def _linked(devices: list[jax.Device]) -> list[jax.Device]:
    """TPUs of one process in the order of a path along their links, which turns at each end.

    Other devices, which have no coordinates, stay as they are.
    """
    if not all(hasattr(device, "coords") for device in devices):
        return devices
    coords = np.array([device.coords for device in devices]) - devices[0].coords
    low, high = coords.min(0), coords.max(0)
    # From the shortest axis to the longest: of 2x4 chips, the end of the path is beside its start.
    axes = np.argsort(high - low, kind="stable")

    def position(number: int) -> tuple[int, int]:
        found = 0
        for axis in axes:
            forward, length = coords[number, axis] - low[axis], high[axis] - low[axis] + 1
            found = found * length + (length - 1 - forward if found % 2 else forward)
        return found, number  # The cores of a chip one after another.

    return [devices[number] for number in sorted(range(len(devices)), key=position)]


def batch_shards(mesh: Mesh) -> int:
    """The number of shards of a batch."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def check_batches(config: DataConfig, mesh: Mesh) -> None:
    """Rejects batches that cannot be sharded evenly.

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
    """The sharding of images (b, h, w, 3): the batch over `data` and `fsdp`, rows over `rows`."""
    return NamedSharding(mesh, PartitionSpec(_IMAGES, "rows"))


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of arrays that every device has whole."""
    return NamedSharding(mesh, PartitionSpec())


def state_shardings(state: Any, mesh: Mesh, min_size: int) -> Any:
    """The shardings of parameters, and of what has their names and shapes.

    The longest axis that `fsdp` divides is sharded, the last of equal ones. The first axis of a
    stack is not, since a scan uses its slices one after another. Vectors and small arrays are
    replicated.

    Args:
        state: a tree of arrays or their shapes.
        mesh: the devices.
        min_size: elements of the smallest array that is sharded.
    """

    def sharding_of(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        stacked = any(getattr(key, "key", None) == _STACK for key in path)
        shards = mesh.shape["fsdp"] if math.prod(leaf.shape) >= min_size else 1
        return NamedSharding(mesh, _spec(leaf.shape, int(stacked), shards))

    return jax.tree_util.tree_map_with_path(sharding_of, state)


def _spec(shape: tuple[int, ...], first: int, shards: int) -> PartitionSpec:
    axes = [axis for axis in range(first, len(shape)) if shape[axis] % shards == 0]
    if shards == 1 or len(shape) - first < 2 or not axes:
        return PartitionSpec()
    longest = max(axes, key=lambda axis: (shape[axis], axis))
    return PartitionSpec(*["fsdp" if axis == longest else None for axis in range(longest + 1)])


def averaged_over_shards(
    gradient: Callable[[Any, jax.Array, jax.Array], tuple[jax.Array, Any]],
    mesh: Mesh,
    min_size: int,
) -> Callable[[Any, jax.Array, jax.Array], tuple[jax.Array, Any]]:
    """Computes a loss and its gradient on each device's shard of a batch, and averages them.

    It uses `jax.shard_map`, since the compiler cannot partition loops over images by itself.

    Args:
        gradient: maps replicated parameters and one device's images and targets, (n, h, w, 3), to
            their mean loss and its gradient. With `rows` above 1 the images are one device's row
            chunks, and the gradient is that of the sum of the losses of these devices.
        mesh: the devices.
        min_size: that of `state_shardings`.

    Returns:
        The same function of sharded parameters and global batches; the gradient is sharded as the
        parameters are.
    """

    def shared(params: Any, rainy: jax.Array, clean: jax.Array) -> tuple[jax.Array, Any]:
        shardings = state_shardings(params, mesh, min_size)
        specs = jax.tree.map(lambda sharding: sharding.spec, shardings)

        def gather(leaf: jax.Array, spec: PartitionSpec) -> jax.Array:
            if "fsdp" not in spec:
                return leaf
            return jax.lax.all_gather(leaf, "fsdp", axis=spec.index("fsdp"), tiled=True)

        def average(leaf: jax.Array, spec: PartitionSpec) -> jax.Array:
            if "fsdp" not in spec:
                return jax.lax.pmean(leaf, _AXES)
            axis = spec.index("fsdp")
            shard = jax.lax.psum_scatter(leaf, "fsdp", scatter_dimension=axis, tiled=True)
            return jax.lax.psum(shard, ("data", "rows")) / mesh.size

        def of_shard(params: Any, rainy: jax.Array, clean: jax.Array) -> tuple[jax.Array, Any]:
            loss, grads = gradient(jax.tree.map(gather, params, specs), rainy, clean)
            return jax.lax.pmean(loss, _AXES), jax.tree.map(average, grads, specs)

        images = PartitionSpec(_IMAGES, "rows")
        return jax.shard_map(
            of_shard,
            mesh=mesh,
            in_specs=(specs, images, images),
            out_specs=(PartitionSpec(), specs),
            check_vma=False,
        )(params, rainy, clean)

    return shared


def rows_mesh(count: int) -> Mesh:
    """A mesh for images or their rows: devices of this process, of all if it has too few."""
    local = jax.local_devices()
    devices = _by_process(local if count <= len(local) else jax.devices())[:count]
    return Mesh(np.array(devices), ("rows",), axis_types=(AxisType.Auto,))


def over_rows(network: Callable[..., jax.Array], count: int) -> Callable[..., jax.Array]:
    """Shards the rows of images (b, h, w, 3) over the devices of `rows_mesh`.

    Args:
        network: maps parameters, row chunks of images, and further replicated arrays to row
            chunks; it computes with `nn.rows.Shards`.
        count: the number of devices.
    """
    return _over(count, network, PartitionSpec(None, "rows"), PartitionSpec())


def over_images(network: Callable[..., jax.Array], count: int) -> Callable[..., jax.Array]:
    """Shards images (b, h, w, 3) over the devices of `rows_mesh`, which divide b.

    Args:
        network: maps parameters, images, and further arrays with an axis b to images.
        count: the number of devices.
    """
    return _over(count, network, PartitionSpec("rows"), PartitionSpec("rows"))


def _over(
    count: int, network: Callable[..., jax.Array], images: PartitionSpec, others: PartitionSpec
) -> Callable[..., jax.Array]:
    def shared(params: Any, rainy: jax.Array, *further: jax.Array) -> jax.Array:
        return jax.shard_map(
            network,
            mesh=rows_mesh(count),
            in_specs=(PartitionSpec(), images, *[others for _ in further]),
            out_specs=images,
            check_vma=False,
        )(params, rainy, *further)

    return shared


def global_arrays(arrays: Mapping[str, np.ndarray], sharding: Sharding) -> dict[str, jax.Array]:
    """Makes global arrays of the data that each process has of them.

    Args:
        arrays: this process's data, a block along the first axis.
        sharding: the sharding of the global arrays over the devices of all processes.

    Returns:
        The global arrays; the copies to the devices are asynchronous.
    """
    return {
        name: jax.make_array_from_process_local_data(sharding, array)
        for name, array in arrays.items()
    }


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Copies of arrays of this process on all devices of a mesh, also on those of others.

    Args:
        tree: of arrays that are the same in each process of the mesh.
        mesh: the devices.
    """
    sharding = replicated(mesh)
    if mesh.is_multi_process:
        return jax.tree.map(
            lambda leaf: jax.make_array_from_process_local_data(sharding, np.asarray(leaf)), tree
        )
    return jax.device_put(tree, sharding)


def least(value: int) -> int:
    """The least of the values that the processes have; all of them call it together."""
    if jax.process_count() == 1:
        return value
    # As bytes, since JAX would make int32 of it.
    own = np.array([value], np.int64).view(np.uint8)
    return int(multihost_utils.process_allgather(own).view(np.int64).min())


def gathered(tree: Any, mesh: Mesh) -> Any:
    """Unsharded copies of arrays, on one device of each process; all processes call it together."""
    copies = jax.jit(_identity, out_shardings=replicated(mesh))(tree)
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), copies)


def _identity(tree: Any) -> Any:
    return tree
