"""Trainings on a platform: sent, started, followed, cancelled and fetched over SSH.

A training is a unit of the platform's systemd (see `mlaas4hep job`), so it does not end when the connection does.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from provision.errors import ProvisionError, UsageError
from provision.remote import LOST_CONNECTION, Remote

INBOX = "/var/tmp"  # noqa: S108  (of the platform; a folder of an unguessable name is made in it)
RECONNECT_SECONDS = 2
RECONNECTS = 150
ENDED = {"finished", "failed", "cancelled", "out-of-memory", "time-limit", "interrupted"}

_JOB = ["sudo", "mlaas4hep", "job"]


def submit(remote: Remote, folder: Path, name: str, nodes: int = 1) -> dict[str, Any]:
    """Send the user's folder and start its training; returns the job as the platform describes it (`id`, `state`, ...).

    It has `nodes` of the platform's workers.

    Raises UsageError when the folder is not there, ProvisionError with the platform's own sentence when it is refused.
    """
    if not folder.is_dir():
        raise UsageError(
            f"There is no folder {folder}.", "Give the folder that holds files.txt, labels.txt, model.py, params.json."
        )
    target = f"{INBOX}/provision-{secrets.token_hex(8)}"
    try:
        remote.send(folder, target)
        spread = ["--nodes", str(nodes)] if nodes > 1 else []
        return _object(remote.run([*_JOB, "submit", target, "--move", "--name", name, *spread, "--json"]))
    finally:
        remote.run(["sudo", "rm", "-rf", "--", target], check=False)


def listing(remote: Remote) -> list[dict[str, Any]]:
    """All jobs of the platform, oldest first."""
    jobs = json.loads(remote.run([*_JOB, "list", "--json"]))
    if not isinstance(jobs, list):
        raise ProvisionError("The platform's list of jobs cannot be read.")
    return jobs


def status(remote: Remote, job: str) -> dict[str, Any]:
    """One job; raises ProvisionError when the platform knows no such job."""
    return _object(remote.run([*_JOB, "status", job, "--json"]))


def newest(remote: Remote) -> str:
    """The id of the job that was submitted last; raises UsageError when there is none."""
    jobs = listing(remote)
    if not jobs:
        raise UsageError(f"There is no job on {remote.folder.name} yet.", "`provision train` starts one.")
    return str(jobs[-1]["identifier"])


def newest_finished(remote: Remote) -> str:
    """The id of the last job that has a model; raises UsageError when there is none."""
    jobs = [job for job in listing(remote) if job["state"] == "finished"]
    if not jobs:
        name = remote.folder.name
        raise UsageError(f"No job on {name} has finished yet.", f"`provision jobs {name}` shows the states of all.")
    return str(jobs[-1]["identifier"])


def follow(remote: Remote, job: str, output: Callable[[str], None]) -> dict[str, Any]:
    """Hand over the lines of the job's log as they come, until it ends; returns the ended job.

    A lost connection is made again, and the log goes on with the line after the last one that was shown.
    """
    shown = 0
    for _ in range(RECONNECTS):
        lines = 0

        def show(line: str) -> None:
            nonlocal lines, shown
            lines += 1
            if lines > shown:
                shown = lines
                output(line)

        if remote.stream([*_JOB, "logs", job, "--follow"], show) != LOST_CONNECTION:
            return status(remote, job)
        time.sleep(RECONNECT_SECONDS)
    raise ProvisionError(
        f"The connection to {remote.folder.name} is lost.", f"The job {job} goes on there; `provision logs` follows it."
    )


def cancel(remote: Remote, job: str) -> dict[str, Any]:
    """End a job; raises ProvisionError for one that has ended already."""
    remote.run([*_JOB, "cancel", job])
    return status(remote, job)


def fetch(remote: Remote, job: str, target: Path) -> None:
    """Copy the job's model folder to `target`, which must not exist yet."""
    if target.exists():
        raise UsageError(f"{target} exists already.", "Name another folder with --to.")
    state = status(remote, job)["state"]
    if state != "finished":
        raise ProvisionError(
            f"The job {job} is {state}: it has no model.", f"`provision logs {remote.folder.name} {job}` tells why."
        )
    remote.fetch([*_JOB, "model", job], target)


def predict(remote: Remote, job: str, event: str) -> Any:
    """Predictions of the job's model for an event (or a list of events) as JSON text, made as the service's user."""
    model = remote.run([*_JOB, "model", job, "--path"]).strip()
    return json.loads(remote.run(["sudo", "-u", "mlaas4hep", "mlaas4hep", "predict", model, "-"], stdin=event))


def _object(text: str) -> dict[str, Any]:
    found = json.loads(text)
    if not isinstance(found, dict):
        raise ProvisionError("The platform's answer cannot be read.")
    return found
