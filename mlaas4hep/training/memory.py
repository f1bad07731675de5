"""How much memory this process can still have: what the computer has available, within the limits of its cgroups."""

from __future__ import annotations

import math
import re
from pathlib import Path

_V2 = ("sys/fs/cgroup", "memory.max", "memory.current")
_V1 = ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes")


def available_memory(root: Path = Path("/")) -> float:
    """Bytes that can be allocated without swapping; infinite where the system does not tell.

    The least of MemAvailable of /proc/meminfo and, for the process's cgroup and each one around it (version 1 or 2),
    limit - usage, where file pages that were not used lately do not count as used.

    Args:
        root: where /proc and /sys are mounted.
    """
    rooms = [_room(folder, limit, usage) for folder, limit, usage in _cgroups(root)]
    return max(min([_system(root), *rooms]), 0.0)


def _system(root: Path) -> float:
    found = re.search(r"^MemAvailable:\s+(\d+) kB", _text(root / "proc/meminfo"), re.MULTILINE)
    return int(found[1]) * 1024.0 if found else math.inf


def _cgroups(root: Path) -> list[tuple[Path, str, str]]:
    """Folder and file names of the process's cgroup with a memory controller, and of those around it."""
    groups = []
    for line in _text(root / "proc/self/cgroup").splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0" or "memory" in controllers.split(","):
            mount, limit, usage = _V2 if number == "0" else _V1
            folder = root / mount / path.lstrip("/")
            around = [folder, *folder.parents]
            groups += [(each, limit, usage) for each in around[: around.index(root / mount) + 1]]
    return groups


def _room(folder: Path, limit: str, usage: str) -> float:
    most, used = _text(folder / limit).strip(), _text(folder / usage).strip()
    if not most.isdigit() or not used.isdigit():
        return math.inf
    found = re.search(r"^inactive_file (\d+)", _text(folder / "memory.stat"), re.MULTILINE)
    return float(int(most) - int(used) + (int(found[1]) if found else 0))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
