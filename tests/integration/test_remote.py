"""SSH against a real server: only the right host key is accepted, and files and commands arrive whole."""

from __future__ import annotations

import os
import pwd
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from provision.errors import ProvisionError
from provision.record import Access, Folder, Home
from provision.remote import (
    ConnectionLostError,
    Remote,
    RemoteError,
    has_route,
    home_path,
    include_in_user_config,
    make_key,
    write_known_hosts,
    write_ssh_config,
)

from .conftest import Sshd

UID = "abc123"


@pytest.fixture
def folder(user_home: Path, sshd: Sshd) -> Folder:
    """A platform's folder that leads to the real server."""
    folder = Home().folder("there")
    folder.path.mkdir(parents=True)
    sshd.admit(make_key(folder.key, "test"))
    write_known_hosts(folder, UID, sshd.host_key)
    write_ssh_config(folder, UID, Access(host="127.0.0.1", port=sshd.port, user=sshd.user))
    return folder


def test_words_arrive_as_they_are(folder: Folder):
    words = ["a b", "$HOME", "'", '"; rm -rf /nowhere', "ü", "*"]
    with Remote(folder) as remote:
        assert remote.run(["printf", "%s\\n", *words]).splitlines() == words


def test_a_failing_command_tells_its_last_words(folder: Folder):
    with Remote(folder) as remote, pytest.raises(RemoteError, match="no luck") as caught:
        remote.run(["sh", "-c", "echo one >&2; echo no luck >&2; exit 3"])
    assert caught.value.status == 3


def test_another_host_key_is_refused_and_nothing_is_sent(folder: Folder, tmp_path: Path):
    other = make_key(tmp_path / "other", "other")
    write_known_hosts(folder, UID, other)
    with Remote(folder) as remote:
        assert not remote.answers()
        with pytest.raises(ConnectionLostError, match="host key that is not its own"):
            remote.wait(5)


def test_a_machine_that_never_answers_is_reported(folder: Folder, sshd: Sshd):
    sshd.process.terminate()
    sshd.process.wait()
    asked = []
    with Remote(folder) as remote, pytest.raises(ConnectionLostError, match="did not come up"):
        remote.wait(0, lambda: asked.append(1))


