"""A whole platform: created, trained on, fetched from, deleted; on a real OpenStack and on this computer."""

from __future__ import annotations

import json
import re
import subprocess
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from provision.record import Folder, Home
from provision.remote import Remote
from provision.uninstall import installed, uninstall
from tests.conftest import REPOSITORY, Command
from tests.devcloud.fixtures import TestCloud, listing
from tests.e2e.shared_service import DOMAIN, SharedService
from tests.integration.killed import killed
from tests.oidc.fixtures import need_provider
from tests.oidc.provider import OidcProvider, oidc_provider
from tests.slurm.cluster import wait_until

DATA = REPOSITORY.parent / "shared" / "data"


@contextmanager
def watching_processes(secrets: list[str]) -> Iterator[Callable[[], set[str]]]:
    """Look at every command line of the computer all the while; gives the secrets that were seen."""
    seen: set[str] = set()
    stop = threading.Event()

    def watch() -> None:
        while not stop.is_set():
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    text = path.read_text(errors="replace")
                except OSError:
                    continue
                seen.update(secret for secret in secrets if secret in text)
            stop.wait(0.05)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield lambda: seen
    finally:
        stop.set()
        thread.join()


def training_folder(command: Command, folder: Path) -> tuple[Path, float]:
    """WW against ZZ of the real data where it is present, else the generated example; and the test AUC to reach."""
    if not (DATA / "cms_ww.root").exists():
        subprocess.run(["mlaas4hep", "example-data", folder], env=command.environment, check=True, capture_output=True)
        return folder, 0.80
    subprocess.run(["cp", "-r", REPOSITORY / "examples" / "ww_zz", folder], check=True)
    for name in ("cms_ww.root", "cms_zz.root"):
        (folder / name).symlink_to(DATA / name)
    (folder / "files.txt").write_text("cms_ww.root\ncms_zz.root\n")
    (folder / "labels.txt").write_text("1\n0\n")
    return folder, 0.81


def without_limits(service: SharedService) -> None:
    """Let jobs run although the development cloud's machines, which are containers, cannot hand control groups on."""
    there = "/etc/mlaas4hep/service.toml"
    service.on_machine("sudo", "sh", "-c", f"echo '[executor.local]\nlimits = \"where possible\"' >> {there}")
    service.on_machine("sudo", "systemctl", "restart", "mlaas4hep.service")
    with service.browser() as anybody:
        wait_until(lambda: anybody.get("/ready").status_code == 200)


def the_shared_service_serves_its_users(provision: Command, provider: OidcProvider, folder: Path) -> None:
    workflow = folder / "higgs"
    make = ["mlaas4hep", "example-data", workflow, "--events", "2000"]
    subprocess.run(make, env=provision.environment, check=True, capture_output=True)
    service = SharedService(provision, "whole", provider, folder)
    service.answers_to_nobody_without_a_token()
    if "cgroup2" not in service.on_machine("stat", "--file-system", "--format=%T", "/sys/fs/cgroup"):
        without_limits(service)
    with service.provider_reached():
        job = service.trains_and_predicts_for("alice", workflow)
        service.shows_nothing_to("bob", "alice", job, "higgs")
        service.lets_a_browser_log_in("alice", "higgs")


def no_secret_is_on_the_machine(folder: Folder, secrets: list[str]) -> None:
    """No file holds a secret of the cloud, and the host key that came with the user-data is not in force any more."""
    with Remote(folder) as remote:
        told = remote.run(["sudo", "cat", "/var/lib/cloud/instance/user-data.txt"])
        _, key, *_ = yaml.safe_load(told)["ssh_keys"]["ed25519_public"].split()
        assert key not in remote.run(["sh", "-c", "cat /etc/ssh/ssh_host_*_key.pub"])

        def files_with(*texts: str) -> str:
            words = ["--recursive", "--devices=skip", "--files-with-matches", "--fixed-strings", "--file=-"]
            places = ["/etc", "/home", "/root", "/tmp", "/var"]
            return remote.run(["sudo", "grep", *words, *places], stdin="\n".join(texts), check=False)

        assert files_with(*secrets) == ""
        assert "/var/lib/cloud/" in files_with(told.splitlines()[0])


