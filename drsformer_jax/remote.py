"""Folders in buckets, such as gs://bucket/run: what users may name in place of a local folder.

A bucket has no appending, no renaming in one step and no file locks. So what a program writes
beside checkpoints is written to a local copy of the folder and sent from there (`Mirror`), a lock
is an object that only one program can create (`Lease`), and datasets are copied once (`copied`).
Checkpoints are written to the bucket by Orbax itself. gs:// needs the extra `gcs`, s3:// s3fs.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import socket
import sys
import tempfile
import threading
import time
import uuid
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from drsformer_jax import locks
from drsformer_jax.errors import InputError, reason

SCHEMES = ("gs", "s3")
"""Of the buckets that may be named."""
_ADDRESS = re.compile(rf"({'|'.join(SCHEMES)}):/{{1,2}}(?!/)(.+)")
"""`Path` drops one of the two slashes."""
_BEAT = 15.0
"""Seconds between signs of life of a lease's holder."""
_MIRROR = "drsformer-bucket-"
"""Start of the names of local copies, in the folder of temporary files."""
_STALE = 3
"""Signs of life that a dead holder has missed."""


def address(path: str | os.PathLike[str]) -> str:
    """The address of a folder or a file in a bucket, without a slash at its end; empty if local."""
    found = _ADDRESS.fullmatch(os.fspath(path))
    return f"{found[1]}://{found[2]}".rstrip("/") if found else ""


def shown(path: str | os.PathLike[str]) -> str:
    """A path or an address as the user knows it: `Path` drops a slash of an address."""
    return address(path) or os.fspath(path)


