"""The record of an attempt in its job's folder: what was asked for, whether it lives, where it stands, how it ended.

Whether it lives is told by a lock that its supervisor holds (an open file description lock, fcntl(2)): the system
releases it however the supervisor ends, and asking for it does not take it. All else is in files that are replaced at
once, so that what is read is true after any kill and after a restart of the computer.
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mlaas4hep.errors import MlaasError
from mlaas4hep.service.executor import Outcome, Resources, State, Task
from mlaas4hep.service.jobs import give, now, read_json, write_json

_FLOCK = "hhqqi0q"  # struct flock of fcntl(2)
_PIECE = 65536
_GONE = "It was stopped before its end: the computer or its supervisor was. Submit it again."


@dataclass(frozen=True)
class Attempt:
    """A task and how its executor runs it.

    Attributes:
        task: what is run.
        places: how many of the folder's neighbours may run at once; 0 to start without waiting for them.
        limited: whether it may only run where memory, processors and processes are limited.
        environment: further variables of its environment.
        devices: device nodes of the computer's GPUs.
        scheduled: whether a batch system limits it and has given it its GPUs.
    """

    task: Task
    places: int = 0
    limited: bool = True
    environment: Mapping[str, str] = field(default_factory=dict)
    devices: tuple[Path, ...] = ()
    scheduled: bool = False


def write_attempt(attempt: Attempt) -> None:
    """Record what is to be run."""
    write_json(
        attempt.task.folder / "task.json",
        {
            "key": attempt.task.key,
            "account": attempt.task.account,
            "resources": asdict(attempt.task.resources),
            "reads": [str(path) for path in attempt.task.reads],
            "network": attempt.task.network,
            "endpoints": list(attempt.task.endpoints),
            "program": attempt.task.program,
            "places": attempt.places,
            "limited": attempt.limited,
            "environment": dict(attempt.environment),
            "devices": [str(path) for path in attempt.devices],
            "scheduled": attempt.scheduled,
        },
    )


def read_attempt(folder: Path) -> Attempt:
    """What is to be run in a folder. Raises MlaasError when nobody has said so."""
    facts = read_json(folder / "task.json")
    try:
        task = Task(
            facts["key"],
            folder,
            facts["account"],
            Resources(**facts["resources"]),
            tuple(map(Path, facts["reads"])),
            facts["network"],
            tuple(facts["endpoints"]),
            facts["program"],
        )
        devices = tuple(map(Path, facts["devices"]))
        return Attempt(task, facts["places"], facts["limited"], facts["environment"], devices, facts["scheduled"])
    except (KeyError, TypeError) as error:
        raise MlaasError(f"{folder} has no task.", "Submit the job again.") from error


def hold(folder: Path, name: str = "lock") -> int | None:
    """Take a lock; returns its file descriptor, which is passed on with it, or None when somebody has it."""
    descriptor = os.open(folder / name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o640)
    give(descriptor, folder)
    try:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def held(folder: Path, name: str = "lock") -> bool:
    """Whether somebody has the lock."""
    try:
        descriptor = os.open(folder / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        wanted = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        there: int = struct.unpack(_FLOCK, fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, wanted))[0]
    finally:
        os.close(descriptor)
    return there != fcntl.F_UNLCK


def begun(task: Task) -> bool:
    """Whether a supervisor has ever taken this attempt up."""
    return any(read_json(task.folder / name).get("key") == task.key for name in ("state.json", "result.json"))


def outcome_of(task: Task) -> Outcome:
    """Where an attempt stands; see `Executor.status`."""
    if (ended := _result(task)) is not None:
        return ended
    lives = held(task.folder)
    if (ended := _result(task)) is not None:
        return ended
    told = read_json(task.folder / "state.json")
    taken_up = told.get("key") == task.key
    if lives and taken_up:
        return Outcome(State(str(told["state"])), started=str(told.get("started", "")))
    if lives and read_json(task.folder / "task.json").get("key") == task.key:
        return Outcome(State.QUEUED)
    if not taken_up and wanted_to_stop(task):
        return Outcome(State.CANCELLED)
    return Outcome(State.INTERRUPTED, _GONE, str(told.get("started", "")) if taken_up else "")


def read_log(task: Task, offset: int) -> Iterator[bytes]:
    """What the job has printed; see `Executor.logs`."""
    try:
        stream = os.fdopen(os.open(task.folder / "log", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb")
    except OSError:
        return
    with stream:
        stream.seek(offset)
        while piece := stream.read(_PIECE):
            yield piece


def record_state(task: Task, state: State, **facts: Any) -> None:
    """Record where a living attempt stands."""
    write_json(task.folder / "state.json", {"key": task.key, "state": state} | facts)


def record_result(task: Task, outcome: Outcome) -> None:
    """Record how an attempt has ended."""
    write_json(task.folder / "result.json", {"key": task.key} | asdict(outcome) | {"ended": outcome.ended or now()})


def want_to_stop(task: Task) -> None:
    """Ask the attempt's supervisor to stop it."""
    write_json(task.folder / "cancelled", {"key": task.key})


def wanted_to_stop(task: Task) -> bool:
    """Whether somebody has asked for it."""
    return read_json(task.folder / "cancelled").get("key") == task.key


def _result(task: Task) -> Outcome | None:
    facts = read_json(task.folder / "result.json")
    if facts.get("key") != task.key:
        return None
    return Outcome(State(facts["state"]), facts["reason"], facts["started"], facts["ended"])
