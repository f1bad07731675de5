"""An OpenID provider as its relying party sees it: metadata, signing keys, requests with bounded size and time.

Follows OpenID Connect Discovery 1.0 and RFC 7517. Keys are fetched when first needed, when a token names one that is
not there, and again from time to time beside the requests; never more often than `key_refresh` allows.
"""

from __future__ import annotations

import asyncio
import json
import logging
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import httpx
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, JWKRegistry, Key, KeySet, OKPKey, RSAKey
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from mlaas4hep.errors import UsageError
from mlaas4hep.service.identity import AuthenticationError

_TIMEOUT = 10.0  # seconds for a whole request
_LARGEST_ANSWER = 256 * 1024  # bytes
_MOST_KEYS = 100
_KEYS_FRESH = 300.0  # seconds after which keys are fetched again, beside the requests
_KEYS_KEPT = 3600.0  # seconds for which keys count while the provider cannot be reached
_SMALLEST_RSA_KEY = 2048  # bits, NIST SP 800-131A
_log = logging.getLogger(__name__)

Algorithm = Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "Ed25519"]


def https_url(url: str) -> str:
    """The URL itself, if it is an absolute https one without query, fragment and user.

    Raises ValueError.
    """
    parts = urlsplit(url)
    if parts.scheme != "https" or not parts.hostname or parts.query or parts.fragment or "@" in parts.netloc:
        raise ValueError("must be a URL like https://iam.example.org/")
    if not url.isascii() or any(ord(letter) <= 32 for letter in url):
        raise ValueError("must not contain spaces or special characters")
    return url


