"""Which share of the images is a process's own, as launchers tell it."""

from __future__ import annotations

import pytest

from drsformer_jax.clusters import is_alone, share
from drsformer_jax.training import processes

JOB = {
    "SLURM_JOB_ID": "1",
    "SLURM_STEP_NODELIST": "host",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
}


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        ({}, (0, 4)),
        ({"SLURM_STEP_NUM_TASKS": "4"}, (0, 4)),
        ({"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"}, (1, 2)),
        ({"SLURM_STEP_NUM_TASKS": "1"}, (0, 1)),  # The shell of `salloc -n4`.
    ],
)
def test_a_step_of_slurm_counts_its_own_tasks_not_those_of_the_job(step, expected):
    assert share(None, None, {**JOB, **step}) == expected
    assert is_alone({**JOB, **step}) == (expected[1] == 1)


def test_training_in_the_shell_of_a_job_waits_for_no_other_process(monkeypatch):
    for name, value in {**JOB, "SLURM_STEP_NUM_TASKS": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(processes, "Peers", lambda *_: pytest.fail("connects"))
    processes.join()
