"""The short way of a prediction, in a server of this process."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from mlaas4hep.serving.app import Serving
from mlaas4hep.serving.protocol import InferenceProtocol
from tests import serving_parts as parts
from tests.serving_parts import ANNA

BODY = json.dumps({"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]})
REQUEST = (
    "POST /v2/models/dense/infer HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer anna\r\n"
    f"Content-Length: {len(BODY)}\r\n\r\n{BODY}"
).encode()


class Counting(Serving):
    """Counts the requests that come the long way."""

    long = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.long += scope["type"] == "http"
        await super().__call__(scope, receive, send)


@asynccontextmanager
async def server(folder: Path) -> AsyncIterator[tuple[Counting, int]]:
    """The application and the port of a server that keeps connections for a second."""
    models = parts.repository(folder / "repository")
    models.publish(ANNA.key, "dense", parts.uploaded(folder / "dense", parts.dense()))
    app, port = Counting(models.folder, parts.settings(), parts.Tokens()), parts.free_port()
    config = uvicorn.Config(
        app,
        "127.0.0.1",
        port,
        http=InferenceProtocol,
        ws="none",
        proxy_headers=False,
        timeout_keep_alive=1,
        log_level="error",
    )
    running = uvicorn.Server(config)
    task = asyncio.create_task(running.serve())
    while not running.started:
        await asyncio.sleep(0.01)
    yield app, port
    running.should_exit = True
    await task


async def answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(
        int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")
    )
    return int(head.split()[1]), await reader.readexactly(length)


async def goes_short(app: Counting, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Ask until the model is loaded and its folder has not changed for a while."""
    for _ in range(1000):
        before = app.long
        writer.write(REQUEST)
        assert (await answer(reader))[0] == 200
        if app.long == before:
            return
        await asyncio.sleep(0.01)
    raise AssertionError("No request went the short way.")


def test_a_loaded_model_is_asked_the_short_way_and_a_change_is_seen(tmp_path: Path) -> None:
    async def play() -> None:
        async with server(tmp_path) as (app, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            await goes_short(app, reader, writer)
            before = app.long
            for _ in range(10):
                writer.write(REQUEST)
                assert (await answer(reader))[0] == 200
            assert app.long == before
            app.predictions.repository.delete(ANNA.key, "dense")
            writer.write(REQUEST)
            assert (await answer(reader))[0] == 404
            writer.close()

    asyncio.run(asyncio.wait_for(play(), 120))


def values(number: int) -> bytes:
    """A request whose head is the same for all one-digit numbers, and whose answer is its own."""
    body = BODY.replace("[1, 2, 3, 4]", f"[{number}, 2, 3, 4]")
    return REQUEST.replace(BODY.encode(), body.encode())


def test_many_connections_are_answered_each_its_own_in_order(tmp_path: Path) -> None:
    async def play() -> None:
        async with server(tmp_path) as (app, port):
            connections = [await asyncio.open_connection("127.0.0.1", port) for _ in range(24)]
            expected = {}
            for number in range(9):
                reader, writer = connections[0]
                writer.write(values(number))
                expected[number] = (await answer(reader))[1]
            assert len(set(expected.values())) == 9
            await goes_short(app, *connections[0])
            before = app.long
            for turn in range(20):
                # two at once on every third connection, the second of them in two pieces
                for place, (_, writer) in enumerate(connections):
                    first, second = values((turn + place) % 9), values((turn + place + 1) % 9)
                    writer.write(first + second[:50] if place % 3 == 0 else first)
                    if place % 3 == 0:
                        await writer.drain()
                        writer.write(second[50:])
                for place, (reader, _) in enumerate(connections):
                    assert await answer(reader) == (200, expected[(turn + place) % 9])
                    if place % 3 == 0:
                        assert await answer(reader) == (200, expected[(turn + place + 1) % 9])
            assert app.long == before
            # one that goes away before it is answered keeps nobody else from being answered
            for place, (_, writer) in enumerate(connections):
                writer.write(values(place % 9))
                if place % 4 == 0:
                    writer.transport.abort()
            for place, (reader, writer) in enumerate(connections):
                if place % 4:
                    assert await answer(reader) == (200, expected[place % 9])
                    writer.close()

    asyncio.run(asyncio.wait_for(play(), 120))


def test_a_connection_that_is_kept_for_nothing_is_closed(tmp_path: Path) -> None:
    async def play() -> None:
        async with server(tmp_path) as (app, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            await goes_short(app, reader, writer)
            assert await reader.read() == b""
            writer.close()

    asyncio.run(asyncio.wait_for(play(), 120))


def test_an_authenticator_that_has_to_wait_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def play() -> None:
        async with server(tmp_path) as (app, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            await goes_short(app, reader, writer)
            known = parts.Tokens().authenticate

            async def slow(self: parts.Tokens, authorization: str) -> Any:
                async with asyncio.timeout(60):
                    await asyncio.sleep(0)
                    return await known(authorization)

            monkeypatch.setattr(parts.Tokens, "authenticate", slow)
            before = app.long
            for token, status in ((b"anna", 200), (b"nobody", 401), (b"bert", 404), (b"guest", 403)):
                writer.write(REQUEST.replace(b"Bearer anna", b"Bearer " + token))
                assert (await answer(reader))[0] == status
            assert app.long == before + 4
            writer.close()

    asyncio.run(asyncio.wait_for(play(), 120))
