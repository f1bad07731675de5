"""The executor's contract, four verbs; an executor is a module beside this one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from mlaas4hep.service.jobs import Job, JobStatus


class Executor(Protocol):
    """Runs jobs and looks after them."""

    def submit(self, job: Job) -> None:
        """Start the job, or put it into the queue; returns at once."""

    def status(self, job: Job) -> JobStatus:
        """Where the job stands."""

    def logs(self, job: Job, follow: bool) -> Iterator[bytes]:
        """The job's output so far; with `follow`, also what comes until the job has ended."""

    def cancel(self, job: Job) -> None:
        """Stop the job, whether it waits or runs; returns when it has stopped."""
