"""The machine itself: systemd-nspawn, the limits around it, its start and its end.

systemd-nspawn is told to leave the host's systemd alone (`--register=no --keep-unit`), so that it works on a computer
whose PID 1 is another program; it then expects its starter to start it again when the machine reboots.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from provision.clouds._computer import (
    ENVIRONMENT,
    GIGABYTE,
    Process,
    end,
    ended,
    mounts_below,
    processes,
    run,
)
from provision.errors import ProvisionError

CGROUPS = Path("/sys/fs/cgroup")
DATA = "/var/lib/mlaas4hep"
"""Where a machine's data volume is mounted, as the role `base` has it."""
BOOT_SECONDS = 30
STOP_SECONDS = 30
GROUP_SECONDS = 3

# Letting go of standard input tells that the loop runs, and can be found by its command line.
# Each boot joins the control groups $1 by itself, for they must hold no other process, and with the limits $2: between
# two boots they are empty, and another systemd that sees them removes what is empty. Status 133 asks for a reboot.
# The boot of a reboot that fails (a status of its own, no signal) is tried again: what it lacks, of which other
# machines took more for a moment, may be free again. After any other end nothing of the machine may live on: its PID 1
# would, were systemd-nspawn killed.
_LOOP = """
exec </dev/null
groups=$1
limits=$2
shift 2
left=0
join() {
    for group in $groups; do mkdir -p "$group" || return; done
    echo "$limits" | while read -r file value; do [ -z "$file" ] || echo "$value" > "$file" || exit; done || return
    for group in $groups; do echo 0 > "$group/cgroup.procs" || return; done
}
while :; do
    (join || exit 1; exec "$@")
    status=$?
    if [ $status -eq 133 ]; then
        left=10
    elif [ $status -eq 0 ] || [ $status -gt 127 ] || [ $left -eq 0 ]; then
        break
    else
        left=$((left - 1))
        sleep 1
    fi
done
for group in $groups; do
    [ ! -e "$group/cgroup.kill" ] || echo 1 > "$group/cgroup.kill"
done
"""
_MORE_INSTANCES = (
    "All machines of this computer share its inotify instances, and too few are free."
    " Run: sysctl -w fs.inotify.max_user_instances=1024"
)
_PERIOD = 100_000  # microseconds in which a machine gets its share of CPU time


@dataclass(frozen=True)
class Machine:
    """Where a machine of this computer lives: its root folder, its network namespace and its console log."""

    uid: str
    root: Path
    network: Path
    console: Path

    @property
    def name(self) -> str:
        """The name that stands in the command lines of its processes."""
        return f"provision-{self.uid}"

    @property
    def groups(self) -> list[Path]:
        """Its control groups, one for each hierarchy of this computer that counts."""
        return [base / self.name for base in _hierarchies()]


@dataclass(frozen=True)
class Share:
    """What a machine may use of this computer: CPUs, gigabytes of memory and paths that are shown to it as they are.

    `data` is a folder that it sees as its folder of data.
    """

    cpus: int
    memory: float
    paths: Sequence[str] = ()
    data: Path | None = None


def _under_systemd() -> bool:
    return Path("/run/systemd/system").is_dir()


def _hierarchies() -> list[Path]:
    """Where control groups are made by hand: all of version 2, or what matters of version 1 and of both together."""
    if _under_systemd():
        return []
    if (CGROUPS / "cgroup.controllers").exists():
        return [CGROUPS]
    return [CGROUPS / name for name in ("memory", "cpu", "systemd", "unified") if (CGROUPS / name).is_dir()]


def limits() -> str:
    """How far CPUs and memory of a machine are limited on this computer, in words."""
    if _under_systemd():
        return "CPU time and memory, by systemd"
    if (CGROUPS / "cgroup.controllers").exists():
        have = set((CGROUPS / "cgroup.controllers").read_text().split())
    else:
        have = {name for name in ("cpu", "memory") if (CGROUPS / name).is_dir()}
    writable = os.access(CGROUPS, os.W_OK) or any(os.access(base, os.W_OK) for base in _hierarchies())
    found = [word for name, word in (("cpu", "CPU time"), ("memory", "memory")) if name in have and writable]
    return f"{' and '.join(found)}, by control groups" if found else "none: this computer has no control groups to use"


