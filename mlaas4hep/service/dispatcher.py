"""Hands jobs to the executor, each attempt once, and records what becomes of them.

=========  ==============================================================================================
waiting    it waits for its turn, or the present attempt was interrupted and the next one is due
handing    the number of the attempt is recorded; the executor may know of it or not, so it is told (again)
handed     the executor has it
ended      nothing more happens
=========  ==============================================================================================

A kill at any point leaves a job in one of these phases, and each is taken up from there: what an executor is told
twice it does once, and a model that was published before the kill is recognised by its manifest.
"""

from __future__ import annotations

import fcntl
import logging
import math
import threading
import time
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import and_, func, or_, select, update

from mlaas4hep.errors import MlaasError
from mlaas4hep.service import metrics
from mlaas4hep.service.archive import open_plain
from mlaas4hep.service.database import Database, JobRow, UserRow
from mlaas4hep.service.executor import Executor, Outcome, State
from mlaas4hep.service.jobs import now
from mlaas4hep.service.submissions import ENDED, HANDED, HANDING, WAITING, Submissions
from mlaas4hep.service.workspaces import size_of
from mlaas4hep.training.bundle import MANIFEST

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from mlaas4hep.service.settings import JobSettings
    from mlaas4hep.serving.repository import Repository

_LOG = logging.getLogger(__name__)
_LOOKS = 8
_SWEEP_SECONDS = 6 * 3600.0
_REASON_CHARACTERS = 4000
_TOGETHER = 16  # jobs that are handed over before others are looked at
Need = tuple[int, int, int]
Facts = dict[str, Any]
_NOTHING: Need = (0, 0, 0)


@dataclass(frozen=True)
class Candidate:
    """A user's oldest waiting job: its id, whose it is, and its cpus, bytes of memory and GPUs."""

    id: int
    user: str
    need: Need


def choose(
    candidates: Sequence[Candidate],
    running: Mapping[str, int],
    used: Mapping[str, Need],
    most: Mapping[str, Need],
    free: Need,
) -> Candidate | None:
    """Whose job is next: the user with the fewest running jobs, and among those the oldest job.

    What a job needs that does not fit yet is set aside for it, so that smaller jobs cannot keep it waiting for ever.

    Args:
        candidates: each waiting user's oldest job.
        running: how many jobs each user has running.
        used: what each user's running jobs may use.
        most: what each user may use.
        free: what is left for everybody.
    """
    for candidate in sorted(candidates, key=lambda job: (running.get(job.user, 0), job.id)):
        own = used.get(candidate.user, _NOTHING)
        if not _fits(candidate.need, _minus(most[candidate.user], own)):
            continue
        if _fits(candidate.need, free):
            return candidate
        free = _minus(free, candidate.need)
    return None


def _fits(need: Need, room: Need) -> bool:
    return all(wanted <= max(there, 0) for wanted, there in zip(need, room, strict=True))


def _minus(left: Need, right: Need) -> Need:
    return left[0] - right[0], left[1] - right[1], left[2] - right[2]


def _plus(left: Need, right: Need) -> Need:
    return left[0] + right[0], left[1] + right[1], left[2] + right[2]


