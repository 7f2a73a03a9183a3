"""One process writes, the others wait or are rejected; what a killed one left is removed."""

from __future__ import annotations

import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from rain_sets import write_pairs, write_splits

from drsformer_jax.data.rain import build
from drsformer_jax.data.verification import verify
from drsformer_jax.errors import InputError
from drsformer_jax.locks import locked

NAMES = ["1.png", "2.png", "3.png", "4.png"]
CACHE = """
import hashlib, sys, time
from pathlib import Path
import numpy as np
from drsformer_jax.config import DataConfig
from drsformer_jax.data import pairs, sources
from drsformer_jax.errors import one_line_errors

read = pairs.read_pair

def slow(*paths):
    print("decoding", flush=True)
    while not Path(sys.argv[3]).exists():
        time.sleep(0.05)
    return read(*paths)

pairs.read_pair = slow
with one_line_errors():
    config = DataConfig(train=sys.argv[1], cache_dir=sys.argv[2], crop_size=8)
    ((found, _),) = sources.open_training(config, 0)
pixels = [np.asarray(found[index][side]) for index in range(4) for side in ("rainy", "clean")]
print(hashlib.sha256(b"".join(image.tobytes() for image in pixels)).hexdigest())
"""
BUILD = """
import sys, time
from pathlib import Path
from drsformer_jax.data import rain
from drsformer_jax.errors import one_line_errors

read = rain._read

def slow(path):
    print("reading", file=sys.__stdout__, flush=True)  # Not the one that TFDS is given.
    while not Path(sys.argv[3]).exists():
        time.sleep(0.05)
    return read(path)

rain._read = slow
with one_line_errors():
    rain.build("paired_folder", Path(sys.argv[1]), Path(sys.argv[2]))
"""


@pytest.fixture
def start():
    """Starts a program; what still runs at the end is killed."""
    with ExitStack() as stack:

        def run(program: str, *arguments: object) -> subprocess.Popen[str]:
            process = subprocess.Popen(
                [sys.executable, "-c", program, *map(str, arguments)],
                cwd=Path(__file__).parents[2],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            return process

        yield run


def test_one_process_writes_the_cache_and_the_others_wait_and_use_it(start, tmp_path):
    pairs, cache = write_pairs(tmp_path / "pairs", NAMES), tmp_path / "cache"
    writer = start(CACHE, pairs, cache, tmp_path / "go")
    assert writer.stdout.readline() == "decoding\n"
    others = [start(CACHE, pairs, cache, tmp_path) for _ in range(2)]
    waiting = [process.stderr.readline() for process in others]
    (tmp_path / "go").touch()
    *decoded, pixels = writer.communicate(timeout=120)[0].splitlines()
    assert decoded == ["decoding"] * 3
    (file,) = cache.glob("*.array_record")
    assert waiting == [f"waiting to write {file}: another process writes there\n"] * 2
    for process in others:
        assert process.communicate(timeout=120) == (f"{pixels}\n", "")
        assert process.returncode == 0
    assert {path.name for path in cache.iterdir()} == {".lock", file.name}


def test_a_cache_that_a_killed_process_left_is_removed_and_written_by_who_waited(start, tmp_path):
    pairs, cache = write_pairs(tmp_path / "pairs", NAMES), tmp_path / "cache"
    writer = start(CACHE, pairs, cache, tmp_path / "never")
    assert writer.stdout.readline() == "decoding\n"
    other = start(CACHE, pairs, cache, tmp_path)
    assert other.stderr.readline().startswith("waiting to write ")
    assert len(list(cache.glob(".*.temporary"))) == 1
    writer.kill()
    output, errors = other.communicate(timeout=120)
    assert (other.returncode, errors) == (0, "")
    assert output.splitlines()[:-1] == ["decoding"] * 4
    assert sorted(path.suffix for path in cache.iterdir()) == ["", ".array_record"]


def test_a_dataset_that_is_being_built_is_left_alone(start, tmp_path):
    raw, data = write_splits(tmp_path / "raw"), tmp_path / "data"
    first = start(BUILD, raw, data, tmp_path / "go")
    assert first.stdout.readline() == "reading\n"
    second = start(BUILD, raw, data, tmp_path)
    errors = second.communicate(timeout=120)[1]
    folder = data / "rain/paired_folder"
    assert (second.returncode, errors) == (
        1,
        f"error: {folder} is locked by another process, which writes there; expected to build "
        "paired_folder after it has ended\n",
    )
    (tmp_path / "go").touch()
    assert first.communicate(timeout=120)[1] == ""
    assert list(verify(folder / "1.0.0")) == []


def test_what_a_killed_build_left_is_removed_with_a_line(start, tmp_path, capsys):
    raw, data = write_splits(tmp_path / "raw"), tmp_path / "data"
    killed = start(BUILD, raw, data, tmp_path / "never")
    assert killed.stdout.readline() == "reading\n"
    (left,) = (data / "rain/paired_folder").glob("incomplete.*")
    killed.kill()
    killed.wait()
    build("paired_folder", raw, data)
    assert capsys.readouterr().err == f"removed {left}, left by a build that was killed\n"
    names = {path.name for path in (data / "rain/paired_folder").iterdir()}
    assert names == {".lock", "1.0.0"}


def test_a_lock_is_free_again_after_its_block(tmp_path):
    message = "is locked by another process"
    with (
        locked(tmp_path, "write"),
        pytest.raises(InputError, match=message),
        locked(tmp_path, "write", wait=False),
    ):
        pass
    with locked(tmp_path, "write", wait=False):
        pass


def test_a_file_system_without_locks_is_reported(tmp_path, monkeypatch):
    def flock(file, flags):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", flock)
    message = r"cannot be locked \(Operation not supported\); expected"
    with pytest.raises(InputError, match=message), locked(tmp_path, "write"):
        pass
