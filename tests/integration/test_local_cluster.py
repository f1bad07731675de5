"""Workers on this computer: made, counted, added, taken away and removed with their platform, whatever is killed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from provision.clouds import _network
from provision.record import Home
from provision.remote import Remote
from tests.conftest import Command, long

from .killed import killed

pytestmark = [pytest.mark.machine, long]
_SIZE = ("--cpus", "1", "--memory", "1GB", "--disk", "4GB")


@pytest.fixture
def provision(computer_with_machines: None, user_home: Path) -> Iterator[Command]:
    """The command in an empty home, in which no machine is left behind."""
    command = Command(user_home)
    yield command
    if command.run("show", "cluster").returncode == 0:
        command("delete", "cluster", "--yes")


def record(provision: Command) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(provision("show", "cluster", "--json"))
    return found


def workers(provision: Command) -> str:
    """What the list says of them."""
    return str(json.loads(provision("list", "--json"))[0]["workers"])


def test_workers_come_and_go_with_their_platform_whatever_is_killed(provision: Command):
    create = ("create", "cluster", "--workers", "1", *_SIZE, "--bare", "--yes")
    plan = json.loads(provision(*create, "--dry-run", "--json"))
    assert {quota["name"]: quota["needed"] for quota in plan["quota"]}["memory (GB)"] == 2
    killed(provision, "worker-1-network", "made", *create)
    provision(*create)
    assert workers(provision) == "1 running"
    folder = Home(provision.home / "provision").folder("cluster")
    with Remote(folder.worker(1)) as remote:
        assert remote.run(["hostname"]).strip() == "cluster-w1"

    # more: killed with the new worker half made, and no other change begins meanwhile
    killed(provision, "worker-2-root", "intended", "scale", "cluster", "2", "--yes")
    assert "A scale of the platform cluster is unfinished" in provision.fails(*create, status=2)
    assert "to 2 workers is unfinished" in provision.fails("scale", "cluster", "3", "--yes", status=2)
    provision("scale", "cluster")
    assert (workers(provision), record(provision)["spec"]["workers"]) == ("2 running", 2)
    provision("stop", "cluster")
    assert workers(provision) == "2 stopped"
    provision("start", "cluster")

    # fewer: what goes is gone, the rest is as before
    killed(provision, "scale", "made", "scale", "cluster", "1", "--yes")
    provision("scale", "cluster")
    left = record(provision)
    assert (workers(provision), left["spec"]["workers"], left["state"]) == ("1 running", 1, "bare")
    assert [path.name for path in folder.workers.iterdir()] == ["cluster-w1"]

    gone = json.loads(provision("delete", "cluster", "--yes", "--json"))
    assert sorted(resource["kind"] for resource in gone) == ["machine"] * 2 + ["network"] * 2 + ["root"] * 2
    assert not [one for one in gone if one["kind"] == "network" and _network.traces(one["id"].rpartition("-")[2])]
