"""The process that looks after one attempt: `python -m mlaas4hep.service.supervisor FOLDER [LOCK]`.

It holds the folder's lock for as long as it lives, so that an attempt is never run twice at once. It runs the training
in a sandbox and a control group, ends it with all that it has started when a limit is reached or somebody wants it to
stop, and records how it ended. When it is itself ended before that, there is no record, and the attempt counts as
interrupted.
"""

from __future__ import annotations

import math
import os
import resource
import select
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
import traceback
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from mlaas4hep.errors import MlaasError
from mlaas4hep.service.attempts import (
    Attempt,
    begun,
    held,
    hold,
    read_attempt,
    record_result,
    record_state,
    wanted_to_stop,
)
from mlaas4hep.service.cgroups import ControlGroup, make_group, own_group
from mlaas4hep.service.disk import DiskFullError, DiskWatch
from mlaas4hep.service.executor import Outcome, State, Task
from mlaas4hep.service.jobs import SOCKET, all_jobs, give, now, read_json
from mlaas4hep.service.network import JobNetwork
from mlaas4hep.service.nodes import follow, meet, rank
from mlaas4hep.service.sandbox import Gate, gpu_nodes, sandboxed
from mlaas4hep.service.usage import Usage

_INTERVAL = 0.5
_USAGE_INTERVAL = 10.0  # seconds between two records of what is used
_REASON_BYTES = 8192
_LOG_LINES = 3
_FIRST_ACCOUNT, _ACCOUNTS = 1_000_000_000, 500_000_000
# first to go when the whole computer runs out of memory
_OOM_SCORE = "500"
_MANIFEST = "bundle.json"


class _InterruptedError(Exception):
    """The supervisor itself has to end."""


class _EndedError(Exception):
    """The attempt ends here, for the reason that the outcome tells."""

    def __init__(self, state: State, reason: str = "") -> None:
        super().__init__(reason)
        self.state = state
        self.reason = reason


@dataclass(frozen=True)
class Rival:
    """A living job as the queue sees it."""

    identifier: str
    running: bool


def may_start(identifier: str, living: Sequence[Rival], places: int) -> bool:
    """Whether it is this job's turn.

    Args:
        identifier: the waiting job.
        living: all living jobs, in the order of submission.
        places: how many may run at once.
    """
    running = sum(job.running for job in living)
    waiting = [job.identifier for job in living if not job.running]
    return running < places and waiting[:1] == [identifier]


def supervise(folder: Path, lock: int | None = None) -> None:
    """Run the attempt that is recorded in a folder, unless it was taken up before, and record how it ends.

    Args:
        folder: the job's.
        lock: file descriptor of its lock, when it is held already.

    Raises MlaasError for a folder without a task.
    """
    attempt = read_attempt(folder)
    if number := rank(attempt.task):
        _ready()
        if follow(attempt, number):
            raise MlaasError(f"The training on the node {number} failed.", f"See log.{number} in the job's folder.")
        return
    lock = hold(folder) if lock is None else lock
    if lock is None or begun(attempt.task):
        _ready()
        return
    os.set_inheritable(lock, False)
    _end_remains(folder)
    record_state(attempt.task, State.QUEUED)
    supervision = _Supervision(attempt)
    _ready()
    with suppress(_InterruptedError):
        outcome = supervision.outcome()
        # a limit of time leaves the checkpoints, so that another attempt goes on from there
        if outcome.state is not State.TIME_LIMIT:
            _discard(folder / "work")
        record_result(attempt.task, outcome)


