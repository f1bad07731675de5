"""`provision create --explain`: the script, run as its reader would, makes what the command itself makes."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from provision.plan import _with_keys, make_plan, undo
from provision.record import Home
from provision.spec import make_spec
from tests.conftest import Command, Silent
from tests.devcloud.fixtures import TestCloud, connect, listing

pytestmark = pytest.mark.cloud

WISHES = {"name": "twin", "cpus": 1, "memory": "1GB", "disk": "10GB", "ports": [8080]}


@pytest.fixture
def provision(user_home: Path, openstack_cloud: TestCloud) -> Iterator[Command]:
    """The command, in an empty home, with the cloud's clouds.yaml; what a failed test left is deleted."""
    command = Command(user_home, OS_CLIENT_CONFIG_FILE=str(openstack_cloud.config))
    yield command
    command("gc", "--cloud", openstack_cloud.name, "--older-than=0", "--with-machines", "--yes")


def described(cloud: TestCloud, uid: str) -> dict[str, Any]:
    """What bears this uid, as the cloud describes it, without the ids, addresses and times that differ anyway."""
    connection = connect(cloud)
    neutron, compute = connection.network, connection.compute

    def one(found: Any) -> Any:
        (only,) = found
        return only

    def ours(collection: str) -> Any:
        return one(getattr(neutron, collection)(description=f"provision twin {uid}"))

    group, network, subnet, router, address = (
        ours(collection) for collection in ("security_groups", "networks", "subnets", "routers", "ips")
    )
    server = one(s for s in compute.servers(details=True) if s.metadata.get("provision_uid") == uid)
    pair = one(p for p in compute.keypairs() if p.name == f"provision-twin-{uid}")
    port = one(neutron.ports(device_id=server.id))
    own = {thing.id: kind for kind, thing in (("group", group), ("network", network), ("subnet", subnet))}
    facts: dict[str, Any] = {
        "key pair": (pair.name, pair.type),
        "group": (*_marks(group), sorted(map(_rule, group.security_group_rules), key=str)),
        "network": (*_marks(network), network.is_admin_state_up, network.is_shared, network.is_port_security_enabled),
        "subnet": (*_marks(subnet), own[subnet.network_id], subnet.cidr, subnet.ip_version, subnet.is_dhcp_enabled),
        "router": (
            *_marks(router),
            router.external_gateway_info["network_id"],
            router.external_gateway_info.get("enable_snat"),
            sorted(own.get(a["subnet_id"], "") for p in neutron.ports(device_id=router.id) for a in p.fixed_ips),
        ),
        "server": (
            server.name,
            server.status,
            server.key_name,
            server.flavor.name,
            server.image.id,
            sorted(_one_line(item) for item in _without_host_key(server.metadata).items()),
            [own[a["subnet_id"]] for a in port.fixed_ips],
            [own[g] for g in port.security_group_ids],
        ),
        "floating IP": (*_marks(address), address.floating_network_id, address.port_id == port.id),
    }
    connection.close()
    text = json.dumps(facts, default=str).replace(uid, "UID")
    return dict(json.loads(re.sub(r"20\d\d-\d\d-\d\dT\d\d:\d\d(:\d\d)?(\+00:00|Z)", "TIME", text)))


def _marks(resource: Any) -> tuple[str, str, list[str]]:
    return resource.name, resource.description, sorted(resource.tags)


def _rule(rule: dict[str, Any]) -> list[Any]:
    return [
        rule[name] for name in ("direction", "ethertype", "protocol", "port_range_min", "port_range_max", "description")
    ]


def _without_host_key(metadata: dict[str, str]) -> dict[str, str]:
    """The machine makes that key itself, so the two cannot be equal; whether there is one is tested by adopting."""
    return {name: value for name, value in metadata.items() if name != "provision_host_key"}


def _one_line(item: tuple[str, str]) -> str:
    return "=".join(item)


def test_the_script_makes_what_the_command_makes(
    provision: Command, openstack_cloud: TestCloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    before = listing(openstack_cloud)
    options = ["--cpus", "1", "--memory", "1GB", "--disk", "10GB", "--ports", "8080", "--bare"]
    script = provision("create", "twin", "--cloud", openstack_cloud.name, *options, "--explain")
    assert listing(openstack_cloud) == before
    assert json.loads(provision("list", "--json")) == []

    work = tmp_path / "work"
    work.mkdir()
    done = subprocess.run(
        ["sh"], input=script, cwd=work, env=provision.environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (keys,) = work.iterdir()
    uid = keys.name.rpartition("-")[2]
    # what only the first contact needed is gone, and nobody else can read the rest
    assert {path.name for path in keys.iterdir()} == {"id_ed25519", "id_ed25519.pub", "known_hosts"}
    assert {path.stat().st_mode & 0o077 for path in (keys, *keys.iterdir())} == {0}

    # the platform is one of provision's: adopted, verified, logged in to
    provision("adopt", "twin", "--cloud", openstack_cloud.name, "--identity", str(keys / "id_ed25519"))
    made = described(openstack_cloud, uid)
    create = ["create", "twin", "--cloud", openstack_cloud.name, *options, "--yes"]
    again = provision.run(*create)
    assert (again.returncode, "  done " in again.stderr) == (0, False), again.stderr
    assert provision("ssh", "twin", "hostname") == "twin\n"
    provision("delete", "twin", "--yes")
    assert listing(openstack_cloud) == before

    monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", str(openstack_cloud.config))
    plan = make_plan(make_spec({**WISHES, "cloud": openstack_cloud.name}), Home(tmp_path / "other"), bare=True)
    plan.platform.folder.save(plan.record)
    plan.platform = _with_keys(plan.cloud, plan.platform)
    try:
        for step in plan.cloud.steps(plan.platform, plan.offer):
            step.make()
        assert made == described(openstack_cloud, plan.record.uid)
    finally:
        undo(plan.cloud, plan.platform, Silent())
    assert listing(openstack_cloud) == before


def test_what_cannot_be_explained_says_so(provision: Command):
    assert "no commands of its own" in provision.fails("create", "here", "--explain", "--bare", status=2)
