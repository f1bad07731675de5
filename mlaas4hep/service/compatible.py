"""The routes of the original HTTP service (MLaaS4HEP_server), for its clients' scripts."""

from __future__ import annotations

import asyncio
import math
import re
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import UploadFile

from mlaas4hep.errors import UsageError
from mlaas4hep.service.access import Submitter, TheService
from mlaas4hep.service.arrangement import JobResources, Submission
from mlaas4hep.service.database import JobRow
from mlaas4hep.service.executor import State
from mlaas4hep.service.jobs_api import bundle_of, read_log
from mlaas4hep.service.problems import Problem
from mlaas4hep.service.workspaces_api import attachment

router = APIRouter(tags=["routes of the original service"])
PATHS = ("/submit", "/status_docker", "/logs", "/model", "/delete_specs", "/delete_folder", "/data", "/setup_tfaas")
UPLOAD = "/upload"
_MEMORY = re.compile(r"([0-9]{1,12})\s*([kmgt]?)b?", re.IGNORECASE)
_UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
_UPLOAD = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {"file": {"type": "string", "format": "binary"}},
                }
            }
        },
    }
}
Process = Annotated[str, Query(max_length=80, examples=["luca_1"])]


class OriginalSubmission(BaseModel):
    """What the original service takes; names are those of files in the uploaded folder."""

    model_config = ConfigDict(
        extra="ignore",
        coerce_numbers_to_str=True,
        json_schema_extra={
            "examples": [
                {
                    "name": "luca",
                    "device": "cpu",
                    "memory": "3gb",
                    "cpus": "2",
                    "files": "files_local.txt",
                    "labels": "labels_local.txt",
                    "model": "ex_keras_model.py",
                    "params": "params_local.json",
                }
            ]
        },
    )

    name: str = Field(max_length=61)
    device: str = Field("cpu", max_length=100)
    memory: str = Field("2gb", max_length=20)
    cpus: str = Field("1", max_length=20)
    files: str = Field(max_length=1000)
    labels: str = Field(max_length=1000)
    model: str = Field(max_length=1000)
    params: str = Field(max_length=1000)


@router.post(UPLOAD, openapi_extra=_UPLOAD, response_class=PlainTextResponse)
async def upload(
    request: Request, user: Submitter, service: TheService, name: Annotated[str, Query(max_length=80)]
) -> Response:
    """Upload a folder as a tar.gz; a workspace of this name is made, or replaced."""
    async with request.form(max_files=1, max_fields=10) as form:
        file = form.get("file")
        if not isinstance(file, UploadFile):
            raise Problem(422, "No file was provided.", "Send it as the field `file`.")
        await asyncio.to_thread(
            service.workspaces.replace, user.key, name, file.file, lambda used: service.submissions.left(user, used)
        )
    return PlainTextResponse("Successfully uploaded!\n")


@router.post("/submit")
def submit(wanted: OriginalSubmission, user: Submitter, service: TheService) -> dict[str, Any]:
    """Submit a workflow of an uploaded folder."""
    submission = Submission(
        workspace=wanted.name,
        files=wanted.files,
        labels=wanted.labels,
        model=wanted.model,
        params=wanted.params,
        resources=_resources(wanted),
    )
    row = service.submissions.submit(user, submission, model_of_process=True)
    service.dispatcher.wake()
    return {"process_name": f"{row.name}_{row.number}", "job_id": row.id}


@router.get("/status_docker")
def status_docker(process_name: Process, user: Submitter, service: TheService) -> dict[str, str]:
    """Where a process stands, in the words of `docker ps`."""
    row = service.submissions.find_process(user, process_name)
    return {"process_name": process_name, "status": _status(row), "state": row.state, "reason": row.reason}


@router.get("/logs", response_class=StreamingResponse)
def logs(process_name: Process, user: Submitter, service: TheService) -> Response:
    """What a process has printed."""
    row = service.submissions.find_process(user, process_name)
    headers = attachment(f"{process_name}.txt")
    return StreamingResponse(read_log(service, row), media_type="text/plain; charset=utf-8", headers=headers)


@router.get("/model", response_class=StreamingResponse)
def model(process_name: Process, user: Submitter, service: TheService) -> Response:
    """The model folder of a process, with its files at the top of the tar.gz."""
    return bundle_of(service, service.submissions.find_process(user, process_name), process_name, "")


@router.get("/delete_specs", response_class=PlainTextResponse)
def delete_specs(_: Submitter, name: Annotated[str, Query(max_length=80)]) -> str:
    """Does nothing: what was learned of data is kept by its contents, so nothing is ever out of date."""
    return f"There are no specs of {name} to be deleted.\n"


@router.get("/delete_folder", status_code=410)
def delete_folder(_: Submitter, name: Annotated[str, Query(max_length=80)] = "") -> JSONResponse:
    """Gone: reading an address must not delete anything."""
    raise Problem(410, "Folders are not deleted by GET.", f"Use DELETE /api/v1/workspaces/{name or 'NAME'}.")


@router.get("/data", status_code=410)
def data(_: Submitter) -> JSONResponse:
    """Gone."""
    raise Problem(410, "Files are not listed here.", "Use GET /api/v1/workspaces/NAME/files.")


@router.post("/setup_tfaas")
def setup_tfaas(_: Submitter) -> dict[str, str]:
    """Does nothing: models of finished jobs are served at once."""
    return {"status": "ready"}


def _resources(wanted: OriginalSubmission) -> JobResources:
    if wanted.device not in ("cpu", "gpu"):
        raise UsageError(f"There is no device {wanted.device!r}.", "Ask for cpu or gpu.")
    memory = _MEMORY.fullmatch(wanted.memory.strip())
    if memory is None:
        raise UsageError(f"{wanted.memory!r} is no amount of memory.", "Write it like 3gb.")
    if not re.fullmatch(r"[0-9]{1,4}(\.[0-9]{1,3})?", wanted.cpus) or float(wanted.cpus) <= 0:
        raise UsageError(f"{wanted.cpus!r} is no number of CPUs.", "Write it like 2.")
    try:
        return JobResources(
            cpus=math.ceil(float(wanted.cpus)),
            memory=int(memory[1]) * _UNITS[memory[2].lower()],
            gpus=int(wanted.device == "gpu"),
        )
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise UsageError(f"{first['loc'][0]} is wrong: {first['msg']}.") from error


def _status(row: JobRow) -> str:
    """As `docker ps -a` has it."""
    if row.state == State.QUEUED:
        return "Created"
    if row.state == State.RUNNING:
        return f"Up {_ago(row.started)}"
    return f"Exited ({0 if row.state == State.FINISHED else 1}) {_ago(row.ended)} ago"


def _ago(time: str) -> str:
    seconds = max(int((datetime.now(UTC) - datetime.fromisoformat(time)).total_seconds()), 0) if time else 0
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= length:
            return _count(seconds // length, unit)
    return _count(seconds, "second")


def _count(number: int, unit: str) -> str:
    return f"{number} {unit}{'' if number == 1 else 's'}"
