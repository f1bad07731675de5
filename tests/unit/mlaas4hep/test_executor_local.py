"""The executor of one computer, against jobs that mean harm and kills at the worst moments."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mlaas4hep.errors import MlaasError
from mlaas4hep.service.attempts import held, read_attempt, wanted_to_stop
from mlaas4hep.service.cgroups import ControlGroup
from mlaas4hep.service.executor import Outcome, Resources, State, Task
from mlaas4hep.service.jobs import read_json, write_json
from mlaas4hep.service.local import LocalExecutor, LocalSettings
from mlaas4hep.service.usage import recorded
from tests.confinement import require_confinement

DEADLINE = 300.0
MEGABYTE = 2**20


@pytest.fixture(scope="module", autouse=True)
def _able() -> None:
    require_confinement()


@pytest.fixture
def executor() -> LocalExecutor:
    return LocalExecutor(LocalSettings(supervisor="process"))


Make = Callable[..., Task]


@pytest.fixture
def make(tmp_path: Path, workflow_folder: Path, executor: LocalExecutor) -> Iterator[Make]:
    """Makes jobs of users' model.py; none is left running."""
    made: list[Task] = []

    def new(code: str, name: str = "job", **resources: int) -> Task:
        folder = tmp_path / "jobs" / name
        folder.mkdir(parents=True)
        shutil.copytree(workflow_folder, folder / "input")
        (folder / "input" / "model.py").write_text(code)
        limits = {"seconds": 200, "memory": 1500 * MEGABYTE, "disk": 500 * MEGABYTE} | resources
        task = Task(f"{name}-1", folder, resources=Resources(**limits))
        made.append(task)
        return task

    yield new
    for task in made:
        executor.cancel(task)


