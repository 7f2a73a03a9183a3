"""File locks: one writer at a time, among all processes that share a file system."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
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


def temporary_folder(prefix: str) -> tuple[Path, Callable[[], None]]:
    """Makes a folder of temporary files, and removes those of its kind that killed processes left.

    Args:
        prefix: how the names of its kind begin.

    Returns:
        The folder, which is locked, and what removes it.
    """
    prefix += f"{socket.gethostname()}-"  # Not every machine may see the locks of others.
    for left in Path(tempfile.gettempdir()).glob(f"{prefix}*") if AVAILABLE else ():
        with contextlib.suppress(OSError):  # It is gone, of another user, or there are no locks.
            descriptor = os.open(left, os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                lock(descriptor)
                if os.fstat(descriptor).st_uid == os.getuid():
                    shutil.rmtree(left, ignore_errors=True)
            finally:
                os.close(descriptor)
    folder, descriptor = _new_temporary(prefix)
    return folder, functools.partial(_remove, folder, descriptor)


def _new_temporary(prefix: str) -> tuple[Path, int]:
    """A new folder, and its descriptor, which locks it; -1 without locks."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix)).resolve()
        if not AVAILABLE:
            return folder, -1
        # Before it is locked, another process may take it for one that is left.
        with contextlib.suppress(FileNotFoundError):
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                lock(descriptor)
                is_ours = folder.exists()
            except OSError as error:  # Some file systems have no locks.
                is_ours = not isinstance(error, BlockingIOError)
            if is_ours:
                return folder, descriptor
            os.close(descriptor)


def _remove(folder: Path, descriptor: int) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    if descriptor >= 0:
        os.close(descriptor)
