"""The processes of a run: they connect, agree on a stop and gather results."""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import threading
import time
import traceback
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import multihost
from tqdm import tqdm

from drsformer_jax.clusters import detected, find_cluster, is_alone
from drsformer_jax.config.fields import check
from drsformer_jax.errors import InputError, end_program, ending_signals, leave_terminal, reason
from drsformer_jax.training.peers import Peers
from drsformer_jax.training.watchdog import waits_for, watch

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_SHUTDOWN_TIMEOUT = 3600
"""Seconds that processes wait for the others at the end: the first one writes the report."""
_TIMEOUT = 300
"""Seconds that JAX may take to connect processes that have all come."""
_INTERRUPTED = 130
"""Exit status after a second Ctrl-C, see `errors.one_line_errors`."""
_NETWORK_DISK = 10
"""Seconds until what one process wrote is seen by all."""
_LEAVING = 3
"""Seconds that an interrupted process may take to end."""

_peers: Peers | None = None
"""The processes of this one's run, if there are several: like JAX's own state, of the process."""


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
    global _peers
    address = address or os.environ.get("JAX_COORDINATOR_ADDRESS")
    cluster, named = find_cluster(os.environ), (address, count, index) != (None, None, None)
    if count == 1 or not (named or cluster) or (not named and is_alone(os.environ)):
        return
    try:
        address, count, index = detected(address, count, index)
        if count == 1 or (not named and cluster and not cluster.certain and address is None):
            return
        if address is None or count is None or index is None:
            raise LookupError("JAX finds no cluster")
        check(0 <= index < count, "process-id", index, f"0 to {count - 1}, of {count} processes")
        _peers = Peers(address, count, index)
        service = _peers.meet()
        _connect(address, count, index, service)
    except InputError:
        raise
    except Exception as error:  # JAX lets out errors of many kinds
        raise InputError(
            f"the processes cannot be connected ({reason(error)}); expected --coordinator-address "
            "HOST:PORT, --num-processes and --process-id in each, a cluster that JAX knows, or "
            "--num-processes 1 to train with this process alone"
        ) from error


def _connect(address: str, count: int, index: int, service: str | None) -> None:
    """Connects JAX; `service` is where that of the first process listens."""
    # While JAX waits for others, Python does not run its signal handlers.
    handlers = {each: signal.signal(each, signal.SIG_DFL) for each in _SIGNALS}
    try:
        jax.distributed.initialize(
            address,
            count,
            index,
            coordinator_bind_address=service,
            initialization_timeout=_TIMEOUT,
            shutdown_timeout_seconds=_SHUTDOWN_TIMEOUT,
        )
    finally:
        signal.signal(signal.SIGINT, handlers[signal.SIGINT])
        if not jax.distributed.is_initialized():  # Else SIGTERM belongs to its preemption service.
            signal.signal(signal.SIGTERM, handlers[signal.SIGTERM])


def watch_steps(seconds: float) -> None:
    """Ends the process, and so the run, when anything that is limited takes too long.

    Args:
        seconds: see `watchdog.watch`.

    Raises:
        InputError: if they are negative.
    """
    check(seconds >= 0, "step-timeout", f"{seconds:g}", "0 or more")

    def end(found: str) -> None:
        with suppress(OSError):  # Nobody may read it any more.
            print(f"error: {found}; rerun the command to resume", file=sys.stderr, flush=True)
        if _peers:
            _peers.fail(found)
        os._exit(1)  # The main thread is in what hangs.

    watch(seconds, _peers.me if _peers else "the run", end)


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


