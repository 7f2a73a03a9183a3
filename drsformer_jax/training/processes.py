"""The processes of a run: they connect, agree on a stop and gather results."""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import multihost
from tqdm import tqdm

from drsformer_jax.errors import InputError, reason

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_SHUTDOWN_TIMEOUT = 3600
"""Seconds that processes wait for the others at the end: the first one writes the report."""
_JOIN_TIMEOUT = 300
"""Seconds that processes wait for the others at the start."""
_INTERRUPTED = 130
"""Exit status after a second Ctrl-C, see `errors.one_line_errors`."""
_LEAVING = 3
"""Seconds that an interrupted process may take to end."""
_QUIET = 5
"""Seconds of that wait before a process says what it waits for."""


@dataclass(frozen=True)
class Cluster:
    """A launcher of processes whose variables JAX reads, and which of them tell what."""

    name: str
    variables: tuple[str, ...]
    """JAX takes the process for one of a cluster if all of these are set."""
    count: str = ""
    process: str = ""
    coordinator: str = ""
    certain: bool = True
    """False if JAX still has to ask elsewhere whether there is a cluster."""


_SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
_CLUSTERS = (
    Cluster(
        "Open MPI",
        ("OMPI_MCA_orte_hnp_uri",),
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_RANK",
        "OMPI_MCA_orte_hnp_uri",
    ),
    Cluster("Slurm", _SLURM, "SLURM_NTASKS", "SLURM_PROCID", "SLURM_STEP_NODELIST"),
    # JAX sets TPU_ML_PLATFORM, when it is imported on a machine with TPUs.
    Cluster("Cloud TPU", ("TPU_ML_PLATFORM", "TPU_PROCESS_ADDRESSES"), process="TPU_WORKER_ID"),
    Cluster(
        "Cloud TPU",
        ("TPU_ML_PLATFORM", "TPU_WORKER_HOSTNAMES"),
        process="TPU_WORKER_ID",
        coordinator="TPU_WORKER_HOSTNAMES",
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


def find_cluster(environment: Mapping[str, str]) -> Cluster | None:
    """The cluster whose variables are set; None for a process that was started by hand."""
    found = (each for each in _CLUSTERS if environment.keys() >= {*each.variables})
    return next(found, None)


def join(address: str | None = None, count: int | None = None, index: int | None = None) -> None:
    """Connects the processes of a run; must come before any computation with JAX.

    JAX finds what is not given in the environment of Cloud TPU pods, Slurm, Open MPI 4 and indexed
    Jobs of Kubernetes. Without any of these the process trains alone.

    Args:
        address: host and port of the first process.
        count: the number of processes; 1 makes the process train alone in any environment.
        index: the number of this process, from 0.

    Raises:
        InputError: if the processes cannot be connected.
    """
    address = address or os.environ.get("JAX_COORDINATOR_ADDRESS")
    cluster, named = find_cluster(os.environ), (address, count, index) != (None, None, None)
    if count == 1 or not (named or cluster):
        return
    # While a process waits for the others, Python does not run its signal handlers.
    handlers = {each: signal.signal(each, signal.SIG_DFL) for each in _SIGNALS}
    try:
        with _saying(_waiting(cluster, address, count, index)):
            jax.distributed.initialize(
                address,
                count,
                index,
                initialization_timeout=2 * _JOIN_TIMEOUT,
                shutdown_timeout_seconds=_SHUTDOWN_TIMEOUT,
            )
    except Exception as error:  # JAX lets out errors of many kinds
        # A lone machine with TPUs: JAX has found no cluster, and so no arguments.
        if isinstance(error, ValueError) and not named and cluster and not cluster.certain:
            return
        raise InputError(
            f"the processes cannot be connected ({reason(error)}); expected --coordinator-address "
            "HOST:PORT, --num-processes and --process-id in each, a cluster that JAX knows, or "
            "--num-processes 1 to train with this process alone"
        ) from error
    finally:
        signal.signal(signal.SIGINT, handlers[signal.SIGINT])
        if not jax.distributed.is_initialized():  # Else SIGTERM belongs to its preemption service.
            signal.signal(signal.SIGTERM, handlers[signal.SIGTERM])


def _waiting(
    cluster: Cluster | None, address: str | None, count: int | None, index: int | None
) -> str:
    """What a process waits for, in one line."""

    def known(given: object, variable: str) -> object:
        return os.environ.get(variable, "?") if given is None else given

    launcher = cluster or Cluster("named by flags", ())
    return (
        f"process {known(index, launcher.process)} of {known(count, launcher.count)} waits for the "
        f"others ({launcher.name}), the first of them at {known(address, launcher.coordinator)}"
    )


@contextmanager
def _saying(waiting: str) -> Iterator[None]:
    """Says what a process waits for, unless it is over soon, and ends it if it takes too long.

    JAX itself is silent, and at its timeout aborts the process with a stack trace.
    """
    over = threading.Event()

    def watch() -> None:
        if over.wait(_QUIET):
            return
        alone = "--num-processes 1 trains with this process alone"
        print(f"{waiting}; {alone}", file=sys.stderr, flush=True)
        if over.wait(_JOIN_TIMEOUT - _QUIET):
            return
        print(
            f"error: after {_JOIN_TIMEOUT} s {waiting}; expected all to start; {alone}",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)  # The main thread is in JAX, which cannot be interrupted.

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        over.set()


def check_equal(text: str, what: str) -> None:
    """Rejects processes that were given different values; all of them call it together.

    Raises:
        InputError: in every process.
    """
    if jax.process_count() == 1:
        return
    digest = np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8)
    if (multihost_utils.process_allgather(digest) != digest).any():
        raise InputError(f"{what} differs between the processes; expected the same in all")


def is_first() -> bool:
    """Whether this is the process that prints and writes files."""
    return jax.process_index() == 0


def say(text: str) -> None:
    """Prints above the progress bar, in the first process."""
    if is_first():
        tqdm.write(text)
        sys.stdout.flush()


def in_order(values: np.ndarray, total: int) -> np.ndarray:
    """Gathers what each process computed for its shard of some items, bit for bit.

    All processes call it together.

    Args:
        values: float64 (n, k), a row for each item of this process.
        total: number of items of all processes.

    Returns:
        float64 (total, k), a row for each item in order, in every process.
    """
    processes = jax.process_count()
    if processes == 1:
        return values
    padded = np.zeros((-(-total // processes), values.shape[1]))
    padded[: len(values)] = values
    # As bytes, since JAX would convert to float32.
    gathered = multihost_utils.process_allgather(padded.view(np.uint8))
    return interleaved(gathered.view(np.float64), total)


def interleaved(gathered: np.ndarray, total: int) -> np.ndarray:
    """Puts rows of several processes into the order of the items.

    Args:
        gathered: (p, n, k), the rows of each of p processes for items i, i + p, i + 2 p, ..., at
            the end of shorter ones padding.
        total: number of items.

    Returns:
        (total, k).
    """
    return gathered.swapaxes(0, 1).reshape(-1, gathered.shape[2])[:total]


def least(value: int) -> int:
    """The least of the values that the processes have; all of them call it together."""
    if jax.process_count() == 1:
        return value
    # As bytes, since JAX would make int32 of it.
    own = np.array([value], np.int64).view(np.uint8)
    return int(multihost_utils.process_allgather(own).view(np.int64).min())


class Stop:
    """Turns SIGTERM and Ctrl-C into a request to stop, which all processes see at the same step.

    A second Ctrl-C interrupts at once.
    """

    def __init__(self) -> None:
        self._asked = self._interrupted = False
        self._old: dict[int, Any] = {}

    def at(self, step: int) -> bool:
        """Whether to stop after this step. To be called once for each step, by all processes."""
        if jax.process_count() > 1:
            # SIGTERM, which announces preemption too, reaches all of them through one.
            return multihost.reached_preemption(step)
        return self._asked

    def before(self, start: int) -> bool:
        """Whether to stop before the first step after `start`; to be called once, by all."""
        if jax.process_count() > 1:
            # Of a request before the first call here, JAX tells all processes at step 1.
            return multihost.reached_preemption(1) | multihost.reached_preemption(start)
        return self._asked

    def now(self) -> bool:
        """Whether to stop at once, which a single process may do anywhere."""
        return self._asked and jax.process_count() == 1

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self._interrupted and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._asked = True
        self._interrupted |= number == signal.SIGINT
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)

    def __enter__(self) -> Stop:
        # In a run of several processes SIGTERM belongs to JAX's preemption service.
        numbers = (signal.SIGINT,) if jax.process_count() > 1 else _SIGNALS
        self._old = {number: signal.signal(number, self._ask) for number in numbers}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)


@contextmanager
def ended_together() -> Iterator[None]:
    """Ends a run of several processes if one of them fails; JAX then ends the others.

    A process that was interrupted ends within seconds.
    """
    try:
        yield
    except BaseException as error:
        status = error.code if isinstance(error, SystemExit) else 1
        if status == _INTERRUPTED:
            # A thread of Orbax may wait for minutes for what the interrupted save never says.
            end = threading.Timer(_LEAVING, os._exit, (_INTERRUPTED,))
            end.daemon = True
            end.start()
        if not status or not jax.distributed.is_initialized():
            raise
        # An orderly exit would wait for the other processes, which wait for this one.
        if isinstance(status, str):
            print(status, file=sys.stderr)
        elif isinstance(error, jax.errors.JaxRuntimeError):
            line = f"error: another process of the run has ended ({reason(error)})"
            print(line, file=sys.stderr)
        elif not isinstance(error, SystemExit):
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status if isinstance(status, int) else 1)
