"""What administrators do, on a platform of this computer with a shared service and three users.

The tests are in the order of a platform's life, and each goes on from the one before.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from provision.configure import platform_variables, run_playbook
from provision.framework import find_framework
from provision.record import Home
from provision.remote import make_key
from tests.conftest import Command, long
from tests.e2e.shared_service import DOMAIN, SharedService
from tests.integration.check_mode import STATE, compared, the_same
from tests.integration.killed import killed
from tests.integration.releases import variant
from tests.oidc.fixtures import need_provider
from tests.oidc.provider import OidcProvider, log_in, oidc_provider
from tests.slurm.cluster import wait_until
from tests.storage.server import inability, sftp_server

pytestmark = [pytest.mark.machine, long]

USERS = {"alice": 7, "bob": 7, "root": 6}
"""How many models each has."""
QUOTA = 4
"""Jobs of a user that have not ended, by the policy of a platform that is given none."""
MODEL = "from xgboost import XGBClassifier\n\n\ndef model():\n    return XGBClassifier(n_estimators=20)\n"
SLOW = "import time\n\n\ndef model():\n    time.sleep(3600)\n"
NO_PACKAGE_YET = {
    "hardening : Have security updates come by themselves",
    "hardening : Run their timers",
    "hardening : Say whom fail2ban keeps out",
    "hardening : Run fail2ban",
    "hardening : Restart fail2ban",
}
"""Not predicted: the packages whose settings these are, are not there yet."""
SPACE = {"cpus": 2, "memory": "6GB", "disk": "20GB"}


NO_LIMITS = """
settings=/etc/mlaas4hep-lab.toml drop_in=/etc/systemd/system/mlaas4hep.service.d
cp --archive /etc/mlaas4hep/service.toml $settings
printf '[executor.local]\\nlimits = "where possible"\\n' >> $settings
mkdir -p $drop_in
printf "[Service]\\nEnvironment=MLAAS4HEP_CONFIG=$settings\\n" > $drop_in/lab.conf
systemctl daemon-reload
systemctl restart mlaas4hep.service
"""
"""The service gets settings of its own, which no role changes, and with which jobs run although nothing limits them."""
BACK_AND_FORTH = {"Use the former virtual environment", "Restart the service"}
PIPES: dict[str, Any] = {
    "stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True,
}  # fmt: skip


NO_BACKUPS_YET = {"backup : Have backups made"}
"""Not predicted: the timer's unit is not made yet."""
PACKAGES = """
for name in plain secure; do
  mkdir -p /srv/archive/$name
  cd /srv/archive/$name
  for version in 1 2; do
    mkdir -p /srv/lab-$name-$version/DEBIAN
    { printf 'Package: lab-%s\\nVersion: %s\\nArchitecture: all\\n' $name $version
      printf 'Maintainer: lab <lab@example.org>\\nDescription: lab\\n'
    } > /srv/lab-$name-$version/DEBIAN/control
    dpkg-deb --build /srv/lab-$name-$version .
  done
  dpkg --install lab-${name}_1_all.deb
  file=lab-${name}_2_all.deb
  { dpkg-deb --field $file
    echo "Filename: ./$file"
    echo "Size: $(stat --format=%s $file)"
    echo "SHA256: $(sha256sum $file | cut -d ' ' -f 1)"
  } > Packages
  echo "Suite: lab-$name" | sed s/secure/security/ > Release
  echo "deb [trusted=yes] file:/srv/archive/$name ./" > /etc/apt/sources.list.d/lab-$name.list
done
apt-get update --quiet
"""
"""Two packages that there are newer versions of, one of them for security."""


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
        self.meet()
        self.let_jobs_run()

    def meet(self) -> None:
        """Trust the machine's own CA, of which there is another one after a creation or a restore."""
        folder = Path(tempfile.mkdtemp(prefix="service-", dir=self.folder))
        self.service = SharedService(self.command, "lab", self.provider, folder)

    def let_jobs_run(self) -> None:
        """As a platform's own machine does: this computer's control groups may be of version 1."""
        if "cgroup2" in self.there("stat", "--file-system", "--format=%T", "/sys/fs/cgroup"):
            return
        self.root(NO_LIMITS)
        with self.service.browser() as anybody:
            wait_until(lambda: anybody.get("/ready").status_code == 200)

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

    def findings(self) -> list[dict[str, Any]]:
        """What `health` finds, without this computer's disk, which its machines share."""
        done = self.command.run("admin", "health", "lab", "--json")
        findings = json.loads(done.stdout)["platforms"][0]["report"]["findings"]
        return [found for found in findings if found["check"] != "disk of /"]

    def bad(self) -> list[str]:
        """Which of them are bad."""
        return sorted(found["check"] for found in self.findings() if not found["good"])

    def compared(self, verb: str, *words: str, status: int = 0, **differs: set[str]) -> list[str]:
        """Run a verb in check mode, for real, and again; see `check_mode.compared`. `status` is that of check mode."""

        def run(*more: str) -> list[str]:
            return list(self.admin(verb, *words, *more, status=status if more else 0)["changed"])

        return compared(self.facts, run, **differs)

    def foretold(self, verb: str, *words: str) -> set[str]:
        """What check mode tells that a verb would change; it changes nothing itself."""
        before = self.facts()
        changed = self.admin(verb, *words, "--check")["changed"]
        the_same(before, self.facts())
        return set(changed)

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

    def predicting(self, user: str = "bob") -> None:
        """Wait until each model of a user says what it said before."""
        event = json.loads((self.folder / "work" / "event.json").read_text())
        models = self.before["state"][user]["models"]

        def ask(client: httpx.Client, name: str) -> str:
            return client.post(f"/v2/models/{name}/events", json=event).text

        with self.service.provider_reached(), self.service.browser(self.service.token(user)) as client:
            for name, said in models.items():
                wait_until(lambda name=name, said=said: ask(client, name) == said)

    def submit(self, user: str, name: str, workspace: str = "work", **more: Any) -> str:
        with self.service.browser(self.service.token(user)) as client:
            answer = client.post("/api/v1/jobs", json={"workspace": workspace, "name": name, **more})
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
    """A platform."""
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
            yield lab
        finally:
            command.run("delete", "lab", "--yes")
            print("FIGURES", json.dumps(lab.figures), flush=True)


