"""Real servers on loopback."""

from __future__ import annotations

import contextlib
import getpass
import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from provision.remote import make_key
from provision.spec import PlatformSpec, make_spec
from tests.debian import do_without, lacking


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
        do_without(reason)
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


@pytest.fixture
def way(user_home: Path, sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PlatformSpec:
    """The user's own ssh leads to the host: key and known_hosts are the user's."""
    ssh = user_home / ".ssh"
    ssh.mkdir(mode=0o700)
    sshd.admit(make_key(ssh / "id_ed25519", "user"))
    (ssh / "known_hosts").write_text(sshd.known_hosts_line())
    programs = tmp_path / "bin"
    programs.mkdir()
    # OpenSSH finds its files by the user database: point it to this test's home
    for name in ("ssh", "ssh-keygen"):
        options = {
            "ssh": f"-o IdentityFile={ssh}/id_ed25519 -o UserKnownHostsFile={ssh}/known_hosts",
            "ssh-keygen": "",
        }[name]
        real = shutil.which(name)
        script = f'#!/bin/sh\ncase " $* " in *" -F "*) exec {real} "$@" ;; esac\nexec {real} {options} "$@"\n'
        if name == "ssh-keygen":
            script = f'#!/bin/sh\n[ "$1" = -F ] && exec {real} "$@" -f {ssh}/known_hosts\nexec {real} "$@"\n'
        (programs / name).write_text(script)
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/sbin:/usr/bin:/sbin:/bin")
    return make_spec({"name": "lab", "cloud": f"ssh:{sshd.user}@127.0.0.1:{sshd.port}"})


needs_sudo = pytest.mark.skipif(shutil.which("sudo") is None, reason="needs sudo on this computer")
