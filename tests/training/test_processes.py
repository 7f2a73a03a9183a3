"""Several processes train one network: real ones, on one machine."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path

import jax
import numpy as np
import pytest
from programs import ended, read_until, rejected, start_several

from drsformer_jax.training import checkpoint

pytestmark = pytest.mark.slow

CONFIG = ("--config", "config.py")
DOUBLE = ("--model.dtype", "float64", "--model.param-dtype", "float64")
BATCHES = ("--data.global-batch", 8, "--optim.ema-decay", 0.9, "--eval-every", 5, *DOUBLE)


def metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_two_processes_of_four_devices_train_like_one_and_one_resumes_their_run(run, place):
    straight = run("train", "--config", "config.py", "--workdir", "alone", *BATCHES, "--steps", 6)
    assert straight.returncode == 0, straight.stderr
    arguments = ("--workdir", "together", *BATCHES, "--mesh.fsdp", 2, "--mesh.fsdp-min-size", 0)
    first, second = ended(start_several(run, 2, *CONFIG, *arguments, "--steps", 5, devices=4))
    assert (first[0], second[0]) == (0, 0), first[2] + second[2]
    assert "8 cpu devices of 2 processes" in first[1]
    assert not re.search("parameters|loss|PSNR|saved", second[1]), "only the first process prints"
    result = run("train", "--config", "config.py", "--workdir", "together", *BATCHES, "--steps", 6)
    assert result.returncode == 0, result.stderr
    assert "- mesh.fsdp 2\n+ mesh.fsdp 1" in result.stdout
    with jax.enable_x64(True):
        expected, found = (checkpoint.load(place / name)[1] for name in ("alone", "together"))
    for value, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(value, other, rtol=1e-8, atol=1e-12)
    rows = zip(metrics(place / "together"), metrics(place / "alone"), strict=True)
    for value, other in rows:
        # Scores are of 8-bit images: they are the same to the last bit.
        names = [name for name in other if name.startswith(("step", "validation"))]
        assert [value[name] for name in names] == [other[name] for name in names]
        for name in {"loss", "grad_norm", "learning_rate"} & other.keys():
            assert value[name] == pytest.approx(other[name], rel=1e-8)


def test_signal_to_one_process_saves_and_ends_all_also_before_the_first_step(run, place):
    long = ("--workdir", "two_stopped", "--eval-every", 5000, "--checkpoint-every", 5000)
    processes = start_several(run, 2, *CONFIG, *long, "--steps", 5000)
    read_until(processes[0], "step 5/")
    processes[1].send_signal(signal.SIGINT)
    (status, output, errors), (other, *_) = ended(processes)
    assert (status, other) == (0, 0), errors
    step = stopped_at(output)
    with checkpoint.Run(place / "two_stopped", keep=None) as saved:
        assert saved.steps() == [step]
    processes = start_several(run, 2, *CONFIG, *long, "--steps", 5000)
    read_until(processes[0], "steps ")  # Before anything is compiled.
    processes[1].send_signal(signal.SIGTERM)
    (status, output, errors), (other, *_) = ended(processes)
    assert (status, other) == (0, 0), errors
    assert step <= stopped_at(output) < step + 500


def stopped_at(output: str) -> int:
    (step,) = re.findall(
        r"^stopped after step (\d+); its checkpoint is saved", output, re.MULTILINE
    )
    return int(step)


def test_processes_that_cannot_connect_report_the_flags_that_are_needed(run):
    result = run("train", "--config", "config.py", "--workdir", "x", "--num-processes", 2)
    rejected(result, "cannot be connected .*; expected --coordinator-address HOST:PORT")
