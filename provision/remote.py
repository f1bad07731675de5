"""The machine over OpenSSH: keys, verified host keys, the ssh configuration, commands and file transfer."""

from __future__ import annotations

import contextlib
import os
import pwd
import shlex
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from provision.errors import ProvisionError
from provision.record import Access, Folder, write_private

CONNECT_SECONDS = 5
TUNNEL_SECONDS = 30
LOST_CONNECTION = 255
"""Exit status of ssh itself when the connection fails."""

_HOST_KEY = "/etc/ssh/ssh_host_ed25519_key"
AWAIT_CLOUD_INIT = "! command -v cloud-init >/dev/null || cloud-init status --wait >/dev/null"
"""On its way cloud-init writes host keys and restarts sshd, even after first contact. For sh on the machine."""
MAKE_HOST_KEY = (
    f'test -e {_HOST_KEY}.next || ssh-keygen -q -t ed25519 -N "" -C "" -f {_HOST_KEY}.next; cat {_HOST_KEY}.next.pub'
)
"""A new host key beside the present one; prints its public half. For root's sh on the machine."""
TAKE_HOST_KEY = (
    f"mv {_HOST_KEY}.next {_HOST_KEY} && mv {_HOST_KEY}.next.pub {_HOST_KEY}.pub && systemctl reload ssh.service"
)
"""Brings the new host key into force. For root's sh on the machine."""


class ConnectionLostError(ProvisionError):
    """The machine could not be reached, or the connection broke."""


def make_key(path: Path, comment: str) -> str:
    """Make an Ed25519 key pair at `path` (mode 600) unless it is there; returns the public OpenSSH line."""
    public = path.with_name(f"{path.name}.pub")
    if not public.exists():
        path.unlink(missing_ok=True)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(path)], check=True)
    return public.read_text().strip()


def home_path(path: Path) -> str:
    """`path` as ssh configurations write it: with `~` when it lies in the home folder, quoted when it has spaces.

    OpenSSH takes `~` from the user database and not from `$HOME`, so where the two differ the path is written in full.
    """
    text = str(path)
    home = Path(pwd.getpwuid(os.getuid()).pw_dir)
    if home == Path.home() and path.is_relative_to(home):
        text = f"~/{path.relative_to(home)}"
    return f'"{text}"' if " " in text else text


def host_alias(name: str, uid: str) -> str:
    """The name under which a platform's host key is known: independent of its address."""
    return f"provision-{name}-{uid}"


def write_known_hosts(folder: Folder, uid: str, *keys: str) -> None:
    """Accept exactly these host keys (OpenSSH public lines) for the platform."""
    lines = [f"{host_alias(folder.name, uid)} {' '.join(key.split()[:2])}\n" for key in keys]
    write_private(folder.known_hosts, "".join(lines).encode())


def write_ssh_config(folder: Folder, uid: str, access: Access, gateway: Folder | None = None) -> None:
    """Write a machine's own ssh configuration, with strict checking against its own known_hosts.

    That of a worker leads through the `gateway`, the platform's own machine, whose configuration knows all workers.
    ssh counts the time for the first of the two connections as well, so it has more.
    """
    patience = CONNECT_SECONDS * (3 if gateway else 1)
    identities = access.identities or (home_path(folder.key),)
    # first of all lines: below a Host line it would hold for that host only
    workers = [f"Include {home_path(folder.workers / '*' / 'ssh_config')}"] if folder.workers.is_dir() else []
    lines = [
        *workers,
        f"Host {folder.name}",
        f"  HostName {access.host}",
        f"  Port {access.port}",
        f"  User {access.user}",
        *(f"  IdentityFile {identity}" for identity in identities),
        f"  IdentitiesOnly {'no' if access.identities else 'yes'}",
        f"  HostKeyAlias {host_alias(folder.name, uid)}",
        f"  UserKnownHostsFile {home_path(folder.known_hosts)}",
        "  GlobalKnownHostsFile none",
        "  StrictHostKeyChecking yes",
        "  UpdateHostKeys no",
        f"  ConnectTimeout {patience}",
        "  ServerAliveInterval 15",
        "  ServerAliveCountMax 4",
    ]
    if gateway:
        options = f"-F {home_path(gateway.ssh_config)} -o BatchMode=yes -o ConnectTimeout={patience}"
        lines.append(f"  ProxyCommand ssh {options} -W [%h]:%p {gateway.name}")
    elif access.jump:
        # a ProxyCommand, not ProxyJump: the way to the jump host is the user's own, with the user's own configuration
        lines.append(f"  ProxyCommand ssh -W [%h]:%p ssh://{access.jump}")
    write_private(folder.ssh_config, ("\n".join(lines) + "\n").encode())