class IssuerSettings(BaseModel):
    """An issuer whose tokens count.

    Attributes:
        url: the issuer as its tokens' `iss` has it, compared letter by letter (also a final slash).
        audiences: `aud` must have one of these; the service's own URL is the usual one.
        any_audience: whether the WLCG profile's audience for everybody counts as well.
        algorithms: of signatures; only asymmetric ones exist here.
        ca_file: certificates to verify the issuer's TLS with, instead of the system's.
        prefix: put before groups, scopes and clients of this issuer, so that two issuers' are never mixed up.
        key_refresh: least time between two fetches of its keys, in seconds.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: Annotated[str, AfterValidator(https_url)]
    audiences: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1)]
    any_audience: bool = False
    algorithms: Annotated[tuple[Algorithm, ...], Field(min_length=1)] = ("RS256", "ES256")
    ca_file: Path | None = None
    prefix: Annotated[str, Field(pattern=r"^([a-z0-9][a-z0-9-]*:)?$")] = ""
    key_refresh: Annotated[float, Field(gt=0, le=300)] = 10.0


class UnreachableError(AuthenticationError):
    """The provider does not answer, or not what it should."""


class Provider:
    """What one issuer publishes. To be used from one event loop."""

    def __init__(self, settings: IssuerSettings, clock: Callable[[], float] = time.monotonic) -> None:
        """Reads the CA file; raises UsageError if it is none."""
        self.settings = settings
        self._clock = clock
        self._tls = _tls_context(settings.ca_file)
        self._metadata: dict[str, Any] | None = None
        self._keys: KeySet | None = None
        self._fetched = self._asked = float("-inf")
        self._fetch: asyncio.Task[None] | None = None

    async def keys(self, kid: str | None) -> KeySet:
        """The signing keys, fetched anew when `kid` is not among them. Raises UnreachableError without any."""
        age = self._clock() - self._fetched
        unknown = self._keys is None or (kid is not None and all(key.kid != kid for key in self._keys))
        needed = unknown or age > _KEYS_KEPT
        if (needed or age > _KEYS_FRESH) and (fetch := self._start_fetch()) and needed:
            await asyncio.shield(fetch)
        if self._keys is None or self._clock() - self._fetched > _KEYS_KEPT:
            raise UnreachableError("The issuer's keys cannot be fetched.")
        return self._keys

    async def metadata(self) -> dict[str, Any]:
        """The discovery document. Raises UnreachableError."""
        if self._metadata is None and (fetch := self._start_fetch()):
            await asyncio.shield(fetch)
        if self._metadata is None:
            raise UnreachableError("The identity provider does not answer.")
        return self._metadata

    async def request(self, method: str, url: object, **options: Any) -> dict[str, Any]:
        """The JSON object that a URL of the provider answers; `options` are httpx's.

        Raises AuthenticationError if it refuses, UnreachableError if it fails otherwise.
        """
        try:
            # encoded bodies are not asked for: they could unpack to anything
            headers = {"Accept-Encoding": "identity", "Accept": "application/json", **options.pop("headers", {})}
            async with (
                asyncio.timeout(_TIMEOUT),
                httpx.AsyncClient(verify=self._tls, timeout=None) as client,  # noqa: S113 the whole is bounded
                client.stream(method, https_url(str(url)), headers=headers, **options) as response,
            ):
                if 400 <= response.status_code < 500:
                    raise AuthenticationError(f"The identity provider refuses (status {response.status_code}).")
                if response.status_code != 200:
                    raise ValueError(f"status {response.status_code}")
                return _json_object(await _bounded(response))
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError, RecursionError) as error:
            _log.warning("%s: %s %s: %s", self.settings.url, method, url, error or type(error).__name__)
            raise UnreachableError("The identity provider does not answer as it should.") from error

    def _start_fetch(self) -> asyncio.Task[None] | None:
        """The fetch that is under way, or a new one; None when there has just been one."""
        if self._fetch is not None and not self._fetch.done():
            return self._fetch
        if self._clock() - self._asked < self.settings.key_refresh:
            return None
        self._asked = self._clock()
        self._fetch = asyncio.create_task(self._fetch_keys())
        return self._fetch

    async def _fetch_keys(self) -> None:
        """Replace metadata and keys; what there is stays when that fails."""
        url = self.settings.url
        try:
            metadata = await self.request("GET", url.rstrip("/") + "/.well-known/openid-configuration")
            if metadata.get("issuer") != url:
                _log.error("%s: its discovery document is of another issuer", url)
                return
            keys = _signing_keys(await self.request("GET", metadata.get("jwks_uri")))
        except AuthenticationError as error:
            _log.warning("%s: keys cannot be fetched: %s", url, error)
            return
        if not keys:
            _log.error("%s: it publishes no usable signing key", url)
            return
        self._metadata, self._keys, self._fetched = metadata, KeySet(keys), self._clock()


def _tls_context(ca_file: Path | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file)
    except (OSError, ssl.SSLError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise UsageError(f"The CA file {ca_file} cannot be used: {reason}.", "Give certificates as PEM.") from error


async def _bounded(response: httpx.Response) -> bytes:
    body = bytearray()
    async for piece in response.aiter_raw():
        body += piece
        if len(body) > _LARGEST_ANSWER:
            raise ValueError(f"more than {_LARGEST_ANSWER} bytes")
    return bytes(body)


def _json_object(body: bytes) -> dict[str, Any]:
    answer = json.loads(body)
    if not isinstance(answer, dict):
        raise ValueError("no JSON object")
    return answer


def _signing_keys(key_set: dict[str, Any]) -> list[Key]:
    """The public keys of a JWK Set that may verify signatures; a broken one does not spoil the others."""
    listed = key_set.get("keys")
    keys: list[Key] = []
    for jwk in listed[:_MOST_KEYS] if isinstance(listed, list) else []:
        if not isinstance(jwk, dict) or jwk.get("use", "sig") != "sig":
            continue
        try:
            key = JWKRegistry.import_key(jwk)
            strong = isinstance(key, ECKey | OKPKey) or (
                isinstance(key, RSAKey) and key.public_key.key_size >= _SMALLEST_RSA_KEY
            )
        except (JoseError, ValueError, TypeError, KeyError) as error:
            _log.warning("a published key is not usable: %s", type(error).__name__)
            continue
        if strong:
            keys.append(key)
    return keys
