"""The route that tells administrators how the service is."""

from __future__ import annotations

import shutil

from fastapi import APIRouter
from pydantic import BaseModel
from sqlalchemy import func, select

from mlaas4hep import __version__
from mlaas4hep.service.access import Administrator, TheService
from mlaas4hep.service.database import JobRow
from mlaas4hep.service.submissions import ENDED, HANDED

router = APIRouter(tags=["users"])


class Capacity(BaseModel):
    """What jobs that have been handed over use, and what all jobs together may use."""

    used: int
    all: int


class ServiceState(BaseModel):
    """How the service is.

    Attributes:
        version: of the service.
        disk: bytes of the file system that the data folder is on.
        jobs: jobs that have not ended, by phase.
        cpus, memory, gpus: of running jobs; memory in bytes.
        streams: log and progress streams that are open in this process.
    """

    version: str
    disk: Capacity
    jobs: dict[str, int]
    cpus: Capacity
    memory: Capacity
    gpus: Capacity
    streams: int


@router.get("/admin/state")
def service_state(_: Administrator, service: TheService) -> ServiceState:
    """Version, disk, queue and what the running jobs use."""
    disk = shutil.disk_usage(service.settings.data)
    sums = [func.coalesce(func.sum(getattr(JobRow, name)), 0) for name in ("cpus", "memory", "gpus")]
    with service.database.read() as session:
        chosen = select(JobRow.phase, func.count(), *sums).where(JobRow.phase != ENDED).group_by(JobRow.phase)
        rows = session.execute(chosen).all()
    running = next(((row[2], row[3], row[4]) for row in rows if row[0] == HANDED), (0, 0, 0))
    limits = service.settings.jobs
    return ServiceState(
        version=__version__,
        disk=Capacity(used=disk.used, all=disk.total),
        jobs={row[0]: row[1] for row in rows},
        cpus=Capacity(used=running[0], all=limits.cpus),
        memory=Capacity(used=running[1], all=limits.memory),
        gpus=Capacity(used=running[2], all=limits.gpus),
        streams=service.streams,
    )
