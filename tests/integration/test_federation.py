"""Users of an identity provider in a real Keystone: oidc-agent, OpenID provider, Apache with mod_auth_openidc."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from provision import login as logins
from provision.clouds import _oidc_agent
from provision.clouds._credentials import ACCOUNT, connect, explained
from provision.clouds.openstack import OpenStackCloud
from provision.doctor import Finding
from provision.errors import ProvisionError, UsageError
from provision.login import Login, examine
from tests.conftest import Command
from tests.debian import do_without
from tests.federation.agent import PROGRAMS, Agent, oidc_agent
from tests.federation.keystone import PROJECTS, REGIONS, Keystone, federated_keystone, lacking_packages
from tests.oidc.fixtures import need_provider
from tests.oidc.provider import AUDIENCE, OidcProvider, oidc_provider

SECONDS = 60
PHYSICS = {"project_name": "physics", "project_domain_id": "default"}
USERS = {"alice": "alice", "bob": "bob", "root": "root"}


@pytest.fixture(scope="module")
def provider(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OidcProvider]:
    need_provider()
    with oidc_provider(tmp_path_factory.mktemp("provider")) as running:
        yield running


@pytest.fixture(scope="module")
def keystone(provider: OidcProvider) -> Iterator[Keystone]:
    if reason := lacking_packages(*PROGRAMS.values(), "faketime"):
        do_without(reason)
    with federated_keystone(provider) as running:
        yield running


@pytest.fixture(scope="module")
def shared_agent(
    keystone: Keystone, provider: OidcProvider, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Agent]:
    """One with an account of each user, for all tests that leave it as it is."""
    with oidc_agent(tmp_path_factory.mktemp("agent") / "agent", "--no-autoreauthenticate") as running:
        for account, user in USERS.items():
            running.add(account, provider, user)
        yield running


def use(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in agent.environment.items():
        if name.startswith("OIDC_"):
            monkeypatch.setenv(name, value)


@pytest.fixture
def agent(shared_agent: Agent, monkeypatch: pytest.MonkeyPatch) -> Agent:
    """The agent of this process."""
    monkeypatch.delenv("OIDC_ACCOUNT", raising=False)
    use(shared_agent, monkeypatch)
    return shared_agent


class Clouds:
    """A clouds.yaml that tests write as they need it."""

    def __init__(self, file: Path, keystone: Keystone) -> None:
        self.file = file
        self.keystone = keystone
        self._entries: dict[str, Any] = {}

    def add(self, name: str, **entry: Any) -> None:
        self._entries[name] = {"cacert": str(self.keystone.ca_file), "region_name": REGIONS[0], **entry}
        self.file.write_text(yaml.safe_dump({"clouds": self._entries}))

    def federated(self, name: str, account: str = "alice", protocol: str = "openid", **scope: str) -> None:
        self.add(name, **self.keystone.entry(protocol, **scope), **({ACCOUNT: account} if account else {}))


@pytest.fixture
def clouds(keystone: Keystone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clouds:
    file = tmp_path / "clouds.yaml"
    monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", str(file))
    return Clouds(file, keystone)


def wrong(login: Login) -> Finding:
    assert login.wrong is not None, login
    return login.wrong


def test_who_one_is_until_when_and_where(agent: Agent, clouds: Clouds):
    clouds.federated("site", **PHYSICS)
    login = examine("site")
    assert login.wrong is None
    assert login.user.startswith("alice (") and login.project.startswith("physics (")
    assert login.roles == ("member", "reader")
    assert "account alice of oidc-agent" in login.how
    now = datetime.now(UTC)
    assert now < login.until["access token"] <= now + timedelta(seconds=301)
    assert login.until["token"] > login.until["access token"]
    assert login.services["compute"] == REGIONS and login.services["identity"] == REGIONS[:1]
    assert [finding.check for finding in login.findings] == ["reached", "clock", "credentials", "project", "services"]


def test_the_account_may_be_named_by_the_environment(agent: Agent, clouds: Clouds, monkeypatch: pytest.MonkeyPatch):
    clouds.federated("site", account="", **PHYSICS)
    assert "oidc_agent_account: NAME" in wrong(examine("site")).remedy
    monkeypatch.setenv("OIDC_ACCOUNT", "alice")
    assert examine("site").wrong is None


def test_one_of_several_projects_has_to_be_chosen(agent: Agent, clouds: Clouds):
    clouds.federated("site")
    login = examine("site")
    assert wrong(login).words == "The entry names no project."
    with pytest.raises(UsageError, match="names no project"):
        connect("site", SECONDS)
    assert [project.partition(" ")[0] for project in login.projects] == list(PROJECTS)
    assert all(project in wrong(login).remedy for project in login.projects)
    chosen = login.projects[0].partition(" (")[2].rstrip(")")
    clouds.federated("site", project_id=chosen)
    assert examine("site").project == login.projects[0]


@pytest.mark.parametrize(
    ("account", "protocol", "scope", "told", "remedy"),
    [
        ("alice", "openid", {**PHYSICS, "project_name": "secret"}, "no role on the project", "project_id: higgs ("),
        ("root", "openid", PHYSICS, "root has no role on the project", "there is no other project"),
        ("bob", "openid", PHYSICS, "of the groups /atlas", "join a group"),
        ("alice", "elsewhere", PHYSICS, f"for the audience {AUDIENCE}", "oidc-gen --aud"),
        ("alice", "saml2", PHYSICS, "by the protocol 'saml2' of 'iam'", "Check both names"),
        ("carol", "openid", PHYSICS, "oidc-agent has no account carol", "oidc-gen carol"),
    ],
    ids=["project", "no-project", "group", "audience", "protocol", "account"],
)
def test_who_is_refused_is_told_why(
    agent: Agent, clouds: Clouds, account: str, protocol: str, scope: dict[str, str], told: str, remedy: str
):
    clouds.federated("site", account, protocol, **scope)
    finding = wrong(examine("site"))
    assert told in finding.words and remedy in finding.remedy


def test_an_entry_that_does_not_fit_is_told(agent: Agent, clouds: Clouds):
    clouds.federated("site", **PHYSICS)
    clouds.add("region", **clouds.keystone.entry(**PHYSICS) | {"region_name": "cnaf", ACCOUNT: "alice"})
    assert f"region_name: {', '.join(REGIONS)}" in wrong(examine("region")).remedy
    clouds.add("authority", **clouds.keystone.entry(**PHYSICS) | {"cacert": None, ACCOUNT: "alice"})
    assert "cacert" in wrong(examine("authority")).remedy
    clouds.add("away", auth={"auth_url": "https://127.0.0.1:9/v3", "username": "alice", "password": "of-alice"})
    assert "cannot be reached" in wrong(examine("away")).words
    assert [login.wrong is None for login in logins.examine_all(["site", "away"])] == [True, False]


def test_passwords_that_are_wrong_and_projects_that_are(clouds: Clouds):
    auth = {"auth_url": clouds.keystone.url, "username": "admin", "user_domain_id": "default", **PHYSICS}
    clouds.add("wrong", auth={**auth, "password": "not-the-password"})
    assert "name or the password is wrong" in wrong(examine("wrong")).words
    clouds.add("project", auth={**auth, "password": "admin"})
    assert "no role on the project" in wrong(examine("project")).words
    assert "project_id: admin (" in wrong(examine("project")).remedy
    for entry in ("wrong", "project"):
        with pytest.raises(ProvisionError, match="does not accept the credentials"), explained(entry):
            connect(entry, SECONDS)


def test_a_wrong_clock_of_this_computer_is_told(agent: Agent, clouds: Clouds, user_home: Path):
    clouds.federated("site", **PHYSICS)
    provision = Command(user_home, OS_CLIENT_CONFIG_FILE=str(clouds.file), OIDC_SOCK=agent.environment["OIDC_SOCK"])
    done = subprocess.run(
        ["faketime", "-f", "+2h", "provision", "login", "site"],
        env=provision.environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert re.search(r"^BAD  clock +7\d\d\d s ahead of the cloud's$", done.stdout, re.M), done.stdout
    assert "Set this computer's clock" in done.stderr


def revoke(connection: Any, keystone: Keystone) -> str:
    """End a connection's token of Keystone, and return it."""
    token = str(connection.session.get_token())
    connection.session.delete(f"{keystone.url}/auth/tokens", headers={"X-Subject-Token": token})
    return token


