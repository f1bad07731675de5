"""Tokens of a real OpenID provider, and what attackers make of them."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import math
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from joserfc import jws, jwt
from joserfc.jwk import ECKey, RSAKey

from mlaas4hep.service import authentication
from mlaas4hep.service.authentication import JwtAuthenticator, authenticator, policy_source
from mlaas4hep.service.identity import AuthenticationError, Role
from mlaas4hep.service.policy import PolicyFile
from tests.debian import do_without, lacking
from tests.federation.agent import PROGRAMS, oidc_agent
from tests.oidc import fixtures
from tests.oidc.fixtures import ask, need_provider, trusting
from tests.oidc.provider import AUDIENCE, OidcProvider, make_certificate, oidc_provider

oidc = fixtures.oidc
ANY_AUDIENCE = "https://wlcg.cern.ch/jwt/v1/any"
_OTHER = RSAKey.generate_key(2048, {"use": "sig"}, auto_kid=True)


def _encoded(data: object) -> str:
    raw = data if isinstance(data, bytes) else json.dumps(data).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _unsigned(oidc: OidcProvider, alg: str, signature: str = "") -> str:
    _, payload, _ = oidc.token().split(".")
    return f"{_encoded({'alg': alg, 'typ': 'JWT', 'kid': oidc.key.kid})}.{payload}.{signature}"


def _hmac_with(oidc: OidcProvider, secret: bytes) -> str:
    signed = _unsigned(oidc, "HS256").rpartition(".")[0]
    return f"{signed}.{_encoded(hmac.digest(secret, signed.encode(), hashlib.sha256))}"


def _signed_by(oidc: OidcProvider, key: RSAKey | ECKey, **header: object) -> str:
    claims = json.loads(jws.extract_compact(oidc.token().encode()).payload)
    kind = {"alg": "RS256", **header}
    registry = jws.JWSRegistry(algorithms=[kind["alg"]], strict_check_header=False)
    return jwt.encode({name: v for name, v in kind.items() if v is not None}, claims, key, registry=registry)


def _free(key: RSAKey) -> RSAKey:
    """The same key, for any algorithm."""
    return RSAKey.import_key({name: v for name, v in key.as_dict(private=True).items() if name != "alg"})


def _raw(oidc: OidcProvider, payload: bytes) -> str:
    """Signed by the provider's key, whatever the payload."""
    return jws.serialize_compact({"alg": "RS256", "kid": oidc.key.kid}, payload, oidc.key)


def _changed(token: str, part: int, change: Callable[[str], str]) -> str:
    parts = token.split(".")
    parts[part] = change(parts[part])
    return ".".join(parts)


def _as_root(payload: str) -> str:
    claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    return _encoded({**claims, "sub": "root", "wlcg.groups": ["/admins"]})


