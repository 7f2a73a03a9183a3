"""What Orbax and TensorStore log or say in a way that a program's user should not see.

All of it was seen with orbax-checkpoint 0.12 and tensorstore 0.1.8x; no public option changes it.
With another version, `tests/training/test_full_disk.py` shows whether it is still needed.
"""

from __future__ import annotations

import functools
import logging
import os
import re
import sys
import warnings
from typing import Any

import orbax.checkpoint as ocp

from drsformer_jax.errors import reason

_RAISING = ("future", "async_checkpointer", "checkpoint_manager", "checkpoint")
"""Modules of Orbax that log an error with its traceback and raise it as well.

The last one writes metadata.
"""


class Manager(ocp.CheckpointManager):
    """Does not ask JAX whether to stop at a step, as Orbax does in each save, to log it.

    `processes.Stop` asks with numbers of its own, and JAX takes the last one for how far this
    process is.
    """

    def reached_preemption(self, step: int) -> bool:
        """Says no."""
        return False


@functools.cache
def silence_read_only_warning() -> None:
    """Drops Orbax's warning that a manager with `read_only=True` opens a folder read-only."""
    logging.getLogger("absl").addFilter(
        lambda record: "directory is read only" not in record.getMessage()
    )


@functools.cache
def silence_repeated_errors() -> None:
    """Drops the logs that repeat an error of saving, which Orbax raises as well.

    Each Orbax thread that meets the error logs it with a traceback. Python warns of coroutines that
    were never awaited and asyncio of exceptions that were never retrieved, since Orbax does not
    wait for the other writes after the first failure. TensorStore then calls back an event loop
    that is closed, and Python prints a traceback for each array. On a full disk these are
    thousands of lines. Where metadata is what could not be written, it warns that there is none
    before it fails to add to it. The warning that a save took a second is dropped too.
    """
    warnings.filterwarnings("ignore", "coroutine .*async_serialize.* was never awaited")
    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(_is_news)
    show = sys.unraisablehook

    def hook(found: Any) -> None:
        trace = found.exc_traceback
        # Only TensorStore calls this function from outside of Python.
        if trace is None or trace.tb_frame.f_code.co_name != "call_soon_threadsafe":
            show(found)

    sys.unraisablehook = hook


def _is_news(record: logging.LogRecord) -> bool:
    """Whether a log record says what a user must know, beside the error that is raised."""
    if record.name == "asyncio":
        return "exception was never retrieved" not in record.getMessage()
    message = record.getMessage()
    if "Waiting for previous save to complete" in message or "Metadata file does not" in message:
        return False
    return not record.exc_info or record.module not in _RAISING


def system_reason(error: Exception) -> str:
    """The reason of an error in one line: the operating system's, if the message holds its code.

    TensorStore raises `ValueError` with the error number in its text, not an `OSError`.
    """
    if code := re.search(r"os_error_code='(\d+)'", str(error)):
        return os.strerror(int(code[1]))
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return reason(error)[:200]
