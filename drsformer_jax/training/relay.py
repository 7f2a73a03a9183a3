"""Keeps JAX's connections to the first process of a run open for a while when that one is killed.

JAX aborts a process with a stack trace in the moment in which its connection to the first one
breaks, and has no public way to say something else. So the first process starts this program, which
the others connect to, and which outlives it: they have the time to say which process is missing.
It is a process of its own, since JAX may wait for an answer while it holds Python's lock. It needs
the standard library alone, so that it starts at once.

    python relay.py LISTENER PORT

LISTENER is the descriptor of a socket that listens, PORT that of JAX's service on this machine.
It ends when its standard input does, that is with the process that started it.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import sys

_HELD = 30
"""Seconds that a connection is kept after the service has closed it, or has ended."""
_LATE = b"reject\tall processes of this run have come already; expected its end, or another port\n"
"""Answers `peers.py` in a process that was started twice, or comes while a run is ending."""


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(2**16):
        with contextlib.suppress(OSError):  # What is sent to a service that has ended is lost.
            writer.write(data)
            await writer.drain()


async def _forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int) -> None:
    """Connects a process to the service, until the process closes the connection."""
    begin = await reader.read(2**16)
    if begin.startswith(b"here\t"):
        writer.write(_LATE)
        writer.close()
        return
    try:
        from_service, to_service = await asyncio.open_connection("localhost", port)
    except OSError:  # The service does not listen yet; JAX tries again.
        writer.close()
        return
    to_service.write(begin)
    asking = asyncio.ensure_future(_copy(reader, to_service))
    answering = asyncio.ensure_future(_copy(from_service, writer))
    await asyncio.wait([asking, answering], return_when=asyncio.FIRST_COMPLETED)
    await asyncio.wait([asking], timeout=_HELD)
    for task in (asking, answering):
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    to_service.close()
    writer.close()


async def _serve(listener: socket.socket, port: int) -> None:
    connections: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(_forward(reader, writer, port))
        connections.add(task)
        task.add_done_callback(connections.discard)

    server = await asyncio.start_server(accept, sock=listener)
    await asyncio.to_thread(sys.stdin.read)
    server.close()  # At once, so that the run can be started again.
    if connections:
        await asyncio.wait(connections, timeout=_HELD)


if __name__ == "__main__":
    for _number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # As a terminal sends to all.
        signal.signal(_number, signal.SIG_IGN)
    asyncio.run(_serve(socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2])))
