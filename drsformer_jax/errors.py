"""How wrong input is reported: one line that names the thing, what was found and what is right."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator
from types import FrameType


class InputError(ValueError):
    """Something that the user gave is wrong. The message is one line: what, found, expected."""


def reason(error: BaseException) -> str:
    """What a library's error says, in one line: its first, or its kind where it says nothing."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Ends a program with one line and exit status 1 on wrong input or a failing file system.

    Ctrl-C ends it with one line and status 130, SIGTERM with status 143; both leave nothing half
    written. A warning is one line too. With DRSFORMER_DEBUG=1 in the environment the traceback of
    an error, with all that caused it, stands above its line.
    """
    warnings.formatwarning = lambda message, *_: f"warning: {message}\n"
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _end)
    try:
        yield
    except InputError as error:
        _print_traceback()
        # A file's name may hold a line break.
        sys.exit(f"error: {error}".replace("\n", "\\n"))
    except OSError as error:
        _print_traceback()
        place = f"{error.filename}: " if error.filename else ""
        sys.exit(f"error: {place}{error.strerror or error}")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def _print_traceback() -> None:
    if os.environ.get("DRSFORMER_DEBUG", "0") not in ("", "0"):
        traceback.print_exc()


def _end(number: int, frame: FrameType | None) -> None:
    """Ends the program by an exception, on a signal."""
    if frame is not None and frame.f_code.co_name == "_xla_gc_callback":
        # An exception in what JAX does at garbage collection would be printed and lost.
        main = threading.main_thread().ident
        threading.Timer(0.01, signal.pthread_kill, [main, number]).start()
    elif number == signal.SIGINT:
        raise KeyboardInterrupt
    else:
        sys.exit(128 + number)