def until(condition: Callable[[], bool], what: str | Callable[[], str]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, what if isinstance(what, str) else what()
        time.sleep(0.05)


def end_of(executor: LocalExecutor, task: Task) -> Outcome:
    until(lambda: executor.status(task).state.final and not held(task.folder), f"{task.folder} does not end")
    return executor.status(task)


def log_of(executor: LocalExecutor, task: Task) -> str:
    return b"".join(executor.logs(task)).decode(errors="replace")


def run(executor: LocalExecutor, task: Task) -> tuple[Outcome, str]:
    executor.submit(task)
    return end_of(executor, task), log_of(executor, task)


def supervisor_of(task: Task) -> int:
    """The number of the process that supervises a task."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"mlaas4hep.service.supervisor" in words and os.fsencode(task.folder) in words:
            return int(entry.name)
    raise AssertionError(f"nobody supervises {task.folder}")


def group_of(task: Task) -> ControlGroup:
    folders = read_json(task.folder / "state.json").get("group") or {}
    return ControlGroup({name: Path(path) for name, path in folders.items()})


def in_log(executor: LocalExecutor, task: Task, text: str) -> None:
    until(lambda: text in log_of(executor, task), lambda: f"{text!r} does not come: {log_of(executor, task)}")


ATTACK = """
import ctypes, json, os, socket, subprocess, sys
from pathlib import Path

facts = json.loads(Path(__file__).with_name("facts.json").read_text())
libc = ctypes.CDLL(None, use_errno=True)
succeeded = []

def call(name, *words):
    if libc[name](*words) < 0:
        raise OSError(ctypes.get_errno())

def unix(address):
    socket.socket(socket.AF_UNIX).connect(address)

def read_all_environments():
    texts = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/environ")]
    assert any(b"hunter2" in text for text in texts)

def raise_limit():
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

def use_set_uid():
    assert subprocess.run(["su", "-c", "true"], stdin=subprocess.DEVNULL).returncode == 0

folder = Path(facts["folder"])
attempts = {
    "read the service's secret": lambda: Path(facts["secret"]).read_text(),
    "read another job": lambda: os.listdir(facts["neighbour"]),
    "list the jobs": lambda: (folder.parent / "neighbour").stat(),
    "read the passwords": lambda: Path("/etc/shadow").read_text(),
    "read root's home": lambda: Path("~root/.bashrc").expanduser().read_text(),
    "read the state of the computer": lambda: os.listdir("/var/lib"),
    "see the service's environment": read_all_environments,
    "see other processes": lambda: os.kill(facts["victim"], 0),
    "kill another process": lambda: os.kill(facts["victim"], 9),
    "trace another process": lambda: call("ptrace", 16, facts["victim"], 0, 0),
    "forge the result": lambda: (folder / "result.json").write_text("{}"),
    "exchange the log": lambda: (folder / "log").unlink(),
    "change the input": lambda: (folder / "input" / "model.py").write_text("0"),
    "write to the system": lambda: Path("/usr/x").write_text("0"),
    "write to the framework": lambda: Path(sys.prefix, "x").write_text("0"),
    "write to /etc": lambda: Path("/etc/x").write_text("0"),
    "write to the root folder": lambda: Path("/x").write_text("0"),
    "link a file of the system": lambda: os.link("/etc/passwd", "passwd"),
    "make a namespace of users": lambda: call("unshare", 0x10000000),
    "make a namespace of mounts": lambda: call("unshare", 0x00020000),
    "mount": lambda: call("mount", b"none", b"/tmp", b"tmpfs", 0, None),
    "change the root": lambda: os.chroot("/tmp"),
    "change the host's name": lambda: socket.sethostname("x"),
    "make a device": lambda: os.mknod("device", 0o60600, os.makedev(254, 0)),
    "change the kernel's settings": lambda: Path("/proc/sys/vm/overcommit_memory").write_text("1"),
    "read the kernel's log": lambda: os.open("/dev/kmsg", os.O_RDONLY),
    "leave its control group": lambda: next(Path("/sys/fs").glob("**/cgroup.procs")).write_text("0"),
    "become root": lambda: os.setuid(0),
    "raise its limit of disk": raise_limit,
    "use a set-uid program": use_set_uid,
    "connect to a service of this computer": lambda: socket.create_connection(("127.0.0.1", facts["port"]), 5),
    "connect to a socket without a file": lambda: unix(facts["abstract"]),
    "connect to the cloud's metadata": lambda: socket.create_connection(("169.254.169.254", 80), 5),
    "connect to the world": lambda: socket.create_connection(("1.1.1.1", 443), 5),
}
for name, action in attempts.items():
    try:
        action()
    except BaseException:
        continue
    succeeded.append(name)
print("SUCCEEDED", json.dumps(succeeded), len(attempts), flush=True)
print("VARIABLES", json.dumps(sorted(os.environ)), flush=True)
raise SystemExit(1)
"""


def test_a_job_reaches_nothing_but_its_own_folder(
    executor: LocalExecutor, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SERVICE_SECRET", "hunter2")
    secret = tmp_path / "secret"
    secret.write_text("hunter2")
    neighbour = make("", "neighbour")
    task = make(ATTACK)
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.socket(socket.AF_UNIX) as abstract,
        subprocess.Popen(["sleep", "1000"]) as victim,
    ):
        abstract.bind(f"\0mlaas4hep-{os.getpid()}")
        abstract.listen()
        facts = {
            "secret": str(secret),
            "neighbour": str(neighbour.folder),
            "folder": str(task.folder),
            "victim": victim.pid,
            "port": server.getsockname()[1],
            "abstract": f"\0mlaas4hep-{os.getpid()}",
        }
        (task.folder / "input" / "facts.json").write_text(json.dumps(facts))
        outcome, log = run(executor, task)
        assert victim.poll() is None
        victim.kill()
    told = next(line for line in log.splitlines() if line.startswith("SUCCEEDED"))
    assert told == "SUCCEEDED [] 34", log
    variables = json.loads(next(line for line in log.splitlines() if "VARIABLES" in line).partition(" ")[2])
    assert "SERVICE_SECRET" not in variables
    assert outcome.state is State.FAILED
    assert not (task.folder / "work").exists()


def test_memory_beyond_the_limit_ends_the_job_and_nobody_else(executor: LocalExecutor, make: Make) -> None:
    neighbour = make("print('ready', flush=True)\nimport time\ntime.sleep(600)\n", "neighbour")
    executor.submit(neighbour)
    in_log(executor, neighbour, "ready")
    code = """
import os, time
if os.fork():
    time.sleep(600)  # what did not take the memory ends as well
held = []
while True:
    held.append(bytearray(os.urandom(2**20)) * 8)
"""
    task = make(code, memory=800 * MEGABYTE)
    outcome, _ = run(executor, task)
    assert outcome == Outcome(
        State.OUT_OF_MEMORY,
        "It needed more memory than the 800 MiB that it may use.",
        outcome.started,
        outcome.ended,
    )
    assert executor.status(neighbour).state is State.RUNNING
    assert group_of(neighbour).processes()
    used = recorded(task.folder, task.key)
    assert used
    assert used["cpu_seconds"] > 0
    assert 200 * MEGABYTE < used["memory"] <= 800 * MEGABYTE
    assert recorded(task.folder, "another-1") is None


def test_a_fork_bomb_is_bounded_and_leaves_nothing(executor: LocalExecutor, make: Make) -> None:
    code = """
import os, time
print("bomb", flush=True)
while True:
    try:
        os.fork()
    except OSError:
        time.sleep(1000)
"""
    task = make(code, memory=4000 * MEGABYTE)
    executor.submit(task)
    in_log(executor, task, "bomb")
    group = group_of(task)
    folder = group.folders["pids"]
    until(lambda: (folder / "pids.events").read_text() != "max 0\n", "the bomb did not go off")
    assert len(group.processes()) <= int((folder / "pids.max").read_text())
    assert subprocess.run(["true"], check=False).returncode == 0
    executor.cancel(task)
    assert executor.status(task).state is State.CANCELLED
    assert group.processes() == []


@pytest.mark.parametrize(
    "how",
    [
        "open(f'part{number}', 'wb')",  # many files, each smaller than the limit
        "deleted(f'part{number}')",  # files that no folder names
        "hidden(number)",  # in a folder that cannot be listed
    ],
)
def test_a_disk_cannot_be_filled(executor: LocalExecutor, make: Make, how: str) -> None:
    code = f"""
import os
kept = []
def deleted(name):
    stream = open(name, "wb")
    os.unlink(name)
    kept.append(stream)
    return stream
def hidden(number):
    if not number:
        os.mkdir("hidden")
        os.chmod("hidden", 0o300)
    return open(f"hidden/{{number}}", "wb")
for number in range(100_000):
    stream = {how}
    stream.write(os.urandom(2**20))
    stream.flush()
"""
    task = make(code, disk=100 * MEGABYTE)
    outcome, _ = run(executor, task)
    assert outcome.state is State.FAILED
    assert (recorded(task.folder, task.key) or {})["disk"] > 100 * MEGABYTE
    assert outcome.reason == "It wrote more than the 100 MiB that it may."


def test_no_file_is_larger_than_the_disk_that_a_job_may_use(executor: LocalExecutor, make: Make) -> None:
    code = "stream = open('big', 'wb')\nstream.truncate(99 * 2**20)\nstream.truncate(101 * 2**20)\n"
    outcome, _ = run(executor, make(code, disk=100 * MEGABYTE))
    assert outcome.state is State.FAILED
    assert "model.py, line 3: OSError: [Errno 27] File too large" in outcome.reason


def test_a_job_ends_at_its_limit_of_time(executor: LocalExecutor, make: Make) -> None:
    outcome, _ = run(executor, make("import time\nwhile True: time.sleep(1)\n", seconds=3))
    assert (outcome.state, outcome.reason) == (State.TIME_LIMIT, "It ran longer than the 3 s that it may.")


DAEMON = """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        while True:
            time.sleep(0.05)
    os._exit(0)
print("daemon", flush=True)
while True:
    time.sleep(1)
"""


def test_cancelling_ends_everything_that_a_job_has_started(executor: LocalExecutor, make: Make) -> None:
    task = make(DAEMON)
    executor.submit(task)
    in_log(executor, task, "daemon")
    group = group_of(task)
    assert len(group.processes()) >= 3
    executor.cancel(task)
    assert executor.status(task).state is State.CANCELLED
    assert not any(folder.exists() for folder in group.folders.values())
    executor.cancel(task)
    executor.submit(task)
    assert executor.status(task).state is State.CANCELLED


def test_a_job_that_was_cancelled_before_it_began_never_runs(executor: LocalExecutor, make: Make) -> None:
    task = make("print('ran')\n")
    write_json(task.folder / "cancelled", {"key": task.key})
    assert executor.status(task).state is State.CANCELLED
    outcome, log = run(executor, task)
    assert outcome.state is State.CANCELLED
    assert "ran" not in log


def test_submitting_again_and_again_runs_once(executor: LocalExecutor, make: Make) -> None:
    task = make("print('ran', flush=True)\nimport time\ntime.sleep(1)\nraise SystemExit(1)\n")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(executor.submit, [task] * 16))
    outcome = end_of(executor, task)
    executor.submit(task)
    assert not held(task.folder)
    assert outcome.state is State.FAILED
    assert log_of(executor, task).count("ran") == 1


def test_a_job_outlives_the_kill_of_whoever_submitted_it(executor: LocalExecutor, make: Make) -> None:
    task = make("import time\nprint('begun', flush=True)\ntime.sleep(1)\nraise RuntimeError('the end')\n")
    code = f"""
import os, signal
from pathlib import Path
from mlaas4hep.service.executor import Task
from mlaas4hep.service.local import LocalExecutor, LocalSettings
LocalExecutor(LocalSettings(supervisor="process")).submit(Task({task.key!r}, Path({str(task.folder)!r})))
os.killpg(0, signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code], start_new_session=True, check=False)
    assert done.returncode == -signal.SIGKILL
    assert not executor.status(task).state.final
    outcome = end_of(executor, task)
    assert outcome.state is State.FAILED
    assert outcome.reason.startswith(f"{task.folder}/input/model.py, line 4: RuntimeError: the end.")


