"""Routes of jobs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Response
from fastapi import Path as InPath
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from mlaas4hep.service.access import Service, Submitter, TheService
from mlaas4hep.service.archive import open_plain, pack
from mlaas4hep.service.arrangement import JobResources, Submission
from mlaas4hep.service.checking import SubmissionCheck
from mlaas4hep.service.database import JobRow
from mlaas4hep.service.executor import State
from mlaas4hep.service.identity import User
from mlaas4hep.service.problems import Problem
from mlaas4hep.service.submissions import ENDED, WAITING
from mlaas4hep.service.usage import recorded
from mlaas4hep.service.workspaces import AbsentError
from mlaas4hep.service.workspaces_api import attachment, pieces
from mlaas4hep.training.bundle import MANIFEST
from mlaas4hep.training.experiment import REPORT

router = APIRouter(prefix="/jobs", tags=["jobs"])
Key = Annotated[str, InPath(max_length=64, examples=["j0123456789abcdef0123"])]
RequestKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=255,
        description="The same key with the same request makes one job, however often it is sent.",
    ),
]
Cursor = Annotated[str, Query(pattern="^[0-9]{0,18}$", description="`next` of the page before.")]
Limit = Annotated[int, Query(ge=1, le=500)]
Offset = Annotated[int, Query(ge=0, le=2**62, description="Byte to begin with.")]
_LOOK_INTERVAL = 0.3
_QUIET_SECONDS = 15.0  # proxies close connections on which nothing is sent
_MOST_AT_ONCE = 2**18
_Piece = tuple[str, int]  # data of an event, and the byte offset of its end
_STREAM: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {}}}}


class PublishedModel(BaseModel):
    """A version of a model."""

    name: str
    version: int


class JobUsage(BaseModel):
    """What the present attempt has used up to now.

    Attributes:
        cpu_seconds: of all its processes, on all processors.
        memory: most bytes at once, without the cache of files; without a control group those of its largest process.
        disk: most bytes that it has written and kept.
    """

    cpu_seconds: float
    memory: int
    disk: int


class JobView(BaseModel):
    """A job.

    Attributes:
        id: names it in these routes.
        process_name: names it in the routes of the original service.
        state: where it stands.
        reason: why it did not finish, or waits again.
        submitted, started, ended: times in ISO 8601 (UTC), "" when not yet.
        attempt: how often it was started.
        cancelled: whether its end was asked for.
        model: the published model.
        progress: the last thing that the training told; only of a single job.
        used: what it has used; only of a single job, null where that is not known.
        position: its place in the queue of all users, from 1; only of a single job that waits for the service.
    """

    id: str
    name: str
    process_name: str
    workspace: str
    state: State
    reason: str
    submitted: str
    started: str
    ended: str
    attempt: int
    cancelled: bool
    resources: JobResources
    model: PublishedModel | None
    progress: dict[str, Any] | None = None
    used: JobUsage | None = None
    position: int | None = None


class JobList(BaseModel):
    """Some jobs, the newest first; `next` is the cursor of the next page, null after the last."""

    jobs: list[JobView]
    next: str | None


def view(row: JobRow, progress: dict[str, Any] | None = None) -> JobView:
    """A row as its user sees it."""
    return JobView(
        id=row.key,
        name=row.name,
        process_name=f"{row.name}_{row.number}",
        workspace=row.workspace,
        state=State(row.state),
        reason=row.reason,
        submitted=row.submitted,
        started=row.started,
        ended=row.ended,
        attempt=row.attempt,
        cancelled=row.cancelled,
        resources=JobResources.model_construct(**{name: getattr(row, name) for name in JobResources.model_fields}),
        model=PublishedModel(name=row.model, version=row.version) if row.version else None,
        progress=progress,
    )


def job_page(service: Service, user_key: str | None, cursor: str, limit: int) -> JobList:
    """A page of jobs, of one user or of all."""
    rows = service.submissions.page(user_key, int(cursor) if cursor else None, limit)
    following = str(rows[-1].id) if len(rows) == limit else None
    return JobList(jobs=[view(row) for row in rows], next=following)


@router.post("", status_code=201)
def submit_job(wanted: Submission, user: Submitter, service: TheService, request_key: RequestKey = None) -> JobView:
    """Submit a job; it trains a copy of the workspace as it is now."""
    row = service.submissions.submit(user, wanted, request_key)
    service.dispatcher.wake()
    return view(row)


@router.post("/check")
def check_job(wanted: Submission, user: Submitter, service: TheService) -> SubmissionCheck:
    """Look at a submission's files without submitting it: what would be trained, or what is wrong.

    Files on servers are not looked at, and no Python file is run.
    """
    return service.submissions.check(user, wanted)


@router.get("")
def list_jobs(user: Submitter, service: TheService, cursor: Cursor = "", limit: Limit = 50) -> JobList:
    """Your jobs, the newest first."""
    return job_page(service, user.key, cursor, limit)


@router.get("/{key}")
def show_job(key: Key, user: Submitter, service: TheService) -> JobView:
    """One job, with the last thing that its training told, what it has used, or its place in the queue."""
    row = service.submissions.find(user, key)
    folder = service.submissions.folder(row)
    shown = view(row, _last_line(folder / "progress.jsonl"))
    used = recorded(folder, service.submissions.task(row).key)
    shown.used = None if used is None else JobUsage.model_validate(used)
    shown.position = service.dispatcher.position(row)
    return shown


@router.delete("/{key}", status_code=204)
def delete_job(key: Key, user: Submitter, service: TheService) -> Response:
    """Delete a job that has ended; its published model stays."""
    service.submissions.delete(user, key)
    return Response(status_code=204)


@router.post("/{key}/cancel", status_code=202)
def cancel_job(key: Key, user: Submitter, service: TheService) -> JobView:
    """Ask for the end of a job, whether it waits or runs; one that has ended stays as it is."""
    row = service.submissions.cancel(key, user)
    service.dispatcher.wake()
    return view(row)


@router.post("/{key}/resubmit", status_code=201)
def resubmit_job(key: Key, user: Submitter, service: TheService, request_key: RequestKey = None) -> JobView:
    """Submit the same inputs again, as a new job."""
    row = service.submissions.resubmit(user, key, request_key)
    service.dispatcher.wake()
    return view(row)


@router.get("/{key}/log", response_class=StreamingResponse)
def job_log(key: Key, user: Submitter, service: TheService, offset: Offset = 0) -> Response:
    """What the job has printed up to now."""
    row = service.submissions.find(user, key)
    return StreamingResponse(read_log(service, row, offset), media_type="text/plain; charset=utf-8")


@router.get("/{key}/log/stream", response_class=StreamingResponse, responses=_STREAM)
async def stream_log(
    key: Key,
    user: Submitter,
    service: TheService,
    offset: Offset = 0,
    last_event_id: Annotated[str, Header(pattern="^[0-9]{0,18}$")] = "",
) -> Response:
    """What the job prints, until it has ended, as server-sent events.

    Each has a piece of the log as a JSON string, and the byte offset of its end as its id, from which a client goes on
    with `Last-Event-ID` or `offset`. The event `end` has the job.
    """

    def read(row: JobRow, begin: int) -> list[_Piece]:
        data = _at_most(read_log(service, row, begin), _MOST_AT_ONCE)
        whole = _whole_characters(data)
        return [(json.dumps(whole.decode(errors="replace")), begin + len(whole))] if whole else []

    return await _stream(service, user, key, read, int(last_event_id or offset))


@router.get("/{key}/progress/stream", response_class=StreamingResponse, responses=_STREAM)
async def stream_progress(
    key: Key,
    user: Submitter,
    service: TheService,
    offset: Offset = 0,
    last_event_id: Annotated[str, Header(pattern="^[0-9]{0,18}$")] = "",
) -> Response:
    """What the training tells (stages, epochs with their measures), until the job has ended, as server-sent events.

    Ids, `offset` and the event `end` are as in the stream of the log.
    """

    def read(row: JobRow, begin: int) -> list[_Piece]:
        data = _read_from(service.submissions.folder(row) / "progress.jsonl", begin, _MOST_AT_ONCE)
        told = []
        for line in data[: data.rfind(b"\n") + 1].splitlines(keepends=True):
            begin += len(line)
            if (text := line.decode(errors="replace").strip()).isprintable():
                told.append((text, begin))
        return told

    return await _stream(service, user, key, read, int(last_event_id or offset))


@router.get("/{key}/bundle", response_class=StreamingResponse)
def download_bundle(key: Key, user: Submitter, service: TheService) -> Response:
    """The model folder of a finished job as a tar.gz."""
    row = service.submissions.find(user, key)
    return bundle_of(service, row, f"{row.name}_{row.number}")


@router.get("/{key}/report", response_class=StreamingResponse)
def download_report(key: Key, user: Submitter, service: TheService) -> Response:
    """The report of a finished job, an HTML page without scripts from elsewhere."""
    row = service.submissions.find(user, key)
    try:
        stream = open_plain(service.submissions.folder(row) / "model" / REPORT)
    except OSError as error:
        raise Problem(409, f"The job has no report: it is {row.state}.") from error
    headers = attachment("report.html")
    return StreamingResponse(pieces(stream), media_type="text/html; charset=utf-8", headers=headers)


def bundle_of(service: Service, row: JobRow, name: str, inside: str | None = None) -> Response:
    """The model folder of a job, as an archive of a name with a folder `inside` (by default of the same name)."""
    folder = service.submissions.folder(row) / "model"
    if row.state != State.FINISHED or not (folder / MANIFEST).is_file():
        raise Problem(409, f"The job has no model: it is {row.state}.", "Wait until it has finished.")
    packed = pack(folder, name if inside is None else inside)
    return StreamingResponse(packed, media_type="application/gzip", headers=attachment(f"{name}.tar.gz"))


def read_log(service: Service, row: JobRow, offset: int = 0) -> Iterator[bytes]:
    """What a job has printed, from a byte offset on."""
    if row.attempt == 0:
        return iter(())
    return service.dispatcher.executor.logs(service.submissions.task(row), offset)


async def _stream(
    service: Service, user: User, key: str, read: Callable[[JobRow, int], list[_Piece]], offset: int
) -> Response:
    await asyncio.to_thread(service.submissions.find, user, key)
    if service.streams >= service.settings.limits.streams:
        raise Problem(503, "Too many streams are open.", "Try again later.", {"Retry-After": "30"})
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(_events(service, user, key, read, offset), media_type="text/event-stream", headers=headers)


async def _events(
    service: Service, user: User, key: str, read: Callable[[JobRow, int], list[_Piece]], offset: int
) -> AsyncIterator[str]:
    service.streams += 1
    quiet = 0.0
    try:
        yield ": the stream begins\n\n"
        while True:
            # the state is asked for first, so that nothing is printed between the last piece and the end
            row = await asyncio.to_thread(service.submissions.find, user, key)
            told = await asyncio.to_thread(read, row, offset)
            for data, end in told:
                offset = end
                yield f"id: {offset}\ndata: {data}\n\n"
            if told:
                quiet = 0.0
                continue
            if row.phase == ENDED:
                yield f"event: end\ndata: {view(row).model_dump_json()}\n\n"
                return
            await asyncio.sleep(_LOOK_INTERVAL if row.phase != WAITING else 3 * _LOOK_INTERVAL)
            quiet += _LOOK_INTERVAL
            if quiet >= _QUIET_SECONDS:
                quiet = 0.0
                yield ": nothing new\n\n"
    except AbsentError:
        yield "event: end\ndata: null\n\n"
    finally:
        service.streams -= 1


def _at_most(parts: Iterator[bytes], most: int) -> bytes:
    data = bytearray()
    for part in parts:
        data += part
        if len(data) >= most:
            break
    return bytes(data)


def _whole_characters(data: bytes) -> bytes:
    """Without the beginning of a character of UTF-8 at the end."""
    for back in range(1, min(4, len(data)) + 1):
        byte = data[-back]
        if byte >= 0xC0:
            length = 2 + (byte >= 0xE0) + (byte >= 0xF0)
            return data[:-back] if back < length else data
        if byte < 0x80:
            break
    return data


def _read_from(path: Path, offset: int, most: int) -> bytes:
    try:
        with open_plain(path) as stream:
            stream.seek(offset)
            return stream.read(most)
    except OSError:
        return b""


def _last_line(path: Path) -> dict[str, Any] | None:
    try:
        with open_plain(path) as stream:
            stream.seek(max(stream.seek(0, 2) - 4096, 0))
            lines = stream.read().splitlines(keepends=True)
    except OSError:
        return None
    for line in reversed(lines):
        try:
            data = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if line.endswith(b"\n") and isinstance(data, dict):
            return data
    return None
