"""The executor of a cluster: each task is a batch job of Slurm, handed over through slurmrestd.

Requests bear a JSON web token for the account that the job runs as, which slurmctld itself checks (auth/jwt), so that
Slurm gives the job that account's user and group. The batch script runs the task's supervisor, as on one computer: the
sandbox is the same, and how the task ended is in its folder, which all nodes share. Slurm limits memory, processors,
devices and time; it is asked only while the folder has no word on the end.

Source of the requests: https://slurm.schedmd.com/archive/slurm-22.05.8/rest_api.html
"""

from __future__ import annotations

import os
import pwd
import re
import shlex
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import OctKey
from pydantic import BaseModel, ConfigDict, Field

from mlaas4hep.errors import MlaasError
from mlaas4hep.service.attempts import (
    Attempt,
    begun,
    held,
    outcome_of,
    read_log,
    want_to_stop,
    wanted_to_stop,
    write_attempt,
)
from mlaas4hep.service.executor import Outcome, Resources, State, Task
from mlaas4hep.service.jobs import read_json, write_json

# the newest first; what a version's answers mean differs, so one that was never tried is not spoken
_VERSIONS = ("v0.0.38",)
_RECORD = "slurm.json"
_OUTPUT = "slurm.log"
_TOKEN_SECONDS = 120
_REQUEST_SECONDS = 60.0
_INTERVAL = 0.1
_GRACE = 15.0  # seconds that a supervisor has to stop its task before Slurm kills both
_PATIENCE = 90.0  # seconds until Slurm must have ended a job
_MARGIN_MINUTES = 2  # the supervisor keeps the time limit; Slurm's comes after it
_LONGEST_SECONDS = 366 * 86400
_SUPERVISOR_MIB, _RELAY_MIB = 64, 64
_OUTPUT_BYTES = 2048
# slurm_errno.h: below are errors of the connection, from here on the controller's own
_FIRST_REFUSAL, _AFTER_REFUSALS = 2000, 4000
_UNKNOWN_JOB = 2017

