"""Networks with IPv6: what the plan says of them, and where a machine in one is reached."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from provision.clouds.base import Platform
from provision.errors import ProvisionError
from provision.plan import Plan, make_plan, undo, with_keys
from provision.record import Access, Home
from provision.remote import write_ssh_config
from provision.spec import make_spec
from tests.conftest import Silent
from tests.devcloud.fixtures import TestCloud, connect, listing

# the SDK warns of fields that the answers of older clouds still have
pytestmark = [pytest.mark.cloud, pytest.mark.filterwarnings("ignore::openstack.warnings.RemovedFieldWarning")]

PREFIX = "fd42:6d6c:6161:7334::/64"


@pytest.fixture(autouse=True)
def _user(openstack_cloud: TestCloud, user_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user who knows the cloud, and has no platform."""
    monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", str(openstack_cloud.config))


@pytest.fixture(scope="module")
def network(openstack_cloud: TestCloud) -> Iterator[Any]:
    """A network of the user's own, with nothing but an IPv6 subnet, behind a router of the user's own."""
    connection = connect(openstack_cloud)
    neutron = connection.network
    external = next(iter(neutron.networks(is_router_external=True)))
    with ExitStack() as undo:
        undo.callback(connection.close)
        made = neutron.create_network(name="sixth")
        undo.callback(neutron.delete_network, made)
        subnet = neutron.create_subnet(
            network_id=made.id,
            name="sixth",
            cidr=PREFIX,
            ip_version=6,
            ipv6_ra_mode="slaac",
            ipv6_address_mode="slaac",
        )
        router = neutron.create_router(name="sixth", external_gateway_info={"network_id": external.id})
        undo.callback(neutron.delete_router, router)
        neutron.add_interface_to_router(router, subnet_id=subnet.id)
        undo.callback(neutron.remove_interface_from_router, router, subnet_id=subnet.id)
        yield made


def planned(cloud: TestCloud, network: str, **wishes: Any) -> Plan:
    small = {"name": "six", "cpus": 1, "memory": "1GB", "disk": "10GB", "cloud": cloud.name, "network": network}
    return make_plan(make_spec({**small, **wishes}), Home(), bare=True)


def steps(plan: Plan) -> list[str]:
    return [step.key for step in plan.steps(lambda _: None)]


def test_a_network_of_both_families_has_a_floating_ip_and_ipv6(openstack_cloud: TestCloud, network: Any):
    connection = connect(openstack_cloud)
    subnet = connection.network.create_subnet(network_id=network.id, cidr="10.78.0.0/24", ip_version=4)
    plan = planned(openstack_cloud, network.name)
    assert plan.offer.facts["network"].startswith("sixth, with a floating IP of ")
    assert plan.offer.facts["network"].endswith(" and IPv6")
    assert "floating-ip" in steps(plan)
    assert "ipv6_only" not in plan.offer.values
    connection.network.delete_subnet(subnet)
    connection.close()


def test_a_machine_in_a_network_with_ipv6_only_is_reached_by_its_own_address(openstack_cloud: TestCloud, network: Any):
    before = listing(openstack_cloud)
    plan = planned(openstack_cloud, network.name)
    assert plan.offer.facts["network"].startswith("sixth, with an IPv6 address of its own, routed through ")
    assert "floating-ip" not in steps(plan)
    assert "--use-config-drive" in plan.explain()
    plan.platform.folder.save(plan.record)
    # the development cloud's machines are containers, which have no drives
    del plan.offer.values["ipv6_only"]
    plan.platform = with_keys(plan.cloud, plan.platform)
    try:
        for step in plan.cloud.steps(plan.platform, plan.offer):
            step.make()
        access = plan.cloud.access(plan.platform)
        assert ipaddress.ip_address(access.host) in ipaddress.ip_network(PREFIX)
        assert _ssh_config(plan.platform, access).count(f"  HostName {access.host}\n") == 1
    finally:
        undo(plan.cloud, plan.platform, Silent())
    assert listing(openstack_cloud) == before


def _ssh_config(platform: Platform, access: Access) -> str:
    write_ssh_config(platform.folder, platform.uid, access)
    return platform.folder.ssh_config.read_text()


def test_through_a_jump_host_ipv6_needs_no_router(openstack_cloud: TestCloud, network: Any):
    plan = planned(openstack_cloud, network.name, jump="ada@gate.example.org")
    assert plan.offer.facts["network"] == "sixth, with an IPv6 address, reached through ada@gate.example.org"


def test_a_network_without_a_subnet_is_refused(openstack_cloud: TestCloud, network: Any):
    connection = connect(openstack_cloud)
    empty = connection.network.create_network(name="empty")
    try:
        with pytest.raises(ProvisionError, match="The network empty has no subnet"):
            planned(openstack_cloud, "empty", jump="ada@gate.example.org")
    finally:
        connection.network.delete_network(empty)
        connection.close()
