"""What this process waits for, and the end of one that waits for too long."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

_INTERVAL = 0.2
"""Seconds between two looks."""
_MOST = 5
"""Seconds that count of those between two looks; the process, paused, was not there in more."""


@dataclass(frozen=True)
class _Wait:
    what: str
    limited: bool


_now = _Wait("the start", False)


def waits_for(what: str, limited: bool = True) -> None:
    """Notes what this process waits for from now on.

    Args:
        what: for lines about a process that hangs or is missing, such as "the batch of step 12".
        limited: whether the watchdog limits the wait.
    """
    global _now
    _now = _Wait(what, limited)


def waited_for() -> str:
    """What this process waits for."""
    return _now.what


def watch(seconds: float, who: str, end: Callable[[str], None]) -> None:
    """Starts a thread that says what takes long after half of the time, and at its end ends all.

    The main thread may be in a computation of several processes, which nothing can interrupt.

    Args:
        seconds: that a limited wait may take; 0 for any time.
        who: this process, as lines name it.
        end: called with the reason; it ends the process.
    """

    def look() -> None:
        wait, passed, said = _now, 0.0, _now
        while True:
            before = time.monotonic()
            time.sleep(_INTERVAL)
            if wait is not _now:
                wait, passed = _now, 0.0
            passed += min(time.monotonic() - before, _MOST)
            if not wait.limited or passed < seconds / 2:
                continue
            found = f"{who} has waited {passed:.0f} s for {wait.what}"
            if passed >= seconds:
                end(f"{found}; expected less than {seconds:g} s (--step-timeout, 0 for any time)")
            if wait is not said:
                line = f"warning: {found}; after {seconds:g} s it ends (--step-timeout)"
                with contextlib.suppress(OSError):  # Nobody may read it any more.
                    print(line, file=sys.stderr, flush=True)
                said = wait

    if seconds:
        threading.Thread(target=look, daemon=True).start()
