"""This computer, as the maker of its machines sees it: its release, its resources, its commands and its processes."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from provision.errors import ProvisionError

GIGABYTE = 2**30
# commands and machines get an environment of their own: what the caller has set must not leak into them
ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}
# a command with this prefix does not survive the process that started it, so that nothing works on after a kill
TIED = ("setpriv", "--pdeathsig", "KILL")

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
_OLDEST = {"debian": 12.0, "ubuntu": 24.04}  # the first releases with Python 3.11
_PACKAGES = {
    "systemd-nspawn": "systemd-container",
    "mmdebstrap": "mmdebstrap",
    "zstd": "zstd",
    "ip": "iproute2",
    "iptables": "iptables",
    "setpriv": "util-linux",
}
_CAPABILITIES = {"CAP_NET_ADMIN": 12, "CAP_SYS_ADMIN": 21}  # bits of linux/capability.h


@dataclass(frozen=True)
class Release:
    """An operating system's release: `debian`, `12`, `bookworm`, `amd64`."""

    system: str
    version: str
    codename: str
    architecture: str

    def __str__(self) -> str:
        return f"{self.system}-{self.version}"


def release() -> Release:
    """This computer's release; raises ProvisionError when machines cannot be made of it."""
    try:
        facts = platform.freedesktop_os_release()
    except OSError:
        facts = {}
    system, version = facts.get("ID", ""), facts.get("VERSION_ID", "")
    architecture = _ARCHITECTURES.get(platform.machine(), "")
    supported = system in _OLDEST and re.fullmatch(r"\d+(\.\d+)?", version) and float(version) >= _OLDEST[system]
    if not supported or not architecture:
        raise ProvisionError(
            f"This computer runs {facts.get('PRETTY_NAME', 'an unknown system')} on {platform.machine()};"
            " a machine on it needs Debian 12 or Ubuntu 24.04, or a later one, on x86_64 or aarch64.",
            "Use an OpenStack cloud or `--cloud ssh:USER@HOST` instead.",
        )
    return Release(system, version, facts.get("VERSION_CODENAME", ""), architecture)


def require_maker() -> None:
    """Raise ProvisionError unless this process may make machines and the programs for that are there."""
    if platform.system() != "Linux":
        raise ProvisionError(
            "Machines of this computer need Linux.", "Use an OpenStack cloud or `--cloud ssh:USER@HOST`."
        )
    if os.geteuid():
        # sudo's own path has no virtual environments
        raise ProvisionError(
            "A machine of this computer needs root.",
            f"Run the command with sudo: sudo {shlex.join([str(Path(sys.argv[0]).absolute()), *sys.argv[1:]])}",
        )
    effective = int(re.findall(r"^CapEff:\s*(\w+)", Path("/proc/self/status").read_text(), re.MULTILINE)[0], 16)
    lacking = [name for name, bit in _CAPABILITIES.items() if not effective >> bit & 1]
    if lacking:
        raise ProvisionError(
            f"Root has no {' and no '.join(lacking)} here, so that it cannot make machines.",
            "Is this an unprivileged container? Run the command on its host.",
        )
    missing = {package for program, package in _PACKAGES.items() if not shutil.which(program, path=ENVIRONMENT["PATH"])}
    if missing:
        raise ProvisionError(
            "Programs that make machines of this computer are missing.",
            f"Install them: apt-get install -y --no-install-recommends {' '.join(sorted(missing))}",
        )


def cpus() -> int:
    """The number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0))


def memory() -> float:
    """This computer's memory, in gigabytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIGABYTE


def free_disk(path: Path) -> float:
    """Free space, in gigabytes, of the file system that would hold `path`."""
    return shutil.disk_usage(existing(path)).free / GIGABYTE


def existing(path: Path) -> Path:
    """`path`, or the nearest of its parents that exists."""
    while not path.exists():
        path = path.parent
    return path


