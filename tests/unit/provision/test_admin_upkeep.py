"""The programs that `provision admin` runs on machines: what they refuse, and what they make of what they find."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.conftest import REPOSITORY


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


def test_the_checklist_finds_secrets_that_others_can_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checklist = program("playbooks/admin/files/hardening.py", monkeypatch)
    folder = tmp_path / "etc/ssh"
    folder.mkdir(parents=True)
    for name, mode in (("ssh_host_rsa_key", 0o600), ("ssh_host_ed25519_key", 0o644)):
        (folder / name).write_text("secret")
        (folder / name).chmod(mode)
    found = checklist.secrets(checklist.SECRETS, str(tmp_path))
    assert (found["good"], found["words"]) == (False, str(folder / "ssh_host_ed25519_key"))
