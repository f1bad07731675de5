"""Errors as RFC 9457 problem documents, with `remedy`: what to do about it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from mlaas4hep.errors import MlaasError, UsageError
from mlaas4hep.service.draining import DrainedError
from mlaas4hep.service.identity import AuthenticationError, NotPermittedError
from mlaas4hep.service.resumable import OffsetError
from mlaas4hep.service.submissions import ConflictError
from mlaas4hep.service.workspaces import AbsentError, QuotaError
from mlaas4hep.serving.repository import UnknownModelError

_STATUS: dict[type, int] = {
    AbsentError: 404,
    UnknownModelError: 404,
    ConflictError: 409,
    OffsetError: 409,
    QuotaError: 403,
    UsageError: 422,
    MlaasError: 503,
}
_LOG = logging.getLogger(__name__)


class Problem(HTTPException):
    """A request that cannot be answered.

    Args:
        status: HTTP status.
        detail: what happened, in one sentence.
        remedy: what to do about it.
    """

    def __init__(self, status: int, detail: str, remedy: str = "", headers: Mapping[str, str] | None = None) -> None:
        super().__init__(status, detail, headers)
        self.remedy = remedy


class ProblemDocument(BaseModel):
    """What an error looks like (RFC 9457)."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str = ""
    remedy: str = ""


def add_problem_handlers(app: FastAPI) -> None:
    """Make every error of an app a problem document."""
    app.add_exception_handler(HTTPException, _of_http)
    app.add_exception_handler(RequestValidationError, _of_validation)
    app.add_exception_handler(MlaasError, _of_mlaas)
    app.add_exception_handler(AuthenticationError, _of_authentication)
    app.add_exception_handler(NotPermittedError, _of_permission)
    app.add_exception_handler(Exception, _of_ours)


def _answer(
    status: int, detail: str, remedy: str = "", headers: Mapping[str, str] | None = None, **more: Any
) -> JSONResponse:
    document = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "remedy": remedy,
        **more,
    }
    return JSONResponse(document, status, headers=headers, media_type="application/problem+json")


async def _of_http(_: Request, error: Any) -> JSONResponse:
    remedy = error.remedy if isinstance(error, Problem) else ""
    return _answer(error.status_code, str(error.detail), remedy, error.headers)


async def _of_validation(_: Request, error: Any) -> JSONResponse:
    errors = [{"where": ".".join(map(str, found["loc"])), "what": str(found["msg"])} for found in error.errors()]
    first = errors[0]
    return _answer(422, f"{first['where']} is wrong: {first['what']}.", errors=errors)


async def _of_mlaas(_: Request, error: Any) -> JSONResponse:
    status = next(_STATUS[kind] for kind in type(error).__mro__ if kind in _STATUS)
    headers = {"Retry-After": str(error.drain.retry_after)} if isinstance(error, DrainedError) else None
    return _answer(status, error.message, error.remedy, headers)


async def _of_authentication(_: Request, error: Exception) -> JSONResponse:
    return _answer(401, str(error), "Send a valid token.", {"WWW-Authenticate": "Bearer"})


async def _of_permission(_: Request, error: Exception) -> JSONResponse:
    return _answer(403, str(error))


async def _of_ours(request: Request, error: Exception) -> JSONResponse:
    _LOG.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return _answer(500, "An error of the service itself; it was written to its log.")