NOW = time.time
ATTACKS: dict[str, Callable[[OidcProvider], str]] = {
    "nothing": lambda o: "",
    "garbage": lambda o: "garbage",
    "three parts of garbage": lambda o: "a.b.c",
    "dots": lambda o: "." * 1000,
    "no ASCII": lambda o: "Ä" * 20 + ".Ö.Ü",
    "a surrogate": lambda o: "\ud800.\ud800.\ud800",
    "a line break": lambda o: o.token() + "\n",
    "two tokens": lambda o: f"{o.token()} {o.token()}",
    "padding": lambda o: o.token() + "=",
    "five parts, as of JWE": lambda o: o.token() + ".a.b",
    "huge": lambda o: o.token(filling="x" * 20_000),
    "huge garbage": lambda o: "x" * 10_000_000,
    "deep nesting in the header": lambda o: f"{_encoded(b'[' * 10_000)}.e30.e30",
    "deep nesting in the payload": lambda o: _raw(o, b"[" * 9_000),
    "a payload that is no object": lambda o: _raw(o, b"[1]"),
    "a header that is no object": lambda o: f"{_encoded([{'alg': 'RS256'}, 'alg'])}.e30.e30",
    "a payload that is no JSON": lambda o: _raw(o, b"\xff\xfe"),
    "a number of many digits": lambda o: _raw(o, b'{"exp": ' + b"9" * 8000 + b"}"),
    "forged payload": lambda o: _changed(o.token(), 1, _as_root),
    "forged signature": lambda o: _changed(o.token(), 2, lambda s: s[:20] + ("A" if s[20] != "A" else "B") + s[21:]),
    "no signature": lambda o: _changed(o.token(), 2, lambda s: ""),
    "signature of another token": lambda o: _changed(o.token(), 2, lambda s: o.token(sub="bob").split(".")[2]),
    "alg none": lambda o: _unsigned(o, "none"),
    "alg None": lambda o: _unsigned(o, "None"),
    "alg none with a signature": lambda o: _unsigned(o, "none", o.token().split(".")[2]),
    "alg empty": lambda o: _unsigned(o, ""),
    "HS256 with the public key as PEM": lambda o: _hmac_with(o, o.key.as_pem(private=False)),
    "HS256 with the public key as DER": lambda o: _hmac_with(o, o.key.as_der(private=False)),
    "HS256 with the public key as JWK": lambda o: _hmac_with(o, json.dumps(o.key.as_dict(private=False)).encode()),
    "HS256 with nothing": lambda o: _hmac_with(o, b""),
    "PS256, which is not allowed": lambda o: _signed_by(o, _free(o.key), alg="PS256", kid=o.key.kid),
    "ES256 with a key for RS256": lambda o: _signed_by(o, ECKey.generate_key("P-256"), alg="ES256", kid=o.key.kid),
    "another key with a known name": lambda o: _signed_by(o, _OTHER, kid=o.key.kid),
    "another key with a name of its own": lambda o: _signed_by(o, _OTHER, kid=_OTHER.kid),
    "another key without a name": lambda o: _signed_by(o, _OTHER),
    "another key, brought along": lambda o: _signed_by(o, _OTHER, jwk=_OTHER.as_dict(private=False)),
    "another key, elsewhere": lambda o: _signed_by(o, _OTHER, jku="https://127.0.0.1:1/jwks", kid=o.key.kid),
    "a key's name that is a path": lambda o: _signed_by(o, _OTHER, kid="../../dev/null"),
    "critical extension": lambda o: o.token({"crit": ["kid"]}),
    "another type": lambda o: o.token({"typ": "dpop+jwt"}),
    "expired": lambda o: o.token(exp=NOW() - 3600),
    "expired for long": lambda o: o.token(exp=0),
    "without exp": lambda o: o.token(exp=None),
    "exp as text": lambda o: o.token(exp=str(NOW() + 300)),
    "exp true": lambda o: o.token(exp=True),
    "exp NaN": lambda o: _raw(o, _payload(o, exp=math.nan)),
    "exp infinite": lambda o: _raw(o, _payload(o, exp=math.inf)),
    "exp as list": lambda o: o.token(exp=[NOW() + 300]),
    "nbf in the future": lambda o: o.token(nbf=NOW() + 3600),
    "nbf true": lambda o: o.token(nbf=True),
    "nbf as text": lambda o: o.token(nbf="now"),
    "iat in the future": lambda o: o.token(iat=NOW() + 3600),
    "wrong audience": lambda o: o.token(aud="https://other.test"),
    "no audience": lambda o: o.token(aud=None),
    "empty audience": lambda o: o.token(aud=[]),
    "wrong audiences": lambda o: o.token(aud=["https://other.test", AUDIENCE + "/", AUDIENCE.upper()]),
    "part of the audience": lambda o: o.token(aud=AUDIENCE[:-1]),
    "audience as object": lambda o: o.token(aud={AUDIENCE: True}),
    "nested audience": lambda o: o.token(aud=[[AUDIENCE]]),
    "audience for everybody": lambda o: o.token(aud=ANY_AUDIENCE),
    "wrong issuer": lambda o: o.token(iss="https://other.test"),
    "issuer with a slash more": lambda o: o.token(iss=o.issuer + "/"),
    "issuer with capitals": lambda o: o.token(iss=o.issuer.upper()),
    "no issuer": lambda o: o.token(iss=None),
    "issuer as list": lambda o: o.token(iss=[o.issuer]),
    "no subject": lambda o: o.token(sub=None),
    "empty subject": lambda o: o.token(sub=""),
    "subject as number": lambda o: o.token(sub=1),
    "long subject": lambda o: o.token(sub="a" * 256),
    "groups as text": lambda o: o.token(**{"wlcg.groups": "/admins"}),
    "groups as object": lambda o: o.token(**{"wlcg.groups": {"/admins": 1}}),
    "groups of no names": lambda o: o.token(**{"wlcg.groups": [["/admins"]]}),
    "scopes of no names": lambda o: o.token(scope=[1]),
}