def run(*words: str | Path, log: Path | None = None) -> str:
    """Run one command to its end and return its output.

    With `log`, the output goes there instead. Raises ProvisionError with the end of the output when it fails.
    """
    command = [str(word) for word in words]
    with contextlib.ExitStack() as stack:
        out = stack.enter_context(log.open("ab")) if log else subprocess.PIPE
        done = subprocess.run(
            command, stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=_environment(), check=False
        )
    if done.returncode:
        raise ProvisionError(
            f"`{shlex.join(command)[:160]}` failed with status {done.returncode}.",
            f"Its log is {log}." if log else "",
            end(log) if log else done.stdout.decode(errors="replace").strip()[-2000:],
        )
    return done.stdout.decode(errors="replace") if done.stdout else ""


def _environment() -> dict[str, str]:
    """The environment of commands: the caller's proxies are this computer's way out, nothing else is taken over."""
    return ENVIRONMENT | {name: value for name, value in os.environ.items() if name.lower().endswith("_proxy")}


def end(log: Path, lines: int = 20) -> str:
    """The last lines of a log, at most 16 kB; nothing when there is no log."""
    try:
        with log.open("rb") as handle:
            handle.seek(max(0, handle.seek(0, os.SEEK_END) - 16384))
            text = handle.read().decode(errors="replace").replace("\r", "")
    except FileNotFoundError:
        return ""
    return "\n".join(text.splitlines()[-lines:])


def boot_id() -> str:
    """The kernel's name for the time since this computer was started."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


@dataclass(frozen=True)
class Process:
    """A living process; `start` (in clock ticks after boot) tells it from a later one of the same number."""

    pid: int
    parent: int
    start: int
    words: tuple[str, ...]

    @property
    def started_at(self) -> datetime:
        """When it was started, to the second."""
        facts = dict(line.partition(" ")[::2] for line in Path("/proc/stat").read_text().splitlines())
        booted = int(facts["btime"])
        return datetime.fromtimestamp(booted + self.start // os.sysconf("SC_CLK_TCK"), UTC)

    @classmethod
    def read(cls, pid: int) -> Process | None:
        """The process of that number, or None when there is none or it is dead (a zombie)."""
        try:
            fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
            words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
        except (FileNotFoundError, ProcessLookupError):
            return None
        return None if fields[0] in "ZX" else cls(pid, int(fields[1]), int(fields[19]), tuple(words))

    def send(self, number: signal.Signals) -> None:
        """Send a signal to exactly this process; one that has ended is fine."""
        with contextlib.suppress(ProcessLookupError):
            descriptor = os.pidfd_open(self.pid)
            try:
                if (found := Process.read(self.pid)) and found.start == self.start:
                    signal.pidfd_send_signal(descriptor, number)
            finally:
                os.close(descriptor)


def processes() -> Iterator[Process]:
    """All processes of this computer."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (process := Process.read(int(entry.name))):
            yield process


def ended(those: Iterable[Process], seconds: float) -> bool:
    """Wait until the processes have ended; False when one is still there after `seconds`."""
    deadline = time.monotonic() + seconds
    for process in those:
        try:
            descriptor = os.pidfd_open(process.pid)
        except ProcessLookupError:
            continue
        try:
            while (found := Process.read(process.pid)) and found.start == process.start:
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                select.select([descriptor], [], [], left)
        finally:
            os.close(descriptor)
    return True


def mounts_below(path: Path) -> list[Path]:
    """What is mounted at or below `path` in this process's view, deepest first."""
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    paths = [Path(re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), point)) for point in points]
    return [point for point in reversed(paths) if point.is_relative_to(path.resolve())]


def remove_tree(path: Path) -> None:
    """Remove a folder, if there is one; refuses while anything is mounted below it, whose files are not its own."""
    for point in mounts_below(path):
        raise ProvisionError(f"{path} is not removed: {point} is mounted there.", f"Run: umount {point}")
    run("rm", "-rf", "--one-file-system", path)
