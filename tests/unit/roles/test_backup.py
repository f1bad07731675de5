"""`platform-backup` of the role backup, with restic itself: what is copied comes back, and no key is shown."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, long
from tests.debian import lacking
from tests.unit.mlaas4hep.service_parts import ALICE, BOB, ended, running, submit, until, upload

PROGRAM = REPOSITORY / "roles" / "backup" / "files" / "platform-backup"
KEY = "a-key-that-nobody-sees"
WAITS = "until [ -e go ]; do sleep 0.02; done; mkdir model; echo '{}' > model/bundle.json"


@pytest.fixture(scope="module")
def restic() -> None:
    if reason := lacking({"restic": "restic"}):
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)


class Machine:
    """A folder in the place of a machine's disk."""

    def __init__(self, disk: Path, repository: Path, name: str = "lab") -> None:
        self.disk, self.data = disk, disk / "data"
        self.etc = disk / "etc"
        self.etc.mkdir(parents=True)
        self.data.mkdir()
        (self.etc / "platform.json").write_text(disk.name)
        (self.etc / "policy.toml").write_text(f"# {disk.name}\n")
        (self.etc / "service.toml").write_text(
            f'data = "{self.data}"\n[authentication]\ntoken_file = "{self.data}/token"\n'
        )
        (disk / "key").write_text(KEY)
        told = {
            "name": name, "repository": str(repository), "data": str(self.data), "configuration": [str(self.etc)],
            "not_restored": [str(self.etc / "platform.json")],
            "python": sys.executable, "account": "", "services": [], "ready": "", "key": str(disk / "key"),
            "environment": str(disk / "credentials"), "ssh_config": str(disk / "ssh_config"), "keep": {"last": 2},
            "sample": 50, "state": str(disk / "state"),
        }  # fmt: skip
        (disk / "backup.json").write_text(json.dumps(told))

    def start(self, *words: str, **more: str) -> subprocess.Popen[str]:
        environment = {
            **os.environ,
            "PLATFORM_BACKUP_CONFIG": str(self.disk / "backup.json"),
            "MLAAS4HEP_CONFIG": str(self.etc / "service.toml"),
            **more,
        }
        return subprocess.Popen(
            [sys.executable, str(PROGRAM), *words], env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def __call__(self, *words: str):
        process = self.start(*words)
        out, err = process.communicate()
        assert process.returncode == 0, err
        assert KEY not in out + err
        return json.loads(out)

    def fails(self, *words: str) -> str:
        process = self.start(*words)
        out, err = process.communicate()
        assert process.returncode == 1, out
        assert "Traceback" not in err
        return err

    def files(self) -> dict[str, bytes]:
        left = (".lock", "-wal", "-shm")
        return {
            str(path.relative_to(self.data)): path.read_bytes()
            for path in self.data.rglob("*")
            if path.is_file() and not path.name.endswith(left) and "sqlite" not in path.name
        }


@pytest.fixture(scope="module")
def backed_up(restic: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Machine, dict]]:
    """A platform with a finished job of each of two users and one that runs; its backup was made meanwhile."""
    base = tmp_path_factory.mktemp("backup")
    # the disks of both machines have the same paths, one after the other, as those of two real machines
    machine = Machine(base / "disk", base / "repository")
    facts: dict = {"base": base}
    with running(machine.disk, WAITS) as service:
        for user in (ALICE, BOB):
            client = service.client(user)
            upload(client)
            facts[user.subject] = key = submit(client)["id"]
            (machine.data / "jobs" / key / "go").touch()
            assert ended(client, key)["state"] == "finished"
        client = service.client()
        facts["runs"] = key = submit(client)["id"]
        until(lambda: client.get(f"/api/v1/jobs/{key}").json(), lambda job: job["state"] == "running")
        facts["told"] = machine("run")
        facts["before"] = machine.files()
    machine.disk.rename(base / "lost")
    yield machine, facts


def new_machine(backed_up: tuple[Machine, dict], name: str = "lab") -> Machine:
    base = backed_up[1]["base"]
    shutil.rmtree(base / "disk", ignore_errors=True)
    machine = Machine(base / "disk", base / "repository", name)
    (machine.etc / "policy.toml").write_text("# of the new machine\n")
    (machine.etc / "platform.json").write_text("the new machine")
    (machine.data / "cache").mkdir()
    (machine.data / "cache" / "kernel").write_text("compiled here")
    (machine.data / "of-the-new-machine").touch()
    return machine


def test_a_backup_is_verified_and_leaves_nothing_behind(backed_up):
    facts = backed_up[1]
    told = facts["told"]
    assert told["ok"] and told["verified_files"] >= 5 and told["database"]["kind"] == "sqlite"
    assert not [name for name in facts["before"] if name.startswith(".backup")]
    state = facts["base"] / "lost" / "state"
    assert json.loads((state / "last.json").read_text())["snapshot"] == told["snapshot"]
    assert [path for path in state.iterdir() if path.name.startswith("sample")] == []


