"""The service's application: its own routes, and behind them those of the inference server."""

from __future__ import annotations

import ctypes
import ipaddress
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import parse_qs

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import PlainTextResponse
from sqlalchemy import text
from starlette.types import ASGIApp, Receive, Scope, Send

from mlaas4hep import __version__
from mlaas4hep.service import (
    branches_api,
    compatible,
    jobs_api,
    models_api,
    resumable_api,
    state_api,
    users_api,
    workspaces_api,
)
from mlaas4hep.service.access import Service, TheService
from mlaas4hep.service.archive import Bounds
from mlaas4hep.service.authentication import LocalAuthenticator
from mlaas4hep.service.database import open_database
from mlaas4hep.service.dispatcher import Dispatcher
from mlaas4hep.service.executor import Executor
from mlaas4hep.service.identity import Authenticator, NotPermittedError, Role
from mlaas4hep.service.login import BrowserLogin, BrowserSessions
from mlaas4hep.service.metrics import Measured, exposition
from mlaas4hep.service.pages.all import add_pages, is_page
from mlaas4hep.service.policy import Policy
from mlaas4hep.service.problems import Problem, ProblemDocument, add_problem_handlers
from mlaas4hep.service.resumable import OpenUploads
from mlaas4hep.service.sessions import DatabaseSessions
from mlaas4hep.service.settings import Settings
from mlaas4hep.service.submissions import Submissions
from mlaas4hep.service.token_login import TokenLogin
from mlaas4hep.service.uploads import BoundedBody
from mlaas4hep.service.workspaces import Workspaces
from mlaas4hep.serving.predictions import Predictions
from mlaas4hep.serving.repository import Repository

API = "/api/v1"
_OURS = ("/api/", "/login", "/logout")
_OPEN = ("/health", "/ready", "/metrics")

_open = APIRouter(tags=["operation"])
_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ProblemDocument, "content": {"application/problem+json": {}}} for status in (401, 403, 404, 422)
}


@_open.get("/health", response_class=PlainTextResponse)
def health() -> str:
    """Whether the process answers."""
    return "ok\n"


@_open.get("/ready", response_class=PlainTextResponse)
def ready(service: TheService) -> str:
    """Whether it can work: the database answers."""
    try:
        with service.database.read() as session:
            session.execute(text("SELECT 1"))
    except Exception as error:
        raise Problem(503, "The database does not answer.") from error
    return "ok\n"


@_open.get("/metrics", response_class=PlainTextResponse)
async def metrics(request: Request, service: TheService) -> Response:
    """For Prometheus: from this machine itself, or for administrators."""
    if not _from_here(request):
        user = await service.authenticator.authenticate(request.headers.get("authorization", ""))
        if Role.ADMINISTER not in user.roles:
            raise NotPermittedError(f"You lack the role {Role.ADMINISTER}.")
    content, media_type = exposition(service.database)
    return Response(content, headers={"Content-Type": media_type})


def _from_here(request: Request) -> bool:
    """Whether no proxy has forwarded the request, and it comes from this machine."""
    forwarded = any(name in request.headers for name in ("forwarded", "x-forwarded-for", "via"))
    try:
        here = request.client is not None and ipaddress.ip_address(request.client.host).is_loopback
    except ValueError:
        return False
    return here and not forwarded


def _few_arenas() -> None:
    """Have all threads share two heaps: of one for each, the free pieces add up to 5 kB with each job that passes.

    Where the C library is not glibc there is no such choice (mallopt(3), M_ARENA_MAX).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(-8, 2)


def create_app(
    settings: Settings,
    executor: Executor,
    identify: Authenticator,
    policies: Callable[[], Policy],
    inference: ASGIApp,
    predictions: Predictions | None = None,
) -> Front:
    """The whole service as one ASGI application.

    Args:
        settings: see `settings`.
        executor: runs jobs.
        identify: finds out who asks.
        policies: gives the policy at any time.
        inference: answers what is no route of the service's own.
        predictions: the models of the inference server, for the page that tries them.

    Raises UsageError or MlaasError when a file, folder or the database of the settings cannot be used.
    """
    _few_arenas()
    settings.data.mkdir(parents=True, exist_ok=True)
    for name in ("workspaces", "jobs", "repository"):
        (settings.data / name).mkdir(mode=0o750, exist_ok=True)
    service = _assemble(settings, executor, identify, policies)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.dispatcher.start()
        try:
            yield
        finally:
            service.dispatcher.stop()
            service.database.close()

    app = FastAPI(
        title="MLaaS4HEP",
        version=__version__,
        description="Train models straight from ROOT files, and predict with them.",
        openapi_url=f"{API}/openapi.json",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.service = service
    app.state.predictions = predictions
    for module in (users_api, workspaces_api, resumable_api, branches_api, jobs_api, models_api, state_api):
        app.include_router(module.router, prefix=API, responses=_ERRORS)
    app.include_router(compatible.router, responses=_ERRORS)
    app.include_router(_open)
    if service.login is not None:
        app.include_router(service.login.router)
    add_pages(app)
    add_problem_handlers(app)
    app.add_middleware(BoundedBody, limit=_body_limit(settings))
    app.add_middleware(Measured)
    return Front(app, inference)


class Front:
    """Gives the service's own paths to it, and everything else to the inference server.

    Attributes:
        api: the service's own application.
    """

    def __init__(self, api: FastAPI, inference: ASGIApp) -> None:
        self.api = api
        self._inference = inference

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] == "lifespan" or _is_ours(scope):
            await self.api(scope, receive, send)
        else:
            await self._inference(scope, receive, send)


def _is_ours(scope: Scope) -> bool:
    path: str = scope["path"]
    if path == compatible.UPLOAD:
        headers = dict(scope["headers"])
        multipart = headers.get(b"content-type", b"").lower().startswith(b"multipart/form-data")
        return multipart and "name" in parse_qs(scope["query_string"].decode("latin-1"))
    return path in compatible.PATHS or path in _OPEN or path.startswith(_OURS) or is_page(path)


def _assemble(
    settings: Settings, executor: Executor, identify: Authenticator, policies: Callable[[], Policy]
) -> Service:
    database = open_database(settings.database_url, settings.data)
    bounds = Bounds(settings.limits.unpacked, settings.limits.files)
    uploads = OpenUploads(settings.data / "workspaces")
    workspaces = Workspaces(settings.data / "workspaces", bounds, uploads.promised)
    repository = Repository(settings.data / "repository")
    submissions = Submissions(database, workspaces, settings.data / "jobs", repository.folder, policies, settings.jobs)
    lock = settings.data / "dispatcher.lock"
    dispatcher = Dispatcher(database, submissions, executor, repository, settings.jobs, lock)
    login: BrowserSessions | None = None
    if settings.authentication.login is not None:
        login = BrowserLogin(settings.authentication, DatabaseSessions(database), policies)
    elif isinstance(identify, LocalAuthenticator):
        login = TokenLogin(identify, DatabaseSessions(database), policies)
    return Service(
        settings, database, identify, policies, login, workspaces, uploads, submissions, repository, dispatcher
    )


def _body_limit(settings: Settings) -> Callable[[str, str], int]:
    def limit(method: str, path: str) -> int:
        uploads = path == compatible.UPLOAD or (method in ("PUT", "PATCH") and path.startswith(f"{API}/workspaces/"))
        return settings.limits.upload if uploads else settings.limits.body

    return limit
