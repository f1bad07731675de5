"""Authentication by the `Authorization` header: tokens of trusted issuers, or a personal platform's own."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import stat
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from mlaas4hep.errors import UsageError
from mlaas4hep.service.identity import AuthenticationError, Authenticator, Role, User
from mlaas4hep.service.policy import PERSONAL, Policy, PolicyFile
from mlaas4hep.service.provider import IssuerSettings, Provider, https_url
from mlaas4hep.service.tokens import LONGEST_TOKEN, WLCG_ANY_AUDIENCE, Verifier, parse, read_claims

_SCHEME = "bearer "
_LONGEST_HEADER = len(_SCHEME) + LONGEST_TOKEN
_MOST_CACHED = 10_000  # tokens
_SHORTEST_SECRET = 32  # characters of a personal platform's token


def _origin(url: str) -> str:
    if https_url(url).count("/") != 2:
        raise ValueError("must be a URL without a path, like https://ml.example.org")
    return url


class LoginSettings(BaseModel):
    """Login with a browser.

    Attributes:
        client_id: of this service at the issuer, where `PUBLIC_URL/login/callback` is its redirect URI.
        client_secret_file: file with the client's secret; none for a public client.
        public_url: the service's address as browsers see it, without a path.
        issuer: which one to log in at; the first by default.
        scopes: what to ask for; INDIGO IAM gives groups with `wlcg.groups` or `groups`.
        session_hours: how long a login lasts; groups are those of the time of the login.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    client_id: Annotated[str, Field(min_length=1)]
    client_secret_file: Path | None = None
    public_url: Annotated[str, AfterValidator(_origin)]
    issuer: str = ""
    scopes: tuple[str, ...] = ("openid", "profile", "wlcg.groups")
    session_hours: Annotated[int, Field(ge=1, le=24)] = 8

    @model_validator(mode="after")
    def _is_openid(self) -> Self:
        if "openid" not in self.scopes:
            raise ValueError("login: the scopes must have openid")
        return self