@pytest.mark.cloud
def test_create_train_fetch_and_delete_on_openstack(user_home: Path, openstack_cloud: TestCloud, tmp_path: Path):
    provision = Command(user_home, OS_CLIENT_CONFIG_FILE=str(openstack_cloud.config))
    before = listing(openstack_cloud)
    # an application credential, as people use it, whose secret is like nothing else
    cloud = "devcloud-appcred" if openstack_cloud.development else openstack_cloud.name
    entry = yaml.safe_load(Path(openstack_cloud.config).read_text())["clouds"][cloud]
    secrets = [v for k, v in entry["auth"].items() if "secret" in k or "password" in k or "token" in k]
    assert secrets
    need_provider()
    (tmp_path / "oidc").mkdir()
    with oidc_provider(tmp_path / "oidc") as provider, watching_processes(secrets) as seen:
        shared = ["--service", "shared", "--domain", DOMAIN, "--tls", "internal", "--client-id", "public"]
        shared += ["--iam", provider.issuer, "--iam-ca", str(provider.ca_file)]
        create = ["create", "whole", "--cloud", cloud, "--ttl", "1d", *shared, "--yes"]
        provision(*create)
        again = provision.run(*create)
        assert again.returncode == 0 and "  done " not in again.stderr, again.stderr

        folder, auc = training_folder(provision, tmp_path / "training")
        log = provision("train", "whole", str(folder))
        assert "test auc" in log
        model = tmp_path / "model"
        provision("fetch", "whole", "--to", str(model))
        the_shared_service_serves_its_users(provision, provider, tmp_path)
    metrics = json.loads((model / "metrics.json").read_text())
    assert metrics["final"]["test"]["auc"] >= auc
    assert json.loads(provision("jobs", "whole", "--json"))[0]["state"] == "finished"
    assert seen() == set()
    everything = provision.logs()
    assert not [secret for secret in secrets if secret in everything]
    assert "PRIVATE KEY" not in everything
    no_secret_is_on_the_machine(Home(provision.home / "provision").folder("whole"), secrets)
    provision("delete", "whole", "--yes")
    assert listing(openstack_cloud) == before


@pytest.fixture(scope="module")
def local(computer_with_machines: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Command]:
    """The command, in a home of its own, to make the platform `here` on this computer and to use it."""
    home = tmp_path_factory.mktemp("home")
    provision = Command(home)
    yield provision
    provision("delete", "here", "--yes")


CREATE = ["create", "here", "--cloud", "local", "--disk", "10GB", "--ttl", "2d", "--yes"]


@pytest.fixture(scope="module")
def ready(local: Command) -> Command:
    """The command, with the platform `here` ready."""
    local(*CREATE)
    return local


