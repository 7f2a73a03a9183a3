"""pyvips, set up; the parts of this folder import it from here alone."""

from __future__ import annotations

import os

# Before libvips starts: it then keeps its warnings, as of odd profiles, to itself.
os.environ.setdefault("VIPS_WARNING", "0")
import pyvips

_to_string = pyvips.error._to_string


def _text(pointer: object) -> str:
    """A text of libvips: a message may quote letters of a damaged file.

    pyvips fails at letters that are not UTF-8, and keeps the message: each later call of any
    operation would fail at it again.
    """
    try:
        return _to_string(pointer)
    except UnicodeDecodeError:
        return pyvips.ffi.string(pointer).decode("utf-8", "replace")


pyvips.error._to_string = _text  # Where exceptions look it up.
# pyvips logs libvips' messages from libvips' own threads. Python's garbage collection, which may
# run there, has aborted processes: JAX's objects cannot be freed in threads that are not Python's.
pyvips._remove_log_handler()
pyvips.cache_set_max(0)  # Else it keeps decoded images, and files as they were.
pyvips.concurrency_set(1)  # Callers decode in threads and processes of their own.

__all__ = ["pyvips"]
