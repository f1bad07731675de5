"""Routes of uploads that go on where they broke off: tus 1.0.0 with creation and termination (https://tus.io).

`Upload-Metadata` has the `path` of the file in the workspace; without one, a tar.gz with the workspace's new contents
is uploaded. `fingerprint`, up to 200 characters of the client's own, is told in the list, so that a client without
memory finds what it can go on with.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from contextlib import suppress
from typing import Annotated

from fastapi import APIRouter, Header, Request, Response
from fastapi import Path as InPath
from pydantic import BaseModel
from starlette.requests import ClientDisconnect

from mlaas4hep.errors import UsageError
from mlaas4hep.service.access import Service, Submitter, TheService
from mlaas4hep.service.archive import checked_path
from mlaas4hep.service.identity import User
from mlaas4hep.service.problems import Problem
from mlaas4hep.service.resumable import OpenUpload
from mlaas4hep.service.workspaces import checked_name
from mlaas4hep.service.workspaces_api import Name

router = APIRouter(prefix="/workspaces", tags=["workspaces"])
VERSION = "1.0.0"
_TYPE = "application/offset+octet-stream"
_PIECE = 2**20
_MOST_FINGERPRINT = 200
Identifier = Annotated[str, InPath(max_length=32, examples=["0123456789abcdef0123456789abcdef"])]
Version = Annotated[str, Header(alias="Tus-Resumable", max_length=20, description=f"`{VERSION}`.")]
Length = Annotated[int, Header(alias="Upload-Length", ge=0, le=2**62, description="Bytes of the whole.")]
Offset = Annotated[int, Header(alias="Upload-Offset", ge=0, le=2**62, description="Byte where the body begins.")]
Metadata = Annotated[
    str,
    Header(
        alias="Upload-Metadata",
        max_length=4096,
        description="`path` and `fingerprint`, each followed by a space and its value in base64, between commas.",
    ),
]
_BODY = {"requestBody": {"required": True, "content": {_TYPE: {"schema": {"type": "string", "format": "binary"}}}}}


class UploadList(BaseModel):
    """Uploads into a workspace that can go on."""

    uploads: list[OpenUpload]


@router.options("/{name}/uploads", status_code=204)
def upload_options(name: Name, _: Submitter, service: TheService) -> Response:
    """What this server can: version and extensions of tus, and the largest upload."""
    facts = {"Tus-Version": VERSION, "Tus-Extension": "creation,termination"}
    return _answer(204, **facts, **{"Tus-Max-Size": str(service.settings.limits.upload)})


@router.get("/{name}/uploads")
def list_uploads(name: Name, user: Submitter, service: TheService) -> UploadList:
    """Uploads into a workspace that can go on."""
    found = service.uploads.all(user.key)
    return UploadList(uploads=[upload for upload in found if upload.workspace == name and not upload.done])


@router.post("/{name}/uploads", status_code=201)
def begin_upload(
    name: Name,
    request: Request,
    user: Submitter,
    service: TheService,
    length: Length,
    version: Version = "",
    metadata: Metadata = "",
) -> Response:
    """Begin an upload; `Location` is its address. Its bytes count as stored until it has ended."""
    _check_version(version)
    if length > (most := service.settings.limits.upload):
        raise Problem(413, f"The upload is larger than {most} bytes.", "Upload less.")
    told = _metadata(metadata)
    path = told.get("path", "")
    if path:
        service.workspaces.folder(user.key, name)
        path = str(checked_path(path))
    fingerprint = told.get("fingerprint", "")[:_MOST_FINGERPRINT]
    made = service.uploads.begin(
        user.key, OpenUpload("", checked_name(name), path, length, fingerprint), lambda: _left(service, user)
    )
    address = f"{request.url.path}/{made.id}"
    if not length:
        _put_in_place(service, user, made)
    return _answer(201, Location=address)


@router.head("/{name}/uploads/{upload}")
def upload_offset(
    name: Name, upload: Identifier, user: Submitter, service: TheService, version: Version = ""
) -> Response:
    """How far an upload has come."""
    _check_version(version)
    found = service.uploads.find(user.key, name, upload)
    offsets = {"Upload-Offset": str(found.offset), "Upload-Length": str(found.bytes)}
    return _answer(200, **offsets, **{"Cache-Control": "no-store"})


@router.patch("/{name}/uploads/{upload}", status_code=204, openapi_extra=_BODY)
async def continue_upload(
    name: Name,
    upload: Identifier,
    request: Request,
    user: Submitter,
    service: TheService,
    offset: Offset,
    version: Version = "",
) -> Response:
    """Send what comes next; what has arrived stays when the connection breaks off.

    With its last byte the file is put into its place, or the workspace is replaced; what is refused then is removed.
    """
    _check_version(version)
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != _TYPE:
        raise Problem(415, f"The body is not of the type {_TYPE}.", "Name this type.")
    found = await asyncio.to_thread(service.uploads.find, user.key, name, upload)
    offset = await _append(service, user, found, offset, request)
    if offset == found.bytes:
        await asyncio.to_thread(_put_in_place, service, user, found)
    return _answer(204, **{"Upload-Offset": str(offset)})


@router.delete("/{name}/uploads/{upload}", status_code=204)
def end_upload(name: Name, upload: Identifier, user: Submitter, service: TheService, version: Version = "") -> Response:
    """Give an upload up."""
    _check_version(version)
    service.uploads.remove(user.key, service.uploads.find(user.key, name, upload).id)
    return _answer(204)


async def _append(service: Service, user: User, upload: OpenUpload, offset: int, request: Request) -> int:
    """Write a body to an upload, as far as it comes; returns the new offset."""
    pieces = bytearray()

    async def write() -> None:
        nonlocal offset
        await asyncio.to_thread(service.uploads.append, user.key, upload.id, offset, bytes(pieces))
        offset += len(pieces)
        pieces.clear()

    await write()  # refuses a wrong offset before anything is sent
    with suppress(ClientDisconnect):
        async for piece in request.stream():
            pieces += piece
            if len(pieces) >= _PIECE:
                await write()
    if pieces:
        await write()
    return offset


def _put_in_place(service: Service, user: User, upload: OpenUpload) -> None:
    def left(used: int) -> int:
        return service.submissions.left(user, used - upload.bytes)

    with service.uploads.whole(user.key, upload.id) as file:
        if file is None:
            return
        if upload.path:
            service.workspaces.put_file(user.key, upload.workspace, upload.path, file, left)
        else:
            with file.open("rb") as archive:
                service.workspaces.replace(user.key, upload.workspace, archive, left)


def _left(service: Service, user: User) -> int:
    return service.submissions.left(user, service.workspaces.used(user.key))


def _check_version(version: str) -> None:
    if version != VERSION:
        raise Problem(412, f"The header Tus-Resumable is not {VERSION}.", "Send it.", {"Tus-Version": VERSION})


def _metadata(text: str) -> dict[str, str]:
    """Raises UsageError for what is no metadata."""
    found = {}
    try:
        for pair in filter(None, (pair.strip() for pair in text.split(","))):
            key, _, value = pair.partition(" ")
            found[key] = base64.b64decode(value, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError) as error:
        raise UsageError("Upload-Metadata is not as tus has it.", "Write values in base64.") from error
    return found


def _answer(status: int, **headers: str) -> Response:
    return Response(status_code=status, headers={"Tus-Resumable": VERSION, **headers})
