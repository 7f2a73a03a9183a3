"""Who of a run's processes has come, who has ended, and why: said in one line by all others.

The others hold a connection to the first process, from before JAX connects them to the end of the
run. The system closes it when a process ends in whatever way, and gives it up when a machine is
lost. Messages are lines of fields between tabs:

    here INDEX COUNT HOST   a process has come (its first message)
    say LINE                to be printed
    go                      all have come
    reject REASON           the run does not start for this reason
    fail REASON             a process ends itself for this reason
    ended WHO REASON        a process has ended, and so all end
    over                    a process has ended as it should
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, NoReturn

from drsformer_jax.errors import InputError
from drsformer_jax.training.watchdog import waited_for

_QUIET = 5
"""Seconds until a process says for whom it waits."""
_LONG = 60
"""Seconds until it says what to do about it."""
_LIMIT = 300
"""Seconds until it ends."""
_LOOK = 0.2
"""Seconds between two looks at who has come."""
_HELLO = 5
"""Seconds that somebody who connects may take to say who it is."""
_LONGEST_HELLO = 1000
"""Characters that this may have."""
_SETTLING = 3
"""Seconds in which the end of another process, which may be why this one fails, becomes known."""
_KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4}
"""A machine that was lost is missed after 30 seconds, on systems that have these options."""


@dataclass
class _Peer:
    """A process at the other end of a connection."""

    index: int
    host: str
    connection: socket.socket
    lines: IO[str]
    sending: threading.Lock = field(default_factory=threading.Lock)

    def send(self, *fields: object) -> None:
        """Sends a message; one to a process that has ended is lost, which does not matter."""
        cleaned = (" ".join(str(each).split()) for each in fields)
        with contextlib.suppress(OSError), self.sending:
            # A file's name in a reason may be no UTF-8.
            self.connection.sendall("\t".join(cleaned).encode(errors="backslashreplace") + b"\n")


class Peers:
    """The processes of a run, as one of them knows them.

    Args:
        address: host and port of the first process.
        count: the number of processes.
        index: the number of this process, from 0.

    Attributes:
        me: this process, as lines name it.
    """

    def __init__(self, address: str, count: int, index: int) -> None:
        self._address = address
        self._count = count
        self._index = index
        self.me = f"process {index} of {count}"
        self._known: dict[int, _Peer] = {}
        self._relay: subprocess.Popen[bytes] | None = None
        self._go = threading.Event()
        self._ending = threading.Lock()

    def meet(self) -> str | None:
        """Waits for the other processes.

        It says for whom after 5 seconds, what to do about it after 60, and ends the process with
        one line after 300.

        Returns:
            In the first process, the address where JAX's service is to listen; else None.

        Raises:
            InputError: if the address is wrong.
            OSError: if the port is taken.
        """
        host, _, port = self._address.rpartition(":")
        if not host or not port.isdigit():
            raise InputError(f"coordinator-address is {self._address!r}; expected HOST:PORT")
        waiting = _Waiting(self._count, self._address)
        if self._index:
            self._come((host.strip("[]"), int(port)), waiting)
            return None
        with _listening(int(port)) as listener:
            self._gather(listener, waiting)
            service = self._start_relay(listener)
        self._send_all("go")
        return service

    def fail(self, reason: str) -> None:
        """Tells the others why this process is about to end."""
        if self._index:
            self._send_all("fail", reason)
        else:
            self._send_all("ended", self._name(0, socket.gethostname()), reason)

    def over(self) -> None:
        """Tells the others that this process ends as it should."""
        self._send_all("over")

    def settle(self) -> None:
        """Waits for the news that another process has ended, which end this one with their line.

        What fails in this one is often only a computation that the other one has left.
        """
        time.sleep(_SETTLING)

    def _gather(self, listener: socket.socket, waiting: _Waiting) -> None:
        """In the first process: takes the connections of all others."""
        listener.settimeout(_LOOK)
        while missing := sorted({*range(1, self._count)} - {*self._known}):
            for line in waiting.lines(missing):
                self._send_all("say", line)
                print(line, file=sys.stderr, flush=True)
            if reason := waiting.reason_to_end(missing):
                self._send_all("reject", reason)
                _end(reason, self._ending)
            with contextlib.suppress(TimeoutError):
                self._admit(listener.accept()[0])

    def _admit(self, connection: socket.socket) -> None:
        """Takes a connection if it is that of a process of this run."""
        connection.settimeout(_HELLO)
        lines = connection.makefile(encoding="utf-8", errors="replace")
        try:
            kind, index, count, host = lines.readline(_LONGEST_HELLO).split()
            peer = _Peer(int(index), host, connection, lines)
            if kind != "here":
                raise ValueError
        except (OSError, ValueError):  # Somebody else.
            connection.close()
            return
        if count != str(self._count) or not 0 < peer.index < self._count:
            found = f"the first process is one of {self._count}, and process {index} one of {count}"
            peer.send("reject", f"{found}; expected one --num-processes, and numbers below it")
        elif other := self._known.get(peer.index):
            found = f"there are two processes {index}, on {other.host} and {host}"
            peer.send("reject", f"{found}; expected another --process-id for each")
        else:
            self._known[peer.index] = peer
            self._hear(peer)

    def _come(self, address: tuple[str, int], waiting: _Waiting) -> None:
        """In another process: connects to the first one and waits until all have come."""
        while not self._go.wait(_LOOK):
            if not self._known:
                with contextlib.suppress(OSError):
                    connection = _connected(address)
                    lines = connection.makefile(encoding="utf-8", errors="replace")
                    self._known[0] = _Peer(0, address[0], connection, lines)
                    self._send_all("here", self._index, self._count, socket.gethostname())
                    self._hear(self._known[0])
                    # From now on the first one knows who is missing, and gives up before.
                    waiting.begin = time.monotonic() + _SETTLING
            for line in [] if self._known else waiting.lines([0]):
                print(line, file=sys.stderr, flush=True)
            if reason := waiting.reason_to_end([0]):
                _end(reason, self._ending)

    def _start_relay(self, listener: socket.socket) -> str:
        """Starts the program of `relay.py`; returns the address where JAX's service is to be."""
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = str(free.getsockname()[1])
        program = Path(__file__).with_name("relay.py")
        self._relay = subprocess.Popen(
            [sys.executable, "-I", program, str(listener.fileno()), port],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[listener.fileno()],
        )
        return f"localhost:{port}"

    def _hear(self, peer: _Peer) -> None:
        """Starts a thread that listens to a process."""
        peer.connection.settimeout(None)
        peer.connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEPALIVE.items():
            if hasattr(socket, name):
                peer.connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        threading.Thread(target=self._listen, args=[peer], daemon=True).start()

    def _listen(self, peer: _Peer) -> None:
        """Does what a process says, until it ends; that of a process that ends early ends all."""
        who, reason = self._name(peer.index, peer.host), "it was killed, or cannot be reached"
        with contextlib.suppress(OSError):  # Of a machine that was lost.
            for line in peer.lines:
                kind, *fields = line.rstrip("\n").split("\t")
                if kind == "say":
                    print(fields[0], file=sys.stderr, flush=True)
                elif kind == "go":
                    self._go.set()
                elif kind == "reject":
                    _end(fields[0], self._ending)
                elif kind == "over":
                    return
                elif kind == "fail":
                    (reason,) = fields
                    break
                elif kind == "ended":
                    who, reason = fields
                    break
        if not self._index:
            self._send_all("ended", who, reason)
        _end(
            f"{who} has ended while {self.me} waited for {waited_for()}: {reason}; "
            "rerun the command in all processes to resume",
            self._ending,
        )

    def _send_all(self, *fields: object) -> None:
        for peer in list(self._known.values()):
            peer.send(*fields)

    def _name(self, index: int, host: str) -> str:
        return f"process {index} of {self._count} (on {host})"


