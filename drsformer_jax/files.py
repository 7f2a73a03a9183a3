"""Files and folders that are written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from drsformer_jax import locks
from drsformer_jax.errors import InputError

_SUFFIX = ".temporary"


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Opens a new file that takes the place of `path` when the block ends.

    Folders that are missing are made. A failure or a killed process leaves `path` as it was.

    Raises:
        InputError: if a file is where a folder should be.
        OSError: if the file system fails.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise InputError(f"{path.parent} is no folder; expected one for {path.name}") from None
    try:
        with _temporary(path, _new_file) as (temporary, descriptor):
            # CIFS lets a locked file be written through nothing but what has locked it. Closing the
            # copy, as network file systems need, says what could not be written.
            copy = os.dup(descriptor) if locks.AVAILABLE else descriptor
            with open(temporary, "wb", opener=lambda *_: copy) as file:
                yield file
            os.replace(temporary, path)
    except OSError as error:
        if error.errno is not None:  # The name that the user knows.
            error.filename, error.filename2 = str(path), None
        raise


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Writes a file in one step; raises as `replacing` does."""
    with replacing(path) as file:
        file.write(content)


def write_text(path: Path, text: str) -> None:
    r"""Writes a UTF-8 file in one step; raises as `replacing` does.

    Bytes of file names that are not UTF-8, surrogates in Python, become escapes such as `\udcd6`.
    """
    write_bytes(path, text.encode(errors="backslashreplace"))


def check_writable(folder: Path) -> None:
    """Makes a folder and tries to write there, before work whose result is to go there.

    Raises:
        InputError: if that fails.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(
            f"{folder} cannot be written ({error.strerror}); expected a folder that can"
        ) from None


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Opens a hidden folder that becomes `path` when the block ends.

    Raises:
        InputError: if something is at `path`.
        OSError: if the file system fails.
    """
    if os.path.lexists(path):
        raise InputError(f"{path} is there already; expected the name of a new folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    with _temporary(path, _new_folder) as (temporary, _):
        yield temporary
        try:
            os.rename(temporary, path)
        except OSError as error:  # The name that the user knows.
            error.filename, error.filename2 = str(path), None
            raise


def remove_leftovers(folder: Path) -> None:
    """Removes temporary files and folders of killed processes from a folder, not from those in it.

    Those of live processes, on this machine or on another one that shares the folder, stay: they
    are locked. So does everything where the file system has no locks, or fails.
    """
    suffixes = (_SUFFIX, ".unfinished")  # The second one is that of older versions.
    found = [path for suffix in suffixes for path in folder.glob(f".*{suffix}")]
    for path in found if locks.AVAILABLE else []:
        try:
            descriptor = os.open(path, os.O_RDONLY)
            try:
                if _lock(descriptor):
                    _remove(path)
            finally:
                os.close(descriptor)
        except OSError:  # Locked, or gone.
            pass


def _new_file(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)


def _new_folder(path: Path) -> int:
    while True:
        path.mkdir()
        # Another process may take it for a leftover at once.
        with contextlib.suppress(FileNotFoundError):
            return os.open(path, os.O_RDONLY) if locks.AVAILABLE else -1


@contextlib.contextmanager
def _temporary(path: Path, make: Callable[[Path], int]) -> Iterator[tuple[Path, int]]:
    """Makes something hidden beside `path`, locked against `remove_leftovers` until the end.

    Yields:
        Where it is, and the descriptor that `make` gave, which is locked; where there are no locks,
        it is the caller's to close.
    """
    with contextlib.ExitStack() as stack:
        while True:
            temporary = path.with_name(f".{uuid.uuid4().hex}{_SUFFIX}")
            stack.callback(_remove, temporary)
            descriptor = make(temporary)
            if not locks.AVAILABLE:
                break
            stack.callback(os.close, descriptor)
            # Between making and locking, another process may take it for a leftover.
            with contextlib.suppress(BlockingIOError):
                _lock(descriptor)
                if temporary.exists():
                    break
        yield temporary, descriptor


def _lock(descriptor: int) -> bool:
    """Locks a file or a folder, and says whether there are locks here.

    Raises:
        BlockingIOError: if another process has locked it.
    """
    try:
        locks.lock(descriptor)
    except BlockingIOError:
        raise
    except OSError:  # Some file systems have no locks.
        return False
    return True


def _remove(path: Path) -> None:
    # On a read-only disk even this fails, and would hide why.
    with contextlib.suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