class _Supervision:
    """One attempt, from waiting for its turn to its outcome."""

    def __init__(self, attempt: Attempt) -> None:
        self._attempt = attempt
        self._task = attempt.task
        self._folder = attempt.task.folder
        self._started = ""
        self._stopping = False
        self._devices: list[Path] = []
        self._usage = Usage()
        self._meeting: dict[str, str] = {}
        self._wake, self._woken = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.signal(signal.SIGTERM, self._stop)

    def _stop(self, *_: object) -> None:
        self._stopping = True
        os.write(self._woken, b"\0")

    def outcome(self) -> Outcome:
        """Run it to its end. Raises _InterruptedError when the supervisor has to end before."""
        try:
            if self._attempt.places:
                self._wait_for(self._turn)
            self._wait_for(self._gpus)
            self._run()
        except _EndedError as end:
            return Outcome(end.state, end.reason, self._started, now())
        except MlaasError as error:
            return Outcome(State.FAILED, str(error), self._started, now())
        except (OSError, subprocess.SubprocessError) as error:
            traceback.print_exc()
            reason = f"It could not be run: {error}."
            return Outcome(State.FAILED, reason, self._started, now())
        return Outcome(State.FINISHED, "", self._started, now())

    def _heed(self) -> None:
        """Raise when it has to stop."""
        if wanted_to_stop(self._task):
            raise _EndedError(State.CANCELLED)
        if self._stopping:
            raise _InterruptedError

    def _pause(self, seconds: float, *others: int) -> bool:
        """Wait until one of the others can be read (True), it has to stop, or the time is over."""
        ready, _, _ = select.select([self._wake, *others], [], [], max(seconds, 0))
        return any(other in ready for other in others)

    def _wait_for(self, condition: Callable[[], bool]) -> None:
        self._heed()
        while not condition():
            self._pause(_INTERVAL)
            self._heed()

    def _turn(self) -> bool:
        """Take a place when it is this job's turn; a job that dies gives its place back with its lock."""
        queue = hold(self._folder.parent, ".queue")
        if queue is None:
            return False
        try:
            living = [
                Rival(job.identifier, read_json(job.folder / "state.json").get("state") == State.RUNNING)
                for job in all_jobs(self._folder.parent)
                if held(job.folder)
            ]
            if not may_start(self._folder.name, living, self._attempt.places):
                return False
            record_state(self._task, State.RUNNING)
        finally:
            os.close(queue)
        return True

    def _gpus(self) -> bool:
        """Take as many GPUs as it asks for, or none; they are its own until the supervisor ends."""
        if self._attempt.scheduled:
            # the control group lets it open only those that it was given
            self._devices = list(gpu_nodes()) if self._task.resources.gpus else []
            return True
        taken: dict[Path, int] = {}
        for device in self._attempt.devices:
            if len(taken) < self._task.resources.gpus:
                lock = hold(self._folder.parent, f".gpu-{device.name}")
                if lock is not None:
                    taken[device] = lock
        if len(taken) < self._task.resources.gpus:
            for lock in taken.values():
                os.close(lock)
            return False
        self._devices = list(taken)
        return True

    def _run(self) -> None:
        """Train in the sandbox; raises what ends it, and returns when there is a model."""
        work = self._folder / "work"
        work.mkdir(exist_ok=True)
        _bring_kernels(work / "numba")
        account = _account(self._task)
        if self._task.resources.nodes > 1:
            self._meeting = meet(self._task)
        if account is not None:
            places = [str(self._folder / "input"), str(work)]
            # what it has already stays untouched: the store of an earlier attempt goes by the times of its files
            change = ["chown", "--no-dereference", f"{account}:{account}", "{}", "+"]
            subprocess.run(["find", *places, "!", "-user", str(account), "-exec", *change], check=True)
        group = self._group()
        limits = own_group() if self._attempt.scheduled else group
        self._started = now()
        groups = {name: str(path) for name, path in group.folders.items()} if group else {}
        record_state(self._task, State.RUNNING, started=self._started, group=groups)
        with (
            _appended(self._folder / "log") as log,
            _appended(self._folder / "progress.jsonl") as progress,
            tempfile.TemporaryFile(dir=self._folder) as told,
            JobNetwork(self._task.endpoints, self._folder) as network,
        ):
            words = self._words(account, progress.fileno(), told.fileno(), network.gate)
            passed = [progress.fileno(), told.fileno()]
            if network.gate:
                passed += [network.gate.tell, network.gate.wait]
            process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                pass_fds=passed,
                preexec_fn=lambda: self._restrict(group),  # noqa: PLW1509  (this process has no threads)
            )
            try:
                network.begin(log.fileno(), account)
                self._watch(process, limits)
            finally:
                out_of_memory = limits is not None and limits.killed_for_memory()
                process.kill()
                status = process.wait()
                self._usage.end()
                self._usage.record(self._task)
                if group:
                    group.end()
                # what the job may have done to it
                for stream in (log, progress):
                    os.fchmod(stream.fileno(), 0o640)
            if status:
                if out_of_memory:
                    raise _EndedError(State.OUT_OF_MEMORY, _memory_reason(self._task))
                told.seek(0)
                reason = told.read(_REASON_BYTES).decode(errors="replace").replace("\0", "").strip()
                reason = reason or _exit_reason(status, self._folder / "log")
                raise _EndedError(State.FAILED, network.explained(reason))
        if self._task.program == "training":
            _take_model(work / "model", self._folder)

    def _group(self) -> ControlGroup | None:
        if self._attempt.scheduled:
            return None
        name = f"{self._folder.name}-{zlib.crc32(os.fsencode(self._folder.absolute())):08x}"
        try:
            return make_group(name, self._task.resources)
        except MlaasError as error:
            if self._attempt.limited:
                raise
            print(f"memory and processes of this job are not limited: {error.message}", file=sys.stderr, flush=True)
            return None

    def _words(self, account: int | None, progress: int, told: int, gate: Gate | None) -> list[str]:
        work, cpus = self._folder / "work", str(self._task.resources.cpus)
        home = str(work / "home")
        environment = {
            "HOME": home,
            "USER": "mlaas4hep",
            "LOGNAME": "mlaas4hep",
            "MLAAS4HEP_HOME": home,
            "MLAAS4HEP_CACHE": str(work / "store"),
            "NUMBA_CACHE_DIR": str(work / "numba"),
            "OMP_NUM_THREADS": cpus,
            "TF_NUM_INTRAOP_THREADS": cpus,
            "TF_NUM_INTEROP_THREADS": cpus,
            "NUMBA_NUM_THREADS": cpus,
            "PYTHONUNBUFFERED": "1",
        }
        given = str(self._folder / "input")
        program = {
            "training": ["mlaas4hep.service.runner", given, str(work / "model"), str(progress), str(told)],
            "predictions": ["mlaas4hep.serving.native_process", given, SOCKET],
        }
        return sandboxed(
            [sys.executable, "-P", "-m", *program[self._task.program]],
            writes=[work],
            reads=[self._folder / "input", *self._task.reads],
            environment={**environment, **self._attempt.environment, **self._meeting},
            network=self._task.network,
            gate=gate,
            gpus=self._devices,
            account=account,
        )

    def _restrict(self, group: ControlGroup | None) -> None:
        """In the new process, before it becomes the sandbox."""
        if group:
            group.enter()
        disk = self._task.resources.disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (disk, disk))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        Path("/proc/self/oom_score_adj").write_text(_OOM_SCORE)

    def _watch(self, process: subprocess.Popen[bytes], group: ControlGroup | None) -> None:
        """Return when the process has ended; raise when it has to be ended."""
        ended = os.pidfd_open(process.pid)
        seconds = self._task.resources.seconds
        deadline = time.monotonic() + seconds
        disk = DiskWatch([self._folder / name for name in ("work", "log", "progress.jsonl")], self._task.resources.disk)
        told = -math.inf
        try:
            while True:
                pause = min(_INTERVAL, disk.look(group.processes() if group else []), deadline - time.monotonic())
                self._usage.look(group, disk.written)
                if time.monotonic() - told >= _USAGE_INTERVAL:
                    told = time.monotonic()
                    self._usage.record(self._task)
                if self._pause(pause, ended):
                    return
                self._heed()
                if time.monotonic() >= deadline:
                    raise _EndedError(State.TIME_LIMIT, f"It ran longer than the {seconds} s that it may.")
                if group and group.killed_for_memory():
                    raise _EndedError(State.OUT_OF_MEMORY, _memory_reason(self._task))
        except DiskFullError as error:
            raise _EndedError(State.FAILED, str(error)) from error
        finally:
            self._usage.look(group, disk.written)
            os.close(ended)


