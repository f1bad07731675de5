"""The relay between a sandbox and its endpoints: bytes as they are, both ways, within bounds."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

SECONDS = 60.0
MEBIBYTE = 2**20


class Relayed:
    """A relay that listens on this computer's loopback, in place of a sandbox's."""

    def __init__(self, endpoint: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self._address = listener.getsockname()
            words = [sys.executable, "-I", "-m", "mlaas4hep.service.relay", "0", str(listener.fileno()), endpoint]
            self.process = subprocess.Popen(
                words,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=[listener.fileno()],
                text=True,
            )

    def connect(self) -> socket.socket:
        return socket.create_connection(self._address, SECONDS)

    def end(self) -> tuple[str, str]:
        """End it; gives what it has printed."""
        return self.process.communicate(timeout=SECONDS)

    @property
    def memory(self) -> int:
        """Bytes that it has resident."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture
def relay() -> Iterator[Callable[..., Relayed]]:
    with ExitStack() as undo:

        def start(port: int, host: str = "127.0.0.1") -> Relayed:
            relayed = Relayed(f"{host}:{port}")
            undo.callback(relayed.process.kill)
            undo.enter_context(relayed.process)
            return relayed

        yield start


@pytest.fixture
def server() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0), backlog=256) as listener:
        listener.settimeout(SECONDS)
        yield listener


def port_of(server: socket.socket) -> int:
    return int(server.getsockname()[1])


def received(connection: socket.socket) -> bytes:
    """All until the other side's end."""
    return b"".join(iter(lambda: connection.recv(MEBIBYTE), b""))


def test_each_side_may_end_before_the_other(relay: Callable[..., Relayed], server: socket.socket) -> None:
    relayed = relay(port_of(server))
    question, answer = os.urandom(5 * MEBIBYTE), os.urandom(7 * MEBIBYTE)
    with relayed.connect() as inside, server.accept()[0] as outside, ThreadPoolExecutor(2) as pool:
        heard = pool.submit(received, outside)
        inside.sendall(question)
        inside.shutdown(socket.SHUT_WR)
        assert heard.result() == question
        heard = pool.submit(received, inside)
        outside.sendall(answer)
        outside.shutdown(socket.SHUT_WR)
        assert heard.result() == answer


def test_a_side_that_breaks_off_is_not_taken_for_one_that_has_ended(
    relay: Callable[..., Relayed], server: socket.socket
) -> None:
    relayed = relay(port_of(server))
    with relayed.connect() as inside, server.accept()[0] as outside:
        outside.sendall(b"half")
        assert inside.recv(4) == b"half"
        outside.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        outside.close()
        with pytest.raises(ConnectionResetError):
            inside.recv(1)


def test_more_connections_than_are_carried_at_once_wait_for_their_turn(
    relay: Callable[..., Relayed], server: socket.socket
) -> None:
    relayed = relay(port_of(server))

    def echo() -> None:
        with server.accept()[0] as outside:
            outside.sendall(received(outside))

    def ask(number: int) -> bool:
        with relayed.connect() as inside:
            inside.sendall(str(number).encode())
            inside.shutdown(socket.SHUT_WR)
            return received(inside) == str(number).encode()

    with ExitStack() as held, ThreadPoolExecutor(50) as askers, ThreadPoolExecutor(50) as servers:
        idle = [held.enter_context(relayed.connect()) for _ in range(40)]
        served = [held.enter_context(server.accept()[0]) for _ in idle]
        answers = [servers.submit(echo) for _ in range(100)]
        assert all(askers.map(ask, range(100)))
        for answer in answers:
            answer.result()
        assert len(served) == 40


def test_what_nobody_takes_is_not_kept(relay: Callable[..., Relayed], server: socket.socket) -> None:
    relayed = relay(port_of(server))
    with relayed.connect() as inside, server.accept()[0]:
        before = relayed.memory
        inside.settimeout(2)
        with pytest.raises(TimeoutError):
            inside.sendall(bytes(1024 * MEBIBYTE))
        assert relayed.memory - before < 16 * MEBIBYTE


def test_a_fast_connection_lets_the_others_have_their_turn(
    relay: Callable[..., Relayed], server: socket.socket
) -> None:
    relayed = relay(port_of(server))
    stop = threading.Event()
    with relayed.connect() as fast, server.accept()[0] as sink, ThreadPoolExecutor(2) as pool:

        def pour() -> None:
            while not stop.is_set():
                fast.sendall(bytes(MEBIBYTE))
            fast.shutdown(socket.SHUT_WR)

        poured, drained = pool.submit(pour), pool.submit(received_size, sink)
        try:
            with relayed.connect() as inside, server.accept()[0] as outside:
                inside.sendall(b"x")
                assert outside.recv(1) == b"x"
        finally:
            stop.set()
        poured.result()
        assert drained.result() > 0


def received_size(connection: socket.socket) -> int:
    return sum(iter(lambda: len(connection.recv(MEBIBYTE)), 0))


def test_an_endpoint_that_cannot_be_reached_is_told_until_it_can(relay: Callable[..., Relayed]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = port_of(server)
    relayed = relay(port, "localhost")
    for _ in range(3):
        with relayed.connect() as inside, pytest.raises(ConnectionResetError):
            inside.recv(1)
    with (
        socket.create_server(("127.0.0.1", port)) as server,
        relayed.connect() as inside,
        server.accept()[0] as outside,
    ):
        # what comes through shows that the relay, too, knows of the connection
        outside.sendall(b"x")
        assert inside.recv(1) == b"x"
        told, logged = relayed.end()
    assert told.strip() == ""
    assert logged == f"mlaas4hep: The data endpoint localhost:{port} could not be reached: Connection refused.\n"


def test_a_name_that_does_not_exist_is_told(relay: Callable[..., Relayed]) -> None:
    relayed = relay(1094, "nowhere.invalid")
    with relayed.connect() as inside, pytest.raises(ConnectionResetError):
        inside.recv(1)
    told, _ = relayed.end()
    assert told.startswith("The data endpoint nowhere.invalid:1094 could not be reached: ")


def test_it_ends_with_whoever_started_it(relay: Callable[..., Relayed], server: socket.socket) -> None:
    relayed = relay(port_of(server))
    with relayed.connect() as inside, server.accept()[0] as outside:
        assert relayed.process.stdin
        relayed.process.stdin.close()
        assert relayed.process.wait(SECONDS) == 0
        assert inside.recv(1) == outside.recv(1) == b""
