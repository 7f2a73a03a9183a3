"""Files and folders that are written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from drsformer_jax.errors import InputError


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Opens a new file that takes the place of `path` when the block ends.

    Folders that are missing are made. A failure or a killed process leaves `path` as it was.

    Raises:
        InputError: if a file stands where a folder should.
        OSError: if the file system fails.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise InputError(f"{path.parent} is no folder; expected one for {path.name}") from None
    unfinished = path.with_name(f".{uuid.uuid4().hex}.unfinished")
    try:
        with open(unfinished, "xb") as file:
            yield file
        os.replace(unfinished, path)
    except OSError as error:
        if error.errno is not None:  # The name that the user knows.
            error.filename, error.filename2 = str(path), None
        raise
    finally:
        # On a read-only disk even this fails, and would hide why.
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)


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
        InputError: if something stands at `path`.
        OSError: if the file system fails.
    """
    if path.exists():
        raise InputError(f"{path} is there already; expected the name of a new folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{uuid.uuid4().hex}.unfinished")
    unfinished.mkdir()
    try:
        yield unfinished
        os.rename(unfinished, path)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
