"""Issuers that misbehave: what a well-behaved provider never shows comes from a small TLS server."""

from __future__ import annotations

import asyncio
import gzip
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from joserfc import jwt
from joserfc.jwk import ECKey, OKPKey, RSAKey

from mlaas4hep.service import provider as provider_module
from mlaas4hep.service.authentication import authenticator
from mlaas4hep.service.identity import AuthenticationError
from mlaas4hep.service.provider import IssuerSettings, Provider, UnreachableError
from tests.oidc.fixtures import ask, trusting
from tests.oidc.issuer import DISCOVERY, KEY, Issuer, as_json, misbehaving_issuer
from tests.oidc.provider import AUDIENCE


def _provider(issuer: Issuer, clock: list[float] | None = None, **more: Any) -> Provider:
    settings = {"url": issuer.url, "audiences": ["a"], "ca_file": issuer.ca_file, **more}
    return Provider(IssuerSettings.model_validate(settings), (lambda: clock[0]) if clock else (lambda: 0.0))


@pytest.fixture
def issuer(tmp_path: Path) -> Iterator[Issuer]:
    with misbehaving_issuer(tmp_path) as made:
        yield made


@pytest.fixture
def good(issuer: Issuer) -> Issuer:
    issuer.publish(_PUBLIC)
    return issuer


def _keys(provider: Provider, kid: str | None = None) -> list[str | None]:
    return [key.kid for key in asyncio.run(asyncio.wait_for(provider.keys(kid), 60))]


def test_well_behaved_issuer_is_accepted(good: Issuer, tmp_path: Path) -> None:
    assert ask(authenticator(trusting(good.url, good.ca_file, tmp_path)), good.token()).subject == "alice"
    assert good.asked == [DISCOVERY, "/jwks"]


@pytest.mark.parametrize(
    ("algorithm", "key"),
    [
        ("ES256", ECKey.generate_key("P-256", auto_kid=True)),
        ("ES384", ECKey.generate_key("P-384", auto_kid=True)),
        ("PS256", RSAKey.generate_key(2048, auto_kid=True)),
        ("Ed25519", OKPKey.generate_key("Ed25519", auto_kid=True)),
    ],
)
def test_algorithm_counts_where_it_is_allowed(
    algorithm: str, key: RSAKey | ECKey | OKPKey, issuer: Issuer, tmp_path: Path
) -> None:
    issuer.publish(key.as_dict(private=False))
    claims = {"iss": issuer.url, "sub": "alice", "aud": AUDIENCE, "exp": time.time() + 300}
    token = jwt.encode({"alg": algorithm, "kid": key.kid}, claims, key, [algorithm])
    allowing = authenticator(trusting(issuer.url, issuer.ca_file, tmp_path, {"algorithms": [algorithm]}))
    assert ask(allowing, token).subject == "alice"
    with pytest.raises(AuthenticationError):
        ask(authenticator(trusting(issuer.url, issuer.ca_file, tmp_path, {"algorithms": ["RS256"]})), token)


_PUBLIC = KEY.as_dict(private=False)
FAULTS: dict[str, dict[str, Any]] = {
    "discovery of another issuer": {DISCOVERY: as_json({"issuer": "https://other.test", "jwks_uri": "{url}/jwks"})},
    "discovery without jwks_uri": {DISCOVERY: as_json({"issuer": "{url}"})},
    "jwks_uri of a file": {DISCOVERY: as_json({"issuer": "{url}", "jwks_uri": "file:///etc/passwd"})},
    "discovery that is no object": {DISCOVERY: as_json([1])},
    "discovery that is no JSON": {DISCOVERY: (200, {}, b"<html>")},
    "deeply nested discovery": {DISCOVERY: (200, {}, b"[" * 200_000)},
    "server error": {"/jwks": (500, {}, b"")},
    "not found": {"/jwks": (404, {}, b"")},
    "redirect": {"/jwks": (302, {"Location": "/keys"}, b""), "/keys": as_json({"keys": [_PUBLIC]})},
    "huge keys": {"/jwks": as_json({"keys": [_PUBLIC], "filling": "x" * 2**20})},
    "compressed keys": {"/jwks": (200, {"Content-Encoding": "gzip"}, gzip.compress(as_json({"keys": [_PUBLIC]})[2]))},
    "keys that are no list": {"/jwks": as_json({"keys": {"kid": 1}})},
    "keys that are no objects": {"/jwks": as_json({"keys": [1, "a", None]})},
    "no keys": {"/jwks": as_json({"keys": []})},
    "only a symmetric key": {"/jwks": as_json({"keys": [{"kty": "oct", "k": "c2VjcmV0" * 8, "kid": KEY.kid}]})},
    "only a key for encryption": {"/jwks": as_json({"keys": [{**_PUBLIC, "use": "enc"}]})},
}