@pytest.fixture(scope="module")
def filled(lab: Lab) -> None:
    """Three users have 20 models; one job of alice runs on."""
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


@pytest.mark.usefixtures("filled")
def test_health_finds_nothing_wrong(lab: Lab):
    findings = lab.findings()
    assert {"mlaas4hep.service", "service", "inference", "queue", "framework", "clock"} <= {
        f["check"] for f in findings
    }
    assert "1 running" in next(f["words"] for f in findings if f["check"] == "queue")
    assert any(f["check"].startswith("certificate") and "days left" in f["words"] for f in findings)


@pytest.mark.usefixtures("filled")
def test_a_destroyed_platform_is_restored_on_a_new_machine(lab: Lab):
    before, running = lab.before["state"], lab.before["running"]
    assert sum(len(seen["models"]) for seen in before.values()) >= 20
    with lab.storage_reached():
        foretold = lab.foretold("backup", *storage(lab))
        with lab.timed("first backup, verified"):
            told = lab.admin("backup", *storage(lab))
        assert foretold ^ set(told["changed"]) == NO_BACKUPS_YET
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
    lab.meet()
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
    assert lab.bad() == ["backup"]
    with lab.storage_reached():
        lab.admin("backup")
    assert lab.bad() == []


@pytest.mark.usefixtures("filled")
def test_a_drained_platform_takes_no_jobs_and_goes_on_predicting(lab: Lab):
    lab.compared("drain", "--reason", "Cleaning the room")
    lab.root("systemctl restart mlaas4hep.service")
    with lab.service.browser() as anybody:
        wait_until(lambda: anybody.get("/ready").status_code == 200)
    with lab.service.provider_reached(), lab.service.browser(lab.service.token("bob")) as client:
        answer = client.post("/api/v1/jobs", json={"workspace": "work"})
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "300")
        assert "Cleaning the room" in answer.text
        event = json.loads((lab.folder / "work" / "event.json").read_text())
        wait_until(lambda: client.post("/v2/models/m0/events", json=event).status_code == 200)
        assert "drained" in json.dumps(lab.findings())
        assert lab.compared("resume") == ["Take jobs again"]
        job = client.post("/api/v1/jobs", json={"workspace": "work", "name": "after"}).json()["id"]
        wait_until(lambda: client.get(f"/api/v1/jobs/{job}").json()["state"] == "finished")


@pytest.mark.parametrize("verb", ["health", "precheck", "audit", "gpu"])
def test_what_only_looks_changes_nothing(lab: Lab, verb: str):
    before = lab.facts()
    done = lab.command.run("admin", verb, "lab", "--json")
    told = json.loads(done.stdout)["platforms"][0]
    assert not told["changed"], told
    assert told["state"] == "ok" or told["report"], told
    the_same(before, lab.facts())


def test_check_mode_predicts_accounts(lab: Lab, tmp_path: Path):
    accounts = tmp_path / "accounts.yml"
    accounts.write_text(json.dumps([{"name": "anna", "ssh_keys": [make_key(tmp_path / "anna", "anna")], "sudo": True}]))
    assert lab.compared("users", "--accounts", str(accounts))
    assert lab.compared("users", "--lock", "anna")
    assert lab.compared("users", "--remove", "anna", "--home", "remove")


