"""Fixtures of the provider, and the settings of a service that trusts it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mlaas4hep.service.authentication import AuthenticationSettings
from mlaas4hep.service.identity import Authenticator, User
from tests.debian import do_without
from tests.oidc.provider import AUDIENCE, OidcProvider, lacking_programs, oidc_provider

POLICY = """
[groups."/cms"]
roles = ["submit", "serve"]
quota = { jobs = 8, memory = "64 GiB" }

[groups."/admins"]
roles = ["administer"]

[scopes."compute.create"]
roles = ["submit"]

[clients.robot]
roles = ["serve"]
"""


@pytest.fixture(scope="session")
def oidc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OidcProvider]:
    """A provider for all tests that only use it."""
    need_provider()
    with oidc_provider(tmp_path_factory.mktemp("oidc")) as provider:
        yield provider


def need_provider() -> None:
    """Skips where a provider cannot be started; under CI that is a failure."""
    if reason := lacking_programs():
        do_without(reason)


def trusting(issuer: str, ca_file: Path, folder: Path, issuers: dict[str, Any] | None = None, **more: Any):
    """Settings of a service that trusts an issuer, with its policy in `folder`."""
    policy = folder / "policy.toml"
    if not policy.exists():
        policy.write_text(POLICY)
    one = {"url": issuer, "audiences": [AUDIENCE], "ca_file": ca_file, "key_refresh": 0.05, **(issuers or {})}
    return AuthenticationSettings.model_validate({"issuers": [one], "policy": policy, **more})


def ask(authenticator: Authenticator, token: str) -> User:
    """Authenticate with a bearer token, in an event loop of its own."""
    return asyncio.run(authenticator.authenticate(f"Bearer {token}"))
