"""Real servers on loopback."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.debian import lacking


@dataclass
class Sshd:
    """A real OpenSSH server for this user alone."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes]
    user: str

    @property
    def host_key(self) -> str:
        """The public host key."""
        return (self.folder / "host_key.pub").read_text().strip()

    def admit(self, public_key: str) -> None:
        """Accept this key from now on."""
        (self.folder / "authorized_keys").write_text(f"{public_key}\n")

    def environment(self, variables: dict[str, str]) -> None:
        """What the user's `~/.ssh/environment` would set, for whoever has this key; written into the key's own line."""
        keys = self.folder / "authorized_keys"
        options = ",".join(f'environment="{name}={value}"' for name, value in variables.items())
        keys.write_text(f"{options} {keys.read_text()}")

    def known_hosts_line(self) -> str:
        """As the user's known_hosts has it after a first connection."""
        return f"[127.0.0.1]:{self.port} {' '.join(self.host_key.split()[:2])}\n"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def sshd(tmp_path: Path) -> Iterator[Sshd]:
    """A real sshd on a free port of loopback, with a host key of its own."""
    if reason := lacking({"sshd": "openssh-server"}):
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)
    program = shutil.which("sshd") or "/usr/sbin/sshd"
    folder = tmp_path / "sshd"
    folder.mkdir(mode=0o700)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / "host_key"], check=True)
    port = free_port()
    (folder / "config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nListenAddress ::1\n"
        f"HostKey {folder}/host_key\nPidFile none\nUsePAM no\nStrictModes no\n"
        f"AuthorizedKeysFile {folder}/authorized_keys\nPermitRootLogin prohibit-password\nPasswordAuthentication no\n"
        "AllowTcpForwarding yes\nPermitUserEnvironment yes\n"
    )
    if Path("/run/sshd").parent.exists():
        with contextlib.suppress(PermissionError):
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    log = (folder / "log").open("wb")
    process = subprocess.Popen([program, "-D", "-e", "-f", str(folder / "config")], stdout=log, stderr=log)
    server = Sshd(folder, port, process, getpass.getuser())
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        assert process.poll() is None, (folder / "log").read_text()
    yield server
    process.terminate()
    process.wait()
    log.close()
