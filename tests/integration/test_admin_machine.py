"""What administrators do, on a platform of this computer with a shared service and three users.

The tests are in the order of a platform's life, and each goes on from the one before.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from provision.framework import find_framework
from provision.remote import make_key
from tests.conftest import Command, long
from tests.e2e.shared_service import DOMAIN, SharedService
from tests.e2e.test_platform import without_limits
from tests.integration.check_mode import STATE, compared, the_same
from tests.oidc.fixtures import need_provider
from tests.oidc.provider import OidcProvider, oidc_provider
from tests.slurm.cluster import wait_until
from tests.storage.server import inability, sftp_server

pytestmark = [pytest.mark.machine, long]

USERS = {"alice": 7, "bob": 7, "root": 6}
"""How many models each has."""
QUOTA = 4
"""Jobs of a user that have not ended, by the policy of a platform that is given none."""
MODEL = "from xgboost import XGBClassifier\n\n\ndef model():\n    return XGBClassifier(n_estimators=20)\n"
SLOW = "import time\n\n\ndef model():\n    time.sleep(3600)\n"
SPACE = {"cpus": 2, "memory": "6GB", "disk": "20GB"}


@dataclass
class Lab:
    """The platform and what is known of it."""

    command: Command
    provider: OidcProvider
    folder: Path
    wheel: Path
    port: int
    service: SharedService | None = None
    before: dict[str, Any] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)

    def create(self) -> None:
        shared = ["--service", "shared", "--domain", DOMAIN, "--tls", "internal", "--client-id", "public"]
        shared += ["--iam", self.provider.issuer, "--iam-ca", str(self.provider.ca_file)]
        size = [word for name, value in SPACE.items() for word in (f"--{name}", str(value))]
        wheel = ["--mlaas4hep", str(self.wheel)]
        with self.timed("create"):
            self.command("create", "lab", "--cloud", "local", *shared, *size, *wheel, "--yes")
        folder = self.folder / f"service-{len(self.figures)}"
        folder.mkdir()
        self.service = SharedService(self.command, "lab", self.provider, folder)
        self.let_jobs_run()

    def let_jobs_run(self) -> None:
        """As a platform's own machine does: this computer's control groups may be of version 1."""
        if "cgroup2" not in self.there("stat", "--file-system", "--format=%T", "/sys/fs/cgroup"):
            without_limits(self.service)

    def root(self, script: str) -> str:
        """Run a script as root on the machine."""
        return self.there("sudo", "sh", "-ec", script)

    @contextlib.contextmanager
    def timed(self, what: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.figures[what] = round(time.monotonic() - began, 1)
        print(f"FIGURE {what}: {self.figures[what]} s", flush=True)

    def there(self, *words: str) -> str:
        return self.command("ssh", "lab", "--", *words)

    def admin(self, verb: str, *words: str, status: int = 0) -> dict[str, Any]:
        done = self.command.run("admin", verb, "lab", "--json", "--yes", *words)
        assert done.returncode == status, f"{done.stdout}{done.stderr}"
        return dict(json.loads(done.stdout)["platforms"][0])

    def compared(self, verb: str, *words: str, status: int = 0, **differs: set[str]) -> list[str]:
        """Run a verb in check mode, for real, and again; see `check_mode.compared`. `status` is that of check mode."""

        def run(*more: str) -> list[str]:
            return list(self.admin(verb, *words, *more, status=status if more else 0)["changed"])

        return compared(self.facts, run, **differs)

    def facts(self) -> str:
        """The state of the machine, see `check_mode`."""
        return self.there("sudo", "python3", "-c", STATE)

    @contextlib.contextmanager
    def storage_reached(self) -> Iterator[None]:
        """The machine finds this computer's SFTP server at the same port of its own loopback."""
        config = self.command("ssh", "lab", "--print-config").strip()
        way = ["-N", "-o", "ExitOnForwardFailure=yes", "-R", f"127.0.0.1:{self.port}:127.0.0.1:{self.port}"]
        forward = subprocess.Popen(["ssh", "-F", config, *way, "lab"], stdin=subprocess.DEVNULL)
        try:
            probe = ["bash", "-c", f"exec 3<>/dev/tcp/127.0.0.1/{self.port}"]
            wait_until(lambda: self.command.run("ssh", "lab", "--", *probe).returncode == 0)
            yield
        finally:
            forward.terminate()
            forward.wait()

    def submit(self, user: str, name: str, workspace: str = "work") -> str:
        with self.service.browser(self.service.token(user)) as client:
            answer = client.post("/api/v1/jobs", json={"workspace": workspace, "name": name})
            assert answer.status_code == 201, answer.text
            return str(answer.json()["id"])

    def unfinished(self, user: str) -> int:
        """How many jobs of a user wait or run; none has failed."""
        with self.service.browser(self.service.token(user)) as client:
            states = [job["state"] for job in client.get("/api/v1/jobs", params={"limit": 100}).json()["jobs"]]
        assert set(states) <= {"queued", "running", "finished"}, states
        return len(states) - states.count("finished")

    def state(self) -> dict[str, Any]:
        """What the users see: jobs, their logs, and what each model says to an event."""
        event = json.loads((self.folder / "work" / "event.json").read_text())
        seen: dict[str, Any] = {}
        for user in USERS:
            with self.service.browser(self.service.token(user)) as client:
                jobs = client.get("/api/v1/jobs", params={"limit": 100}).json()["jobs"]
                seen[user] = {
                    "jobs": {job["id"]: [job["state"], job["name"], job["model"]] for job in jobs},
                    "logs": {job["id"]: client.get(f"/api/v1/jobs/{job['id']}/log").text for job in jobs},
                    "models": {
                        model["name"]: client.post(f"/v2/models/{model['name']}/events", json=event).text
                        for model in client.get("/api/v1/models").json()["models"]
                    },
                    "workspaces": client.get("/api/v1/workspaces").json(),
                }
        return seen


