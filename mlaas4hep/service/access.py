"""Who may do what: the one dependency that names the role which a route needs, and what routes work with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from fastapi import Depends, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer, SecurityScopes

from mlaas4hep.service.identity import Authenticator, NotPermittedError, Role, User

if TYPE_CHECKING:
    from mlaas4hep.service.database import Database
    from mlaas4hep.service.dispatcher import Dispatcher
    from mlaas4hep.service.login import BrowserSessions
    from mlaas4hep.service.policy import Policy
    from mlaas4hep.service.resumable import OpenUploads
    from mlaas4hep.service.settings import Settings
    from mlaas4hep.service.submissions import Submissions
    from mlaas4hep.service.workspaces import Workspaces
    from mlaas4hep.serving.repository import Repository

_BEARER = HTTPBearer(auto_error=False, scheme_name="token", description="A token of the experiment's issuer.")


@dataclass
class Service:
    """The parts that routes work with.

    Attributes:
        streams: log and progress streams that are open now.
    """

    settings: Settings
    database: Database
    authenticator: Authenticator
    policy: Callable[[], Policy]
    login: BrowserSessions | None
    workspaces: Workspaces
    uploads: OpenUploads
    submissions: Submissions
    repository: Repository
    dispatcher: Dispatcher
    streams: int = 0


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


async def current_user(
    request: Request,
    needed: SecurityScopes,
    _: Annotated[HTTPAuthorizationCredentials | None, Security(_BEARER)],
) -> User:
    """The user who asks, with the roles that the route needs.

    A token counts, or without one the session of a browser. Raises AuthenticationError, NotPermittedError.
    """
    service = _service(request)
    header = request.headers.get("authorization", "")
    if service.login is not None and not header:
        user = await service.login.user(request)
    else:
        user = await service.authenticator.authenticate(header)
    if lacking := [role for role in needed.scopes if role not in user.roles]:
        raise NotPermittedError(f"You lack the role {lacking[0]}.")
    return user


TheService = Annotated[Service, Depends(_service)]
AnyUser = Annotated[User, Security(current_user)]
Submitter = Annotated[User, Security(current_user, scopes=[Role.SUBMIT.value])]
Server = Annotated[User, Security(current_user, scopes=[Role.SERVE.value])]
Administrator = Annotated[User, Security(current_user, scopes=[Role.ADMINISTER.value])]
