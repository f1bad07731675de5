"""Carries bytes between a job's sandbox and the data endpoints that it may reach.

The process is `python -m mlaas4hep.service.relay ACCOUNT [DESCRIPTOR HOST:PORT]...`. Each descriptor is a socket that
listens in the sandbox's network; what connects to it is connected to its endpoint, whose name is resolved outside: the
job has no say in where it gets to. The process ends when its standard input does, and then prints what it could not
reach at last.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

_CONNECTIONS = 64
_BUFFER = 256 * 2**10
_CONNECT_SECONDS = 15.0
_RESET = struct.pack("ii", 1, 0)  # struct linger of socket(7): closing sends a reset


class _Carrier:
    """The connections of one job, at most `_CONNECTIONS` at once; others wait in the kernel's queue."""

    def __init__(self) -> None:
        self._free = asyncio.Semaphore(_CONNECTIONS)
        self._pool = ThreadPoolExecutor(_CONNECTIONS, thread_name_prefix="connect")
        self._carrying: set[asyncio.Task[None]] = set()
        self.failures: dict[str, str] = {}

    async def serve(self, listener: socket.socket, endpoint: str) -> None:
        """Accept connections for ever."""
        loop = asyncio.get_running_loop()
        listener.setblocking(False)
        while True:
            inside, _ = await loop.sock_accept(listener)
            await self._free.acquire()
            task = loop.create_task(self._carry(inside, endpoint))
            self._carrying.add(task)
            task.add_done_callback(self._carried)

    def _carried(self, task: asyncio.Task[None]) -> None:
        self._carrying.discard(task)
        self._free.release()

    async def _carry(self, inside: socket.socket, endpoint: str) -> None:
        host, _, port = endpoint.rpartition(":")
        with inside:
            try:
                outside = await asyncio.get_running_loop().run_in_executor(
                    self._pool, socket.create_connection, (host, int(port)), _CONNECT_SECONDS
                )
            except OSError as error:
                self._note(endpoint, error.strerror or str(error))
                inside.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                return
            self.failures.pop(endpoint, None)
            with outside:
                await _both_ways(inside, outside)

    def _note(self, endpoint: str, reason: str) -> None:
        sentence = f"The data endpoint {endpoint} could not be reached: {reason}."
        if self.failures.get(endpoint) != sentence:
            self.failures[endpoint] = sentence
            print(f"mlaas4hep: {sentence}", file=sys.stderr, flush=True)


async def _both_ways(one: socket.socket, other: socket.socket) -> None:
    """Carry until both sides have said all; a side that breaks off breaks the other one off."""
    try:
        for end in (one, other):
            end.setblocking(False)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        async with asyncio.TaskGroup() as group:
            group.create_task(_pump(one, other))
            group.create_task(_pump(other, one))
    except* OSError:
        for end in (one, other):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)


async def _pump(source: socket.socket, sink: socket.socket) -> None:
    """What comes from one side goes to the other before more is taken; its end is passed on."""
    loop = asyncio.get_running_loop()
    buffer = bytearray(_BUFFER)
    view = memoryview(buffer)
    while size := await loop.sock_recv_into(source, buffer):
        await loop.sock_sendall(sink, view[:size])
        # a fast pair of sockets would never let the others have a turn
        await asyncio.sleep(0)
    with suppress(OSError):
        sink.shutdown(socket.SHUT_WR)


async def _run(listeners: Sequence[tuple[socket.socket, str]]) -> _Carrier:
    carrier, ended = _Carrier(), asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(sys.stdin.fileno(), ended.set)
    serving = [loop.create_task(carrier.serve(listener, endpoint)) for listener, endpoint in listeners]
    waiting = loop.create_task(ended.wait())
    await asyncio.wait([waiting, *serving], return_when=asyncio.FIRST_COMPLETED)
    return carrier


def main(account: str, *words: str) -> None:
    """Carry until standard input ends."""
    if os.geteuid() == 0 and int(account):
        # the codec of names, whose module the account may not be able to read
        "localhost".encode("idna")
        os.setgroups([])
        os.setgid(int(account))
        os.setuid(int(account))
    pairs = zip(words[::2], words[1::2], strict=True)
    carrier = asyncio.run(_run([(socket.socket(fileno=int(number)), endpoint) for number, endpoint in pairs]))
    print("\n".join(carrier.failures.values()), flush=True)
    # a thread that still tries to connect would be waited for
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
