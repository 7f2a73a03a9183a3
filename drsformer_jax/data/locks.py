"""One writer at a time, among all processes that write to a folder."""

from __future__ import annotations

import contextlib
import errno
import sys
from collections.abc import Iterator
from pathlib import Path

from drsformer_jax.errors import InputError

_NAME = ".lock"


@contextlib.contextmanager
def locked(folder: Path, task: str, *, wait: bool = True) -> Iterator[None]:
    """Holds the lock of a folder; the system releases it when the process ends, even if killed.

    So the holder knows that temporary files in the folder are left by killed processes. The lock
    file is hidden and stays: if it were removed, two processes could hold locks of two files.

    Args:
        folder: an existing folder that can be written.
        task: what the lock is for, such as "write x"; named while waiting.
        wait: whether to wait for another holder, after one line on stderr.

    Raises:
        InputError: if another process holds the lock and `wait` is false, or the file system has
            no locks.
        OSError: if the file system fails.
    """
    try:
        import fcntl
    except ImportError:
        raise InputError(
            f"{sys.platform} has no file locks (fcntl), which writing datasets needs; expected "
            "Linux, macOS, or WSL on Windows"
        ) from None
    with open(folder / _NAME, "ab") as file:
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not wait:
                    raise InputError(
                        f"{folder} is locked by another process, which writes there; expected to "
                        f"{task} after it has ended"
                    ) from None
                print(f"waiting to {task}: another process writes there", file=sys.stderr)
                fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                raise
            raise InputError(
                f"{folder} cannot be locked ({error.strerror}); expected a folder on a file system "
                "with locks"
            ) from error
        yield
