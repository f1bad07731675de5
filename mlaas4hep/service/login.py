"""Login with a browser: OpenID Connect's authorization code flow with PKCE, and sessions on the server's side.

What a browser keeps between going to the identity provider and coming back (state, nonce, PKCE verifier) is in one
short-lived cookie of its own, so that nobody can fill the database without logging in. The `__Host-` prefix of the
cookies keeps neighbours of the same domain from setting them. Follows RFC 6749, 7636, 9207, 9700 and OpenID Connect
Core 1.0.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote, urlencode

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse, RedirectResponse

from mlaas4hep.errors import UsageError
from mlaas4hep.service.authentication import AuthenticationSettings
from mlaas4hep.service.identity import AuthenticationError, NotPermittedError, User
from mlaas4hep.service.policy import Policy
from mlaas4hep.service.provider import Provider, UnreachableError, https_url
from mlaas4hep.service.tokens import Claims, Verifier, read_claims

SESSION_COOKIE = "__Host-mlaas4hep"
LOGIN_COOKIE = "__Host-mlaas4hep-login"
CSRF_HEADER = "X-CSRF-Token"
CSRF_FIELD = "csrf_token"
_LOGIN_SECONDS = 600  # from the redirect to the provider until the user is back
_LONGEST_PATH = 1024  # characters of the page to go on with
_SAFE = ("GET", "HEAD", "OPTIONS")
_FAILURES = {
    401: "Nobody is logged in, or the login is refused.",
    403: "The CSRF token is missing or wrong.",
    503: "The identity provider does not answer.",
}
_FORM = "application/x-www-form-urlencoded"


class SessionStore(Protocol):
    """Keeps sessions; keys and values are text, and the store need not understand them."""

    async def put(self, key: str, value: str, expires: float) -> None:
        """Keep a value until `expires` (seconds since 1970)."""

    async def get(self, key: str) -> str | None:
        """The value; None when it is unknown or has expired."""

    async def delete(self, key: str) -> None:
        """Forget a value; one that is unknown is no error."""


class BrowserSessions:
    """Who is logged in in a browser, and how that ends.

    Args:
        sessions: keeps them.
        policy: gives the policy at any time.
        seconds: how long one lasts.
        clock: seconds since 1970.

    Attributes:
        router: `GET /login/session`, `POST /logout`.
    """

    secure = True

    def __init__(
        self,
        sessions: SessionStore,
        policy: Callable[[], Policy],
        seconds: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._sessions = sessions
        self._policy = policy
        self._seconds = seconds
        self._clock = clock
        self.router = APIRouter(tags=["login"])
        self._add_route("show_session", "GET", "/login/session", self._show, 200, (401,))
        self._add_route("logout", "POST", "/logout", self._end, 303, (401, 403))

    def cookie(self, request: Request) -> str:
        """The name of the session's cookie."""
        return SESSION_COOKIE

    def kept_as(self, cookie: str) -> str:
        """What the store knows a session by: who reads the store cannot use what is in it."""
        return hashlib.sha256(cookie.encode(errors="replace")).hexdigest()

    async def user(self, request: Request) -> User:
        """The user of a request's session, with the roles of the present policy.

        Unsafe methods need the session's CSRF token in the header `X-CSRF-Token` or, of a plain form, in the field
        `csrf_token`. Raises AuthenticationError without a session, NotPermittedError without the CSRF token.
        """
        claims, csrf = await self._session(request)
        if request.method not in _SAFE:
            sent = request.headers.get(CSRF_HEADER, "")
            if not sent and request.headers.get("Content-Type", "").partition(";")[0].strip().lower() == _FORM:
                sent = str((await request.form()).get(CSRF_FIELD, ""))
            if not _same(sent, csrf):
                raise NotPermittedError("The CSRF token is missing or not that of this session.")
        return self._policy().user(claims)

    async def csrf(self, request: Request) -> str:
        """The CSRF token of a request's session. Raises AuthenticationError without one."""
        return (await self._session(request))[1]

    async def _show(self, request: Request) -> Response:
        """Who is logged in in this browser, and the CSRF token of the session."""
        claims, csrf = await self._session(request)
        user = self._policy().user(claims)
        facts = {"key": user.key, "name": user.name, "groups": list(user.groups), "roles": sorted(user.roles)}
        return _uncached(JSONResponse({"user": facts, CSRF_FIELD: csrf}))

    async def _end(self, request: Request) -> Response:
        """Log out of this service; the identity provider's own session stays."""
        await self.user(request)
        await self._sessions.delete(self.kept_as(request.cookies[self.cookie(request)]))
        response = _uncached(RedirectResponse("/", 303))
        _drop_cookie(response, self.cookie(request), self.secure)
        return response

    async def _session(self, request: Request) -> tuple[Claims, str]:
        """Whose session a request has, and its CSRF token. Raises AuthenticationError without one."""
        cookie = request.cookies.get(self.cookie(request), "")
        value = await self._sessions.get(self.kept_as(cookie)) if cookie else None
        if value is None:
            raise AuthenticationError("Nobody is logged in in this browser.")
        session = json.loads(value)
        kept = session["claims"]
        return Claims(**{**kept, "groups": tuple(kept["groups"]), "scopes": tuple(kept["scopes"])}), session["csrf"]

    async def begin_session(self, request: Request, response: Response, claims: Claims) -> None:
        """A new session under a new name; what this browser had before ends."""
        if before := request.cookies.get(self.cookie(request)):
            await self._sessions.delete(self.kept_as(before))
        cookie = secrets.token_urlsafe(32)
        session = json.dumps({"claims": asdict(claims), "csrf": secrets.token_urlsafe(32)})
        await self._sessions.put(self.kept_as(cookie), session, self._clock() + self._seconds)
        _set_cookie(response, self.cookie(request), cookie, self._seconds, self.secure)

    def _add_route(
        self, name: str, method: str, path: str, endpoint: Callable[..., Any], status: int, failures: tuple[int, ...]
    ) -> None:
        responses: dict[int | str, dict[str, Any]] = {code: {"description": _FAILURES[code]} for code in failures}
        self.router.add_api_route(
            path,
            endpoint,
            methods=[method],
            name=name,
            status_code=status,
            responses=responses,
            response_class=Response,
        )


