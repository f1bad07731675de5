"""What a cloud says no to when a server is to change: no disk is lost, and the sentence tells what is there now."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from openstack import exceptions as sdk

from provision.clouds._belongings import Belongings
from provision.clouds._changing import Changing
from provision.clouds._marks import resource_name
from provision.clouds.base import Platform
from provision.errors import ProvisionError, UsageError
from provision.record import Folder, Record
from provision.spec import make_spec

UID = "0123456789"


class Nova:
    """Of Nova and Glance what a change of one server calls: every action is done at once, or is refused.

    Attributes:
        copies: sizes of the images that are made, in this order; 0 is one that is lost.
        refused: the actions that its policy forbids.
        failing: the actions that it takes, and does not do.
    """

    def __init__(self, status: str = "ACTIVE") -> None:
        self.server = SimpleNamespace(id="s", name="higgs", status=status, task_state=None, created_at="", fault=None)
        self.server.metadata = {"provision_uid": UID}
        self.server.flavor = SimpleNamespace(id="small")
        self.images: dict[str, Any] = {}
        self.copies = [1, 1]
        self.refused: set[str] = set()
        self.failing: set[str] = set()
        kinds = ("security_group", "network", "subnet", "router", "ip")
        self.network = SimpleNamespace(**{f"{verb}_{kind}": None for verb in ("delete", "get") for kind in kinds})
        flavors = {name: SimpleNamespace(id=f"id-{name}", name=name) for name in ("small", "large")}
        action = SimpleNamespace(request_id="r")
        error = SimpleNamespace(events=[{"result": "Error", "details": "No valid host was found."}])
        self.compute = SimpleNamespace(
            servers=lambda **_: [self.server],
            get_server=lambda _: self.server,
            get_flavor=lambda identity: flavors[identity.removeprefix("id-")],
            server_actions=lambda _: [action],
            get_server_action=lambda *_: error,
            stop_server=self._action("stop", lambda: self._become("SHUTOFF")),
            start_server=self._action("start", lambda: self._become("ACTIVE")),
            create_server_image=lambda _, name, metadata: self._copy(name, metadata),
            shelve_server=self._action("shelve", self._shelve),
            unshelve_server=self._action("unshelve", self._unshelve),
            resize_server=lambda _, flavor: self._action("resize", lambda: self._resize(flavor))(None),
            confirm_server_resize=self._action("confirm", lambda: self._become("ACTIVE")),
            revert_server_resize=self._action("revert", lambda: self._resize("id-small", "ACTIVE")),
        )
        self.image = SimpleNamespace(
            images=lambda name: [image for image in self.images.values() if image.name == name],
            delete_image=lambda identity, ignore_missing: self.images.pop(identity),
            get_image=self._image,
        )

    def _action(self, name: str, act: Callable[[], object]) -> Callable[[Any], None]:
        def run(_: Any) -> None:
            if name in self.refused:
                raise sdk.ForbiddenException("policy")
            if name not in self.failing:
                act()

        return run

    def _become(self, status: str) -> None:
        self.server.status = status

    def _copy(self, name: str, metadata: dict[str, str]) -> None:
        if size := self.copies.pop(0):
            self.images[name] = SimpleNamespace(id=name, name=name, status="active", size=size, properties=metadata)

    def _shelve(self) -> None:
        self._copy("higgs-shelved", {})
        self._become("SHELVED_OFFLOADED")

    def _unshelve(self) -> None:
        del self.images["higgs-shelved"]
        self._become("ACTIVE")

    def _resize(self, flavor: str, status: str = "VERIFY_RESIZE") -> None:
        self.server.flavor = SimpleNamespace(id=flavor.removeprefix("id-"))
        self._become(status)

    def _image(self, identity: str) -> Any:
        if identity not in self.images:
            raise sdk.NotFoundException
        return self.images[identity]


@pytest.fixture
def platform(tmp_path: Path) -> Platform:
    record = Record(name="higgs", uid=UID, owner="o", toolkit="0", spec=make_spec({"name": "higgs"}))
    record.values = {"flavor": "id-small"}
    return Platform(record, Folder(tmp_path / "higgs"))


def changing(nova: Nova) -> Changing:
    def insist(call: Callable[[], Any]) -> Any:
        return call()

    return Changing("site", Belongings("site", lambda: nova, insist), lambda: nova, insist, lambda: None)


def larger(platform: Platform) -> Platform:
    return Platform(platform.record.model_copy(update={"values": {"flavor": "id-large"}}), platform.folder)


def test_a_released_server_has_one_image_and_comes_back(platform: Platform):
    nova = Nova()
    for _ in range(2):
        changing(nova).release(platform)
        assert (nova.server.status, set(nova.images)) == ("SHELVED_OFFLOADED", {"higgs-shelved"})
    changing(nova).start(platform)
    assert (nova.server.status, nova.images) == ("ACTIVE", {})


def test_no_server_is_shelved_where_images_of_servers_are_lost(platform: Platform):
    nova = Nova()
    nova.copies = [0]
    with pytest.raises(ProvisionError, match="makes no usable images of its servers"):
        changing(nova).release(platform)
    assert (nova.server.status, nova.images) == ("SHUTOFF", {})


def test_the_spare_image_is_kept_when_the_shelved_one_is_lost(platform: Platform):
    nova = Nova()
    nova.copies = [1, 0]
    with pytest.raises(ProvisionError, match=f"kept as the image {resource_name(platform)}"):
        changing(nova).release(platform)
    assert set(nova.images) == {resource_name(platform)}
    # and is removed with the platform, whose mark it bears
    assert [image.id for image in Belongings("site", lambda: nova, lambda call: call()).images(platform)] == [
        resource_name(platform)
    ]


def test_shelving_that_is_forbidden_or_not_done_leaves_a_stopped_server(platform: Platform):
    for refused, failing, words in (({"shelve"}, set(), "does not let you shelve"), (set(), {"shelve"}, "SHUTOFF")):
        nova = Nova()
        nova.refused, nova.failing = refused, failing
        with pytest.raises(ProvisionError, match=words):
            changing(nova).release(platform)
        assert (nova.server.status, nova.images) == ("SHUTOFF", {})


def test_a_server_that_finds_no_host_keeps_its_image(platform: Platform):
    nova = Nova()
    changing(nova).release(platform)
    nova.failing = {"unshelve"}
    with pytest.raises(ProvisionError, match=r"it is SHELVED_OFFLOADED \(No valid host was found\)"):
        changing(nova).start(platform)
    assert set(nova.images) == {"higgs-shelved"}


@pytest.mark.parametrize("status", ["ACTIVE", "SHUTOFF"])
def test_a_size_is_kept_or_taken_back(platform: Platform, status: str):
    nova = Nova(status)
    for _ in range(2):
        changing(nova).resize(larger(platform))
        assert (nova.server.status, nova.server.flavor.id) == ("VERIFY_RESIZE", "large")
    assert changing(nova).resizing(platform)
    for verb in (changing(nova).stop, changing(nova).start, changing(nova).rebuild):
        with pytest.raises(UsageError, match="A resize of the platform higgs is unfinished"):
            verb(platform)
    changing(nova).restore_size(platform)
    assert (nova.server.status, nova.server.flavor.id) == ("ACTIVE", "small")
    changing(nova).resize(larger(platform))
    confirm = nova.compute.confirm_server_resize

    def confirmed_already(server: Any) -> None:
        confirm(server)
        raise sdk.BadRequestException("Instance has not been resized.")

    nova.compute.confirm_server_resize = confirmed_already
    changing(nova).keep_size(larger(platform))
    changing(nova).keep_size(larger(platform))
    assert (nova.server.status, nova.server.flavor.id) == ("ACTIVE", "large")
    with pytest.raises(ProvisionError, match="cannot have its former flavor small back"):
        changing(nova).restore_size(platform)


def test_why_a_server_was_not_resized_is_told(platform: Platform):
    nova = Nova()
    nova.failing = {"resize"}
    with pytest.raises(ProvisionError, match=r"flavor large; it is ACTIVE with small \(No valid host was found\)"):
        changing(nova).resize(larger(platform))
