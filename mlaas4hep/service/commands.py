"""The commands `mlaas4hep job ...`: trainings on a platform, submitted and looked after from afar."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tarfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mlaas4hep.errors import MlaasError, UsageError

if TYPE_CHECKING:
    from mlaas4hep.service.executor import Resources, Task
    from mlaas4hep.service.jobs import Job, JobStatus
    from mlaas4hep.service.local import LocalExecutor
    from mlaas4hep.service.slurm import SlurmExecutor

jobs_app = typer.Typer(
    help="Jobs on a platform.", no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False
)


def _identifiers(incomplete: str) -> list[str]:
    """Jobs of this computer that begin so, for completion by a shell."""
    from mlaas4hep.service.jobs import all_jobs

    return [job.identifier for job in all_jobs() if job.identifier.startswith(incomplete)]


Identifier = Annotated[str, typer.Argument(help="The job, NAME_1 for instance.", autocompletion=_identifiers)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


_FOLLOW_INTERVAL = 0.3
# where data are on a platform; what is there can be read by its one user's jobs
_DATA = ("/cvmfs", "/data", "/eos", "/media", "/mnt", "/srv")


def _executor() -> LocalExecutor | SlurmExecutor:
    """That of this computer, or the cluster's where MLAAS4HEP_CONFIG names settings of one."""
    from mlaas4hep.service.local import LocalExecutor, LocalSettings, places
    from mlaas4hep.service.settings import load_settings
    from mlaas4hep.service.slurm import SlurmExecutor

    if os.environ.get("MLAAS4HEP_CONFIG") and (settings := load_settings().executor).kind == "slurm":
        return SlurmExecutor(settings.slurm)
    return LocalExecutor(LocalSettings(limits="where possible"), places())


def _task(job: Job) -> Task:
    """The one attempt to run a job."""
    from mlaas4hep.service.executor import Task

    reads = tuple(path for path in map(Path, _DATA) if path.is_dir())
    return Task(job.identifier.replace("_", "-"), job.folder, reads=reads, network=True)


def _everything(executor: LocalExecutor | SlurmExecutor, nodes: int) -> Resources:
    """All that the computer, or that many nodes of the cluster, has: it is its one user's."""
    from mlaas4hep.service.jobs import home
    from mlaas4hep.service.local import LocalExecutor, whole_computer

    # before the first job there is no folder of jobs
    place = next(path for path in (home().absolute(), *home().absolute().parents) if path.exists())
    if not isinstance(executor, LocalExecutor):
        return executor.whole_nodes(nodes, shutil.disk_usage(place).free)
    if nodes > 1:
        raise UsageError("This platform has no workers: a job has one node.", "Leave out --nodes.")
    return whole_computer(place)


def _status(job: Job) -> JobStatus:
    from mlaas4hep.service.jobs import status_of

    return status_of(job, _executor().status(_task(job)))


@jobs_app.command()
def submit(
    folder: Annotated[Path, typer.Argument(help="Folder with files.txt, labels.txt, model.py and params.json.")],
    name: Annotated[str, typer.Option(help="Name of the job; by default the folder's.")] = "",
    move: Annotated[bool, typer.Option("--move", help="Take the folder away instead of copying it.")] = False,
    nodes: Annotated[int, typer.Option(min=1, help="Workers of the platform that train together.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Start the training of a folder as a job that goes on when the connection ends."""
    from mlaas4hep.service.attempts import record_result
    from mlaas4hep.service.executor import Outcome, State
    from mlaas4hep.service.jobs import create_job

    executor = _executor()
    resources = _everything(executor, nodes)
    job = create_job(folder, name, move=move)
    try:
        executor.submit(replace(_task(job), resources=resources))
    except MlaasError as error:
        record_result(_task(job), Outcome(State.FAILED, str(error)))
        raise
    _show(_status(job), as_json)


@jobs_app.command("list")
def list_jobs(as_json: AsJson = False) -> None:
    """List the jobs in the order of their submission."""
    from mlaas4hep.service.jobs import all_jobs

    statuses = [_status(job) for job in all_jobs()]
    if as_json:
        print(json.dumps([status.as_dict() for status in statuses], indent=1))
        return
    for status in statuses:
        print(_line(status))


@jobs_app.command()
def status(identifier: Identifier, as_json: AsJson = False) -> None:
    """Show where a job stands."""
    from mlaas4hep.service.jobs import find_job

    _show(_status(find_job(identifier)), as_json)


@jobs_app.command()
def logs(
    identifier: Identifier,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job has ended.")] = False,
) -> None:
    """Print what a job has printed."""
    from mlaas4hep.service.jobs import find_job

    job, executor, shown = find_job(identifier), _executor(), 0
    while True:
        over = not follow or executor.status(_task(job)).state.final
        for piece in executor.logs(_task(job), shown):
            shown += len(piece)
            sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()
        if over:
            return
        time.sleep(_FOLLOW_INTERVAL)


@jobs_app.command()
def cancel(identifier: Identifier) -> None:
    """Stop a job, whether it waits or runs."""
    from mlaas4hep.service.jobs import find_job

    job = find_job(identifier)
    if (state := _status(job).state).final:
        raise MlaasError(f"The job {identifier} is already {state}.")
    _executor().cancel(_task(job))
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
        state = _status(job).state
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


def _show(status: JobStatus, as_json: bool) -> None:
    if as_json:
        print(json.dumps(status.as_dict(), indent=1))
    else:
        print(_line(status))


def _line(status: JobStatus) -> str:
    when = status.ended or status.started or status.submitted
    reason = f"  {status.reason}" if status.reason else ""
    return f"{status.identifier:<24} {status.state.value:<14} {when[:19]}{reason}"