def test_what_was_there_is_there_again_on_a_new_machine(backed_up):
    facts, machine = backed_up[1], new_machine(backed_up)
    told = machine("restore")
    assert told["interrupted"] == [facts["runs"]]
    restored = machine.files()
    assert restored.pop("cache/kernel") == b"compiled here"
    lost = {name for name, content in facts["before"].items() if restored.get(name) != content}
    assert {name for name in lost if not name.startswith("metrics/")} <= {"drained.json"}
    assert {"of-the-new-machine", ".restored"} & set(restored) == set()
    assert (machine.disk / "state" / "before-restore" / "of-the-new-machine").exists()
    assert not machine.data.with_name("data.restoring").exists()
    assert (machine.etc / "policy.toml").read_text() == "# disk\n"
    assert (machine.etc / "platform.json").read_text() == "the new machine"
    with running(machine.disk) as service:
        for user in (ALICE, BOB):
            job = service.client(user).get(f"/api/v1/jobs/{facts[user.subject]}").json()
            assert job["state"] == "finished" and job["model"]["version"] == 1
            assert "training" not in service.client(user).get(f"/api/v1/jobs/{job['id']}/log").text
            assert service.client(user).get(f"/api/v1/jobs/{job['id']}/bundle").status_code == 200
        job = service.client().get(f"/api/v1/jobs/{facts['runs']}").json()
        assert job["state"] == "interrupted" and "restored from its backup" in job["reason"]
        again = service.client().post(f"/api/v1/jobs/{job['id']}/resubmit").json()["id"]
        assert ended(service.client(), again)["state"] == "finished"


def test_a_dry_run_changes_nothing(backed_up):
    machine = new_machine(backed_up)
    before = {path: path.read_bytes() for path in machine.disk.rglob("*") if path.is_file()}
    told = machine("restore", "--dry-run")
    assert told["replaces"] == [str(machine.data), str(machine.etc)] and told["files"] > 10
    after = {path: path.read_bytes() for path in machine.disk.rglob("*") if path.is_file()}
    assert {path: text for path, text in after.items() if not path.is_relative_to(machine.disk / "state")} == before


@long
def test_a_restore_that_is_killed_anywhere_is_run_again_and_keeps_what_was_there(backed_up):
    machine = new_machine(backed_up)
    # the service's program is slow in the first run: it is killed between the exchange and the end
    slow = machine.disk / "slow"
    slow.write_text(f'#!/bin/sh\ntouch "{machine.disk}/reached"\nexec sleep 600\n')
    slow.chmod(0o755)
    settings = json.loads((machine.disk / "backup.json").read_text())
    (machine.disk / "slow.json").write_text(json.dumps({**settings, "python": str(slow)}))
    process = machine.start("restore", PLATFORM_BACKUP_CONFIG=str(machine.disk / "slow.json"))
    deadline = time.monotonic() + 300
    while not (machine.disk / "reached").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for pid in (process.pid, *map(int, children)):
        os.kill(pid, signal.SIGKILL)
    process.communicate()
    machine("restore")
    assert (machine.disk / "state" / "before-restore" / "of-the-new-machine").exists()
    assert (machine.data / "cache" / "kernel").read_text() == "compiled here"
    assert not (machine.data / ".restored").exists()


@long
def test_a_service_that_does_not_start_brings_the_former_state_back(backed_up):
    machine = new_machine(backed_up)
    broken = json.loads((machine.disk / "backup.json").read_text())
    (machine.disk / "backup.json").write_text(json.dumps({**broken, "python": "/bin/false"}))
    assert "load failed" in machine.fails("restore")
    assert (machine.data / "of-the-new-machine").exists()
    assert (machine.data / "cache" / "kernel").exists()


@long
def test_lost_data_are_restored(backed_up):
    machine = new_machine(backed_up)
    shutil.rmtree(machine.data)
    machine("restore")
    assert (machine.data / "jobs" / backed_up[1]["alice"] / "log").exists()


def test_what_cannot_be_restored_is_told_in_a_sentence(backed_up):
    machine = new_machine(backed_up, name="other")
    assert "There is no backup yet of other." in machine.fails("restore")
    machine = new_machine(backed_up)
    assert "There is no backup 0123 of lab." in machine.fails("restore", "0123")
    (machine.disk / "key").write_text("another")
    assert "The key does not open the repository" in machine.fails("restore")
    assert "The key does not open the repository" in machine.fails("run")
    last = json.loads((machine.disk / "state" / "last.json").read_text())
    assert not last["ok"] and "key" in last["reason"]
    (machine.disk / "backup.json").unlink()
    assert "`provision admin backup` writes them" in machine.fails("list")