def test_a_killed_supervisor_takes_its_job_along_and_another_attempt_goes_on(
    executor: LocalExecutor, make: Make
) -> None:
    task = make(DAEMON)
    executor.submit(task)
    in_log(executor, task, "daemon")
    group = group_of(task)
    os.kill(supervisor_of(task), signal.SIGKILL)
    until(lambda: executor.status(task).state is State.INTERRUPTED, "it still lives")
    until(lambda: not group.processes(), "its processes still live")
    executor.submit(task)
    assert executor.status(task).state is State.INTERRUPTED, "one attempt does not run twice"
    again = Task("job-2", task.folder, resources=task.resources)
    executor.submit(again)
    until(lambda: log_of(executor, again).count("daemon") == 2, "the second attempt does not run")
    assert executor.status(task).state is State.INTERRUPTED
    executor.cancel(again)
    assert executor.status(again).state is State.CANCELLED


def test_a_supervisor_that_is_asked_to_end_interrupts_its_job(executor: LocalExecutor, make: Make) -> None:
    task = make(DAEMON)
    executor.submit(task)
    in_log(executor, task, "daemon")
    group = group_of(task)
    os.kill(supervisor_of(task), signal.SIGTERM)
    until(lambda: executor.status(task).state.final, "it still lives")
    assert executor.status(task).state is State.INTERRUPTED
    assert not wanted_to_stop(task)
    assert group.processes() == []