@pytest.mark.machine
class TestOnThisComputer:
    """Everything that a physicist does, on one platform of this computer."""

    def test_a_role_that_fails_names_task_and_log(self, local: Command):
        local(*CREATE, "--bare")
        broken = "/etc/apt/sources.list.d/broken.list"
        local("ssh", "here", "--", "sudo", "sh", "-c", f"echo 'this is no source' > {broken}")
        complaint = local.fails(*CREATE, status=1)
        assert "failed in the task 'base : " in complaint and "broken.list" in complaint
        log = re.search(r"The log is (\S+);", complaint)
        assert log and "broken.list" in Path(log[1]).read_text()
        assert "is not ready (bare)" in local.fails("train", "here", ".", status=2)
        local("ssh", "here", "--", "sudo", "rm", broken)

    def test_roles_that_were_killed_are_finished(self, local: Command):
        killed(local, "configure", "mlaas4hep : Install the locked dependencies", *CREATE)
        killed(local, "configure", "made", *CREATE)
        assert json.loads(local("show", "here", "--json"))["ledger"][-1]["state"] == "intended"

    def test_what_was_made_before_the_kill_is_not_made_again(self, local: Command):
        done = local.run(*CREATE)
        assert (done.returncode, "  done " in done.stderr) == (0, False), done.stderr
        record = json.loads(local("show", "here", "--json"))
        assert record["state"] == "ready"
        timer = ["systemctl", "show", "platform-expiry.timer", "--property=NextElapseUSecRealtime"]
        expires = record["expires_at"].replace("T", " ").replace("Z", " UTC")
        assert expires in local("ssh", "here", "--", *timer)

    def test_roles_run_again_change_nothing(self, ready: Command):
        ready("ssh", "here", "--", "sudo", "rm", "/etc/mlaas4hep/platform.json")
        ready(*CREATE)
        runs = sorted((ready.home / "provision/platforms/here/logs").glob("platform-*.json"))
        changed = json.loads(runs[-1].read_text())["changed_tasks"]
        assert [task for task in changed if "record" not in task.lower()] == []

    def test_train_fetch_and_predict(self, ready: Command, tmp_path: Path):
        folder = tmp_path / "higgs"
        subprocess.run(["mlaas4hep", "example-data", folder, "--events", "6000"], env=ready.environment, check=True)
        log = ready("train", "here", str(folder))
        assert "test auc" in log
        ready("fetch", "here", "higgs_1", "--to", str(tmp_path / "model"))
        assert "exists already" in ready.fails("fetch", "here", "--to", str(tmp_path / "model"), status=2)
        assert json.loads((tmp_path / "model" / "metrics.json").read_text())["final"]["test"]["auc"] > 0.75
        answer = json.loads(ready("predict", "here", str(folder / "event.json"), "--job", "higgs_1"))
        assert set(answer["probabilities"]) == {"0", "1"}
        assert sum(answer["probabilities"].values()) == pytest.approx(1)
        assert answer["probabilities"][answer["label"]] >= 0.5

    def test_the_service_is_used_through_ssh(self, ready: Command, tmp_path: Path):
        folder = tmp_path / "served"
        subprocess.run(["mlaas4hep", "example-data", folder, "--events", "2000"], env=ready.environment, check=True)
        assert "local" in ready("client", "here", "me", "--json")
        job = json.loads(ready("client", "here", "submit", str(folder), "--json"))
        # a job survives its service
        kill = ["systemctl", "kill", "--signal=KILL", "--kill-whom=main", "mlaas4hep.service"]
        ready("ssh", "here", "--", "sudo", *kill)

        def has_ended() -> bool:
            told = ready.run("client", "here", "status", job["id"], "--json")
            return told.returncode == 0 and json.loads(told.stdout)["state"] not in ("queued", "running")

        wait_until(has_ended)
        assert json.loads(ready("client", "here", "status", job["id"], "--json"))["state"] == "finished"
        assert "epoch" in ready("client", "here", "logs", job["id"])
        assert "probabilities" in ready("client", "here", "predict", "served", str(folder / "event.json"))

    def test_a_training_goes_on_without_connection_and_can_be_cancelled(self, ready: Command, tmp_path: Path):
        folder = tmp_path / "long"
        subprocess.run(["mlaas4hep", "example-data", folder, "--events", "6000"], env=ready.environment, check=True)
        parameters = json.loads((folder / "params.json").read_text())
        (folder / "params.json").write_text(json.dumps({**parameters, "epochs": 100000}))
        job = json.loads(ready("train", "here", str(folder), "--detach", "--json"))
        assert job["state"] in ("queued", "running")
        listed = {found["identifier"]: found["state"] for found in json.loads(ready("jobs", "here", "--json"))}
        assert listed[job["identifier"]] in ("queued", "running")
        ready("cancel", "here", job["identifier"])
        listed = {found["identifier"]: found["state"] for found in json.loads(ready("jobs", "here", "--json"))}
        assert listed[job["identifier"]] == "cancelled"
        complaint = ready.fails("fetch", "here", job["identifier"], status=1)
        assert "cancelled" in complaint

    def test_a_model_that_raises_ends_with_its_sentence(self, ready: Command, tmp_path: Path):
        folder = tmp_path / "broken"
        subprocess.run(["mlaas4hep", "example-data", folder, "--events", "2000"], env=ready.environment, check=True)
        (folder / "model.py").write_text("def model(idim):\n    raise ValueError('not today')\n")
        complaint = ready.fails("train", "here", str(folder), status=1)
        assert "not today" in complaint and "model.py" in complaint
        # the newest job failed; the model of the one before is still the one that answers
        ready("predict", "here", str(folder / "event.json"))

    def test_stop_and_start_bring_the_platform_back(self, ready: Command):
        ready("stop", "here")
        ready("start", "here")
        ready("doctor", "here")
        ready("doctor")

    def test_tunnels_lead_to_what_it_serves(self, ready: Command):
        with ready.connected("here") as shown:
            urls = {tunnel["name"]: tunnel["url"] for tunnel in shown["tunnels"]}
            assert {"service", "inference", "inference by gRPC"} <= set(urls)
            token = Path(shown["token_file"])
            assert token.stat().st_mode & 0o077 == 0
            request = urllib.request.Request(
                f"{urls['service']}/api/v1/me", headers={"Authorization": f"Bearer {token.read_text().strip()}"}
            )
            with urllib.request.urlopen(request, timeout=60) as answer:
                assert "local" in json.load(answer).values()
        assert not token.exists()

    def test_the_log_of_its_creation_is_shown(self, ready: Command):
        assert "TASK [mlaas4hep : Start the service]" in ready("logs", "here", "--provision")

    def test_what_the_roles_installed_is_removed_and_nothing_else(self, ready: Command):
        """As `delete --uninstall` does with a host that existed before; last of all, for it is the end of `here`."""
        folder = Home(ready.home / "provision").folder("here")
        look = "find /etc /opt /usr/local /var/lib /home -xdev -path /var/lib/dpkg -prune -o -print"
        with Remote(folder) as remote:

            def seen() -> set[str]:
                return set(remote.run(["sudo", "sh", "-c", look]).splitlines())

            def wrong() -> set[str]:
                failed = remote.run(["systemctl", "--failed", "--quiet", "--no-legend"]).splitlines()
                return {*failed, *remote.run(["find", "/etc/systemd/system", "-xtype", "l"]).splitlines()}

            before, there, failed = seen(), installed(remote), wrong()
            names = {found.id for found in there}
            assert {"/opt/mlaas4hep", "/var/lib/mlaas4hep", "/usr/local/bin/mlaas4hep", "mlaas4hep"} <= names
            uninstall(folder, lambda _: None)
            assert installed(remote) == []
            gone = {path for path in before - seen() if not any(Path(path).is_relative_to(name) for name in names)}
            assert {path for path in gone if not path.startswith("/etc/systemd/system/")} == set()
            assert wrong() <= failed
            assert remote.run(["dpkg-query", "--show", "--showformat=${Status}", "xrootd-client"]).endswith(
                " installed"
            )
