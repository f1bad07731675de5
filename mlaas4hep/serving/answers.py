"""Answers of the inference server, and the one place where a failure becomes a status of HTTP."""

from __future__ import annotations

import logging
from typing import Any

import msgspec
import orjson
from starlette.responses import Response

from mlaas4hep.errors import MlaasError
from mlaas4hep.service.identity import AuthenticationError, NotPermittedError
from mlaas4hep.serving.repository import UnknownModelError
from mlaas4hep.serving.runtime import ModelFailedError, TooSlowError

JSON = "application/json"
_log = logging.getLogger("mlaas4hep.serving")


class TooLargeError(MlaasError):
    """A body is larger than it may be (HTTP 413)."""


class Answer(msgspec.Struct, frozen=True):
    """What is sent back; `header_length` is the size of the JSON before binary tensors."""

    status: int
    body: bytes
    content_type: str = JSON
    header_length: int | None = None

    @property
    def text(self) -> str:
        """The sentence of an error."""
        return str(orjson.loads(self.body)["error"])

    @property
    def headers(self) -> dict[str, str]:
        """The headers beside content-length."""
        headers = {"content-type": self.content_type}
        if self.header_length is not None:
            headers["inference-header-content-length"] = str(self.header_length)
        if self.status == 401:
            headers["www-authenticate"] = "Bearer"
        return headers


def ok(data: Any) -> Answer:
    """JSON."""
    return Answer(200, orjson.dumps(data, option=orjson.OPT_SERIALIZE_NUMPY))


def status_of(error: Exception) -> int:
    """The status of HTTP that tells of a failure."""
    for kind, status in (
        (AuthenticationError, 401),
        (NotPermittedError, 403),
        (UnknownModelError, 404),
        (TooLargeError, 413),
        (ModelFailedError, 503),
        (TooSlowError, 504),
        (MlaasError, 400),
    ):
        if isinstance(error, kind):
            return status
    return 500


def failed(error: Exception) -> Answer:
    """An error in the form of the Open Inference Protocol; what was not foreseen is logged and not told."""
    status = status_of(error)
    text = str(error)
    if status == 500:
        _log.error("A request failed.", exc_info=error)
        text = "The server failed; its log says how."
    return Answer(status, orjson.dumps({"error": text}))


def response(answer: Answer) -> Response:
    """For Starlette."""
    return Response(answer.body, answer.status, answer.headers)