class Dispatcher:
    """Looks after the jobs; of several processes that have one, one at a time does.

    Args:
        database: the truth.
        submissions: makes tasks of rows.
        executor: runs them.
        repository: takes finished models.
        settings: what all jobs together may use.
        lock: file that the one which dispatches holds locked.
    """

    def __init__(
        self,
        database: Database,
        submissions: Submissions,
        executor: Executor,
        repository: Repository,
        settings: JobSettings,
        lock: Path,
    ) -> None:
        self._database = database
        self._submissions = submissions
        self.executor = executor
        self._repository = repository
        self._settings = settings
        self._lock = lock
        self._wake = threading.Event()
        self._stop = False
        self._thread: threading.Thread | None = None
        self._pool = ThreadPoolExecutor(_LOOKS, thread_name_prefix="dispatcher-look")

    def start(self) -> None:
        """Dispatch in a thread, as soon as no other process does."""
        self._thread = threading.Thread(target=self._run, name="dispatcher", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread after the present step; jobs run on."""
        self._stop = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join()
        self._pool.shutdown()

    def wake(self) -> None:
        """There is something to do."""
        self._wake.set()

    def position(self, row: JobRow) -> int | None:
        """A waiting job's place in the queue of all users, from 1; None for others.

        It is the order of `choose` as long as nothing ends and each job has room when its turn comes.
        """
        if row.phase != WAITING or row.cancelled:
            return None
        place = func.row_number().over(partition_by=JobRow.user_key, order_by=JobRow.id).label("place")
        chosen = (JobRow.phase == WAITING, ~JobRow.cancelled)
        queue = select(JobRow.id, JobRow.user_key, place).where(*chosen).subquery()
        busy = (
            select(JobRow.user_key, func.count().label("count"))
            .where(JobRow.phase.in_((HANDING, HANDED)))
            .group_by(JobRow.user_key)
            .subquery()
        )
        turn = (queue.c.place + func.coalesce(busy.c.count, 0)).label("turn")
        joined = queue.outerjoin(busy, busy.c.user_key == queue.c.user_key)
        turns = select(queue.c.id, turn).select_from(joined).subquery()
        with self._database.read() as session:
            own = session.scalar(select(turns.c.turn).where(turns.c.id == row.id))
            if own is None:
                return None
            earlier = or_(turns.c.turn < own, and_(turns.c.turn == own, turns.c.id < row.id))
            return 1 + (session.scalar(select(func.count()).select_from(turns).where(earlier)) or 0)

    def _run(self) -> None:
        with self._lock.open("a") as stream:
            while not self._stop:
                try:
                    fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    self._pause()
                    continue
                swept = -math.inf
                while not self._stop:
                    try:
                        if time.monotonic() - swept >= _SWEEP_SECONDS:
                            swept = time.monotonic()
                            self._submissions.sweep()
                        self.step()
                    except Exception:
                        # the database may be away for a while; the jobs wait for it
                        _LOG.exception("a step of the dispatcher failed")
                    self._pause()

    def _pause(self) -> None:
        self._wake.wait(self._settings.interval)
        self._wake.clear()

    def step(self) -> None:
        """Take every job as far as it goes now."""
        self._record([(row, self._ended(row, Outcome(State.CANCELLED, ended=now()))) for row in self._cancelled()])
        self._record(list(self._pool.map(self._advance, self._in_phase(HANDING, HANDED))))
        while rows := self._take():
            self._record([self._advance(row) for row in rows])

    def _in_phase(self, *phases: str) -> Sequence[JobRow]:
        with self._database.read() as session:
            return session.scalars(select(JobRow).where(JobRow.phase.in_(phases)).order_by(JobRow.id)).all()

    def _cancelled(self) -> Sequence[JobRow]:
        with self._database.read() as session:
            return session.scalars(select(JobRow).where(JobRow.phase == WAITING, JobRow.cancelled)).all()

    def _advance(self, row: JobRow) -> tuple[JobRow, Facts]:
        """What is to be recorded of a job that was handed over, or is to be.

        What fails with one job does not keep the others waiting; it is tried again in the next step.
        """
        try:
            return row, self._hand(row) if row.phase == HANDING else self._look(row)
        except Exception:
            _LOG.exception("the job %s is left for the next step", row.key)
            return row, {}

    def _take(self) -> Sequence[JobRow]:
        """Record that the next waiting jobs are being handed over, as many as fit; while drained, none."""
        if self._submissions.drain():
            return []
        with self._database.read() as session:
            if session.scalar(select(JobRow.id).where(JobRow.phase == WAITING, ~JobRow.cancelled).limit(1)) is None:
                return []
        with self._database.write() as session:
            chosen = self._chosen(session)
            found = session.scalars(select(JobRow).where(JobRow.id.in_(chosen))).all()
            for row in found:
                row.phase, row.attempt = HANDING, row.attempt + 1
        return sorted(found, key=lambda row: chosen.index(row.id))

    def _chosen(self, session: Session) -> list[int]:
        """The ids of the next jobs, in the order of their turns."""
        place = func.row_number().over(partition_by=JobRow.user_key, order_by=JobRow.id).label("place")
        need = (JobRow.cpus, JobRow.memory, JobRow.gpus)
        rows = select(JobRow.id, JobRow.user_key, *need, place).where(JobRow.phase == WAITING, ~JobRow.cancelled)
        ranked = rows.subquery()
        waiting: dict[str, deque[Candidate]] = defaultdict(deque)
        for row in session.execute(select(ranked).where(ranked.c.place <= _TOGETHER).order_by(ranked.c.id)):
            waiting[row.user_key].append(Candidate(row.id, row.user_key, (row.cpus, row.memory, row.gpus)))
        running: dict[str, int] = defaultdict(int)
        used: dict[str, Need] = {}
        free: Need = (self._settings.cpus, self._settings.memory, self._settings.gpus)
        sums = (func.count(), *(func.sum(column) for column in need))
        busy = select(JobRow.user_key, *sums).where(JobRow.phase.in_((HANDING, HANDED))).group_by(JobRow.user_key)
        for user, count, *sum_of in session.execute(busy).all():
            running[user], used[user] = int(count), (int(sum_of[0]), int(sum_of[1]), int(sum_of[2]))
            free = _minus(free, used[user])
        users = session.scalars(select(UserRow).where(UserRow.key.in_(list(waiting))))
        most: dict[str, Need] = {
            user.key: (int(user.quota["cpus"]), int(user.quota["memory"]), int(user.quota["gpus"])) for user in users
        }
        chosen: list[int] = []
        while len(chosen) < _TOGETHER:
            job = choose([queue[0] for queue in waiting.values() if queue], running, used, most, free)
            if job is None:
                break
            waiting[job.user].popleft()
            running[job.user] += 1
            used[job.user] = _plus(used.get(job.user, _NOTHING), job.need)
            free = _minus(free, job.need)
            chosen.append(job.id)
        return chosen

    def _hand(self, row: JobRow) -> Facts:
        try:
            self.executor.submit(self._submissions.task(row))
        except MlaasError as error:
            return self._ended(row, Outcome(State.FAILED, str(error), ended=now()))
        return {"phase": HANDED}

    def _look(self, row: JobRow) -> Facts:
        task = self._submissions.task(row)
        outcome = self.executor.status(task)
        if row.cancelled and not outcome.state.final:
            self.executor.cancel(task)
            outcome = self.executor.status(task)
        if not outcome.state.final:
            return {"state": outcome.state.value, "started": outcome.started}
        if outcome.state is State.INTERRUPTED and row.cancelled:
            return self._ended(row, Outcome(State.CANCELLED, "", outcome.started, outcome.ended))
        if outcome.state is State.INTERRUPTED and row.attempt < self._settings.attempts:
            reason = f"Attempt {row.attempt} was interrupted; the next one goes on from there."
            return {"phase": WAITING, "state": State.QUEUED.value, "reason": reason}
        return self._ended(row, outcome)

    def _ended(self, row: JobRow, outcome: Outcome) -> Facts:
        reason = outcome.reason
        version = 0
        if outcome.state is State.FINISHED:
            try:
                version = self._publish(row)
            except MlaasError as error:
                reason = f"The model was not published: {error}"
        return {
            "phase": ENDED,
            "state": outcome.state.value,
            "reason": reason[-_REASON_CHARACTERS:],
            "started": outcome.started or row.started,
            "ended": outcome.ended or now(),
            "bytes": size_of(self._submissions.folder(row)),
            "version": version,
        }

    def _publish(self, row: JobRow) -> int:
        """Publish the job's model, unless that was done before a kill."""
        bundle = self._submissions.folder(row) / "model"
        try:
            with open_plain(bundle / MANIFEST) as stream:
                manifest = stream.read()
        except OSError as error:
            raise MlaasError("It has no model folder.") from error
        facts = self._repository.facts(row.user_key, row.model)
        if facts is not None:
            for version in facts.versions:
                with suppress(OSError):
                    if (self._repository.path(facts, version) / MANIFEST).read_bytes() == manifest:
                        return version
        return self._repository.publish(row.user_key, row.model, bundle)

    def _record(self, changes: Sequence[tuple[JobRow, Facts]]) -> None:
        """Write what is new of some jobs, all in one transaction: each one waits for the disk."""
        changed = [
            (row, {name: value for name, value in facts.items() if getattr(row, name) != value})
            for row, facts in changes
        ]
        changed = [(row, facts) for row, facts in changed if facts]
        if not changed:
            return
        with self._database.write() as session:
            for row, facts in changed:
                session.execute(update(JobRow).where(JobRow.id == row.id).values(**facts))
        for _, facts in changed:
            if facts.get("phase") == ENDED:
                metrics.ended(State(facts["state"]))
