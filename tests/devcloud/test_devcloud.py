"""The development cloud behaves as a cloud: it answers, and has outages on demand."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from keystoneauth1.exceptions import ConnectFailure

from tests.devcloud import processes
from tests.devcloud.fixtures import TestCloud, connect
from tests.devcloud.seed import FLAVORS, USERS
from tests.devcloud.state import HERE

pytestmark = pytest.mark.cloud


@pytest.fixture(scope="module")
def devcloud(openstack_cloud: TestCloud) -> TestCloud:
    if not openstack_cloud.development:
        pytest.skip("OS_CLOUD names another OpenStack; this is about the development cloud itself")
    return openstack_cloud


def test_every_cloud_of_clouds_yaml_sees_the_image_and_the_flavors(devcloud: TestCloud) -> None:
    for name in [*USERS, "devcloud-appcred"]:
        connection = connect(devcloud, name)
        assert connection.image.find_image("debian-12").visibility == "public"
        assert {flavor.name for flavor in connection.compute.flavors()} == set(FLAVORS)
        connection.close()


def test_a_project_does_not_see_the_networks_of_another(devcloud: TestCloud) -> None:
    mine, theirs = connect(devcloud), connect(devcloud, "devcloud-other")
    assert theirs.network.find_network("other-net")
    assert mine.network.find_network("other-net") is None
    for connection in (mine, theirs):
        connection.close()


def verb(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "tests.devcloud", *words], cwd=HERE.parents[1], check=True)


def test_an_outage_of_nova_is_seen_by_a_client_and_ends(devcloud: TestCloud) -> None:
    connection = connect(devcloud)
    verb("stop", "nova-api")
    try:
        with pytest.raises(ConnectFailure):
            list(connection.compute.servers())
        assert connection.network.find_network("public")
    finally:
        verb("start", "nova-api")
    assert list(connection.compute.servers()) is not None
    connection.close()


def test_a_server_cannot_touch_control_groups_of_this_computer(devcloud: TestCloud) -> None:
    if Path("/sys/fs/cgroup/cgroup.controllers").exists():
        pytest.skip("this computer has version 2 of control groups, of which the servers see all")
    foreign = Path("/sys/fs/cgroup/cpu") / f"foreign-{os.getpid()}"
    foreign.mkdir()
    try:
        words = ["nsenter", "--mount", "--cgroup", "--target", str(processes.pid("libvirtd")), "find", "/sys/fs/cgroup"]
        seen = subprocess.run([*words, "-name", foreign.name], capture_output=True, text=True, check=True).stdout
    finally:
        foreign.rmdir()
    assert seen == "", "a server's systemd would remove it, as it is empty"


def test_volumes_are_made_and_removed_within_a_quota(devcloud: TestCloud) -> None:
    from openstack.exceptions import HttpException

    connection = connect(devcloud, "devcloud-other")
    storage = connection.block_storage
    volume = storage.create_volume(name="of a test", size=1)
    try:
        storage.wait_for_status(volume, "available", failures=["error"], interval=0.5, wait=300)
        quota = storage.get_quota_set(connection.current_project_id, usage=True)
        assert (quota.volumes, quota.gigabytes, quota.snapshots) == (6, 60, 4)
        assert quota.usage["volumes"] >= 1
        with pytest.raises(HttpException, match="exceeds allowed gigabytes quota"):
            storage.create_volume(name="too large", size=61)
    finally:
        storage.delete_volume(volume)
        storage.wait_for_delete(volume, interval=0.5, wait=300)
        connection.close()
