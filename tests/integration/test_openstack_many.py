"""Many creations and deletions, some at once and some killed: nothing is left, and nothing else is touched.

Each takes most of a minute: the suite is content with one; `CREATIONS=20` makes it 20.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from provision.plan import undo
from provision.record import Home
from provision.spec import PlatformSpec
from tests import faults
from tests.conftest import Command, Silent
from tests.devcloud.fixtures import TestCloud, connect, listing

from .killed import killed

# the SDK reads fields of limits that it has deprecated itself
pytestmark = [pytest.mark.cloud, pytest.mark.filterwarnings("ignore::openstack.warnings.RemovedFieldWarning")]

CREATIONS = int(os.environ.get("CREATIONS", "1"))
AT_ONCE = 2
KILLED_IN = ("server", "data-volume", "network", "volume-attachment", "floating-ip", "router", "security-group")


def uid(number: int) -> str:
    """The uid of the platform of that number, known beforehand."""
    return f"{number:010x}"


@pytest.fixture
def same_names(openstack_cloud: TestCloud) -> Iterator[None]:
    """Things of the project's own with the names that the first platform's will have, and servers named like it."""
    connection = connect(openstack_cloud)
    network, compute = connection.network, connection.compute
    name = f"provision-many-0-{uid(0)}"
    with ExitStack() as undone:
        undone.callback(connection.close)
        group = network.create_security_group(name=name, description="by hand")
        undone.callback(network.delete_security_group, group)
        made = network.create_network(name=name, description="by hand")
        undone.callback(network.delete_network, made)
        network.create_subnet(name=name, network_id=made.id, cidr="10.142.0.0/24", ip_version=4)
        flavor = compute.find_flavor("m1.small", ignore_missing=True) or next(iter(compute.flavors()))
        image = next(iter(connection.image.images(status="active")))
        server = compute.create_server(
            name="many-0", flavor_id=flavor.id, image_id=image.id, networks=[{"uuid": made.id}]
        )
        undone.callback(_remove_server, connection, server)
        if connection.has_service("block-storage"):
            volume = connection.block_storage.create_volume(name=name, description="by hand", size=1)
            undone.callback(connection.block_storage.delete_volume, volume)
            connection.block_storage.wait_for_status(volume, "available")
        compute.wait_for_server(server)
        yield


def _remove_server(connection: Any, server: Any) -> None:
    connection.compute.delete_server(server)
    connection.compute.wait_for_delete(server)


@pytest.fixture
def same_marks_elsewhere(openstack_cloud: TestCloud) -> Iterator[None]:
    """A network and a group in another project that bear the first platform's very mark; they have to outlive it."""
    if not openstack_cloud.development:
        yield
        return
    connection = connect(openstack_cloud, "devcloud-other")
    network = connection.network
    mark = {"name": f"provision-many-0-{uid(0)}", "description": f"provision many-0 {uid(0)}"}
    group, made = network.create_security_group(**mark), network.create_network(**mark)
    yield
    network.delete_security_group(group, ignore_missing=False)
    network.delete_network(made, ignore_missing=False)
    connection.close()


def test_many_platforms_come_and_go(
    openstack_cloud: TestCloud,
    user_home: Path,
    same_names: None,
    same_marks_elsewhere: None,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", str(openstack_cloud.config))
    command = Command(user_home, OS_CLIENT_CONFIG_FILE=str(openstack_cloud.config))
    before = listing(openstack_cloud)
    volumes = any(kind == "volume" for kind, *_ in before)

    def come_and_go(number: int) -> None:
        spec = PlatformSpec(name=f"many-{number}", cloud=openstack_cloud.name, cpus=1, memory=1, disk=10)
        # the quota has servers for one worker at a time, and the suite no time for one
        more = {"workers": int(number % 6 == 2), "data_volume": 1.0 if volumes and number % 2 == 0 else None}
        spec = spec.model_copy(update=more)
        plan = faults.cloud_plan(spec, Home(), pauses=(1.0,) * 4)
        plan.record.uid = uid(number)
        try:
            made = plan.execute(Silent())
            assert {"worker-1", "volume-attachment"} & {entry.step for entry in made.ledger} == {
                *(["worker-1"] if spec.workers else []),
                *(["volume-attachment"] if spec.data_volume else []),
            }
        finally:
            undo(plan.cloud, plan.platform, Silent(), keep_data=False)

    def come_half_and_go(number: int) -> None:
        steps = [step for step in KILLED_IN if volumes or "volume" not in step]
        step = steps[number // 3 % len(steps)]
        create = ["create", f"killed-{number}", "--cloud", openstack_cloud.name, "--cpus=1", "--memory=1GB"]
        volume = ["--data-volume=1GB"] if "volume" in step else []
        killed(command, step, "made", *create, "--disk=10GB", *volume, "--bare", "--yes")
        command("delete", f"killed-{number}", "--yes", *(["--delete-data"] if volume else []))

    with ThreadPoolExecutor(AT_ONCE) as pool:
        ends = [
            pool.submit(come_half_and_go if number % 3 == 1 else come_and_go, number) for number in range(CREATIONS)
        ]
    for end in ends:
        end.result()
    assert listing(openstack_cloud) == before
    assert Home().folders() == []
