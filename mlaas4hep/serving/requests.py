"""What the routes take from a request: who asks, and a body of bounded size."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.datastructures import FormData
from starlette.formparsers import MultiPartException
from starlette.requests import Request

from mlaas4hep.errors import UsageError
from mlaas4hep.service.identity import Role, User
from mlaas4hep.serving.answers import TooLargeError
from mlaas4hep.serving.predictions import Predictions
from mlaas4hep.serving.tensors import HEADER_LENGTH


def predictions_of(request: Request) -> Predictions:
    """The application's models."""
    predictions: Predictions = request.app.state.predictions
    return predictions


async def user_of(request: Request, role: Role | None = Role.SERVE) -> User:
    """Who asks; see `Predictions.user`."""
    return await predictions_of(request).user(request.headers.get("authorization", ""), role)


async def body_of(request: Request, largest: int) -> bytearray:
    """The body. Raises TooLargeError, and UsageError for a compressed one."""
    if request.headers.get("content-encoding", "identity") != "identity":
        raise UsageError("The body is compressed, which is not read.", "Send it as it is.")
    return await raw_body_of(request, largest)


async def raw_body_of(request: Request, largest: int) -> bytearray:
    """The body, compressed or not. Raises TooLargeError."""
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > largest:
            raise TooLargeError(f"The body has more than {largest} bytes.", "Send it in parts.")
    return body


def header_length_of(request: Request) -> int | None:
    """Size of the JSON before binary tensors, None without any. Raises UsageError for what is no number."""
    value = request.headers.get(HEADER_LENGTH)
    if value is None:
        return None
    if not value.isascii() or not value.isdigit() or len(value) > 12:
        raise UsageError("Inference-Header-Content-Length is no number.")
    return int(value)


@asynccontextmanager
async def bounded_form(request: Request, largest: int) -> AsyncIterator[FormData]:
    """The form of a request, with its files. Raises TooLargeError, also where the size is not said beforehand."""
    length = request.headers.get("content-length", "")
    if not length.isascii() or not length.isdigit() or int(length) > largest:
        raise TooLargeError(f"The form has more than {largest} bytes, or does not say how many.")
    try:
        async with request.form(max_files=10, max_fields=20) as form:
            yield form
    except MultiPartException as error:
        raise UsageError(f"The body is no form: {error.message}") from error
