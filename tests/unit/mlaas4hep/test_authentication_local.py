"""A personal platform's token file, and the settings of authentication."""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from mlaas4hep.errors import UsageError
from mlaas4hep.service.authentication import AuthenticationSettings, authenticator, policy_source
from mlaas4hep.service.identity import AuthenticationError, Authenticator, Role, User
from mlaas4hep.service.policy import PERSONAL


def _local(path: Path) -> Authenticator:
    return authenticator(AuthenticationSettings(token_file=path))


def _ask(service: Authenticator, header: str) -> User:
    return asyncio.run(service.authenticate(header))


def test_token_is_made_closed_to_others_and_counts(tmp_path: Path) -> None:
    path = tmp_path / "token"
    service = _local(path)
    assert path.stat().st_mode & 0o777 == 0o600
    token = path.read_text().strip()
    assert len(token) >= 43
    user = _ask(service, f"Bearer {token}")
    assert (user.issuer, user.subject, user.roles) == ("local", "local", set(Role))
    assert _ask(_local(path), f"bearer {token}").key == user.key
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "header", ["", "Bearer ", "Bearer x", "{token}", "Basic {token}", "Bearer {token}x", "Bearer {token} ", "Bearer é"]
)
def test_anything_else_is_refused(header: str, tmp_path: Path) -> None:
    service = _local(tmp_path / "token")
    token = (tmp_path / "token").read_text().strip()
    with pytest.raises(AuthenticationError) as caught:
        _ask(service, header.format(token=token))
    assert token not in str(caught.value)


def test_huge_header_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AuthenticationError):
        _ask(_local(tmp_path / "token"), "Bearer " + "x" * 10_000_000)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o700 | 0o001])
def test_file_that_others_may_read_is_refused(mode: int, tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("t" * 43)
    path.chmod(mode)
    with pytest.raises(UsageError, match=f"chmod 600 {path}"):
        _local(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_file_of_somebody_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "token"
    _local(path)
    os.chown(path, 65534, -1)
    with pytest.raises(UsageError, match="must belong to the service"):
        _local(path)


def test_short_broken_or_missing_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "token"
    for content in (b"", b"short", b"\xff" * 50):
        path.write_bytes(content)
        path.chmod(0o600)
        with pytest.raises(UsageError, match=str(path)):
            _local(path)
    with pytest.raises(UsageError):
        _local(tmp_path / "missing" / "token")


def test_processes_that_start_at_once_agree_on_the_token(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        services = list(pool.map(lambda _: _local(tmp_path / "token"), range(8)))
    token = (tmp_path / "token").read_text().strip()
    assert {_ask(service, f"Bearer {token}").subject for service in services} == {"local"}


def test_personal_platform_needs_no_policy(tmp_path: Path) -> None:
    assert policy_source(AuthenticationSettings(token_file=tmp_path / "token"))() is PERSONAL


ISSUER = {"url": "https://iam.test/", "audiences": ["https://ml.test"]}
LOGIN = {"client_id": "ml", "public_url": "https://ml.test"}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "give issuers"),
        ({"token_file": "t", "issuers": [ISSUER], "policy": "p"}, "give issuers"),
        ({"issuers": [ISSUER]}, "belong together"),
        ({"token_file": "t", "policy": "p"}, "belong together"),
        ({"issuers": [ISSUER, ISSUER], "policy": "p"}, "prefix of its own"),
        ({"issuers": [ISSUER, {**ISSUER, "url": "https://b.test"}], "policy": "p"}, "prefix of its own"),
        ({"issuers": [{**ISSUER, "url": "http://iam.test/"}], "policy": "p"}, "must be a URL"),
        ({"issuers": [{**ISSUER, "url": "https://iam.test/?a"}], "policy": "p"}, "must be a URL"),
        ({"issuers": [{**ISSUER, "url": "https://a:b@iam.test/"}], "policy": "p"}, "must be a URL"),
        ({"issuers": [{**ISSUER, "audiences": []}], "policy": "p"}, "audiences"),
        ({"issuers": [{**ISSUER, "audiences": [""]}], "policy": "p"}, "audiences"),
        ({"issuers": [{**ISSUER, "algorithms": ["HS256"]}], "policy": "p"}, "algorithms"),
        ({"issuers": [{**ISSUER, "algorithms": ["none"]}], "policy": "p"}, "algorithms"),
        ({"issuers": [{**ISSUER, "algorithms": []}], "policy": "p"}, "algorithms"),
        ({"issuers": [ISSUER], "policy": "p", "clock_skew": 3600}, "clock_skew"),
        ({"issuers": [ISSUER], "policy": "p", "unknown": 1}, "unknown"),
        ({"token_file": "t", "login": LOGIN}, "login needs an issuer"),
        ({"issuers": [ISSUER], "policy": "p", "login": {**LOGIN, "issuer": "https://b.test"}}, "one of the issuers"),
        ({"issuers": [ISSUER], "policy": "p", "login": {**LOGIN, "public_url": "https://ml.test/"}}, "without a path"),
        ({"issuers": [ISSUER], "policy": "p", "login": {**LOGIN, "scopes": ["profile"]}}, "openid"),
    ],
)
def test_settings_that_do_not_fit_together(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        AuthenticationSettings.model_validate(settings)


def test_files_of_settings_that_are_missing_are_told(tmp_path: Path) -> None:
    (tmp_path / "policy.toml").touch()
    (tmp_path / "ca.pem").write_text("no certificate")
    for issuer, policy, said in (
        ({**ISSUER, "ca_file": tmp_path / "none.pem"}, "policy.toml", "none.pem"),
        ({**ISSUER, "ca_file": tmp_path / "ca.pem"}, "policy.toml", "ca.pem"),
        (ISSUER, "none.toml", "none.toml"),
    ):
        settings = AuthenticationSettings.model_validate({"issuers": [issuer], "policy": tmp_path / policy})
        with pytest.raises(UsageError, match=said):
            authenticator(settings)
