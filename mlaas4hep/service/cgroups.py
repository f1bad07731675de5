"""A control group of its own limits each task's memory, processors and processes; the kernel has two versions of them.

Version 2: the supervisor is the unit's only process, and the unit's group is delegated to it (`Delegate=` of systemd);
or root makes groups in the tree itself. Version 1 has no delegation that is safe, so root makes them.
Source of the files: the kernel's Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mlaas4hep.errors import MlaasError
from mlaas4hep.service.executor import Resources

CONTROLLERS = ("cpu", "memory", "pids")
_PROCESSES, _PROCESSES_PER_CPU = 384, 128
_PERIOD = 100_000  # microseconds
_PATIENCE = 30.0  # seconds until killed processes are gone
_REMEDY = (
    "Run the service under systemd with its unit (cgroup v2, Delegate=cpu memory pids), or as root, "
    "so that jobs cannot take the machine's memory."
)


@dataclass(frozen=True)
class ControlGroup:
    """The group of one task.

    Attributes:
        folders: the group's folder for each controller; of version 2 they are one and the same.
    """

    folders: dict[str, Path]

    def limit(self, resources: Resources) -> None:
        """Set what the group may use. Raises OSError."""
        memory, cpu, pids = self.folders["memory"], self.folders["cpu"], self.folders["pids"]
        quota = resources.cpus * _PERIOD
        (pids / "pids.max").write_text(str(_PROCESSES + _PROCESSES_PER_CPU * resources.cpus))
        if (memory / "memory.max").exists():
            (memory / "memory.max").write_text(str(resources.memory))
            (memory / "memory.oom.group").write_text("1")
            if (memory / "memory.swap.max").exists():
                (memory / "memory.swap.max").write_text("0")
            (cpu / "cpu.max").write_text(f"{quota} {_PERIOD}")
            return
        (memory / "memory.limit_in_bytes").write_text(str(resources.memory))
        if (memory / "memory.memsw.limit_in_bytes").exists():
            (memory / "memory.memsw.limit_in_bytes").write_text(str(resources.memory))
        (cpu / "cpu.cfs_period_us").write_text(str(_PERIOD))
        (cpu / "cpu.cfs_quota_us").write_text(str(quota))

    def enter(self) -> None:
        """Put the calling process into the group."""
        for folder in set(self.folders.values()):
            (folder / "cgroup.procs").write_text("0")

    def processes(self) -> list[int]:
        """Who is in it."""
        with suppress(OSError):
            return [int(word) for word in (self.folders["pids"] / "cgroup.procs").read_text().split()]
        return []

    def killed_for_memory(self) -> bool:
        """Whether the kernel has killed something in it because the memory was used up."""
        folder = self.folders["memory"]
        for name in ("memory.events", "memory.oom_control"):
            with suppress(OSError):
                facts = dict(line.split() for line in (folder / name).read_text().splitlines())
                return int(facts.get("oom_kill", "0")) > 0
        return False

    def memory(self) -> int:
        """Bytes in use now, without the cache of files; 0 where that cannot be seen."""
        with suppress(OSError, ValueError):
            facts = dict(line.split() for line in (self.folders["memory"] / "memory.stat").read_text().splitlines())
            names = ("anon", "shmem") if "anon" in facts else ("total_rss", "total_shmem")
            return sum(int(facts.get(name, "0")) for name in names)
        return 0

    def cpu_seconds(self) -> float | None:
        """Processor time of all that was ever in it; None where the kernel does not tell (version 1)."""
        with suppress(OSError, ValueError):
            facts = dict(line.split() for line in (self.folders["cpu"] / "cpu.stat").read_text().splitlines())
            if "usage_usec" in facts:
                return int(facts["usage_usec"]) / 1e6
        return None

    def end(self) -> None:
        """Kill all of its processes, wait until they are gone, and remove it.

        Raises MlaasError when they do not go, as those that wait for a dead network disk.
        """
        deadline = time.monotonic() + _PATIENCE
        while processes := self.processes():
            for process in processes:
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            if time.monotonic() > deadline:
                raise MlaasError(f"The processes {processes} cannot be killed.")
            time.sleep(0.01)
        for folder in set(self.folders.values()):
            # for a moment, processes that are gone still keep their group busy
            while folder.exists() and time.monotonic() < deadline:
                with suppress(OSError):
                    folder.rmdir()
                    break
                time.sleep(0.01)


def make_group(name: str, resources: Resources) -> ControlGroup:
    """Make the group of a task.

    Args:
        name: letters, digits, hyphens and underscores.
        resources: what it may use.

    Raises MlaasError where limits cannot be enforced.
    """
    try:
        bases = _bases()
        group = ControlGroup({controller: base / name for controller, base in bases.items()})
        for folder in group.folders.values():
            folder.mkdir(exist_ok=True)
        group.limit(resources)
    except OSError as error:
        raise MlaasError(f"Limits cannot be enforced here: {error}.", _REMEDY) from error
    return group


def own_group() -> ControlGroup | None:
    """The group that somebody else has made and limits, with the caller in it; None where it is not to be seen."""
    own, mounts = _own(), _mounts()
    version = next((name for name in ("memory", "") if name in own and name in mounts), None)
    return (
        None if version is None else ControlGroup(dict.fromkeys(CONTROLLERS, _inside(*mounts[version], own[version])))
    )


def _own() -> dict[str, str]:
    """The caller's group for each controller; version 2 has no name."""
    own: dict[str, str] = {}
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, names, path = line.split(":", 2)
        own |= dict.fromkeys(names.split(","), path)
    return own