@contextlib.contextmanager
def _reported(where: str, what: str) -> Iterator[None]:
    """Errors of drivers, which are of many kinds, as one line."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise  # Of the local disk.
        raise InputError(
            f"{where} cannot be {what} ({reason(error)}); expected a bucket that can, and "
            "credentials for it"
        ) from error


def _driver(where: str) -> tuple[Any, str]:
    """What reads and writes a bucket, and the path of an address in it."""
    import fsspec

    try:
        driver, path = fsspec.core.url_to_fs(where, use_listings_cache=False)
    except ImportError as error:
        raise InputError(
            f"{where} needs a driver ({reason(error)}); for gs://: pip install 'drsformer_jax[gcs]'"
        ) from error
    except Exception as error:  # Of credentials, too: drivers let out errors of many kinds.
        raise InputError(
            f"{where} cannot be opened ({reason(error)}); expected an address such as "
            "gs://bucket/folder, and credentials for it"
        ) from error
    return driver, path


def exists(where: str) -> bool:
    """Whether there is a file or a folder at an address."""
    driver, path = _driver(where)
    with _reported(where, "read"):
        return bool(driver.exists(path))


class Mirror:
    """A local copy of the small files of a folder in a bucket.

    Args:
        where: address of the folder.

    Attributes:
        where: likewise.
        folder: the local copy, empty at first; it is gone when the mirror is, or the process ends.
            What a killed process leaves is removed when the next one makes a copy.

    Raises:
        InputError: from all methods, if the bucket cannot be read or written.
    """

    def __init__(self, where: str) -> None:
        self.where = where
        self._driver, self._path = _driver(where)
        self.folder, remove = locks.temporary_folder(_MIRROR)
        weakref.finalize(self, remove)
        self._sent: dict[Path, tuple[int, int]] = {}

    def pull(self, *names: str) -> None:
        """Copies files from the bucket, those that are there."""
        for name in names:
            with _reported(f"{self.where}/{name}", "read"):
                target = self.folder / name
                try:
                    # `isfile` would take a failure for no file, which would then be written anew.
                    content = self._driver.cat_file(f"{self._path}/{name}")
                except FileNotFoundError:
                    continue
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content)
                self._sent[target] = _stamp(target)

    def push(self, without: str = "") -> None:
        """Sends all files that have changed; each is replaced in one step.

        Args:
            without: a folder in it that is not sent this time.
        """
        for path in sorted(self.folder.rglob("*")):
            name = path.relative_to(self.folder).as_posix()
            later = without and name.startswith(f"{without}/")
            if later or path.name.startswith(".") or not path.is_file():
                continue
            stamp = _stamp(path)
            if self._sent.get(path) != stamp:
                with _reported(f"{self.where}/{name}", "written"):
                    self._driver.put_file(str(path), f"{self._path}/{name}")
                self._sent[path] = stamp


def _stamp(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_mtime_ns, found.st_size


class Lease:
    """Keeps a folder in a bucket to one program, until `release` or the end of the process.

    The lock is an object that is created where none may be. Its holder writes it anew every 15
    seconds, so that one left by a killed process can be told from one that is held, whatever the
    clocks of the machines say.

    Args:
        where: address of the folder.
        task: what it is locked for, as in "is being trained".

    Raises:
        InputError: if another program holds the lock, or the bucket cannot be written.
    """

    def __init__(self, where: str, task: str) -> None:
        self._where, self._task = where, task
        self._driver, folder = _driver(where)
        self._path = f"{folder}/.lock"
        self._owner = f"{socket.gethostname()}, process {os.getpid()}, {uuid.uuid4().hex}"
        with _reported(where, "locked"):
            if not self._created():
                self._take_over()
        self._is_lost = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raises an InputError if another program has taken the lock, as for that of a dead one."""
        if self._is_lost:
            raise InputError(
                f"{self._where} was taken over by another process while this one could not reach "
                "the bucket; expected one process there"
            )

    def release(self) -> None:
        """Removes the lock."""
        self._ended.set()
        self._thread.join(timeout=_BEAT / 3)  # It may be trying to reach the bucket.
        # Where this fails, the lock is one of a process that has ended.
        with contextlib.suppress(Exception):
            if self._read()[0] == self._owner:
                self._driver.rm_file(self._path)

    def _content(self) -> bytes:
        return json.dumps({"owner": self._owner, "time": time.time()}).encode()

    def _created(self) -> bool:
        """Creates the lock; false where it is there."""
        try:
            self._driver.pipe_file(self._path, self._content(), mode="create")
        except Exception as error:
            if isinstance(error, FileExistsError) or getattr(error, "code", None) in (412, "412"):
                return False
            raise
        return True

    def _read(self) -> tuple[str, str]:
        """Owner of the lock, and what it last wrote; empty if there is none."""
        try:
            content = self._driver.cat_file(self._path).decode()
        except FileNotFoundError:
            return "", ""
        try:
            return str(json.loads(content)["owner"]), content
        except (ValueError, TypeError, KeyError):
            return "an unknown program", content

    def _take_over(self) -> None:
        """Waits whether the holder of the lock shows a sign of life, and replaces it if not."""
        owner, first = self._read()
        print(
            f"{self._where} is locked by {owner}; waiting {_STALE * _BEAT:.0f} s to see whether it "
            "is alive",
            file=sys.stderr,
        )
        end = time.monotonic() + _STALE * _BEAT
        while first and time.monotonic() < end:
            time.sleep(_BEAT / 5)
            now = self._read()[1]
            if now not in ("", first):
                raise InputError(
                    f"{self._where} {self._task} by another process ({owner}); expected another "
                    "folder, or its end"
                )
            first = first and now
        if first:
            with contextlib.suppress(FileNotFoundError):  # Another one may have removed it.
                self._driver.rm_file(self._path)
        created = self._created()
        time.sleep(_BEAT / 5)  # Others that waited may have removed and created it as well.
        if not created or self._read()[0] != self._owner:
            raise InputError(
                f"{self._where} {self._task} by another process, which began just now; expected "
                "another folder, or its end"
            )

    def _beat(self) -> None:
        while not self._ended.wait(_BEAT):
            # A bucket that cannot be written is reported by whoever writes results there.
            with contextlib.suppress(Exception):
                self._is_lost = self._read()[0] not in (self._owner, "")
                if self._is_lost:
                    return
                self._driver.pipe_file(self._path, self._content())