def _account(task: Task) -> int | None:
    """Number of the account that the task gets from root: the one that is asked for, or one of its own."""
    if os.geteuid() != 0:
        return None
    if task.account:
        import pwd

        try:
            number = pwd.getpwnam(task.account).pw_uid
        except KeyError:
            raise MlaasError(f"This computer has no account {task.account}.") from None
        if number == 0:
            raise MlaasError("Jobs are not run as root.")
        return number
    return _FIRST_ACCOUNT + zlib.crc32(os.fsencode(task.folder.name)) % _ACCOUNTS


def _bring_kernels(target: Path) -> None:
    """Give the job its own copy of the compiled kernels: code that jobs share must not be written by any of them."""
    compiled = Path(os.environ.get("NUMBA_CACHE_DIR") or "/nonexistent")
    if compiled.is_dir() and not target.exists():
        shutil.copytree(compiled, target)


def _appended(path: Path) -> IO[bytes]:
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o640)
    give(descriptor, path.parent)
    return os.fdopen(descriptor, "ab")


def _memory_reason(task: Task) -> str:
    return f"It needed more memory than the {task.resources.memory / 2**20:.0f} MiB that it may use."


def _exit_reason(status: int, log: Path) -> str:
    """Why a process ended that could not say so itself; bubblewrap adds 128 to a signal's number."""
    number = -status if status < 0 else status - 128
    if number in signal.valid_signals():
        return f"It was ended by the signal {signal.Signals(number).name}; see its log."
    with log.open("rb") as stream:
        stream.seek(max(stream.seek(0, os.SEEK_END) - _REASON_BYTES, 0))
        lines = [line for line in stream.read().decode(errors="replace").splitlines() if line.strip()]
    return "\n".join([f"It ended with the exit status {status}.", *lines[-_LOG_LINES:]])


