"""HTTP/1.1 of uvicorn with a short way for predictions.

A request of the Open Inference Protocol whose model is loaded, whose token is known and which is answered in
milliseconds needs no task, no ASGI messages and no routing; without them the server answers twice as many. Everything
else, and every doubt, goes uvicorn's own way.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Coroutine
from http import HTTPStatus
from typing import Any

import msgspec
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from mlaas4hep.service.identity import User
from mlaas4hep.serving.answers import Answer
from mlaas4hep.serving.predictions import Predictions

_INFER = re.compile(rb"/v2/models/([A-Za-z0-9_.-]{1,130})/(infer|events)")
_LARGEST = 2**20  # bytes of a body
_STATUS = {int(status): f"HTTP/1.1 {int(status)} {status.phrase}\r\n".encode() for status in HTTPStatus}
_HEADERS = frozenset({b"authorization", b"content-length", b"content-type", b"inference-header-content-length"})
_REFUSED = frozenset({b"transfer-encoding", b"expect", b"upgrade", b"content-encoding"})


class _Request(msgspec.Struct, frozen=True):
    """What the headers of a request say that may go the short way."""

    model: str
    events: bool
    authorization: str
    header_length: int | None


class InferenceProtocol(HttpToolsProtocol):
    """A connection; the application has to have `predictions`."""

    # one timer a connection looks after connections that are kept for nothing, instead of a new one a request
    _looking: asyncio.TimerHandle | None = None
    _answered_at = 0.0
    _reading = False

    def on_message_begin(self) -> None:
        """Forget the last request."""
        super().on_message_begin()
        self._reading = True
        self._short: _Request | None = None
        self._body = bytearray()

    def on_headers_complete(self) -> None:
        """Decide which way the request goes."""
        self._short = self._recognised()
        if self._short is None:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Keep the body."""
        if self._short is None:
            super().on_body(body)
        else:
            self._body += body

    def on_message_complete(self) -> None:
        """Answer, or go uvicorn's way after all."""
        self._reading = False
        if self._short is not None:
            answer = self._answered(self._short)
            if answer is not None:
                self._send(answer)
                return
            super().on_headers_complete()
            super().on_body(bytes(self._body))
        super().on_message_complete()

    def _recognised(self) -> _Request | None:
        """The request, if it may go the short way."""
        if self.cycle is not None and not self.cycle.response_complete:
            return None
        matched = _INFER.fullmatch(self.url)
        if matched is None or self.parser.get_method() != b"POST" or self.parser.get_http_version() != "1.1":
            return None
        found: dict[bytes, bytes] = {}
        for key, value in self.headers:
            if key in _REFUSED or key in found:
                return None
            if key in _HEADERS:
                found[key] = value
        length, header = found.get(b"content-length", b""), found.get(b"inference-header-content-length")
        if matched[2] == b"events" and found.get(b"content-type", b"application/json") != b"application/json":
            return None
        if not length.isdigit() or int(length) > _LARGEST or (header is not None and not header.isdigit()):
            return None
        if self.flow.write_paused or not self.parser.should_keep_alive() or self.transport.is_closing():
            return None
        authorization = found.get(b"authorization", b"").decode("latin-1")
        json_length = None if header is None else int(header)
        return _Request(matched[1].decode("ascii"), matched[2] == b"events", authorization, json_length)

    def _answered(self, request: _Request) -> Answer | None:
        predictions: Predictions = self.app.predictions
        user = _at_once(predictions.user(request.authorization))
        if user is None or len(self._body) > predictions.settings.body:
            return None
        if request.events:
            plan = predictions.json_events(self._body)
        else:
            plan = predictions.inference(request.model, self._body, request.header_length)
        return predictions.at_once(user, request.model, plan)

    def _send(self, answer: Answer) -> None:
        headers = "".join([f"{name}: {value}\r\n" for name, value in answer.headers.items()]).encode()
        end = b"content-length: %d\r\n\r\n" % len(answer.body)
        self.transport.write(b"".join([_STATUS[answer.status], headers, end, answer.body]))
        self.server_state.total_requests += 1
        self._answered_at = self.loop.time()
        if self._looking is None:
            self._looking = self.loop.call_later(self.timeout_keep_alive, self._look)

    def _look(self) -> None:
        """Close the connection if nothing has come since the last answer; uvicorn's own way has its own timer."""
        self._looking = None
        busy = self.cycle is not None and not self.cycle.response_complete
        if busy or self._reading or self.timeout_keep_alive_task is not None or self.transport.is_closing():
            return
        left = self._answered_at + self.timeout_keep_alive - self.loop.time()
        if left <= 0:
            self.transport.close()
        else:
            self._looking = self.loop.call_later(left, self._look)


def _at_once(asked: Coroutine[Any, Any, User]) -> User | None:
    """The user, if that is known without waiting; refusals and doubts go the long way."""
    try:
        asked.send(None)
    except StopIteration as done:
        user: User = done.value
        return user
    except Exception:
        return None
    asked.close()
    return None