def test_a_token_that_ends_in_the_middle_of_the_work_is_renewed(agent: Agent, clouds: Clouds):
    clouds.federated("site", **PHYSICS)
    connection = OpenStackCloud("site").conn
    project = connection.current_project_id
    for _ in range(2):
        ended = revoke(connection, clouds.keystone)
        assert connection.identity.get_project(project).name == "physics"
        assert connection.session.get_token() != ended
    connection.close()


def test_work_goes_on_when_the_agent_has_the_account_again(agent: Agent, clouds: Clouds):
    clouds.federated("site", **PHYSICS)
    connection = OpenStackCloud("site").conn
    project = connection.current_project_id
    agent.unload("alice")
    try:
        assert connection.identity.get_project(project).name == "physics"
        revoke(connection, clouds.keystone)
        with pytest.raises(ProvisionError, match="has not loaded the account alice") as refused:
            connection.identity.get_project(project)
        assert refused.value.remedy == "`oidc-add alice` loads it."
    finally:
        agent.load("alice")
    assert connection.identity.get_project(project).name == "physics"
    connection.close()


def test_a_token_that_the_cloud_refuses_is_replaced_once(agent: Agent, clouds: Clouds):
    clouds.federated("site", "bob", **PHYSICS)
    before = agent.token("bob")
    cloud = OpenStackCloud("site")
    with pytest.raises(ProvisionError, match="does not accept the credentials") as refused:
        cloud.platforms()
    assert "provision login site" in refused.value.remedy
    assert agent.token("bob") != before