@contextlib.contextmanager
def local(folder: str | os.PathLike[str], *names: str) -> Iterator[Path]:
    """A folder, or a local copy of some files of one in a bucket, which is gone in the end.

    Raises:
        InputError: if the bucket cannot be read, or has none of the files.
    """
    where = address(folder)
    if not where:
        yield Path(folder)
        return
    mirror = Mirror(where)
    mirror.pull(*names)
    if not any(mirror.folder.iterdir()):
        raise InputError(f"{where} has no {' or '.join(names)}; expected one")
    with local_names(mirror):
        yield mirror.folder


@contextlib.contextmanager
def local_names(mirror: Mirror | None) -> Iterator[None]:
    """Errors about files of a mirror name the bucket, which the user knows."""
    try:
        yield
    except InputError as error:
        if mirror is None:
            raise
        raise InputError(str(error).replace(str(mirror.folder), mirror.where)) from error


def folders_with(where: str, name: str) -> list[str]:
    """Names of the folders in a folder of a bucket that hold a file of this name."""
    driver, path = _driver(where)
    with _reported(where, "read"):
        if not driver.exists(path):
            return []
        folders = [found.rstrip("/") for found in driver.ls(path, detail=False)]
        return sorted(Path(each).name for each in folders if driver.exists(f"{each}/{name}"))


def copied(where: str, cache_dir: str = "") -> Path:
    """Copies a folder from a bucket to the local disk, once, with a progress bar.

    ArrayRecord reads local files alone.

    Args:
        where: address of the folder.
        cache_dir: local folder of all copies; several processes may share it. Default: in the
            user's folder of caches.

    Returns:
        The copy.

    Raises:
        InputError: if the bucket cannot be read, or the cache has no file locks.
        OSError: if the copy cannot be written.
    """
    import platformdirs
    from tqdm import tqdm

    driver, path = _driver(where)
    with _reported(where, "read"):
        listed = driver.find(path, detail=True)
    # The console and mounts make empty objects for folders.
    files = {file: int(each["size"]) for file, each in listed.items() if not file.endswith("/")}
    # A dataset that was built anew has the same address.
    versions = [(file, size, str(listed[file].get("etag"))) for file, size in files.items()]
    digest = hashlib.sha256(repr([where, *versions]).encode()).hexdigest()
    name = f"{Path(path).name}-{digest[:16]}"
    folder = Path(cache_dir) if cache_dir else platformdirs.user_cache_path("drsformer_jax")
    target = folder / "buckets" / name
    target.parent.mkdir(parents=True, exist_ok=True)
    with locks.locked(target.parent, f"copy {where}"):
        if target.is_dir():
            return target
        for left in target.parent.glob(".copy-*"):  # By a killed process: this one has the lock.
            shutil.rmtree(left, ignore_errors=True)
        total = sum(files.values())
        with (
            tempfile.TemporaryDirectory(dir=target.parent, prefix=".copy-") as temporary,
            tqdm(desc=where, total=total, unit="B", unit_scale=True, disable=None) as bar,
        ):
            whole = Path(temporary) / name
            for file, size in files.items():
                local = whole / Path(file).relative_to(path)
                if ".." in local.parts:
                    raise InputError(f"{file} has '..' in its name; expected a file of the folder")
                local.parent.mkdir(parents=True, exist_ok=True)
                with _reported(where, "copied"):
                    driver.get_file(file, str(local))
                bar.update(size)
            os.rename(whole, target)
    return target


def sent(folder: Path, where: str, last: str) -> None:
    """Sends a local folder to a bucket, with a progress bar; raises as `Mirror`.

    Args:
        folder: the local folder.
        where: address of the new one.
        last: name of the file without which nobody takes the folder for whole.
    """
    from tqdm import tqdm

    driver, path = _driver(where)
    found = (each for each in folder.rglob("*") if each.is_file())
    files = sorted(found, key=lambda each: (each.name == last, each))
    total = sum(each.stat().st_size for each in files)
    with (
        _reported(where, "written"),
        tqdm(desc=where, total=total, unit="B", unit_scale=True, disable=None) as bar,
    ):
        for each in files:
            driver.put_file(str(each), f"{path}/{each.relative_to(folder).as_posix()}")
            bar.update(each.stat().st_size)