class BrowserLogin(BrowserSessions):
    """Login at an identity provider.

    Attributes:
        public_url: the service's address as browsers see it.
        router: also `GET /login`, `GET /login/callback`.
    """

    def __init__(
        self,
        settings: AuthenticationSettings,
        sessions: SessionStore,
        policy: Callable[[], Policy],
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Reads the client's secret; raises UsageError when that fails, and without `settings.login`."""
        if settings.login is None:
            raise UsageError("There are no settings for login with a browser.", "Add [authentication.login].")
        super().__init__(sessions, policy, settings.login.session_hours * 3600, clock)
        self._settings = settings.login
        self.public_url = settings.login.public_url
        issuer = next(issuer for issuer in settings.issuers if self._settings.issuer in ("", issuer.url))
        self._provider = Provider(issuer)
        self._verifier = Verifier(self._provider, (self._settings.client_id,), settings.clock_skew, clock)
        self._secret = _client_secret(self._settings.client_secret_file)
        self._add_route("begin_login", "GET", "/login", self._begin, 303, (503,))
        self._add_route("finish_login", "GET", "/login/callback", self._finish, 303, (401, 503))

    async def _begin(self, next: str = "/") -> Response:
        """Send the browser to the identity provider. `next` is the page of this service to go on with."""
        try:
            metadata = await self._provider.metadata()
            endpoint = https_url(str(metadata.get("authorization_endpoint")))
        except (UnreachableError, ValueError):
            return _refusal(503, "The identity provider does not answer. Try again later.")
        kept = {name: secrets.token_urlsafe(32) for name in ("state", "nonce", "verifier")}
        challenge = hashlib.sha256(kept["verifier"].encode()).digest()
        query = {
            "response_type": "code",
            "client_id": self._settings.client_id,
            "redirect_uri": self._redirect_uri,
            "scope": " ".join(self._settings.scopes),
            "state": kept["state"],
            "nonce": kept["nonce"],
            "code_challenge": base64.urlsafe_b64encode(challenge).rstrip(b"=").decode(),
            "code_challenge_method": "S256",
        }
        response = RedirectResponse(f"{endpoint}?{urlencode(query)}", 303)
        value = base64.urlsafe_b64encode(json.dumps({**kept, "next": local_path(next)}).encode()).decode()
        _set_cookie(response, LOGIN_COOKIE, value, _LOGIN_SECONDS)
        return _uncached(response)

    async def _finish(
        self, request: Request, code: str = "", state: str = "", iss: str = "", error: str = ""
    ) -> Response:
        """Where the identity provider sends the browser back to."""
        kept = _kept(request.cookies.get(LOGIN_COOKIE, ""))
        try:
            if not kept or not _same(state, kept["state"]):
                raise AuthenticationError("This login was not begun in this browser, or too long ago.")
            if error or not code:
                reason = error if re.fullmatch("[a-z_]{1,40}", error) else "no code"
                raise AuthenticationError(f"The identity provider has refused the login ({reason}).")
            claims = await self._redeem(code, iss, kept)
        except UnreachableError:
            answer = _refusal(503, "The identity provider does not answer. Begin again at /login.")
        except AuthenticationError as problem:
            answer = _refusal(401, f"{problem} Begin again at /login.")
        else:
            answer = _uncached(RedirectResponse(local_path(kept["next"]), 303))
            await self.begin_session(request, answer, claims)
        _drop_cookie(answer, LOGIN_COOKIE)
        return answer

    @property
    def _redirect_uri(self) -> str:
        return f"{self._settings.public_url}/login/callback"

    async def _redeem(self, code: str, iss: str, kept: dict[str, str]) -> Claims:
        """What the ID token says that a code is worth. Raises AuthenticationError."""
        metadata = await self._provider.metadata()
        issuer = self._provider.settings
        if (iss or metadata.get("authorization_response_iss_parameter_supported")) and iss != issuer.url:
            raise AuthenticationError("The answer is of another identity provider.")
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": self._redirect_uri,
            "code_verifier": kept["verifier"],
        }
        if self._secret:  # RFC 6749, section 2.3.1
            options = {"auth": (quote(self._settings.client_id, safe=""), quote(self._secret, safe=""))}
        else:
            form["client_id"], options = self._settings.client_id, {}
        tokens = await self._provider.request("POST", metadata.get("token_endpoint"), data=form, **options)
        payload = await self._verifier.verify(str(tokens.get("id_token")))
        if not _same(str(payload.get("nonce", "")), kept["nonce"]):
            raise AuthenticationError("The identity provider's answer belongs to another login.")
        if payload.get("azp", self._settings.client_id) != self._settings.client_id:
            raise AuthenticationError("The identity provider's answer is for another client.")
        if not {"wlcg.groups", "groups"} & payload.keys() and "userinfo_endpoint" in metadata:
            payload = {**await self._userinfo(metadata, tokens, payload["sub"]), **payload}
        # what the person may do is not what this service, as a client, may do
        return read_claims({k: v for k, v in payload.items() if k not in ("scope", "client_id", "azp")}, issuer)

    async def _userinfo(self, metadata: dict[str, Any], tokens: dict[str, Any], subject: str) -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {tokens.get('access_token')}"}
        info = await self._provider.request("GET", metadata["userinfo_endpoint"], headers=headers)
        if info.get("sub") != subject:
            raise AuthenticationError("The identity provider contradicts itself.")
        return info


