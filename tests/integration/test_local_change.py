"""A machine of this computer gets another size and a new system: kept when it answers, taken back when it does not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from provision.clouds import _container
from provision.clouds.local import LocalCloud
from provision.errors import ProvisionError
from provision.record import Home
from provision.resize import plan_resize
from tests.conftest import Command, Silent

from .killed import killed

pytestmark = pytest.mark.machine


@pytest.fixture
def provision(computer_with_machines: None, user_home: Path) -> Iterator[Command]:
    """The command, with a bare machine `lab` in an empty home."""
    command = Command(user_home)
    command("create", "lab", "--cpus", "1", "--memory", "1GB", "--disk", "4GB", "--bare", "--yes")
    yield command
    command("delete", "lab", "--yes")


def record(provision: Command) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(provision("show", "lab", "--json"))
    return found


def limits(uid: str, *names: str) -> int:
    """What control groups of the machine have in a file of one of these names; 0 where there is no such file."""
    files = [path for name in names for path in _container.CGROUPS.glob(f"**/provision-{uid}/{name}")]
    return max((int(path.read_text()) for path in files), default=0)


def test_size_and_system_of_a_machine(provision: Command, monkeypatch: pytest.MonkeyPatch):
    before = record(provision)
    provision("ssh", "lab", "touch", "kept")
    plan = json.loads(provision("resize", "lab", "--cpus", "2", "--memory", "2GB", "--dry-run", "--json"))
    assert plan["steps"][0]["title"].startswith("machine with system container: 2 CPUs, 2 GB")
    assert plan["spec"]["memory"] == 2 and plan["before"]["machine"] == before["facts"]["machine"]
    assert "not enough for the machine: memory" in provision.fails("resize", "lab", "--memory", "99TB", status=1)
    assert "Nothing was changed" in provision.fails("resize", "lab", "--cpus", "2", "--memory", "2GB", status=2)
    assert record(provision) == before

    # killed before and after the change: no other command takes the machine for what it is not
    killed(provision, "resize", "intended", "resize", "lab", "--cpus", "2", "--memory", "2GB", "--yes")
    for command in (["create", "lab", "--memory", "1GB"], ["rebuild", "lab"]):
        assert "A resize of the platform lab is unfinished" in provision.fails(*command, "--yes", status=2)
    killed(provision, "resize", "made", "resize", "lab")
    provision("resize", "lab", "--cpus", "2", "--memory", "2GB", "--yes")
    after = record(provision)
    assert (after["spec"]["memory"], after["state"], after["access"]) == (2, "bare", before["access"])
    assert "2 GB" in after["facts"]["machine"]
    assert limits(after["uid"], "memory.max", "memory.limit_in_bytes") in (0, 2 * 2**30)
    assert limits(after["uid"], "cpu.weight", "cpu.shares") in (0, 200, 2048)
    assert provision("ssh", "lab", "ls", "kept") == "kept\n"

    # one that does not answer with its new size has its former one again
    provision("ssh", "lab", "sudo", "systemctl", "disable", "ssh.service", "ssh.socket")
    monkeypatch.setattr("provision.plan.SSH_SECONDS", 1)
    home = Home()
    folder = home.folder("lab")
    smaller = plan_resize(LocalCloud(home), folder.load(), folder, home.cache, {"memory": "1GB"})
    with pytest.raises(ProvisionError, match="lab did not answer with its new size, and has its former one again"):
        smaller.execute(Silent())
    assert record(provision)["spec"] == after["spec"]
    assert limits(after["uid"], "memory.max", "memory.limit_in_bytes") in (0, 2 * 2**30)
    assert limits(after["uid"], "cpu.weight", "cpu.shares") in (0, 200, 2048)

    # a new system on the same address: with another host key, and without what was on the old one
    known = folder.known_hosts.read_text()
    plan = json.loads(provision("rebuild", "lab", "--dry-run", "--json"))
    assert plan["steps"][0]["title"].startswith("new system: ")
    killed(provision, "rebuild", "intended", "rebuild", "lab", "--yes")
    assert "A rebuild of the platform lab is unfinished" in provision.fails("resize", "lab", "--cpus", "1", status=2)
    provision("rebuild", "lab", "--yes")
    assert provision("ssh", "lab", "ls") == ""
    assert folder.known_hosts.read_text() != known
    rebuilt = record(provision)
    assert (rebuilt["state"], rebuilt["access"], rebuilt["spec"]) == ("bare", before["access"], after["spec"])
    assert sorted(path.name for path in folder.machine.glob("[!.]*")) == ["console.log", "network.json", "root"]
