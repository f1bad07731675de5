"""Pages of jobs: the form, the list, and one job with its log and curves."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import Form, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from pydantic import ValidationError

from mlaas4hep.errors import MlaasError, UsageError
from mlaas4hep.service import jobs_api, workspaces_api
from mlaas4hep.service.access import Service, Submitter, TheService
from mlaas4hep.service.archive import open_plain
from mlaas4hep.service.arrangement import JobResources, Submission
from mlaas4hep.service.checking import SubmissionCheck
from mlaas4hep.service.database import JobRow
from mlaas4hep.service.identity import User
from mlaas4hep.service.jobs_api import Cursor, JobView, Key
from mlaas4hep.service.pages.site import REPORT_HEADERS, UI, Look, TheLook, on_with, page_router
from mlaas4hep.service.problems import Problem
from mlaas4hep.training.workflow import FILES, LABELS, MODEL, PARAMS

router = page_router()
_SHOWN_JOBS = 50
_SHOWN_FILES = 500
_SHOWN_LOG = 2**16  # bytes of its end
_SHOWN_PARAMETERS = 2**14
_GIB = 2**30
_LARGEST_NUMBER = 1e9
_FORM = {
    "name": "",
    "files": FILES,
    "labels": LABELS,
    "model": MODEL,
    "params": PARAMS,
    "parameters": "",
    "cpus": "1",
    "memory": "2",
    "gpus": "0",
    "hours": "24",
    "disk": "10",
}
Seen = Annotated[str, Query(max_length=40)]


def _stamp(job: JobView) -> str:
    """What changes when something changes that the pages show of a job."""
    return f"{job.state}-{job.attempt}-{int(job.cancelled)}"


@router.get(UI + "/jobs")
def jobs(look: TheLook, user: Submitter, service: TheService, cursor: Cursor = "") -> Response:
    """A page of jobs, the newest first."""
    found = jobs_api.list_jobs(user, service, cursor, _SHOWN_JOBS)
    return look.page("jobs.html", user, found=found, cursor=cursor, stamp=_stamp)


@router.get(UI + "/jobs/{key}/row")
def job_row(look: TheLook, key: Key, user: Submitter, service: TheService, seen: Seen = "") -> Response:
    """A job's row of the list, when it is not as it was."""
    job = jobs_api.view(service.submissions.find(user, key))
    if _stamp(job) == seen:
        return Response(status_code=204)
    return look.page("job_row.html", user, job=job, stamp=_stamp)


@router.get(UI + "/jobs/{key}")
def job(look: TheLook, key: Key, user: Submitter, service: TheService, unseen: bool = False) -> Response:
    """One job; `unseen` says that its files were not looked at when it was submitted just now."""
    row = service.submissions.find(user, key)
    shown = jobs_api.show_job(key, user, service)
    begin, log = _end_of_log(service, row)
    return look.page(
        "job.html", user, job=shown, log=log, log_begin=begin, log_size=_SHOWN_LOG, stamp=_stamp, unseen=unseen
    )


@router.get(UI + "/jobs/{key}/state")
def job_state(look: TheLook, key: Key, user: Submitter, service: TheService, seen: Seen = "") -> Response:
    """Where a job stands, when that is not as it was."""
    shown = jobs_api.show_job(key, user, service)
    if _stamp(shown) == seen:
        return Response(status_code=204)
    return look.page("job_state.html", user, job=shown, stamp=_stamp)


@router.get(UI + "/jobs/{key}/used")
def job_used(look: TheLook, key: Key, user: Submitter, service: TheService) -> Response:
    """What a job uses now, or its place in the queue."""
    return look.page("job_used.html", user, job=jobs_api.show_job(key, user, service))


@router.get(UI + "/jobs/{key}/report")
def report(key: Key, user: Submitter, service: TheService) -> Response:
    """The report as a page."""
    answer = jobs_api.download_report(key, user, service)
    del answer.headers["Content-Disposition"]
    answer.headers.update(REPORT_HEADERS)
    return answer


@router.post(UI + "/jobs/{key}/cancel")
def cancel(key: Key, user: Submitter, service: TheService) -> Response:
    """Ask for the end of a job."""
    jobs_api.cancel_job(key, user, service)
    return on_with(f"{UI}/jobs/{key}")


@router.post(UI + "/jobs/{key}/resubmit")
def resubmit(
    key: Key, user: Submitter, service: TheService, request_key: Annotated[str, Form(min_length=1, max_length=255)]
) -> Response:
    """Submit the same inputs again."""
    made = jobs_api.resubmit_job(key, user, service, request_key)
    return on_with(f"{UI}/jobs/{made.id}")


@router.post(UI + "/jobs/{key}/delete")
def delete(key: Key, user: Submitter, service: TheService) -> Response:
    """Delete a job that has ended."""
    jobs_api.delete_job(key, user, service)
    return on_with(f"{UI}/jobs")


