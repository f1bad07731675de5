"""Access tokens of oidc-agent, and Keystone's plugin that asks for one whenever it has to log in.

The agent keeps the refresh token; an access token is fetched for each login, handed to Keystone, and forgotten.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import subprocess
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from keystoneauth1.identity import V3OidcAccessToken

from provision.errors import ProvisionError
from provision.redact import register

AGENT_SECONDS = 20
"""How long `oidc-token` may take: an agent that waits for somebody at a browser would take for ever."""
LEAST_SECONDS = 60
"""How long an access token has to be valid still."""

_TOKEN = re.compile(r"[\w.~+/=-]{1,65536}", re.ASCII)  # RFC 6750, section 2.1


@dataclass(frozen=True)
class AccessToken:
    """An access token of the agent, with what it says of itself.

    Attributes:
        secret: the token.
        issuer: who issued it, as the agent says.
        until: when it ends, None when the agent does not tell.
        claims: its claims, not verified; empty when it is no JWT.
    """

    secret: str
    issuer: str
    until: datetime | None
    claims: dict[str, Any]

    def __repr__(self) -> str:
        return f"AccessToken(issuer={self.issuer!r}, until={self.until})"


def access_token(account: str, new: bool = False) -> AccessToken:
    """An access token of an account that oidc-agent has loaded.

    Args:
        account: its short name, or the URL of its issuer.
        new: have one issued now, with the groups of now, though the agent may have one that is valid.

    Raises:
        ProvisionError: there is no agent, it has no such account, its refresh token is dead, or it does not answer.
    """
    how = ["--force-new"] if new else [f"--time={LEAST_SECONDS}"]
    try:
        done = subprocess.run(
            ["oidc-token", "--all", *how, "--", account],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=AGENT_SECONDS,
        )
    except FileNotFoundError:
        raise ProvisionError(
            "oidc-agent is not installed: there is no program oidc-token.",
            "Install the package oidc-agent, and make an account with `oidc-gen`.",
        ) from None
    except OSError as error:
        raise ProvisionError(f"oidc-token cannot be run: {error.strerror}.") from None
    except subprocess.TimeoutExpired:
        raise ProvisionError(
            f"oidc-agent has not given a token for {account} within {AGENT_SECONDS} s: "
            "its refresh token has probably ended, and it waits for a login in a browser.",
            f"`oidc-gen --reauthenticate {account}` logs in again.",
        ) from None
    if done.returncode:
        raise _refused(account, done.stderr)
    return _read(account, done.stdout)


def _refused(account: str, said: str) -> ProvisionError:
    words = " ".join(said.split()).removeprefix("Error: ").rstrip(".")[:300] or "no reason given"
    for part, message, remedy in (
        (
            "did not receive any response",
            "oidc-agent does not run, or OIDC_SOCK does not name its socket.",
            f'`eval "$(oidc-agent-service use)"` starts it for this shell; `oidc-add {account}` loads the account.',
        ),
        (
            "account not loaded",
            f"oidc-agent has not loaded the account {account}.",
            f"`oidc-add {account}` loads it.",
        ),
        (
            "No account configured",
            f"oidc-agent has no account {account}.",
            f"`oidc-add --list` shows its accounts; `oidc-gen {account}` makes one.",
        ),
        (
            "invalid_grant",
            f"The refresh token of oidc-agent's account {account} has ended or was revoked.",
            f"`oidc-gen --reauthenticate {account}` logs in again.",
        ),
    ):
        if part in words:
            return ProvisionError(message, remedy)
    return ProvisionError(
        f"oidc-agent gives no token for {account}: {words}.",
        "Check that the identity provider can be reached; `oidc-gen --reauthenticate` logs in again.",
    )


def _read(account: str, said: str) -> AccessToken:
    """Read the three lines of `oidc-token --all`: token, issuer, end."""
    secret, issuer, until, *_ = [*(line.strip() for line in said.splitlines()), "", "", ""]
    if not _TOKEN.fullmatch(secret):
        raise ProvisionError(f"What oidc-token printed for {account} is no access token.")
    register(secret)
    return AccessToken(secret, issuer, _date(until), _claims(secret))


def _date(text: str) -> datetime | None:
    return datetime.fromtimestamp(int(text), UTC) if text.isascii() and text.isdigit() and len(text) < 12 else None


def _claims(secret: str) -> dict[str, Any]:
    """The claims of a JWT, without any verification: they are shown, nothing is decided by them."""
    parts = secret.split(".")
    if len(parts) != 3:
        return {}
    try:
        claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except (ValueError, binascii.Error, RecursionError):
        return {}
    return claims if isinstance(claims, dict) else {}


class AgentLogin(V3OidcAccessToken):  # type: ignore[misc]  # keystoneauth1 has no types here
    """keystoneauth's v3oidcaccesstoken, with a token of oidc-agent for each login.

    keystoneauth's own has one access token for its whole life, so that its session ends with Keystone's token. Here
    a request that is answered 401 is repeated by the session with a new token of Keystone's, as with a password.

    Args:
        account: the agent's account.
        options: those of keystoneauth's plugin.

    Attributes:
        account: the agent's account.
        always_new: have a new access token issued for each login.
        last: what the last access token said of itself, without its secret.
    """

    def __init__(self, account: str, **options: Any) -> None:
        super().__init__(**{**options, "access_token": ""})
        self.account = account
        self.always_new = False
        self.last: AccessToken | None = None

    def get_unscoped_auth_ref(self, session: Any) -> Any:
        """Log in with an access token of the agent; one that the cloud refuses is replaced once.

        Raises:
            ProvisionError: the agent gives none.
            keystoneauth1.exceptions.Unauthorized: the cloud does not accept it.
        """
        from keystoneauth1.exceptions import Unauthorized

        try:
            return self._log_in(session, new=self.always_new)
        except Unauthorized:
            if self.always_new:
                raise
        # the agent's token may be of before its user joined the group, or may have been revoked
        return self._log_in(session, new=True)

    def _log_in(self, session: Any, new: bool) -> Any:
        token = access_token(self.account, new)
        self.last = replace(token, secret="")
        self.access_token = token.secret
        try:
            return super().get_unscoped_auth_ref(session)
        finally:
            self.access_token = ""
