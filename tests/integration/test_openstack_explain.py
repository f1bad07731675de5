"""`provision create --explain`: the script, run as its reader would, makes what the command itself makes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from provision.adoption import adopt
from provision.plan import Plan, make_plan, undo, with_keys
from provision.record import Home
from provision.remote import Remote
from provision.spec import make_spec
from tests.conftest import Command, Silent
from tests.devcloud.fixtures import TestCloud, connect, listing

# the SDK warns of fields that the answers of older clouds still have
pytestmark = [pytest.mark.cloud, pytest.mark.filterwarnings("ignore::openstack.warnings.RemovedFieldWarning")]


@pytest.fixture
def plans(
    openstack_cloud: TestCloud, user_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Plan, Plan]]:
    """Two plans for the same platform: one to be explained, one to be executed; what a failed test left is removed."""
    monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", str(openstack_cloud.config))
    size = {"cpus": 1, "memory": "1GB", "disk": "10GB"}
    spec = make_spec({"name": "twin", **size, "workers": 1, "cloud": openstack_cloud.name})
    made = tuple(make_plan(spec, home, bare=True) for home in (Home(), Home(tmp_path / "other")))
    yield made[0], made[1]
    for plan in made:
        plan.platform.folder.save(plan.record)
        undo(plan.cloud, plan.platform, Silent())


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
    own_server, worker = sorted(
        (s for s in compute.servers(details=True) if s.metadata.get("provision_uid") == uid), key=lambda s: str(s.name)
    )
    pair = one(p for p in compute.keypairs() if p.name == f"provision-twin-{uid}")
    port, worker_port = (one(neutron.ports(device_id=server.id)) for server in (own_server, worker))
    own = {thing.id: kind for kind, thing in (("group", group), ("network", network), ("subnet", subnet))}

    def server_facts(server: Any, port: Any) -> tuple[Any, ...]:
        return (
            server.name,
            server.status,
            server.key_name,
            server.flavor.name,
            server.image.id,
            sorted(_one_line(item) for item in _without_host_key(server.metadata).items()),
            [own[a["subnet_id"]] for a in port.fixed_ips],
            [own[g] for g in port.security_group_ids],
        )

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
        "server": server_facts(own_server, port),
        "worker": server_facts(worker, worker_port),
        # its name is its address
        "floating IP": (*_marks(address)[1:], address.floating_network_id, address.port_id == port.id),
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


def execute_directly(plan: Plan) -> None:
    """What `provision create --bare` makes in the cloud."""
    plan.platform.folder.save(plan.record)
    plan.platform = with_keys(plan.cloud, plan.platform)
    for step in plan.cloud.steps(plan.platform, plan.offer):
        step.make()


def test_the_script_makes_what_the_command_makes(openstack_cloud: TestCloud, plans: tuple[Plan, Plan], tmp_path: Path):
    before = listing(openstack_cloud)
    explained, direct = plans
    script = explained.explain()
    assert listing(openstack_cloud) == before
    assert Home().folders() == []

    work = tmp_path / "work"
    work.mkdir()
    # beside it, as most of its time goes by while its commands start
    with ThreadPoolExecutor() as pool:
        executing = pool.submit(execute_directly, direct)
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        done = subprocess.run(
            ["sh"],
            input=script,
            cwd=work,
            env={**os.environ, "PATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
        executing.result()
    assert done.returncode == 0, done.stdout + done.stderr
    (keys,) = work.iterdir()
    # what only the first contact needed is gone, and nobody else can read the rest
    assert {path.name for path in keys.iterdir()} == {
        "id_ed25519",
        "id_ed25519.pub",
        "server_known_hosts",
        "ssh_config",
        "worker_1_known_hosts",
    }
    assert {path.stat().st_mode & 0o077 for path in (keys, *keys.iterdir())} == {0}
    assert described(openstack_cloud, explained.record.uid) == described(openstack_cloud, direct.record.uid)

    # the platform is one of provision's: adopted, and nothing is left to make; the connection to it is verified
    found = next(f for f in explained.cloud.platforms() if f.uid == explained.record.uid)
    adopt(found, openstack_cloud.name, Home(), keys / "id_ed25519")
    progress = Silent()
    again = make_plan(explained.record.spec, Home(), bare=True)
    again.execute(progress)
    assert [title for title in progress.titles if not title.startswith("there: ")] == []
    for folder, name in ((again.platform.folder, "twin"), (again.platform.of_worker(1).machine_folder, "twin-w1")):
        with Remote(folder) as remote:
            assert remote.run(["hostname"]) == f"{name}\n"
    for plan in (again, direct):
        undo(plan.cloud, plan.platform, Silent())
    assert listing(openstack_cloud) == before


def test_it_is_printed_and_nothing_else(openstack_cloud: TestCloud, user_home: Path):
    command = Command(user_home, OS_CLIENT_CONFIG_FILE=str(openstack_cloud.config))
    create = ["create", "twin", "--cloud", openstack_cloud.name, "--bare", "--explain"]
    assert command(*create).startswith("#!/bin/sh\n")
    assert Home().folders() == []
