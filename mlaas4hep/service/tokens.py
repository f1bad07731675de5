"""JSON Web Tokens (RFC 7519) of trusted issuers: verified offline, and what their claims say about a person or robot.

Groups are those of the WLCG Common JWT Profiles 1.0 (`wlcg.groups`), else of INDIGO IAM's own profile (`groups`).
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from joserfc import jws

from mlaas4hep.service.identity import AuthenticationError
from mlaas4hep.service.provider import IssuerSettings, Provider

LONGEST_TOKEN = 16 * 1024  # characters
WLCG_ANY_AUDIENCE = "https://wlcg.cern.ch/jwt/v1/any"
_LONGEST_SUBJECT = 255  # OpenID Connect Core 1.0, section 2
_TYPES = ("jwt", "at+jwt", "application/at+jwt")


@dataclass(frozen=True)
class Claims:
    """What a verified token says.

    Attributes:
        issuer, subject: `iss` and `sub`.
        name: of a person, to be shown.
        groups: with a leading slash and the issuer's prefix, whichever claim they come from.
        scopes: with the issuer's prefix.
        client: the robot's `client_id` with the issuer's prefix, when the token is its own; "" for a person's token.
    """

    issuer: str
    subject: str
    name: str = ""
    groups: tuple[str, ...] = ()
    scopes: tuple[str, ...] = ()
    client: str = ""


class Verifier:
    """Verifies the tokens of one issuer.

    Args:
        provider: the issuer.
        audiences: `aud` must have one of these.
        clock_skew: by how many seconds clocks may differ.
    """

    def __init__(
        self, provider: Provider, audiences: tuple[str, ...], clock_skew: int, clock: Callable[[], float] = time.time
    ) -> None:
        self._provider = provider
        self._audiences = frozenset(audiences)
        self._skew = clock_skew
        self._clock = clock
        # headers that nobody knows are ignored, as RFC 7515 has it; `crit` is refused below
        self._registry = jws.JWSRegistry(algorithms=provider.settings.algorithms, strict_check_header=False)

    async def verify(self, token: str) -> dict[str, Any]:
        """The verified payload. Raises AuthenticationError."""
        signed, payload = parse(token)
        header = signed.headers()
        if "crit" in header or str(header.get("typ", "jwt")).lower() not in _TYPES:
            raise AuthenticationError("The token is of another type.")
        kid = header.get("kid")
        if not isinstance(kid, str | None):
            raise AuthenticationError("The token is malformed.")
        self._check(payload)
        keys = await self._provider.keys(kid)
        try:
            valid = jws.validate_compact(signed, keys, registry=self._registry)
        except Exception as error:  # whatever a library thinks of a hostile token: it proves nothing
            raise AuthenticationError("The token's signature cannot be verified.") from error
        if not valid:
            raise AuthenticationError("The token's signature is wrong.")
        return payload

    def _check(self, payload: dict[str, Any]) -> None:
        """The registered claims (RFC 7519, section 4.1); cheap, so it comes before keys are fetched."""
        now = self._clock()
        if payload.get("iss") != self._provider.settings.url:
            raise AuthenticationError("The token is of another issuer.")
        audience = payload.get("aud")
        listed = audience if isinstance(audience, list) else [audience]
        if not any(isinstance(name, str) and name in self._audiences for name in listed):
            raise AuthenticationError("The token is for another audience.")
        subject = payload.get("sub")
        if not isinstance(subject, str) or not 0 < len(subject) <= _LONGEST_SUBJECT:
            raise AuthenticationError("The token has no subject.")
        if _seconds(payload, "exp") + self._skew <= now:
            raise AuthenticationError("The token has expired.")
        for claim in ("nbf", "iat"):
            if claim in payload and _seconds(payload, claim) - self._skew > now:
                raise AuthenticationError("The token is not valid yet.")


def parse(token: str) -> tuple[jws.CompactSignature, dict[str, Any]]:
    """A token's parts, of which nothing is verified. Raises AuthenticationError if it is no token."""
    if len(token) > LONGEST_TOKEN:
        raise AuthenticationError("The token is too long.")
    try:
        signed = jws.extract_compact(token.encode("ascii"))
        payload = json.loads(signed.payload)
    except Exception as error:  # whatever a library thinks of a hostile token: it proves nothing
        raise AuthenticationError("The token is malformed.") from error
    if not isinstance(payload, dict) or not isinstance(signed.headers(), dict):
        raise AuthenticationError("The token is malformed.")
    return signed, payload


def read_claims(payload: dict[str, Any], settings: IssuerSettings) -> Claims:
    """What a verified payload says. Raises AuthenticationError when groups or scopes are no lists of names."""
    subject = payload["sub"]
    groups = payload["wlcg.groups"] if "wlcg.groups" in payload else payload.get("groups", [])
    scopes = payload.get("scope", "")
    scopes = scopes.split() if isinstance(scopes, str) else scopes
    for names in (groups, scopes):
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise AuthenticationError("The token's groups or scopes are malformed.")
    client = payload.get("client_id", payload.get("azp"))
    name = payload.get("name", payload.get("preferred_username"))
    return Claims(
        issuer=payload["iss"],
        subject=subject,
        name=name[:_LONGEST_SUBJECT] if isinstance(name, str) and name.isprintable() else "",
        groups=tuple(f"{settings.prefix}/{group.strip('/')}" for group in groups if group.strip("/")),
        scopes=tuple(settings.prefix + scope for scope in scopes),
        client=settings.prefix + client if client == subject else "",
    )


def _seconds(payload: dict[str, Any], claim: str) -> float:
    """A NumericDate; JSON's other numbers, and Python's NaN and Infinity, are none."""
    value = payload.get(claim)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise AuthenticationError(f"The token has no valid {claim}.")
    return value
