"""A server gives up its host and has its disk again, gets another flavor and a new system: on a real Nova."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from provision.remote import host_alias
from tests.conftest import Command, long
from tests.devcloud.fixtures import TestCloud, connect, listing

from .killed import killed

pytestmark = pytest.mark.cloud

SMALL = ["--cpus", "1", "--memory", "1GB", "--bare", "--yes"]
RESIZE = ["resize", "various", "--cpus", "2"]


@pytest.fixture
def provision(user_home: Path, openstack_cloud: TestCloud) -> Iterator[Command]:
    """The command, in an empty home, with the cloud's clouds.yaml; what a failed test left is deleted."""
    command = Command(user_home, OS_CLIENT_CONFIG_FILE=str(openstack_cloud.config))
    yield command
    for left in json.loads(command("list", "--json")):
        command("delete", left["name"], "--yes")


@pytest.fixture
def small_disk(openstack_cloud: TestCloud) -> Iterator[str]:
    """A flavor with a disk of 2 GB, of which images are quickly made, for this project alone."""
    if not openstack_cloud.development:
        pytest.skip("only the development cloud is given flavors")
    project = connect(openstack_cloud).current_project_id
    admin = connect(openstack_cloud, "devcloud-admin").compute
    made = admin.create_flavor(name="s0.disk", vcpus=1, ram=1024, disk=2, is_public=False)
    admin.flavor_add_tenant_access(made, project)
    yield made.name
    admin.delete_flavor(made)


def images(cloud: TestCloud) -> set[str]:
    """The images that the project sees."""
    connection = connect(cloud)
    found = {image.name for image in connection.image.images()}
    connection.close()
    return found


def shown(provision: Command) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(provision("show", "various", "--json"))
    return found


def server(cloud: TestCloud, record: dict[str, Any]) -> tuple[str, str, dict[str, Any]]:
    """Status, flavor and wishes of the server."""
    connection = connect(cloud)
    found = connection.compute.get_server(next(e for e in record["ledger"] if e["step"] == "server")["resource"]["id"])
    connection.close()
    text = "".join(found.metadata[key] for key in sorted(found.metadata) if key.startswith("provision_wishes_"))
    return found.status, found.flavor.name, json.loads(text)["spec"]


@long
def test_a_server_is_resized_and_rebuilt(provision: Command, openstack_cloud: TestCloud):
    if not openstack_cloud.development:
        pytest.skip("what becomes of a disk, and which flavors there are, is known of the development cloud")
    before = listing(openstack_cloud)
    create = ["create", "various", "--cloud", openstack_cloud.name, "--disk", "10GB", *SMALL]
    killed(provision, "host-key", "intended", *create)
    folder = provision.home / "provision" / "platforms" / "various"
    first_key = (folder / "first_host_key.pub").read_text()
    provision(*create)
    made = shown(provision)
    plan = json.loads(provision(*RESIZE, "--dry-run", "--json"))
    assert plan["facts"]["flavor"].startswith("m1.medium") and plan["before"]["flavor"].startswith("m1.small")
    assert {quota["name"]: quota["needed"] for quota in plan["quota"]} == {"CPUs": 1, "memory": 3072}
    assert "over the quota of CPUs" in provision.fails("resize", "various", "--cpus", "64", "--yes", status=1)
    # the hypervisor of the development cloud copies no disk of its containers: the new one has the host key that the
    # creation's user-data bring, which nobody accepts any more, but for this
    with (folder / "known_hosts").open("a") as known:
        known.write(f"{host_alias('various', made['uid'])} {' '.join(first_key.split()[:2])}\n")
    killed(provision, "resize", "intended", *RESIZE, "--yes")
    assert "A resize of the platform various is unfinished" in provision.fails(*create, status=2)
    provision("resize", "various")
    resized = shown(provision)
    assert (resized["spec"]["cpus"], resized["access"]) == (2, made["access"])
    assert resized["facts"]["flavor"].startswith("m1.medium")
    status, name, wishes = server(openstack_cloud, resized)
    assert (status, name) == ("ACTIVE", "m1.medium")
    assert "cpus" not in wishes  # as many as by default; there was one

    provision("ssh", "various", "touch", "lost")
    provision("rebuild", "various", "--yes")
    assert provision("ssh", "various", "ls") == ""
    rebuilt = shown(provision)
    assert (rebuilt["state"], rebuilt["access"], rebuilt["spec"]) == ("bare", made["access"], resized["spec"])
    assert first_key.split()[1] not in (folder / "known_hosts").read_text()
    provision("delete", "various", "--yes")
    assert listing(openstack_cloud) == before


@long
def test_a_released_server_has_its_disk_again(provision: Command, openstack_cloud: TestCloud, small_disk: str):
    before, images_before = listing(openstack_cloud), images(openstack_cloud)
    provision("create", "various", "--cloud", openstack_cloud.name, "--disk", "2GB", *SMALL)
    assert shown(provision)["facts"]["flavor"].startswith(small_disk)
    provision("ssh", "various", "touch", "kept")
    provision("stop", "various", "--release")
    assert json.loads(provision("list", "--json"))[0]["machine"] == "released"
    assert images(openstack_cloud) - images_before == {"various-shelved"}
    assert "Start it first" in provision.fails(*RESIZE, "--yes", status=2)
    provision("start", "various")
    assert provision("ssh", "various", "ls", "kept") == "kept\n"
    assert images(openstack_cloud) == images_before
    provision("stop", "various", "--release")
    provision("delete", "various", "--yes")
    assert (listing(openstack_cloud), images(openstack_cloud)) == (before, images_before)