def test_a_dead_refresh_token_is_told_before_the_access_token_ends(
    keystone: Keystone,
    provider: OidcProvider,
    clouds: Clouds,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    clouds.federated("site", **PHYSICS)
    for options, told in ((("--no-autoreauthenticate",), "has ended or was revoked"), ((), "waits for a login")):
        with oidc_agent(tmp_path / f"agent{len(options)}", *options) as own:
            own.add("alice", provider, "alice")
            use(own, monkeypatch)
            provider.revoke(own.refresh_tokens["alice"])
            connect("site", SECONDS).close()
            if not options:  # by default an agent waits for somebody who logs in in a browser
                monkeypatch.setattr(_oidc_agent, "AGENT_SECONDS", 3)
            finding = wrong(examine("site"))
            assert told in finding.words and "oidc-gen --reauthenticate alice" in finding.remedy
    finding = wrong(examine("site"))
    assert "does not run" in finding.words and "oidc-agent-service" in finding.remedy


def test_application_credentials_of_users_of_the_provider(agent: Agent, clouds: Clouds):
    clouds.federated("site", **PHYSICS)
    connection = connect("site", SECONDS)
    user = connection.current_user_id

    def entry(name: str, identity: str, secret: str) -> None:
        auth = {"auth_url": clouds.keystone.url, "application_credential_id": identity}
        auth["application_credential_secret"] = secret
        clouds.add(name, auth_type="v3applicationcredential", auth=auth)

    ends = datetime.now(UTC).replace(microsecond=0) + timedelta(days=3)
    made = connection.identity.create_application_credential(user, "robot", expires_at=f"{ends:%Y-%m-%dT%H:%M:%S}")
    entry("robot", made.id, made.secret)
    login = examine("robot")
    assert login.wrong is None and login.user.startswith("alice (") and login.project.startswith("physics (")
    assert login.ends == ends
    assert any("make another one in time" in finding.words for finding in login.findings)
    connect("robot", SECONDS).close()

    rule = {"method": "POST", "path": "/v2.1/servers/*/action", "service": "compute"}
    narrow = connection.identity.create_application_credential(user, "narrow", access_rules=[rule])
    entry("narrow", narrow.id, narrow.secret)
    assert any("restricted to 1 kinds of requests" in finding.words for finding in examine("narrow").findings)

    entry("typo", made.id, "not-its-secret")
    assert "its secret is wrong" in wrong(examine("typo")).words
    clouds.keystone.change("UPDATE application_credential SET expires_at = ? WHERE id = ?", 10**15, made.id)
    assert "it has expired" in wrong(examine("robot")).words
    connection.identity.delete_application_credential(user, made)
    assert "does not exist any more" in wrong(examine("robot")).words
    for name in ("typo", "robot"):
        with pytest.raises(ProvisionError, match="does not accept the credentials"), explained(name):
            connect(name, SECONDS)
    connection.close()


def test_a_token_in_clouds_yaml_that_was_revoked(agent: Agent, clouds: Clouds):
    clouds.federated("site", **PHYSICS)
    connection = connect("site", SECONDS)
    token = revoke(connection, clouds.keystone)
    connection.close()
    clouds.add("ended", auth_type="v3token", auth={"auth_url": clouds.keystone.url, "token": token, **PHYSICS})
    assert "does not accept the credentials" in wrong(examine("ended")).words
    with pytest.raises(ProvisionError, match="does not accept the credentials"), explained("ended"):
        connect("ended", SECONDS)


def command_lines() -> str:
    """What `ps` shows of all processes."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(path.read_text(errors="replace"))
        except OSError:  # it has ended
            continue
    return "\n".join(found)


def test_tokens_are_seen_nowhere(agent: Agent, clouds: Clouds, user_home: Path, tmp_path: Path):
    clouds.federated("site", **PHYSICS)
    clouds.federated("refused", "alice", "elsewhere", **PHYSICS)
    program = shutil.which("oidc-token")
    wrapper = tmp_path / "bin" / "oidc-token"
    wrapper.parent.mkdir()
    wrapper.write_text(f'#!/bin/sh\ncat /proc/[0-9]*/cmdline >>{tmp_path}/seen 2>/dev/null\nexec {program} "$@"\n')
    wrapper.chmod(0o755)
    environment = {name: value for name, value in agent.environment.items() if name.startswith("OIDC_")}
    provision = Command(user_home, OS_CLIENT_CONFIG_FILE=str(clouds.file), **environment)
    provision.environment["PATH"] = f"{wrapper.parent}:{provision.environment['PATH']}"
    tokens, seen = set(), ""
    for words, status in ((["login", "site", "--json"], 0), (["login"], 1)):
        process = subprocess.Popen(
            ["provision", *words],
            env=provision.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        while process.poll() is None:
            seen += command_lines()
            time.sleep(0.05)  # leaves the computer to what is looked at
        seen += process.communicate()[0]
        assert process.returncode == status, seen[-2000:]
        tokens.add(agent.token("alice"))
    seen += (tmp_path / "seen").read_text(errors="replace")
    assert "oidc-token\0--all\0--force-new\0--\0alice" in seen
    assert "1 of 2 clouds do not serve: refused." in seen
    assert len(tokens) == 2
    everything = seen + provision.logs() + clouds.file.read_text() + clouds.keystone.logs()
    assert "gAAAA" not in seen + provision.logs()  # as Keystone's own tokens begin
    for token in tokens:
        assert token not in everything and token.rpartition(".")[2] not in everything
