"""The cloud `openstack` against a real OpenStack: nothing is made twice, nothing is left, every refusal is clear."""

from __future__ import annotations

import json
import os
import pty
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml

from provision.plan import make_plan
from provision.record import Home
from provision.remote import ConnectionLostError
from tests.conftest import Command, Silent
from tests.devcloud.fixtures import TestCloud, connect, listing

from .killed import killed

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
    command("gc", "--cloud", openstack_cloud.name, "--older-than=0", "--with-machines", "--yes")


@pytest.fixture
def lonely_network(openstack_cloud: TestCloud) -> Iterator[Any]:
    """A network of the user's own, with a subnet and without a router; removed after the test."""
    connection = connect(openstack_cloud)
    with ExitStack() as undo:
        undo.callback(connection.close)
        network = connection.network.create_network(name="own-network")
        undo.callback(connection.network.delete_network, network)
        connection.network.create_subnet(network_id=network.id, cidr="10.77.0.0/24", ip_version=4)
        yield network


@pytest.fixture
def own_network(openstack_cloud: TestCloud, lonely_network: Any) -> Iterator[Any]:
    """The same network behind a router of the user's own."""
    connection = connect(openstack_cloud)
    neutron = connection.network
    subnet = next(iter(neutron.subnets(network_id=lonely_network.id)))
    external = next(iter(neutron.networks(is_router_external=True)))
    with ExitStack() as undo:
        undo.callback(connection.close)
        router = neutron.create_router(name="own-router", external_gateway_info={"network_id": external.id})
        undo.callback(neutron.delete_router, router)
        neutron.add_interface_to_router(router, subnet_id=subnet.id)
        undo.callback(neutron.remove_interface_from_router, router, subnet_id=subnet.id)
        yield lonely_network


