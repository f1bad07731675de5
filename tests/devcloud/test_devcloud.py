"""The development cloud behaves as a cloud: it answers, boots a plain Debian, and has outages on demand."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
from keystoneauth1.exceptions import ConnectFailure

from tests.devcloud.fixtures import TestCloud, connect, listing
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


@contextmanager
def server(connection: Any) -> Iterator[Any]:
    """A server on a network of its own, both deleted at the end."""
    with ExitStack() as undo:
        network = connection.network.create_network(name="devcloud-test")
        undo.callback(connection.network.delete_network, network)
        connection.network.create_subnet(network_id=network.id, cidr="10.99.0.0/24", ip_version=4)
        made = connection.compute.create_server(
            name="devcloud-test",
            image_id=connection.image.find_image("debian-12").id,
            flavor_id=connection.compute.find_flavor("m1.small").id,
            networks=[{"uuid": network.id}],
        )
        undo.callback(connection.compute.wait_for_delete, made, interval=1)
        undo.callback(connection.compute.delete_server, made)
        yield connection.compute.wait_for_server(made, interval=1, wait=300)


def test_a_server_shows_its_host_keys_in_the_console_log_and_leaves_nothing(devcloud: TestCloud) -> None:
    before = listing(devcloud)
    connection = connect(devcloud)
    with server(connection) as made:
        log, end = "", time.monotonic() + 180
        while "-----END SSH HOST KEY KEYS-----" not in log and time.monotonic() < end:
            time.sleep(1)
            log = connection.compute.get_server_console_output(made)["output"]
        assert "systemd" in log
        assert "\nssh-ed25519 AAAA" in log.replace("\r", "")
    connection.close()
    assert listing(devcloud) == before


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
