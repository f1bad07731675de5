"""Processes of the cloud: started here, recorded, and stopped by that record alone.

Each daemon leads a session. It is recorded with its pid, start time and the boot of the computer, so that a number used
again is recognised. Most of its children stay in the session; those that leave it are found by their mark.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from tests.devcloud.commands import ENVIRONMENT, MARK, DevcloudError
from tests.devcloud.state import DATA, DIR, LIBVIRT, LOG, RUN


class _Process(NamedTuple):
    """What /proc/PID/stat says (proc(5)); the start is in clock ticks since boot."""

    session: int
    start: int


def _look(pid: int) -> _Process | None:
    """The process, or None when there is none or only its remains."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else _Process(int(fields[3]), int(fields[19]))


def _pids() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _record_file(name: str) -> Path:
    return RUN / f"{name}.pid.json"


def _record(name: str) -> tuple[int, int] | None:
    """Pid and start time of the daemon as it was started, or None."""
    try:
        record = json.loads(_record_file(name).read_text())
    except (OSError, ValueError):
        return None
    return (record["pid"], record["start"]) if record["boot"] == _boot() else None


def log_file(name: str) -> Path:
    """Where the daemon's output goes."""
    return LOG / f"{name}.out"


def start(name: str, command: Sequence[object]) -> None:
    """Start a daemon in a session of its own and record it."""
    with log_file(name).open("ab") as out:
        process = subprocess.Popen(
            [str(word) for word in command],
            env=dict(ENVIRONMENT),
            cwd=DIR,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    seen = _look(process.pid)
    if not seen:
        raise DevcloudError(f"{name} ended at once", log_file(name))
    _record_file(name).write_text(json.dumps({"pid": process.pid, "start": seen.start, "boot": _boot()}))


def pid(name: str) -> int | None:
    """Pid of the daemon, or None when it does not run."""
    record = _record(name)
    if record and (seen := _look(record[0])) and seen.start == record[1]:
        return record[0]
    return None


def family(name: str) -> set[int]:
    """Pids of the daemon and of everything else in the session that it leads, also after its own end."""
    record = _record(name)
    if not record:
        return set()
    leader = _look(record[0])
    if leader and leader.start != record[1]:
        return set()  # the number now belongs to a stranger
    return {number for number in _pids() if (seen := _look(number)) and seen.session == record[0]}


def strays() -> set[int]:
    """Pids of what belongs to the cloud by its mark, or by a pid file that Neutron and libvirt keep in our state."""
    found = {number for number in _pids() if MARK.encode() in _read(f"/proc/{number}/environ").split(b"\0")}
    neutron = DATA / "neutron"
    pid_files = [*neutron.glob("external/pids/**/*.pid"), *neutron.glob("dhcp/*/pid"), *LIBVIRT.glob("run/lxc/*.pid")]
    for path in pid_files:
        with suppress(OSError, ValueError):
            number = int(path.read_text())
            command = _read(f"/proc/{number}/cmdline")
            if str(DIR).encode() in command or b"libvirt_lxc" in command:
                found.add(number)
    return {number for number in found if _look(number)} - {os.getpid(), os.getppid()}


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError:
        return b""


def end(those: Callable[[], set[int]], patience: float = 10) -> None:
    """Ask processes to end, and kill after `patience` seconds; `those` lists the pids that are left.

    Raises:
        DevcloudError: some do not end even so.
    """
    for kind, seconds in ((signal.SIGTERM, patience), (signal.SIGKILL, 10.0)):
        deadline, asked = time.monotonic() + seconds, set[int]()
        while (left := those()) and time.monotonic() < deadline:
            for number in left - asked:
                with suppress(ProcessLookupError):
                    os.kill(number, kind)
            asked |= left
            time.sleep(0.1)
        if not left:
            return
    raise DevcloudError(f"processes {sorted(left)} do not end")


def stop(name: str) -> None:
    """End a daemon with its session and forget it."""
    end(lambda: family(name))
    _record_file(name).unlink(missing_ok=True)


def forget_all() -> None:
    """Delete the records; only after all processes have ended."""
    for path in RUN.glob("*.pid.json"):
        path.unlink()


def memory(pids: set[int]) -> int:
    """Memory of these processes in MiB: proportional set size, so that shared pages count once."""
    kib = 0
    for number in pids:
        if line := re.search(rb"^Pss:\s+(\d+)", _read(f"/proc/{number}/smaps_rollup"), re.M):
            kib += int(line[1])
    return kib // 1024