class AuthenticationSettings(BaseModel):
    """How requests are authenticated: `issuers` and `policy` on a shared platform, `token_file` on a personal one.

    Attributes:
        issuers: whose tokens count.
        policy: the policy file.
        login: login with a browser, if wanted.
        token_file: the personal token; made where there is none.
        clock_skew: by how many seconds clocks may differ.
        cache_seconds: how long a verified token counts without being looked at again.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    issuers: tuple[IssuerSettings, ...] = ()
    policy: Path | None = None
    login: LoginSettings | None = None
    token_file: Path | None = None
    clock_skew: Annotated[int, Field(ge=0, le=120)] = 30
    cache_seconds: Annotated[int, Field(ge=0, le=300)] = 60

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if bool(self.issuers) == bool(self.token_file):
            raise ValueError("give issuers (a shared platform) or token_file (a personal one)")
        if bool(self.issuers) != bool(self.policy):
            raise ValueError("issuers and a policy belong together")
        urls = [issuer.url for issuer in self.issuers]
        if len({issuer.prefix for issuer in self.issuers}) < len(urls) or len(set(urls)) < len(urls):
            raise ValueError("each of several issuers needs a prefix of its own, so that their groups differ")
        if self.login and self.login.issuer not in ("", *urls):
            raise ValueError("login.issuer must be one of the issuers")
        if self.login and not urls:
            raise ValueError("login needs an issuer")
        return self


class JwtAuthenticator:
    """Bearer tokens of trusted issuers, checked offline. To be used from one event loop.

    Args:
        settings: with issuers.
        policy: the policy at any time.
        clock: seconds since 1970.
    """

    def __init__(
        self, settings: AuthenticationSettings, policy: Callable[[], Policy], clock: Callable[[], float] = time.time
    ) -> None:
        self._verifiers = {
            issuer.url: (Verifier(Provider(issuer), _audiences(issuer), settings.clock_skew, clock), issuer)
            for issuer in settings.issuers
        }
        self._policy = policy
        self._applied = policy()
        self._clock = clock
        self._lifetime = settings.cache_seconds
        self._verified: dict[bytes, tuple[float, User]] = {}

    async def authenticate(self, authorization: str) -> User:
        """The user of an `Authorization` header. Raises AuthenticationError."""
        if len(authorization) > _LONGEST_HEADER:
            raise AuthenticationError("The token is too long.")
        policy = self._policy()
        if policy is not self._applied:
            self._verified.clear()
            self._applied = policy
        digest = hashlib.sha256(authorization.encode(errors="replace")).digest()
        known = self._verified.get(digest)
        if known and self._clock() < known[0]:
            return known[1]
        payload, issuer = await self._verify(_bearer(authorization))
        user = policy.user(read_claims(payload, issuer))
        self._remember(digest, payload["exp"], user, policy)
        return user

    async def _verify(self, token: str) -> tuple[dict[str, object], IssuerSettings]:
        claimed = parse(token)[1].get("iss")
        known = self._verifiers.get(claimed) if isinstance(claimed, str) else None
        if known is None:
            raise AuthenticationError("The token is of an issuer that does not count here.")
        return await known[0].verify(token), known[1]

    def _remember(self, digest: bytes, expires: object, user: User, policy: Policy) -> None:
        # a policy that came into force during the verification must not find what the one before it said
        if policy is not self._applied or not isinstance(expires, int | float):
            return
        if len(self._verified) >= _MOST_CACHED:
            del self._verified[next(iter(self._verified))]
        self._verified[digest] = min(float(expires), self._clock() + self._lifetime), user


class LocalAuthenticator:
    """The token of a personal platform's one user, who may do everything.

    Attributes:
        digest: of the token.
    """

    def __init__(self, path: Path) -> None:
        """Reads the token, or makes it; raises UsageError when others may read it."""
        self.digest = hashlib.sha256(_secret(path).encode()).digest()
        self._user = User("local", "local", "local", roles=frozenset(Role))

    async def authenticate(self, authorization: str) -> User:
        """The user of an `Authorization` header. Raises AuthenticationError."""
        if len(authorization) > _LONGEST_HEADER:
            raise AuthenticationError("The token is too long.")
        digest = hashlib.sha256(_bearer(authorization).encode(errors="replace")).digest()
        if not hmac.compare_digest(digest, self.digest):
            raise AuthenticationError("The token is wrong.")
        return self._user


def policy_source(settings: AuthenticationSettings) -> Callable[[], Policy]:
    """What gives the policy at any time. Raises UsageError when its file is wrong."""
    return PolicyFile(settings.policy) if settings.policy else lambda: PERSONAL


def authenticator(settings: AuthenticationSettings, policy: Callable[[], Policy] | None = None) -> Authenticator:
    """The authenticator of these settings, with the policy of `policy_source` or its own.

    Raises UsageError when a file of the settings is wrong.
    """
    if settings.token_file:
        return LocalAuthenticator(settings.token_file)
    return JwtAuthenticator(settings, policy or policy_source(settings))


def _audiences(issuer: IssuerSettings) -> tuple[str, ...]:
    return (*issuer.audiences, WLCG_ANY_AUDIENCE) if issuer.any_audience else issuer.audiences


def _bearer(authorization: str) -> str:
    if not authorization[: len(_SCHEME)].lower() == _SCHEME:
        raise AuthenticationError("A bearer token is needed.")
    return authorization[len(_SCHEME) :]


def _secret(path: Path) -> str:
    """The token in a file that nobody else may read; made, whole or not at all, where there is none."""
    try:
        if not path.exists():
            _make_secret(path)
        with path.open("rb") as stream:
            facts = os.fstat(stream.fileno())
            if not stat.S_ISREG(facts.st_mode) or facts.st_mode & 0o077 or facts.st_uid != os.geteuid():
                raise UsageError(
                    f"The token file {path} must belong to the service and be closed to others.", f"chmod 600 {path}"
                )
            token = stream.read(LONGEST_TOKEN).decode("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"The token file {path} cannot be used: {error}.") from error
    if len(token) < _SHORTEST_SECRET:
        raise UsageError(
            f"The token in {path} is shorter than {_SHORTEST_SECRET} characters.", "Remove the file; a new one is made."
        )
    return token


def _make_secret(path: Path) -> None:
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}-") as stream:  # mode 600
        stream.write(secrets.token_urlsafe(32) + "\n")
        stream.flush()
        try:
            os.link(stream.name, path)
        except FileExistsError:  # another process of the service was quicker
            return
