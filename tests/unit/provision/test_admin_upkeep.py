"""The programs that `provision admin` runs on machines: what they refuse, and what they make of what they find."""

from __future__ import annotations

import base64
import fcntl
import importlib.util
import json
import os
import subprocess
import sys
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from sqlalchemy import select

from mlaas4hep.errors import MlaasError
from mlaas4hep.service.database import JobRow, SessionRow, UserRow, open_database
from mlaas4hep.service.settings import Settings, load_settings
from tests.conftest import REPOSITORY, long


def program(path: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """One of them as a module, without leaving compiled code beside it."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    spec = importlib.util.spec_from_file_location(Path(path).stem, REPOSITORY / path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


ACCOUNTS = {
    "root": {"uid": 0, "home": "/root", "administers": False},
    "physicist": {"uid": 1000, "home": "/home/physicist", "administers": True},
    "alice": {"uid": 1001, "home": "/home/alice", "administers": True},
    "bob": {"uid": 1002, "home": "/home/bob", "administers": False},
    "mlaas4hep": {"uid": 998, "home": "/var/lib/mlaas4hep", "administers": False},
}


def judged(
    monkeypatch: pytest.MonkeyPatch, connected: str = "physicist", home: bool = False, **wished: Any
) -> tuple[list[str], list[str]]:
    accounts = program("roles/users/files/accounts.py", monkeypatch)
    whole = {"accounts": [], "locked": [], "removed": [], **wished}
    found: tuple[list[str], list[str]] = accounts.refusals(whole, ACCOUNTS, connected, lambda _: home)
    return found


@pytest.mark.parametrize(
    ("wished", "words"),
    [
        ({"removed": ["physicist"]}, "this connection uses"),
        ({"locked": ["physicist"]}, "this connection uses"),
        ({"accounts": [{"name": "physicist", "sudo": False}]}, "this connection uses"),
        ({"removed": ["root"]}, "of the system"),
        ({"locked": ["mlaas4hep"]}, "of the system"),
        ({"locked": ["nobody-there"]}, "no such account"),
        ({"accounts": [{"name": "carol"}], "home": True}, "/home/carol of a former account"),
        ({"removed": ["physicist", "alice"], "connected": "bob"}, "Nobody would be left"),
        ({"locked": ["physicist"], "accounts": [{"name": "alice", "sudo": False}], "connected": "bob"}, "Nobody"),
        # who has no key yet cannot log in, whatever the rights
        (
            {"removed": ["physicist", "alice"], "accounts": [{"name": "bob", "sudo": True}], "connected": "bob"},
            "Nobody",
        ),
    ],
)
def test_changes_that_shut_people_out_are_refused(
    wished: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert words in " ".join(judged(monkeypatch, **wished)[0])


def test_other_changes_are_not_refused_and_tell_who_administers(monkeypatch: pytest.MonkeyPatch) -> None:
    key = "ssh-ed25519 AAAA carol@lab"
    assert judged(monkeypatch, removed=["alice", "who-is-gone"]) == ([], ["physicist"])
    assert judged(monkeypatch, accounts=[{"name": "carol", "ssh_keys": [key], "sudo": True}]) == (
        [],
        ["alice", "carol", "physicist"],
    )
    # a change that does not tell of sudo keeps it
    assert judged(monkeypatch, accounts=[{"name": "physicist"}, {"name": "bob"}]) == ([], ["alice", "physicist"])


def test_who_can_log_in_is_read_from_keys_and_expiry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accounts = program("roles/users/files/accounts.py", monkeypatch)
    shadow = "alice:!:20000:0:99999:7:::\nbob:!:20000:0:99999:7::1:\ncarol:!:20000:0:99999:7::20500:\n"
    assert accounts.expired(shadow, 20400) == {"bob"}
    (tmp_path / "keys").write_text("# none yet\n\n")
    (tmp_path / "alice").write_text("ssh-ed25519 AAAA\n")
    assert not accounts.has_key("bob", str(tmp_path), [f"{tmp_path}/keys", f"{tmp_path}/%u"])
    assert accounts.has_key("alice", str(tmp_path), ["keys", "%h/%u"])


def test_the_checklist_tells_what_does_not_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checklist = program("playbooks/admin/files/hardening.py", monkeypatch)
    kept = "passwordauthentication no\nkbdinteractiveauthentication no\npermitemptypasswords no\n"
    assert checklist.sshd(f"{kept}permitrootlogin without-password\n")["good"]
    bad = checklist.sshd(f"{kept}permitrootlogin yes\n")
    assert (bad["good"], bad["words"]) == (False, "permitrootlogin yes")

    found = checklist.accounts("root:x:0:0::/root:/bin/sh\ntoor:x:0:0::/:/bin/sh\n", "root:$y$x:1\ntoor::1\n")
    assert [(item["good"], item["words"]) for item in found] == [
        (False, "root, toor"),
        (False, "a password, or none is needed"),
        (False, "toor"),
    ]
    updates = checklist.updates(
        'APT::Periodic::Unattended-Upgrade "1";',
        True,
        "Inst openssl [3.0.1] (3.0.2 Debian-Security:12/stable-security [amd64])\nInst nano [7] (8 Debian:12)\n",
    )
    assert [(item["good"], item["words"]) for item in updates] == [(True, "every day"), (False, "openssl")]


def test_the_checklist_compares_the_firewall_with_what_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    checklist = program("playbooks/admin/files/hardening.py", monkeypatch)
    header = "  sl  local_address rem_address   st\n"
    rows = "0: 00000000:0016 00000000:0000 0A\n1: 0100007F:1F90 00000000:0000 0A\n2: 00000000:22B8 00000000:0000 0A\n"
    ports = checklist.listening([header + rows])
    assert ports == {22, 8888}
    table = "type filter hook input priority -5; policy drop;\n tcp dport { 22, 443 } accept\n"
    held, loaded = checklist.firewall(table, False, ports)
    assert held["good"] and held["words"] == "open 22, 443; listening behind it 8888"
    assert not loaded["good"]
    assert not checklist.firewall("", True, ports)[0]["good"]
    assert [item["known"] for item in checklist.firewall(None, False, ports)] == [False, False]


def test_the_checklist_finds_secrets_that_others_can_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checklist = program("playbooks/admin/files/hardening.py", monkeypatch)
    folder = tmp_path / "etc/ssh"
    folder.mkdir(parents=True)
    for name, mode in (("ssh_host_rsa_key", 0o600), ("ssh_host_ed25519_key", 0o644)):
        (folder / name).write_text("secret")
        (folder / name).chmod(mode)
    found = checklist.secrets(checklist.SECRETS, str(tmp_path))
    assert (found["good"], found["words"]) == (False, str(folder / "ssh_host_ed25519_key"))


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A service's data: jobs, workspaces and stores, each an old one and a new one."""
    monkeypatch.setenv("MLAAS4HEP_CONFIG", str(tmp_path / "service.toml"))
    data = tmp_path / "data"
    (tmp_path / "service.toml").write_text(f'data = "{data}"\n[authentication]\ntoken_file = "{data}/token"\n')
    data.mkdir()
    settings = load_settings()
    user = "u0123456789abcdef"
    with closing(open_database(settings.database_url, data)) as database, database.write() as session:
        session.add(UserRow(key=user, issuer="i", subject="s", name="n", quota={}, seen=""))
        session.flush()
        for number, (phase, ended, workspace) in enumerate(
            [("ended", OLD, "left"), ("ended", NEW, "left"), ("handed", "", "busy")], start=1
        ):
            session.add(
                JobRow(
                    key=f"job{number}", user_key=user, name="higgs", number=number, model="m", workspace=workspace,
                    cpus=1, memory=1, gpus=0, seconds=1, disk=1, network=False, phase=phase, state="", ended=ended,
                    submitted=OLD,
                )
            )  # fmt: skip
            filled(data / "jobs" / f"job{number}")
    for name in ("left", "busy", "new"):
        filled(data / "workspaces" / user / name)
    for name in ("unread", "read", "locked", "opened"):
        filled(data / "store" / name, "store.json")
    for path in [*data.glob("workspaces/*/*"), *data.glob("store/*/*")]:
        if path.name != "new" and path.parent.name != "read":
            os.utime(path, (LONG_AGO, LONG_AGO))
    return settings


LONG_AGO = datetime.now(UTC).timestamp() - 100 * 86400
OLD = datetime.fromtimestamp(LONG_AGO, UTC).isoformat(timespec="seconds")
NEW = datetime.now(UTC).isoformat(timespec="seconds")


def filled(folder: Path, name: str = "file") -> None:
    folder.mkdir(parents=True)
    (folder / name).write_text("0123456789")


def test_what_is_old_goes_but_nothing_that_a_job_needs(served: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = program("playbooks/admin/files/clean_service.py", monkeypatch)
    policy = {"remove": False, "jobs": 90, "workspaces": 90, "stores": 90}
    with (
        (served.data / "store" / "opened" / "store.json").open(),
        (served.data / "store" / "locked.lock").open("w") as lock,
    ):
        os.utime(served.data / "store" / "opened" / "store.json", (LONG_AGO, LONG_AGO))
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = list(tool.clean(served, policy, datetime.now(UTC).timestamp()))
        wanted = [
            ("store", "unread", 10),
            ("job", "higgs_1 of u0123456789abcdef", 10),
            ("workspace", "left of u0123456789abcdef", 10),
        ]
        assert found == wanted
        assert list(tool.clean(served, policy, datetime.now(UTC).timestamp())) == wanted, "a dry run removes nothing"

        policy["remove"] = True
        assert list(tool.clean(served, policy, datetime.now(UTC).timestamp())) == wanted
        assert list(tool.clean(served, policy, datetime.now(UTC).timestamp())) == []
    assert sorted(path.name for path in (served.data / "jobs").iterdir()) == ["job2", "job3"]
    assert sorted(path.name for path in served.data.glob("workspaces/*/[a-z]*")) == ["busy", "new"]
    assert sorted(path.parent.name for path in served.data.glob("store/*/store.json")) == ["locked", "opened", "read"]
    with closing(open_database(served.database_url, served.data)) as database, database.read() as session:
        assert set(session.scalars(select(JobRow.key))) == {"job2", "job3"}


def test_stores_go_when_the_database_cannot_be_opened(served: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = program("playbooks/admin/files/clean_service.py", monkeypatch)
    (served.data / "service.sqlite").unlink()
    (served.data / "service.sqlite").mkdir()
    policy = {"remove": True, "jobs": 0, "workspaces": 0, "stores": 90}
    assert ("store", "unread", 10) in list(tool.clean(served, policy, datetime.now(UTC).timestamp()))
    with pytest.raises(MlaasError):
        list(tool.clean(served, policy | {"jobs": 90}, datetime.now(UTC).timestamp()))


def test_people_keep_their_jobs_and_workspaces_unless_it_is_told(
    served: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = program("playbooks/admin/files/clean_service.py", monkeypatch)
    defaults = yaml.safe_load((REPOSITORY / "playbooks/admin/clean.yml").read_text())[0]["vars"]
    assert (defaults["clean_jobs_days"], defaults["clean_workspaces_days"]) == (0, 0)
    policy = {"remove": False, "jobs": 0, "workspaces": 0, "stores": 0}
    assert list(tool.clean(served, policy, datetime.now(UTC).timestamp())) == []


def test_only_closed_logs_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = program("playbooks/admin/files/clean_machine.py", monkeypatch)
    logs = tmp_path / "var/log"
    (logs / "journal").mkdir(parents=True)
    closed = ["dpkg.log.1", "nginx-access.log.2.gz", "messages-20260101.xz", "journal/system@00ab-12.journal"]
    for name in [*closed, "auth.log", "journal/system.journal", "new.log.1"]:
        (logs / name).write_text("0123456789")
        if name != "new.log.1":
            os.utime(logs / name, (LONG_AGO, LONG_AGO))
    policy = {"remove": False, "logs": 90}
    at = datetime.now(UTC).timestamp()
    told = {finding["check"] for finding in tool.clean(policy, at, tmp_path)}
    assert told == {f"log {logs / name}" for name in closed}
    assert len(list(tool.clean({**policy, "remove": True}, at, tmp_path))) == len(closed)
    assert sorted(path.name for path in logs.rglob("*") if path.is_file()) == [
        "auth.log",
        "new.log.1",
        "system.journal",
    ]


def test_certificates_tell_the_days_that_are_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = program("playbooks/admin/files/certificates.py", monkeypatch)
    (tmp_path / "etc/web-proxy").mkdir(parents=True)
    (tmp_path / "var/lib/xcache").mkdir(parents=True)
    (tmp_path / "etc/grid-security/certificates").mkdir(parents=True)
    certificate = tmp_path / "etc/web-proxy/certificate.pem"
    words = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "90"]
    subprocess.run([*words, "-subj", "/CN=x", "-keyout", tmp_path / "key", "-out", certificate], check=True,
                   capture_output=True)  # fmt: skip
    (tmp_path / "etc/grid-security/certificates/ca.pem").write_bytes(certificate.read_bytes())
    (tmp_path / "etc/grid-security/certificates/ca.r0").write_text("no list")
    claims = base64.urlsafe_b64encode(json.dumps({"exp": datetime.now(UTC).timestamp() + 600}).encode()).decode()
    (tmp_path / "var/lib/xcache/token").write_text(f"e30.{claims.rstrip('=')}.c2ln")
    limits, at = {"days": 20, "hours": 1}, datetime.now(UTC).timestamp()

    found = {finding["check"]: finding for finding in tool.look(limits, at, tmp_path)}
    assert found["certificate of the web proxy"]["good"]
    assert found["certificate of the web proxy"]["words"] in ("90 days left", "89 days left")
    assert not found["token of the cache"]["good"] and found["token of the cache"]["words"] == "0.2 hours left"
    assert found["CAs of the grid"]["words"] == "1, of which 0 have ended"
    assert found["revocation lists"]["words"] == "1, of which 0 have ended and 1 cannot be read: ca.r0"

    later = {finding["check"]: finding for finding in tool.look(limits, at + 80 * 86400, tmp_path)}
    assert not later["certificate of the web proxy"]["good"] and later["certificate of the web proxy"]["remedy"]
    certificate.write_text("no certificate")
    assert "cannot be read" in tool.look(limits, at, tmp_path)[0]["words"]


def test_the_audit_counts_who_came_and_keeps_arguments_to_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    tool = program("playbooks/admin/files/audit.py", monkeypatch)
    lines = [
        (1, "sshd", "Accepted publickey for alice from 192.0.2.7 port 50000 ssh2: ED25519 SHA256:x"),
        (2, "sshd-session", "Accepted publickey for alice from 192.0.2.7 port 50001 ssh2: ED25519 SHA256:x"),
        (3, "sshd", "Invalid user admin from 203.0.113.9 port 41000"),
        (3, "sshd", "Failed password for invalid user admin from 203.0.113.9 port 41000 ssh2"),
        (4, "sshd", "Failed password for alice from 203.0.113.9 port 41001 ssh2"),
        (5, "sshd", "Connection closed by authenticating user root 203.0.113.9 port 41002 [preauth]"),
        (6, "sudo", "   alice : PWD=/home/alice ; USER=root ; COMMAND=/usr/bin/mysql --password=secret"),
        (7, "sudo", "     bob : user NOT in sudoers ; TTY=pts/0 ; PWD=/ ; USER=root ; COMMAND=/bin/sh"),
        (8, "sudo", "pam_unix(sudo:session): session opened for user root(uid=0) by alice(uid=1001)"),
    ]
    found = tool.summary(lines)
    assert found["logins"] == ["2 x alice from 192.0.2.7 by publickey"]
    assert sorted(found["failed logins"]) == [
        "1 x admin from 203.0.113.9",
        "1 x alice from 203.0.113.9",
        "1 x root from 203.0.113.9",
    ]
    assert "1 x alice as root: /usr/bin/mysql" in found["sudo"]
    assert found["refused by sudo"] == ["1 x bob: user NOT in sudoers"]
    assert "secret" not in json.dumps(found)


@pytest.mark.parametrize(
    ("versions", "bad"),
    [
        (("550.54", "550.54", "550.54", "12.4", "12.6.77"), []),
        (("550.54", "", "", "13.0", "12.6.77"), []),
        (("535.1", "550.54", "550.54", "12.2", "12.6.77"), ["driver's module", "driver's programs"]),
        (("470.1", "470.1", "470.1", "11.4", "12.6.77"), ["CUDA"]),
        (("", "550.54", "", "", "12.6.77"), ["driver", "driver's module", "CUDA"]),
    ],
)
def test_driver_kernel_and_framework_have_to_belong_together(
    versions: tuple[str, ...], bad: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = program("playbooks/admin/files/gpu.py", monkeypatch)
    found = list(tool.judged(*versions, "6.1.0-50-cloud-amd64"))
    assert [finding["check"] for finding in found if not finding["good"]] == bad
    assert all(finding["remedy"] for finding in found if not finding["good"])


VERSION = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024\nGCC version:\n"


@long
def test_a_driver_is_looked_at_by_its_own_programs_and_by_a_computation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No GPU is here: the driver's programs are stand-ins, and the processor computes."""
    tool = program("playbooks/admin/files/gpu.py", monkeypatch)
    for name, answer in (("nvidia-smi", "550.54.15"), ("modinfo", "550.90.07")):
        (tmp_path / name).write_text(f"#!/bin/sh\necho {answer}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    (tmp_path / "version").write_text(VERSION)
    monkeypatch.setattr(tool, "LOADED", tmp_path / "version")
    tool.main()
    found = {finding["check"]: finding for finding in json.loads(capsys.readouterr().out)}
    assert found["driver"]["good"] and "550.54.15" in found["driver"]["words"]
    assert not found["driver's module"]["good"] and "--reboot" in found["driver's module"]["remedy"]
    assert found["driver's programs"]["good"]
    assert found["computation"]["words"] == "the framework sees no GPU"
    assert tool.off("CPU:0") < tool.MOST_OFF


def test_sessions_are_counted_before_they_end(
    served: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    with closing(open_database(served.database_url, served.data)) as database, database.write() as session:
        session.add_all([SessionRow(key=key, value="{}", expires=2**40) for key in ("one", "two")])
    for word in ("count", "end", "count"):
        monkeypatch.setattr(sys, "argv", ["-", word])
        program("playbooks/admin/files/end_sessions.py", monkeypatch)
    assert capsys.readouterr().out.split() == ["2", "2", "0"]
