"""Sign-in with a browser on a personal platform: its token is exchanged for a session."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from fastapi import Request, Response
from fastapi.responses import RedirectResponse

from mlaas4hep.service.authentication import LocalAuthenticator
from mlaas4hep.service.login import BrowserSessions, SessionStore, local_path
from mlaas4hep.service.policy import Policy
from mlaas4hep.service.tokens import Claims

_SECONDS = 24 * 3600


class TokenLogin(BrowserSessions):
    """Sessions of the one user, which end when there is another token."""

    # the service is reached over http on the loopback, where browsers send no cookie that is `Secure`
    secure = False

    def __init__(self, authenticator: LocalAuthenticator, sessions: SessionStore, policy: Callable[[], Policy]) -> None:
        super().__init__(sessions, policy, _SECONDS)
        self._authenticator = authenticator

    def cookie(self, request: Request) -> str:
        """Browsers do not tell the ports of one computer apart, and several platforms may be reached there."""
        return f"mlaas4hep-{request.url.port or 80}"

    def kept_as(self, cookie: str) -> str:
        """Under what only the present token leads to."""
        return hashlib.sha256(self._authenticator.digest + cookie.encode(errors="replace")).hexdigest()

    async def sign_in(self, request: Request, token: str, page: str) -> Response:
        """Begin a session and go on with a page of this service. Raises AuthenticationError for a wrong token."""
        user = await self._authenticator.authenticate(f"Bearer {token}")
        answer = RedirectResponse(local_path(page), 303)
        await self.begin_session(request, answer, Claims(user.issuer, user.subject, user.name))
        return answer
