"""Routes of workspaces."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, BinaryIO

from fastapi import APIRouter, Request, Response
from fastapi import Path as InPath
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field

from mlaas4hep.service.access import Submitter, TheService
from mlaas4hep.service.archive import pack
from mlaas4hep.service.problems import Problem
from mlaas4hep.service.uploads import receive_body
from mlaas4hep.service.workspaces import FileInfo, WorkspaceInfo

router = APIRouter(prefix="/workspaces", tags=["workspaces"])
Name = Annotated[str, InPath(max_length=61, examples=["higgs"])]
_PIECE = 2**18
_GZIP = {
    "requestBody": {
        "required": True,
        "content": {"application/gzip": {"schema": {"type": "string", "format": "binary"}}},
    }
}
_BYTES = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}


class NewWorkspace(BaseModel):
    """A workspace to make."""

    name: str = Field(max_length=61, examples=["higgs"])


class WorkspaceList(BaseModel):
    """The user's workspaces, and what they may still store in bytes."""

    workspaces: list[WorkspaceInfo]
    left: int


class FileList(BaseModel):
    """The files of a workspace."""

    files: list[FileInfo]


@router.get("")
def list_workspaces(user: Submitter, service: TheService) -> WorkspaceList:
    """Your workspaces."""
    used = service.workspaces.used(user.key)
    return WorkspaceList(workspaces=service.workspaces.all(user.key), left=max(service.submissions.left(user, used), 0))


@router.post("", status_code=201)
def create_workspace(wanted: NewWorkspace, user: Submitter, service: TheService) -> WorkspaceInfo:
    """Make an empty workspace."""
    if not service.workspaces.create(user.key, wanted.name):
        raise Problem(409, f"There is a workspace {wanted.name} already.", "Choose another name.")
    return service.workspaces.info(user.key, wanted.name)


@router.get("/{name}")
def show_workspace(name: Name, user: Submitter, service: TheService) -> WorkspaceInfo:
    """One workspace."""
    return service.workspaces.info(user.key, name)


@router.put("/{name}", openapi_extra=_GZIP)
async def upload_workspace(name: Name, request: Request, user: Submitter, service: TheService) -> WorkspaceInfo:
    """Upload a tar.gz as the contents of a workspace, which is made, or replaced at once.

    A single folder at the top of the archive is left out of the paths. Only files and folders are accepted.
    """
    with service.workspaces.incoming_file(user.key) as stream:
        await receive_body(request, stream)
        return await asyncio.to_thread(
            service.workspaces.replace, user.key, name, stream, lambda used: service.submissions.left(user, used)
        )


@router.delete("/{name}", status_code=204)
def delete_workspace(name: Name, user: Submitter, service: TheService) -> Response:
    """Delete a workspace; jobs that were submitted from it have copies."""
    service.workspaces.delete(user.key, name)
    return Response(status_code=204)


@router.get("/{name}/archive", response_class=StreamingResponse)
def download_workspace(name: Name, user: Submitter, service: TheService) -> Response:
    """Download a workspace as a tar.gz."""
    folder = service.workspaces.folder(user.key, name)
    return StreamingResponse(pack(folder, name), media_type="application/gzip", headers=attachment(f"{name}.tar.gz"))


@router.get("/{name}/files")
def list_files(name: Name, user: Submitter, service: TheService) -> FileList:
    """The files of a workspace."""
    return FileList(files=service.workspaces.files(user.key, name))


@router.get("/{name}/files/{path:path}", response_class=StreamingResponse)
def download_file(name: Name, path: str, user: Submitter, service: TheService) -> Response:
    """Download a file."""
    stream = service.workspaces.open_file(user.key, name, path)
    return StreamingResponse(pieces(stream), media_type="application/octet-stream", headers=attachment("file"))


@router.put("/{name}/files/{path:path}", openapi_extra=_BYTES)
async def upload_file(name: Name, path: str, request: Request, user: Submitter, service: TheService) -> FileInfo:
    """Upload a file to a workspace, replacing the one of that path at once."""
    with service.workspaces.incoming_file(user.key) as stream:
        await receive_body(request, stream)
        source = Path(stream.name)
        return await asyncio.to_thread(
            service.workspaces.put_file,
            user.key,
            name,
            path,
            source,
            lambda used: service.submissions.left(user, used),
        )


@router.delete("/{name}/files/{path:path}", status_code=204)
def delete_file(name: Name, path: str, user: Submitter, service: TheService) -> Response:
    """Delete a file."""
    service.workspaces.delete_file(user.key, name, path)
    return Response(status_code=204)


def pieces(stream: BinaryIO) -> Iterator[bytes]:
    """The contents of a file, which is closed at the end."""
    with stream:
        while piece := stream.read(_PIECE):
            yield piece


def attachment(name: str) -> dict[str, str]:
    """Headers with which a browser saves what it gets, under a name of letters, digits and hyphens."""
    return {"Content-Disposition": f'attachment; filename="{name}"', "X-Content-Type-Options": "nosniff"}
