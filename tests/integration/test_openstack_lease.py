"""Two computers with a record of one platform do not work on it at once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest

from provision.clouds import _lease
from provision.clouds._marks import resource_name
from provision.clouds.base import Platform
from provision.clouds.openstack import OpenStackCloud
from provision.record import Folder, Record, new_uid, now
from provision.spec import PlatformSpec
from tests.devcloud.fixtures import TestCloud

pytestmark = pytest.mark.cloud


class Computer:
    """A computer's view of a platform: its own folder, its own connection to the cloud."""

    def __init__(self, cloud: TestCloud, uid: str, home: Path) -> None:
        self.cloud = OpenStackCloud(cloud.name)
        spec = PlatformSpec(name="leased", cloud=cloud.name)
        record = Record(name="leased", uid=uid, owner="test", toolkit="1", spec=spec)
        self.platform = Platform(record, Folder(home / "platforms/leased"))
        self.said: list[str] = []

    def name(self) -> str:
        """The name of the platform's security group."""
        return str(self.cloud._belongings.ours("security_groups", self.platform).name)

    def exclusively(self):
        return self.cloud.exclusively(self.platform, self.said.append)


@pytest.fixture
def computers(openstack_cloud: TestCloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Computer]]:
    """Four of them, and a platform of which only the security group was made."""
    monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", str(openstack_cloud.config))
    monkeypatch.setattr(_lease, "_LOOK_SECONDS", 0.05)
    uid = new_uid()
    found = [Computer(openstack_cloud, uid, tmp_path / str(number)) for number in range(4)]
    first = found[0]
    group = first.cloud._making._make_group(first.platform, {})
    yield found
    first.cloud.remove(first.platform, group)


def test_one_after_another(computers: list[Computer]):
    inside: list[str] = []
    most = 0

    def work(computer: Computer) -> None:
        nonlocal most
        with computer.exclusively():
            inside.append(computer.name())
            most = max(most, len(inside))
            assert len(inside) == 1
            computer.name()
            inside.pop()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, computers))
    assert most == 1
    assert computers[0].name() == resource_name(computers[0].platform)


def test_who_waits_is_told_for_whom(computers: list[Computer]):
    one, other, *_ = computers
    told, done = threading.Event(), threading.Event()
    other.said = Told(told)

    def wait() -> None:
        with other.exclusively():
            done.set()

    with ThreadPoolExecutor(1) as pool:
        with one.exclusively():
            waiting = pool.submit(wait)
            assert told.wait(60)
            assert not done.is_set()
        waiting.result(60)
    assert done.is_set()
    assert [words.partition(" (until")[0] for words in other.said] == [
        f"Waiting for {one_owner(one)}, who works on leased"
    ]


def test_a_command_that_died_blocks_its_own_computer_never_and_others_for_a_time(computers: list[Computer]):
    one, other, *_ = computers
    died = one.exclusively()
    died.__enter__()
    group = one.cloud._belongings.ours("security_groups", one.platform)
    with one.exclusively():
        assert one.said == []
    # what a dead command of long ago has left
    words = group.name.rpartition(" ")[0]
    one.cloud.conn.network.update_security_group(group, name=f"{words} {(now() - timedelta(minutes=1)).isoformat()}")
    with other.exclusively():
        assert other.said == []


def test_a_platform_that_is_removed_under_the_lease_needs_none(computers: list[Computer]):
    one, other, *_ = computers
    with one.exclusively():
        one.cloud.remove(one.platform, next(r for r in one.cloud.discover(one.platform) if r.kind == "security group"))
    with other.exclusively():
        assert other.said == []


class Told(list[str]):
    """A list that tells when something was put into it."""

    def __init__(self, event: threading.Event) -> None:
        super().__init__()
        self._event = event

    def append(self, words: str) -> None:
        super().append(words)
        self._event.set()


def one_owner(computer: Computer) -> str:
    """Who it is, for people."""
    with computer.exclusively():
        return computer.name().split(" in use by ")[1].split()[0]