@pytest.fixture(scope="module")
def lab(computer_with_machines: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A platform with three users, 20 models and a job that runs."""
    need_provider()
    if reason := inability():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("admin")
    home = folder / "home"
    home.mkdir(mode=0o700)
    os.environ.pop("SSH_AUTH_SOCK", None)
    command = Command(home)
    wheel = find_framework("", Path(os.environ["PROVISION_CACHE"])).wheel
    kept = folder / wheel.name
    shutil.copy(wheel, kept)
    (folder / "oidc").mkdir()
    with oidc_provider(folder / "oidc") as provider, sftp_server(folder / "sftp") as port:
        lab = Lab(command, provider, folder, kept, port)
        try:
            lab.create()
            fill(lab)
            yield lab
        finally:
            command.run("delete", "lab", "--yes")
            print("FIGURES", json.dumps(lab.figures), flush=True)


def fill(lab: Lab) -> None:
    """Each user trains some models; one job of alice runs on."""
    work = lab.folder / "work"
    make = ["mlaas4hep", "example-data", work, "--events", "500"]
    subprocess.run(make, env=lab.command.environment, check=True, capture_output=True)
    (work / "model.py").write_text(MODEL)
    slow = lab.folder / "slow"
    shutil.copytree(work, slow)
    (slow / "model.py").write_text(SLOW)
    with lab.service.provider_reached():
        for user in USERS:
            lab.service.client(user, "workspaces", "upload", str(work))
        lab.service.client("alice", "workspaces", "upload", str(slow))
        with lab.timed("20 trainings"):
            for number in range(max(USERS.values())):
                for user in [name for name, count in USERS.items() if number < count]:
                    wait_until(lambda user=user: lab.unfinished(user) < QUOTA, 1800)
                    lab.submit(user, f"m{number}")
            wait_until(lambda: not any(map(lab.unfinished, USERS)), 1800)
        lab.before["running"] = lab.submit("alice", "slow", "slow")
        wait_until(lambda: lab.state()["alice"]["jobs"][lab.before["running"]][0] == "running")
        lab.before["state"] = lab.state()


def storage(lab: Lab) -> list[str]:
    base = lab.folder / "sftp"
    (base / "store").mkdir(exist_ok=True)
    return [
        "--repository", f"sftp://root@127.0.0.1:{lab.port}/{base}/store",
        "--sftp-key", str(base / "client_key"),
        "--sftp-known-hosts", str(base / "known_hosts"),
    ]  # fmt: skip


def test_health_finds_nothing_wrong(lab: Lab):
    findings = lab.admin("health")["report"]["findings"]
    assert {"mlaas4hep.service", "service", "inference", "queue", "framework", "clock"} <= {
        f["check"] for f in findings
    }
    assert "1 running" in next(f["words"] for f in findings if f["check"] == "queue")
    assert any(f["check"].startswith("certificate") and "days left" in f["words"] for f in findings)


def test_a_destroyed_platform_is_restored_on_a_new_machine(lab: Lab):
    before, running = lab.before["state"], lab.before["running"]
    assert sum(len(seen["models"]) for seen in before.values()) >= 20
    with lab.storage_reached():
        with lab.timed("first backup, verified"):
            told = lab.admin("backup", *storage(lab))
        assert told["report"]["verified_files"] > 10
        with lab.timed("second backup, verified"):
            assert lab.admin("backup")["changed"] == ["Make a backup"]
    key = lab.command.home / "provision" / "backups" / "lab.key"
    assert key.stat().st_mode & 0o077 == 0
    assert key.read_text().strip() not in lab.command.logs().replace(key.read_text().strip(), "", 1)
    lab.command("delete", "lab", "--yes")
    lab.create()
    with lab.storage_reached():
        dry = lab.admin("restore", *storage(lab), "--dry-run")
        assert "/var/lib/mlaas4hep" in dry["report"]["replaces"]
        with lab.timed("restore"):
            told = lab.admin("restore", *storage(lab))
    print("FIGURE restore", told["report"], flush=True)
    assert told["report"]["interrupted"] == [running]
    with lab.service.provider_reached():
        after = lab.state()
        with lab.service.browser(lab.service.token("alice")) as alice:
            job = alice.get(f"/api/v1/jobs/{running}").json()
    assert job["state"] == "interrupted" and "restored from its backup" in job["reason"]
    for user in USERS:
        for seen in (before, after):
            seen[user]["jobs"].pop(running, None)
            seen[user]["logs"].pop(running, None)
        assert after[user] == before[user]
    # the new machine has made none of its own yet, and is told to
    report = lab.admin("health", status=1)["report"]
    assert [found["check"] for found in report["findings"] if not found["good"]] == ["backup"]
    with lab.storage_reached():
        lab.admin("backup")
    assert lab.admin("health")["state"] == "ok"


@pytest.mark.parametrize("verb", ["health", "precheck", "audit", "gpu"])
def test_what_only_looks_changes_nothing(lab: Lab, verb: str):
    before = lab.facts()
    lab.command.run("admin", verb, "lab")
    the_same(before, lab.facts())


def test_check_mode_predicts_what_goes(lab: Lab):
    lab.root("echo old > /var/log/lab.log.1; touch -d '100 days ago' /var/log/lab.log.1")
    assert lab.compared("clean") == ["Remove old logs and downloaded packages"]


def test_check_mode_predicts_accounts(lab: Lab, tmp_path: Path):
    accounts = tmp_path / "accounts.yml"
    accounts.write_text(json.dumps([{"name": "anna", "ssh_keys": [make_key(tmp_path / "anna", "anna")], "sudo": True}]))
    # not predicted: the folder that the keys are written into is not there yet
    assert lab.compared("users", "--accounts", str(accounts), unpredicted={"users : Write the keys"})
    assert lab.compared("users", "--lock", "anna")
    assert lab.compared("users", "--remove", "anna", "--home", "remove")
