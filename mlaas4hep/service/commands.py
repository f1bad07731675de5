"""The commands `mlaas4hep job ...`: trainings on a platform, submitted and looked after from afar."""

from __future__ import annotations

import json
import os
import sys
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mlaas4hep.errors import MlaasError, UsageError

if TYPE_CHECKING:
    from mlaas4hep.service.jobs import JobStatus
    from mlaas4hep.service.systemd import SystemdExecutor

jobs_app = typer.Typer(
    help="Jobs on a platform.", no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False
)
Identifier = Annotated[str, typer.Argument(help="The job, NAME_1 for instance.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def _executor() -> SystemdExecutor:
    from mlaas4hep.service.systemd import SystemdExecutor

    return SystemdExecutor()


@jobs_app.command()
def submit(
    folder: Annotated[Path, typer.Argument(help="Folder with files.txt, labels.txt, model.py and params.json.")],
    name: Annotated[str, typer.Option(help="Name of the job; by default the folder's.")] = "",
    move: Annotated[bool, typer.Option("--move", help="Take the folder away instead of copying it.")] = False,
    as_json: AsJson = False,
) -> None:
    """Start the training of a folder as a job that goes on when the connection ends."""
    from mlaas4hep.service.executor import State
    from mlaas4hep.service.jobs import create_job, set_state

    job = create_job(folder, name, move=move)
    executor = _executor()
    try:
        executor.submit(job)
    except MlaasError as error:
        set_state(job, State.FAILED, reason=str(error))
        raise
    _show(executor.status(job), as_json)


@jobs_app.command("list")
def list_jobs(as_json: AsJson = False) -> None:
    """List the jobs in the order of their submission."""
    from mlaas4hep.service.jobs import all_jobs

    executor = _executor()
    statuses = [executor.status(job) for job in all_jobs()]
    if as_json:
        print(json.dumps([status.as_dict() for status in statuses], indent=1))
        return
    for status in statuses:
        print(_line(status))


@jobs_app.command()
def status(identifier: Identifier, as_json: AsJson = False) -> None:
    """Show where a job stands."""
    from mlaas4hep.service.jobs import find_job

    _show(_executor().status(find_job(identifier)), as_json)


@jobs_app.command()
def logs(
    identifier: Identifier,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job has ended.")] = False,
) -> None:
    """Print what a job has printed."""
    from mlaas4hep.service.jobs import find_job

    for piece in _executor().logs(find_job(identifier), follow):
        sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()


@jobs_app.command()
def cancel(identifier: Identifier) -> None:
    """Stop a job, whether it waits or runs."""
    from mlaas4hep.service.jobs import find_job

    _executor().cancel(find_job(identifier))
    print(f"cancelled {identifier}")


@jobs_app.command("model")
def fetch_model(
    identifier: Identifier,
    path: Annotated[bool, typer.Option("--path", help="Print only where the model folder is.")] = False,
) -> None:
    """Write the model folder of a finished job to standard output as a tar.gz."""
    from mlaas4hep.service.jobs import find_job

    job = find_job(identifier)
    if not (job.model / "bundle.json").is_file():
        state = _executor().status(job).state
        raise MlaasError(f"The job {identifier} has no model: it is {state}.")
    if path:
        print(job.model)
        return
    if sys.stdout.isatty():
        raise UsageError(
            "The model is not written to a terminal.", f"Redirect it: mlaas4hep job model {identifier} > m.tar.gz"
        )
    with tarfile.open(fileobj=sys.stdout.buffer, mode="w|gz") as archive:
        archive.add(job.model, arcname=identifier)


@jobs_app.command(hidden=True)
def run(identifier: Identifier) -> None:
    """Train a job in this process; the job's unit does this."""
    from mlaas4hep.service.jobs import find_job
    from mlaas4hep.service.runner import run_job

    run_job(find_job(identifier))


@jobs_app.command(hidden=True)
def ended(identifier: Identifier) -> None:
    """Record how a job's process ended; the job's unit does this."""
    from mlaas4hep.service.jobs import find_job, record_end

    result, code, exit_status = (os.environ.get(name, "") for name in ("SERVICE_RESULT", "EXIT_CODE", "EXIT_STATUS"))
    record_end(find_job(identifier), result, code, exit_status)


def _show(status: JobStatus, as_json: bool) -> None:
    if as_json:
        print(json.dumps(status.as_dict(), indent=1))
    else:
        print(_line(status))


def _line(status: JobStatus) -> str:
    when = status.ended or status.started or status.submitted
    reason = f"  {status.reason}" if status.reason else ""
    return f"{status.identifier:<24} {status.state.value:<14} {when[:19]}{reason}"
