"""Pages of workspaces and their files."""

from __future__ import annotations

from typing import Annotated

from fastapi import Form, Query, Response

from mlaas4hep.errors import MlaasError
from mlaas4hep.service import branches_api, resumable_api, workspaces_api
from mlaas4hep.service.access import Submitter, TheService
from mlaas4hep.service.pages.site import UI, TheLook, on_with, page_router
from mlaas4hep.service.problems import Problem
from mlaas4hep.service.workspaces_api import Name, NewWorkspace

router = page_router()
_MOST_SHOWN = 500  # files


@router.get(UI + "/workspaces")
def workspaces(look: TheLook, user: Submitter, service: TheService) -> Response:
    """All workspaces, and a form for another one."""
    return _workspaces(look, user, service)


@router.post(UI + "/workspaces")
def create_workspace(
    look: TheLook, user: Submitter, service: TheService, name: Annotated[str, Form(max_length=61)] = ""
) -> Response:
    """Make a workspace."""
    try:
        workspaces_api.create_workspace(NewWorkspace(name=name), user, service)
    except (MlaasError, Problem) as error:
        return _workspaces(look, user, service, name, error)
    return on_with(f"{UI}/workspaces/{name}")


def _workspaces(
    look: TheLook, user: Submitter, service: TheService, name: str = "", wrong: Exception | None = None
) -> Response:
    found = workspaces_api.list_workspaces(user, service)
    status = 200 if wrong is None else 422
    return look.page("workspaces.html", user, status, found=found, name=name, wrong=_sentence(wrong))


def _sentence(error: Exception | None) -> str:
    if isinstance(error, Problem):
        return f"{error.detail} {error.remedy}"
    return "" if error is None else str(error)


@router.get(UI + "/workspaces/{name}")
def workspace(look: TheLook, name: Name, user: Submitter, service: TheService) -> Response:
    """One workspace with its files."""
    info = workspaces_api.show_workspace(name, user, service)
    files = workspaces_api.list_files(name, user, service).files
    uploads = resumable_api.list_uploads(name, user, service).uploads
    more = len(files) - _MOST_SHOWN
    return look.page("workspace.html", user, info=info, files=files[:_MOST_SHOWN], more=more, uploads=uploads)


@router.post(UI + "/workspaces/{name}/delete")
def delete_workspace(name: Name, user: Submitter, service: TheService) -> Response:
    """Delete a workspace."""
    workspaces_api.delete_workspace(name, user, service)
    return on_with(f"{UI}/workspaces")


@router.post(UI + "/workspaces/{name}/files/delete")
def delete_file(name: Name, user: Submitter, service: TheService, path: Annotated[str, Form()]) -> Response:
    """Delete a file."""
    workspaces_api.delete_file(name, path, user, service)
    return on_with(f"{UI}/workspaces/{name}")


@router.post(UI + "/workspaces/{name}/uploads/{upload}/delete")
def end_upload(name: Name, upload: resumable_api.Identifier, user: Submitter, service: TheService) -> Response:
    """Give an unfinished upload up."""
    resumable_api.end_upload(name, upload, user, service, resumable_api.VERSION)
    return on_with(f"{UI}/workspaces/{name}")


@router.get(UI + "/workspaces/{name}/branches")
def branches(
    look: TheLook, name: Name, user: Submitter, service: TheService, path: Annotated[str, Query(max_length=1024)]
) -> Response:
    """What a file holds."""
    contents = branches_api.show_branches(name, path, user, service)
    return look.page("branches.html", user, workspace=name, contents=contents)
