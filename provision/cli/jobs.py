"""`provision train, jobs, logs, cancel, fetch, predict`."""

from __future__ import annotations

import json
import re
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import typer

from provision.cli.completion import platform_names
from provision.cli.context import connected, console, open_platform
from provision.errors import ProvisionError, UsageError

_NAME = typer.Argument(help="Name of the platform.", autocompletion=platform_names)
_JOB = typer.Argument("", help="Id of the job.  [the newest]")
_JSON = typer.Option(False, "--json", help="Print JSON on standard output.")


def train(
    name: str = _NAME,
    folder: Path = typer.Argument(
        help="Folder with files.txt, labels.txt, model.py, params.json and, if not remote, the data."
    ),
    nodes: int = typer.Option(1, min=1, help="Workers of the platform that train together, a PyTorch module."),
    detach: bool = typer.Option(False, "--detach", "-d", help="Return when the training has started."),
    as_json: bool = _JSON,
) -> None:
    """Send a folder, train on a platform, and show the log.

    The training survives a lost connection; `provision logs -f` follows it again.
    """
    from provision import jobs as remote_jobs

    out = console()
    with connected(name) as remote:
        with out.stage(f"sending {folder}"):
            job = remote_jobs.submit(remote, folder, _job_name(folder), nodes)
        out.say(f"Job {job['identifier']} on {name}; `provision logs -f {name} {job['identifier']}` follows it again.")
        if not detach:
            job = remote_jobs.follow(remote, str(job["identifier"]), out.data if not as_json else out.say)
    if as_json:
        out.emit(job)
    if not detach:
        _finish(name, job)


def _job_name(folder: Path) -> str:
    words = re.sub(r"[^A-Za-z0-9_-]+", "-", folder.resolve().name).strip("-_")[:40]
    return words or "job"


def _finish(name: str, job: dict[str, Any]) -> None:
    if job["state"] != "finished":
        reason = str(job.get("reason") or "no reason told").rstrip(".")
        raise ProvisionError(
            f"The job {job['identifier']} is {job['state']}: {reason}.",
            f"`provision logs {name} {job['identifier']}` shows all.",
        )
    console().say(
        f"Job {job['identifier']} is finished; `provision fetch {name} {job['identifier']}` brings the model."
    )


def list_jobs(name: str = _NAME, as_json: bool = _JSON) -> None:
    """List a platform's jobs and their states."""
    from provision import jobs as remote_jobs

    with connected(name) as remote:
        found = remote_jobs.listing(remote)
    if as_json:
        console().emit(found)
    elif found:
        rows = [(job["identifier"], job["state"], _minute(job["submitted"]), job.get("reason") or "") for job in found]
        console().table(["job", "state", "submitted", "reason"], rows)
    else:
        console().say(f"There is no job on {name} yet; `provision train {name} FOLDER` starts one.")


def _minute(time: str) -> str:
    """A time of the platform (ISO 8601), on this computer's clock."""
    return datetime.fromisoformat(time).astimezone().strftime("%Y-%m-%d %H:%M")


def logs(
    name: str = _NAME,
    job: str = _JOB,
    follow: bool = typer.Option(False, "--follow", "-f", help="Go on until the job ends."),
    of_provision: bool = typer.Option(
        False, "--provision", help="Show how the platform was made: steps, log of the roles, or the machine's console."
    ),
) -> None:
    """Show the log of a job, or that of the platform's creation."""
    from provision import jobs as remote_jobs

    out = console()
    if of_provision:
        if job or follow:
            raise UsageError("--provision shows no job.", f"Write `provision logs {name} --provision`.")
        _provision_log(name)
        return
    with connected(name) as remote:
        job = job or remote_jobs.newest(remote)
        if follow:
            _finish(name, remote_jobs.follow(remote, job, out.data))
        else:
            out.data(remote.run(["sudo", "mlaas4hep", "job", "logs", job]).rstrip("\n"))


def _provision_log(name: str) -> None:
    """The steps, and the newest log of the roles; before there is one, the end of the machine's console."""
    out, opened = console(), open_platform(name)
    for entry in opened.record.ledger:
        taken = "" if entry.seconds is None else f" ({entry.seconds} s)"
        out.data(f"{entry.at:%Y-%m-%d %H:%M:%S} {entry.state:<8} {entry.step}: {entry.resource or ''}{taken}")
    logs = sorted(opened.folder.logs.glob("*.log"), key=lambda log: log.stat().st_mtime)
    if not logs:
        out.data("\nNo role has run yet. The console of the machine:")
        out.data(opened.cloud.console(opened.platform).rstrip("\n") or "(its cloud shows none)")
        return
    out.data(f"\n{logs[-1]}:")
    out.data(logs[-1].read_text(encoding="utf-8", errors="replace").rstrip("\n"))
    if older := [str(log) for log in logs[:-1]]:
        out.say(f"Older logs: {', '.join(older)}.")


def cancel(name: str = _NAME, job: str = typer.Argument(help="Id of the job.")) -> None:
    """End a job."""
    from provision import jobs as remote_jobs

    with connected(name) as remote:
        ended = remote_jobs.cancel(remote, job)
    console().say(f"Job {job} is {ended['state']}.")


def fetch(
    name: str = _NAME,
    job: str = typer.Argument("", help="Id of the job.  [the newest that finished]"),
    to: Path | None = typer.Option(None, "--to", help="Folder to make.  [the job's id]"),
) -> None:
    """Bring the model folder of a job to this computer."""
    from provision import jobs as remote_jobs

    with connected(name) as remote:
        job = job or remote_jobs.newest_finished(remote)
        target = to or Path(job)
        with console().stage(f"fetching {job} into {target}"):
            remote_jobs.fetch(remote, job, target)


def predict(
    name: str = _NAME,
    event: str = typer.Argument(
        help="JSON file with an event by branch name (raw values, jagged ones as lists), or - for standard input."
    ),
    job: str = typer.Option("", "--job", help="Id of the job whose model predicts.  [the newest that finished]"),
) -> None:
    """Predict an event with a model of a platform."""
    from provision import jobs as remote_jobs

    text = _read(event)
    with connected(name) as remote:
        console().data(json.dumps(remote_jobs.predict(remote, job or remote_jobs.newest_finished(remote), text)))


def _read(event: str) -> str:
    try:
        text = sys.stdin.read() if event == "-" else Path(event).read_text(encoding="utf-8")
        json.loads(text)
    except OSError as error:
        raise UsageError(f"The event file {event} cannot be read: {error.strerror}.") from None
    except ValueError as error:
        raise UsageError(f"The event {event} is no valid JSON: {error}.") from None
    return text


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(train)
    app.command("jobs")(list_jobs)
    for command in (logs, cancel, fetch, predict):
        app.command()(command)
