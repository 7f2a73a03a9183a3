import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from drsformer_jax.config.file import load_config
from drsformer_jax.errors import end_program, ending_signals, held_signals

SIGNAL_AT_GARBAGE_COLLECTION = """
import signal, time
import jax
from jax._src import lib
from drsformer_jax.errors import one_line_errors

# The name of JAX's own callback, which Python calls and whose exceptions it ignores.
assert hasattr(lib, "_xla_gc_callback")
def _xla_gc_callback():
    signal.raise_signal({number})
with one_line_errors():
    try:
        _xla_gc_callback()
    except BaseException:
        print("lost")
    time.sleep(600)
"""


@pytest.mark.parametrize("program", [["train.py"], ["eval.py"], ["-m", "drsformer_jax", "derain"]])
def test_an_interrupt_during_the_imports_prints_no_traceback(program, tmp_path):
    (tmp_path / "jax.py").write_text("print(flush=True)\n__import__('time').sleep(600)")
    with subprocess.Popen(
        [sys.executable, *program],
        cwd=Path(__file__).parents[1],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    ) as process:
        try:
            process.stdout.readline()
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=100)
        finally:
            process.kill()
    assert (process.returncode, errors) == (-signal.SIGINT, b"")


WHEN_GARBAGE_IS_LOOKED_FOR = """
import gc
from drsformer_jax.errors import before_imports, one_line_errors

before_imports()
imported = [gc.isenabled()]
with one_line_errors():
    print(imported[0], gc.isenabled(), any(each is imported for each in gc.get_objects()))
"""


def test_garbage_is_looked_for_while_a_program_works_and_not_among_what_it_imported():
    ended = subprocess.run(
        [sys.executable, "-c", WHEN_GARBAGE_IS_LOOKED_FOR], capture_output=True, text=True
    )
    assert (ended.stdout, ended.stderr) == ("False True False\n", "")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_during_garbage_collection_is_not_lost(number, status):
    program = SIGNAL_AT_GARBAGE_COLLECTION.format(number=int(number))
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == status, ended.stderr
    assert ended.stdout == ""
    assert "Traceback" not in ended.stderr


IN_A_TERMINAL = """
import fcntl, os, signal, sys, termios, time
from pathlib import Path
from drsformer_jax.errors import one_line_errors

fcntl.ioctl(0, termios.TIOCSCTTY, 0)
signal.signal(signal.SIGHUP, signal.SIG_IGN if sys.argv[2:] else signal.SIG_DFL)
with one_line_errors():
    try:
        print("ready", flush=True)
        for _ in range(600):  # A signal just before a long sleep would wait for its end.
            time.sleep(0.1)
            if Path(sys.argv[1]).exists():
                os._exit(7)
    finally:
        print("nobody reads this", flush=True)
        Path(sys.argv[1]).write_text("cleaned")
"""


@pytest.mark.parametrize("ignored", [False, True], ids=["closed", "nohup"])
def test_a_closed_terminal_ends_a_program_which_cleans_up(tmp_path, ignored):
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", IN_A_TERMINAL, tmp_path / "a", *["nohup"] * ignored],
        **dict.fromkeys(("stdin", "stdout", "stderr"), theirs),
        start_new_session=True,
    ) as process:
        os.close(theirs)
        try:
            with open(ours, "rb", buffering=0) as terminal:
                assert terminal.readline() == b"ready\r\n"
            # That was closed, and the kernel sends SIGHUP.
            if ignored:
                (tmp_path / "a").touch()
                assert process.wait(60) == 7, "it goes on"
            else:
                assert process.wait(60) == 129
                assert (tmp_path / "a").read_text() == "cleaned"
        finally:
            process.kill()


PROGRAM = """
import sys
from pathlib import Path
from drsformer_jax.config.file import load_config
from drsformer_jax.errors import one_line_errors

with one_line_errors():
    load_config(Path(sys.argv[1]))
"""


@pytest.fixture
def ending():
    """The handlers of a program, as long as a test lasts."""
    before = {number: signal.signal(number, end_program) for number in ending_signals()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("fails", [False, True])
def test_a_held_signal_ends_the_program_after_the_block_even_if_that_fails(ending, number, fails):
    reached = []

    @held_signals()
    def block():
        signal.raise_signal(number)
        reached.append(True)
        if fails:
            raise RuntimeError("can't start new thread")

    with pytest.raises((KeyboardInterrupt, SystemExit)) as end:
        block()
    assert reached
    if number == signal.SIGINT:
        assert end.type is KeyboardInterrupt
    else:
        assert end.value.code == 128 + number
    assert all(signal.getsignal(each) is end_program for each in ending_signals())


def test_a_signal_while_handlers_change_back_is_not_lost(ending, monkeypatch):
    change = signal.signal

    def interrupted(number, handler):
        if handler is end_program and number == signal.SIGINT:
            signal.raise_signal(signal.SIGTERM)  # Whose turn comes next.
        return change(number, handler)

    with pytest.raises(SystemExit) as end, held_signals():
        monkeypatch.setattr(signal, "signal", interrupted)
    assert end.value.code == 128 + signal.SIGTERM


def test_configuration_may_define_dataclasses_of_its_own(tmp_path):
    path = tmp_path / "my.py"
    path.write_text(
        "from __future__ import annotations\n"
        "from dataclasses import dataclass\n"
        "from drsformer_jax.config import TrainConfig\n"
        "@dataclass\n"
        "class Mine:\n"
        "    steps: int = 10\n"
        "def get_config():\n"
        "    return TrainConfig(steps=Mine().steps)\n"
    )
    assert load_config(path).steps == 10


def end_of(path, **environment):
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(path)],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )
    assert ended.returncode == 1
    return ended.stderr


@pytest.mark.parametrize(
    ("text", "line", "kind"),
    [
        ("def get_config():\n    x = 1\n    return undefined\n", 3, "NameError"),
        ("import drsformer_jax\n\n\nhelp(\n", 4, "SyntaxError"),
        ("from drsformer_jax.config import DataConfig\n\nDataConfig(crop_size=3)\n", 3, "Input"),
        ("def get_config():\n    return inner()\n\ndef inner():\n    return 1 / 0\n", 5, "Zero"),
    ],
)
def test_configuration_that_fails_is_named_with_its_line(tmp_path, text, line, kind):
    path = tmp_path / "my.py"
    path.write_text(text)
    printed = end_of(path)
    assert printed.startswith(f"error: {path}:{line} fails ({kind}")
    assert printed.count("\n") == 1
    traced = end_of(path, DRSFORMER_DEBUG="1")
    assert traced.endswith(printed)
    assert "Traceback (most recent call last)" in traced
    assert f'File "{path}", line {line}' in traced
    assert end_of(path, DRSFORMER_DEBUG="0") == printed