def _payload(oidc: OidcProvider, **changes: object) -> bytes:
    claims = json.loads(jws.extract_compact(oidc.token().encode()).payload)
    return json.dumps({**claims, **changes}).encode()


@pytest.fixture
def service(oidc: OidcProvider, tmp_path: Path) -> JwtAuthenticator:
    made = authenticator(trusting(oidc.issuer, oidc.ca_file, tmp_path))
    assert isinstance(made, JwtAuthenticator)
    return made


def _refuses(service: JwtAuthenticator, token: str) -> str:
    with pytest.raises(AuthenticationError) as caught:
        ask(service, token)
    reason = str(caught.value)
    assert reason and not any(len(part) > 3 and part in reason for part in token.split("."))
    return reason


@pytest.mark.parametrize("attack", ATTACKS)
def test_attack_is_refused_before_and_after_a_good_token(
    attack: str,
    service: JwtAuthenticator,
    oidc: OidcProvider,
) -> None:
    token = ATTACKS[attack](oidc)
    _refuses(service, token)
    assert ask(service, oidc.token()).subject == "alice"
    _refuses(service, token)


@pytest.mark.parametrize(
    "header", ["", "Bearer", "bearer ", "Basic YWxpY2U6YQ==", "{token}", "Token {token}", "Bearer\t{token}"]
)
def test_other_authorization_headers_are_refused(
    header: str,
    service: JwtAuthenticator,
    oidc: OidcProvider,
) -> None:
    with pytest.raises(AuthenticationError):
        asyncio.run(service.authenticate(header.format(token=oidc.token())))


def test_any_single_letter_changed_is_refused(service: JwtAuthenticator, oidc: OidcProvider) -> None:
    token, chance = oidc.token(), random.Random(4)
    ask(service, token)
    for place in chance.sample(range(len(token)), 200):
        letter = chance.choice([c for c in "AZaz09-_.é=" if c != token[place]])
        _refuses(service, token[:place] + letter + token[place + 1 :])


def test_robot_by_client_credentials(service: JwtAuthenticator, oidc: OidcProvider) -> None:
    robot = ask(service, oidc.robot_token())
    assert (robot.subject, robot.client, robot.roles) == ("robot", "robot", {Role.SERVE})
    assert ask(service, oidc.robot_token("compute.create")).roles == {Role.SERVE, Role.SUBMIT}


def test_user_by_device_flow(service: JwtAuthenticator, oidc: OidcProvider) -> None:
    tokens = oidc.user_tokens("alice")
    alice = ask(service, tokens["access_token"])
    assert (alice.issuer, alice.subject, alice.groups) == (oidc.issuer, "alice", ("/cms", "/cms/higgs"))
    assert alice.roles == {Role.SUBMIT, Role.SERVE}
    bob = ask(service, oidc.user_tokens("bob")["access_token"])
    assert bob.roles == frozenset() and bob.key != alice.key
    assert "audience" in _refuses(service, tokens["id_token"])


def test_user_with_a_client_that_is_a_robot_has_not_its_roles(
    service: JwtAuthenticator,
    oidc: OidcProvider,
) -> None:
    person = ask(service, oidc.token(sub="bob", client_id="robot", **{"wlcg.groups": []}))
    assert person.roles == frozenset() and person.client == ""


def test_groups_come_from_either_claim_in_one_spelling(
    service: JwtAuthenticator,
    oidc: OidcProvider,
) -> None:
    iam = ask(service, oidc.token(groups=["cms", "cms/higgs"], **{"wlcg.groups": None}))
    assert iam.groups == ("/cms", "/cms/higgs")
    both = ask(service, oidc.token(groups=["admins"], **{"wlcg.groups": ["/cms"]}))
    assert both.groups == ("/cms",)


def test_prefix_keeps_issuers_groups_apart(oidc: OidcProvider, tmp_path: Path) -> None:
    settings = trusting(oidc.issuer, oidc.ca_file, tmp_path, {"prefix": "other:"})
    user = ask(authenticator(settings), oidc.token(scope="compute.create"))
    assert user.groups == ("other:/cms", "other:/cms/higgs") and user.roles == frozenset()


