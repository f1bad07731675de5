"""An OpenStack that fails: commands complete alone or by the next one, nothing is made twice, nothing is left."""

from __future__ import annotations

import logging
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from provision.clouds.base import Platform
from provision.clouds.openstack import OpenStackCloud
from provision.errors import ProvisionError
from provision.plan import undo
from provision.record import Home, Record
from provision.spec import PlatformSpec
from tests import faults
from tests.conftest import Silent
from tests.devcloud.fixtures import Entry, TestCloud, connect, listing

# the SDK reads fields of limits that it has deprecated itself
pytestmark = [pytest.mark.cloud, pytest.mark.filterwarnings("ignore::openstack.warnings.RemovedFieldWarning")]


@pytest.fixture
def home(user_home: Path, openstack_cloud: TestCloud, monkeypatch: pytest.MonkeyPatch) -> Home:
    """An empty home, with the cloud's clouds.yaml."""
    monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", str(openstack_cloud.config))
    return Home()


@pytest.fixture
def before(openstack_cloud: TestCloud) -> frozenset[Entry]:
    """What the project has before the test."""
    return listing(openstack_cloud)


def wishes(cloud: TestCloud, name: str) -> PlatformSpec:
    """The smallest platform."""
    return PlatformSpec(name=name, cloud=cloud.name, cpus=1, memory=1, disk=10)


def test_calls_fail_and_every_command_comes_to_its_end(
    openstack_cloud: TestCloud, home: Home, before: frozenset[Entry]
):
    page = faults.PAGE.read_text(encoding="utf-8")
    documented = faults.read_table(page)
    assert page.endswith(faults.table(documented))
    trial = faults.Trial(openstack_cloud, home)
    try:
        outcomes = faults.some(trial)
    finally:
        undo(trial.cloud, trial.platform, Silent(), keep_data=False)
    assert listing(openstack_cloud) == before
    if openstack_cloud.development:
        found = {(*row, mode): outcome for row, modes in outcomes.items() for mode, outcome in modes.items()}
        assert found == {key: documented[key[0], key[1]].get(key[2], "not tried") for key in found}


