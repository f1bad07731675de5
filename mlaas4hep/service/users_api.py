"""Routes about users: oneself, and for administrators everybody."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel

from mlaas4hep.service.access import Administrator, AnyUser, TheService
from mlaas4hep.service.identity import Role
from mlaas4hep.service.jobs_api import Cursor, JobList, JobView, Key, Limit, job_page, view

router = APIRouter(tags=["users"])


class Me(BaseModel):
    """Who you are, and what you may do.

    Attributes:
        key: names you in addresses of shared models.
        quota: jobs that have not ended, and cpus, bytes of memory, GPUs of running ones; bytes stored.
    """

    key: str
    name: str
    issuer: str
    subject: str
    groups: list[str]
    roles: list[Role]
    quota: dict[str, int]


class KnownUser(BaseModel):
    """Somebody who has submitted a job, with the quota that the policy gave at the last submission."""

    key: str
    name: str
    issuer: str
    subject: str
    seen: str
    quota: dict[str, int]


class UserList(BaseModel):
    """Some users in the order of their keys; `next` is the cursor of the next page, null after the last."""

    users: list[KnownUser]
    next: str | None


@router.get("/me")
def me(user: AnyUser, service: TheService) -> Me:
    """Who you are, and what you may do."""
    return Me(
        key=user.key,
        name=user.name,
        issuer=user.issuer,
        subject=user.subject,
        groups=list(user.groups),
        roles=sorted(user.roles),
        quota=asdict(service.policy().quota(user)),
    )


@router.get("/admin/users")
def list_users(
    _: Administrator,
    service: TheService,
    cursor: Annotated[str, Query(pattern="^(u[0-9a-f]{16})?$")] = "",
    limit: Limit = 50,
) -> UserList:
    """Everybody who has submitted a job."""
    rows = service.submissions.users(cursor, limit)
    users = [
        KnownUser(key=row.key, name=row.name, issuer=row.issuer, subject=row.subject, seen=row.seen, quota=row.quota)
        for row in rows
    ]
    return UserList(users=users, next=rows[-1].key if len(rows) == limit else None)


@router.get("/admin/jobs")
def list_all_jobs(_: Administrator, service: TheService, cursor: Cursor = "", limit: Limit = 50) -> JobList:
    """Everybody's jobs, the newest first."""
    return job_page(service, None, cursor, limit)


@router.post("/admin/jobs/{key}/cancel", status_code=202)
def cancel_any_job(key: Key, _: Administrator, service: TheService) -> JobView:
    """Ask for the end of anybody's job."""
    row = service.submissions.cancel(key, None)
    service.dispatcher.wake()
    return view(row)