def test_an_interrupted_training_goes_on_from_its_checkpoint(
    executor: LocalExecutor, make: Make, set_parameters: Callable[..., None]
) -> None:
    code = (
        "from sklearn.linear_model import SGDClassifier\ndef model(idim):\n    return SGDClassifier(loss='log_loss')\n"
    )
    task = make(code)
    set_parameters(task.folder / "input", identifier="event", epochs=100_000, batch_size=32)
    executor.submit(task)
    in_log(executor, task, "epoch 3/")
    os.kill(supervisor_of(task), signal.SIGKILL)
    until(lambda: executor.status(task).state is State.INTERRUPTED, "it still lives")
    executor.submit(again := Task("job-2", task.folder, resources=task.resources))
    in_log(executor, again, "Going on after epoch")
    executor.cancel(again)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import os\nprint('last words', flush=True)\nos._exit(7)", "It ended with the exit status 7.\n"),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)", "It was ended by the signal SIGSEGV; see its log."),
        ("import os\nos._exit(0)", "It ended without a model. See its log."),
        ("def model(idim):\n    return idim.nonsense", "model.py, line 2: AttributeError: "),
        (
            "import os\nos.makedirs('model/x')\nopen('model/bundle.json', 'w')\nos.symlink('/etc', 'model/x/y')\n"
            "os._exit(0)",
            "The model folder holds y, which is neither a file nor a folder.",
        ),
    ],
)
def test_why_a_job_failed(executor: LocalExecutor, make: Make, code: str, reason: str) -> None:
    outcome, log = run(executor, make(code))
    assert outcome.state is State.FAILED
    assert reason in outcome.reason, log
    assert not (make("", "other").folder / "model").exists()