@pytest.mark.parametrize("fault", FAULTS)
def test_issuer_that_misbehaves_is_not_believed(fault: str, good: Issuer, tmp_path: Path) -> None:
    for path, (status, headers, body) in FAULTS[fault].items():
        good.answers[path] = status, headers, body.replace(b"{url}", good.url.encode())
    with pytest.raises(UnreachableError):
        _keys(_provider(good))
    with pytest.raises(AuthenticationError):
        ask(authenticator(trusting(good.url, good.ca_file, tmp_path)), good.token())


def test_keys_without_tls_are_not_believed(good: Issuer, tmp_path: Path) -> None:
    folder = tmp_path / "plain"
    folder.mkdir()
    with misbehaving_issuer(folder, "http") as plain:
        plain.publish(_PUBLIC)
        good.publish(jwks_uri=f"{plain.url}/jwks")
        with pytest.raises(UnreachableError):
            _keys(_provider(good))
        assert plain.asked == []


def test_issuer_that_does_not_answer_in_time(good: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provider_module, "_TIMEOUT", 0.5)
    good.gate.clear()
    with pytest.raises(UnreachableError):
        _keys(_provider(good))
    good.gate.set()
    good.endless.add("/jwks")
    with pytest.raises(UnreachableError):
        _keys(_provider(good))


@pytest.mark.filterwarnings("ignore:Key size should be")
def test_bad_keys_do_not_spoil_the_good_one(issuer: Issuer, tmp_path: Path) -> None:
    short = RSAKey.generate_key(1024, {"use": "sig"}, auto_kid=True)
    broken = {"kty": "RSA", "n": "!", "e": "AQAB", "kid": "broken"}
    future = {"kty": "AKP", "alg": "ML-DSA-44", "pub": "AAAA", "kid": "post-quantum"}
    issuer.publish(broken, future, {"kty": "EC"}, short.as_dict(private=False), _PUBLIC)
    service = authenticator(trusting(issuer.url, issuer.ca_file, tmp_path))
    assert ask(service, issuer.token()).subject == "alice"
    with pytest.raises(AuthenticationError):
        ask(service, issuer.token(short))


def test_many_tokens_of_unknown_keys_at_once_are_one_fetch(good: Issuer, tmp_path: Path) -> None:
    service = authenticator(trusting(good.url, good.ca_file, tmp_path, {"key_refresh": 300}))
    stranger = RSAKey.generate_key(2048, auto_kid=True)

    async def storm() -> list[Any]:
        tokens = [good.token(), *(good.token(stranger, sub=f"user{n}") for n in range(50))]
        return await asyncio.gather(*(service.authenticate(f"Bearer {t}") for t in tokens), return_exceptions=True)

    results = asyncio.run(storm())
    assert results[0].subject == "alice"
    assert all(isinstance(result, AuthenticationError) for result in results[1:])
    assert good.asked == [DISCOVERY, "/jwks"]


def test_unknown_keys_are_looked_for_no_more_often_than_allowed(good: Issuer) -> None:
    clock = [100.0]
    provider = _provider(good, clock, key_refresh=10)
    assert _keys(provider, "unknown") == [KEY.kid]
    for moment, fetches in ((105, 1), (109.9, 1), (110, 2), (115, 2), (121, 3)):
        clock[0] = moment
        _keys(provider, "unknown")
        assert len(good.asked) == 2 * fetches


def test_request_that_is_given_up_does_not_end_the_fetch_of_others(good: Issuer) -> None:
    provider = _provider(good)
    good.gate.clear()

    async def two() -> int:
        first, second = (asyncio.create_task(provider.keys(None)) for _ in range(2))
        while not good.asked:
            await asyncio.sleep(0.001)
        first.cancel()
        good.gate.set()
        return len(list(await second))

    assert asyncio.run(asyncio.wait_for(two(), 60)) == 1


def test_withdrawn_key_is_forgotten_beside_the_requests(good: Issuer) -> None:
    clock = [100.0]
    provider = _provider(good, clock)
    _keys(provider)
    new = RSAKey.generate_key(2048, auto_kid=True)
    good.publish(new.as_dict(private=False))
    clock[0] += 301

    async def later() -> str | None:
        assert [key.kid for key in await provider.keys(KEY.kid)] == [KEY.kid]  # nobody waits for the fetch
        while (kid := (await provider.keys(None)).keys[0].kid) == KEY.kid:
            await asyncio.sleep(0.001)
        return kid

    assert asyncio.run(asyncio.wait_for(later(), 60)) == new.kid


def test_keys_outlive_a_provider_by_an_hour_only(good: Issuer) -> None:
    clock = [100.0]
    provider = _provider(good, clock)
    _keys(provider)
    good.answers.clear()
    clock[0] += 3599
    assert _keys(provider, KEY.kid) == [KEY.kid]
    clock[0] += 20
    with pytest.raises(UnreachableError):
        _keys(provider, KEY.kid)
