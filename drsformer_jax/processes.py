"""The processes of a run: how they find each other, agree on a stop and put results together."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import multihost

from drsformer_jax.errors import InputError


def join(address: str | None = None, count: int | None = None, index: int | None = None) -> None:
    """Connects the processes of a run; must come before anything that JAX computes.

    What is not given is found by JAX in the environment of Cloud TPU pods, Slurm, Open MPI and
    Kubernetes, or in JAX_COORDINATOR_ADDRESS. Without any of them the process stays alone.

    Args:
        address: host and port of the first process.
        count: how many processes there are.
        index: which of them this one is, from 0.

    Raises:
        InputError: if they do not find each other.
    """
    try:
        jax.distributed.initialize(address, count, index)
    except Exception as error:  # JAX lets out errors of many kinds
        # What JAX says where it finds no cluster, which is no mistake unless one was named.
        if str(error) == "coordinator_address should be defined." and (address, count, index) == (
            None,
            None,
            None,
        ):
            return
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise InputError(
            f"the processes cannot be connected ({reason}); expected --coordinator-address "
            "HOST:PORT, --num-processes and --process-id in each, or a cluster that JAX knows"
        ) from error


def is_first() -> bool:
    """Whether this process is the one that writes, prints and draws."""
    return jax.process_index() == 0


def in_order(values: np.ndarray, total: int) -> np.ndarray:
    """Puts together what processes computed for every so-many-th of some things, bit for bit.

    All processes call it together.

    Args:
        values: float64 (n, k): for things i, i + p, i + 2 p, ... of process i of p.
        total: how many things there are.

    Returns:
        (total, k), in order, in every process.
    """
    processes = jax.process_count()
    if processes == 1:
        return values
    most = -(-total // processes)
    padded = np.zeros((most, values.shape[1]))
    padded[: len(values)] = values
    # As bytes, since JAX would make float32 of them.
    gathered = multihost_utils.process_allgather(padded.view(np.uint8))
    return gathered.view(np.float64).swapaxes(0, 1).reshape(-1, values.shape[1])[:total]


class Stop:
    """Turns SIGTERM and Ctrl-C into a wish to stop, which all processes learn at the same step.

    A second Ctrl-C interrupts at once.
    """

    def __init__(self) -> None:
        self._asked = False
        self._old: dict[int, object] = {}

    def at(self, step: int) -> bool:
        """Whether to stop after this step. To be called once for each step, by all processes."""
        if jax.process_count() > 1:
            # A notice to one process, SIGTERM or that of a TPU's maintenance, reaches all of them.
            return multihost.reached_preemption(step)
        return self._asked

    def now(self) -> bool:
        """Whether to stop at once, which a single process may do anywhere."""
        return self._asked and jax.process_count() == 1

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self._asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._asked = True
        if jax.process_count() > 1 and number == signal.SIGINT:
            os.kill(os.getpid(), signal.SIGTERM)

    def __enter__(self) -> Stop:
        # In a run of several processes SIGTERM belongs to JAX's preemption service.
        numbers = [signal.SIGINT] if jax.process_count() > 1 else [signal.SIGINT, signal.SIGTERM]
        self._old = {number: signal.signal(number, self._ask) for number in numbers}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)  # type: ignore[arg-type]


@contextmanager
def ended_together() -> Iterator[None]:
    """Ends a run of several processes where one of them fails; JAX then ends the others."""
    try:
        yield
    except BaseException as error:
        status = error.code if isinstance(error, SystemExit) else 1
        if not status or not jax.distributed.is_initialized():
            raise
        # An orderly exit would wait for the other processes, which wait for this one.
        print(status, file=sys.stderr) if isinstance(status, str) else traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status if isinstance(status, int) else 1)
