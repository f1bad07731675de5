"""A platform's HTTP service as seen from here: a shared one by its public address, a personal one through SSH."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from provision.record import Record, write_private
from provision.remote import Remote

PORT = 8080
"""Where a platform's service listens, on its loopback only."""
NOTEBOOK = 8888
SERVED = {
    PORT: ("service", "http"),
    8081: ("inference", "http"),
    8082: ("inference by gRPC", "grpc"),
    NOTEBOOK: ("notebook", "http"),
    443: ("web pages", "https"),
}
"""What a platform may serve: port -> what it is, scheme of its URL.

A notebook is the role `jupyter`'s, or one that its user has started.
"""
TOKEN = "/var/lib/mlaas4hep/token"  # noqa: S105  (the file that holds it)
NOTEBOOK_TOKEN = "/etc/mlaas4hep/jupyter-token"  # noqa: S105  (as well)


@contextmanager
def reached(record: Record, remote: Remote) -> Iterator[dict[str, str]]:
    """The environment in which `mlaas4hep client` reaches the platform's service, for as long as this is open.

    The token of a personal platform is kept in a file that only this user can read. For a shared one the user's own
    token counts (see `mlaas4hep client --help`).

    Raises RemoteError when the platform has no service, ConnectionLostError when the tunnel cannot be made.
    """
    if record.spec.domain:
        yield {"MLAAS4HEP_URL": f"https://{record.spec.domain}"}
        return
    with token_file(remote) as token, remote.tunnel(PORT) as port:
        yield {"MLAAS4HEP_URL": f"http://127.0.0.1:{port}", "MLAAS4HEP_TOKEN_FILE": str(token)}


@contextmanager
def token_file(remote: Remote, there: str = TOKEN) -> Iterator[Path]:
    """A file, for this user only and as long as this is open, with the token of the file `there` on the machine.

    By default it is that of a personal platform's service. Raises RemoteError when there is no such file.
    """
    with tempfile.TemporaryDirectory(prefix="provision-") as private:
        token = Path(private) / "token"
        write_private(token, remote.run(["sudo", "cat", there]).encode())
        yield token


def listening(remote: Remote) -> set[int]:
    """The TCP ports at which something on the machine listens, as its kernel tells."""
    ports = set()
    for line in remote.run(["cat", "/proc/net/tcp", "/proc/net/tcp6"], check=False).splitlines():
        words = line.split()
        if len(words) > 3 and words[3] == _LISTENS:
            ports.add(int(words[1].rpartition(":")[2], 16))
    return ports


def await_service(remote: Remote, seconds: float, further: Collection[int] = ()) -> set[int]:
    """The ports at which the machine listens, once those of a platform's service are among them, or after `seconds`.

    `further` ports are waited for as well. It takes some seconds from the start of a service's unit until it listens.
    """
    end = time.monotonic() + seconds
    while not (ports := listening(remote)) >= {*_OF_SERVICE, *further} and time.monotonic() < end:
        time.sleep(1)
    return ports


_OF_SERVICE = {PORT, 8081, 8082}
_LISTENS = "0A"
"""The state of a listening socket in /proc/net/tcp (Linux' include/net/tcp_states.h)."""


def run_client(words: Sequence[str], environment: dict[str, str]) -> int:
    """Run `mlaas4hep client` with these words; returns its exit status."""
    command = [sys.executable, "-m", "mlaas4hep.cli", "client", *words]
    return subprocess.run(command, env={**os.environ, **environment}, check=False).returncode