def _take_model(made: Path, folder: Path) -> None:
    """Move the model out of the job's reach. Raises MlaasError for one that is none, or holds more than plain files."""
    if not stat.S_ISDIR(_kind(made)) or not stat.S_ISREG(_kind(made / _MANIFEST)):
        raise MlaasError("It ended without a model.", "See its log.")
    subprocess.run(["chmod", "-R", "u=rwX,g=rX,o=", str(made)], check=True)
    for top, folders, files in os.walk(made):
        for name in (*folders, *files):
            if not stat.S_ISDIR(kind := _kind(Path(top, name))) and not stat.S_ISREG(kind):
                raise MlaasError(f"The model folder holds {name}, which is neither a file nor a folder.")
    if os.geteuid() == 0:
        owner = folder.stat()
        subprocess.run(["chown", "-R", "--no-dereference", f"{owner.st_uid}:{owner.st_gid}", str(made)], check=True)
    target = folder / "model"
    if target.exists():
        shutil.rmtree(target)
    made.rename(target)


def _kind(path: Path) -> int:
    with suppress(OSError):
        return path.lstat().st_mode
    return 0


def _discard(work: Path) -> None:
    """Remove what a job has left, however deep and whatever its permissions."""
    if work.is_dir():
        for words in (["chmod", "-R", "u+rwX"], ["rm", "-rf", "--one-file-system"]):
            subprocess.run([*words, "--", str(work)], stderr=subprocess.DEVNULL, check=False)


def _end_remains(folder: Path) -> None:
    """End what an attempt has left whose supervisor was killed."""
    folders = read_json(folder / "state.json").get("group")
    if folders:
        ControlGroup({name: Path(path) for name, path in folders.items()}).end()


def _ready() -> None:
    """Tell systemd that the attempt is taken up; see sd_notify(3)."""
    address = os.environ.pop("NOTIFY_SOCKET", "")
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as connection:
            connection.connect("\0" + address[1:] if address.startswith("@") else address)
            connection.send(b"READY=1")


def main() -> int:
    """Supervise the folder that the command names."""
    try:
        supervise(Path(sys.argv[1]), int(sys.argv[2]) if sys.argv[2:] else None)
    except MlaasError as error:
        print(f"mlaas4hep: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
