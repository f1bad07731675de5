"""The executor's contract, four verbs; an executor is a module beside this one.

A task is one attempt to run a job. Whoever submits it may be killed at any moment and ask again, so every verb is
idempotent and knows a task by its key alone: nothing of an executor's state lives in the service's memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Literal, Protocol

Program = Literal["training", "predictions"]


class State(StrEnum):
    """Where a job stands."""

    QUEUED = "queued"
    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"
    OUT_OF_MEMORY = "out-of-memory"
    TIME_LIMIT = "time-limit"
    INTERRUPTED = "interrupted"

    @property
    def final(self) -> bool:
        """Whether nothing more will happen."""
        return self not in (State.QUEUED, State.RUNNING)


@dataclass(frozen=True)
class Resources:
    """What a task may use; the executor enforces it.

    Attributes:
        cpus: processor cores.
        memory: bytes.
        gpus: whole GPUs.
        seconds: of wall time.
        disk: bytes that it may write.
        nodes: computers of a cluster that train together; each of them has all of the above.
    """

    cpus: int = 1
    memory: int = 2 * 2**30
    gpus: int = 0
    seconds: int = 24 * 3600
    disk: int = 10 * 2**30
    nodes: int = 1


@dataclass(frozen=True)
class Task:
    """One attempt to run a job.

    Attributes:
        key: unique for ever: letters, digits and hyphens.
        folder: the job's folder with `input/` (see `jobs`); the only place that the task may write to.
        account: the system account to run as, "" for the executor's own.
        resources: what it may use.
        reads: data folders outside its own that it may read.
        network: whether it has all of the computer's network, its loopback included.
        endpoints: HOST:PORT of each server that it may reach otherwise (see `network`).
        program: the training of the workflow in `input`, or predictions with the model folder there (see
            `serving.native_process`), for whoever connects to the socket `work/socket`.
    """

    key: str
    folder: Path
    account: str = ""
    resources: Resources = Resources()
    reads: tuple[Path, ...] = ()
    network: bool = False
    endpoints: tuple[str, ...] = ()
    program: Program = "training"


@dataclass(frozen=True)
class Outcome:
    """Where a task stands.

    Attributes:
        state: see `State`.
        reason: why it did not finish, in one sentence; for a user's error with the last lines of the traceback.
        started, ended: times in ISO 8601 (UTC), "" when not yet.
    """

    state: State
    reason: str = ""
    started: str = ""
    ended: str = ""


class Executor(Protocol):
    """Runs tasks and looks after them."""

    def submit(self, task: Task) -> None:
        """Start the task, or put it into the queue; returns at once.

        A task that was submitted before is left as it is, so that a repeated call neither loses nor doubles it.
        Raises MlaasError when it cannot be accepted.
        """

    def status(self, task: Task) -> Outcome:
        """Where the task stands; INTERRUPTED for one that is gone without a word (or was never seen)."""

    def logs(self, task: Task, offset: int = 0) -> Iterator[bytes]:
        """The output from a byte offset on, up to what there is now."""

    def cancel(self, task: Task) -> None:
        """Stop the task, whether it waits or runs; returns when it has stopped. One that has ended stays as it is."""
