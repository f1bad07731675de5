"""The cloud `openstack` against a real OpenStack: nothing is made twice, nothing is left, every refusal is clear."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from provision.plan import make_plan
from provision.record import Home
from provision.remote import ConnectionLostError
from tests.conftest import REPOSITORY, Command, Silent
from tests.devcloud.fixtures import TestCloud, listing

pytestmark = pytest.mark.cloud

STEPS = [
    "keypair",
    "security-group",
    "network",
    "subnet",
    "router",
    "router-interface",
    "server",
    "floating-ip",
    "host-key",
]
SMALL = ["--cpus", "1", "--memory", "1GB", "--disk", "10GB", "--bare", "--yes"]


@pytest.fixture
def provision(user_home: Path, openstack_cloud: TestCloud) -> Iterator[Command]:
    """The command, in an empty home, with the cloud's clouds.yaml; what a failed test left is deleted."""
    command = Command(user_home, OS_CLIENT_CONFIG_FILE=str(openstack_cloud.config))
    yield command
    for left in json.loads(command("list", "--json")):
        command("delete", left["name"], "--yes")


def killed(command: Command, step: str, moment: str, *words: str) -> None:
    """Run `provision WORDS` and have it killed there."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.integration.killed", step, moment, *words],
        cwd=REPOSITORY,
        env=command.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr


def test_a_dry_run_shows_the_plan_and_makes_nothing(provision: Command, openstack_cloud: TestCloud):
    before = listing(openstack_cloud)
    plan = json.loads(
        provision(
            "create",
            "dry",
            "--cloud",
            openstack_cloud.name,
            "--cpus",
            "1",
            "--memory",
            "1",
            "--disk",
            "5",
            "--dry-run",
            "--json",
        )
    )
    assert [step["key"] for step in plan["steps"] if step["key"] != "ssh"] == [*STEPS, "configure"]
    assert [choice["verdict"] for choice in plan["considered"] if choice["chosen"]]
    assert {quota["name"] for quota in plan["quota"]} >= {"servers", "CPUs", "memory", "floating IPs"}
    assert listing(openstack_cloud) == before


def test_killed_after_each_step_it_finishes_and_makes_nothing_twice(provision: Command, openstack_cloud: TestCloud):
    before = listing(openstack_cloud)
    create = ["create", "killed", "--cloud", openstack_cloud.name, *SMALL]
    for step in STEPS:
        if step in ("server", "floating-ip"):
            killed(provision, step, "intended", *create)
        killed(provision, step, "made", *create)
        # a deletion now would remove all that is there, what the ledger does not know yet included
        removed = json.loads(provision("delete", "killed", "--dry-run", "--json"))
        there = {(kind, identity) for kind, identity, _ in listing(openstack_cloud) - before if kind != "port"}
        assert {(r["kind"], r["id"]) for r in removed if r["kind"] != "router interface"} == there
    provision(*create)
    record = json.loads(provision("show", "killed", "--json"))
    assert record["state"] == "bare"
    assert {entry["state"] for entry in record["ledger"]} == {"done"}
    assert provision("ssh", "killed", "hostname") == "killed\n"
    new = Counter(kind for kind, *_ in listing(openstack_cloud) - before)
    assert [new[kind] for kind in ("server", "floating IP", "network", "subnet", "router", "key pair")] == [1] * 6
    provision("delete", "killed", "--yes")
    assert listing(openstack_cloud) == before


@pytest.mark.parametrize("step", STEPS[:8])
def test_what_a_kill_left_is_deleted(provision: Command, openstack_cloud: TestCloud, step: str):
    before = listing(openstack_cloud)
    killed(provision, step, "made", "create", "half", "--cloud", openstack_cloud.name, *SMALL)
    provision("delete", "half", "--yes")
    assert listing(openstack_cloud) == before
    assert json.loads(provision("list", "--json")) == []


def test_a_machine_that_is_stopped_started_and_goes_mute(
    provision: Command, openstack_cloud: TestCloud, monkeypatch: pytest.MonkeyPatch
):
    before = listing(openstack_cloud)
    provision("create", "night", "--cloud", openstack_cloud.name, *SMALL)
    provision("stop", "night")
    assert json.loads(provision("list", "--json"))[0]["machine"] == "stopped"
    complaint = provision.fails("doctor", "night", status=1)
    assert "provision start night" in complaint
    provision("start", "night")
    assert provision("ssh", "night", "hostname") == "night\n"
    refused = provision.fails("create", "night", "--cloud", openstack_cloud.name, "--cpus", "2", "--yes", status=2)
    assert "The name night is taken" in refused and "cpus" in refused

    # SSH that never comes up: the console log is shown
    provision("ssh", "night", "--", "sudo", "systemctl", "disable", "--now", "ssh.service")
    monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", str(openstack_cloud.config))
    monkeypatch.setattr("provision.plan.SSH_SECONDS", 1)
    plan = make_plan(Home().folder("night").load().spec, Home(), bare=True)
    with pytest.raises(ConnectionLostError, match="SSH on night did not come up") as caught:
        plan.execute(Silent())
    assert "login:" in caught.value.details or "cloud-init" in caught.value.details.lower()
    assert "SSH" in provision.fails("doctor", "night", status=1)
    provision("delete", "night", "--yes")
    assert listing(openstack_cloud) == before


@pytest.mark.parametrize(
    ("options", "status", "words"),
    [
        (["--gpu", "H100"], 1, "no flavor with 2 CPU, 4 GB memory, 20 GB disk and 1 x H100"),
        (["--image", "debian-99"], 1, "no image 'debian-99'"),
        (["--network", "nowhere"], 1, "no network 'nowhere'"),
        (["--cpus", "500"], 1, "no flavor with 500 CPU"),
    ],
)
def test_wishes_that_the_cloud_cannot_fulfil(provision: Command, openstack_cloud: TestCloud, options, status, words):
    before = listing(openstack_cloud)
    complaint = provision.fails("create", "vain", "--cloud", openstack_cloud.name, "--yes", *options, status=status)
    assert words in complaint
    assert listing(openstack_cloud) == before
    assert json.loads(provision("list", "--json")) == []


def test_a_quota_that_admits_no_flavor(provision: Command, openstack_cloud: TestCloud):
    if not openstack_cloud.development:
        pytest.skip("only the development cloud is known to have a flavor beyond its quota")
    complaint = provision.fails("create", "vain", "--cloud", openstack_cloud.name, "--cpus", "64", "--yes", status=1)
    assert "The quota of the cloud" in complaint and "x1.huge" in complaint and "0 of 8 used" in complaint


def clouds_with(provision: Command, openstack_cloud: TestCloud, tmp_path: Path, **changes: str) -> dict[str, str]:
    """An environment whose clouds.yaml has the cloud with changed credentials, as the entry `changed`."""
    clouds = yaml.safe_load(Path(openstack_cloud.config).read_text())
    entry = clouds["clouds"][openstack_cloud.name]
    entry["auth"] |= changes
    file = tmp_path / "clouds.yaml"
    file.write_text(yaml.safe_dump({"clouds": {"changed": entry}}))
    return {"OS_CLIENT_CONFIG_FILE": str(file)}


def test_credentials_that_are_not_accepted(provision: Command, openstack_cloud: TestCloud, tmp_path: Path):
    environment = clouds_with(provision, openstack_cloud, tmp_path, password="wr0ng-canary-secret")
    complaint = provision.fails("create", "vain", "--cloud", "changed", "--yes", status=1, **environment)
    assert "does not accept the credentials" in complaint
    assert "wr0ng-canary-secret" not in complaint + provision.logs()


def test_an_endpoint_that_is_not_there(provision: Command, openstack_cloud: TestCloud, tmp_path: Path):
    environment = clouds_with(provision, openstack_cloud, tmp_path, auth_url="http://127.0.0.1:9/v3")
    complaint = provision.fails("create", "vain", "--cloud", "changed", "--yes", status=1, **environment)
    assert "cannot be reached" in complaint and "auth_url" in complaint
