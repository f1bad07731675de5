"""The first process of a user-mode Linux with version 2 of control groups: `version2_machine.py WORKFLOW RESULT`.

Runs supervisors as their unit does: as an account without rights, alone in a group that is delegated to it. Each job's
outcome is written to RESULT as JSON, and the machine is switched off. Its file system is that of the computer, so it
writes to nothing else outside of its own mounts.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import socket
import stat
import subprocess
import sys
import threading
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

from mlaas4hep.service.attempts import Attempt, held, outcome_of, want_to_stop, write_attempt
from mlaas4hep.service.executor import Resources, Task
from mlaas4hep.service.jobs import read_json
from mlaas4hep.service.sandbox import framework

ACCOUNT = 65534
POWER_OFF = 0x4321FEDC  # reboot(2)
PATIENCE = 200
CANCELLED_FROM = 5  # three of bubblewrap, the training, and its child
GROUPS = Path("/sys/fs/cgroup")
MEGABYTE = 2**20
JOBS = {
    "memory": (
        "import os\nheld = []\nwhile True: held.append(os.urandom(2**20) * 8)\n",
        Resources(memory=90 * MEGABYTE),
    ),
    "endpoint": (
        "import socket\nraise ValueError(socket.create_connection(('localhost', 443)).recv(10))\n",
        Resources(),
    ),
    "daemon": ("import os, time\nif os.fork(): os.setsid()\ntime.sleep(1000)\n", Resources()),
}


def mount(kind: str, target: str, *options: str) -> None:
    Path(target).mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", kind, *options, kind, target], check=True)


def open_up(places: list[Path]) -> None:
    """Let everybody read Python, wherever root has it."""
    closed = {}
    for number, place in enumerate(places):
        above = [parent for parent in reversed(place.parents) if not parent.stat().st_mode & stat.S_IXOTH]
        if above:
            kept = Path(f"/run/place{number}")
            kept.mkdir()
            subprocess.run(["mount", "--bind", place, kept], check=True)
            closed[place] = (above[0], kept)
    for top in {above for above, _ in closed.values()}:
        mount("tmpfs", str(top), "-o", "mode=755")
    for place, (_, kept) in closed.items():
        place.mkdir(parents=True)
        subprocess.run(["mount", "--bind", kept, place], check=True)


def supervised(name: str, workflow: Path) -> dict[str, Any]:
    code, resources = JOBS[name]
    folder, unit = Path("/run/jobs", name), GROUPS / f"unit-{name}"
    shutil.copytree(workflow, folder / "input")
    (folder / "input" / "model.py").write_text(code)
    task = Task(name, folder, resources=resources, endpoints=("localhost:443",) if name == "endpoint" else ())
    write_attempt(Attempt(task))
    unit.mkdir()
    given = [unit, *(unit / file for file in ("cgroup.procs", "cgroup.subtree_control", "cgroup.threads"))]
    subprocess.run(["chown", "-R", f"{ACCOUNT}:{ACCOUNT}", folder, *given], check=True)
    account = ["setpriv", f"--reuid={ACCOUNT}", f"--regid={ACCOUNT}", "--clear-groups"]
    process = subprocess.Popen(
        [*account, sys.executable, "-I", "-m", "mlaas4hep.service.supervisor", folder],
        preexec_fn=lambda: (unit / "cgroup.procs").write_text("0"),  # noqa: PLW1509
        cwd="/",
    )
    deadline = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < deadline:
        group = (read_json(folder / "state.json").get("group") or {}).get("pids", "/nonexistent")
        if name == "daemon" and _processes(Path(group)) >= CANCELLED_FROM:
            want_to_stop(task)
        time.sleep(0.1)
    outcome = outcome_of(task)
    return {
        "state": outcome.state,
        "reason": outcome.reason,
        "group": group,
        "left": [path.name for path in unit.iterdir() if path.is_dir()],
        "held": held(folder),
        "log": (folder / "log").read_text()[-2000:] if (folder / "log").exists() else "",
    }


def greet(server: socket.socket) -> None:
    """Answer whoever connects."""
    while True:
        connection, _ = server.accept()
        with connection:
            connection.sendall(b"welcome")


def _processes(group: Path) -> int:
    with suppress(OSError):
        return len((group / "cgroup.procs").read_text().split())
    return 0


def main() -> None:
    workflow, result = Path(sys.argv[1]), Path(sys.argv[2])
    os.environ["PATH"] = "/usr/sbin:/usr/bin:/sbin:/bin"
    mount("proc", "/proc")
    mount("tmpfs", "/run")
    mount("tmpfs", "/dev/shm")
    mount("sysfs", "/sys")
    mount("cgroup2", str(GROUPS))
    (GROUPS / "cgroup.subtree_control").write_text("+cpu +memory +pids")
    open_up(framework())
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    threading.Thread(target=greet, args=[socket.create_server(("127.0.0.1", 443))], daemon=True).start()
    found = {name: supervised(name, workflow) for name in JOBS}
    result.write_text(json.dumps(found))


if __name__ == "__main__":
    if os.getpid() != 1:
        sys.exit("this is for the first process of a machine of its own")
    try:
        main()
    except BaseException:
        traceback.print_exc()
        time.sleep(0.5)  # the console is read by another thread of the kernel
    finally:
        ctypes.CDLL(None).reboot(POWER_OFF)