def wait_for_all(what: str) -> None:
    """Waits until all processes have come here, however long one takes; Ctrl-C ends it.

    A collective would not do: on CPUs it gives up after half an hour.

    Args:
        what: the processes wait for, for lines about one that is missing; for one wait alone.
    """
    if jax.process_count() == 1:
        return
    waits_for(what, limited=False)
    # JAX has no public name for it; Orbax takes this one, too.
    from jax._src.distributed import global_state

    client: Any = global_state.client
    client.key_value_set(f"{what}/{jax.process_index()}", "here")
    for index in range(jax.process_count()):
        while True:
            try:
                client.blocking_key_value_get(f"{what}/{index}", 1000)
                break
            except jax.errors.JaxRuntimeError as error:
                if "DEADLINE_EXCEEDED" not in str(error):
                    raise


def check_shared(folder: Path, what: str) -> None:
    """Rejects processes whose folders are not the same one; all of them call it together.

    Args:
        folder: of this process; it exists.
        what: what a message calls it.

    Raises:
        InputError: in every process.
    """
    if jax.process_count() == 1:
        return
    number = np.frombuffer(uuid.uuid4().bytes, np.uint8)
    name = multihost_utils.broadcast_one_to_all(number).tobytes().hex()
    mark = folder / f".{name}.temporary"  # Which `remove_leftovers` knows.
    if is_first():
        mark.touch()
    multihost_utils.sync_global_devices("the folder is marked")
    end = time.monotonic() + _NETWORK_DISK
    while not (seen := mark.exists()) and time.monotonic() < end:
        time.sleep(0.1)
    everywhere = multihost_utils.process_allgather(np.array(seen))
    if is_first():
        mark.unlink()
    if not everywhere.all():
        raise InputError(
            f"{what} of process {int(everywhere.argmin())} is not that of process 0; expected a "
            "folder that all processes share, such as one on a network disk, or a bucket"
        )


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


class Stop:
    """Turns SIGTERM, SIGHUP and Ctrl-C into a request to stop, which all see at the same call.

    A second Ctrl-C interrupts at once.
    """

    def __init__(self) -> None:
        self._stopped = self._requested = self._interrupted = False
        self._calls = 0
        self._old: dict[int, Any] = {}

    def asked(self) -> bool:
        """Whether to stop now. All processes call it equally often, whenever a stop is possible.

        A process that has called it more often than the others does not wait for them: of those
        that call it in an evaluation each may be at another image.
        """
        self._calls += 1
        if jax.process_count() > 1:
            # SIGTERM, which announces preemption too, reaches all of them through one: JAX tells
            # them at the first call that none of them has made yet.
            self._stopped |= multihost.reached_preemption(self._calls)
        else:
            self._stopped |= self._requested
        return self._stopped

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """Lets signals end the program, as they would without a stop, while the block runs.

        In a run of several processes SIGTERM stays with JAX, and acts after it.
        """
        self.__exit__()
        try:
            yield
        finally:
            self.__enter__()

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self._interrupted and number == signal.SIGINT:
            end_program(number, frame)
            return
        self._requested = True
        self._interrupted |= number == signal.SIGINT
        if number not in (signal.SIGINT, signal.SIGTERM):
            leave_terminal()
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)

    def __enter__(self) -> Stop:
        # In a run of several processes SIGTERM belongs to JAX's preemption service.
        kept = (signal.SIGTERM,) if jax.process_count() > 1 else ()
        numbers = (number for number in ending_signals() if number not in kept)
        self._old = {number: signal.signal(number, self._ask) for number in numbers}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)


@contextmanager
def ended_together() -> Iterator[None]:
    """Ends a run of several processes if one of them fails, with one line in each.

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
        if not status or _peers is None:
            raise
        if not isinstance(status, int) or not isinstance(error, SystemExit):
            _peers.settle()
        found = reason(error)
        if isinstance(status, str):
            print(status, file=sys.stderr)
            found = status.removeprefix("error: ")
        elif isinstance(error, SystemExit):
            found = "it was interrupted"
        else:
            traceback.print_exc()
        _peers.fail(found)
        sys.stdout.flush()
        sys.stderr.flush()
        # An orderly exit would wait for the other processes, which wait for this one.
        os._exit(status if isinstance(status, int) else 1)
    else:
        if _peers is not None:
            _peers.over()
