"""HTTP/1.1 of uvicorn with a short way for predictions.

A request of the Open Inference Protocol whose model is loaded, whose token is known and which is answered in
milliseconds needs no task, no ASGI messages and no routing; without them the server answers twice as many. A client
sends the same head again and again: one that has gone the short way is known by its bytes, and not parsed again.
Everything else, and every doubt, goes uvicorn's own way.
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
_END = b"\r\n\r\n"
_LONGEST_HEAD, _MOST_HEADS = 4096, 2048
_CROWD = 8  # connections from which on answers are sent together
_JSON = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
_STATUS = {int(status): f"HTTP/1.1 {int(status)} {status.phrase}\r\n".encode() for status in HTTPStatus}
_HEADERS = frozenset({b"authorization", b"content-length", b"content-type", b"inference-header-content-length"})
_REFUSED = frozenset({b"transfer-encoding", b"expect", b"upgrade", b"content-encoding"})


class _Request(msgspec.Struct, frozen=True):
    """What the headers of a request say that may go the short way."""

    model: str
    events: bool
    authorization: str
    length: int
    header_length: int | None


_heads: dict[bytes, _Request] = {}
# answers of this turn of the event loop, which are sent together: a client that is woken once then finds several
_outbox: list[tuple[InferenceProtocol, Answer]] = []


class InferenceProtocol(HttpToolsProtocol):
    """A connection; the application has to have `predictions`."""

    # one timer a connection looks after connections that are kept for nothing, instead of a new one a request
    _looking: asyncio.TimerHandle | None = None
    _answered_at = 0.0
    _reading = False
    # the head that the data at hand begins with, until a request has been read
    _head = b""
    # its answer is in the outbox
    _pending = False

    def data_received(self, data: bytes) -> None:
        """Answer a whole request with a known head; leave everything else to the parser."""
        if self._pending:
            _send_all()
        if not self._reading:
            end = data.find(_END, 0, _LONGEST_HEAD) + len(_END)
            self._head = data[:end] if end >= len(_END) else b""
            known = _heads.get(self._head)
            if known is not None and len(data) - end == known.length and self._free():
                answer = self._answered(known, data[end:])
                if answer is not None:
                    self._unset_keepalive_if_required()
                    self._send_soon(answer)
                    return
        super().data_received(data)

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
        head, self._head = self._head, b""
        if self._short is not None:
            answer = self._answered(self._short, bytes(self._body))
            if answer is not None:
                if head:
                    _remember(head, self._short)
                self._send(answer)
                return
            super().on_headers_complete()
            super().on_body(bytes(self._body))
        super().on_message_complete()

    def _recognised(self) -> _Request | None:
        """The request, if it may go the short way."""
        if not self._free():
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
        if not self.parser.should_keep_alive():
            return None
        authorization = found.get(b"authorization", b"").decode("latin-1")
        json_length = None if header is None else int(header)
        return _Request(matched[1].decode("ascii"), matched[2] == b"events", authorization, int(length), json_length)

    def _free(self) -> bool:
        """Whether nothing is being answered, and an answer can be written at once."""
        busy = self.cycle is not None and not self.cycle.response_complete
        return not (busy or self.flow.write_paused or self.transport.is_closing())

    def _answered(self, request: _Request, body: bytes) -> Answer | None:
        predictions: Predictions = self.app.predictions
        user = _at_once(predictions.user(request.authorization))
        if user is None or len(body) > predictions.settings.body:
            return None
        if request.events:
            plan = predictions.json_events(body)
        else:
            plan = predictions.inference(request.model, body, request.header_length)
        return predictions.at_once(user, request.model, plan)

    def _send_soon(self, answer: Answer) -> None:
        if len(self.connections) < _CROWD:
            self._send(answer)
            return
        if not _outbox:
            self.loop.call_soon(_send_all)
        _outbox.append((self, answer))
        self._pending = True

    def _send(self, answer: Answer) -> None:
        self._pending = False
        if self.transport.is_closing():
            return
        if answer.status == 200 and answer.header_length is None:
            self.transport.write(_JSON % (len(answer.body), answer.body))
        else:
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


def _send_all() -> None:
    waiting = _outbox.copy()
    _outbox.clear()
    for connection, answer in waiting:
        connection._send(answer)


def _remember(head: bytes, request: _Request) -> None:
    if len(_heads) >= _MOST_HEADS:
        _heads.clear()
    _heads[head] = request


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