def local_path(path: str) -> str:
    """The path itself if a browser stays on this service with it, else `/`."""
    printable = path.isascii() and all(32 < ord(letter) < 127 for letter in path)
    if not printable or len(path) > _LONGEST_PATH or not re.match(r"/(?![/\\])", path) or "\\" in path:
        return "/"
    return path


def _kept(cookie: str) -> dict[str, str]:
    """What the login cookie keeps; empty when there is none, or it is none of ours."""
    try:
        kept = json.loads(base64.urlsafe_b64decode(cookie.encode()))
        return {name: str(kept[name]) for name in ("state", "nonce", "verifier", "next")}
    except (ValueError, TypeError, KeyError, RecursionError):
        return {}


def _same(one: str, other: str) -> bool:
    return hmac.compare_digest(one.encode(errors="replace"), other.encode(errors="replace"))


def _set_cookie(response: Response, name: str, value: str, seconds: int, secure: bool = True) -> None:
    response.set_cookie(name, value, max_age=seconds, path="/", secure=secure, httponly=True, samesite="lax")


def _drop_cookie(response: Response, name: str, secure: bool = True) -> None:
    response.delete_cookie(name, path="/", secure=secure, httponly=True, samesite="lax")


def _refusal(status: int, text: str) -> Response:
    return _uncached(PlainTextResponse(text + "\n", status))


def _uncached(response: Response) -> Response:
    response.headers.update({"Cache-Control": "no-store", "Referrer-Policy": "no-referrer"})
    return response


def _client_secret(path: Path | None) -> str:
    if path is None:
        return ""
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"The client's secret {path} cannot be read: {error}.") from error
