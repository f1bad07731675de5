"""A command in a sandbox of bubblewrap: it sees the system and its inputs read-only, and writes to its own folders.

What holds inside: namespaces of its own (users, processes, IPC, host name, network, mounts), no capability, no new
privileges, no further user namespace, an environment that is given word by word, a private /tmp and /dev/shm of bounded
size, nothing of /home, /root, /var, /run and /sys but what is named. It ends when the process that started it ends.
Memory, processors and processes are limited by `cgroups`, not here.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import mlaas4hep
from mlaas4hep.errors import MlaasError

TEMPORARY_BYTES = 512 * 2**20
HOST_NAME = "mlaas4hep"
_NOBODY = 65534
_PROGRAMS = "/usr/sbin:/usr/bin:/sbin:/bin"
_OLDEST = (0, 8)
_INSTALL = "Install bubblewrap 0.8 or newer (Debian 12, Ubuntu 24.04: apt-get install bubblewrap)."
# what libraries look for in /etc; nothing of it is secret
_ETC = (
    *("alternatives", "gai.conf", "group", "host.conf", "hosts", "ld.so.cache", "ld.so.conf", "ld.so.conf.d"),
    *("localtime", "mime.types", "nsswitch.conf", "passwd", "protocols", "services", "timezone"),
    *(
        "ca-certificates",
        "grid-security/certificates",
        "pki",
        "ssl/certs",
        "ssl/openssl.cnf",
        "xrootd/client.plugins.d",
    ),
    *("OpenCL", "vulkan"),
)
_ROOT_LINKS = ("bin", "lib", "lib32", "lib64", "sbin")
_GPU_CONTROL = ("nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "nvidia-modeset")
_GPU_SYSTEM = ("/sys/bus/pci", "/sys/devices", "/sys/module/nvidia", "/sys/module/nvidia_uvm")


@dataclass(frozen=True)
class Gate:
    """Lets the caller prepare a sandbox's own network before the command runs.

    Attributes:
        tell: file descriptor that bubblewrap's JSON (`child-pid`, `net-namespace`, see `--info-fd`) is written to.
        wait: file descriptor that has to have a byte to read before the command runs.
        hosts: file that is the sandbox's /etc/hosts.
    """

    tell: int
    wait: int
    hosts: Path


def sandboxed(
    command: Sequence[str],
    *,
    writes: Iterable[Path] = (),
    reads: Iterable[Path] = (),
    environment: Mapping[str, str] | None = None,
    network: bool = False,
    gate: Gate | None = None,
    gpus: Iterable[Path] = (),
    temporary: int = TEMPORARY_BYTES,
    account: int | None = None,
    group: int | None = None,
) -> list[str]:
    """The words that run a command in a sandbox.

    File descriptors that the caller passes on reach the command. When root calls this, the command runs as `account`,
    which must be able to read `reads` and write `writes`; otherwise it runs as the caller.

    Args:
        command: the program, which is looked for inside (see `framework`), and its arguments.
        writes: folders that it may write to; each appears at its own path, and the command starts in the first.
        reads: files and folders that it may read; each appears at its own path.
        environment: all of its environment but PATH, LANG and TMPDIR. Everybody on this computer can see it, so
            secrets are handed over in files.
        network: whether it has the network of this computer instead of none.
        gate: how its own network is prepared; its file descriptors are passed on as well.
        gpus: device nodes of the GPUs that it may use (/dev/nvidia0).
        temporary: bytes that it may write to each of /tmp and /dev/shm; they count as its memory.
        account: number of the user and group, as which it runs when the caller is root.
        group: number of a group that it then belongs to as well, for files that it may read by that.

    Raises MlaasError where bubblewrap is missing or too old, or when root gives no account.
    """
    _require_bubblewrap()
    places, writes = [*_system(), *_read_only(framework())], tuple(writes)
    if network:
        places += ["--ro-bind-try", "/etc/resolv.conf", "/etc/resolv.conf"]
    if gate:
        places += ["--ro-bind", str(gate.hosts), "/etc/hosts"]
    places += [*_gpus(tuple(gpus)), *_read_only(reads)]
    for path in writes:
        places += [*_parents(path), "--bind", str(path), str(path)]
    size = str(temporary)
    memory = [word for path in ("/tmp", "/dev/shm") for word in ("--perms", "1777", "--size", size, "--tmpfs", path)]  # noqa: S108
    apart = [] if network else ["--unshare-net"]
    if gate:
        apart += ["--info-fd", str(gate.tell), "--block-fd", str(gate.wait)]
    variables = {"PATH": _path(), "LANG": "C.UTF-8", "TMPDIR": "/tmp"} | dict(environment or {})  # noqa: S108
    namespaces = ["--die-with-parent", "--new-session", "--unshare-pid", "--unshare-ipc", "--unshare-uts"]
    # what bubblewrap is started with can be read inside, from /proc/1/environ
    words = [
        "env",
        "-i",
        f"PATH={_PROGRAMS}",
        "bwrap",
        *namespaces,
        "--unshare-cgroup-try",
        *apart,
        "--hostname",
        HOST_NAME,
        "--clearenv",
    ]
    for name, value in variables.items():
        words += ["--setenv", name, value]
    words += ["--proc", "/proc", "--dev", "/dev", *memory, *places, "--remount-ro", "/dev", "--remount-ro", "/"]
    words += ["--chdir", str(writes[0]) if writes else "/"]
    # a second one, inside, closes the namespaces of users; it needs nothing of the /proc outside, which may be masked
    closed = [
        "bwrap",
        "--die-with-parent",
        "--unshare-user",
        "--disable-userns",
        "--dev-bind",
        "/",
        "/",
        "--",
        *command,
    ]
    if os.geteuid() != 0:
        return [*words, "--unshare-user", "--", *closed]
    if not account:
        raise MlaasError("A sandbox of root needs an account to run as.")
    # root sets up the places and then gives up all rights for good
    words += ["--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID", "--cap-add", "CAP_SETPCAP"]
    groups = "--clear-groups" if group is None else f"--groups={group}"
    drop = ["setpriv", f"--reuid={account}", f"--regid={account}", groups, "--bounding-set=-all"]
    return [*words, "--", *drop, "--inh-caps=-all", "--", *closed]


def framework() -> list[Path]:
    """What a command needs to run `sys.executable -m mlaas4hep...`: Python, its packages and this one."""
    own = Path(mlaas4hep.__file__).parent
    places = [Path(sys.base_prefix), Path(sys.prefix), own]
    return [path for path in dict.fromkeys(places) if not path.is_relative_to("/usr")]


def shortage() -> str:
    """Why this computer cannot make sandboxes, in a sentence; "" when it can."""
    try:
        words = sandboxed(["true"], account=_NOBODY)
    except MlaasError as error:
        return str(error)
    tried = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if tried.returncode == 0:
        return ""
    reason = (tried.stderr.strip().splitlines() or [f"exit status {tried.returncode}"])[-1]
    return (
        f"A sandbox cannot be made here: {reason}. The kernel must allow user namespaces (see sysctl "
        "user.max_user_namespaces, kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns)."
    )


@cache
def _require_bubblewrap() -> None:
    program = shutil.which("bwrap", path=_PROGRAMS)
    if program is None:
        raise MlaasError("The program bwrap is not there.", _INSTALL)
    told = subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout
    version = tuple(int(number) for number in re.findall(r"\d+", told))
    if version < _OLDEST:
        raise MlaasError(f"{told.strip() or 'This bwrap'} is too old.", _INSTALL)


def _system() -> Iterator[str]:
    yield from ("--ro-bind", "/usr", "/usr")
    for name in _ROOT_LINKS:
        path = Path("/", name)
        if path.is_symlink():
            yield from ("--symlink", str(path.readlink()), str(path))
        elif path.is_dir():
            yield from ("--ro-bind", str(path), str(path))
    for name in _ETC:
        path = Path("/etc", name)
        if path.exists():
            yield from (*_parents(path), "--ro-bind", str(path), str(path))
    # libraries choose their number of threads by it
    yield from _read_only([Path("/sys/devices/system/cpu")])


def _read_only(paths: Iterable[Path]) -> Iterator[str]:
    for path in paths:
        yield from (*_parents(path), "--ro-bind", str(path), str(path))


def _parents(path: Path) -> Iterator[str]:
    """Bubblewrap makes the folders above a place for its own user only; here they are everybody's."""
    for parent in reversed(path.parents[:-1]):
        yield from ("--perms", "0755", "--dir", str(parent))


def gpu_nodes() -> tuple[Path, ...]:
    """Device nodes of this computer's GPUs."""
    return tuple(sorted(Path("/dev").glob("nvidia[0-9]*")))


def _gpus(nodes: tuple[Path, ...]) -> Iterator[str]:
    if not nodes:
        return
    for place in _GPU_SYSTEM:
        yield from (*_parents(Path(place)), "--ro-bind-try", place, place)
    for path in [*nodes, *(Path("/dev", name) for name in _GPU_CONTROL)]:
        yield from ("--dev-bind-try", str(path), str(path))


def _path() -> str:
    return f"{Path(sys.prefix) / 'bin'}:/usr/bin:/bin"
