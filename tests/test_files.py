"""Files are whole or absent, and what a killed process leaves is removed, a live one's is not."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from drsformer_jax import files
from drsformer_jax.errors import InputError
from drsformer_jax.training.checkpoint import Run

WRITER = """
import sys
from pathlib import Path
from drsformer_jax import files

kind, path = sys.argv[1], Path(sys.argv[2])
if kind == "folder":
    with files.new_folder(path) as folder:
        (folder / "inside").write_text("whole")
        print("ready", flush=True)
        sys.stdin.readline()
else:
    with files.replacing(path) as file:
        file.write(b"whole")
        print("ready", flush=True)
        sys.stdin.readline()
"""


@pytest.fixture(params=["file", "folder"])
def writer(request, tmp_path) -> Iterator[subprocess.Popen[str]]:
    """A process that is in the middle of writing `result`."""
    command = [sys.executable, "-c", WRITER, request.param, str(tmp_path / "result")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
        process.kill()


def hidden(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.name.startswith(".")]


def test_what_a_live_process_writes_is_left_alone_and_becomes_whole(writer, tmp_path):
    assert len(hidden(tmp_path)) == 1
    files.remove_leftovers(tmp_path)
    assert len(hidden(tmp_path)) == 1
    writer.communicate("\n")
    assert writer.returncode == 0
    result = tmp_path / "result"
    assert (result / "inside" if result.is_dir() else result).read_text() == "whole"
    assert hidden(tmp_path) == []


def test_what_a_killed_process_left_is_removed(writer, tmp_path):
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    assert len(hidden(tmp_path)) == 1
    (tmp_path / ".0123.unfinished").write_text("of an older version")
    (tmp_path / ".4567.unfinished").mkdir()
    (tmp_path / ".other").write_text("of another program")
    files.remove_leftovers(tmp_path)
    assert hidden(tmp_path) == [tmp_path / ".other"]
    assert not (tmp_path / "result").exists()


def test_new_folder_where_a_link_leads_nowhere_is_rejected(tmp_path):
    (tmp_path / "link").symlink_to("missing")
    expected = "link is there already; expected the name of a new folder"
    with pytest.raises(InputError, match=expected), files.new_folder(tmp_path / "link"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["link"]


def test_new_folder_that_cannot_be_renamed_is_reported_by_the_name_it_was_to_have(tmp_path):
    with pytest.raises(NotADirectoryError) as caught, files.new_folder(tmp_path / "result"):
        (tmp_path / "result").write_text("of another process")
    assert (caught.value.filename, caught.value.filename2) == (str(tmp_path / "result"), None)
    assert [path.name for path in tmp_path.iterdir()] == ["result"]


@pytest.mark.parametrize(
    ("kind", "before"),
    [("file", (fcntl, "flock")), ("folder", (fcntl, "flock")), ("folder", (os, "open"))],
)
def test_what_was_taken_for_a_leftover_before_it_was_locked_is_made_again(
    tmp_path, monkeypatch, kind, before
):
    """Another process cleans up after a file or a folder is made, before it is locked."""
    do, cleaned = getattr(*before), []

    def clean_and_do(*arguments, **options):
        if not cleaned:
            cleaned.append(True)
            files.remove_leftovers(tmp_path)
            assert not hidden(tmp_path)
        return do(*arguments, **options)

    monkeypatch.setattr(*before, clean_and_do)
    if kind == "file":
        files.write_text(tmp_path / "a", "whole")
    else:
        with files.new_folder(tmp_path / "a") as folder:
            (folder / "inside").touch()
    assert cleaned
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.skipif(sys.platform != "linux", reason="says what is locked in /proc")
def test_the_file_that_is_written_is_the_one_that_is_locked(tmp_path):
    """On CIFS a locked file cannot be written through another descriptor: see flock(2)."""
    with files.replacing(tmp_path / "a") as file:
        assert "FLOCK" in Path(f"/proc/self/fdinfo/{file.fileno()}").read_text()
        with pytest.raises(BlockingIOError), open(*tmp_path.glob(".*")) as other:
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.parametrize("number", [errno.EBADF, errno.ENOLCK, errno.EINVAL])
def test_file_systems_without_locks_are_written_whatever_they_say(tmp_path, monkeypatch, number):
    def flock(descriptor, flags):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    files.write_text(tmp_path / "a", "whole")
    with files.new_folder(tmp_path / "b") as folder:
        (folder / "inside").touch()
    with Run(tmp_path / "run", keep=1):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b", "run"}


def test_networks_are_loaded_converted_and_scored_without_file_locks(model, tmp_path):
    """As on Windows, which has no fcntl."""
    program = f"""
import sys
sys.modules["fcntl"] = None
import numpy as np
from drsformer_jax import metrics, weights
from drsformer_jax.errors import InputError
from drsformer_jax.restoring import Restorer
from drsformer_jax.training.checkpoint import Run

config, params = weights.load({str(model)!r})
weights.save({str(tmp_path / "copy")!r}, config, params)
image = np.zeros((16, 16, 3), np.uint8)
print(metrics.psnr(image, image + np.uint8(255), protocol="did_ddn"))
try:
    Run({str(tmp_path / "run")!r}, keep=1)
except InputError as error:
    print(error)
"""
    # JAX would wait for the lock of the folder of compiled programs.
    environment = {**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "false"}
    command = [sys.executable, "-c", program]
    ended = subprocess.run(command, env=environment, text=True, capture_output=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    assert "has no file locks (fcntl), which training needs; expected Linux, macOS" in ended.stdout
    assert {path.name for path in (tmp_path / "copy").iterdir()} == {
        "config.json",
        "params.safetensors",
    }
    assert hidden(tmp_path) == []
