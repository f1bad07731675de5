"""The policy file: who may do what, and how much."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlaas4hep.errors import UsageError
from mlaas4hep.service.identity import Role, User
from mlaas4hep.service.policy import PERSONAL, PolicyFile, Quota, read_policy
from mlaas4hep.service.tokens import Claims

GB = 2**30
EXAMPLE = """
[everyone]
quota = { jobs = 1, disk = "10 GiB" }

[groups."/cms"]
roles = ["serve"]
quota = { jobs = 8, memory = "64 GiB" }

[groups."/cms/higgs"]
roles = ["submit"]
quota = { jobs = 2, cpus = 32, gpus = 2, memory = 1024 }

[scopes."compute.create"]
roles = ["submit"]

[clients.robot]
roles = ["administer"]
quota = { jobs = 100 }
"""


def _claims(subject: str = "alice", **more: object) -> Claims:
    return Claims("https://iam.test", subject, **more)  # type: ignore[arg-type]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "policy.toml"
    path.write_text(EXAMPLE)
    return path


def test_roles_of_all_that_applies_add_up(path: Path) -> None:
    policy = read_policy(path)
    assert policy.user(_claims()).roles == frozenset()
    assert policy.user(_claims(groups=("/cms",))).roles == {Role.SERVE}
    assert policy.user(_claims(groups=("/cms", "/cms/higgs"))).roles == {Role.SERVE, Role.SUBMIT}
    assert policy.user(_claims(groups=("/cms/", "cms", "/CMS", "/cms/other"))).roles == frozenset()
    assert policy.user(_claims(scopes=("compute.create", "other"))).roles == {Role.SUBMIT}
    assert policy.user(_claims(client="robot")).roles == {Role.ADMINISTER}


def test_quota_is_the_largest_of_what_applies_figure_by_figure(path: Path) -> None:
    policy = read_policy(path)
    default = Quota()
    assert policy.quota(policy.user(_claims())) == Quota(1, default.cpus, default.memory, default.gpus, 10 * GB)
    both = policy.user(_claims(groups=("/cms", "/cms/higgs")))
    assert policy.quota(both) == Quota(8, 32, 64 * GB, 2, 10 * GB)


def test_one_person_is_named_by_key(path: Path) -> None:
    key = User("https://iam.test", "alice").key
    path.write_text(f'[users.{key}]\nroles = ["administer"]\nquota = {{ gpus = 4 }}\n')
    policy = read_policy(path)
    assert policy.user(_claims()).roles == {Role.ADMINISTER}
    assert policy.quota(policy.user(_claims())).gpus == 4
    assert policy.user(_claims("bob")).roles == frozenset()


def test_personal_platform_has_all_roles_and_no_limit() -> None:
    user = PERSONAL.user(Claims("local", "local"))
    assert user.roles == set(Role)
    assert PERSONAL.quota(user).memory > 2**60


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[everyone", "TOML"),
        ("a = 1", "a: Extra inputs"),
        ("[everyone]\nrole = []", "everyone.role: Extra inputs"),
        ('[everyone]\nroles = ["root"]', "everyone.roles"),
        ('[everyone]\nroles = "submit"', "everyone.roles"),
        ("[everyone]\nquota = { jobs = -1 }", "everyone.quota.jobs"),
        ("[everyone]\nquota = { jobs = true }", "everyone.quota.jobs"),
        ("[everyone]\nquota = { jobs = 1.5 }", "everyone.quota.jobs"),
        ('[everyone]\nquota = { memory = "much" }', "everyone.quota.memory"),
        ("[everyone]\nquota = { memory = -1 }", "everyone.quota.memory"),
        ("[everyone]\nquota = { disk = inf }", "everyone.quota.disk"),
        ("[groups.cms]\nroles = []", "groups.cms: must be written as /group"),
        ('[groups."/cms/"]\nroles = []', "groups./cms/: must be written as /group"),
        ("[scopes.a]\nquota = {}", "scopes.a"),
        ("[users.alice]\nroles = []", "users.alice"),
        ('[groups."/cms"]\n[groups."/cms"]', "TOML"),
    ],
)
def test_mistake_is_named(text: str, said: str, path: Path) -> None:
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        read_policy(path)
    assert said in str(caught.value) and str(path) in str(caught.value)


def test_files_that_are_none(tmp_path: Path) -> None:
    for content in (b"\xff\xfe", b"#" * 2**21):
        (tmp_path / "policy.toml").write_bytes(content)
        with pytest.raises(UsageError):
            read_policy(tmp_path / "policy.toml")
    with pytest.raises(UsageError, match="cannot be read"):
        read_policy(tmp_path / "missing.toml")


def test_changed_file_is_read_again_and_a_broken_one_is_not(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    policy = PolicyFile(path, clock=lambda: now[0])
    first = policy()
    now[0] += 2
    assert policy() is first

    path.write_text("[everyone\n")
    now[0] += 2
    assert policy() is first
    assert "stays as it was" in caplog.text and str(path) in caplog.text
    now[0] += 2
    policy()
    assert caplog.text.count("stays as it was") == 1

    path.unlink()
    now[0] += 2
    assert policy() is first

    other = path.with_suffix(".new")
    other.write_text('[everyone]\nroles = ["serve"]\n')
    other.replace(path)
    now[0] += 2
    assert policy().user(_claims()).roles == {Role.SERVE}
