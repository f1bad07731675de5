"""Jobs on disk: a folder each, which is all that is known of a job's run.

==============  ==============================================================================
input/          the workflow folder, as it was submitted; the job reads it
work/           what the job may write to while it runs: its store, checkpoints, the model
job.json        identifier, name, time of submission; written once, by `mlaas4hep job submit`
task.json       the present attempt, written by the executor
state.json      where the attempt stands while it lives, written by its supervisor
result.json     how it ended, written by its supervisor, once
usage.json      what the attempt has used, written by its supervisor
progress.jsonl  what the training tells, one JSON object a line
hosts           the sandbox's /etc/hosts, where the job reaches data endpoints
log             standard output and error of the job
model/          the bundle, when it is finished
cancelled       exists once somebody wants the attempt to stop
lock            held by the supervisor while it lives
==============  ==============================================================================
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mlaas4hep.errors import MlaasError, UsageError
from mlaas4hep.names import did_you_mean
from mlaas4hep.service.draining import DrainedError, drain_of
from mlaas4hep.service.executor import Outcome, State

# in `work`, of a task that predicts
SOCKET = "socket"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,60}")
_IDENTIFIER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,60}_[1-9][0-9]*")


@dataclass(frozen=True)
class Job:
    """A submitted job; the executor and the user know it by its identifier."""

    identifier: str
    name: str
    submitted: str
    folder: Path

    @property
    def input(self) -> Path:
        """The workflow folder."""
        return self.folder / "input"

    @property
    def log(self) -> Path:
        """What the job's process printed."""
        return self.folder / "log"

    @property
    def model(self) -> Path:
        """The bundle, when the job is finished."""
        return self.folder / "model"


@dataclass(frozen=True)
class JobStatus:
    """What can be said about a job now.

    Attributes:
        identifier, name: which job.
        state: where it stands.
        reason: why it failed, in one sentence.
        submitted, started, ended: times in ISO 8601, "" when not yet.
        progress: the last thing that the training told.
    """

    identifier: str
    name: str
    state: State
    reason: str = ""
    submitted: str = ""
    started: str = ""
    ended: str = ""
    progress: dict[str, Any] | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def home() -> Path:
    """MLAAS4HEP_HOME, or ~/.local/share/mlaas4hep."""
    return Path(os.environ.get("MLAAS4HEP_HOME") or Path.home() / ".local" / "share" / "mlaas4hep")


def jobs_folder() -> Path:
    """Where the jobs are."""
    return home() / "jobs"


def create_job(folder: Path, name: str = "", *, move: bool = False) -> Job:
    """Take over a workflow folder as a new job that is called NAME_1, NAME_2 and so on.

    When root calls this, the job is given to the account that owns the folder of jobs.

    Args:
        folder: the workflow.
        name: name of the job, by default the folder's.
        move: take the folder away instead of copying it.

    Raises UsageError for a wrong name or an incomplete folder, DrainedError when no jobs are taken, MlaasError when it
    cannot be copied.
    """
    name = name or folder.absolute().name
    if not NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} is no name for a job.",
            "Use letters, digits, - and _ (--name), beginning with a letter or digit.",
        )
    from mlaas4hep.training.workflow import check_folder

    check_folder(folder)
    if drain := drain_of(home()):
        raise DrainedError(drain)
    base = jobs_folder()
    try:
        base.mkdir(parents=True, exist_ok=True)
        incoming = Path(tempfile.mkdtemp(prefix=".incoming-", dir=base))
        try:
            _take(folder, incoming / "input", move)
            return _settle(incoming, base, name)
        finally:
            shutil.rmtree(incoming, ignore_errors=True)
    except (OSError, shutil.Error) as error:
        raise MlaasError(f"The job cannot be written to {base}: {_reason(error)}.") from error