def test_audience_of_everybody_counts_if_the_setting_says_so(oidc: OidcProvider, tmp_path: Path) -> None:
    settings = trusting(oidc.issuer, oidc.ca_file, tmp_path, {"any_audience": True})
    assert ask(authenticator(settings), oidc.token(aud=[ANY_AUDIENCE])).subject == "alice"


def test_clocks_may_differ_a_little(service: JwtAuthenticator, oidc: OidcProvider) -> None:
    assert ask(service, oidc.token(exp=NOW() - 1, nbf=NOW() + 20, iat=NOW() + 20)).subject == "alice"


def test_verified_token_is_remembered_no_longer_than_it_is_valid(
    oidc: OidcProvider,
    tmp_path: Path,
) -> None:
    now = [NOW()]
    settings = trusting(oidc.issuer, oidc.ca_file, tmp_path, cache_seconds=300)
    service = JwtAuthenticator(settings, policy_source(settings), clock=lambda: now[0])
    token = oidc.token(exp=now[0] + 100)
    ask(service, token)
    now[0] += 99
    ask(service, token)
    now[0] += 1 + settings.clock_skew
    assert "expired" in _refuses(service, token)


def test_memory_of_verified_tokens_is_bounded(
    service: JwtAuthenticator,
    oidc: OidcProvider,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(authentication, "_MOST_CACHED", 3)
    for number in range(10):
        ask(service, oidc.token(sub=f"user{number}"))
        assert len(service._verified) <= 3
    assert ask(service, oidc.token(sub="user0")).subject == "user0"


def test_changed_policy_holds_for_tokens_that_were_seen(oidc: OidcProvider, tmp_path: Path) -> None:
    now = [0.0]
    settings = trusting(oidc.issuer, oidc.ca_file, tmp_path)
    policy = PolicyFile(tmp_path / "policy.toml", clock=lambda: now[0])
    service = JwtAuthenticator(settings, policy)
    token = oidc.token()
    assert ask(service, token).roles == {Role.SUBMIT, Role.SERVE}
    (tmp_path / "policy.toml").write_text('[groups."/cms"]\nroles = ["serve"]\n')
    now[0] += 2
    assert ask(service, token).roles == {Role.SERVE}


@pytest.fixture
def own_folder(tmp_path: Path) -> Iterator[Path]:
    need_provider()
    folder = tmp_path / "provider"
    folder.mkdir()
    yield folder


def test_provider_started_again_with_another_key(own_folder: Path, tmp_path: Path) -> None:
    with oidc_provider(own_folder) as before:
        service = authenticator(trusting(before.issuer, before.ca_file, tmp_path, cache_seconds=0))
        assert isinstance(service, JwtAuthenticator)
        old = before.token()
        ask(service, old)
    # nobody answers: what is known goes on, what is not is refused
    assert ask(service, old).subject == "alice"
    _refuses(service, _signed_by(before, _OTHER, kid=_OTHER.kid))
    with oidc_provider(own_folder, port=int(before.issuer.rpartition(":")[2])) as after:
        new, deadline = after.token(), time.monotonic() + 60
        while True:  # until the rate limit allows another fetch
            try:
                assert ask(service, new).subject == "alice"
                break
            except AuthenticationError:
                assert time.monotonic() < deadline
        _refuses(service, old)


def test_unreachable_or_untrusted_provider(own_folder: Path, tmp_path: Path) -> None:
    with oidc_provider(own_folder) as provider:
        stranger = tmp_path / "stranger.pem"
        make_certificate(stranger, tmp_path / "stranger.key")
        _refuses(authenticator(trusting(provider.issuer, stranger, tmp_path)), provider.token())
        slash = authenticator(trusting(provider.issuer + "/", provider.ca_file, tmp_path))
        _refuses(slash, provider.token(iss=provider.issuer + "/"))
    gone = authenticator(trusting(provider.issuer, provider.ca_file, tmp_path))
    for _ in range(3):
        _refuses(gone, provider.token())


def test_oidc_agent(service: JwtAuthenticator, oidc: OidcProvider, tmp_path: Path) -> None:
    """The command line of grid users: oidc-agent keeps a refresh token and hands out access tokens."""
    if reason := lacking(PROGRAMS):
        do_without(reason)
    with oidc_agent(tmp_path / "agent", "--no-autoreauthenticate") as agent:
        agent.add("test", oidc, "alice")
        assert ask(service, agent.token("test")).roles == {Role.SUBMIT, Role.SERVE}
