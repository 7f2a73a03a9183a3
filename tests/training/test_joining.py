"""How a process finds its cluster and waits for the others, and how it stops."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys

import pytest
from programs import ROOT

from drsformer_jax.training.processes import Stop, find_cluster, join

SLURM = {
    "SLURM_JOB_ID": "4",
    "SLURM_STEP_NODELIST": "localhost",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
}
TPU = {"TPU_ML_PLATFORM": "JAX"}


@pytest.mark.parametrize(
    ("variables", "name", "certain"),
    [
        (SLURM, "Slurm", True),
        ({"OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1:34911"}, "Open MPI", True),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"}, "Kubernetes", True),
        ({**TPU, "TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "1"}, "Cloud TPU", True),
        ({**TPU, "TPU_PROCESS_ADDRESSES": "a:1,b:1"}, "Cloud TPU", True),
        (TPU, "Cloud TPU", False),
    ],
)
def test_a_cluster_is_known_by_its_variables(variables, name, certain):
    found = find_cluster({"HOME": "/root", **variables})
    assert (found.name, found.certain) == (name, certain)


@pytest.mark.parametrize(
    "variables",
    [
        {},
        # A shell of an allocation, outside of srun.
        {name: SLURM[name] for name in ("SLURM_JOB_ID", "SLURM_NTASKS")},
        # Any pod of Kubernetes, and the process of one machine.
        {"KUBERNETES_SERVICE_HOST": "10.0.0.1"},
        {"TPU_WORKER_HOSTNAMES": "a,b"},
    ],
)
def test_a_process_without_such_variables_trains_alone(variables):
    assert find_cluster(variables) is None


def test_joining_nobody_asks_nobody(monkeypatch):
    monkeypatch.setattr(os, "environ", {})
    join()
    monkeypatch.setattr(os, "environ", SLURM)
    join(count=1)


def test_a_process_says_what_it_waits_for_and_ends_with_one_line():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    program = (
        "from drsformer_jax.training import processes\n"
        "processes._QUIET, processes._JOIN_TIMEOUT = 0.2, 1\n"
        "processes.join()"
    )
    result = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **SLURM, "PYTHONPATH": str(ROOT), "JAX_COORDINATOR_PORT": port},
        capture_output=True,
        text=True,
        timeout=100,
    )
    waiting = "process 1 of 4 waits for the others (Slurm), the first of them at localhost"
    alone = "--num-processes 1 trains with this process alone"
    assert result.stderr.splitlines() == [
        f"{waiting}; {alone}",
        f"error: after 1 s {waiting}; expected all to start; {alone}",
    ]
    assert result.returncode == 1


def test_first_signal_asks_to_stop_and_a_second_ctrl_c_interrupts():
    before = signal.getsignal(signal.SIGTERM)
    for first in (signal.SIGINT, signal.SIGTERM):
        with Stop() as stop:
            assert not stop.asked()
            os.kill(os.getpid(), first)
            assert stop.asked()
            if first == signal.SIGTERM:
                os.kill(os.getpid(), signal.SIGTERM)  # A scheduler may repeat it.
                os.kill(os.getpid(), signal.SIGINT)  # The first Ctrl-C.
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) is before
