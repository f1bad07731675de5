"""A real Slurm of two nodes on one computer, made of Debian's packages: controller, two slurmd, munge, slurmrestd.

It lives in namespaces of its own: processes (so that nothing of it outlives the anchor, which is process 1 there),
network (nobody else can reach it; the tests reach slurmrestd by its socket), mounts, host name and control groups.
Needs root and control groups of version 1 or 2.
"""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.debian import lacking

PROGRAMS = {
    "slurmctld": "slurmctld",
    "slurmd": "slurmd",
    "slurmrestd": "slurmrestd",
    "squeue": "slurm-client",
    "munged": "munge",
    "/usr/lib/x86_64-linux-gnu/slurm-wlm/auth_jwt.so": "slurm-wlm-jwt-plugin",
    "bwrap": "bubblewrap",
    "nsenter": "util-linux",
    "ip": "iproute2",
}
NODES = ("n1", "n2")
# stands for the GPU of the node n1: a device that nothing else here opens
DEVICE = Path("/dev/full")
# the account of slurmrestd: neither root nor Slurm's own
_REST_ACCOUNT = "daemon"
_CONTROLLERS = ("memory", "cpuset", "freezer", "devices", "cpu", "cpuacct", "pids")
# a folder that other accounts may not enter gets a cover, of which only the way to something inside is seen through
_OPEN_WAY = """
mkdir {hold}
mount --bind {inner} {hold}
mount -t tmpfs -o mode=755 none {closed}
mkdir -p {inner}
mount --move {hold} {inner}
"""
_GROUPS = Path("/sys/fs/cgroup")
_DEADLINE = 300.0  # seconds for any part to become ready

_SLURM = """
ClusterName=test
SlurmctldHost=controller(10.113.0.1)
SlurmUser=slurm
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
AuthAltTypes=auth/jwt
AuthAltParameters=jwt_key={folder}/controller/jwt.key
StateSaveLocation={folder}/controller
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/controller/pid
SlurmdPidFile={folder}/%n.pid
MailProg=/bin/true
MpiDefault=none
ProctrackType=proctrack/cgroup
TaskPlugin=task/cgroup
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerParameters=batch_sched_delay=0,sched_interval=2
SlurmdTimeout={node_seconds}
KillWait=5
BatchStartTimeout=5
MinJobAge={forget_seconds}
JobRequeue=0
ReturnToService=2
GresTypes=gpu
NodeName=n1 NodeHostname=controller NodeAddr=10.113.0.1 Port=7001 CPUs=2 RealMemory=2000 Gres=gpu:1
NodeName=n2 NodeHostname=controller NodeAddr=10.113.0.1 Port=7002 CPUs=2 RealMemory=2000
PartitionName=jobs Nodes=n1,n2 Default=YES MaxTime=INFINITE DefMemPerNode=100
"""
_CGROUP = """
CgroupPlugin=cgroup/{version}
ConstrainCores=yes
ConstrainRAMSpace=yes
ConstrainSwapSpace=yes
AllowedSwapSpace=0
ConstrainDevices=yes
"""
_ANCHOR = """
hostname controller
ip link set lo up
ip link add eth0 type veth peer name eth1
ip address add 10.113.0.1/24 dev eth0
ip link set eth0 up
mount --bind {folder}/hosts /etc/hosts
mount -t tmpfs none /sys/fs/cgroup
for name in {controllers}; do
  mkdir /sys/fs/cgroup/$name
  mount -t cgroup -o $name none /sys/fs/cgroup/$name
done
{open_ways}
touch {folder}/ready
exec sleep infinity
"""


def inability() -> str:
    """Why this computer cannot run it, or ""."""
    if os.geteuid() != 0:
        return "a Slurm of one's own needs root"
    if lacking_controllers := [name for name in _CONTROLLERS if not (_GROUPS / name / "cgroup.procs").exists()]:
        return f"a Slurm of one's own needs control groups of version 1 here: {', '.join(lacking_controllers)}"
    return lacking(PROGRAMS)


