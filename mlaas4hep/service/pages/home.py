"""The first page, the language, and sign-in on a personal platform."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import Form, Request, Response

from mlaas4hep.service.access import AnyUser, Service, TheService
from mlaas4hep.service.identity import AuthenticationError, NotPermittedError, Role, User
from mlaas4hep.service.login import local_path
from mlaas4hep.service.pages.site import LANGUAGE_COOKIE, UI, TheLook, on_with, page_router
from mlaas4hep.service.token_login import TokenLogin
from mlaas4hep.service.users_api import me

router = page_router()
_YEAR = 365 * 24 * 3600
Next = Annotated[str, Form(max_length=1024)]


@router.get("/")
async def home(request: Request, look: TheLook, service: TheService) -> Response:
    """What this is, and the way in; for who is signed in the way on."""
    user = await _visitor(request, service)
    if user is None:
        return look.page("welcome.html", None, can_sign_in=service.login is not None)
    if Role.SUBMIT in user.roles:
        return on_with(f"{UI}/workspaces")
    if Role.SERVE in user.roles:
        return on_with(f"{UI}/models")
    return on_with(f"{UI}/{'admin' if Role.ADMINISTER in user.roles else 'me'}")


async def _visitor(request: Request, service: Service) -> User | None:
    header = request.headers.get("authorization", "")
    try:
        if service.login is not None and not header:
            return await service.login.user(request)
        return await service.authenticator.authenticate(header)
    except (AuthenticationError, NotPermittedError):
        return None


@router.get(UI + "/me")
def about_me(look: TheLook, user: AnyUser, service: TheService) -> Response:
    """Who somebody is, and what they may do and use."""
    return look.page("me.html", user, me=me(user, service))


@router.get(UI + "/language/{language}")
def choose_language(language: Literal["en", "it"], next: str = "/") -> Response:
    """Keep a language in this browser."""
    answer = on_with(local_path(next))
    answer.set_cookie(LANGUAGE_COOKIE, language, max_age=_YEAR, path="/", httponly=True, samesite="lax")
    return answer


@router.get("/login")
def ask_for_token(look: TheLook, next: str = "/") -> Response:
    """The form for a personal platform's token."""
    return look.page("token.html", None, next=local_path(next), wrong="")


@router.post("/login")
async def take_token(
    request: Request, look: TheLook, service: TheService, token: Annotated[str, Form()] = "", next: Next = "/"
) -> Response:
    """Begin a session with the token."""
    if not isinstance(service.login, TokenLogin):
        raise NotPermittedError("This platform has no token of its own.")
    try:
        return await service.login.sign_in(request, token.strip(), next)
    except AuthenticationError as error:
        return look.page("token.html", None, 401, next=local_path(next), wrong=str(error))