@router.get(UI + "/submit")
def submission_form(
    look: TheLook, user: Submitter, service: TheService, workspace: Annotated[str, Query(max_length=61)] = ""
) -> Response:
    """The form of a submission, filled with what a workflow's files are called."""
    return _form(look, user, service, {**_FORM, "workspace": workspace, "request_key": secrets.token_urlsafe(16)})


@router.post(UI + "/submit")
async def submit(request: Request, look: TheLook, user: Submitter, service: TheService) -> Response:
    """Check a submission and submit it (or only one of both, by `action`), or show what is wrong in the form."""
    sent = await request.form(max_files=0, max_fields=30)
    values = {name: str(sent.get(name, "")) for name in (*_FORM, "workspace", "request_key", "action")}
    return await run_in_threadpool(_submitted, look, user, service, values)


def _submitted(look: Look, user: User, service: Service, values: Mapping[str, str]) -> Response:
    found = None
    try:
        wanted = _submission(values)
    except (ValidationError, MlaasError) as error:
        return _form(look, user, service, values, error)
    try:
        if values["action"] != "unchecked":
            found = jobs_api.check_job(wanted, user, service)
    except MlaasError as error:
        return _form(look, user, service, values, error, refused=True)
    if values["action"] == "check":
        return _form(look, user, service, values, found=found)
    try:
        made = jobs_api.submit_job(wanted, user, service, values["request_key"][:255] or None)
    except (MlaasError, Problem) as error:
        return _form(look, user, service, values, error)
    return on_with(f"{UI}/jobs/{made.id}" + ("?unseen=true" if found and not found.looked else ""))


def _submission(values: Mapping[str, str]) -> Submission:
    """Raises ValidationError, UsageError."""
    amounts = {
        "cpus": _number("cpus", values["cpus"]),
        "memory": int(_number("memory", values["memory"]) * _GIB),
        "gpus": _number("gpus", values["gpus"]),
        "seconds": int(_number("hours", values["hours"]) * 3600),
        "disk": int(_number("disk", values["disk"]) * _GIB),
    }
    return Submission(
        workspace=values["workspace"],
        name=values["name"].strip(),
        **{name: values[name].strip() for name in ("files", "labels", "model", "params")},
        parameters=_parameters(values["parameters"]),
        resources=JobResources.model_validate(amounts),
    )


def _number(name: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError as error:
        raise UsageError(f"{text[:40]!r} ({name}) is no number.") from error
    if not 0 <= number < _LARGEST_NUMBER:
        raise UsageError(f"{text[:40]!r} ({name}) is out of range.")
    return number


def _parameters(text: str) -> dict[str, Any]:
    if not text.strip():
        return {}
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"The parameters are no JSON: {error}.") from error
    if not isinstance(data, dict):
        raise UsageError("The parameters are no JSON object.", 'Write them like {"epochs": 5}.')
    return data


def _form(
    look: Look,
    user: User,
    service: Service,
    values: Mapping[str, str],
    wrong: Exception | None = None,
    *,
    found: SubmissionCheck | None = None,
    refused: bool = False,
) -> Response:
    """The form.

    Args:
        look, user, service: of the request.
        values: what is written in it.
        wrong: why it was not submitted.
        found: what a check has found.
        refused: whether it was the check that found what is wrong.
    """
    names = [info.name for info in workspaces_api.list_workspaces(user, service).workspaces]
    chosen = values["workspace"] if values["workspace"] in names else ""
    files = workspaces_api.list_files(chosen, user, service).files[:_SHOWN_FILES] if chosen else []
    return look.page(
        "submit.html",
        user,
        200 if wrong is None else 422,
        values=values,
        names=names,
        files=files,
        given=_text_of(service, user, chosen, values["params"]) if chosen else "",
        wrong=_sentence(wrong),
        found=found,
        refused=refused,
    )


def _sentence(error: Exception | None) -> str:
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_input=False)[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}."
    if isinstance(error, Problem):
        return f"{error.detail} {error.remedy}"
    return "" if error is None else str(error)


def _text_of(service: Service, user: User, workspace: str, path: str) -> str:
    """The beginning of the workspace's file of parameters, "" without one."""
    try:
        with service.workspaces.open_file(user.key, workspace, path) as stream:
            return stream.read(_SHOWN_PARAMETERS).decode(errors="replace")
    except UsageError:
        return ""


def _end_of_log(service: Service, row: JobRow) -> tuple[int, str]:
    """Where the end of a job's log begins that is shown at first, and its text."""
    try:
        with open_plain(service.submissions.folder(row) / "log") as stream:
            size = stream.seek(0, 2)
    except OSError:
        return 0, ""
    begin = max(size - _SHOWN_LOG, 0)
    data = b"".join(jobs_api.read_log(service, row, begin))[:_SHOWN_LOG]
    if begin:  # from the beginning of a line on
        line = data.find(b"\n") + 1
        begin, data = begin + line, data[line:]
    return begin, data.decode(errors="replace")
