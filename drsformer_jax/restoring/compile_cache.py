"""Compiled programs are kept on disk, so that only the first start waits for the compiler."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import filelock
import jax
import platformdirs

MAX_BYTES = 2**31
"""What the compiled programs in the user's cache folder take at most: 2 GiB."""
_LOCK = ".lockfile"
"""What JAX locks while it reads or writes there, if there is a limit."""


def use_compile_cache() -> None:
    """Keeps compiled programs in the user's cache folder, unless JAX has another one.

    The folder is kept below `MAX_BYTES`: programs that were not used for the longest time are
    deleted first. `JAX_COMPILATION_CACHE_MAX_SIZE` sets another limit in bytes, -1 for none.
    `JAX_COMPILATION_CACHE_DIR` names another folder, whose size is left to the user;
    `JAX_ENABLE_COMPILATION_CACHE=false` keeps nothing. Nothing is kept either where the folder
    cannot be made or written.
    """
    if getattr(jax.config, "jax_compilation_cache_dir", None) is not None:
        return
    with contextlib.suppress(OSError):
        folder = platformdirs.user_cache_path("drsformer_jax", ensure_exists=True)
        if not os.access(folder, os.W_OK):
            return
        jax.config.update("jax_compilation_cache_dir", str(folder))
        limit = getattr(jax.config, "jax_compilation_cache_max_size", None)
        if limit == -1 and "JAX_COMPILATION_CACHE_MAX_SIZE" not in os.environ:
            limit = MAX_BYTES
            jax.config.update("jax_compilation_cache_max_size", limit)
        if limit not in (None, -1):
            delete_unfinished(folder)


def delete_unfinished(folder: Path) -> None:
    """Deletes entries whose writing was interrupted, which JAX would not write again.

    An entry's time of use, in a second file, is written after it. JAX fails at entries without one,
    also at whole ones, which were written without a limit. While another process writes, nothing is
    deleted.
    """
    none = (filelock.Timeout, NotImplementedError)  # The latter where there are no locks.
    with contextlib.suppress(*none), filelock.FileLock(folder / _LOCK, timeout=0):
        for entry in folder.glob("*-cache"):
            used = entry.with_name(entry.name.removesuffix("-cache") + "-atime")
            if not used.exists():
                entry.unlink()
