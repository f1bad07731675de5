"""Jobs as users see them: submitted from a workspace, listed, cancelled, deleted.

The job's folder is complete before its row is written, so that a row never lacks its folder; a folder without a row is
what a killed submission has left, and is swept.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import delete, func, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from mlaas4hep.data.sources import read_list
from mlaas4hep.errors import MlaasError, UsageError
from mlaas4hep.service.arrangement import JobResources, Submission, arrange
from mlaas4hep.service.checking import SubmissionCheck, check_in_process
from mlaas4hep.service.database import Database, JobRow, UserRow
from mlaas4hep.service.draining import Drain, DrainedError, drain_of
from mlaas4hep.service.endpoints import needed
from mlaas4hep.service.executor import Resources, State, Task
from mlaas4hep.service.identity import User
from mlaas4hep.service.jobs import now
from mlaas4hep.service.workspaces import AbsentError, QuotaError, Workspaces, checked_name, size_of
from mlaas4hep.training.parameters import parse_parameters
from mlaas4hep.training.workflow import FILES, PARAMS

if TYPE_CHECKING:
    from mlaas4hep.service.policy import Policy, Quota
    from mlaas4hep.service.settings import JobSettings

WAITING, HANDING, HANDED, ENDED = "waiting", "handing", "handed", "ended"
_ORPHAN_SECONDS = 24 * 3600.0


class ConflictError(MlaasError):
    """The request contradicts what there is (HTTP 409)."""


class Submissions:
    """The jobs of all users.

    Args:
        database: where their rows are.
        workspaces: where their inputs come from.
        folder: where their folders are, in the service's data folder.
        models: where published models are, by user.
        policy: gives the policy, for quotas.
        settings: what all jobs together may use.
    """

    def __init__(
        self,
        database: Database,
        workspaces: Workspaces,
        folder: Path,
        models: Path,
        policy: Callable[[], Policy],
        settings: JobSettings,
    ) -> None:
        self._database = database
        self._workspaces = workspaces
        self._folder = folder
        self._models = models
        self._policy = policy
        self._settings = settings

    def submit(
        self, user: User, submission: Submission, request_key: str | None = None, *, model_of_process: bool = False
    ) -> JobRow:
        """Take over a workspace's files as a new job.

        Args:
            user: whose.
            submission: what to train.
            request_key: the same key with the same submission gives the same job, however often it is asked for.
            model_of_process: publish the model as NAME_NUMBER, as the original service does, instead of as NAME.

        Raises AbsentError without the workspace; UsageError for what cannot be trained, QuotaError for more than the
        user may have, ConflictError for a key that was used for something else, DrainedError when no jobs are taken.
        """
        row = JobRow(
            name=checked_name(submission.name or submission.workspace),
            workspace=submission.workspace,
            request_key=request_key,
            request_digest=hashlib.sha256(submission.model_dump_json().encode()).hexdigest(),
            **submission.resources.model_dump(),
        )

        def fill(folder: Path) -> None:
            self._workspaces.copy(user.key, submission.workspace, folder)
            arrange(folder, submission)
            row.network = self._reads_remote(folder)

        return self._take(user, row, fill, model_of_process)

    def check(self, user: User, submission: Submission) -> SubmissionCheck:
        """What a submission would train, found without training and without its place in the queue.

        Raises AbsentError, UsageError, QuotaError as `submit` does, and UsageError for what its files do not have;
        MlaasError where files cannot be looked at now.
        """
        checked_name(submission.name or submission.workspace)
        self._refuse_too_large(submission.resources, self._policy().quota(user))
        folder = self._workspaces.folder(user.key, submission.workspace)
        found = check_in_process(folder, submission, self._settings.reads)
        self._refuse_unreachable(found.servers)
        return found

    def resubmit(self, user: User, key: str, request_key: str | None = None) -> JobRow:
        """Submit the inputs of an earlier job again, as they were.

        Raises AbsentError, UsageError, QuotaError, ConflictError, DrainedError as `submit` does.
        """
        before = self.find(user, key)
        row = JobRow(
            name=before.name,
            workspace=before.workspace,
            request_key=request_key,
            request_digest=hashlib.sha256(f"resubmit {key}".encode()).hexdigest(),
            **{name: getattr(before, name) for name in JobResources.model_fields},
        )

        def fill(folder: Path) -> None:
            try:
                shutil.copytree(self._folder / key / "input", folder, symlinks=True)
            except FileNotFoundError as error:
                raise AbsentError from error
            row.network = self._reads_remote(folder)

        return self._take(user, row, fill, before.model != before.name)

    def _take(self, user: User, row: JobRow, fill: Callable[[Path], None], model_of_process: bool) -> JobRow:
        """Make the job's folder, whose input `fill` makes, and then its row."""
        if known := self._known(user, row):
            return known
        if drain := self.drain():
            raise DrainedError(drain)
        quota = self._policy().quota(user)
        self._refuse_too_large(row, quota)
        row.key = "j" + secrets.token_hex(10)
        row.user_key, row.model, row.phase, row.state, row.submitted = user.key, row.name, WAITING, State.QUEUED, now()
        incoming = self._folder / f".incoming-{row.key}"
        try:
            incoming.mkdir(mode=0o750)
            fill(incoming / "input")
            incoming.rename(self._folder / row.key)
            return self._insert(user, row, quota, model_of_process)
        except BaseException as error:
            shutil.rmtree(incoming, ignore_errors=True)
            shutil.rmtree(self._folder / row.key, ignore_errors=True)
            if isinstance(error, IntegrityError) and (known := self._known(user, row)):
                return known
            raise

    def drain(self) -> Drain | None:
        """Why no new jobs are taken now; None when they are."""
        return drain_of(self._folder.parent)

    def find(self, user: User, key: str) -> JobRow:
        """The user's job. Raises AbsentError for none and for another user's."""
        with self._database.read() as session:
            row = session.scalar(select(JobRow).where(JobRow.key == key, JobRow.user_key == user.key))
        if row is None:
            raise AbsentError
        return row

    def find_process(self, user: User, process: str) -> JobRow:
        """The user's job of a process name, NAME_NUMBER. Raises AbsentError."""
        name, _, number = process.rpartition("_")
        if not number.isascii() or not number.isdigit() or len(number) > 9:
            raise AbsentError
        chosen = (JobRow.user_key == user.key, JobRow.name == name, JobRow.number == int(number))
        with self._database.read() as session:
            row = session.scalar(select(JobRow).where(*chosen))
        if row is None:
            raise AbsentError
        return row

    def page(self, user_key: str | None, before: int | None, limit: int) -> Sequence[JobRow]:
        """Jobs from the newest on.

        Args:
            user_key: whose; None for everybody's.
            before: only those with a smaller id.
            limit: at most so many.
        """
        query = select(JobRow).order_by(JobRow.id.desc()).limit(limit)
        if user_key is not None:
            query = query.where(JobRow.user_key == user_key)
        if before is not None:
            query = query.where(JobRow.id < before)
        with self._database.read() as session:
            return session.scalars(query).all()

    def users(self, after: str, limit: int) -> Sequence[UserRow]:
        """Users in the order of their keys, from after one on."""
        with self._database.read() as session:
            return session.scalars(select(UserRow).where(UserRow.key > after).order_by(UserRow.key).limit(limit)).all()

    def cancel(self, key: str, user: User | None) -> JobRow:
        """Ask for the end of a job; one that has ended stays as it is. Raises AbsentError.

        Args:
            key: which.
            user: whose; None for anybody's.
        """
        with self._database.write() as session:
            query = select(JobRow).where(JobRow.key == key)
            row = session.scalar(query if user is None else query.where(JobRow.user_key == user.key))
            if row is None:
                raise AbsentError
            session.execute(update(JobRow).where(JobRow.key == key, JobRow.phase != ENDED).values(cancelled=True))
            session.refresh(row)
            return row

    def delete(self, user: User, key: str) -> None:
        """Remove a job that has ended, with its folder; its published model stays.

        Raises AbsentError, ConflictError for a job that has not ended.
        """
        row = self.find(user, key)
        if row.phase != ENDED:
            raise ConflictError("The job has not ended.", "Cancel it first.")
        # the row goes first: a folder without a row is swept
        with self._database.write() as session:
            session.execute(delete(JobRow).where(JobRow.key == key, JobRow.phase == ENDED))
        shutil.rmtree(self._folder / key, ignore_errors=True)

    def left(self, user: User, used: int) -> int:
        """Bytes that the user may still store, beside the bytes of workspaces that are given, jobs and models."""
        with self._database.read() as session:
            query = select(func.coalesce(func.sum(JobRow.bytes), 0)).where(JobRow.user_key == user.key)
            jobs = int(session.scalar(query) or 0)
        return self._policy().quota(user).disk - used - jobs - size_of(self._models / user.key)

    def task(self, row: JobRow) -> Task:
        """The job's present attempt, for an executor."""
        whole = self._settings.network == "all"
        return Task(
            key=f"{row.key}-{row.attempt}",
            folder=self._folder / row.key,
            resources=Resources(row.cpus, row.memory, row.gpus, row.seconds, row.disk),
            reads=self._settings.reads,
            network=row.network and whole,
            endpoints=self._settings.endpoints if row.network and not whole else (),
        )

    def folder(self, row: JobRow) -> Path:
        """The job's folder."""
        return self._folder / row.key

    def sweep(self, before: float | None = None) -> None:
        """Remove what killed submissions and uploads have left, from before a time since the epoch (a day ago)."""
        limit = time.time() - _ORPHAN_SECONDS if before is None else before
        self._workspaces.sweep(limit)
        for path in self._folder.iterdir():
            if (path / "job.json").is_file():
                continue  # it was submitted by `mlaas4hep job`, and has no row
            with suppress(FileNotFoundError):
                if path.stat().st_ctime < limit and self._unknown(path.name):
                    shutil.rmtree(path, ignore_errors=True)

    def _unknown(self, key: str) -> bool:
        with self._database.read() as session:
            return session.scalar(select(JobRow.id).where(JobRow.key == key)) is None

    def _known(self, user: User, row: JobRow) -> JobRow | None:
        """The job that the same request has made before."""
        if row.request_key is None:
            return None
        with self._database.read() as session:
            chosen = (JobRow.user_key == user.key, JobRow.request_key == row.request_key)
            known = session.scalar(select(JobRow).where(*chosen))
        if known is not None and known.request_digest != row.request_digest:
            raise ConflictError(
                "This Idempotency-Key was used for another submission.", "Use a new key for each submission."
            )
        return known

    def _insert(self, user: User, row: JobRow, quota: Quota, model_of_process: bool) -> JobRow:
        with self._database.write() as session:
            # it also makes a user's submissions follow one another, so that numbers and quotas are right
            note_user(session, user, quota)
            unfinished = session.scalar(select(func.count()).where(JobRow.user_key == user.key, JobRow.phase != ENDED))
            if (unfinished or 0) >= quota.jobs:
                raise QuotaError(f"You have {unfinished} jobs that have not ended.", "Wait for them, or cancel some.")
            chosen = (JobRow.user_key == user.key, JobRow.name == row.name)
            row.number = 1 + (session.scalar(select(func.max(JobRow.number)).where(*chosen)) or 0)
            if model_of_process:
                row.model = f"{row.name}_{row.number}"
            session.add(row)
            session.flush()
            return row

    def _reads_remote(self, folder: Path) -> bool:
        """Whether a job reads from servers. Raises UsageError for one that jobs may not reach."""
        parameters = parse_parameters(json.loads((folder / PARAMS).read_text(encoding="utf-8")), PARAMS)
        wanted = needed(read_list(folder / FILES), parameters.redirector)
        self._refuse_unreachable(wanted)
        return bool(wanted)

    def _refuse_unreachable(self, wanted: Sequence[str]) -> None:
        allowed = self._settings.endpoints
        lacking = [endpoint for endpoint in wanted if endpoint not in allowed]
        if lacking and self._settings.network != "all":
            raise UsageError(
                f"The job reads from {', '.join(lacking)}, which jobs of this service may not reach "
                f"(they may reach {', '.join(allowed) or 'no server'}).",
                "Ask its administrators to add what lacks to `endpoints` of [jobs] in the service's settings.",
            )

    def _refuse_too_large(self, wanted: JobRow | JobResources, quota: Quota) -> None:
        for name in ("cpus", "memory", "gpus"):
            asked = getattr(wanted, name)
            if asked > getattr(self._settings, name):
                raise UsageError(
                    f"The job asks for {asked} ({name}), and there are {getattr(self._settings, name)}.",
                    "Ask for less.",
                )
            if asked > getattr(quota, name):
                raise QuotaError(
                    f"The job asks for {asked} ({name}), and you may use {getattr(quota, name)}.", "Ask for less."
                )


def note_user(session: Session, user: User, quota: Quota) -> None:
    """Keep what is known of a user who asks."""
    values = {
        "key": user.key,
        "issuer": user.issuer,
        "subject": user.subject,
        "name": user.name,
        "quota": {name: getattr(quota, name) for name in ("jobs", "cpus", "memory", "gpus", "disk")},
        "seen": now(),
    }
    dialect = sqlite if session.get_bind().dialect.name == "sqlite" else postgresql
    changing = {name: value for name, value in values.items() if name in ("name", "quota", "seen")}
    insert = dialect.insert(UserRow).values(values)
    session.execute(insert.on_conflict_do_update(index_elements=["key"], set_=changing))
