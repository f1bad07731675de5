"""Data outlive their machine: on a real Cinder and Nova, and on this computer."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from provision.clouds._cinder import Volumes
from provision.clouds.base import DataVolume, Platform
from provision.clouds.openstack import OpenStackCloud
from provision.configure import platform_variables, run_playbook
from provision.errors import ProvisionError
from provision.framework import find_framework
from provision.record import Home, Record, new_uid
from provision.spec import make_spec
from tests.conftest import Command, long
from tests.devcloud.fixtures import TestCloud, listing

from .killed import killed

# the SDK warns of fields that the answers of older clouds still have
pytestmark = pytest.mark.filterwarnings("ignore::openstack.warnings.RemovedFieldWarning")


@pytest.fixture
def volumes(openstack_cloud: TestCloud, monkeypatch: pytest.MonkeyPatch) -> Iterator[Volumes]:
    """The data volumes of the test's cloud; what a failed test left is removed."""
    monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", str(openstack_cloud.config))
    made = OpenStackCloud(openstack_cloud.name)._volumes
    if not made.there:
        pytest.skip("this cloud has no volumes")
    before = made.all()
    yield made
    for volume in set(made.all()) - set(before):
        made.remove(volume.id)


def planned(volumes: Volumes, wish: str, folder: Path) -> tuple[Platform, dict[str, str]]:
    """A platform with a data volume, and what was chosen for it."""
    spec = make_spec({"name": "keeper", "cloud": volumes.name, "data_volume": wish})
    record = Record(name="keeper", uid=new_uid(), owner="tester@here", toolkit="1", spec=spec)
    return Platform(record, Home(folder).folder("keeper")), volumes.offer(spec)[1]


def test_a_volume_is_made_once_kept_and_taken_by_one_platform(volumes: Volumes, tmp_path: Path) -> None:
    first, values = planned(volumes, "1GB", tmp_path)
    storage = volumes.conn.block_storage
    assert volumes.find(first, values) is None
    made = volumes.make(first, values)
    # an answer that was lost: the same command finds it again
    assert volumes.make(first, values) == volumes.find(first, values) == made
    # a request that was given up and carried out all the same
    marks = storage.get_volume(made.id).metadata
    double = storage.create_volume(name=made.name, size=1, metadata=marks)
    assert [resource.id for resource in volumes.discover(first)] == [made.id, double.id]
    assert volumes.find(first, values) == made
    assert [volume.id for volume in volumes.all() if volume.name == made.name] == [made.id]
    with pytest.raises(ProvisionError, match=f"{made.name!r} belongs to the platform keeper"):
        planned(volumes, made.name, tmp_path)

    volumes.keep(made.id)
    volumes.keep(made.id)
    assert volumes.discover(first) == []

    def seen() -> DataVolume:
        return next(volume for volume in volumes.all() if volume.id == made.id)

    assert (seen().kept, seen().gigabytes, seen().owner, seen().mine) == (True, 1, "tester@here", True)
    second, taking = planned(volumes, made.name, tmp_path)
    third, same = planned(volumes, made.id, tmp_path)
    assert volumes.make(second, taking).id == made.id == volumes.discover(second)[0].id
    with pytest.raises(ProvisionError, match="Another platform has taken the data volume"):
        volumes.make(third, same)
    assert not seen().kept
    volumes.remove(made.id)
    volumes.remove(made.id)
    assert made.id not in {volume.id for volume in volumes.all()}


def test_what_the_quota_does_not_admit_is_told_before_anything_is_made(volumes: Volumes, tmp_path: Path) -> None:
    with pytest.raises(ProvisionError, match=r"volume gigabytes .* used and 5000 more needed"):
        planned(volumes, "5000GB", tmp_path)
    with pytest.raises(ProvisionError, match="has no data volume 'nowhere'"):
        planned(volumes, "nowhere", tmp_path)


@pytest.fixture
def provision(user_home: Path, request: pytest.FixtureRequest) -> Iterator[Command]:
    """The command, in an empty home, with the cloud's clouds.yaml; what a failed test left is removed."""
    cloud = "local"
    variables = {}
    if "openstack_cloud" in request.fixturenames:
        found = request.getfixturevalue("openstack_cloud")
        cloud, variables = found.name, {"OS_CLIENT_CONFIG_FILE": str(found.config)}
    command = Command(user_home, **variables)
    yield command
    for left in json.loads(command("list", "--json")):
        command("delete", left["name"], "--yes", "--delete-data")
    mine = [
        v for v in json.loads(command("volume", "list", "--cloud", cloud, "--json")) if v["platform"].endswith("keeper")
    ]
    for volume in mine:
        command("volume", "delete", volume["id"], "--cloud", cloud, "--yes")


def apply_base(provision: Command) -> None:
    """The role that mounts the volume, without the rest of a platform."""
    home = Home(provision.home / "provision")
    folder = home.folder("keeper")
    record = folder.load()
    variables = platform_variables(record, find_framework("", home.cache))
    run_playbook(folder, "platform.yml", variables, lambda _: None, tags=["base"])


