"""Several nodes of a cluster that train one task together: the first one's supervisor, and those that follow it.

Slurm starts a supervisor on each node. The first does all that the only one does otherwise: its outcome is the task's.
It writes into the folder, which all nodes share, where the processes meet (`meeting.json`). The others run the same
training in a sandbox of the same kind, with a folder to work in on their own disk, and print to `log.RANK`.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from mlaas4hep.errors import MlaasError
from mlaas4hep.service.attempts import Attempt, outcome_of, wanted_to_stop
from mlaas4hep.service.executor import Task
from mlaas4hep.service.jobs import read_json, write_json
from mlaas4hep.service.sandbox import gpu_nodes, sandboxed

_MEETING = "meeting.json"
_INTERVAL = 0.5
_MEETING_SECONDS = 600.0
_GRACE_SECONDS = 30.0
_ROUTES = Path("/proc/net/route")


def rank(task: Task) -> int:
    """The number of this node among those that train the task, from 0."""
    return int(os.environ.get("SLURM_PROCID", "0")) if task.resources.nodes > 1 else 0


def meet(task: Task) -> dict[str, str]:
    """Choose where the processes meet, and tell the other nodes; returns variables for the first process.

    Raises MlaasError for a task that may not reach the network.
    """
    if not task.network:
        raise MlaasError(
            "A training on several nodes needs their network, which jobs of this service do not have.",
            "Train on one node.",
        )
    interface = _interface()
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as chosen:
        chosen.bind((_address(), 0))
        host, port = chosen.getsockname()
    url = f"tcp://{host}:{port}"
    write_json(task.folder / _MEETING, {"key": task.key, "url": url})
    return _environment(url, task, 0, interface)


def follow(attempt: Attempt, number: int) -> int:
    """Train with the first node until the training or the task ends; returns the exit status."""
    task = attempt.task
    url = _wait_for_meeting(task)
    if not url:
        return 1
    work = Path(tempfile.mkdtemp(prefix="mlaas4hep-node-", dir="/var/tmp"))
    try:
        # what it tells of its progress is the first node's to tell
        with (task.folder / f"log.{number}").open("ab") as log, Path(os.devnull).open("ab") as nobody:
            words = _words(attempt, work, _environment(url, task, number, _interface()), nobody.fileno())
            with subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/", pass_fds=[nobody.fileno()]
            ) as process:
                return _watch(process, task)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _wait_for_meeting(task: Task) -> str:
    """Where the processes meet; nothing when the task ends before they do."""
    end = time.monotonic() + _MEETING_SECONDS
    while time.monotonic() < end and not _over(task):
        facts = read_json(task.folder / _MEETING)
        if facts.get("key") == task.key:
            return str(facts["url"])
        time.sleep(_INTERVAL)
    return ""


def _over(task: Task) -> bool:
    """Whether the task has an outcome. That of a living one is `interrupted` here: its lock is another node's."""
    return wanted_to_stop(task) or ((task.folder / "result.json").exists() and outcome_of(task).state.final)


def _words(attempt: Attempt, work: Path, meeting: Mapping[str, str], told: int) -> list[str]:
    task = attempt.task
    cpus = str(task.resources.cpus)
    environment = {
        "HOME": str(work / "home"),
        "USER": "mlaas4hep",
        "LOGNAME": "mlaas4hep",
        "MLAAS4HEP_HOME": str(work / "home"),
        "MLAAS4HEP_CACHE": str(work / "store"),
        "NUMBA_CACHE_DIR": str(work / "numba"),
        "OMP_NUM_THREADS": cpus,
        "NUMBA_NUM_THREADS": cpus,
        "PYTHONUNBUFFERED": "1",
    }
    program = ["mlaas4hep.service.runner", str(task.folder / "input"), str(work / "model"), str(told), "2"]
    return sandboxed(
        [sys.executable, "-P", "-m", *program],
        writes=[work],
        reads=[task.folder / "input", *task.reads],
        environment={**environment, **attempt.environment, **meeting},
        network=True,
        gpus=list(gpu_nodes()) if task.resources.gpus else [],
    )


def _watch(process: subprocess.Popen[bytes], task: Task) -> int:
    """Wait for its end; without the first node it would wait in vain."""
    left: float | None = None
    while process.poll() is None:
        if left is None and _over(task):
            left = time.monotonic() + _GRACE_SECONDS
        if left is not None and time.monotonic() > left:
            process.kill()
        time.sleep(_INTERVAL)
    return process.returncode


def _environment(url: str, task: Task, number: int, interface: str) -> dict[str, str]:
    from mlaas4hep.training.launch import RENDEZVOUS  # NumPy is in it, which a supervisor of one node does without

    world = str(task.resources.nodes)
    return {RENDEZVOUS: url, "RANK": str(number), "WORLD_SIZE": world, "GLOO_SOCKET_IFNAME": interface}


def _interface() -> str:
    """The network interface that the default route leads through: that of the nodes' network."""
    rows = [line.split() for line in _ROUTES.read_text().splitlines()[1:]]
    found = next((row[0] for row in rows if row[1] == "00000000" and row[7] == "00000000"), "")
    if not found:
        raise MlaasError("The node has no default route over IPv4, so that the others could not reach it.")
    return found


def _address() -> str:
    """This node's address in that network; nothing is sent to the one that is named here (RFC 5737)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))
        return str(probe.getsockname()[0])