def _make_groups(machine: Machine, share: Share) -> dict[Path, str]:
    """Make the control groups; returns their limits, without what this kernel does not offer, as `limits` says."""
    amount, quota = int(share.memory * GIGABYTE), share.cpus * _PERIOD
    if CGROUPS in _hierarchies():
        for controller in ("cpu", "memory"):
            with contextlib.suppress(OSError):
                (CGROUPS / "cgroup.subtree_control").write_text(f"+{controller}")
    values = {
        "memory.max": f"{amount}",
        "cpu.max": f"{quota} {_PERIOD}",
        "cpu.weight": f"{_weight(share)}",
        "memory.limit_in_bytes": f"{amount}",
        "cpu.cfs_period_us": f"{_PERIOD}",
        "cpu.cfs_quota_us": f"{quota}",
        "cpu.shares": f"{1024 * share.cpus}",
    }
    for folder in machine.groups:
        folder.mkdir(exist_ok=True)
    files = {folder / name: value for folder in machine.groups for name, value in values.items()}
    return {file: value for file, value in files.items() if file.exists()}


def _weight(share: Share) -> int:
    """On a busy computer a machine counts as that many processes, and not as one."""
    return min(100 * share.cpus, 10_000)


def _remove_groups(machine: Machine) -> None:
    for top in machine.groups:
        for folder, _, _ in os.walk(top, topdown=False):
            _remove_group(Path(folder))


def _remove_group(folder: Path) -> None:
    """Remove one control group; the kernel may need a moment after the end of its last process."""
    deadline = time.monotonic() + GROUP_SECONDS
    while True:
        try:
            folder.rmdir()
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > deadline:
                raise ProvisionError(f"The control group {folder} cannot be removed: {error.strerror}.") from None
            time.sleep(0.02)


def _command(machine: Machine, share: Share) -> list[str]:
    words = [
        *("systemd-nspawn", "--quiet", "--register=no", "--keep-unit", f"--machine={machine.name}"),
        *(f"--directory={machine.root}", f"--network-namespace-path={machine.network}"),
        *("--resolv-conf=off", "--timezone=off", "--link-journal=no", "--console=read-only"),
        *(f"--bind{'' if path.startswith('/dev/') else '-ro'}={path}" for path in share.paths),
        *([f"--bind={share.data}:{DATA}"] if share.data else []),
        "--boot",
    ]
    if _under_systemd():
        limits = (f"MemoryMax={int(share.memory * GIGABYTE)}", f"CPUQuota={share.cpus * 100}%")
        properties = ("Delegate=yes", *limits, f"CPUWeight={_weight(share)}")
        scope = [word for text in properties for word in ("--property", text)]
        words = ["systemd-run", "--scope", "--quiet", "--collect", *scope, "--", *words]
    return words


def boot(machine: Machine, share: Share) -> Process:
    """Start the machine, detached from this process, and return its PID 1; raises ProvisionError with the console."""
    halt(machine)
    limits = "\n".join(f"{file} {value}" for file, value in _make_groups(machine, share).items())
    groups = " ".join(str(folder) for folder in machine.groups)
    _detach(["sh", "-c", _LOOP, machine.name, groups, limits, *_command(machine, share)], machine.console)
    deadline = time.monotonic() + BOOT_SECONDS
    while not (first := init(machine)):
        if time.monotonic() > deadline or not starting(machine):
            details = end(machine.console)
            halt(machine)
            remedy = _MORE_INSTANCES if "Too many open files" in details else ""
            raise ProvisionError(f"The machine did not boot; its console is {machine.console}.", remedy, details)
        time.sleep(0.05)
    return first


