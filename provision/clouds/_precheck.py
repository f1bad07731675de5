"""Looks at a machine that exists already: can the roles be applied to it, and if not, why not."""

from __future__ import annotations

from dataclasses import dataclass

from provision.clouds.base import Check
from provision.clouds.flavors import SYSTEMS

NEEDED_GB = 6
"""What the framework takes of the disk."""
NEEDED_MEMORY_GB = 1
NEEDED_PYTHON = (3, 8)
"""What Ansible's modules run on."""
CLOCK_SECONDS = 60
"""How far the machine's clock may be off: certificates and signatures of packages have times."""

PROBE = """
. /etc/os-release
echo "system=$ID $VERSION_ID"
echo "sudo=$(sudo -n true 2>&1 && echo yes)"
echo "cpus=$(nproc)"
echo "memory=$(sed -n 's/^MemTotal: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo)"
for folder in / /opt /var; do
  echo "disk $folder=$(df -Pk $folder 2>/dev/null | sed -n '2s/^[^ ]* *[0-9]* *[0-9]* *\\([0-9]*\\) .*/\\1/p')"
done
echo "python=$(python3 -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null)"
for file in /var/lib/dpkg/lock-frontend /var/lib/dpkg/lock /var/lib/apt/lists/lock; do
  inode=$(stat -c %i $file 2>/dev/null) || continue
  pid=$(sed -n "s/.* WRITE \\([0-9]*\\) [0-9a-f]*:[0-9a-f]*:$inode .*/\\1/p" /proc/locks | head -n 1)
  [ -z "$pid" ] || echo "lock=$file by $(cat /proc/$pid/comm 2>/dev/null || echo process) $pid"
done
echo "time=$(date +%s)"
"""
"""For sh on the machine; prints lines NAME=VALUE."""


@dataclass(frozen=True)
class Host:
    """What the probe found, with its checks."""

    facts: str
    checks: tuple[Check, ...]


def examine(output: str, before: float, after: float) -> Host:
    """Judge what the probe printed.

    Args:
        output: of the probe.
        before, after: this computer's clock around it, in seconds since 1970.
    """
    found: dict[str, str] = {}
    for line in output.splitlines():
        name, sign, value = line.partition("=")
        if sign:
            found.setdefault(name, value.strip())
    checks = [
        _system(found.get("system", "")),
        _sudo(found.get("sudo", "")),
        _python(found.get("python", "")),
        _size("memory", found.get("memory", ""), NEEDED_MEMORY_GB, "memory"),
        *(_disk(folder, found.get(f"disk {folder}", "")) for folder in ("/", "/opt", "/var")),
        _lock(found.get("lock", "")),
        _clock(found.get("time", ""), before, after),
    ]
    kept = tuple(check for check in checks if check is not None)
    words = f"{found.get('system') or 'unknown system'}, {found.get('cpus') or '?'} CPU"
    memory, disk = _gigabytes(found.get("memory", "")), _gigabytes(found.get("disk /", ""))
    return Host(f"{words}, {memory or 0:.0f} GB memory, {disk or 0:.0f} GB free disk", kept)


def _system(value: str) -> Check:
    served = tuple(value.split()[:2]) in SYSTEMS
    names = ", ".join(" ".join(system) for system in SYSTEMS)
    return Check("system", value or "unknown", served, f"the roles serve {names}")


def _sudo(value: str) -> Check:
    words = "without a password" if value == "yes" else value.removeprefix("sudo: ") or "not there"
    return Check("sudo", words, value == "yes", "`sudo -n true` must work without any question")


def _python(value: str) -> Check:
    version = tuple(int(part) for part in value.split(".") if part.isdigit())
    needed = ".".join(map(str, NEEDED_PYTHON))
    return Check("python3", value or "not there", version >= NEEDED_PYTHON, f"Ansible needs {needed} or later")


def _size(name: str, kibibytes: str, needed: int, what: str) -> Check:
    size = _gigabytes(kibibytes)
    # a machine of 1 GB has a little less, after what its kernel took
    good = size is not None and size >= 0.9 * needed
    words = "unknown" if size is None else f"{size:.1f} GB of {what}"
    return Check(name, words, good, f"{needed} GB are needed")


def _disk(folder: str, kibibytes: str) -> Check | None:
    if not kibibytes and folder != "/":
        return None  # no file system of its own, nor a folder yet
    return _size(f"disk of {folder}", kibibytes, NEEDED_GB if folder != "/var" else 1, "free disk")


def _lock(value: str) -> Check:
    """No obstacle: Ansible waits for the lock; but whoever sees it fail at that knows why."""
    return Check("package managers", f"{value}: the roles wait for it" if value else "none at work", True, "")


def _clock(value: str, before: float, after: float) -> Check:
    if not value.isdigit():
        return Check("clock", "unknown", False, "`date` must tell the time")
    # the machine told whole seconds, at some moment in between
    off = max(before - 1 - int(value), int(value) - after, 0)
    words = "as this computer's" if off < 1 else f"{off:.0f} s off this computer's"
    return Check("clock", words, off <= CLOCK_SECONDS, "set the clock of the machine, or of this computer")


def _gigabytes(kibibytes: str) -> float | None:
    return int(kibibytes) / 2**20 if kibibytes.isdigit() else None
