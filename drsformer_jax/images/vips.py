"""pyvips, set up; the parts of this folder import it from here alone."""

from __future__ import annotations

import os

# Before libvips starts: it then keeps its warnings, as of odd profiles, to itself.
os.environ.setdefault("VIPS_WARNING", "0")
import pyvips


def _text(message: object) -> str:
    """A message of libvips, which may quote letters of a damaged file.

    pyvips fails at letters that are not UTF-8, and keeps the message: each later call of any
    operation would fail at it again.
    """
    return pyvips.ffi.string(message).decode("utf-8", "replace")


pyvips.error._to_string = _text  # Of its exceptions alone; all else has a name of its own for it.
# pyvips logs libvips' messages from libvips' own threads. Python's garbage collection, which may
# run there, has aborted processes: JAX's objects cannot be freed in threads that are not Python's.
pyvips._remove_log_handler()
pyvips.cache_set_max(0)  # Else it keeps decoded images, and files as they were.
pyvips.concurrency_set(1)  # Callers decode in threads and processes of their own.

__all__ = ["pyvips"]
