"""What a job's unit executes: wait for a free place, train, and record what became of it.

Jobs run in the order of their submission, at most MLAAS4HEP_JOBS (1) at once. A waiting job looks once a second, under
a lock that all share, whether a place is free and no earlier job waits; a job that dies gives its place back, because
the system releases its lock.
"""

from __future__ import annotations

import fcntl
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from mlaas4hep.errors import MlaasError, UsageError
from mlaas4hep.service.executor import State
from mlaas4hep.service.jobs import Job, all_jobs, jobs_folder, lives, living, now, read_json, set_state
from mlaas4hep.training.progress import both, json_lines, plain

_INTERVAL = 1.0


@dataclass(frozen=True)
class Rival:
    """A living job as the queue sees it."""

    identifier: str
    running: bool


def places() -> int:
    """How many jobs may run at once: MLAAS4HEP_JOBS, by default 1."""
    text = os.environ.get("MLAAS4HEP_JOBS", "1")
    if not text.isdigit() or int(text) < 1:
        raise UsageError(f"MLAAS4HEP_JOBS is {text!r}.", "Set it to a positive number.")
    return int(text)


def may_start(identifier: str, living_jobs: Sequence[Rival], limit: int) -> bool:
    """Whether it is this job's turn.

    Args:
        identifier: the waiting job.
        living_jobs: all living jobs, in the order of submission.
        limit: how many may run at once.
    """
    running = sum(job.running for job in living_jobs)
    waiting = [job.identifier for job in living_jobs if not job.running]
    return running < limit and waiting[:1] == [identifier]


def run_job(job: Job) -> None:
    """Wait for the job's turn and train; the outcome is recorded in state.json.

    Raises MlaasError when the training fails, after recording why.
    """
    if read_json(job.folder / "state.json").get("state") in (State.FINISHED, State.FAILED):
        raise UsageError(f"The job {job.identifier} has ended already.", "Submit its folder again.")
    with living(job):
        set_state(job, State.QUEUED)
        _wait(job)
        try:
            _train(job)
        except MlaasError as error:
            set_state(job, State.FAILED, reason=str(error), ended=now())
            raise
        except Exception as error:
            set_state(job, State.FAILED, reason=f"{type(error).__name__}: {error}; see its log.", ended=now())
            raise
        set_state(job, State.FINISHED, ended=now())


def _wait(job: Job) -> None:
    limit, told = places(), False
    while True:
        with (jobs_folder() / ".queue").open("a") as queue:
            fcntl.flock(queue, fcntl.LOCK_EX)
            if may_start(job.identifier, _living_jobs(job), limit):
                set_state(job, State.RUNNING, started=now())
                return
        if not told:
            print("waiting for earlier jobs to end", file=sys.stderr, flush=True)
            told = True
        time.sleep(_INTERVAL)


def _living_jobs(me: Job) -> list[Rival]:
    found = [job for job in all_jobs() if job.identifier == me.identifier or lives(job)]
    return [Rival(job.identifier, read_json(job.folder / "state.json").get("state") == State.RUNNING) for job in found]


def _train(job: Job) -> None:
    from mlaas4hep.training.experiment import train
    from mlaas4hep.training.workflow import load_folder

    with (job.folder / "progress.jsonl").open("a", encoding="utf-8") as stream:
        train(load_folder(job.input), job.model, both(plain(sys.stderr), json_lines(stream)))
