"""How wrong input is reported: one line that names the thing, what was found and what is right."""

from __future__ import annotations

import contextlib
import errno
import gc
import io
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from types import FrameType

# Python prints an exception in one of these and goes on: a signal is sent again after it. The first
# is what JAX does at garbage collection.
_LOSING = {"_xla_gc_callback", "__del__"}
# For a second, since such a function may never end either.
_REPEATS = iter(range(100))


class InputError(ValueError):
    """Something that the user gave is wrong. The message is one line: what, found, expected."""


def one_line(text: str) -> str:
    """A message in one line; a file's name may hold a line break."""
    return text.replace("\n", "\\n")


def reason(error: BaseException) -> str:
    """What a library's error says, in one line: its first, or its kind where it says nothing."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is XLA's of a device whose memory is too small."""
    return isinstance(error, RuntimeError) and "RESOURCE_EXHAUSTED" in str(error)


def check_device(devices: Callable[[], object]) -> None:
    """Rejects a JAX that finds none of the requested devices.

    Args:
        devices: `jax.devices`, which initializes JAX's backends.

    Raises:
        InputError: if that fails.
    """
    try:
        devices()
    except (RuntimeError, AssertionError) as error:  # The latter for `cuda` without its plugin.
        raise InputError(
            f"JAX finds no device ({reason(error)}); expected JAX_PLATFORMS unset or one that is "
            "there"
        ) from error


def before_imports() -> None:
    """What a program does before its imports, which take seconds.

    Ctrl-C ends it without a traceback. Nothing looks for garbage: what is imported stays. Both last
    until `one_line_errors`.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    gc.disable()


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Ends a program with one line and exit status 1 on wrong input or a failing file system.

    Ctrl-C ends it with one line and status 130, SIGTERM with status 143, and a terminal that is
    closed with status 129; all leave nothing half written. A warning is one line too. Characters
    that the terminal cannot show, such as the bytes of a file name that is not UTF-8, are printed
    as backslash escapes.
    With DRSFORMER_DEBUG=1 in the environment the traceback of an error, with all that caused it,
    is printed above its line.
    """
    if not gc.isenabled():  # `before_imports` was called.
        gc.freeze()  # What was imported is not looked through again and again, nor at exit.
        gc.enable()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # As stderr has it.
    warnings.formatwarning = lambda message, *_: one_line(f"warning: {message}") + "\n"
    for number in ending_signals():
        signal.signal(number, end_program)
    try:
        yield
    except InputError as error:
        _print_traceback()
        sys.exit(one_line(f"error: {error}"))
    except OSError as error:
        _print_traceback()
        place = f"{error.filename}: " if error.filename else ""
        sys.exit(one_line(f"error: {place}{error.strerror or error}"))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def _print_traceback() -> None:
    if os.environ.get("DRSFORMER_DEBUG", "0") not in ("", "0"):
        traceback.print_exc()


def ending_signals() -> tuple[int, ...]:
    """Signals that end a program: SIGINT, SIGTERM, and SIGHUP unless it is ignored (`nohup`)."""
    hangup = getattr(signal, "SIGHUP", None)  # Windows has none.
    if hangup is None or signal.getsignal(hangup) == signal.SIG_IGN:
        return signal.SIGINT, signal.SIGTERM
    return signal.SIGINT, signal.SIGTERM, hangup


def leave_terminal() -> None:
    """After SIGHUP: output to a terminal that is closed is lost, and raises no error."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        try:
            os.ttyname(descriptor)
        except OSError as error:
            if error.errno != errno.ENOTTY:  # A file or a pipe goes on.
                os.dup2(nowhere, descriptor)
    os.close(nowhere)


def end_program(number: int, frame: FrameType | None) -> None:
    """Ends the program by an exception, as the handler of a signal.

    In a function whose exceptions Python ignores it returns, and the signal comes again.

    Args:
        number: the signal.
        frame: what it came upon.

    Raises:
        KeyboardInterrupt: on SIGINT.
        SystemExit: with status 128 + `number`, on another.
    """
    while frame is not None:
        if frame.f_code.co_name in _LOSING and next(_REPEATS, None) is not None:
            main = threading.main_thread().ident
            threading.Timer(0.01, signal.pthread_kill, [main, number]).start()
            return
        frame = frame.f_back
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    if number != signal.SIGTERM:
        leave_terminal()
    sys.exit(128 + number)


@contextlib.contextmanager
def handled_by(handler: Callable[[int, FrameType | None], None], *numbers: int) -> Iterator[None]:
    """Lets another handler than `end_program` have these signals."""
    ours = []
    if threading.current_thread() is threading.main_thread():
        ours = [number for number in numbers if signal.getsignal(number) is end_program]
    for number in ours:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, end_program)


@contextlib.contextmanager
def held_signals() -> Iterator[None]:
    """Lets signals that end the program wait for the end of the block, which must be short.

    A pool that is interrupted while it starts a thread does not know of it, nor waits for it.
    """
    held: list[int] = []
    holding = True

    def hold(number: int, frame: FrameType | None) -> None:
        if holding:
            held.append(number)
        else:  # While the handlers change back.
            end_program(number, frame)

    with handled_by(hold, *ending_signals()):
        try:
            yield
        finally:
            holding = False
            for number in held:
                end_program(number, None)