def test_the_users_own_ssh_finds_the_machine_by_name(folder: Folder, user_home: Path):
    config = user_home / ".ssh" / "config"
    config.parent.mkdir(mode=0o700)
    config.write_text("Host elsewhere\n  User nobody\n")
    include_in_user_config(folder.path.parent, wanted=True, config=config)
    include_in_user_config(folder.path.parent, wanted=True, config=config)
    text = config.read_text()
    assert text.startswith("Include ")
    assert text.count("Include") == 1
    assert stat.S_IMODE(config.stat().st_mode) == 0o600
    done = subprocess.run(
        ["ssh", "-F", config, "-o", "BatchMode=yes", "there", "echo", "found"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "found\n"), done.stderr
    include_in_user_config(folder.path.parent, wanted=False, config=config)
    assert config.read_text() == "Host elsewhere\n  User nobody\n"


def test_paths_in_the_home_folder_are_written_with_a_tilde(monkeypatch: pytest.MonkeyPatch):
    home = Path(pwd.getpwuid(os.getuid()).pw_dir)
    monkeypatch.setenv("HOME", str(home))
    assert home_path(home / "x" / "key") == "~/x/key"
    assert home_path(home / "a b") == '"~/a b"'
    monkeypatch.setenv("HOME", "/elsewhere")
    assert home_path(home / "x") == str(home / "x")


def test_a_jump_host_leads_to_the_machine(folder: Folder, sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # the way to the jump host is the user's own: here an `ssh` first in PATH that knows key and host key of it
    known, programs = tmp_path / "known_hosts", tmp_path / "bin"
    known.write_text(sshd.known_hosts_line())
    programs.mkdir()
    options = f"-F none -i {folder.key} -o UserKnownHostsFile={known} -o StrictHostKeyChecking=yes"
    (programs / "ssh").write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} {options} "$@"\n')
    (programs / "ssh").chmod(0o755)
    jump = f"{sshd.user}@127.0.0.1:{sshd.port}"
    write_ssh_config(folder, UID, Access(host="127.0.0.1", port=sshd.port, user=sshd.user, jump=jump))
    command = [
        shutil.which("ssh") or "ssh",
        "-F",
        str(folder.ssh_config),
        "-o",
        "BatchMode=yes",
        "there",
        "printenv",
        "SSH_CONNECTION",
    ]
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("127.0.0.1 ")


def test_an_ipv6_address_is_reached_directly_and_through_a_jump_host(
    folder: Folder, sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    if not has_route("::1"):
        pytest.skip("this computer has no IPv6")
    programs, real = tmp_path / "bin", shutil.which("ssh")
    programs.mkdir()
    (tmp_path / "known_hosts").write_text(sshd.known_hosts_line())
    options = f"-F none -i {folder.key} -o UserKnownHostsFile={tmp_path}/known_hosts -o StrictHostKeyChecking=yes"
    (programs / "ssh").write_text(
        f'#!/bin/sh\ncase " $* " in *" -W "*) exec {real} {options} "$@" ;; esac\nexec {real} "$@"\n'
    )
    (programs / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    for jump in (None, f"{sshd.user}@127.0.0.1:{sshd.port}"):
        write_ssh_config(folder, UID, Access(host="::1", port=sshd.port, user=sshd.user, jump=jump))
        with Remote(folder) as remote:
            assert remote.run(["printenv", "SSH_CONNECTION"]).startswith("::1 ")


def test_a_route_is_known_without_sending_anything():
    assert has_route("127.0.0.1")
    assert not has_route("fe80::1%nowhere")


def test_a_folder_is_sent_with_links_followed_and_fetched_back(folder: Folder, tmp_path: Path):
    source, data = tmp_path / "source", tmp_path / "elsewhere.root"
    (source / "sub").mkdir(parents=True)
    data.write_bytes(b"\0root" * 1000)
    (source / "data.root").symlink_to(data)
    (source / "sub" / "model.py").write_text("x = 1\n")
    target = tmp_path / "there with space"
    with Remote(folder) as remote:
        remote.send(source, str(target))
        assert (target / "data.root").read_bytes() == data.read_bytes()
        assert not (target / "data.root").is_symlink()
        back = tmp_path / "back"
        remote.fetch(["tar", "-C", str(tmp_path), "-czf", "-", target.name], back)
    assert (back / "sub" / "model.py").read_text() == "x = 1\n"


def test_a_broken_archive_leaves_nothing_behind(folder: Folder, tmp_path: Path):
    with Remote(folder) as remote, pytest.raises(ProvisionError, match="could not be unpacked"):
        remote.fetch(["echo", "this is no archive"], tmp_path / "out" / "model")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_link_to_nowhere_in_the_folder_is_named(folder: Folder, tmp_path: Path):
    source = tmp_path / "source"
    source.mkdir()
    (source / "lost.root").symlink_to(tmp_path / "nowhere.root")
    with Remote(folder) as remote, pytest.raises(ProvisionError, match=r"source could not be packed: .*lost\.root"):
        remote.send(source, str(tmp_path / "target"))


def test_keys_are_private_and_made_once(user_home: Path):
    path = user_home / "keys" / "id"
    first = make_key(path, "x")
    assert make_key(path, "x") == first
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_key_that_was_half_written_is_made_anew(user_home: Path):
    path = user_home / "id"
    path.write_text("half")
    assert make_key(path, "x").startswith("ssh-ed25519 ")


def test_lines_of_output_come_as_they_are_printed(folder: Folder):
    lines: list[str] = []
    with Remote(folder) as remote:
        status = remote.stream(["sh", "-c", "echo one; echo two >&2; exit 4"], lines.append)
    assert (status, sorted(lines)) == (4, ["one", "two"])
