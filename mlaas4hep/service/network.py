"""The network of a job's sandbox: a loopback of its own, where the data endpoints answer that the job may reach.

Each host of an endpoint has an address of its own there (127.0.1.1, ...), which a hosts file gives by the host's name,
so that clients connect as they would outside. What they send there is carried to the endpoints by a `relay`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from ipaddress import IPv4Address
from pathlib import Path
from types import TracebackType

from mlaas4hep.service.listeners import listen_inside
from mlaas4hep.service.sandbox import HOST_NAME, Gate

_FIRST_ADDRESS = IPv4Address("127.0.1.1")
_END_SECONDS = 10.0
_REASON_BYTES = 2048
_SHOWN = 10


class JobNetwork:
    """The network of one job, for the process that supervises it; without endpoints there is nothing to do.

    Args:
        endpoints: HOST:PORT each.
        folder: where the sandbox's hosts file is written.
    """

    def __init__(self, endpoints: Sequence[str], folder: Path) -> None:
        self._endpoints = endpoints
        self._hosts = folder / "hosts"
        self._process: subprocess.Popen[bytes] | None = None
        self._opened: list[int] = []
        self._descriptors: tuple[int, int] = (-1, -1)
        self.gate: Gate | None = None

    def __enter__(self) -> JobNetwork:
        if self._endpoints:
            self._hosts.write_text(hosts_file(self._endpoints, HOST_NAME), encoding="ascii")
            self._hosts.chmod(0o644)
            told, tell = os.pipe2(os.O_CLOEXEC)
            wait, go = os.pipe2(os.O_CLOEXEC)
            self._opened = [told, tell, wait, go]
            self._descriptors = (told, go)
            self.gate = Gate(tell, wait, self._hosts)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()
        for descriptor in self._opened:
            os.close(descriptor)

    def begin(self, log: int, account: int | None) -> None:
        """Carry from now on, and let the sandbox's command run.

        Args:
            log: file descriptor of what the user sees of failures.
            account: whom the process becomes when root calls this.

        Raises MlaasError when the sandbox cannot be given its endpoints, OSError.
        """
        if self.gate is None:
            return
        told, go = self._descriptors
        # only bubblewrap has these now, so that their end tells of its end
        for descriptor in (self.gate.tell, self.gate.wait):
            os.close(descriptor)
            self._opened.remove(descriptor)
        with os.fdopen(os.dup(told), "rb") as stream:
            text = stream.read()
        if not text:
            return  # it could not be made; its exit status says so
        facts = json.loads(text)
        hosts = addresses(self._endpoints)
        split = [endpoint.rpartition(":") for endpoint in self._endpoints]
        places = [(hosts[host], int(port)) for host, _, port in split]
        listeners = listen_inside(int(facts["child-pid"]), int(facts["net-namespace"]), places)
        numbers = [listener.fileno() for listener in listeners]
        words = [sys.executable, "-I", "-m", "mlaas4hep.service.relay", str(account or 0)]
        for number, endpoint in zip(numbers, self._endpoints, strict=True):
            words += [str(number), endpoint]
        try:
            self._process = subprocess.Popen(
                words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, pass_fds=numbers, cwd="/"
            )
        finally:
            for listener in listeners:
                listener.close()
        os.write(go, b"\0")

    def explained(self, reason: str) -> str:
        """Why a job has failed, with what its network has to do with it; it has ended."""
        if failures := self._end():
            return f"{reason}\n{failures}"
        if self._endpoints and "://" in reason:
            shown = ", ".join(self._endpoints[:_SHOWN]) + (", ..." if len(self._endpoints) > _SHOWN else "")
            return f"{reason}\nJobs reach {shown} only, also where a server of these sends them on to another one."
        return reason

    def _end(self) -> str:
        """Break all connections; returns which endpoints could not be reached at last, in a sentence each."""
        process, self._process = self._process, None
        if process is None:
            return ""
        with process:
            try:
                told, _ = process.communicate(timeout=_END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                return ""
        return told[:_REASON_BYTES].decode(errors="replace").strip()


def addresses(endpoints: Sequence[str]) -> dict[str, str]:
    """The loopback address of each host; `localhost` and what is an address of the loopback keep theirs."""
    hosts = list(dict.fromkeys(endpoint.rpartition(":")[0] for endpoint in endpoints))
    known = {host: host for host in hosts if host.replace(".", "").isdigit()} | {"localhost": "127.0.0.1"}
    free = (str(_FIRST_ADDRESS + number) for number in range(2 * len(hosts)))
    fresh = (address for address in free if address not in known)
    return {host: known.get(host) or next(fresh) for host in hosts}


def hosts_file(endpoints: Sequence[str], own: str) -> str:
    """The text of the sandbox's /etc/hosts; `own` is the sandbox's own name."""
    named = [(address, host) for host, address in addresses(endpoints).items() if host not in ("localhost", address)]
    return "".join(f"{address} {host}\n" for address, host in [("127.0.0.1", f"localhost {own}"), *named])
