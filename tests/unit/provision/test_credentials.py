"""Entries of clouds.yaml, oidc-agent's answers, and what is said of failures, without any cloud."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from keystoneauth1 import exceptions as keystone
from openstack import exceptions as sdk

from provision.clouds import _oidc_agent
from provision.clouds._credentials import clouds, explained, read_entry
from provision.clouds._oidc_agent import access_token
from provision.errors import ProvisionError, UsageError
from provision.login import clock_finding, examine, examine_all
from provision.redact import redact

FEDERATED: dict[str, Any] = {
    "auth_type": "v3oidcaccesstoken",
    "auth": {"auth_url": "https://site.test/v3", "identity_provider": "iam", "protocol": "openid", "project_id": "a1"},
}
NOON = datetime(2026, 5, 4, 12, 0, 0, tzinfo=UTC)


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", str(tmp_path / "clouds.yaml"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("OIDC_ACCOUNT", raising=False)
    return tmp_path / "clouds.yaml"


def write(file: Path, **entries: Any) -> None:
    file.write_text(yaml.safe_dump({"clouds": entries}))


def agent(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """An `oidc-token` that is this shell script."""
    program = folder / "oidc-token"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def jwt(**claims: Any) -> str:
    parts = ({"alg": "RS256"}, claims)
    encoded = [base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts]
    return ".".join([*encoded, "c2lnbmF0dXJl"])


def test_the_secrets_of_an_entry_are_masked(file: Path):
    auth = {"auth_url": "https://site.test/v3", "application_credential_id": "a1"}
    auth["application_credential_secret"] = "canary-of-clouds-yaml"
    write(file, site={"auth_type": "v3applicationcredential", "auth": auth})
    assert read_entry("site").get_auth_args()["application_credential_id"] == "a1"
    assert redact("it is canary-of-clouds-yaml") == "it is ***"


def test_an_account_of_the_entry_goes_before_that_of_the_environment(file: Path, monkeypatch: pytest.MonkeyPatch):
    write(file, own={**FEDERATED, "oidc_agent_account": "higgs"}, other=FEDERATED)
    monkeypatch.setenv("OIDC_ACCOUNT", "everybody")
    assert read_entry("own").get_auth().account == "higgs"
    assert read_entry("other").get_auth().account == "everybody"
    assert read_entry("own").get_auth().project_id == "a1"


def test_an_access_token_may_stand_in_the_entry(file: Path):
    write(file, site={**FEDERATED, "auth": {**FEDERATED["auth"], "access_token": "canary-access-token"}})
    assert read_entry("site").get_auth().access_token == "canary-access-token"
    assert redact("canary-access-token") == "***"


def test_entries_that_cannot_be_used(file: Path):
    assert clouds() == []
    with pytest.raises(UsageError, match="no entry"):
        examine_all(clouds())
    write(file, site=FEDERATED, short={"auth_type": "v3oidcaccesstoken", "oidc_agent_account": "a", "auth": {}})
    with pytest.raises(UsageError, match=r"clouds\.yaml has: short, site"):
        read_entry("sites")
    with pytest.raises(UsageError, match="oidc_agent_account: NAME"):
        read_entry("site")
    with pytest.raises(UsageError, match=r"incomplete: .*auth_url"), explained("short"):
        read_entry("short")
    file.write_text("clouds: [")
    with pytest.raises(UsageError, match=r"clouds\.yaml cannot be used: .*line 1, column 10"):
        clouds()


def test_an_entry_without_a_login_is_told(file: Path):
    write(file, site={"auth_type": "none", "auth": {"endpoint": "https://site.test"}})
    finding = examine("site").wrong
    assert finding is not None and finding.words == "Nobody logs in by none."


def test_what_the_agent_tells_of_a_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    secret = jwt(aud="https://site.test", groups=["/cms"])
    agent(tmp_path, monkeypatch, f'echo "$@" >{tmp_path}/words; printf "%s\\n" {secret} https://iam.test/ 1777896000')
    token = access_token("higgs")
    assert (token.secret, token.issuer, token.until) == (secret, "https://iam.test/", NOON)
    assert token.claims["aud"] == "https://site.test"
    assert secret not in repr(token) and redact(secret) == "***"
    assert (tmp_path / "words").read_text() == "--all --time=60 -- higgs\n"
    access_token("-o", new=True)
    assert (tmp_path / "words").read_text() == "--all --force-new -- -o\n"


@pytest.mark.parametrize("secret", ["opaque", "a.!.c", "a.bnVsbA.c", "a.WzFd.c"])
def test_a_token_that_is_no_jwt_has_no_claims(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, secret: str):
    agent(tmp_path, monkeypatch, f"echo '{secret}'")
    if "!" in secret:
        with pytest.raises(ProvisionError, match="no access token"):
            access_token("higgs")
    else:
        token = access_token("higgs")
        assert (token.issuer, token.until, token.claims) == ("", None, {})


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("exit 3", "gives no token for higgs: no reason given"),
        ("echo 'Error: the other party disconnected' >&2; exit 1", "for higgs: the other party disconnected"),
        ("true", "no access token"),
        ("echo two words", "no access token"),
        ("head -c 70000 /dev/zero | tr '\\0' a", "no access token"),
        ("exec sleep 60", "within 0.1 s"),
    ],
)
def test_what_is_no_answer_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, told: str):
    agent(tmp_path, monkeypatch, script)
    if "sleep" in script:
        monkeypatch.setattr(_oidc_agent, "AGENT_SECONDS", 0.1)
    with pytest.raises(ProvisionError, match=told):
        access_token("higgs")


def test_no_agent_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ProvisionError, match="not installed"):
        access_token("higgs")


@pytest.mark.parametrize(("here", "good"), [(0, True), (59, True), (61, False), (-61, False)])
def test_a_clock_that_is_wrong_is_told(here: int, good: bool):
    finding = clock_finding(format_datetime(NOON, usegmt=True), datetime.fromtimestamp(NOON.timestamp() + here, UTC))
    assert finding is not None and finding.good is good
    if not good:
        assert finding.words == f"61 s {'ahead of' if here > 0 else 'behind'} the cloud's"


@pytest.mark.parametrize("date", [None, "", "yesterday", "Mon, 04 May 2026 12:00:00 -0000"])
def test_a_server_that_tells_no_time_is_no_witness(date: str | None):
    assert clock_finding(date, NOON) is None


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (keystone.Unauthorized(), "does not accept the credentials"),
        (sdk.HttpException("no"), "answered with an error"),
        (keystone.SSLError("self-signed certificate"), "cacert"),
        (keystone.ConnectTimeout("no answer"), "cannot be reached"),
        (sdk.ForbiddenException("Quota exceeded"), "Ask for more quota"),
        (ProvisionError("as it is"), "as it is"),
    ],
)
def test_failures_are_explained(error: Exception, told: str):
    with pytest.raises(ProvisionError, match=told), explained("site"):
        raise error


def test_a_refusal_in_the_sdk_s_words_is_one():
    error = sdk.HttpException("Unauthorized")
    error.status_code = 401
    with pytest.raises(ProvisionError, match="does not accept the credentials") as told, explained("site"):
        raise error
    assert "provision login site" in told.value.remedy
