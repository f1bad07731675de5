"""Baked images: what takes minutes is done once, and machines of one image share nothing that is a machine's own."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from provision.framework import find_framework
from provision.record import Home
from tests.conftest import Command, long
from tests.devcloud.fixtures import TestCloud, connect, listing

pytestmark = [pytest.mark.cloud, long]

SMALL = ["--cpus", "1", "--memory", "1GB", "--disk", "6GB", "--yes"]
SHARED = ["--service", "shared", "--domain", "ml.example.org", "--tls", "internal"]
SHARED += ["--iam", "https://iam.example.org/", "--client-id", "ml"]
# a machine's identity and secrets; the proxy's are those of a shared service
OWN = ["/etc/machine-id", "/etc/ssh/ssh_host_ed25519_key", "/var/lib/mlaas4hep/token"]
READY = "http://127.0.0.1:8080/ready"
PRIVATE = "-----BEGIN [A-Z ]*PRIVATE KEY-----"


@pytest.fixture(scope="module")
def framework() -> list[str]:
    """This checkout's wheel, built once: a checkout that is worked on gives another one at each change."""
    return ["--mlaas4hep", str(find_framework("", Home().cache).wheel)]


@pytest.fixture(scope="module")
def command(
    computer_with_machines: None, framework: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Command]:
    """The command in a home with an image for this computer; what a failed test left is deleted."""
    home = tmp_path_factory.mktemp("home")
    home.chmod(0o700)
    command = Command(home)
    try:
        command("image", "build", *framework, "--yes")
        yield command
    finally:
        for left in json.loads(command("list", "--json")):
            command("delete", left["name"], "--yes")


def digests(command: Command, name: str, *more: str) -> set[str]:
    """Digests of what must be the machine's own, and of all else that is private in its /etc."""
    words = f"sha256sum {' '.join((*OWN[:2], *more))} $(grep -rlE -e '{PRIVATE}' /etc)"
    lines = command("ssh", name, "--", "sudo", "sh", "-c", words).splitlines()
    assert len(lines) > 2
    return {line.split()[0] for line in lines}


def played(command: Command, name: str) -> dict[str, float]:
    """The tasks of the last run of the roles."""
    logs = sorted((command.home / "provision" / "platforms" / name / "logs").glob("platform-*.json"))
    seconds: dict[str, float] = json.loads(logs[-1].read_text())["seconds"]
    return seconds


def rebuilt(command: Command, name: str) -> None:
    """Make the system anew, of the baked image again: nothing is installed, and keys and token are other ones."""
    before = digests(command, name, OWN[2])
    assert "baked" in json.loads(command("rebuild", name, "--dry-run", "--json"))["facts"]["image"]
    command("rebuild", name, "--yes")
    assert not [task for task in played(command, name) if "nstall" in task]
    assert "ok" in command("ssh", name, "--", "curl", "-s", "--retry", "60", "--retry-connrefused", READY)
    assert not before & digests(command, name, OWN[2])


def test_an_image_holds_nothing_of_the_machine_it_was_made_of(command: Command, tmp_path: Path):
    [image] = json.loads(command("image", "list", "--json"))
    packed = command.home / "provision" / "images" / image["name"] / "root.tar.zst"
    places = ["./etc", "./home", "./root", "./var/lib", "./var/log", "./run", "./tmp"]
    subprocess.run(["tar", "--zstd", "-xf", packed, "-C", tmp_path, *places], check=True)
    kept = ("etc/hostname", "home/physicist/.ssh", "etc/mlaas4hep/platform.json", "etc/mlaas4hep/service.toml")
    assert not [name for name in kept if (tmp_path / name).exists()]
    assert (tmp_path / "etc/machine-id").read_text() == ""
    assert not [*(tmp_path / "etc/ssh").glob("ssh_host_*"), *(tmp_path / "var/lib/mlaas4hep").glob("token*")]
    assert not [path for path in (tmp_path / "var/log").rglob("*") if path.is_file()]
    assert not [*(tmp_path / "run").iterdir(), *(tmp_path / "tmp").iterdir()]
    found = subprocess.run(["grep", "-rlE", "-e", PRIVATE, tmp_path], capture_output=True, text=True, check=False)
    assert found.stdout == ""
    assert json.loads(command("list", "--json")) == []


def test_machines_of_one_image_are_made_quickly_and_share_no_secret(command: Command, framework: list[str]):
    create = ["create", "one", *SMALL, *framework]
    plan = json.loads(command(*create, "--dry-run", "--json"))
    assert "baked" in plan["facts"]["image"]
    command(*create)
    tasks = played(command, "one")
    # nothing is installed, and what is a machine's own is done
    assert not [name for name in tasks if "nstall" in name]
    assert {"mlaas4hep : Write the settings", "mlaas4hep : Start the service", "Write the record"} <= set(tasks)
    assert "ok" in command("ssh", "one", "--", "curl", "-s", "--retry", "60", "--retry-connrefused", READY)
    rebuilt(command, "one")
    command("create", "two", *SMALL, *framework, *SHARED)
    assert "web_proxy : Install nginx" in played(command, "two")
    first = digests(command, "one", OWN[2])
    second = digests(command, "two")
    assert not first & second
    for name in ("one", "two"):
        command("delete", name, "--yes")


def test_what_was_baked_of_other_packages_is_left_and_told(command: Command, framework: list[str]):
    plan = json.loads(command("create", "other", *SMALL, "--mlaas4hep", "0.0.1", "--dry-run", "--json"))
    assert "of other roles or packages" in plan["facts"]["image"]
    assert "is on this computer already" in command.run("image", "build", *framework, "--yes").stderr


def test_a_platform_of_an_uploaded_image(command: Command, framework: list[str], openstack_cloud: TestCloud):
    before, name = listing(openstack_cloud), openstack_cloud.name
    cloud = Command(command.home, OS_CLIENT_CONFIG_FILE=str(openstack_cloud.config))
    connection = connect(openstack_cloud)
    build = ["image", "build", "--cloud", name, *framework]
    assert "Nothing was made" in cloud.fails(*build, status=2)
    made = json.loads(cloud(*build, "--yes", "--json"))
    try:
        stored = connection.image.find_image(made["name"], ignore_missing=False)
        assert (stored.visibility, stored.os_distro) == ("private", "debian")
        assert stored.properties["mlaas4hep_digest"] == made["digest"]
        create = ["create", "quick", "--cloud", name, *SMALL, *framework]
        plan = json.loads(cloud(*create, "--dry-run", "--json"))
        assert [choice["name"] for choice in plan["considered"] if choice["verdict"].startswith("baked: has all")] == [
            made["name"]
        ]
        bare = json.loads(cloud(*create, "--bare", "--dry-run", "--json"))
        assert made["name"] not in [choice["name"] for choice in bare["considered"] if choice["chosen"]]
        cloud(*create)
        assert not [task for task in played(cloud, "quick") if "nstall" in task]
        assert "ok" in cloud("ssh", "quick", "--", "curl", "-s", "--retry", "60", "--retry-connrefused", READY)
        rebuilt(cloud, "quick")
        cloud("delete", "quick", "--yes")
    finally:
        cloud("image", "delete", made["name"], "--cloud", name, "--yes")
        connection.close()
    assert json.loads(cloud("image", "list", "--cloud", name, "--json")) == []
    assert listing(openstack_cloud) == before
