"""What all pages share: templates, language, headers, and how errors look."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Depends, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, RedirectResponse
from fastapi.routing import APIRoute
from jinja2 import Environment, PackageLoader, StrictUndefined
from pydantic import ValidationError

from mlaas4hep.service.access import TheService
from mlaas4hep.service.identity import AuthenticationError, Role, User
from mlaas4hep.service.login import local_path
from mlaas4hep.service.pages.assets import asset_path
from mlaas4hep.service.pages.drawing import bars
from mlaas4hep.service.pages.markdown import as_html
from mlaas4hep.service.pages.messages import LANGUAGES, chosen, translator

UI = "/ui"
LANGUAGE_COOKIE = "mlaas4hep-language"
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "frame-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
    "Vary": "Cookie, Accept-Language",
}
# a page that a job has written: without scripts, and of an origin of its own
REPORT_HEADERS = {
    **HEADERS,
    "Content-Security-Policy": "sandbox; default-src 'none'; style-src 'unsafe-inline'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'self'",
}
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_NO_LIMIT = 2**62  # see `policy.PERSONAL`


@dataclass(frozen=True)
class Look:
    """How a page is shown to whoever asks.

    Attributes:
        request: of the page.
        language: see `messages`.
        csrf: token of the session, "" without one.
    """

    request: Request
    language: str
    csrf: str

    def page(self, template: str, user: User | None, status: int = 200, **context: Any) -> HTMLResponse:
        """A template with what it shows."""
        text = _templates.get_template(template).render(
            _=translator(self.language),
            language=self.language,
            languages=LANGUAGES,
            csrf=self.csrf,
            user=user,
            may=lambda role: user is not None and Role(role) in user.roles,
            here=self.request.url.path + (f"?{query}" if (query := self.request.url.query) else ""),
            **context,
        )
        return HTMLResponse(text, status, HEADERS)


async def _look(request: Request, service: TheService) -> Look:
    csrf = ""
    if service.login is not None and "authorization" not in request.headers:
        try:
            csrf = await service.login.csrf(request)
        except AuthenticationError:
            csrf = ""
    return Look(request, _language(request), csrf)


TheLook = Annotated[Look, Depends(_look)]


def _language(request: Request) -> str:
    return chosen(request.cookies.get(LANGUAGE_COOKIE, ""), request.headers.get("accept-language", ""))


def on_with(path: str) -> Response:
    """Go on with another page, after a form."""
    return RedirectResponse(path, 303, {"Cache-Control": "no-store"})


class PageRoute(APIRoute):
    """Shows as pages what the API tells as problem documents."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """See `APIRoute`."""
        answer = super().get_route_handler()

        async def handler(request: Request) -> Response:
            try:
                return await answer(request)
            except Exception as error:
                return await _failure(request, error)

        return handler


def page_router() -> APIRouter:
    """A router of pages, which are no part of the API's document."""
    return APIRouter(route_class=PageRoute, include_in_schema=False, default_response_class=HTMLResponse)


async def _problem_of(request: Request, error: Exception) -> dict[str, Any]:
    """The problem document that the API would answer."""
    handlers = request.app.exception_handlers
    handler = next(handlers[kind] for kind in type(error).__mro__ if kind in handlers)
    document: dict[str, Any] = json.loads((await handler(request, error)).body)
    return document


async def _failure(request: Request, error: Exception) -> Response:
    service = request.app.state.service
    if isinstance(error, AuthenticationError) and service.login is not None and request.method == "GET":
        # a part of a page cannot be taken to another site
        part = "hx-request" in request.headers
        page = "/" if part else local_path(f"{request.url.path}?{request.url.query}".rstrip("?"))
        login = f"/login?next={quote(page, safe='')}"
        return Response(status_code=401, headers={"HX-Redirect": login}) if part else on_with(login)
    if isinstance(error, ValidationError):  # what a form has sent is no request of the API
        error = RequestValidationError(error.errors())
    problem = await _problem_of(request, error)
    look = Look(request, _language(request), "")
    return look.page("problem.html", None, problem["status"], problem=problem)


def _size(number: int) -> str:
    """Bytes in a unit that keeps the number short."""
    if number >= _NO_LIMIT:
        return "\N{INFINITY}"
    power = min(max(number.bit_length() - 1, 0) // 10, len(_UNITS) - 1)
    return f"{number / 1024**power:.4g} {_UNITS[power]}" if power else f"{number} B"


def _count(number: int) -> str:
    return "\N{INFINITY}" if number >= _NO_LIMIT else f"{number:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def _time(text: str) -> str:
    """A time in ISO 8601 as people read it."""
    try:
        return f"{datetime.fromisoformat(text):%Y-%m-%d %H:%M} UTC"
    except ValueError:
        return text


def _duration(seconds: float) -> str:
    """Seconds as people read them."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader(__package__),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "size": _size,
        "count": _count,
        "time": _time,
        "duration": _duration,
        "markdown": as_html,
        "bars": bars,
    }
    environment.globals |= {"asset": asset_path, "ui": UI}
    return environment


_templates = _environment()