def mounted(provision: Command) -> dict[str, Any]:
    """What is mounted as the folder of data."""
    words = ["findmnt", "--json", "--output", "SOURCE,UUID,OPTIONS,FSTYPE", "/var/lib/mlaas4hep"]
    found: dict[str, Any] = json.loads(provision("ssh", "keeper", "--", *words))["filesystems"][0]
    return found


def volume_of(provision: Command) -> dict[str, Any]:
    ledger = json.loads(provision("show", "keeper", "--json"))["ledger"]
    found: dict[str, Any] = next(entry for entry in ledger if entry["step"] == "data-volume")["resource"]
    return found


def as_root(provision: Command, script: str) -> str:
    return provision("ssh", "keeper", "--", "sudo", "sh", "-c", script)


@long
@pytest.mark.cloud
def test_data_of_a_server_are_there_after_a_rebuild_and_on_the_next_server(
    openstack_cloud: TestCloud, provision: Command
) -> None:
    before = listing(openstack_cloud)
    sizes = ["--cpus", "1", "--memory", "1GB", "--disk", "10GB", "--bare", "--yes"]
    create = ["create", "keeper", "--cloud", openstack_cloud.name, *sizes, "--data-volume"]
    killed(provision, "data-volume", "made", *create, "1GB")
    killed(provision, "volume-attachment", "made", *create, "1GB")
    provision(*create, "1GB")
    volume = volume_of(provision)
    apply_base(provision)
    assert mounted(provision)["uuid"] == volume["id"] and mounted(provision)["fstype"] == "ext4"
    as_root(provision, "echo kept > /var/lib/mlaas4hep/word")
    # a second time nothing is formatted, and the machine's restart mounts it
    apply_base(provision)
    provision("stop", "keeper")
    provision("start", "keeper")
    assert as_root(provision, "systemctl start platform-data && cat /var/lib/mlaas4hep/word") == "kept\n"

    provision("rebuild", "keeper", "--yes")
    apply_base(provision)
    assert as_root(provision, "cat /var/lib/mlaas4hep/word") == "kept\n"

    # without its volume the machine says so, and nobody but root may write where it should be
    as_root(provision, "systemctl stop platform-data; umount /var/lib/mlaas4hep")
    other = "964e6cbb-5d73-4c71-961a-c2752948a21b"
    told = provision.run("ssh", "keeper", "--", "sudo", "/usr/local/sbin/platform-data", "mount", other)
    assert told.returncode == 1 and f"The data volume {other} is missing" in told.stderr
    assert as_root(provision, "stat -c '%U %a' /var/lib/mlaas4hep") == "root 700\n"
    device = json.loads(provision("show", "keeper", "--json"))["ledger"]
    device = next(entry for entry in device if entry["step"] == "volume-attachment")["resource"]["details"]["device"]
    refused = ["sudo", "/usr/local/sbin/platform-data", "prepare", other, device]
    told = provision.run("ssh", "keeper", "--", *refused)
    assert told.returncode == 1 and "is not blank (ext4): it is left as it is" in told.stderr

    shown = provision("delete", "keeper", "--dry-run")
    assert f"kept: data volume {volume['name']} (1 GB); --delete-data removes it" in shown
    provision("delete", "keeper", "--yes")
    assert volume["name"] in provision("list")
    assert "none, before keeper" in provision("volume", "list", "--cloud", openstack_cloud.name)
    provision(*create, volume["name"])
    assert provision("volume", "list", "--cloud", openstack_cloud.name).count("none, before") == 0
    apply_base(provision)
    assert as_root(provision, "cat /var/lib/mlaas4hep/word") == "kept\n"
    provision("delete", "keeper", "--yes", "--delete-data")
    assert listing(openstack_cloud) == before


@long
@pytest.mark.machine
def test_jobs_and_models_are_there_on_the_next_machine_of_this_computer(
    computer_with_machines: None, provision: Command, tmp_path: Path
) -> None:
    create = ["create", "keeper", "--disk", "6GB", "--yes", "--data-volume"]
    provision(*create, "2GB")
    volume = volume_of(provision)["name"]
    folder = tmp_path / "higgs"
    subprocess.run(["mlaas4hep", "example-data", folder, "--events", "2000"], env=provision.environment, check=True)
    provision("train", "keeper", str(folder))
    event = str(folder / "event.json")
    answer = provision("predict", "keeper", event)
    # the next system may number its users otherwise
    as_root(provision, "systemctl stop mlaas4hep; chown -R 4242:4242 /var/lib/mlaas4hep/")
    provision("delete", "keeper", "--yes")
    assert volume in provision("list")
    killed(provision, "root", "made", *create, volume)
    provision(*create, volume)
    assert json.loads(provision("jobs", "keeper", "--json"))[0]["state"] == "finished"
    assert json.loads(provision("predict", "keeper", event)) == json.loads(answer)
    provision("rebuild", "keeper", "--yes")
    assert json.loads(provision("predict", "keeper", event)) == json.loads(answer)
    provision("delete", "keeper", "--yes")
    provision("volume", "delete", volume, "--yes")
    assert volume not in provision("list")
    assert list((provision.home / "provision" / "volumes").iterdir()) == []
