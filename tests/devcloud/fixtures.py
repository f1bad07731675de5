"""The OpenStack of the tests: the one that OS_CLOUD names, or the development cloud where it can be."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

from tests.devcloud.commands import DevcloudError
from tests.devcloud.packages import debian_codename
from tests.devcloud.state import CLOUDS, DIR, HERE

_REPOSITORY = HERE.parents[1]


@dataclass(frozen=True)
class TestCloud:
    """An OpenStack for tests.

    Args:
        name: its entry in clouds.yaml.
        config: that clouds.yaml.
        development: whether it is the development cloud, with its users, flavors, quotas and outages.
    """

    __test__: ClassVar[bool] = False  # no test class, whatever pytest thinks of the name

    name: str
    config: Path
    development: bool


@pytest.fixture(scope="session")
def openstack_cloud() -> Iterator[TestCloud]:
    """An OpenStack: that of OS_CLOUD, else the development cloud; skips where neither can be.

    A development cloud that runs already is used and left running; one that was started for the tests is taken down
    after them, unless DEVCLOUD_KEEP is set. Under CI, root on Debian 12 must be able to start it.
    """
    if name := os.environ.get("OS_CLOUD"):
        yield TestCloud(name, _clouds_yaml(), development=False)
        return
    if obstacle := _obstacle():
        pytest.skip(f"{obstacle}; set OS_CLOUD to test with another OpenStack")
    started = _start()
    yield TestCloud("devcloud", CLOUDS, development=True)
    if started and not os.environ.get("DEVCLOUD_KEEP"):
        _verb("down")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Packages and image of the cloud are made while other tests run; quick tests are left to fill the end."""
    items.sort(key=lambda item: 1 if _needs_cloud(item) else 2 if item.nodeid.startswith("tests/unit/") else 0)


def _needs_cloud(item: pytest.Item) -> bool:
    return "openstack_cloud" in getattr(item, "fixturenames", ())


_preparation: list[subprocess.Popen[bytes]] = []


def pytest_collection_finish(session: pytest.Session) -> None:
    """Begin to install packages and to build the image, unless nothing or nothing else is to be tested."""
    if getattr(session.config, "workerinput", {"workerid": "gw0"})["workerid"] != "gw0":
        return  # one of several processes is enough
    needing = [_needs_cloud(item) for item in session.items]
    if not any(needing) or all(needing) or session.config.option.collectonly:
        return
    if os.environ.get("OS_CLOUD") or _obstacle() or _run("status").returncode == 0:
        return
    words = " && ".join(f"{shlex.quote(sys.executable)} -m tests.devcloud {verb}" for verb in ("install", "image"))
    _preparation.append(
        subprocess.Popen(["sh", "-c", words], **_PLACE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    )


def pytest_sessionfinish() -> None:
    """Wait for packages that are still being installed: an interrupted installation would have to be mended by hand."""
    for process in _preparation:
        process.wait()


def _clouds_yaml() -> Path:
    """The clouds.yaml that the SDK finds: OS_CLIENT_CONFIG_FILE or one of its usual places."""
    from openstack.config import OpenStackConfig

    file = OpenStackConfig().config_filename
    if not file:
        pytest.fail("OS_CLOUD is set, but there is no clouds.yaml; set OS_CLIENT_CONFIG_FILE to its path")
    return Path(file)


def _obstacle() -> str:
    """Why this computer cannot have the development cloud at all; empty when it can."""
    try:
        debian_codename()
    except DevcloudError as error:
        return str(error)
    return "" if os.geteuid() == 0 else "the development cloud needs root"


def _start() -> bool:
    """Bring the development cloud up; returns whether it was down before."""
    if _run("status").returncode == 0:
        return False
    for process in _preparation:  # if it failed, the same verbs fail again below, and say why
        process.wait()
    try:
        for verb in ("install", "image", "down", "up"):  # `down` first, for what a killed session may have left
            _verb(verb)
    except DevcloudError as error:
        _run("down")
        if os.environ.get("CI"):
            pytest.fail(f"the development cloud does not start: {error}")
        pytest.skip(f"the development cloud does not start on this computer: {error}")
    return True


def _verb(verb: str) -> None:
    result = _run(verb)
    if result.returncode:
        raise DevcloudError(f"{result.stdout}{result.stderr}".strip())


_PLACE: dict[str, Any] = {"cwd": _REPOSITORY, "env": {**os.environ, "DEVCLOUD_DIR": str(DIR)}}


def _run(verb: str) -> subprocess.CompletedProcess[str]:
    """Run a verb as a user would, with the environment that the tests began with: one of them may have changed HOME."""
    return subprocess.run(
        [sys.executable, "-m", "tests.devcloud", verb],
        **_PLACE,
        capture_output=True,
        text=True,
        check=False,
    )


def connect(cloud: TestCloud, name: str = "") -> Any:
    """A connection (openstack.connection.Connection) to it, or to another entry of its clouds.yaml."""
    import openstack
    from openstack.config import OpenStackConfig

    config = OpenStackConfig(config_files=[str(cloud.config)], load_envvars=False)
    return openstack.connection.Connection(config=config.get_one(cloud=name or cloud.name))


Entry = tuple[str, str, str]


def listing(cloud: TestCloud) -> frozenset[Entry]:
    """Everything in the project that a platform could leave behind, to be compared before and after.

    Returns:
        (kind, id, name) of each thing; the name of a security group tells its number of rules, too.
    """
    connection = connect(cloud)
    network, compute = connection.network, connection.compute
    project = {"project_id": connection.current_project_id}
    kinds = {
        "server": compute.servers(),
        "port": network.ports(**project),
        "network": network.networks(**project),
        "subnet": network.subnets(**project),
        "router": network.routers(**project),
        "volume": connection.block_storage.volumes() if connection.has_service("block-storage") else (),
    }
    found = {(kind, thing.id, thing.name or "") for kind, things in kinds.items() for thing in things}
    found |= {("floating IP", thing.id, thing.floating_ip_address) for thing in network.ips(**project)}
    found |= {("key pair", thing.name, thing.fingerprint) for thing in compute.keypairs()}
    for group in network.security_groups(**project):
        found.add(("security group", group.id, f"{group.name} ({len(group.security_group_rules)} rules)"))
    connection.close()
    return frozenset(found)
