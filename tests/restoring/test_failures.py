"""What ends the restoring of a folder, and what fails one of its images alone."""

from __future__ import annotations

import gc
import re
import signal
import subprocess
import sys
import time
import weakref
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from drsformer_jax.errors import InputError, end_program
from drsformer_jax.images.image import LoadedImage
from drsformer_jax.images.pixels import write_image
from drsformer_jax.restoring import files
from drsformer_jax.restoring.files import restore_files
from drsformer_jax.restoring.jobs import Job

ROOT = Path(__file__).parents[2]
COMPUTING = """
import sys, threading, time
from collections import Counter
from pathlib import Path
from drsformer_jax.errors import one_line_errors
from drsformer_jax.restoring.files import restore_files
from drsformer_jax.restoring.jobs import Job

class Restorer:
    programs = Counter()
    bucket = tiling = lambda self, sizes: None

    def plan(self, sizes):
        if sys.argv[3:]:
            threading.Thread.start = start_slowly

    def batch(self, images, count):
        print("computing", flush=True)
        time.sleep(300)

def start_slowly(thread, start=threading.Thread.start):
    start(thread)
    time.sleep(0.5)

jobs = [Job(Path(sys.argv[1]), Path(sys.argv[2]) / name) for name in ("a.png", "b.png")]
with one_line_errors():
    restore_files(jobs, Restorer(), workers=2)
"""


class Network:
    """In place of a network: gives images back."""

    def __init__(self) -> None:
        self.programs: Counter = Counter()

    def plan(self, sizes):
        pass

    def tiling(self, size):
        return None

    def bucket(self, size):
        return size

    def batch(self, images, count):
        return images


def images(folder: Path, *names: str) -> list[Job]:
    """Images that are to be restored."""
    for name in names:
        write_image(folder / "in" / name, np.zeros((4, 6, 3), np.uint8))
    return [Job(folder / "in" / name, folder / "out" / name) for name in names]


@pytest.mark.parametrize(
    ("number", "line"),
    [
        (signal.SIGINT, "waiting for the image that is computed; Ctrl-C again ends at once\n"),
        (signal.SIGTERM, "waiting for the image that is computed; Ctrl-C ends at once\n"),
    ],
)
@pytest.mark.parametrize("amid", [(), ("the start of threads",)], ids=["a wait", "a start"])
def test_second_signal_ends_the_program_amid_a_computation(tmp_path, number, line, amid):
    write_image(tmp_path / "a.png", np.zeros((4, 6, 3), np.uint8))
    command = [sys.executable, "-c", COMPUTING, tmp_path / "a.png", tmp_path / "out", *amid]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=ROOT, **pipes) as process:
        try:
            assert process.stdout.readline() == "computing\n"
            process.send_signal(number)
            assert process.stderr.readline() == line
            time.sleep(0.3 if amid else 0)  # So that it would have left its threads alone.
            process.send_signal(number)
            assert process.communicate(timeout=60) == ("", "")
        finally:
            process.kill()
    assert process.returncode == 128 + number
    assert not (tmp_path / "out").exists()


def test_nothing_is_said_where_nothing_is_computed(tmp_path, capsys, monkeypatch):
    def fail(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr(files, "save_image", fail)
    with pytest.raises(OSError, match="disk full"):
        restore_files(images(tmp_path, "1.png"), Network(), workers=1)
    assert "waiting" not in capsys.readouterr().err


def test_handlers_are_as_before_afterwards(tmp_path):
    before = signal.signal(signal.SIGTERM, end_program)
    try:
        restore_files(images(tmp_path, "1.png"), Network(), workers=1)
        assert signal.getsignal(signal.SIGTERM) is end_program
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("step", ["batch", "save_image"])
def test_memory_that_runs_out_later_fails_that_image_alone(tmp_path, capsys, monkeypatch, step):
    restorer = Network()
    where = restorer if step == "batch" else files
    right, calls = getattr(where, step), []

    def fail_once(*arguments: object, **options: object) -> object:
        calls.append(arguments)
        if len(calls) == 1:
            raise MemoryError
        return right(*arguments, **options)

    monkeypatch.setattr(where, step, fail_once)
    jobs = images(tmp_path, "1.png", "2.png")
    summary = restore_files(jobs, restorer, workers=1)
    assert (summary.restored, summary.failed) == (1, 1)
    line = r"^error: .*1\.png does not fit into memory; expected a smaller image$"
    assert re.search(line, capsys.readouterr().err, re.M)


def test_what_an_image_that_failed_took_is_freed_before_the_next(tmp_path, monkeypatch):
    class Content:
        pass

    taken: weakref.WeakSet[Content] = weakref.WeakSet()
    counts = []

    def load(path: Path) -> LoadedImage:
        gc.collect()
        counts.append(len(taken))
        content = Content()
        taken.add(content)
        try:
            raise ValueError(content)
        except ValueError as error:
            raise InputError(f"{path} is no image") from error

    monkeypatch.setattr(files, "load_image", load)
    jobs = images(tmp_path, "1.png", "2.png", "3.png")
    assert restore_files(jobs, Network(), workers=1).failed == 3
    assert counts == [0, 0, 0]


def test_error_of_an_image_alone_keeps_what_caused_it(tmp_path):
    (tmp_path / "a.png").write_text("no image")
    with pytest.raises(InputError, match="no image") as caught:
        restore_files([Job(tmp_path / "a.png", tmp_path / "b.png")], Network(), workers=1)
    assert caught.value.__cause__ is not None