def answered(command: Command, answer: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run `provision WORDS` on a terminal on which somebody types the answer."""
    master, terminal = pty.openpty()
    try:
        os.write(master, f"{answer}\n".encode())
        return subprocess.run(
            ["provision", *words],
            cwd=command.home,
            env=command.environment,
            stdin=terminal,
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        os.close(terminal)
        os.close(master)


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
    # between the others lies one request each, as test_openstack_faults has it fail
    for step in ("security-group", "subnet", "router-interface", "server", "floating-ip", "host-key"):
        if step == "server":
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


@pytest.mark.parametrize("step", ["subnet", "floating-ip"])
def test_what_a_kill_left_is_deleted(provision: Command, openstack_cloud: TestCloud, step: str):
    before = listing(openstack_cloud)
    killed(provision, step, "made", "create", "half", "--cloud", openstack_cloud.name, *SMALL)
    provision("delete", "half", "--yes")
    assert listing(openstack_cloud) == before
    assert json.loads(provision("list", "--json")) == []


def test_a_lost_record_is_made_again_and_orphans_are_removed(
    provision: Command, openstack_cloud: TestCloud, tmp_path: Path
):
    before = listing(openstack_cloud)
    cloud = ["--cloud", openstack_cloud.name]
    create = ["create", "kept", *cloud, *SMALL]
    provision(*create)
    there = listing(openstack_cloud)
    folder = Path(provision("ssh", "kept", "--print-config").strip()).parent
    key = shutil.copy(folder / "id_ed25519", tmp_path)
    shutil.rmtree(folder)
    [found] = json.loads(provision("adopt", *cloud, "--json"))
    assert (found["name"], found["yours"], found["machine"]) == ("kept", "yes", "yes")
    # what has a machine is no orphan, and what was made just now might still be in the making
    for more, words in (("--older-than=0", "has a machine"), ("--with-machines", "younger than")):
        [row] = json.loads(provision("gc", *cloud, more, "--yes", "--json"))
        assert words in row["verdict"]
    provision("adopt", "kept", *cloud, "--identity", str(key))
    provision(*create)
    assert listing(openstack_cloud) == there
    assert provision("ssh", "kept", "hostname") == "kept\n"
    shutil.rmtree(folder)
    killed(provision, "network", "made", "create", "half", *cloud, *SMALL)
    shutil.rmtree(folder.with_name("half"))
    provision("gc", *cloud, "--older-than=0", "--yes")
    assert listing(openstack_cloud) == there
    provision("gc", *cloud, "--older-than=0", "--with-machines", "--yes")
    assert listing(openstack_cloud) == before
    assert json.loads(provision("list", "--json")) == []


def admitted(cloud: TestCloud, record: dict[str, Any]) -> set[int]:
    """The TCP ports that the platform's security group admits."""
    group = next(e["resource"]["id"] for e in record["ledger"] if e["step"] == "security-group")
    connection = connect(cloud)
    rules = connection.network.get_security_group(group).security_group_rules
    connection.close()
    return {rule["port_range_min"] for rule in rules if rule["direction"] == "ingress"}


def test_a_machine_on_a_given_network_that_is_stopped_started_and_goes_mute(
    provision: Command, openstack_cloud: TestCloud, own_network: Any, monkeypatch: pytest.MonkeyPatch
):
    before = listing(openstack_cloud)
    create = ["create", "night", "--cloud", openstack_cloud.name, *SMALL[:-1]]
    create += ["--network", "own-network", "--ports", "8080"]
    refused = answered(provision, "n", *create)
    assert (refused.returncode, listing(openstack_cloud)) == (2, before)
    assert "Nothing was created" in refused.stderr
    made = answered(provision, "y", *create)
    assert made.returncode == 0, made.stderr
    assert made.stderr.count("[y/N]") == 1
    assert Counter(kind for kind, *_ in listing(openstack_cloud) - before)["network"] == 0
    assert admitted(openstack_cloud, json.loads(provision("show", "night", "--json"))) == {22, 8080}
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
    assert answered(provision, "no", "delete", "night").returncode == 2
    gone = answered(provision, "y", "delete", "night")
    assert gone.returncode == 0, gone.stderr
    assert listing(openstack_cloud) == before


def test_a_network_without_a_way_out_needs_a_jump_host(
    provision: Command, openstack_cloud: TestCloud, lonely_network: Any
):
    create = ["create", "vain", "--cloud", openstack_cloud.name, *SMALL, "--network", lonely_network.name]
    complaint = provision.fails(*create, status=1)
    assert "own-network has no router" in complaint and "--jump" in complaint
    plan = json.loads(provision(*create, "--jump", "ada@gate.example.org", "--dry-run", "--json"))
    assert plan["facts"]["network"] == "own-network, reached through ada@gate.example.org"
    assert "floating-ip" not in [step["key"] for step in plan["steps"]]


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


def test_a_quota_of_the_network_is_seen_before_anything_is_made(provision: Command, openstack_cloud: TestCloud):
    if not openstack_cloud.development:
        pytest.skip("only the development cloud has its quotas changed")
    project = connect(openstack_cloud).current_project_id
    neutron = connect(openstack_cloud, "devcloud-admin").network
    usual = neutron.get_quota(project).floating_ips
    neutron.update_quota(project, floating_ips=0)
    try:
        complaint = provision.fails("create", "vain", "--cloud", openstack_cloud.name, *SMALL, status=1)
    finally:
        neutron.update_quota(project, floating_ips=usual)
    assert "The quota of the cloud" in complaint and "floating IPs 0 of 0 used and 1 more needed" in complaint
    assert json.loads(provision("list", "--json")) == []


def test_a_gpu_is_found_by_the_extra_specs_of_a_flavor(provision: Command, openstack_cloud: TestCloud):
    if not openstack_cloud.development:
        pytest.skip("only the development cloud is known to have a flavor with a GPU")
    create = ["create", "fast", "--cloud", openstack_cloud.name, "--gpu", "t4:1", "--dry-run", "--json"]
    plan = json.loads(provision(*create))
    assert plan["facts"]["flavor"].startswith("g1.medium (") and "1 x T4" in plan["facts"]["flavor"]


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


@pytest.mark.parametrize("ended", ["application credential", "token"])
def test_credentials_that_have_ended(provision: Command, openstack_cloud: TestCloud, tmp_path: Path, ended: str):
    connection = connect(openstack_cloud)
    identity, auth = connection.identity, connection.config.config["auth"]
    if ended == "token":
        secret = connection.auth_token
        changed = {"auth_type": "v3token", "auth": {"auth_url": auth["auth_url"], "token": secret}}
        connection.session.delete("/auth/tokens", endpoint_filter=_KEYSTONE, headers={"X-Subject-Token": secret})
    else:
        user = connection.current_user_id
        made = identity.create_application_credential(user, "soon-to-end")
        secret = made.secret
        keys = {"application_credential_id": made.id, "application_credential_secret": secret}
        changed = {"auth_type": "v3applicationcredential", "auth": {"auth_url": auth["auth_url"], **keys}}
        identity.delete_application_credential(user, made)
    file = tmp_path / "clouds.yaml"
    file.write_text(yaml.safe_dump({"clouds": {"ended": changed}}))
    complaint = provision.fails(
        "create", "vain", "--cloud", "ended", "--yes", status=1, OS_CLIENT_CONFIG_FILE=str(file)
    )
    assert "does not accept the credentials: they are wrong or have expired" in complaint
    assert secret not in complaint + provision.logs()


_KEYSTONE = {"service_type": "identity", "interface": "public", "min_version": "3", "max_version": "3.latest"}


def test_an_endpoint_that_is_not_there(provision: Command, openstack_cloud: TestCloud, tmp_path: Path):
    environment = clouds_with(provision, openstack_cloud, tmp_path, auth_url="http://127.0.0.1:9/v3")
    complaint = provision.fails("create", "vain", "--cloud", "changed", "--yes", status=1, **environment)
    assert "cannot be reached" in complaint and "auth_url" in complaint
