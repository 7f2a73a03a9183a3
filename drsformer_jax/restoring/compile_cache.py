"""Compiled programs are kept on disk, so that only the first start waits for the compiler."""

from __future__ import annotations

import contextlib

import jax
import platformdirs


def use_compile_cache() -> None:
    """Keeps compiled programs in the user's cache folder, unless JAX is told of another one.

    `JAX_COMPILATION_CACHE_DIR` names another folder, `JAX_ENABLE_COMPILATION_CACHE=false` keeps
    nothing. Where the folder cannot be made nothing is kept either.
    """
    if getattr(jax.config, "jax_compilation_cache_dir", None) is None:
        with contextlib.suppress(OSError):
            folder = platformdirs.user_cache_path("drsformer_jax", ensure_exists=True)
            jax.config.update("jax_compilation_cache_dir", str(folder))