def _detach(words: Sequence[str], console: Path) -> None:
    """Run a command in a session of its own, and return when it has let go of its standard input."""
    here, there = os.pipe()
    with console.open("wb") as output, os.fdopen(here, "rb") as begun:
        with os.fdopen(there, "wb") as held:
            subprocess.run(
                ["setsid", "--fork", *words],
                stdin=held,
                stdout=output,
                stderr=output,
                env=ENVIRONMENT | {"SYSTEMD_NSPAWN_TMPFS_TMP": "0"},  # /tmp on disk: installations need room there
                cwd="/",
                check=True,
            )
        begun.read()


def _starters(machine: Machine) -> list[Process]:
    """The loop that boots the machine, and systemd-nspawn: the processes with its name in their command line."""
    option, programs = f"--machine={machine.name}", {"setsid", "sh", "systemd-run", "systemd-nspawn"}
    return [p for p in processes() if option in p.words and Path(p.words[0]).name in programs]


def _residents(machine: Machine) -> list[Process]:
    """The processes that live in the machine: their root folder is its root folder, whoever started them."""
    try:
        place = machine.root.stat()
    except FileNotFoundError:
        return []
    return [process for process in processes() if _lives_in(process, place)]


def _lives_in(process: Process, place: os.stat_result) -> bool:
    try:
        return os.path.samestat(Path(f"/proc/{process.pid}/root").stat(), place)
    except OSError:  # it has ended meanwhile, or is a thread of the kernel
        return False


def init(machine: Machine) -> Process | None:
    """The machine's PID 1, as this computer sees it, or None when it does not run."""
    return next((p for p in _residents(machine) if _is_first(p) and Path(p.words[0]).name in ("systemd", "init")), None)


def _is_first(process: Process) -> bool:
    """True for PID 1 of a namespace directly below this computer's."""
    with contextlib.suppress(OSError):
        status = Path(f"/proc/{process.pid}/status").read_text()
        numbers = next(line for line in status.splitlines() if line.startswith("NSpid:")).split()[1:]
        return bool(process.words) and len(numbers) == 2 and numbers[1] == "1"
    return False


def starting(machine: Machine) -> bool:
    """True from the start of the machine to its end, also between two boots and before its PID 1 is there."""
    return bool(_starters(machine))


def in_network(first: Process, network: Path) -> bool:
    """True when the machine's PID 1 lives in that network namespace, and not in an earlier one of its name."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{first.pid}/ns/net").stat().st_ino == network.stat().st_ino
    return False


def halt(machine: Machine) -> None:
    """Shut the machine down cleanly, or by force if that takes too long; returns when none of it is left."""
    loop = [process for process in _starters(machine) if Path(process.words[0]).name == "sh"]
    for process in loop:
        process.send(signal.SIGKILL)  # or it would start the machine again, were it rebooting just now
    ended(loop, STOP_SECONDS)
    starters = _starters(machine)
    for process in starters:
        process.send(signal.SIGTERM)  # on which systemd-nspawn asks the machine to power off
    ended(starters, STOP_SECONDS)
    left = [*_starters(machine), *_residents(machine)]  # what takes too long, or lost its systemd-nspawn
    for process in left:
        process.send(signal.SIGKILL)
    if not ended(left, STOP_SECONDS):
        raise ProvisionError(f"The machine {machine.name} does not end (process {left[0].pid}).")
    _remove_groups(machine)
    for folder in _runtime(machine):
        for point in mounts_below(folder):
            run("umount", point)
        folder.rmdir()


def _runtime(machine: Machine) -> list[Path]:
    """What systemd-nspawn leaves behind when it is killed."""
    base = Path("/run/systemd/nspawn")
    return [path for kind in ("propagate", "unix-export") if (path := base / kind / machine.name).exists()]


def traces(machine: Machine) -> list[str]:
    """What there is of a running or killed machine."""
    found = [f"process {process.pid}" for process in (*_starters(machine), *_residents(machine))]
    return found + [str(path) for path in (*machine.groups, *_runtime(machine)) if path.exists()]
