"""`platform-backup` of the role backup, with restic itself: what is copied comes back, and no key is shown."""

from __future__ import annotations

import getpass
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
from tests.debian import do_without, lacking
from tests.storage.server import BUCKET, inability, s3_server, sftp_server
from tests.unit.mlaas4hep.service_parts import ALICE, BOB, ended, running, submit, until, upload

PROGRAM = REPOSITORY / "roles" / "backup" / "files" / "platform-backup"
KEY = "a-key-that-nobody-sees"
WAITS = "until [ -e go ]; do sleep 0.02; done; mkdir model; echo '{}' > model/bundle.json"


@pytest.fixture(scope="module")
def restic() -> None:
    if reason := lacking({"restic": "restic"}):
        do_without(reason)


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

    @property
    def former(self) -> Path:
        """Where the data stay that a restore has replaced."""
        return self.data / ".before-restore" if self.data.is_mount() else self.disk / "state" / "before-restore"

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


@pytest.fixture(params=["a folder", "a disk of its own"])
def place(request: pytest.FixtureRequest, backed_up: tuple[Machine, dict]) -> Iterator[Machine]:
    """A new machine, whose data folder is one of its disk, or another file system."""
    machine = new_machine(backed_up)
    if request.param == "a folder":
        yield machine
        return
    if os.geteuid():
        pytest.skip("root mounts")
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", machine.data], check=True)
    try:
        fill(machine)
        (machine.data / ".data-volume").write_text("this one")
        yield machine
    finally:
        subprocess.run(["umount", machine.data], check=True)


def new_machine(backed_up: tuple[Machine, dict], name: str = "lab") -> Machine:
    base = backed_up[1]["base"]
    shutil.rmtree(base / "disk", ignore_errors=True)
    machine = Machine(base / "disk", base / "repository", name)
    fill(machine)
    return machine


def fill(machine: Machine) -> None:
    """What a machine has before anything is restored."""
    (machine.etc / "policy.toml").write_text("# of the new machine\n")
    (machine.etc / "platform.json").write_text("the new machine")
    (machine.data / "cache").mkdir()
    (machine.data / "cache" / "kernel").write_text("compiled here")
    (machine.data / "of-the-new-machine").touch()


def test_a_backup_is_verified_and_leaves_nothing_behind(backed_up):
    facts = backed_up[1]
    told = facts["told"]
    assert told["ok"] and told["verified_files"] >= 5 and told["database"]["kind"] == "sqlite"
    assert not [name for name in facts["before"] if name.startswith(".backup")]
    state = facts["base"] / "lost" / "state"
    assert json.loads((state / "last.json").read_text())["snapshot"] == told["snapshot"]
    assert [path for path in state.iterdir() if path.name.startswith("sample")] == []


def test_what_was_there_is_there_again_on_a_new_machine(backed_up):
    the_new_machine_has_what_was_there(backed_up[1], new_machine(backed_up))


def the_new_machine_has_what_was_there(facts: dict, machine: Machine) -> None:
    told = machine("restore")
    assert told["interrupted"] == [facts["runs"]]
    restored = machine.files()
    assert restored.pop("cache/kernel") == b"compiled here"
    assert restored.pop(".data-volume", b"") == (b"this one" if machine.data.is_mount() else b"")
    restored = {name: content for name, content in restored.items() if not name.startswith(".before-restore/")}
    lost = {name for name, content in facts["before"].items() if restored.get(name) != content}
    assert {name for name in lost if not name.startswith("metrics/")} <= {"drained.json"}
    assert {"of-the-new-machine", ".restored"} & set(restored) == set()
    assert (machine.former / "of-the-new-machine").exists()
    assert list(machine.disk.rglob("*.restoring")) == []
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
def test_a_restore_that_is_killed_anywhere_is_run_again_and_keeps_what_was_there(place: Machine):
    machine = place
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
    assert (machine.former / "of-the-new-machine").exists()
    assert (machine.data / "cache" / "kernel").read_text() == "compiled here"
    assert not (machine.data / ".restored").exists()


@long
def test_a_service_that_does_not_start_brings_the_former_state_back(place: Machine):
    machine = place
    broken = json.loads((machine.disk / "backup.json").read_text())
    (machine.disk / "backup.json").write_text(json.dumps({**broken, "python": "/bin/false"}))
    before = machine.files()
    for _ in range(2):
        assert "load failed" in machine.fails("restore")
        assert {n: text for n, text in machine.files().items() if not n.startswith(".restoring/")} == before


@long
@pytest.mark.parametrize("place", ["a disk of its own"], indirect=True)
def test_data_on_a_disk_of_their_own_are_restored(place: Machine, backed_up):
    assert place.data.is_mount()
    the_new_machine_has_what_was_there(backed_up[1], place)


@long
def test_lost_data_are_restored(backed_up):
    machine = new_machine(backed_up)
    shutil.rmtree(machine.data)
    machine("restore")
    assert (machine.data / "jobs" / backed_up[1]["alice"] / "log").exists()


@pytest.fixture(params=["sftp", "s3"])
def elsewhere(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[dict[str, str]]:
    """Address and files of a storage that is no folder of the machine."""
    if request.param == "s3":
        credentials = tmp_path / "credentials"
        credentials.write_text("AWS_ACCESS_KEY_ID=lab\nAWS_SECRET_ACCESS_KEY=nobody-sees-it\n")
        with s3_server() as port:
            yield {"repository": f"s3:http://127.0.0.1:{port}/{BUCKET}/lab", "environment": str(credentials)}
        return
    if reason := inability():
        do_without(reason)
    folder = tmp_path / "sftp"
    with sftp_server(folder) as port:
        (tmp_path / "ssh_config").write_text(
            f"Host *\n  IdentityFile {folder}/client_key\n  UserKnownHostsFile {folder}/known_hosts\n"
            "  StrictHostKeyChecking yes\n  BatchMode yes\n"
        )
        user, config = getpass.getuser(), str(tmp_path / "ssh_config")
        yield {"repository": f"sftp://{user}@127.0.0.1:{port}/{folder}/store", "ssh_config": config}


@long
def test_a_backup_that_lies_elsewhere_is_verified_and_restored(backed_up, elsewhere: dict[str, str]):
    machine = new_machine(backed_up)
    machine("restore")
    before = machine.files()
    settings = json.loads((machine.disk / "backup.json").read_text())
    (machine.disk / "backup.json").write_text(json.dumps({**settings, **elsewhere}))
    told = machine("run")
    assert told["ok"] and told["verified_files"] >= 5
    shutil.rmtree(machine.data)
    machine("restore")
    restored = machine.files()
    assert {name: restored.get(name) for name in before if not name.startswith(("cache/", "metrics/", "store/"))} == {
        name: text for name, text in before.items() if not name.startswith(("cache/", "metrics/", "store/"))
    }
    assert len(machine("list")) == 1


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


def test_a_repository_that_is_no_folder_is_told_in_a_sentence(restic: None, tmp_path: Path):
    (tmp_path / "repository").touch()
    machine = Machine(tmp_path / "disk", tmp_path / "repository")
    assert f"platform-backup: {tmp_path / 'repository'}: File exists" in machine.fails("run")
    last = json.loads((machine.disk / "state" / "last.json").read_text())
    assert not last["ok"] and last["reason"].endswith("repository: File exists")
