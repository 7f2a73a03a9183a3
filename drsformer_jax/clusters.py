"""What launchers of several processes tell each of them in its environment."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from drsformer_jax.errors import InputError

_TIMEOUT = 300
"""Seconds that JAX may look for the first process."""
_QUIET = 5
"""Seconds of that search before a line says so."""


@dataclass(frozen=True)
class Cluster:
    """A launcher of processes whose variables JAX reads, and which of them tell what."""

    name: str
    variables: tuple[str, ...]
    """JAX takes the process for one of a cluster if all of these are set."""
    count: str = ""
    """Holds the number of processes, or their hosts between commas."""
    process: str = ""
    certain: bool = True
    """False if JAX still has to ask elsewhere whether there is a cluster."""


_SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
_CLUSTERS = (
    Cluster("Open MPI", ("OMPI_MCA_orte_hnp_uri",), "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    Cluster("Slurm", _SLURM, "SLURM_NTASKS", "SLURM_PROCID"),
    # JAX sets TPU_ML_PLATFORM, when it is imported on a machine with TPUs.
    *(
        Cluster("Cloud TPU", ("TPU_ML_PLATFORM", hosts), hosts, "TPU_WORKER_ID")
        for hosts in ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES")
    ),
    Cluster(
        "Kubernetes",
        ("KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"),
        process="JOB_COMPLETION_INDEX",
    ),
    # Whether such a machine belongs to a pod only Google's metadata server knows.
    Cluster("Cloud TPU", ("TPU_ML_PLATFORM",), certain=False),
)
"""The clusters that `jax.distributed.initialize` knows; it has no public way to ask for them."""


_OPEN_MPI = ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK")
_STEP_COUNT = "SLURM_STEP_NUM_TASKS"
_COUNTING = (
    Cluster("Open MPI", _OPEN_MPI, *_OPEN_MPI),
    # A shell of `salloc -n4` is a step of one task, where SLURM_NTASKS is still the job's 4.
    Cluster("Slurm", (*_SLURM, _STEP_COUNT), _STEP_COUNT, "SLURM_PROCID"),
    *_CLUSTERS,
)
"""Clusters that tell each process its number: Open MPI 5 says no more."""


def find_cluster(
    environment: Mapping[str, str], clusters: Sequence[Cluster] = _CLUSTERS
) -> Cluster | None:
    """The cluster whose variables are set; None for a process that was started by hand."""
    found = (each for each in clusters if environment.keys() >= {*each.variables})
    return next(found, None)


def is_alone(environment: Mapping[str, str]) -> bool:
    """Whether a step of Slurm is this process alone, though its job, which JAX looks at, is not."""
    return environment.keys() >= {*_SLURM} and environment.get(_STEP_COUNT) == "1"


def detected(
    address: str | None, count: int | None, index: int | None
) -> tuple[str | None, int | None, int | None]:
    """What is not given, as `jax.distributed.initialize` finds it; None where it finds nothing.

    Args:
        address: host and port of the first process.
        count: the number of processes.
        index: the number of this process.
    """
    if address is not None and count is not None and index is not None:
        return address, count, index
    # JAX has no public way to ask. This one is in 0.10 to 0.12; in a version without it processes
    # are connected by flags.
    from jax._src.clusters import ClusterEnv

    cluster = find_cluster(os.environ)
    looking = f"looking for the first process ({cluster.name if cluster else 'no cluster'})"
    saying = threading.Timer(_QUIET, print, [looking], {"file": sys.stderr})
    saying.start()
    try:
        return ClusterEnv.auto_detect_unset_distributed_params(
            address, count, index, None, None, _TIMEOUT
        )[:3]
    finally:
        saying.cancel()


def share(count: int | None, index: int | None, environment: Mapping[str, str]) -> tuple[int, int]:
    """Which share of some work is that of this process, where processes need not connect.

    Args:
        count: the number of processes; default: that of the cluster.
        index: the number of this process, from 0; default: likewise.
        environment: variables, such as `os.environ`.

    Returns:
        (number of this process, number of processes); (0, 1) without flags and cluster.

    Raises:
        InputError: if only one of the two is known, or they do not fit.
    """
    if count == 1 and index is None:
        return 0, 1
    named = (count, index) != (None, None)
    if cluster := find_cluster(environment, _COUNTING):
        if count is None and cluster.count in environment:
            hosts = environment[cluster.count]
            count = int(hosts) if hosts.isdigit() else len(hosts.split(","))
        if index is None and cluster.process in environment:
            index = int(environment[cluster.process])
    if count is None or index is None:
        if not named:
            return 0, 1
        raise InputError(
            f"--num-processes is {count} and --process-id is {index}; expected both, or a cluster "
            "that tells them"
        )
    if count < 1:
        raise InputError(f"--num-processes is {count}; expected at least 1")
    if not 0 <= index < count:
        raise InputError(
            f"--process-id is {index}; expected 0 to {count - 1}, of {count} processes"
        )
    return index, count
