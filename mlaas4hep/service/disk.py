"""How much a task has written, looked at so often that it cannot write much more than it may before it is stopped.

The limit holds for what its folders hold and for what it has deleted but keeps open. No file may be larger than it at
all (RLIMIT_FSIZE, set by the supervisor), and the less is left, the sooner is the next look.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

_BLOCK = 512  # bytes in the unit of st_blocks
_FASTEST = 2 * 2**30  # bytes a second that a disk may take
_SHORTEST, _LONGEST = 0.05, 1.0
_MOST_FILES = 50_000


class DiskFullError(Exception):
    """A task has written more than it may."""


class DiskWatch:
    """Watches what one task writes.

    Args:
        places: folders and files that it writes to.
        limit: bytes that it may write.

    Attributes:
        written: bytes at the last look.
    """

    def __init__(self, places: Sequence[Path], limit: int) -> None:
        self._places = places
        self._limit = limit
        self.written = 0

    def look(self, processes: Iterable[int]) -> float:
        """Seconds until the next look.

        Args:
            processes: those of the task, for what they have deleted but keep open.

        Raises DiskFullError.
        """
        sizes = _sizes(self._places)
        if len(sizes) > _MOST_FILES:
            raise DiskFullError(f"It made more than the {_MOST_FILES} files and folders that it may.")
        sizes |= _deleted(processes, {device for device, _ in sizes})
        self.written = sum(sizes.values())
        room = self._limit - self.written
        if room < 0:
            raise DiskFullError(f"It wrote more than the {self._limit / 2**20:.0f} MiB that it may.")
        return min(max(room / _FASTEST, _SHORTEST), _LONGEST)


def _sizes(places: Sequence[Path]) -> dict[tuple[int, int], int]:
    """Bytes of everything in some places, by device and inode; links are not followed."""
    found: dict[tuple[int, int], int] = {}
    waiting = [str(place) for place in places]
    while waiting and len(found) <= _MOST_FILES:
        path = waiting.pop()
        with suppress(OSError):
            facts = os.lstat(path)
            found[facts.st_dev, facts.st_ino] = facts.st_blocks * _BLOCK
            if stat.S_ISDIR(facts.st_mode):
                waiting += _entries(path)
    return found


def _entries(path: str) -> list[str]:
    try:
        return [entry.path for entry in os.scandir(path)]
    except PermissionError:
        # a folder that the task has hidden; opened without following a link that takes its place
        descriptor = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_DIRECTORY)
        try:
            Path(f"/proc/self/fd/{descriptor}").chmod(0o700)
        finally:
            os.close(descriptor)
        return [entry.path for entry in os.scandir(path)]


def _deleted(processes: Iterable[int], devices: set[int]) -> dict[tuple[int, int], int]:
    """Bytes of the files that some processes have open and that no folder names any more."""
    found: dict[tuple[int, int], int] = {}
    for process in processes:
        with suppress(OSError):
            for entry in os.scandir(f"/proc/{process}/fd"):
                with suppress(OSError):
                    facts = entry.stat()
                    if facts.st_nlink == 0 and stat.S_ISREG(facts.st_mode) and facts.st_dev in devices:
                        found[facts.st_dev, facts.st_ino] = facts.st_blocks * _BLOCK
    return found
