"""Folders in buckets, in one that an emulator serves here."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from bucket_server import environment, objects, served
from programs import ROOT

from drsformer_jax import remote
from drsformer_jax.errors import InputError

pytest.importorskip("gcsfs")
pytest.importorskip("gcp_storage_emulator")
pytestmark = pytest.mark.filterwarnings("ignore")  # Of the driver's threads and sockets.


@pytest.fixture(scope="module")
def port():
    with served() as port:
        yield port


@pytest.fixture
def bucket(port, monkeypatch, request):
    """Address of an empty folder."""
    for name, value in environment(port).items():
        monkeypatch.setenv(name, value)
    return f"gs://runs/{request.node.name}"


@pytest.mark.parametrize(
    ("path", "address"),
    [
        ("gs://bucket/run", "gs://bucket/run"),
        ("gs:/bucket/run", "gs://bucket/run"),  # As pathlib leaves it.
        ("s3://bucket/run/", "s3://bucket/run"),
        ("run", ""),
        ("/data/gs/run", ""),
        ("C:/run", ""),
    ],
)
def test_addresses_are_told_from_local_paths(path, address):
    assert remote.address(path) == address


def test_mirror_sends_what_has_changed_and_hidden_files_stay(bucket, port):
    mirror = remote.Mirror(bucket)
    (mirror.folder / "a.txt").write_text("one")
    (mirror.folder / ".lock").write_text("")
    (mirror.folder / "deep").mkdir()
    (mirror.folder / "deep" / "b.txt").write_text("two")
    mirror.push()
    name = bucket.removeprefix("gs://runs/")
    sent = {k: v for k, v in objects(port).items() if k.startswith(name)}
    assert sent == {f"{name}/a.txt": b"one", f"{name}/deep/b.txt": b"two"}
    (mirror.folder / "a.txt").write_text("three")
    mirror.push()
    other = remote.Mirror(bucket)
    other.pull("a.txt", "deep/b.txt", "none.txt")
    assert (other.folder / "a.txt").read_text() == "three"
    assert (other.folder / "deep" / "b.txt").read_text() == "two"
    assert not (other.folder / "none.txt").exists()


def test_local_copies_of_killed_processes_are_removed_and_those_in_use_are_not(
    bucket, tmp_path, monkeypatch
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    program = (
        "import os, sys; from drsformer_jax import remote\n"
        "mirror = remote.Mirror(sys.argv[1]); print(mirror.folder, flush=True); os._exit(1)"
    )
    command = [sys.executable, "-c", program, bucket]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    said = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True).stdout
    left = Path(said.strip())
    other = tmp_path / "drsformer-other"
    other.mkdir()
    assert left.parent == tmp_path
    assert left.is_dir()
    first = remote.Mirror(bucket)
    assert not left.exists()
    second = remote.Mirror(bucket)
    assert first.folder.is_dir()
    assert other.is_dir()
    first = None  # Its folder is gone with it.
    assert sorted(tmp_path.iterdir()) == [second.folder, other]


def test_a_held_lock_keeps_others_out_and_a_released_one_does_not(bucket, monkeypatch, capsys):
    monkeypatch.setattr(remote, "_BEAT", 0.2)
    held = remote.Lease(bucket, "is being trained")
    with pytest.raises(InputError, match=r"is being trained by another process \(.*process \d+"):
        remote.Lease(bucket, "is being trained")
    assert f"{bucket} is locked by" in capsys.readouterr().err
    held.release()
    remote.Lease(bucket, "is being trained").release()
    assert capsys.readouterr().err == ""


def test_the_lock_of_a_killed_process_is_taken_over_and_its_owner_learns_of_it(
    bucket, monkeypatch, capsys
):
    monkeypatch.setattr(remote, "_BEAT", 0.2)
    dead = remote.Lease(bucket, "is being trained")
    # It cannot reach the bucket for a while.
    beat = dead._driver
    monkeypatch.setattr(dead, "_driver", None)
    new = remote.Lease(bucket, "is being trained")
    assert "waiting" in capsys.readouterr().err
    monkeypatch.setattr(dead, "_driver", beat)
    time.sleep(0.6)
    with pytest.raises(InputError, match="was taken over by another process"):
        dead.check()
    new.check()
    dead.release()
    with pytest.raises(InputError):  # Releasing a lost lock leaves that of the new owner.
        remote.Lease(bucket, "is being trained")
    new.release()


def test_a_folder_is_sent_with_its_mark_last_and_copied_once(bucket, port, tmp_path, monkeypatch):
    source = tmp_path / "source"
    (source / "deep").mkdir(parents=True)
    (source / "deep" / "a.txt").write_text("one")
    (source / "b.txt").write_text("two")
    order = []
    driver, folder = remote._driver(bucket)
    put_file = driver.put_file
    monkeypatch.setattr(
        driver, "put_file", lambda *paths: (order.append(paths[1]), put_file(*paths))
    )
    monkeypatch.setattr(remote, "_driver", lambda where: (driver, folder))
    remote.sent(source, bucket, last="b.txt")
    assert [Path(path).name for path in order] == ["a.txt", "b.txt"]
    monkeypatch.undo()
    for name, value in environment(port).items():
        monkeypatch.setenv(name, value)
    assert remote.folders_with(bucket, "a.txt") == ["deep"]
    copy = remote.copied(bucket, str(tmp_path / "cache"))
    assert sorted(path.name for path in copy.rglob("*.txt")) == ["a.txt", "b.txt"]
    assert (copy / "deep" / "a.txt").read_text() == "one"
    (copy / "b.txt").write_text("changed")  # It would be replaced.
    assert remote.copied(bucket, str(tmp_path / "cache")) == copy
    assert (copy / "b.txt").read_text() == "changed"


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("nothing://bucket/run", "nothing://bucket/run cannot be opened"),
        ("gs://no-such-bucket/run", "gs://no-such-bucket/run/a.txt cannot be written"),
    ],
)
def test_a_bucket_that_cannot_be_used_is_one_line(bucket, where, message):
    def send():
        mirror = remote.Mirror(where)
        (mirror.folder / "a.txt").write_text("one")
        mirror.push()

    with pytest.raises(InputError, match=message):
        send()
