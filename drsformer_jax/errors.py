"""How wrong input is told: one line that names the thing, what was found and what is right."""

from __future__ import annotations

import contextlib
import signal
import sys
import warnings
from collections.abc import Iterator


class InputError(ValueError):
    """Something that the user gave is wrong. The message is one line: what, found, expected."""


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Ends a program with one line and exit status 1 on wrong input or a failing file system.

    Ctrl-C ends it with one line and status 130, SIGTERM with status 143; both leave nothing half
    written. A warning is one line too.
    """
    warnings.formatwarning = lambda message, *_: f"warning: {message}\n"
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        yield
    except InputError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        sys.exit(f"error: {place}{error.strerror or error}")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
