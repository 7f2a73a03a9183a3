"""Where arrays lie: the mesh of devices, and batches on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, Sharding


def data_mesh(devices: Sequence[jax.Device]) -> Mesh:
    """The devices in a row, each of which takes its part of a batch."""
    return Mesh(np.array(devices), ("data",), axis_types=(AxisType.Auto,))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Batches cut along their first axis into one piece for each device."""
    return NamedSharding(mesh, PartitionSpec("data"))


def replicated(mesh: Mesh) -> NamedSharding:
    """Arrays that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


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