def _bases() -> dict[str, Path]:
    """The folder for each controller in which groups of tasks are made."""
    own, mounts = _own(), _mounts()
    if "" in mounts and set(CONTROLLERS) <= set((mounts[""][0] / "cgroup.controllers").read_text().split()):
        return dict.fromkeys(CONTROLLERS, _version_2(*mounts[""], own[""]))
    if lacking := [controller for controller in CONTROLLERS if controller not in mounts or controller not in own]:
        raise MlaasError(
            f"Limits cannot be enforced here: the kernel has no controller {' and '.join(lacking)}.", _REMEDY
        )
    bases = {}
    for controller in CONTROLLERS:
        base = _inside(*mounts[controller], own[controller]) / "mlaas4hep"
        base.mkdir(exist_ok=True)
        bases[controller] = base
    return bases


def _version_2(mount: Path, root: str, own: str) -> Path:
    if os.geteuid() == 0:
        base = mount / "mlaas4hep"
        base.mkdir(exist_ok=True)
        _pass_on([mount, base])
        return base
    base = _inside(mount, root, own)
    if base.name == "supervisor":
        base = base.parent
    # a group with processes of its own cannot have limited groups in it
    supervisor = base / "supervisor"
    supervisor.mkdir(exist_ok=True)
    (supervisor / "cgroup.procs").write_text("0")
    _pass_on([base])
    return base


def _pass_on(folders: Iterable[Path]) -> None:
    for folder in folders:
        (folder / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in CONTROLLERS))


def _inside(mount: Path, root: str, own: str) -> Path:
    """A group's folder, where only a part of the tree is mounted."""
    return mount / own.removeprefix(root.rstrip("/")).lstrip("/")


def _mounts() -> dict[str, tuple[Path, str]]:
    """Where each controller is mounted, and which part of its tree; version 2 has no name."""
    found: dict[str, tuple[Path, str]] = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        root, mount = before.split()[3:5]
        kind, _, options = after.split(maxsplit=2)
        if kind in ("cgroup", "cgroup2"):
            names = options.split(",") if kind == "cgroup" else [""]
            found |= dict.fromkeys(names, (Path(mount), root))
    return found