_WAITING = {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD"}
_LIVING = {"RUNNING", "COMPLETING", "RESIZING", "SIGNALING", "STAGE_OUT", "STOPPED", "SUSPENDED"}
_LOST = {
    "NODE_FAIL": "The node {nodes} failed.",
    "BOOT_FAIL": "The node {nodes} did not start.",
    "PREEMPTED": "Slurm stopped it for a job of higher priority.",
    "REVOKED": "Slurm gave it to another cluster.",
}


class SlurmUnavailableError(Exception):
    """Slurm cannot be asked now; nothing is wrong with the task, so the same call is made again later."""


class SlurmSettings(BaseModel):
    """Where Slurm is, and what its jobs get.

    Attributes:
        url: of slurmrestd: `unix:/PATH` for a socket, or `http://HOST:PORT`.
        key: file with the key (HS256) that slurmctld checks tokens with (`AuthAltParameters=jwt_key=`).
        account: the system account that jobs run as when a task names none; "" for the service's own.
        partition: of Slurm, "" for its default.
        python: the Python of the framework on the nodes; "" for the same path as here.
        environment: further variables of every job's environment; they are no secrets.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str = Field("unix:/run/slurmrestd/socket", pattern=r"^(unix:/.+|https?://.+)$")
    key: Path = Path("/etc/mlaas4hep/slurm.key")
    account: str = Field("", pattern=r"^([a-z_][a-z0-9_-]*)?$")
    partition: str = ""
    python: str = ""
    environment: dict[str, str] = Field(default_factory=dict)


class SlurmExecutor:
    """Runs tasks on a cluster.

    Args:
        settings: which.
    """

    def __init__(self, settings: SlurmSettings) -> None:
        self._settings = settings
        self._rest = _Rest(settings)

    def submit(self, task: Task) -> None:
        """See `Executor.submit`. Raises SlurmUnavailableError when Slurm may or may not have it: call it again."""
        if begun(task):
            return
        account = self._account(task)
        record = _Record.of(task)
        if record is not None:
            if not record.job and (found := self._rest.find(task.key, account)):
                record.with_job(found).write(task)
                record = _Record.of(task)
            if record is not None and record.job:
                return
        if held(task.folder):
            raise SlurmUnavailableError("Another attempt of this job is still running.")
        write_attempt(Attempt(task, environment=self._settings.environment, scheduled=True))
        # from here on the answer may be lost: the next call then looks for a job of this name before it asks again
        _Record(task.key, account, 0).write(task)
        job = self._rest.submit(self._script(task), self._description(task), account)
        _Record(task.key, account, job).write(task)

    def status(self, task: Task) -> Outcome:
        """See `Executor.status`. Raises SlurmUnavailableError."""
        told = outcome_of(task)
        record = _Record.of(task)
        if record is None or (told.state.final and told.state is not State.INTERRUPTED and begun(task)):
            return told
        job = self._job(task, record)
        if job is None:
            return outcome_of(task)
        outcome = _outcome(job, task)
        if outcome.state.final and begun(task):
            # the supervisor's own word, if it has left one, says more than Slurm's
            told = outcome_of(task)
            return told if told.state.final and told.state is not State.INTERRUPTED else outcome
        return outcome

    def logs(self, task: Task, offset: int = 0) -> Iterator[bytes]:
        """See `Executor.logs`."""
        return read_log(task, offset)

    def cancel(self, task: Task) -> None:
        """See `Executor.cancel`. Raises MlaasError when Slurm does not end it, SlurmUnavailableError."""
        record = _Record.of(task)
        if self.status(task).state.final:
            return
        want_to_stop(task)
        begin = time.monotonic()
        while record is not None and (job := self._job(task, record)) and not _ended(job):
            waited = time.monotonic() - begin
            if waited > _PATIENCE:
                raise MlaasError(f"The job {job['job_id']} of Slurm does not end.", "Try again, or see scontrol.")
            if "PENDING" in _states(job) or waited > _GRACE:
                self._rest.cancel(int(job["job_id"]), record.account)
            time.sleep(_INTERVAL)

    def whole_nodes(self, count: int, disk: int) -> Resources:
        """All of `count` nodes, of which the smallest says what each has, but for what the supervisors need.

        Args:
            count: how many.
            disk: bytes that may be written.

        Raises MlaasError when there are fewer, SlurmUnavailableError.
        """
        nodes = self._rest.nodes(self._settings.account or pwd.getpwuid(os.geteuid()).pw_name)
        if len(nodes) < count:
            have = f"{len(nodes)} node{'s' * (len(nodes) != 1)}"
            raise MlaasError(f"The cluster has {have}, and not {count}.", "Ask for fewer.")
        memory = min(int(node["real_memory"]) for node in nodes) - _SUPERVISOR_MIB
        cpus = min(int(node["cpus"]) for node in nodes)
        gpus = min(_gpus(str(node.get("gres") or "")) for node in nodes)
        return Resources(cpus, memory * 2**20, gpus, _LONGEST_SECONDS, disk, count)

    def _job(self, task: Task, record: _Record) -> dict[str, Any] | None:
        """What Slurm knows of the task; None when nothing (any more)."""
        number = record.job or self._rest.find(task.key, record.account)
        job = self._rest.job(number, record.account) if number else None
        # Slurm counts from 1 again when it has lost its own state
        return job if job and job.get("name") == task.key else None

    def _account(self, task: Task) -> str:
        account = task.account or self._settings.account or pwd.getpwuid(os.geteuid()).pw_name
        try:
            number = pwd.getpwnam(account).pw_uid
        except KeyError:
            raise MlaasError(f"This computer has no account {account}.") from None
        if number == 0:
            raise MlaasError("Jobs are not run as root.", "Name an account in the settings of the executor slurm.")
        return account

    def _script(self, task: Task) -> str:
        python = self._settings.python or sys.executable
        folder = task.folder.absolute()
        words = [python, "-I", "-m", "mlaas4hep.service.supervisor", str(folder)]
        if task.resources.nodes > 1:
            # one on each node; how the first ends is what counts, and it looks after the others
            spread = [f"--nodes={task.resources.nodes}", f"--ntasks={task.resources.nodes}", "--ntasks-per-node=1"]
            words = ["srun", *spread, f"--cpus-per-task={task.resources.cpus}", "--kill-on-bad-exit=0", *words]
        # Slurm would replace some characters in the name of a file for the output
        return f"#!/bin/sh\nexec >> {shlex.quote(str(folder / _OUTPUT))} 2>&1\nexec {shlex.join(words)}\n"

    def _description(self, task: Task) -> dict[str, Any]:
        wanted = task.resources
        description: dict[str, Any] = {
            "name": task.key,
            "nodes": wanted.nodes,
            "tasks": wanted.nodes,
            "cpus_per_task": wanted.cpus,
            "memory_per_node": -(-wanted.memory // 2**20) + _SUPERVISOR_MIB + (_RELAY_MIB if task.endpoints else 0),
            "time_limit": -(-wanted.seconds // 60) + _MARGIN_MINUTES,
            # slurmrestd 22.05 takes `requeue` for true whatever its value
            "no_requeue": True,
            "current_working_directory": "/",
            "standard_input": "/dev/null",
            "standard_output": "/dev/null",
            "environment": {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8"},
        }
        # where the supervisor finds compiled kernels: in the service's folder, which is the same on all nodes
        if kernels := os.environ.get("NUMBA_CACHE_DIR"):
            description["environment"]["NUMBA_CACHE_DIR"] = kernels
        if wanted.gpus:
            description["gres"] = f"gpu:{wanted.gpus}"
        if self._settings.partition:
            description["partition"] = self._settings.partition
        return description


@dataclass(frozen=True)
class _Record:
    """What the executor notes in the task's folder.

    Attributes:
        key: the task's.
        account: whom the job was submitted as.
        job: its number; 0 when Slurm was asked and the answer is not known.
    """

    key: str
    account: str
    job: int

    @classmethod
    def of(cls, task: Task) -> _Record | None:
        facts = read_json(task.folder / _RECORD)
        if facts.get("key") != task.key:
            return None
        return cls(task.key, str(facts["account"]), int(facts["job"]))

    def with_job(self, job: int) -> _Record:
        return _Record(self.key, self.account, job)

    def write(self, task: Task) -> None:
        write_json(task.folder / _RECORD, {"key": self.key, "account": self.account, "job": self.job})


class _Rest:
    """Requests to slurmrestd.

    Raises SlurmUnavailableError when there is no answer, or none of the controller's, MlaasError for a refusal.
    """

    def __init__(self, settings: SlurmSettings) -> None:
        self._key = settings.key
        self._url = settings.url
        path = settings.url.removeprefix("unix:")
        socket = path if path != settings.url else None
        self._client = httpx.Client(
            # slurmrestd may be restarted between two requests
            transport=httpx.HTTPTransport(uds=socket, limits=httpx.Limits(max_keepalive_connections=0)),
            base_url="http://slurmrestd" if socket else settings.url,
            timeout=_REQUEST_SECONDS,
        )
        self._version = ""

    def submit(self, script: str, description: dict[str, Any], account: str) -> int:
        """Hand a job over; returns its number."""
        answer = self._ask("POST", "job/submit", account, {"script": script, "job": description})
        number = answer.get("job_id")
        if not isinstance(number, int) or number <= 0:
            raise SlurmUnavailableError("slurmrestd gave a job no number.")
        return number

    def job(self, number: int, account: str) -> dict[str, Any] | None:
        """A job; None for one that Slurm does not know (any more)."""
        answer = self._ask("GET", f"job/{number}", account)
        return next(iter(answer.get("jobs", [])), None)

    def nodes(self, account: str) -> list[dict[str, Any]]:
        """All nodes."""
        return list(self._ask("GET", "nodes", account).get("nodes", []))

    def find(self, name: str, account: str) -> int:
        """Number of the job of this name, 0 for none."""
        jobs = self._ask("GET", "jobs", account).get("jobs", [])
        return next((int(job["job_id"]) for job in jobs if job.get("name") == name), 0)

    def cancel(self, number: int, account: str) -> None:
        """End a job, waiting or running; one that is not there any more is ended."""
        self._ask("DELETE", f"job/{number}", account)

    def _ask(self, method: str, path: str, account: str, content: dict[str, Any] | None = None) -> dict[str, Any]:
        """An answer's content; empty when there is no such job."""
        if not self._version:
            self._version = self._agree(account)
        answer = self._send(method, f"/slurm/{self._version}/{path}", account, content)
        errors = answer.get("errors") or []
        # a job that has to wait, for a node that is down for instance, has a number and an "error" that says so
        if not errors or answer.get("job_id"):
            return answer
        number = int(errors[0].get("error_number", errors[0].get("error_code", -1)))
        text = errors[0].get("description") or errors[0].get("error") or "no reason given"
        if number == _UNKNOWN_JOB:
            return {}
        if _FIRST_REFUSAL <= number < _AFTER_REFUSALS:
            raise MlaasError(f"Slurm refused: {text}.", "See the partition's nodes and limits (sinfo, scontrol).")
        raise SlurmUnavailableError(f"Slurm does not answer: {text} ({number}).")

    def _agree(self, account: str) -> str:
        paths = self._send("GET", "/openapi/v3", account).get("paths", {})
        offered = {path.split("/")[2] for path in paths if path.startswith("/slurm/")}
        for version in _VERSIONS:
            if version in offered:
                return version
        raise SlurmUnavailableError(
            f"slurmrestd at {self._url} offers {', '.join(sorted(offered)) or 'nothing'}, and not {_VERSIONS[0]}."
        )

    def _send(self, method: str, path: str, account: str, content: dict[str, Any] | None = None) -> dict[str, Any]:
        headers = {"X-SLURM-USER-NAME": account, "X-SLURM-USER-TOKEN": self._token(account)}
        try:
            answer = self._client.request(method, path, headers=headers, json=content)
            data = answer.json()
        except httpx.HTTPError as error:
            raise SlurmUnavailableError(
                f"slurmrestd at {self._url} does not answer: {error or type(error).__name__}."
            ) from error
        except ValueError as error:
            raise SlurmUnavailableError(
                f"slurmrestd at {self._url} answered {answer.status_code} {answer.text[:200]!r}."
            ) from error
        if not isinstance(data, dict):
            raise SlurmUnavailableError(f"slurmrestd at {self._url} answered {answer.status_code} with a list.")
        return data

    def _token(self, account: str) -> str:
        try:
            key = OctKey.import_key(self._key.read_bytes())
            now = int(time.time())
            claims = {"sun": account, "iat": now, "exp": now + _TOKEN_SECONDS}
            return jwt.encode({"alg": "HS256"}, claims, key)
        except (OSError, JoseError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise SlurmUnavailableError(f"The key of Slurm {self._key} cannot be used: {reason}.") from error


def _gpus(gres: str) -> int:
    """The number in Slurm's `gpu:2`, `gpu:a100:2(S:0)`."""
    found = re.search(r"gpu(?::[^:,()]+)?:(\d+)", gres)
    return int(found[1]) if found else 0


def _states(job: dict[str, Any]) -> set[str]:
    state = job["job_state"]
    return set(state) if isinstance(state, list) else {state}


def _ended(job: dict[str, Any]) -> bool:
    return not _states(job) & (_WAITING | _LIVING)


def _outcome(job: dict[str, Any], task: Task) -> Outcome:
    """What Slurm says of a task; the states are those of squeue(1)."""
    states = _states(job)
    started, ended = _time(job.get("start_time")), _time(job.get("end_time"))
    if states & _LIVING:
        return Outcome(State.RUNNING, started=started)
    if states & _WAITING:
        return Outcome(State.QUEUED)
    state = next(iter(states))
    if state in _LOST:
        reason = f"{_LOST[state].format(nodes=job.get('nodes') or 'of the job')} Submit it again."
        return Outcome(State.INTERRUPTED, reason, started, ended)
    if state == "CANCELLED":
        return Outcome(State.CANCELLED, "" if wanted_to_stop(task) else "It was cancelled in Slurm.", started, ended)
    if state == "OUT_OF_MEMORY":
        limit = f"{task.resources.memory / 2**20:.0f} MiB"
        return Outcome(State.OUT_OF_MEMORY, f"It needed more memory than the {limit} that it may use.", started, ended)
    if state in ("TIMEOUT", "DEADLINE"):
        limit = f"{task.resources.seconds} s"
        return Outcome(State.TIME_LIMIT, f"It ran longer than the {limit} that it may.", started, ended)
    status = int(job.get("exit_code") or 0)
    if state == "FAILED" and not job.get("nodes"):
        return Outcome(State.FAILED, f"Slurm refused it: {job.get('state_reason')}.", started, ended)
    if state == "FAILED" and os.WIFEXITED(status) and not begun(task):
        reason = f"It could not be started on the node {job['nodes']}: {_output(task)}"
        return Outcome(State.FAILED, reason, started, ended)
    return Outcome(State.INTERRUPTED, "It was stopped before its end. Submit it again.", started, ended)


def _output(task: Task) -> str:
    """The last line of what the batch script printed."""
    try:
        with (task.folder / _OUTPUT).open("rb") as stream:
            stream.seek(max(stream.seek(0, os.SEEK_END) - _OUTPUT_BYTES, 0))
            lines = stream.read().decode(errors="replace").split("\n")
    except OSError:
        return "the job's folder cannot be written to there."
    return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing.")


def _time(seconds: object) -> str:
    if not isinstance(seconds, int) or seconds <= 0:
        return ""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