def forget(cloud: TestCloud, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove every platform that a failed test left."""
    monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", str(cloud.config))
    for folder in home.folders():
        undo(OpenStackCloud(cloud.name), Platform(folder.load(), folder), Silent())


class Door:
    """A way to an endpoint that can be shut: as if the service behind it were stopped, and started again."""

    def __init__(self, endpoint: str) -> None:
        target = urlsplit(endpoint)
        self._target = (str(target.hostname), int(target.port or 80))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}{target.path}"
        self._ends: list[socket.socket] = []
        self._is_shut = self._mute = False
        self._serve()

    def shut(self) -> None:
        """Refuse new connections and break those that are."""
        self._is_shut = True
        _end(self._listener)
        while self._ends:
            _end(self._ends.pop())

    def open(self) -> None:
        """Answer again, at the same address, if it was shut."""
        if not self._is_shut:
            return
        self._is_shut = False
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self._serve()

    def mute(self) -> None:
        """Accept new connections, and answer nothing."""
        self.shut()
        self._mute = True
        self.open()

    def _serve(self) -> None:
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                self._ends.append(client)
                if self._mute:
                    continue
                server = socket.create_connection(self._target)
                self._ends.append(server)
                for one, other in ((client, server), (server, client)):
                    threading.Thread(target=_carry, args=(one, other), daemon=True).start()


def _carry(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    _end(source)
    _end(sink)


def _end(end: socket.socket) -> None:
    with suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    end.close()


class _Listener(logging.Handler):
    """What the toolkit warns of; at every second warning the doors are opened again."""

    def __init__(self, doors: dict[str, Door]) -> None:
        super().__init__(logging.WARNING)
        self._doors = doors
        self.warnings: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.warnings.append(record.getMessage())
        if len(self.warnings) % 2 == 0:
            for door in self._doors.values():
                door.open()


class _Shutting(Silent):
    """Progress that shuts a door when the stage of that title begins, once."""

    def __init__(self, doors: dict[str, Door]) -> None:
        super().__init__()
        self._doors = dict(doors)

    def stage(self, title: str) -> Any:
        for beginning in [beginning for beginning in self._doors if title.startswith(beginning)]:
            self._doors.pop(beginning).shut()
        return super().stage(title)


@pytest.fixture
def doors(
    openstack_cloud: TestCloud, home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[dict[str, Door]]:
    """Doors before the endpoints of Neutron (`network`) and Nova (`compute`), in a clouds.yaml of the test's own."""
    connection = connect(openstack_cloud)
    doors = {name: Door(getattr(connection, name).get_endpoint()) for name in ("network", "compute")}
    connection.close()
    clouds = yaml.safe_load(openstack_cloud.config.read_text())
    clouds["clouds"][openstack_cloud.name] |= {f"{name}_endpoint_override": door.url for name, door in doors.items()}
    file = tmp_path / "clouds.yaml"
    file.write_text(yaml.safe_dump(clouds))
    monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", str(file))
    yield doors
    for door in doors.values():
        door.shut()


def test_services_are_stopped_and_started_again(
    openstack_cloud: TestCloud,
    home: Home,
    before: frozenset[Entry],
    doors: dict[str, Door],
    monkeypatch: pytest.MonkeyPatch,
):
    spec = wishes(openstack_cloud, "outage")
    heard = _Listener(doors)
    try:
        # Neutron stays down: the command ends with a sentence
        with pytest.raises(ProvisionError, match="cannot be reached"):
            faults.cloud_plan(spec, home, pauses=(0.01,)).execute(_Shutting({"router": doors["network"]}))
        doors["network"].open()
        # both go down and come back: the commands wait for them
        logging.getLogger("provision").addHandler(heard)
        plan = faults.cloud_plan(spec, home, pauses=(0.01,) * 4)
        record = plan.execute(_Shutting({"router": doors["network"], "server": doors["compute"]}))
        assert record.state == "bare"
        assert len(heard.warnings) == 4 and "trying again in" in heard.warnings[0]
        new = Counter(kind for kind, *_ in listing(openstack_cloud) - before)
        assert [new[kind] for kind in ("server", "floating IP", "network", "subnet", "router", "key pair")] == [1] * 6
        going = _Shutting({"removing server": doors["compute"], "removing router": doors["network"]})
        undo(plan.cloud, plan.platform, going)
        assert len(heard.warnings) == 8
    finally:
        logging.getLogger("provision").removeHandler(heard)
        forget(openstack_cloud, home, monkeypatch)
    assert listing(openstack_cloud) == before


def test_a_service_that_never_answers_does_not_hang_the_command(
    openstack_cloud: TestCloud, doors: dict[str, Door], tmp_path: Path
):
    file = tmp_path / "clouds.yaml"
    clouds = yaml.safe_load(file.read_text())
    clouds["clouds"][openstack_cloud.name]["api_timeout"] = 1
    file.write_text(yaml.safe_dump(clouds))
    cloud = OpenStackCloud(openstack_cloud.name, pauses=(0.01,) * 4)
    doors["network"].mute()
    record = Record(name="mute", uid="0123456789", owner="", toolkit="", spec=wishes(openstack_cloud, "mute"))
    with pytest.raises(ProvisionError, match=r"did not answer in time, even when asked again \(2 attempts\)"):
        cloud.discover(Platform(record, Home().folder("mute")))


@pytest.fixture
def flavor_without_host(openstack_cloud: TestCloud) -> Iterator[str]:
    """A flavor, of this project alone, that is the smallest that serves and for which no host has what it takes."""
    if not openstack_cloud.development:
        pytest.skip("only the development cloud is given flavors")
    project = connect(openstack_cloud).current_project_id
    admin = connect(openstack_cloud, "devcloud-admin").compute
    made = admin.create_flavor(name="a0.nowhere", vcpus=1, ram=1024, disk=10, is_public=False)
    admin.create_flavor_extra_specs(made, {"trait:HW_CPU_X86_AVX512ER": "required"})
    admin.flavor_add_tenant_access(made, project)
    yield made.name
    admin.delete_flavor(made)


def test_where_no_host_has_room_the_next_flavor_is_tried_once(
    openstack_cloud: TestCloud,
    home: Home,
    before: frozenset[Entry],
    flavor_without_host: str,
    caplog: pytest.LogCaptureFixture,
):
    plan = faults.cloud_plan(wishes(openstack_cloud, "roomy"), home, pauses=())
    assert plan.record.facts["flavor"].startswith(flavor_without_host)
    try:
        record = plan.execute(Silent())
        assert "No valid host" in caplog.text and "Trying once more, with the flavor m1.small" in caplog.text
        kept = plan.platform.folder.load()
        assert kept.facts["flavor"].startswith("m1.small") and flavor_without_host in kept.facts["flavor"]
        connection = connect(openstack_cloud)
        server = connection.compute.get_server(record.resource("server").id)
        assert server.flavor.name == "m1.small"
        assert [kind for kind, *_ in listing(openstack_cloud) - before].count("server") == 1
    finally:
        undo(plan.cloud, plan.platform, Silent())
    assert listing(openstack_cloud) == before
