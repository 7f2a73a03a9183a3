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
import pytest
from programs import read_until

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


def stopped_at(output):
    """The step that a stopped run says to be saved, in its last line."""
    last = output.splitlines()[-1]
    message = r"stopped after step (\d+); its checkpoint is saved; rerun the command to resume"
    return re.fullmatch(message, last)[1]


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


def test_sigterm_to_trainer_and_worker_saves_and_the_run_ends_bit_for_bit_like_a_straight_one(
    run, place
):
    # Nothing but the stop saves.
    beyond = ("--data.workers", 1, "--eval-every", 9000, "--checkpoint-every", 9000)
    folder, other = place / "terminated", place / "unterminated"
    with run.start(
        *(*TRAIN, *beyond, "--workdir", folder, "--steps", 9000), start_new_session=True
    ) as process:
        read_until(process, "step 3/9000")
        os.killpg(process.pid, signal.SIGTERM)
        output, errors = process.communicate(timeout=100)
    assert (process.returncode, errors) == (0, "")
    step = int(stopped_at(output))
    assert saved(folder) == [str(step)]
    for each in (folder, other):
        result = run(*TRAIN, *beyond, "--workdir", each, "--steps", step + 2)
        assert (result.returncode, result.stderr) == (0, "")
        assert f"steps {step if each is folder else 0} to {step + 2}" in result.stdout
    jax.tree.map(np.testing.assert_array_equal, state(folder, step + 2), state(other, step + 2))
    assert losses(folder) == losses(other)
    assert len(losses(folder)) == step + 2


def test_ctrl_c_gives_up_a_validation_which_is_made_up_for_at_the_next_start(run, straight, place):
    folder = place / "validating"
    with run.start(*TRAIN, "--workdir", folder) as process:
        wait_for(process, lambda: list(folder.glob("checkpoints/4*")))
        process.send_signal(signal.SIGINT)  # While Orbax saves in the background, too.
        output, errors = process.communicate(timeout=100)
    assert (process.returncode, errors) == (0, "")
    assert stopped_at(output) == "4"
    assert saved(folder) == ["2", "4"]
    assert list(json.loads((folder / "validation.json").read_text())) == ["2"]
    result = run(*TRAIN, "--workdir", folder)
    assert "\nstep 4: validation PSNR " in result.stdout, result.stderr
    assert_equal_runs(folder, straight)


def test_signal_before_the_first_step_stops_and_saves_nothing(run, place):
    folder = place / "unbegun"
    with run.start(*TRAIN, "--workdir", folder) as process:
        wait_for(process, (folder / ".lock").exists)  # The parameters are initialized next.
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=100)
    assert (process.returncode, errors) == (0, "")
    assert output.endswith("\nstopped before the first step; rerun the command to start\n")
    assert saved(folder) == []


def test_second_ctrl_c_interrupts_the_save_and_the_run_resumes(run, place):
    folder = place / "interrupted"
    train = (*TRAIN, "--workdir", folder, "--eval-every", 9000, "--checkpoint-every", 9000)
    with run.start(*train, "--steps", 9000) as process:
        read_until(process, "step 3/9000")
        process.send_signal(signal.SIGINT)
        wait_for(process, lambda: saved(folder))
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (130, "interrupted\n")
    result = run(*train, "--steps", 1)
    assert (result.returncode, result.stderr) == (0, "")


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


def test_run_resumes_on_another_mesh_and_back_like_on_one_device(run, straight, place):
    moved = place / "moved"
    shutil.copytree(straight, moved)
    shutil.rmtree(moved / "checkpoints" / "6")
    four = f"{run.environment['XLA_FLAGS']} --xla_force_host_platform_device_count=4"
    result = run(
        *(
            *TRAIN,
            "--workdir",
            moved,
            "--mesh.data",
            1,
            "--mesh.fsdp",
            4,
            "--mesh.fsdp-min-size",
            0,
            "--steps",
            4,
        ),
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
