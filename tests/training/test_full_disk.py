"""Disks that are full or read-only: one clear line, and what was saved before stays whole."""

import re
import shutil
import subprocess

import jax
import numpy as np
import pytest
from programs import rejected

from drsformer_jax.training import checkpoint

pytestmark = pytest.mark.slow

resource = pytest.importorskip("resource")
TRAIN = ("train", "--config", "config.py")


def assert_one_line(result, message):
    rejected(result, message)
    assert result.returncode == 1
    lines = result.stderr.splitlines()
    # A run would go on without TensorBoard's file.
    assert len([line for line in lines if "for TensorBoard" not in line]) == 1, result.stderr


def assert_equal_params(found, expected, step):
    loaded = (checkpoint.load(folder, step)[1] for folder in (found, expected))
    jax.tree.map(np.testing.assert_array_equal, *loaded)


def mount(*arguments):
    if subprocess.run(["mount", *map(str, arguments)], capture_output=True).returncode:
        pytest.skip("mounting is not permitted")


@pytest.fixture
def small_disk(place):
    folder = place / "small"
    folder.mkdir()
    if shutil.which("mount") is None:
        pytest.skip("there is no mount")
    mount("-t", "tmpfs", "-o", "size=3m", "tmpfs", folder)
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="limits of a process need Linux")
def test_checkpoint_that_cannot_be_written_ends_the_run_and_room_continues_it(run, trained, place):
    straight, folder = trained[0], place / "limited"
    shutil.copytree(straight, folder)
    shutil.rmtree(folder / "checkpoints" / "4")
    with run.start(*TRAIN, "--workdir", folder) as process:
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (50_000, 50_000))
        output, errors = process.communicate(timeout=100)
    assert "step 4/4" in output
    assert_one_line(
        subprocess.CompletedProcess(process.args, process.returncode, output, errors),
        r"a checkpoint cannot be written to .*limited \(File too large\); expected room for it; "
        r"checkpoints of steps \[2\] are whole",
    )
    assert_equal_params(folder, straight, 2)
    result = run(*TRAIN, "--workdir", folder)
    assert (result.returncode, result.stderr) == (0, "")
    assert "steps 2 to 4" in result.stdout
    assert_equal_params(folder, straight, 4)
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["2", "4"]


def test_full_disk_and_read_only_disk_give_one_line_and_lose_nothing(
    run, trained, place, small_disk
):
    folder = small_disk / "run"
    train = (*TRAIN, "--workdir", folder, "--keep-checkpoints", 50, "--steps", 60)
    result = run(*train)
    assert_one_line(result, r"small/run.*No space left on device")
    names = [path.name for path in (folder / "checkpoints").iterdir()]
    steps = sorted(int(name) for name in names if name.isdigit())
    assert steps[:2] == [2, 4]
    assert_equal_params(folder, trained[0], 4)
    checkpoint.load(folder, steps[-1])

    mount("-o", "remount,ro,size=3m", small_disk)
    before = sorted(folder.rglob("*"))
    result = run(*train)
    assert_one_line(result, r"small/run cannot be written \(Read-only file system\); expected")
    assert result.stdout == ""
    assert sorted(folder.rglob("*")) == before

    mount("-o", "remount,rw,size=300m", small_disk)
    result = run(*train, "--steps", steps[-1] + 2, "--keep-checkpoints", 3)
    assert (result.returncode, result.stderr) == (0, "")
    assert re.search(rf"\nsteps {steps[-1]} to ", result.stdout)
