"""What changes a server that is there: power, size, system; and shelving, which frees what it holds of the cloud."""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from typing import Any

from provision.clouds._belongings import BOOT_SECONDS, POLL_SECONDS, Belongings
from provision.clouds._making import user_data
from provision.clouds._marks import FIRST_HOST_KEY, changed_metadata, image_metadata, metadata, resource_name
from provision.clouds.base import Platform
from provision.errors import ProvisionError, UsageError

COPY_SECONDS = 3600
"""How long the cloud may take to copy a disk, to another host or into an image."""
_SHELVED = ("SHELVED", "SHELVED_OFFLOADED")
_BEING_RESIZED = ("RESIZE", "VERIFY_RESIZE", "REVERT_RESIZE")
_USER_DATA_AT_REBUILD = "2.57"
"""Nova's microversion since which a server can be rebuilt with other user-data."""


class Changing:
    """Changes; every method may be called again after a kill or a failure, and looks first what is done already.

    Args:
        cloud: its name, for the sentences.
        belongings: what there is.
        connection: gives the SDK's connection.
        insist: calls what it is given, again after passing failures of the cloud.
        renew: called while something takes long, to keep others off the platform.
    """

    def __init__(
        self,
        cloud: str,
        belongings: Belongings,
        connection: Callable[[], Any],
        insist: Callable[[Callable[[], Any]], Any],
        renew: Callable[[], None],
    ) -> None:
        self.name = cloud
        self.belongings = belongings
        self._connection = connection
        self._insist = insist
        self._renew = renew

    @property
    def compute(self) -> Any:
        """The SDK's connection to Nova."""
        return self._connection().compute

    def server(self, platform: Platform) -> Any:
        """The platform's server; raises ProvisionError when it is gone."""
        server = self.belongings.server(platform)
        if server is None:
            raise ProvisionError(f"{platform.name} has no server in the cloud {self.name!r} any more.")
        return server

    def settled_server(self, platform: Platform) -> Any:
        """The same; raises UsageError when its size is being changed, as Nova refuses everything else until then."""
        server = self.server(platform)
        if server.status in _BEING_RESIZED:
            raise UsageError(
                f"A resize of the platform {platform.name} is unfinished.",
                f"End that first: `provision resize {platform.name}`.",
            )
        return server

    # ------------------------------------------------------------------ power

    def start(self, platform: Platform) -> None:
        """Start the server, or bring it back from its image when it was shelved."""
        server = self.settled_server(platform)
        if server.status not in _SHELVED:
            self._power(server, "ACTIVE", self.compute.start_server)
            return
        if not server.task_state:
            self.compute.unshelve_server(server)
        server = self._settle(server.id)
        if server.status != "ACTIVE":
            raise ProvisionError(
                f"The cloud {self.name!r} could not bring the server {server.name} back: it is {server.status}"
                f"{self._reason(server)}.",
                "Its disk image is kept; the same command tries again.",
            )

    def stop(self, platform: Platform) -> None:
        """Stop the server, unless it is shelved."""
        server = self.settled_server(platform)
        if server.status not in _SHELVED:
            self._power(server, "SHUTOFF", self.compute.stop_server)

    def _power(self, server: Any, status: str, change: Callable[[Any], object]) -> None:
        if server.status != status:
            # a server with a task is on its way already: an answer was lost, or somebody else has asked for it
            if not server.task_state:
                change(server)
            self.belongings.wait_for(server, status)

    # ------------------------------------------------------------------ shelving

    def release(self, platform: Platform) -> None:
        """Shelve the server: its disk becomes an image, and no host keeps anything for it.

        Nova removes the disk without looking whether that image is usable. So one that is made beforehand shows whether
        the hypervisor can make them; it is kept until Nova's own is there.
        """
        from openstack import exceptions as sdk

        server = self.settled_server(platform)
        if server.status not in _SHELVED and not str(server.task_state or "").startswith("shelving"):
            self.stop(platform)
            self._make_spare(platform, server)
            try:
                self.compute.shelve_server(server)
            except sdk.ForbiddenException:
                self._remove_spare(platform)
                raise ProvisionError(
                    f"The cloud {self.name!r} does not let you shelve servers: {server.name} is stopped, and keeps its"
                    " CPUs and memory.",
                    "Ask the cloud's administrators, or delete the platform when you do not need it.",
                ) from None
        server = self._settle(server.id)
        if server.status not in _SHELVED:
            self._remove_spare(platform)
            raise ProvisionError(
                f"The cloud {self.name!r} did not shelve the server {server.name}, which is {server.status}"
                f"{self._reason(server)}."
            )
        if not any(_usable(image) for image in self._images(f"{server.name}-shelved", server)):
            raise ProvisionError(
                f"The image of the shelved server {server.name} is not usable.",
                f"Its disk is kept as the image {resource_name(platform)}; ask the cloud's administrators.",
            )
        if server.status == "SHELVED":
            with suppress(sdk.ForbiddenException):  # then the cloud frees the host by itself, some time later
                self.compute.shelve_offload_server(server)
                self._settle(server.id)
        self._remove_spare(platform)

    def _make_spare(self, platform: Platform, server: Any) -> None:
        name = resource_name(platform)
        self._remove_spare(platform)  # one that a kill has left may be older than the disk
        self._settle(server.id)
        self.compute.create_server_image(server.id, name, metadata=image_metadata(platform))
        self._settle(server.id)
        if not any(_usable(image) for image in self._images(name, server)):
            self._remove_spare(platform)
            raise ProvisionError(
                f"The cloud {self.name!r} makes no usable images of its servers, so that shelving would lose the disk:"
                f" {server.name} is stopped, and keeps its CPUs and memory.",
                "`provision start` brings it back; delete the platform when you do not need it.",
            )

    def _remove_spare(self, platform: Platform) -> None:
        for image in self.belongings.images(platform):
            self.belongings.remove(image)

    def _images(self, name: str, server: Any) -> list[Any]:
        found = self._connection().image.images(name=name)
        return [image for image in found if (image.properties or {}).get("instance_uuid", server.id) == server.id]

    # ------------------------------------------------------------------ size

    def resize(self, wanted: Platform) -> None:
        """Give the server the flavor that the record says; see the contract of a cloud."""
        target = self.compute.get_flavor(wanted.record.values["flavor"])
        server = self.server(wanted)
        if server.status == "SHUTOFF" and not server.task_state and not _has(server, target):
            self._power(server, "ACTIVE", self.compute.start_server)
            server = self.server(wanted)
        if server.status == "ACTIVE" and not server.task_state and not _has(server, target):
            self.compute.resize_server(server, target.id)
        server = self._settle(server.id)
        if server.status not in ("ACTIVE", "SHUTOFF", "VERIFY_RESIZE") or not _has(server, target):
            raise ProvisionError(
                f"The cloud {self.name!r} did not give the server {server.name} the flavor {target.name}; it is"
                f" {server.status} with {server.flavor.id}{self._reason(server)}.",
                "Choose another size, or ask the cloud's administrators whether servers can be resized.",
            )

    def resizing(self, platform: Platform) -> bool:
        """Whether the server is between its former size and another."""
        server = self.belongings.server(platform)
        return server is not None and server.status in _BEING_RESIZED

    def keep_size(self, platform: Platform) -> None:
        """Confirm the new size; the cloud forgets the disk at the former host."""
        from openstack import exceptions as sdk

        server = self.server(platform)
        if server.status == "VERIFY_RESIZE":
            # it is being confirmed already, without a task that tells of it, when an answer was lost
            with suppress(sdk.BadRequestException):
                self.compute.confirm_server_resize(server)
            server = self._settle(server.id, leaving="VERIFY_RESIZE")
        if server.status == "SHUTOFF":
            self._power(server, "ACTIVE", self.compute.start_server)

    def restore_size(self, platform: Platform) -> None:
        """Take the new size back."""
        server = self.server(platform)
        if server.status in _BEING_RESIZED:
            if server.status == "VERIFY_RESIZE" and not server.task_state:
                self.compute.revert_server_resize(server)
            server = self._settle(server.id, leaving="VERIFY_RESIZE")
        former = self.compute.get_flavor(platform.record.values["flavor"])
        if not _has(server, former):
            raise ProvisionError(
                f"The server {server.name} cannot have its former flavor {former.name} back: it is {server.status} with"
                f" {server.flavor.id}{self._reason(server)}.",
                f"`provision ssh {platform.name}` and the cloud's console tell whether it is well.",
            )

    # ------------------------------------------------------------------ system

    def rebuild(self, platform: Platform) -> None:
        """Make the system anew, with the same ports and addresses; see the contract of a cloud."""
        from openstack import utils

        server = self.settled_server(platform)
        digest = hashlib.sha256(platform.host_public_key.encode()).hexdigest()[:32]
        begun = (server.metadata or {}).get(FIRST_HOST_KEY) == digest
        if not begun or (server.status == "ERROR" and not server.task_state):
            if not utils.supports_microversion(self.compute, _USER_DATA_AT_REBUILD):
                raise ProvisionError(
                    f"The cloud {self.name!r} is too old to make a system anew: its Nova does not take user-data then.",
                    "Delete the platform and create it again.",
                )
            self.compute.rebuild_server(
                server.id,
                platform.record.values["image"],
                metadata=metadata(platform, self._connection().current_user_id) | {FIRST_HOST_KEY: digest},
                user_data=base64.b64encode(user_data(platform).encode()).decode(),
            )
        server = self._settle(server.id)
        if server.status == "SHUTOFF":
            self._power(server, "ACTIVE", self.compute.start_server)
        elif server.status != "ACTIVE":
            raise ProvisionError(
                f"The cloud {self.name!r} could not make the system of {server.name} anew: it is"
                f" {server.status}{self._reason(server)}.",
                "Run the same command again, or delete the platform.",
            )

    def publish(self, platform: Platform) -> None:
        """Write the present wishes into the server's metadata."""
        server = self.belongings.server(platform)
        if server is not None:
            user = self._connection().current_user_id
            self.compute.set_server_metadata(server, **changed_metadata(platform, user, server.metadata or {}))

    # ------------------------------------------------------------------ waiting

    def _settle(self, identity: str, leaving: str = "") -> Any:
        """Wait until the server has no task any more, and another status than `leaving`."""
        end = time.monotonic() + max(COPY_SECONDS, BOOT_SECONDS)
        while True:
            server = self._insist(lambda: self.compute.get_server(identity))
            if not server.task_state and server.status != leaving:
                return server
            if time.monotonic() > end:
                raise ProvisionError(
                    f"The server {server.name} is still {server.status} ({server.task_state}) after {COPY_SECONDS} s.",
                    "Run the same command again to go on waiting.",
                )
            self._renew()
            time.sleep(POLL_SECONDS)

    def _reason(self, server: Any) -> str:
        """Why the server's last action failed, as far as the cloud tells: words to be put behind a sentence."""
        from openstack import exceptions as sdk

        told: Iterator[str] = iter(())
        with suppress(sdk.SDKException):
            action = next(iter(self.compute.server_actions(server.id)), None)
            if action is not None:
                events = self.compute.get_server_action(action.request_id, server.id).events or []
                told = (str(event.get("details") or "") for event in events if event.get("result") == "Error")
        words = next((word for word in told if word), "") or str((server.fault or {}).get("message") or "")
        return f" ({' '.join(words.split()).rstrip('.')})" if words else ""


def _has(server: Any, flavor: Any) -> bool:
    """Whether the server has the flavor; newer clouds tell its name only, older ones its id."""
    names: Collection[str] = (flavor.id, flavor.name)
    return server.flavor.id in names


def _usable(image: Any) -> bool:
    return image.status == "active" and bool(image.size)