def include_in_user_config(folders: Path, wanted: bool, config: Path | None = None) -> None:
    """Have the user's ssh config include all platforms' configurations (`wanted`), or undo exactly that."""
    config = config or Path.home() / ".ssh" / "config"
    line = f"Include {home_path(folders / '*' / 'ssh_config')}\n"
    text = config.read_text(encoding="utf-8") if config.exists() else ""
    if (line in text) == wanted:
        return
    config.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # first of all lines: an Include below a Host line would hold for that host only.
    # The configuration may be a link into a folder of dotfiles: what it points to is replaced
    write_private(config.resolve(), (f"{line}{text}" if wanted else text.replace(line, "")).encode())


class Remote:
    """Commands and files on one machine, over one shared connection for as long as this object is open."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        self._sockets = Path(tempfile.mkdtemp(prefix="provision-"))
        self._options = [
            *("-F", str(folder.ssh_config)),
            *("-o", "BatchMode=yes"),
            *("-o", "ControlMaster=auto", "-o", f"ControlPath={self._sockets}/%C", "-o", "ControlPersist=30"),
        ]

    def close(self) -> None:
        """End the shared connection."""
        self._ssh("-O", "exit", self.folder.name)
        shutil.rmtree(self._sockets, ignore_errors=True)

    def __enter__(self) -> Remote:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ssh(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["ssh", *self._options, *words], capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False
        )

    def command(self, words: Sequence[str]) -> list[str]:
        """The full ssh command line for `words` on the machine, quoted for its shell."""
        return ["ssh", *self._options, self.folder.name, "--", shlex.join(words)]

    def run(self, words: Sequence[str], *, stdin: str | None = None, check: bool = True) -> str:
        """Run a command to its end and return its standard output.

        Raises ConnectionLostError when the machine is not reached, and RemoteError with what the command printed on
        its standard error when it fails and `check` is set.
        """
        done = subprocess.run(
            self.command(words), input=stdin or "", capture_output=True, text=True, errors="replace", check=False
        )
        self._raise_for(done.returncode, done.stderr, words, check)
        return done.stdout

    def stream(self, words: Sequence[str], output: Callable[[str], None]) -> int:
        """Run a command and hand over each line of its output as it comes; returns its exit status."""
        with subprocess.Popen(
            self.command(words),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        ) as process:
            assert process.stdout is not None  # noqa: S101  (asked for above)
            for line in process.stdout:
                output(line.rstrip("\n"))
        return process.returncode

    def send(self, source: Path, target: str) -> None:
        """Copy the folder `source`, links followed, into the folder `target` of the machine (made anew)."""
        words = ["sh", "-c", 'rm -rf -- "$1" && mkdir -p -- "$1" && tar -xzf - -C "$1"', "sh", target]
        with self._tar(source) as archive:
            done = subprocess.run(self.command(words), stdin=archive, capture_output=True, text=True, check=False)
        self._raise_for(done.returncode, done.stderr, words, check=True)

    @contextlib.contextmanager
    def _tar(self, source: Path) -> Iterator[IO[bytes]]:
        command = ["tar", "-C", str(source), "--dereference", "--exclude-vcs", "-czf", "-", "."]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as tar:
            assert tar.stdout is not None and tar.stderr is not None  # noqa: S101  (asked for above)
            yield tar.stdout
            tar.stdout.close()
            complaint = tar.stderr.read().decode(errors="replace").strip()
        if tar.returncode:
            raise ProvisionError(f"The folder {source} could not be packed: {complaint.splitlines()[-1]}.")

    def fetch(self, words: Sequence[str], target: Path) -> None:
        """Unpack the tar.gz of one folder that the command prints as `target`; it appears only when complete."""
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as temporary:
            folder = Path(temporary) / "content"
            folder.mkdir()
            with subprocess.Popen(
                self.command(words), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            ) as ssh:
                tar = subprocess.run(
                    ["tar", "-x", "-z", "--strip-components=1", "--no-same-owner", "-C", str(folder)],
                    stdin=ssh.stdout,
                    capture_output=True,
                    check=False,
                )
                assert ssh.stderr is not None  # noqa: S101  (asked for above)
                complaint = ssh.stderr.read().decode(errors="replace")
            self._raise_for(ssh.returncode, complaint, words, check=True)
            if tar.returncode:
                raise ProvisionError(f"What {self.folder.name} sent could not be unpacked into {target.parent}.")
            folder.rename(target)

    def _raise_for(self, status: int, complaint: str, words: Sequence[str], check: bool) -> None:
        complaint = complaint.strip()
        if status == LOST_CONNECTION:
            reason = complaint.splitlines()[-1].rstrip(".") if complaint else "no reason given"
            raise ConnectionLostError(
                f"{self.folder.name} was not reached by SSH: {reason}.",
                f"`provision doctor {self.folder.name}` looks for the cause.",
            )
        if status and check:
            last = complaint.splitlines()[-1].removeprefix("mlaas4hep: ") if complaint else f"exit status {status}"
            raise RemoteError(last, complaint, status, words)

    def answers(self) -> bool:
        """True when a verified connection can be made now."""
        return self._ssh(self.folder.name, "--", "true").returncode == 0

    def wait(self, seconds: float, still_alive: Callable[[], None] = lambda: None) -> None:
        """Wait until the machine answers; `still_alive` is asked now and then and raises when waiting is in vain.

        Raises ConnectionLostError after `seconds`, with ssh's own words.
        """
        end = time.monotonic() + seconds
        asked = time.monotonic()
        while True:
            done = self._ssh(self.folder.name, "--", "true")
            if done.returncode == 0:
                return
            if "Host key verification failed" in done.stderr or "IDENTIFICATION HAS CHANGED" in done.stderr:
                raise ConnectionLostError(
                    f"{self.folder.name} answers with a host key that is not its own: nothing was sent to it.",
                    f"Does another machine have its address now? `provision show {self.folder.name}` asks its cloud.",
                )
            if time.monotonic() > end:
                reason = (done.stderr.strip().splitlines() or ["no answer"])[-1].rstrip(".")
                raise ConnectionLostError(f"SSH on {self.folder.name} did not come up in {seconds:.0f} s: {reason}.")
            if time.monotonic() - asked > CONNECT_SECONDS:
                still_alive()
                asked = time.monotonic()
            time.sleep(0.25)

    @contextlib.contextmanager
    def tunnel(self, port: int) -> Iterator[int]:
        """A port of this computer's loopback that leads to a port of the machine's; raises as `tunnels` does."""
        with self.tunnels([port]) as tunnels:
            yield tunnels.here[port]

    @contextlib.contextmanager
    def tunnels(self, ports: Sequence[int]) -> Iterator[Tunnels]:
        """Free ports of this computer's loopback that lead to ports of the machine's, over a connection of their own.

        Raises ConnectionLostError when the machine is not reached within TUNNEL_SECONDS.
        """
        here = dict(zip(ports, _free_ports(len(ports)), strict=True))
        options = ["-F", str(self.folder.ssh_config), "-o", "BatchMode=yes", "-o", "ExitOnForwardFailure=yes"]
        # a machine that went without a word is missed after a quarter of a minute
        options += ["-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=3"]
        for there, mine in here.items():
            options += ["-L", f"127.0.0.1:{mine}:127.0.0.1:{there}"]
        words = ["ssh", *options, "-N", self.folder.name]
        end = time.monotonic() + TUNNEL_SECONDS
        with subprocess.Popen(words, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as ssh:
            tunnels = Tunnels(self.folder.name, here, ssh)
            try:
                while not all(_listens(port) for port in here.values()):
                    if ssh.poll() is not None:
                        self._raise_for(LOST_CONNECTION, tunnels.complaint(), words, check=True)
                    if time.monotonic() > end:
                        self._raise_for(LOST_CONNECTION, f"no answer in {TUNNEL_SECONDS} s", words, check=True)
                    time.sleep(0.05)
                yield tunnels
            finally:
                ssh.terminate()

    def interactive(self, words: Sequence[str]) -> int:
        """Hand the terminal over to ssh; returns its exit status."""
        command = [
            "ssh",
            "-F",
            str(self.folder.ssh_config),
            self.folder.name,
            *(["--", shlex.join(words)] if words else []),
        ]
        return subprocess.run(command, check=False).returncode


@dataclass(frozen=True)
class Tunnels:
    """Open tunnels to one machine; `here` has the port of this computer for each port of the machine's."""

    name: str
    here: dict[int, int]
    process: subprocess.Popen[str]

    def complaint(self) -> str:
        """What ssh said on its standard error, once it has ended."""
        return self.process.stderr.read() if self.process.stderr else ""

    def wait(self) -> None:
        """Wait for as long as the connection lasts; raises ConnectionLostError when it ends."""
        self.process.wait()
        reason = (self.complaint().strip().splitlines() or ["no reason given"])[-1].rstrip(".")
        raise ConnectionLostError(
            f"The connection to {self.name} has ended: {reason}.",
            f"`provision show {self.name}` asks its cloud whether the machine still runs.",
        )


def has_route(host: str) -> bool:
    """True when this computer has a route to the address (IPv4 or IPv6); nothing is sent."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((host, 22))
        except OSError:
            return False
        return True


def _free_ports(count: int) -> list[int]:
    """Ports of this computer's loopback that nothing listens at; all are held until the last one is found."""
    with contextlib.ExitStack() as held:
        probes = [held.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


class RemoteError(ProvisionError):
    """A command on the machine failed; the message is the last line of its standard error."""

    def __init__(self, message: str, complaint: str, status: int, words: Sequence[str]) -> None:
        super().__init__(message, details=complaint if "\n" in complaint else "")
        self.status = status
        self.words = list(words)
