"""The executor of one computer: each task has a supervisor, which lives apart from whoever has submitted it.

The supervisor is a unit of systemd, `mlaas4hep-job@FOLDER.service`, or a detached process; all else is the same: what
is known of a task is in its folder, so that any process may ask, and a kill of any process loses nothing.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from mlaas4hep.errors import MlaasError, UsageError
from mlaas4hep.service.attempts import (
    Attempt,
    begun,
    held,
    hold,
    outcome_of,
    read_log,
    want_to_stop,
    write_attempt,
)
from mlaas4hep.service.executor import Outcome, Resources, Task
from mlaas4hep.service.jobs import read_json
from mlaas4hep.service.sandbox import gpu_nodes

_INTERVAL = 0.02
_YEARS = 10 * 365 * 24 * 3600  # seconds
_PATIENCE = 60.0  # seconds until a supervisor must have ended its task


class LocalSettings(BaseModel):
    """How tasks are run on this computer.

    Attributes:
        supervisor: `systemd` for units, `process` for detached processes, `auto` for units where systemd runs.
        limits: whether a task may run only where memory, processors and processes can be limited, or without as well.
        environment: further variables of every job's environment; they are no secrets.
        gpus: device nodes of the GPUs; `auto` for all of NVIDIA.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    supervisor: Literal["auto", "systemd", "process"] = "auto"
    limits: Literal["required", "where possible"] = "required"
    environment: dict[str, str] = Field(default_factory=dict)
    gpus: Literal["auto"] | tuple[Path, ...] = "auto"


class LocalExecutor:
    """Runs tasks on this computer.

    Args:
        settings: how.
        places: how many tasks of one folder may run at once, the others wait for them in the order of their
            submission; 0 when all start at once, because whoever submits them has counted.
    """

    def __init__(self, settings: LocalSettings, places: int = 0) -> None:
        self._settings = settings
        self._places = places

    def submit(self, task: Task) -> None:
        """See `Executor.submit`."""
        if task.account and os.geteuid() != 0:
            raise MlaasError("Only root can run jobs of other accounts.", "Leave the account out.")
        devices = gpu_nodes() if self._settings.gpus == "auto" else self._settings.gpus
        if task.resources.gpus > len(devices):
            raise MlaasError(f"It asks for {task.resources.gpus} GPUs, and this computer has {len(devices)}.")
        attempt = Attempt(
            task, self._places, self._settings.limits == "required", self._settings.environment, tuple(devices)
        )
        while (submitting := hold(task.folder, "submitting")) is None:
            time.sleep(_INTERVAL)
        try:
            if not begun(task):
                self._begin(attempt)
        finally:
            os.close(submitting)

    def _begin(self, attempt: Attempt) -> None:
        folder = attempt.task.folder
        lock = hold(folder)
        if lock is None:
            if read_json(folder / "task.json").get("key") != attempt.task.key:
                raise MlaasError("Another attempt of this job is still running.")
            return
        try:
            write_attempt(attempt)
            if not self._by_systemd():
                _start_process(folder.absolute(), lock)
        finally:
            os.close(lock)
        if self._by_systemd():
            _start_unit(folder)

    def status(self, task: Task) -> Outcome:
        """See `Executor.status`."""
        return outcome_of(task)

    def logs(self, task: Task, offset: int = 0) -> Iterator[bytes]:
        """See `Executor.logs`."""
        return read_log(task, offset)

    def cancel(self, task: Task) -> None:
        """See `Executor.cancel`. Raises MlaasError when the task cannot be stopped."""
        if self.status(task).state.final:
            return
        want_to_stop(task)
        deadline = time.monotonic() + _PATIENCE
        while not self.status(task).state.final or held(task.folder):
            if time.monotonic() > deadline:
                raise MlaasError(f"The job in {task.folder.name} does not stop.", "Try again.")
            time.sleep(_INTERVAL)

    def _by_systemd(self) -> bool:
        if self._settings.supervisor == "auto":
            return Path("/run/systemd/system").is_dir()
        return self._settings.supervisor == "systemd"


def places() -> int:
    """How many jobs of `mlaas4hep job submit` may run at once: MLAAS4HEP_JOBS, by default 1."""
    text = os.environ.get("MLAAS4HEP_JOBS", "1")
    if not text.isdigit() or int(text) < 1:
        raise UsageError(f"MLAAS4HEP_JOBS is {text!r}.", "Set it to a positive number.")
    return int(text)


def whole_computer(folder: Path) -> Resources:
    """All that this computer has but a sixteenth of its memory, and the disk that is free where a folder is."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return Resources(
        cpus=os.cpu_count() or 1,
        memory=memory - memory // 16,
        gpus=len(gpu_nodes()),
        seconds=_YEARS,
        disk=shutil.disk_usage(folder).free,
    )


def _start_process(folder: Path, lock: int) -> None:
    """Start a supervisor that takes the lock over and belongs to nobody."""
    setsid = shutil.which("setsid")
    if setsid is None:
        raise MlaasError("The program setsid is not there.", "Install util-linux.")
    words = [setsid, "--fork", sys.executable, "-I", "-m", "mlaas4hep.service.supervisor", str(folder), str(lock)]
    with (folder / "log").open("ab") as log:
        # out of the caller's session from the first moment on, and then no child of it
        subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            pass_fds=(lock,),
            start_new_session=True,
            check=True,
        )


def _start_unit(folder: Path) -> None:
    """Start the supervisor's unit; returns when it holds the folder's lock."""
    words = ["systemctl", "--no-ask-password", "start", f"mlaas4hep-job@{folder.name}.service"]
    try:
        done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    except OSError as error:
        raise MlaasError("systemctl is not there.", 'Set supervisor = "process" in the settings.') from error
    if done.returncode:
        problem = done.stderr.strip().splitlines()
        raise MlaasError(f"systemctl start failed: {problem[-1] if problem else done.returncode}.")