@dataclass
class _Waiting:
    """What a process says, in time, of others that do not come."""

    count: int
    address: str
    begin: float = field(default_factory=time.monotonic)
    said: float = 0

    def lines(self, missing: list[int]) -> list[str]:
        """Lines that are to be said now of the processes with these numbers."""
        passed, before = time.monotonic() - self.begin, self.said
        self.said = passed
        if before < _QUIET <= passed:
            return [f"waiting for {self._names(missing)} to come to {self.address}; {self._alone}"]
        if before < _LONG <= passed:
            return [f"warning: {self._missing(missing, _LONG)}; {self._alone}"]
        return []

    def reason_to_end(self, missing: list[int]) -> str:
        """Why the process ends now; empty before its time is up."""
        if time.monotonic() - self.begin < _LIMIT:
            return ""
        return f"{self._missing(missing, _LIMIT)}; {self._alone}"

    _alone = "--num-processes 1 trains with one process alone"

    def _names(self, missing: list[int]) -> str:
        numbers = ", ".join(map(str, missing))
        return f"process{'es' if missing[1:] else ''} {numbers} of {self.count}"

    def _missing(self, missing: list[int], seconds: float) -> str:
        return (
            f"{self._names(missing)} did not come to {self.address} in {seconds:g} s; expected "
            "the command to run there too, with this address and port open to it"
        )


def _listening(port: int) -> socket.socket:
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", port))


def _connected(address: tuple[str, int]) -> socket.socket:
    """Connects to the first process; raises OSError if it does not listen."""
    connection = socket.create_connection(address, timeout=1)
    if connection.getsockname() == connection.getpeername():
        # Where nobody listens the system may give this end the same port: it has met itself.
        connection.close()
        raise ConnectionRefusedError
    return connection


def _end(reason: str, once: threading.Lock) -> NoReturn:
    """Ends this process, whose main thread may be in a computation that cannot be interrupted."""
    once.acquire()  # Others that want to end it too wait for the end.
    with contextlib.suppress(ValueError, OSError):  # Where nobody reads them any more.
        print(f"error: {reason}", file=sys.stderr, flush=True)
        sys.stdout.flush()
    os._exit(1)