def test_check_mode_predicts_updates_of_packages(lab: Lab):
    def versions() -> str:
        return lab.there("dpkg-query", "--show", "--showformat=${Version} ", "lab-plain", "lab-secure")

    lab.root(PACKAGES)
    assert versions() == "1 1 "
    assert lab.compared("update", "--packages", "security", "--no-framework") == ["Update the packages"]
    assert versions() == "1 2 "
    assert lab.compared("update", "--packages", "all", "--no-framework") == ["Update the packages"]
    assert versions() == "2 2 "
    lab.root("rm /etc/apt/sources.list.d/lab-*.list; dpkg --purge lab-plain lab-secure")


def test_check_mode_predicts_hardening(lab: Lab):
    assert lab.compared("hardening", status=1, unpredicted=NO_PACKAGE_YET)


def test_check_mode_predicts_that_sessions_end(lab: Lab):
    with lab.service.provider_reached(), lab.service.browser() as browser, lab.provider.browser() as at_provider:
        begun = browser.get("/login")
        back = log_in(at_provider, at_provider.get(begun.headers["Location"]), "alice")
        browser.get(back.headers["Location"])
        assert browser.get("/api/v1/me").status_code == 200
        assert lab.compared("rotate") == ["End the sessions of browsers"]
        assert browser.get("/api/v1/me").status_code == 401


def test_check_mode_predicts_that_a_machine_without_gpus_stays_as_it_is(lab: Lab):
    assert lab.compared("gpu") == []


def test_check_mode_predicts_renewals(lab: Lab):
    folder = f"/etc/web-proxy/internal/{DOMAIN}"
    lab.root(
        f"cd {folder}; openssl req -new -key server.pem -subj / -addext subjectAltName=DNS:{DOMAIN} -out request.pem;"
        " openssl x509 -req -in request.pem -copy_extensions copy -CA ca.pem -CAkey ca.key -set_serial 7 -days 0"
        " -out short.pem; openssl pkey -in server.pem >> short.pem; mv short.pem server.pem; systemctl reload nginx"
    )
    # the CA of the tests' issuer is valid for two days
    assert lab.compared("certificates", "--days", "1", status=1) == ["Renew the internal CA's certificate"]


def test_check_mode_predicts_what_goes(lab: Lab):
    lab.root("echo old > /var/log/lab.log.1; touch -d '100 days ago' /var/log/lab.log.1")
    assert lab.compared("clean") == ["Remove old logs and downloaded packages"]


def test_check_mode_predicts_what_repairs_a_platform(lab: Lab):
    """The playbook of a creation, of which `audit` is the check mode."""
    folder = Home(lab.command.home / "provision").folder("lab")
    variables = platform_variables(folder.load(), find_framework(str(lab.wheel), Path(os.environ["PROVISION_CACHE"])))

    def run(*more: str) -> list[str]:
        return run_playbook(folder, "platform.yml", variables, lambda _: None, check=bool(more)).changed_tasks

    lab.root("echo '# by hand' >> /etc/mlaas4hep/policy.toml; rm /etc/polkit-1/rules.d/50-mlaas4hep.rules")
    lab.root("chmod 777 /usr/local/bin/mlaas4hep; systemctl disable nginx; echo '# by hand' >> /etc/nginx/nginx.conf")
    told = lab.admin("audit")["changed"]
    done = compared(lab.facts, run)
    assert done == told
    assert {"mlaas4hep : Write the policy", "mlaas4hep : Put the command on everyone's path"} <= set(done)


def test_a_service_that_was_stopped_is_found_and_repaired(lab: Lab):
    lab.there("sudo", "systemctl", "stop", "mlaas4hep.service")
    assert lab.bad() == ["inference", "mlaas4hep.service", "service"]
    told = lab.admin("update", "--packages", "none", "--no-framework")
    assert told["changed"] == ["Restart the service"]
    assert lab.bad() == []
    assert lab.admin("update", "--packages", "none", "--no-framework")["changed"] == []


@pytest.mark.usefixtures("filled")
def test_a_lost_data_folder_is_found_and_repaired(lab: Lab):
    lab.there("sudo", "systemctl", "stop", "mlaas4hep.service")
    lab.there("sudo", "rm", "-rf", "/var/lib/mlaas4hep")
    assert "service" in lab.bad()
    with lab.storage_reached():
        assert lab.compared("restore", again={"Restore"}) == ["Restore"]
    assert lab.bad() == []
    lab.predicting()


def in_use(lab: Lab) -> str:
    return lab.there("readlink", "/opt/mlaas4hep/venv").strip()


