"""A run that was stopped or killed, at any moment, ends like one that was not: real processes."""

import functools
import json
import os
import re
import shutil
import signal
import time

import jax
import numpy as np
import psutil
import pytest

from drsformer_jax.config import MeshConfig
from drsformer_jax.sharding import make_mesh
from drsformer_jax.training import abstract_state
from drsformer_jax.training.checkpoint import Run

pytestmark = pytest.mark.slow

# Steps so long that the first validation stays the best.
LEARNING = ("--optim.learning-rate", 0.03, "--optim.constant-steps", 8, "--optim.ema-decay", 0.9)
PERIODS = ("--steps", 6, "--eval-every", 2, "--checkpoint-every", 2, "--keep-checkpoints", 1)
# In float64 other orders of sums on other meshes do not matter.
DOUBLE = ("--model.dtype", "float64", "--model.param-dtype", "float64", "--data.global-batch", 4)
TRAIN = ("train", "--config", "config.py", *LEARNING, *PERIODS, *DOUBLE)
UNFINISHED = "orbax-checkpoint-tmp"


def saved(folder):
    """What is in checkpoints/."""
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def state(folder, step):
    with jax.enable_x64(True), Run(folder, keep=None) as run:
        one = make_mesh(MeshConfig(data=1))
        return run.restore(step, abstract_state(run.config(step), one))


def losses(folder):
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [(line["step"], line["loss"]) for line in lines if "loss" in line]


def assert_equal_runs(found, expected):
    """Compares parameters, average, optimizer state and counts bit for bit, losses and scores."""
    ours, theirs = state(found, 6), state(expected, 6)
    assert theirs.ema is not None
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    assert [step for step, _ in losses(expected)] == [1, 2, 3, 4, 5, 6]
    assert losses(found) == losses(expected)
    assert json.loads((found / "validation.json").read_text()) == json.loads(
        (expected / "validation.json").read_text()
    )
    assert saved(found) == saved(expected)


def wait_for(process, happens):
    """Waits, busily, until something has happened; a process that ends before fails the test."""
    while not happens():
        assert process.poll() is None, process.communicate()
        time.sleep(0.0005)


def read_until(process, start):
    """Reads the lines that a process prints, to the first that starts so."""
    for line in process.stdout:
        if line.startswith(start):
            return
    raise AssertionError(process.communicate())


@pytest.fixture(scope="module")
def straight(run, place):
    result = run(*TRAIN, "--workdir", "straight")
    assert result.returncode == 0, result.stderr
    return place / "straight"


def test_best_and_latest_checkpoint_survive_and_the_best_is_taken(straight):
    assert saved(straight) == ["2", "6"]
    scores = json.loads((straight / "validation.json").read_text())
    assert {score["protocol"] for score in scores.values()} == {"rain200_spa"}
    assert max(scores, key=lambda step: scores[step]["psnr"]) == "2"
    with Run(straight, keep=None) as found:
        assert found.best_step() == 2  # What `checkpoint.load` takes.


def test_sigterm_to_trainer_and_worker_saves_and_the_run_ends_bit_for_bit_like_the_straight_one(
    run, straight, place
):
    folder = place / "terminated"
    flags = ("--workdir", folder, "--data.workers", 1)
    with run.start(*TRAIN, *flags, start_new_session=True) as process:
        read_until(process, "step 3/6")
        os.killpg(process.pid, signal.SIGTERM)
        output, errors = process.communicate(timeout=100)
    assert (process.returncode, errors) == (0, "")
    step = re.search(r"\nstopped after step ([3-6]), which is saved; the same command ", output)[1]
    assert step in saved(folder)
    result = run(*TRAIN, *flags)
    assert (result.returncode, result.stderr) == (0, "")
    assert f"steps {step} to 6" in result.stdout
    assert_equal_runs(folder, straight)


def test_ctrl_c_gives_up_a_validation_which_is_made_up_for_at_the_next_start(run, straight, place):
    folder = place / "validating"
    with run.start(*TRAIN, "--workdir", folder) as process:
        wait_for(process, lambda: list(folder.glob("checkpoints/4*")))
        process.send_signal(signal.SIGINT)  # While Orbax saves in the background, too.
        output, errors = process.communicate(timeout=100)
    assert (process.returncode, errors) == (0, "")
    assert output.endswith("stopped after step 4, which is saved; the same command continues\n")
    assert saved(folder) == ["2", "4"]
    assert list(json.loads((folder / "validation.json").read_text())) == ["2"]
    result = run(*TRAIN, "--workdir", folder)
    assert "\nstep 4: validation PSNR " in result.stdout, result.stderr
    assert_equal_runs(folder, straight)


def test_signal_before_the_first_step_ends_at_once_and_two_interrupt(run, straight, place):
    with run.start(*TRAIN, "--workdir", place / "unbegun") as process:
        read_until(process, "steps 0 to 6")
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=100)
    assert (process.returncode, errors) == (0, "")
    stopped = r"stopped (before the first step|after step 1, which is saved); the same command"
    assert re.match(stopped, output)
    with run.start(*TRAIN, "--workdir", place / "unbegun") as process:
        read_until(process, "step 3/6")
        for _ in range(2):
            process.send_signal(signal.SIGINT)
            time.sleep(0.01)
        _, errors = process.communicate(timeout=100)
    # Python may see two signals as one.
    assert (process.returncode, errors) in [(130, "interrupted\n"), (0, "")]


def test_interrupt_during_the_imports_prints_no_traceback(run):
    with run.start("train", "--help") as process:
        found = psutil.Process(process.pid)
        wait_for(process, lambda: any("jaxlib" in each.path for each in found.memory_maps()))
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=100)
    assert process.returncode == -signal.SIGINT
    assert errors == ""


def test_run_killed_during_a_save_ends_bit_for_bit_like_the_straight_one(run, straight, place):
    folder = place / "killed-saving"
    with run.start(*TRAIN, "--workdir", folder) as process:
        wait_for(process, lambda: list(folder.glob(f"checkpoints/4.{UNFINISHED}*")))
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert saved(folder)[0] == "2"
    assert saved(folder)[1].startswith(f"4.{UNFINISHED}")
    # What a kill in the middle of a write may leave beside.
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "lo')
    (folder / ".0123.unfinished").write_text("{")
    result = run(*TRAIN, "--workdir", folder)
    assert (result.returncode, result.stderr) == (0, "")
    assert "steps 2 to 6" in result.stdout
    assert not list(folder.rglob("*.unfinished"))
    assert_equal_runs(folder, straight)


def test_run_goes_on_on_another_mesh_and_back_like_on_one_device(run, straight, place):
    moved = place / "moved"
    shutil.copytree(straight, moved)
    shutil.rmtree(moved / "checkpoints" / "6")
    four = f"{run.environment['XLA_FLAGS']} --xla_force_host_platform_device_count=4"
    result = run(
        *(*TRAIN, "--workdir", moved, "--mesh.data", 1, "--mesh.fsdp", 4, "--steps", 4),
        environment={**run.environment, "XLA_FLAGS": four},
    )
    assert result.returncode == 0, result.stderr
    assert re.search(r" 4 cpu devices .*\nsteps 2 to 4", result.stdout)
    result = run(*TRAIN, "--workdir", moved)
    assert "steps 4 to 6" in result.stdout, result.stderr
    ours, theirs = state(moved, 6), state(straight, 6)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(ours.params)} == {"float64"}
    close = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-10)
    jax.tree.map(close, ours, theirs)
    close(losses(moved), losses(straight))
