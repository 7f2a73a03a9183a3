"""The program that keeps JAX's connections to the first process: a real one."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys

import pytest

from drsformer_jax.training import relay


@pytest.fixture
def relayed():
    """A connection that the program relays, or does not, and the listener of the service."""
    with contextlib.ExitStack() as stack:
        service = stack.enter_context(socket.create_server(("localhost", 0)))
        listener = stack.enter_context(socket.create_server(("localhost", 0)))
        port, descriptor = service.getsockname()[1], listener.fileno()
        process = subprocess.Popen(
            [sys.executable, "-I", relay.__file__, str(descriptor), str(port)],
            stdin=subprocess.PIPE,
            pass_fds=[descriptor],
            stderr=subprocess.DEVNULL,
        )
        client = stack.enter_context(socket.create_connection(listener.getsockname(), timeout=20))
        service.settimeout(20)
        yield client, service
        client.close()
        process.stdin.close()
        assert process.wait(20) == 0, "it ends with the process that started it"


def test_connection_outlives_the_service_also_when_something_is_sent(relayed):
    client, service = relayed
    client.sendall(b"question")
    connection, _ = service.accept()
    with connection:
        assert connection.recv(100) == b"question"
        connection.sendall(b"answer")
        assert client.recv(100) == b"answer"
    client.settimeout(0.2)
    for _ in range(5):
        client.sendall(b"alive")
        with pytest.raises(TimeoutError):
            client.recv(100)


def test_process_that_comes_late_is_rejected(relayed):
    client, _ = relayed
    client.sendall(b"here\t1\t2\tthere\n")
    with client.makefile() as lines:
        assert lines.read() == (
            "reject\tall processes of this run have come already; expected its end, or another "
            "port\n"
        )