@pytest.mark.usefixtures("filled")
def test_an_update_that_is_killed_leaves_the_platform_serving_and_is_completed(lab: Lab):
    first = in_use(lab)
    # it would be waited for, unless a restore has interrupted it
    with lab.service.provider_reached(), lab.service.browser(lab.service.token("alice")) as alice:
        alice.post(f"/api/v1/jobs/{lab.before['running']}/cancel")
    new = variant(lab.wheel, lab.folder / "new", "mlaas4hep/__init__.py", "\n# a newer release\n")
    words = ["--packages", "none", "--wheel", str(new)]
    for task, switched in (
        ("mlaas4hep : Install the locked dependencies", False),  # it is made
        ("Wait for the jobs that run", False),  # it is whole, and the service drained
        ("mlaas4hep : Put the command on everyone's path", True),  # it is in use, and the service runs the former one
        ("Restart the service", True),
    ):
        killed(lab.command, "", task, "admin", "update", "lab", "--json", *words)
        assert (in_use(lab) != first) == switched
        lab.predicting()
    with lab.timed("update, completed after four kills"):
        told = lab.admin("update", *words)
    lab.predicting()
    assert lab.bad() == []
    assert told["report"]["framework"] == Path(in_use(lab)).name
    assert lab.admin("update", *words)["changed"] == []
    assert "drained" not in json.dumps(lab.findings())


@pytest.mark.usefixtures("filled")
def test_the_former_release_is_there_again_and_then_the_newer_one(lab: Lab):
    newer = in_use(lab)
    with lab.timed("rollback"):
        told = lab.admin("update", "--rollback")
    former = in_use(lab)
    assert former != newer
    assert told["report"] == {"framework": Path(former).name, "before": Path(newer).name}
    lab.predicting()
    assert lab.bad() == []
    # there and back
    assert lab.compared("update", "--rollback", again=BACK_AND_FORTH)
    assert in_use(lab) == former
    lab.admin("update", "--rollback")
    assert in_use(lab) == newer


@pytest.mark.usefixtures("filled")
def test_jobs_are_held_by_an_update_and_let_go_after_it(lab: Lab):
    new = variant(lab.wheel, lab.folder / "third", "mlaas4hep/__init__.py", "\n# the third release\n")
    words = ["admin", "update", "lab", "--packages", "none", "--wheel", str(new), "--json"]
    with lab.service.provider_reached(), lab.service.browser(lab.service.token("alice")) as alice:

        def state(job: str) -> str:
            return str(alice.get(f"/api/v1/jobs/{job}").json()["state"])

        running = lab.submit("alice", "long", "slow")
        wait_until(lambda: state(running) == "running")
        held = lab.submit("alice", "held", resources={"cpus": SPACE["cpus"]})
        with subprocess.Popen(["provision", *words], env=lab.command.environment, **PIPES) as update:
            drained = ["ssh", "lab", "--", "sudo", "test", "-e", "/var/lib/mlaas4hep/drained.json"]
            wait_until(lambda: lab.command.run(*drained).returncode == 0 or update.poll() is not None, 1800)
            refused = alice.post("/api/v1/jobs", json={"workspace": "work"})
            assert refused.status_code == 503 and "is being updated" in refused.text
            # it is waited for, and when there is room, what is held does not take it
            assert (state(running), state(held)) == ("running", "queued")
            assert alice.post(f"/api/v1/jobs/{running}/cancel").status_code < 300
            wait_until(lambda: state(running) == "cancelled")
            assert state(held) == "queued"
            said, complaint = update.communicate()
        assert update.returncode == 0, complaint
        assert json.loads(said)["platforms"][0]["report"]["framework"] == Path(in_use(lab)).name
        wait_until(lambda: state(held) == "finished")


def test_a_release_that_does_not_start_is_taken_back(lab: Lab):
    before = in_use(lab)
    text = "\nraise SystemExit('not today')\n"
    broken = variant(lab.wheel, lab.folder / "broken", "mlaas4hep/service/serve.py", text)
    complaint = lab.command.fails("admin", "update", "lab", "--packages", "none", "--wheel", str(broken), status=1)
    assert "The former framework is in use again" in complaint
    assert in_use(lab) == before
    assert lab.bad() == []


def test_the_machine_is_restarted_when_it_has_to_be(lab: Lab):
    lab.there("sudo", "touch", "/run/reboot-required")
    words = ["--packages", "none", "--no-framework"]
    assert lab.admin("update", *words)["report"]["restart"] == "needed"
    boot = lab.there("cat", "/proc/1/stat").split()[21]
    assert lab.foretold("update", *words, "--reboot") == {"Restart the machine"}
    with lab.timed("restart of the machine"):
        told = lab.admin("update", *words, "--reboot")
    assert (told["changed"], told["report"]["restart"]) == (["Restart the machine"], "done")
    assert lab.there("cat", "/proc/1/stat").split()[21] != boot
    assert lab.bad() == []
