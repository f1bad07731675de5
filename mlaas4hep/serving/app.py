"""The inference server as an ASGI application."""

from __future__ import annotations

import gc
import importlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from mlaas4hep.errors import MlaasError
from mlaas4hep.service.identity import AuthenticationError, Authenticator, NotPermittedError
from mlaas4hep.serving import graph, rpc, tfaas, v2
from mlaas4hep.serving.answers import Answer, failed, ok, response
from mlaas4hep.serving.event_files import EventFiles
from mlaas4hep.serving.native import Processes
from mlaas4hep.serving.predictions import Predictions
from mlaas4hep.serving.settings import ServingSettings

_FAILURES = (AuthenticationError, NotPermittedError, MlaasError, Exception)


class Serving:
    """The application; `predictions` are its models, for the short way of `protocol`."""

    def __init__(
        self, folder: Path, settings: ServingSettings, authenticator: Authenticator, processes: Processes | None = None
    ) -> None:
        self.predictions = Predictions(folder, settings, authenticator, processes)
        self._files = EventFiles(settings)
        self._routed = Starlette(
            routes=[*v2.routes(), *graph.routes(), *tfaas.routes()],
            lifespan=self._lifespan,
            exception_handlers=dict.fromkeys(_FAILURES, _explained) | {HTTPException: _refused},
        )
        self._routed.router.redirect_slashes = False
        self._routed.state.predictions = self.predictions
        self._routed.state.event_files = self._files

    @property
    def routes(self) -> Sequence[Route]:
        """All routes."""
        return [route for route in self._routed.routes if isinstance(route, Route)]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        await self._routed(scope, receive, send)

    @asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        settings = self.predictions.settings
        for name in ("onnx", "onnxruntime"):
            importlib.import_module(name)
        # what is there for good is not searched for garbage again and again
        gc.collect()
        gc.freeze()
        listening = await rpc.start(self.predictions, settings.host, settings.grpc_port) if settings.grpc_port else None
        try:
            yield
        finally:
            if listening is not None:
                await listening.stop(settings.seconds)
            self._files.close()
            self.predictions.close()


def create_app(
    folder: Path, settings: ServingSettings, authenticator: Authenticator, processes: Processes | None = None
) -> Serving:
    """The inference server.

    Args:
        folder: the model repository.
        settings: bounds.
        authenticator: finds out who asks.
        processes: for models that this process must not load; without them these are refused.
    """
    return Serving(folder, settings, authenticator, processes)


def _explained(request: Request, error: Exception) -> Response:
    return response(failed(error))


def _refused(request: Request, error: Exception) -> Response:
    status, detail = (error.status_code, error.detail) if isinstance(error, HTTPException) else (500, "")
    return response(Answer(status, ok({"error": detail}).body))