def _take(folder: Path, target: Path, move: bool) -> None:
    """Links are taken as links, so that nothing outside the folder is read with the caller's rights."""
    if move:
        shutil.move(folder, target)
    else:
        shutil.copytree(folder, target, symlinks=True)


def _reason(error: OSError) -> str:
    if isinstance(error, shutil.Error) and error.args and isinstance(error.args[0], list):
        return str(error.args[0][0][-1])
    return error.strerror or str(error)


def _settle(incoming: Path, base: Path, name: str) -> Job:
    """Give the job the next free number: renaming a folder to a name that is taken fails, so each is given once."""
    incoming.chmod(0o750)
    (incoming / "log").touch()
    number = 1 + max((_number(path.name, name) for path in base.iterdir()), default=0)
    while True:
        identifier = f"{name}_{number}"
        submitted = datetime.now(UTC).isoformat()
        facts = {"identifier": identifier, "name": name, "submitted": submitted}
        (incoming / "job.json").write_text(json.dumps(facts), encoding="utf-8")
        _give(incoming, base.stat())
        try:
            incoming.rename(base / identifier)
        except OSError:
            if not (base / identifier).exists():
                raise
            number += 1
            continue
        return Job(identifier, name, submitted, base / identifier)


def _number(folder: str, name: str) -> int:
    matched = re.fullmatch(rf"{re.escape(name)}_([1-9][0-9]*)", folder)
    return int(matched[1]) if matched else 0


def _give(folder: Path, owner: os.stat_result) -> None:
    if os.geteuid() != 0:
        return
    for path in [folder, *folder.rglob("*")]:
        os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)


def find_job(identifier: str) -> Job:
    """The job with this identifier. Raises UsageError when there is none (with near misses)."""
    jobs = {job.identifier: job for job in all_jobs()}
    if not _IDENTIFIER.fullmatch(identifier) or identifier not in jobs:
        raise UsageError(f"There is no job {identifier}.", did_you_mean(identifier, list(jobs), "jobs"))
    return jobs[identifier]


def all_jobs(base: Path | None = None) -> list[Job]:
    """Every job of a folder, by default of `jobs_folder()`, in the order of submission."""
    base = base or jobs_folder()
    found = [
        Job(path.name, str(facts["name"]), str(facts["submitted"]), path)
        for path in (base.iterdir() if base.is_dir() else ())
        if _IDENTIFIER.fullmatch(path.name) and (facts := read_json(path / "job.json"))
    ]
    return sorted(found, key=lambda job: (job.submitted, job.identifier))


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object of a file; empty when there is none, or none yet."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Replace a file by a JSON object, for good and at once; a link in its place is replaced, not followed."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            json.dump(data, stream)
            stream.flush()
            os.fchmod(descriptor, 0o640)
            give(descriptor, path.parent)
            os.fsync(descriptor)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def give(descriptor: int, folder: Path) -> None:
    """Give what root makes to the owner of the folder that it is in."""
    if os.geteuid() == 0:
        owner = folder.stat()
        os.fchown(descriptor, owner.st_uid, owner.st_gid)


def now() -> str:
    """The time in ISO 8601, UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def status_of(job: Job, outcome: Outcome) -> JobStatus:
    """What can be said about a job, with what its executor says."""
    return JobStatus(
        identifier=job.identifier,
        name=job.name,
        state=outcome.state,
        reason=outcome.reason,
        submitted=job.submitted,
        started=outcome.started,
        ended=outcome.ended,
        progress=_last_progress(job),
    )


def _last_progress(job: Job) -> dict[str, Any] | None:
    """The last complete line of progress.jsonl."""
    try:
        with (job.folder / "progress.jsonl").open("rb") as stream:
            stream.seek(max(stream.seek(0, os.SEEK_END) - 4096, 0))
            lines = stream.read().splitlines(keepends=True)
    except OSError:
        return None
    for line in reversed(lines):
        with suppress(ValueError):
            if line.endswith(b"\n") and isinstance(data := json.loads(line), dict):
                return data
    return None
