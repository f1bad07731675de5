"""Commands on one platform at the same time: each has its turn, and says for whom it waits."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from provision.spec import PlatformSpec
from tests.conftest import Command, long
from tests.devcloud.fixtures import TestCloud, listing

from .conftest import needs_sudo


@needs_sudo
def test_ten_commands_at_once_take_turns(way: PlatformSpec, user_home: Path):
    take_turns(Command(user_home), "--cloud", way.cloud)


@long
@pytest.mark.cloud
def test_ten_commands_at_once_on_an_openstack_platform(openstack_cloud: TestCloud, user_home: Path):
    command = Command(user_home, OS_CLIENT_CONFIG_FILE=str(openstack_cloud.config))
    before = listing(openstack_cloud)
    try:
        take_turns(command, "--cloud", openstack_cloud.name, "--cpus=1", "--memory=1GB", "--disk=10GB")
    finally:
        command.run("delete", "lab", "--yes")
    assert listing(openstack_cloud) == before


def take_turns(command: Command, *where: str) -> None:
    """Run ten commands on the platform `lab` at once; all come to a good end, and so does the platform."""
    create = ["create", "lab", *where, "--bare", "--yes"]
    delete = ["delete", "lab", "--yes"]
    at_once = [create, create, delete, create, ["show", "lab"], create, delete, ["list", "--json"], create, create]
    processes = [
        subprocess.Popen(
            ["provision", *words],
            cwd=command.home,
            env=command.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for words in at_once
    ]
    said = [process.communicate()[1] for process in processes]
    for process, words, complaint in zip(processes, at_once, said, strict=True):
        # those that come before the creation or after the deletion find no platform, and say so
        assert process.returncode == 0 or (words[:2] != create[:2] and "There is no platform" in complaint), complaint
        assert "Traceback" not in complaint
    waiting = re.findall(r"Waiting for another command on lab \((.*)\) \.\.\.", "".join(said))
    assert waiting
    assert all(re.fullmatch(r"provision (create|delete), process \d+|it has just begun", words) for words in waiting)
    command(*create)
    record = json.loads(command("show", "lab", "--json"))
    assert (record["state"], [entry["state"] for entry in record["ledger"]]) == (
        "bare",
        ["done"] * len(record["ledger"]),
    )
    command(*delete)
    assert json.loads(command("list", "--json")) == []
