"""The processes of a run: how they find each other, agree on a stop and put results together."""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import multihost

from drsformer_jax.errors import InputError, reason

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_PATIENCE = 3600
"""Seconds that processes wait for the others at the end."""


def join(address: str | None = None, count: int | None = None, index: int | None = None) -> None:
    """Connects the processes of a run; must come before anything that JAX computes.

    What is not given is found by JAX in the environment of Cloud TPU pods, Slurm, Open MPI 4 and
    indexed Jobs of Kubernetes. Without any of them the process stays alone.

    Args:
        address: host and port of the first process.
        count: how many processes there are; 1 keeps the process alone, whatever the environment.
        index: which of them this one is, from 0.

    Raises:
        InputError: if they do not find each other.
    """
    if count == 1:
        return
    # While a process waits for the others no handler of Python's runs.
    waiting = {each: signal.signal(each, signal.SIG_DFL) for each in _SIGNALS}
    try:
        # The first process draws a report when the others have ended.
        jax.distributed.initialize(address, count, index, shutdown_timeout_seconds=_PATIENCE)
    except Exception as error:  # JAX lets out errors of many kinds
        # That none is known is no mistake where none was named.
        unnamed = address is count is index is None
        if unnamed and isinstance(error, ValueError) and "coordinator_address" in str(error):
            return
        raise InputError(
            f"the processes cannot be connected ({reason(error)}); expected --coordinator-address "
            "HOST:PORT, --num-processes and --process-id in each, a cluster that JAX knows, or "
            "--num-processes 1 for a process alone"
        ) from error
    finally:
        signal.signal(signal.SIGINT, waiting[signal.SIGINT])
        if not jax.distributed.is_initialized():  # Else SIGTERM belongs to its preemption service.
            signal.signal(signal.SIGTERM, waiting[signal.SIGTERM])


def check_equal(text: str, what: str) -> None:
    """Refuses processes that were given different things; all of them call it together.

    Raises:
        InputError: in every process.
    """
    if jax.process_count() == 1:
        return
    digest = np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8)
    if (multihost_utils.process_allgather(digest) != digest).any():
        raise InputError(f"{what} differs between the processes; expected the same in all")


def is_first() -> bool:
    """Whether this process is the one that writes, prints and draws."""
    return jax.process_index() == 0


def in_order(values: np.ndarray, total: int) -> np.ndarray:
    """Gathers what each process computed for its `Share` of some items, bit for bit.

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
    """Turns SIGTERM and Ctrl-C into a wish to stop, which all processes learn at the same step.

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
            # What was asked for before any question, processes agree to do at step 1.
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
    """Ends a run of several processes where one of them fails; JAX then ends the others."""
    try:
        yield
    except BaseException as error:
        status = error.code if isinstance(error, SystemExit) else 1
        if not status or not jax.distributed.is_initialized():
            raise
        # An orderly exit would wait for the other processes, which wait for this one.
        if isinstance(status, str):
            print(status, file=sys.stderr)
        elif isinstance(error, jax.errors.JaxRuntimeError):
            said = f"error: another process of the run has ended ({reason(error)})"
            print(said, file=sys.stderr)
        elif not isinstance(error, SystemExit):
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status if isinstance(status, int) else 1)
