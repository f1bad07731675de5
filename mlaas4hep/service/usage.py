"""What an attempt has used, as its supervisor sees it: `usage.json` in the job's folder."""

from __future__ import annotations

import os
import resource
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mlaas4hep.service.cgroups import ControlGroup
from mlaas4hep.service.executor import Task
from mlaas4hep.service.jobs import read_json, write_json

_FILE = "usage.json"
_TICK = os.sysconf("SC_CLK_TCK")
_KIB = 1024


@dataclass
class Usage:
    """What is used up to now.

    Attributes:
        cpu_seconds: of all its processes, on all processors.
        memory: most bytes at once, without the cache of files; without a control group those of its largest process.
        disk: most bytes that it has written and kept.
    """

    cpu_seconds: float = 0.0
    memory: int = 0
    disk: int = 0

    def look(self, group: ControlGroup | None, disk: int) -> None:
        """Take in what a group uses now, and what is on the disk."""
        self.disk = max(self.disk, disk)
        if group is not None:
            self.memory = max(self.memory, group.memory())
            told = group.cpu_seconds()
            self.cpu_seconds = max(self.cpu_seconds, _seconds(group.processes()) if told is None else told)

    def end(self) -> None:
        """Take in what the ended children of this process have used."""
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        self.cpu_seconds = max(self.cpu_seconds, ended.ru_utime + ended.ru_stime)
        self.memory = self.memory or ended.ru_maxrss * _KIB

    def record(self, task: Task) -> None:
        """Write it down."""
        write_json(task.folder / _FILE, {"key": task.key} | asdict(self))


def recorded(folder: Path, key: str) -> dict[str, Any] | None:
    """What an attempt has used, by the names of `Usage`; None where that is not known."""
    facts = read_json(folder / _FILE)
    return facts if facts.pop("key", None) == key else None


def _seconds(processes: list[int]) -> float:
    """Of some processes and of the children that they have waited for; see proc_pid_stat(5)."""
    ticks = 0
    for process in processes:
        with suppress(OSError):
            after_name = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
            ticks += sum(map(int, after_name[11:15]))
    return ticks / _TICK