@dataclass
class Cluster:
    """The running cluster.

    Attributes:
        folder: all of its files.
        forget_seconds: how long the controller remembers a job that has ended.
        node_seconds: after which it takes a silent node for dead.
    """

    folder: Path
    forget_seconds: int = 600
    node_seconds: int = 10
    _processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def socket(self) -> Path:
        """Of slurmrestd."""
        return self.folder / "rest" / "socket"

    @property
    def key(self) -> Path:
        """Signs tokens."""
        return self.folder / "controller" / "jwt.key"

    def start(self) -> None:
        """Start everything and wait until both nodes are idle."""
        self._write()
        self._start_anchor()
        self.start_munge()
        self.start_controller()
        for node in NODES:
            self.start_node(node)
        self.start_rest()
        self.wait_for_nodes()

    def wait_for_nodes(self) -> None:
        """Wait until all nodes can take jobs."""
        wait_until(lambda: set(self.ask("sinfo", "-hN", "-o", "%T").split()) <= {"idle", "mixed", "allocated"})

    def stop(self) -> None:
        """End everything, and remove its control groups."""
        for process in self._processes.values():
            process.kill()
        self._processes.pop("anchor").wait()
        for process in self._processes.values():
            process.wait()
        for controller in _CONTROLLERS:
            top = _GROUPS / controller / self._group
            wait_until(lambda top=top: not top.exists() or _removed(top))

    def start_munge(self) -> None:
        """The service that proves to one daemon who another one is."""
        folder = self.folder / "munge"
        words = ["munged", "--foreground", f"--key-file={folder}/key", f"--socket={folder}/socket"]
        words += [f"--pid-file={folder}/pid", f"--log-file={folder}/log", f"--seed-file={folder}/seed"]
        self._run("munge", *words, account="slurm")
        wait_until((folder / "socket").exists)

    def start_controller(self) -> None:
        """Start slurmctld and wait until it answers."""
        self._run("controller", "slurmctld", "-D", account="slurm")
        wait_until(lambda: "UP" in self.ask("scontrol", "ping"))

    def start_node(self, node: str) -> None:
        """Start a node's slurmd."""
        self._run(node, "slurmd", "-D", "-N", node)

    def start_rest(self) -> None:
        """Start slurmrestd and wait until it listens."""
        self.socket.unlink(missing_ok=True)
        words = ["slurmrestd", "-a", "rest_auth/jwt", "-s", "openapi/v0.0.37,openapi/v0.0.38", f"unix:{self.socket}"]
        self._run("rest", *words, account=_REST_ACCOUNT, SLURM_JWT="daemon")
        wait_until(self.socket.exists)

    def kill(self, name: str) -> None:
        """SIGKILL: `controller`, `rest`, `munge`, or a node's daemon; a node loses its jobs as well, as by a cut."""
        if name in NODES:
            for job in self.ask("squeue", "-h", "-w", name, "-o", "%A").split():
                self.ask("pkill", "-KILL", "-f", rf"^slurmstepd: \[{job}\.")
                self._kill_processes_of(job)
        process = self._processes.pop(name)
        self._kill_children(process.pid)
        process.wait()

    def _kill_children(self, parent: int) -> None:
        """`nsenter` ends with its child, not the other way round."""
        for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
            os.kill(int(child), signal.SIGKILL)

    def _kill_processes_of(self, job: str) -> None:
        for listing in (_GROUPS / "freezer" / self._group).rglob(f"job_{job}/**/cgroup.procs"):
            for process in listing.read_text().split():
                with suppress(ProcessLookupError):
                    os.kill(int(process), signal.SIGKILL)

    def ask(self, *words: str) -> str:
        """Standard output of a command in the cluster, whatever its exit status."""
        done = subprocess.run([*self._inside(), *words], capture_output=True, text=True, check=False, env=self._env())
        return done.stdout

    @property
    def _group(self) -> str:
        return f"slurm-test-{os.getpid()}"

    def _env(self, **more: str) -> dict[str, str]:
        path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
        return {"PATH": path, "SLURM_CONF": str(self.folder / "slurm.conf"), "LANG": "C.UTF-8", **more}

    def _inside(self) -> list[str]:
        return ["nsenter", "--target", str(self._anchor), "--net", "--mount", "--uts", "--pid", "--cgroup"]

    def _run(self, name: str, *words: str, account: str = "", **environment: str) -> None:
        become = ["setpriv", f"--reuid={account}", f"--regid={_group_of(account)}", "--clear-groups"] if account else []
        with (self.folder / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                [*self._inside(), *become, *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._env(**environment),
            )

    def _write(self) -> None:
        for name, account in (("controller", "slurm"), ("munge", "slurm"), ("rest", _REST_ACCOUNT)):
            (self.folder / name).mkdir(mode=0o755)
            shutil.chown(self.folder / name, account)
        for path, size in ((self.key, 32), (self.folder / "munge" / "key", 1024)):
            path.write_bytes(secrets.token_bytes(size))
            path.chmod(0o600)
            shutil.chown(path, "slurm")
        facts = {"folder": self.folder, "forget_seconds": self.forget_seconds, "node_seconds": self.node_seconds}
        (self.folder / "slurm.conf").write_text(_SLURM.format(**facts))
        (self.folder / "cgroup.conf").write_text(_CGROUP.format(version="v1"))
        (self.folder / "gres.conf").write_text(f"NodeName=n1 Name=gpu File={DEVICE}\n")
        (self.folder / "hosts").write_text("127.0.0.1 localhost\n10.113.0.1 controller\n")

    def _start_anchor(self) -> None:
        script = _ANCHOR.format(
            folder=self.folder, controllers=" ".join(_CONTROLLERS), open_ways=_open_way(self.folder / "hold")
        )
        words = ["unshare", "--net", "--mount", "--uts", "--pid", "--cgroup", "--fork", "--mount-proc"]
        words += ["--kill-child=SIGKILL", "sh", "-ec", script]
        groups = [_make_group(_GROUPS / name / self._group) for name in _CONTROLLERS]
        with (self.folder / "anchor.log").open("wb") as log:
            anchor = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._env(),
                preexec_fn=lambda: [_enter(group) for group in groups] and None,  # noqa: PLW1509
            )
        self._processes["anchor"] = anchor
        wait_until((self.folder / "ready").exists)
        self._anchor = int(Path(f"/proc/{anchor.pid}/task/{anchor.pid}/children").read_text().split()[0])


