"""The page of administrators."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query, Response

from mlaas4hep.service import state_api, users_api
from mlaas4hep.service.access import Administrator, TheService
from mlaas4hep.service.jobs_api import Cursor, Key
from mlaas4hep.service.pages.site import UI, TheLook, on_with, page_router

router = page_router()
_SHOWN = 50


@router.get(UI + "/admin")
def administration(
    look: TheLook,
    user: Administrator,
    service: TheService,
    cursor: Cursor = "",
    after: Annotated[str, Query(pattern="^(u[0-9a-f]{16})?$")] = "",
) -> Response:
    """How the service is, everybody's jobs, and users with their quotas."""
    return look.page(
        "admin.html",
        user,
        state=state_api.service_state(user, service),
        jobs=users_api.list_all_jobs(user, service, cursor, _SHOWN),
        users=users_api.list_users(user, service, after, _SHOWN),
    )


@router.post(UI + "/admin/jobs/{key}/cancel")
def cancel(key: Key, user: Administrator, service: TheService) -> Response:
    """Ask for the end of anybody's job."""
    users_api.cancel_any_job(key, user, service)
    return on_with(f"{UI}/admin")
