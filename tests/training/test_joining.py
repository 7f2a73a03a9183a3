"""How a process finds its cluster and waits for the others, and how it stops."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time

import pytest
from programs import ROOT, UNOPTIMIZED, Program, read_until

from drsformer_jax.clusters import find_cluster, share
from drsformer_jax.errors import InputError
from drsformer_jax.training import peers, processes
from drsformer_jax.training.processes import Stop, join

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


@pytest.mark.parametrize(
    ("flags", "variables", "expected"),
    [
        ((None, None), {}, (0, 1)),
        ((4, 3), {}, (3, 4)),
        ((None, None), SLURM, (1, 4)),
        ((1, None), SLURM, (0, 1)),
        ((None, None), {**TPU, "TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "1"}, (1, 2)),
        # How many there are Kubernetes does not tell.
        (
            (None, None),
            {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "1"},
            (0, 1),
        ),
        ((3, None), {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "1"}, (1, 3)),
    ],
)
def test_a_process_knows_its_share(flags, variables, expected):
    assert share(*flags, variables) == expected


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ((4, None), "--process-id is None; expected both"),
        ((None, 0), "--num-processes is None .*; expected both"),
        ((4, 4), "--process-id is 4; expected 0 to 3"),
        ((4, -1), "--process-id is -1; expected 0 to 3"),
        ((0, 0), "--num-processes is 0; expected at least 1"),
    ],
)
def test_a_share_that_is_none_is_rejected(flags, expected):
    with pytest.raises(InputError, match=expected):
        share(*flags, {})


def test_joining_nobody_asks_nobody(monkeypatch):
    monkeypatch.setattr(os, "environ", {})
    join()
    monkeypatch.setattr(os, "environ", SLURM)
    join(count=1)


ALONE = "--num-processes 1 trains with one process alone"


def free_address():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return f"localhost:{free.getsockname()[1]}"


def joining(*arguments, times=(0.5, 60, 300), environment=None):
    """Starts a process that joins a run; it says something, more, and ends after these seconds."""
    program = (
        "from drsformer_jax.training import peers, processes\n"
        f"peers._QUIET, peers._LONG, peers._LIMIT = {times}\n"
        f"processes.join(*{arguments})"
    )
    return subprocess.Popen(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})},
        stderr=subprocess.PIPE,
        text=True,
    )


def did_not_come(numbers, address, seconds):
    return (
        f"{numbers} did not come to {address} in {seconds} s; expected the command to run there "
        f"too, with this address and port open to it; {ALONE}\n"
    )


def test_open_mpi_5_tells_each_process_its_share_and_no_more():
    environment = {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "1"}
    assert share(None, None, environment) == (1, 4)
    assert share(None, None, {**environment, **SLURM}) == (1, 4)  # mpirun in a job of Slurm.
    assert find_cluster(environment) is None


def test_a_process_says_that_the_first_is_missing_and_ends_with_one_line():
    address = free_address()
    port = {"JAX_COORDINATOR_PORT": address.partition(":")[2]}
    with joining(times=(0.2, 1, 2), environment={**SLURM, **port}) as process:
        errors = process.communicate(timeout=100)[1]
    assert errors.splitlines(keepends=True) == [
        f"waiting for process 0 of 4 to come to {address}; {ALONE}\n",
        "warning: " + did_not_come("process 0 of 4", address, 1),
        "error: " + did_not_come("process 0 of 4", address, 2),
    ]
    assert process.returncode == 1


@pytest.mark.slow
def test_processes_that_have_come_say_which_ones_are_missing():
    address = free_address()
    other = joining(address, 5, 3)
    assert other.stderr.readline().startswith("waiting for process 0 of 5")
    first = joining(address, 5, 0, times=(1, 2, 3))
    for process in (first, other):
        errors = process.communicate(timeout=100)[1]
        assert errors.splitlines(keepends=True) == [
            f"waiting for processes 1, 2, 4 of 5 to come to {address}; {ALONE}\n",
            "warning: " + did_not_come("processes 1, 2, 4 of 5", address, 2),
            "error: " + did_not_come("processes 1, 2, 4 of 5", address, 3),
        ]
        assert process.returncode == 1


WAITING = """
import sys
from drsformer_jax.errors import one_line_errors
from drsformer_jax.training import processes

with processes.ended_together(), one_line_errors():
    processes.join(sys.argv[1], 2, int(sys.argv[2]))
    processes.check_equal("a", "a word")
    if sys.argv[2] == "1":
        print("joined", flush=True)
        sys.stdin.readline()
    processes.wait_for_all("what takes long")
    print("together", flush=True)
    processes.check_equal("a", "a word")
