"""File locks: one writer at a time, among all processes that share a file system."""

from __future__ import annotations

import contextlib
import errno
import sys
from collections.abc import Iterator
from pathlib import Path

from drsformer_jax.errors import InputError

try:
    import fcntl
except ImportError:  # Windows
    AVAILABLE = False
else:
    AVAILABLE = True

_NONE_HERE = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)


def check_available(task: str) -> None:
    """Raises an InputError if the system has no file locks, which the task needs."""
    if not AVAILABLE:
        raise InputError(
            f"{sys.platform} has no file locks (fcntl), which {task} needs; expected Linux, "
            "macOS, or WSL on Windows"
        )


def lock(descriptor: int, *, wait: bool = False) -> None:
    """Locks an open file or folder until its descriptor is closed.

    The system drops the lock when the process ends in any way, so unlike a process's number it
    cannot outlive it, and it holds across containers and machines.

    Raises:
        BlockingIOError: if another process has locked it, and `wait` is false.
        OSError: if its file system has no locks, which each says in its own words, or fails.
    """
    fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextlib.contextmanager
def locked(folder: Path, task: str, *, wait: bool = True) -> Iterator[None]:
    """Holds the lock of a folder that datasets are written to.

    So the holder knows that temporary files in the folder are left by killed processes. The lock
    file is hidden and stays: if it were removed, two processes could hold locks of two files.

    Args:
        folder: an existing folder that can be written.
        task: what the lock is for, such as "write x"; named while waiting.
        wait: whether to wait for another holder, after one line on stderr.

    Raises:
        InputError: if another process holds the lock and `wait` is false, or the system or the
            file system has no locks.
        OSError: if the file system fails.
    """
    check_available("writing datasets")
    with open(folder / ".lock", "ab") as file:
        try:
            try:
                lock(file.fileno())
            except BlockingIOError:
                if not wait:
                    raise InputError(
                        f"{folder} is locked by another process, which writes there; expected to "
                        f"{task} after it has ended"
                    ) from None
                print(f"waiting to {task}: another process writes there", file=sys.stderr)
                lock(file.fileno(), wait=True)
        except OSError as error:
            if error.errno not in _NONE_HERE:
                raise
            raise InputError(
                f"{folder} cannot be locked ({error.strerror}); expected a folder on a file "
                "system with locks"
            ) from error
        yield