def test_only_what_was_asked_for_is_run(executor: LocalExecutor, make: Make, tmp_path: Path) -> None:
    task = make("")
    words = [sys.executable, "-m", "mlaas4hep.service.supervisor", str(task.folder)]
    refused = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (refused.returncode, refused.stderr) == (
        1,
        f"mlaas4hep: {task.folder} has no task. Submit the job again.\n",
    )
    with pytest.raises(MlaasError, match="asks for 3 GPUs"):
        LocalExecutor(LocalSettings(supervisor="process", gpus=(Path("/dev/nvidia0"),))).submit(
            Task("gpu", task.folder, resources=Resources(gpus=3))
        )
    assert not (task.folder / "task.json").exists()
    outcome, _ = run(executor, Task("reads", task.folder, reads=(tmp_path / "missing",)))
    assert outcome.state is State.FAILED
    assert f"Can't find source path {tmp_path}/missing" in outcome.reason
    assert read_attempt(task.folder).task.reads == (tmp_path / "missing",)


def test_a_task_may_use_the_network_when_it_is_allowed_to(executor: LocalExecutor, make: Make) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        task = make(f"import socket\nsocket.create_connection(('127.0.0.1', {port}))\nprint('connected')\n1/0\n")
        allowed = Task(task.key, task.folder, resources=task.resources, network=True)
        _, log = run(executor, allowed)
    assert "connected" in log


def test_compiled_kernels_are_brought_along_and_cannot_be_changed_for_others(
    executor: LocalExecutor, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernels = tmp_path / "kernels"
    kernels.mkdir()
    (kernels / "one.nbc").write_text("compiled")
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(kernels))
    code = """
import os
from pathlib import Path
mine = Path(os.environ["NUMBA_CACHE_DIR"], "one.nbc")
print(mine.read_text())
mine.write_text("changed")
print(mine.read_text())
1 / 0
"""
    _, log = run(executor, make(code))
    assert "compiled\nchanged\n" in log
    assert (kernels / "one.nbc").read_text() == "compiled"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_root_runs_a_task_as_the_account_that_is_asked_for(executor: LocalExecutor, make: Make) -> None:
    task = make("import os\nprint('account', os.getuid(), os.getgroups())\n1/0\n")
    _, log = run(executor, Task(task.key, task.folder, account="nobody", resources=task.resources))
    assert "account 65534 []" in log
    for account, complaint in (("root", "Jobs are not run as root."), ("x-y-z", "This computer has no account x-y-z.")):
        other = make("print('ran')\n", f"other-{account}")
        outcome, log = run(executor, Task(other.key, other.folder, account=account, resources=other.resources))
        assert (outcome.state, outcome.reason) == (State.FAILED, complaint)
        assert "ran" not in log