"""


@pytest.mark.slow
@pytest.mark.parametrize("interrupted", [False, True])
def test_processes_wait_for_the_one_that_takes_long_and_ctrl_c_ends_that(interrupted):
    address = free_address()
    # Of a collective's patience nothing is left meanwhile.
    flags = f"{UNOPTIMIZED} --xla_cpu_collective_timeout_seconds=2"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    first, late = (
        Program(
            [sys.executable, "-c", WAITING, address, str(index)],
            env={**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": flags},
            text=True,
            **pipes,
        )
        for index in range(2)
    )
    with first, late:
        assert read_until(late, "joined")
        time.sleep(4)
        assert first.poll() is None
        if interrupted:
            first.send_signal(signal.SIGINT)
            assert first.wait(30) == 130
            assert late.wait(60) == 1
            assert "process 0 of 2 (on " in late.stderr.read()
            return
        late.stdin.write("\n")
        late.stdin.close()
        assert read_until(first, "together")
        assert read_until(late, "together")
        assert [each.wait(60) for each in (first, late)] == [0, 0]


@pytest.mark.slow
def test_something_else_at_the_port_is_not_waited_for_forever():
    with socket.create_server(("localhost", 0)) as silent:
        address = f"localhost:{silent.getsockname()[1]}"
        with joining(address, 2, 1, times=(60, 60, 1)) as process:
            errors = process.communicate(timeout=100)[1]
    assert errors == "error: " + did_not_come("process 0 of 2", address, 1)
    assert process.returncode == 1


@pytest.mark.slow
def test_strangers_who_say_nothing_do_not_keep_the_first_process_from_ending():
    address = free_address()
    with joining(address, 2, 0, times=(0.1, 60, 1)) as first:
        assert first.stderr.readline().startswith("waiting for process 1 of 2")
        strangers = []
        while first.poll() is None:
            with contextlib.suppress(OSError):
                host, port = address.split(":")
                strangers.append(socket.create_connection((host, int(port)), timeout=1))
                strangers[-1].sendall(b"GET / HTTP/1.1\n")
            time.sleep(0.05)
        assert first.stderr.read() == "error: " + did_not_come("process 1 of 2", address, 1)
        for stranger in strangers:
            stranger.close()


def test_a_process_that_has_met_itself_is_not_connected(monkeypatch):
    connect = socket.create_connection
    monkeypatch.setattr(
        socket, "create_connection", lambda to, timeout: connect(to, timeout, source_address=to)
    )
    port = int(free_address().partition(":")[2])
    with pytest.raises(ConnectionRefusedError):
        peers._connected(("127.0.0.1", port))


def test_a_reason_that_names_a_file_whose_name_is_no_utf8_is_sent():
    ours, theirs = socket.socketpair()
    with ours, theirs, ours.makefile() as lines:
        peers._Peer(1, "there", ours, lines).send("fail", "\udcff.png is no image")
        assert theirs.recv(100) == b"fail\t\\udcff.png is no image\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "index", "message"),
    [
        (4, 2, "error: the first process is one of 3, and process 2 one of 4; expected one"),
        (3, 1, "error: there are two processes 1, on .*; expected another --process-id for each"),
    ],
)
def test_processes_with_flags_that_do_not_fit_are_rejected(count, index, message):
    address = free_address()
    second = joining(address, 3, 1)
    assert second.stderr.readline().startswith("waiting for process 0 of 3")
    first = joining(address, 3, 0, times=(1, 60, 300))
    assert second.stderr.readline().startswith("waiting for process 2 of 3"), "it has come"
    with joining(address, count, index) as other:
        assert re.match(message, other.communicate(timeout=100)[1])
    for process in (first, second):
        process.kill()
        process.communicate()


HANGING = (
    "import time\n"
    "from drsformer_jax.training import processes, watchdog\n"
    "processes.watch_steps(1)\n"
    "watchdog.waits_for('the compiler', limited=False)\n"
    "time.sleep(2)\n"
    "watchdog.waits_for('the batch of step 7')\n"
    "time.sleep(100)"
)


@pytest.mark.slow
def test_a_wait_that_takes_too_long_ends_the_process_also_where_nobody_reads_its_errors():
    read, write = os.pipe()
    with subprocess.Popen(
        [sys.executable, "-c", HANGING],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=write,
    ) as process:
        os.close(read)
        os.close(write)
        assert process.wait(60) == 1


def test_a_wait_that_takes_too_long_is_said_and_ends_the_process():
    result = subprocess.run(
        [sys.executable, "-c", HANGING],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    warning, error = result.stderr.splitlines()
    waited = r"the run has waited \d+ s for the batch of step 7"
    assert re.fullmatch(f"warning: {waited}; after 1 s it ends .--step-timeout.", warning)
    assert re.match(f"error: {waited}; expected less than 1 s .*; rerun the command", error)
    assert result.returncode == 1


@pytest.mark.slow
def test_time_in_which_a_process_is_paused_is_no_wait():
    program = (
        "import time\n"
        "from drsformer_jax.training import processes, watchdog\n"
        "watchdog._MOST = 0.3\n"
        "watchdog.waits_for('the batch of step 7')\n"
        "processes.watch_steps(1.5)\n"
        "print(flush=True)\n"
        "for _ in range(5): time.sleep(0.1)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        process.stdout.readline()
        process.send_signal(signal.SIGSTOP)
        time.sleep(2)
        process.send_signal(signal.SIGCONT)
        errors = process.communicate(timeout=60)[1]
    assert process.returncode == 0, errors


def test_first_signal_asks_to_stop_and_a_second_ctrl_c_interrupts(monkeypatch):
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(processes, "ending_signals", lambda: (*processes._SIGNALS, signal.SIGHUP))
    for first in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        with Stop() as stop:
            assert not stop.asked()
            os.kill(os.getpid(), first)
            assert stop.asked()
            if first != signal.SIGINT:
                os.kill(os.getpid(), first)  # A scheduler may repeat it.
                os.kill(os.getpid(), signal.SIGINT)  # The first Ctrl-C.
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_second_ctrl_c_during_garbage_collection_comes_again_after_it():
    def interrupt():
        os.kill(os.getpid(), signal.SIGINT)

    class Collected:
        def __del__(self):
            interrupt()

    def collect_and_wait():
        Collected()
        time.sleep(60)

    with Stop():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            collect_and_wait()
