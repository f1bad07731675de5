"""`--cloud ssh:USER@HOST`: a machine that was there before, here a real sshd on loopback."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from provision.errors import ProvisionError, UsageError
from provision.plan import make_plan, undo
from provision.record import Home, Record
from provision.remote import Remote, has_route
from provision.spec import PlatformSpec, make_spec
from provision.uninstall import installed
from tests.conftest import Command, Silent

from .conftest import Sshd, needs_sudo


@needs_sudo
def test_a_host_is_taken_and_forgotten_without_being_touched(way: PlatformSpec, sshd: Sshd):
    plan = make_plan(way, Home(), bare=True)
    record = plan.execute(Silent())
    folder = Home().folder("lab")
    with Remote(folder) as remote:
        assert remote.run(["echo", "hello"]) == "hello\n"
    assert record.state == "bare"
    assert record.access is not None and record.access.port == sshd.port
    again = Silent()
    make_plan(way, Home(), bare=True).execute(again)
    assert all(title.startswith("there: ") for title in again.titles)
    undo(plan.cloud, plan.platform, Silent())
    assert Home().folders() == []
    assert sshd.process.poll() is None


@needs_sudo
def test_one_host_is_one_platform(way: PlatformSpec):
    make_plan(way, Home(), bare=True).execute(Silent())
    with pytest.raises(UsageError, match="is the platform lab already"):
        make_plan(way.model_copy(update={"name": "other"}), Home(), bare=True)


def test_a_host_whose_key_nobody_has_seen_is_refused(way: PlatformSpec, user_home: Path):
    (user_home / ".ssh" / "known_hosts").write_text("")
    with pytest.raises(ProvisionError, match="is not known on this computer") as caught:
        make_plan(way, Home(), bare=True)
    assert "compare the fingerprint" in caught.value.remedy


def test_a_host_that_does_not_admit_the_user_is_named(way: PlatformSpec, sshd: Sshd):
    (sshd.folder / "authorized_keys").write_text("")
    with pytest.raises(ProvisionError, match=r"cannot be used: .*Permission denied"):
        make_plan(way, Home(), bare=True)


@pytest.mark.parametrize("cloud", ["ssh:", "ssh:host", "ssh:-oProxyCommand=x@host", "ssh:a@b;c"])
def test_a_host_that_is_none_is_a_mistake_of_use(cloud: str, user_home: Path):
    with pytest.raises(UsageError, match="names no host"):
        make_plan(make_spec({"name": "p", "cloud": cloud}), Home(), bare=True)


def test_wishes_that_an_existing_machine_cannot_fulfil_are_refused(way: PlatformSpec):
    with pytest.raises(UsageError, match="cannot be chosen"):
        make_plan(way.model_copy(update={"network": "n"}), Home(), bare=True)


@needs_sudo
def test_the_plan_shows_what_was_checked(way: PlatformSpec):
    checks = make_plan(way, Home(), bare=True).offer.checks
    assert {"system", "sudo", "python3", "memory", "disk of /", "package managers", "clock"} <= {c.name for c in checks}
    assert all(check.good for check in checks)


def test_all_that_is_wrong_is_told_at_once(way: PlatformSpec, sshd: Sshd, tmp_path: Path):
    # what the user's shell finds first on the machine: no sudo without a password, and a clock that stands still
    answers = {"sudo": "echo 'sudo: a password is required'; exit 1", "date": "echo 1000"}
    programs = tmp_path / "there"
    programs.mkdir()
    for name, words in answers.items():
        (programs / name).write_text(f"#!/bin/sh\n{words}\n")
        (programs / name).chmod(0o755)
    sshd.environment({"PATH": f"{programs}:/usr/sbin:/usr/bin:/sbin:/bin"})
    with pytest.raises(ProvisionError, match=r"sudo: a password is required .*; clock: \d+ s off") as caught:
        make_plan(way, Home(), bare=True)
    assert "BAD sudo: " in caught.value.details and "ok  python3: " in caught.value.details
    assert Home().folders() == []


@needs_sudo
def test_a_host_by_its_ipv6_address(way: PlatformSpec, sshd: Sshd, user_home: Path):
    if not has_route("::1"):
        pytest.skip("this computer has no IPv6")
    known = user_home / ".ssh" / "known_hosts"
    known.write_text(known.read_text().replace("[127.0.0.1]", "[::1]"))
    spec = way.model_copy(update={"cloud": f"ssh:{sshd.user}@[::1]:{sshd.port}"})
    plan = make_plan(spec, Home(), bare=True)
    plan.execute(Silent())
    with Remote(plan.platform.folder) as remote:
        assert remote.run(["printenv", "SSH_CONNECTION"]).startswith("::1 ")


@needs_sudo
def test_an_uninstallation_is_shown_before_it_is_done(way: PlatformSpec, user_home: Path):
    plan = make_plan(way, Home(), bare=True)
    plan.execute(Silent())
    with Remote(plan.platform.folder) as remote:
        there = installed(remote)
    shown = json.loads(Command(user_home)("delete", "lab", "--uninstall", "--dry-run", "--json"))
    assert [(entry["kind"], entry["id"]) for entry in shown] == [(found.kind, found.id) for found in there]
    assert all(Path(found.id).exists() for found in there if found.kind == "file")
    assert Home().folder("lab").record_file.exists()


def test_a_machine_of_the_toolkits_own_is_not_uninstalled(user_home: Path):
    spec = make_spec({"name": "own"})
    Home().folder("own").save(Record(name="own", uid="0123456789", owner="test", toolkit="0", spec=spec))
    assert "it is deleted whole" in Command(user_home).fails("delete", "own", "--uninstall", "--yes", status=2)
    assert Home().folder("own").record_file.exists()


@needs_sudo
def test_a_host_has_no_commands_to_explain_the_plan_by(way: PlatformSpec):
    with pytest.raises(UsageError, match="no commands of its own"):
        make_plan(way, Home(), bare=True).explain()
