"""Bodies of requests: bounded, and written to disk beside the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import BinaryIO

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mlaas4hep.service.problems import Problem

_PIECE = 2**20


class BoundedBody:
    """Refuses bodies that are too large: at once when their length is told, else when they have become so.

    Args:
        app: what answers.
        limit: gives the most bytes for a method and path.
    """

    def __init__(self, app: ASGIApp, limit: Callable[[str, str], int]) -> None:
        self._app = app
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit = self._limit(scope["method"], scope["path"])
        told = dict(scope["headers"]).get(b"content-length", b"0")
        left = limit

        async def bounded() -> Message:
            nonlocal left
            if told.isdigit() and int(told) > limit:
                raise _too_large(limit)
            message = await receive()
            left -= len(message.get("body", b""))
            if left < 0:
                raise _too_large(limit)
            return message

        await self._app(scope, bounded, send)


def _too_large(limit: int) -> Problem:
    return Problem(413, f"The body is larger than {limit} bytes.", "Send less.", {"Connection": "close"})


async def receive_body(request: Request, stream: BinaryIO) -> None:
    """Write a request's body to a file, and go back to the file's beginning."""
    pieces = bytearray()
    async for piece in request.stream():
        pieces += piece
        if len(pieces) >= _PIECE:
            await asyncio.to_thread(stream.write, bytes(pieces))
            pieces.clear()
    await asyncio.to_thread(_finish, stream, bytes(pieces))


def _finish(stream: BinaryIO, rest: bytes) -> None:
    stream.write(rest)
    stream.flush()
    stream.seek(0)