@contextmanager
def running(folder: Path, **settings: int) -> Iterator[Cluster]:
    """A cluster for as long as the context lasts.

    Args:
        folder: an empty one that every account may pass through.
        settings: see `Cluster`.
    """
    cluster = Cluster(folder, **settings)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


def wait_until(condition: Callable[[], object], seconds: float = _DEADLINE) -> None:
    """Poll a condition. Raises AssertionError when it does not come true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "what was waited for did not happen"
        time.sleep(0.1)


def _open_way(hold: Path) -> str:
    """Commands that let every account run this Python, which may be in somebody's home."""
    inner = Path(sys.base_prefix)
    for closed in (*reversed(inner.parents), inner):
        if not closed.stat().st_mode & 0o001:
            return _OPEN_WAY.format(hold=hold, inner=inner, closed=closed) if closed != inner else ""
    return ""


def _group_of(account: str) -> str:
    return str(pwd.getpwnam(account).pw_gid)


def _make_group(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    # a new cpuset has none, and takes no process
    for name in ("cpuset.cpus", "cpuset.mems"):
        if (folder / name).exists():
            (folder / name).write_text((folder.parent / name).read_text())
    return folder


def _enter(folder: Path) -> None:
    (folder / "cgroup.procs").write_text("0")


def _removed(top: Path) -> bool:
    for folder, _, _ in os.walk(top, topdown=False):
        with suppress(OSError):
            Path(folder).rmdir()
    return not top.exists()
