"""Data volumes of an OpenStack: chosen within the quotas, made, attached, kept, and removed.

A volume is known by its metadata. It belongs to the platform whose uid stands there; after a deletion that keeps it,
`provision_kept` says since when it belongs to none.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

from provision.clouds._belongings import POLL_SECONDS, REMOVE_SECONDS, Belongings, first_of, until_gone
from provision.clouds._marks import KEPT, mark, resource_name, time_of, volume_metadata
from provision.clouds.base import DataVolume, Platform, Quota
from provision.errors import ProvisionError
from provision.record import DATA_VOLUME, VOLUME_ATTACHMENT, Resource, now
from provision.spec import PlatformSpec

ATTACH_SECONDS = 300
_SERVICE = "block-storage"


class Volumes:
    """Data volumes; every method may be called again after a kill or a failure.

    Args:
        cloud: its name, for the sentences.
        belongings: what there is besides.
        connection: gives the SDK's connection.
        insist: calls what it is given, again after passing failures of the cloud.
    """

    def __init__(
        self,
        cloud: str,
        belongings: Belongings,
        connection: Callable[[], Any],
        insist: Callable[[Callable[[], Any]], Any],
    ) -> None:
        self.name = cloud
        self.belongings = belongings
        self._connection = connection
        self._insist = insist

    @property
    def conn(self) -> Any:
        """The SDK's connection."""
        return self._connection()

    @property
    def there(self) -> bool:
        """Whether the cloud has volumes at all."""
        return bool(self.conn.has_service(_SERVICE))

    # ------------------------------------------------------------------ choosing

    def offer(self, spec: PlatformSpec) -> tuple[dict[str, str], dict[str, str], list[Quota]]:
        """Facts, values and quotas of the volume that is asked for; raises ProvisionError when it cannot be had."""
        if spec.data_volume is None:
            return {}, {}, []
        if not self.there:
            raise ProvisionError(
                f"The cloud {self.name!r} offers no volumes, so that data end with the machine.",
                "Leave out --data-volume, or name another cloud.",
            )
        if isinstance(spec.data_volume, str):
            volume = self._kept(spec.data_volume)
            words = f"{volume.name} ({volume.gigabytes} GB), kept of {volume.platform}"
            return {DATA_VOLUME: words}, {"volume": volume.id, "volume_gb": str(volume.gigabytes)}, []
        size = math.ceil(spec.data_volume)
        quotas = self._quotas(size)
        if over := [quota for quota in quotas if quota.exceeded]:
            told = ", ".join(f"{q.name} {q.used} of {q.limit} used and {q.needed} more needed" for q in over)
            raise ProvisionError(
                f"The quota of the cloud {self.name!r} is exceeded: {told}.",
                "Ask for less, take a volume that was kept (`provision volume list`), or ask the cloud's"
                " administrators for more.",
            )
        return {DATA_VOLUME: f"{size} GB, a new one"}, {"volume": "", "volume_gb": str(size)}, quotas

    def _kept(self, wanted: str) -> DataVolume:
        volumes = self.all()
        found = [volume for volume in volumes if wanted in (volume.id, volume.name)]
        free = ", ".join(sorted(volume.name for volume in volumes if volume.kept)) or "none"
        if not found:
            raise ProvisionError(
                f"The cloud {self.name!r} has no data volume {wanted!r} of a platform.", f"Kept are: {free}."
            )
        if len(found) > 1:
            ids = ", ".join(volume.id for volume in found)
            raise ProvisionError(
                f"The cloud {self.name!r} has {len(found)} data volumes {wanted!r}.", f"Name one by its id: {ids}."
            )
        if not found[0].kept:
            raise ProvisionError(
                f"The data volume {wanted!r} belongs to the platform {found[0].platform}.",
                f"Delete that platform first; its volume is kept. Kept are: {free}.",
            )
        return found[0]

    def _quotas(self, size: int) -> list[Quota]:
        found = self.conn.block_storage.get_quota_set(self.conn.current_project_id, usage=True)
        told = {**(found.usage or {})}

        def quota(name: str, field: str, needed: int, used: int) -> Quota:
            limit = getattr(found, field, None)
            return Quota(name, None if limit is None or limit < 0 else int(limit), used, needed)

        return [
            quota("volumes", "volumes", 1, int(told.get("volumes") or 0)),
            quota("volume gigabytes", "gigabytes", size, int(told.get("gigabytes") or 0)),
            quota("gigabytes of one volume", "per_volume_gigabytes", size, 0),
        ]

    # ------------------------------------------------------------------ looking

    def all(self) -> list[DataVolume]:
        """Every data volume of the project that bears the toolkit's marks."""
        if not self.there:
            return []
        user = self.conn.current_user_id
        marked = [volume for volume in self.conn.block_storage.volumes() if "provision_uid" in (volume.metadata or {})]
        return sorted((_as_volume(volume, user) for volume in marked), key=lambda volume: volume.name)

    def ours(self, platform: Platform) -> Any:
        """The volume that belongs to the platform, or None."""
        return next(iter(self._all_ours(platform)), None)

    def _all_ours(self, platform: Platform) -> list[Any]:
        """The volumes that bear the platform's mark, first the one that belongs to it; see `Belongings.all`."""
        if platform.spec.data_volume is None or not self.there:
            return []
        found = [v for v in self.conn.block_storage.volumes() if _belongs(v.metadata or {}, platform.uid)]
        return first_of(found, platform)

    def discover(self, platform: Platform) -> list[Resource]:
        """The volume, as a resource that a deletion removes or keeps."""
        return [_as_resource(volume) for volume in self._all_ours(platform)]

    # ------------------------------------------------------------------ making

    def find(self, platform: Platform, values: Mapping[str, str]) -> Resource | None:
        """The volume, when it can be attached or is; new ones that are double are removed, as no server had them."""
        found = self._all_ours(platform)
        for extra in found[1:] if not values["volume"] else ():
            if extra.status in ("creating", "available", "error"):
                self._wait(extra.id, ("available", "error"), ATTACH_SECONDS)
                self.remove(extra.id)
        return _as_resource(found[0]) if found and found[0].status in ("available", "in-use") else None

    def make(self, platform: Platform, values: Mapping[str, str]) -> Resource:
        """A new volume, or the one that was kept."""
        storage, marks = self.conn.block_storage, volume_metadata(platform, self.conn.current_user_id)
        volume = self.ours(platform)
        if volume and volume.status == "error" and not values["volume"]:
            self.remove(volume.id)
            volume = None
        if volume is None and values["volume"]:
            volume = self._taken(platform, values["volume"])
            storage.update_volume(volume.id, description=mark(platform), metadata=marks)
        elif volume is None:
            volume = storage.create_volume(
                name=resource_name(platform),
                description=mark(platform),
                size=int(values["volume_gb"]),
                metadata=marks,
            )
        return _as_resource(self._wait(volume.id, ("available", "in-use"), ATTACH_SECONDS))

    def _taken(self, platform: Platform, identity: str) -> Any:
        volume = self.conn.block_storage.get_volume(identity)
        if not (volume.metadata or {}).get(KEPT):
            raise ProvisionError(
                f"Another platform has taken the data volume {volume.name} since {platform.name} was planned.",
                f"Delete {platform.name} and create it with another volume.",
            )
        return volume

    def find_attachment(self, platform: Platform, _: Mapping[str, str]) -> Resource | None:
        """The volume as a disk of the server."""
        volume, server = self.ours(platform), self.belongings.server(platform)
        if volume is None or server is None or volume.status != "in-use":
            return None
        there = [entry for entry in volume.attachments or [] if entry.get("server_id") == server.id]
        if not there:
            return None
        device = {"device": str(there[0].get("device") or "")}
        return Resource(kind=VOLUME_ATTACHMENT, id=f"{server.id}/{volume.id}", ours=False, details=device)

    def make_attachment(self, platform: Platform, values: Mapping[str, str]) -> Resource:
        """Attach the volume to the running server."""
        volume, server = self.ours(platform), self.belongings.server(platform)
        if volume is None or server is None:
            raise ProvisionError(
                f"Somebody removed server or data volume of {platform.name} during its creation.",
                "Run the same command again.",
            )
        if volume.status == "available":
            self.conn.compute.create_volume_attachment(server, volume_id=volume.id)
        self._wait(volume.id, ("in-use",), ATTACH_SECONDS, former="available")
        made = self.find_attachment(platform, values)
        if made is None:
            raise ProvisionError(
                f"The data volume {volume.name} is attached to another server.",
                "Detach it there, and run the same command again.",
            )
        return made

    def _wait(self, identity: str, wanted: tuple[str, ...], seconds: float, former: str = "") -> Any:
        """Wait until the volume has a status; that it has its `former` one again tells that the change has failed."""
        end, begun = time.monotonic() + seconds, False
        while True:
            volume = self._insist(lambda: self.conn.block_storage.get_volume(identity))
            if volume.status in wanted:
                return volume
            failed = volume.status.startswith("error") or (begun and volume.status == former)
            begun = begun or volume.status != former
            if failed or time.monotonic() > end:
                raise ProvisionError(
                    f"The data volume {volume.name} is {volume.status}, where {wanted[0]} was awaited.",
                    "Run the same command again, or ask the cloud's administrators.",
                )
            time.sleep(POLL_SECONDS)

    # ------------------------------------------------------------------ ending

    def keep(self, identity: str) -> None:
        """Have the volume belong to no platform, once its server has let go of it."""
        from openstack import exceptions as sdk

        storage = self.conn.block_storage
        try:
            volume = self._wait(identity, ("available",), REMOVE_SECONDS)
        except sdk.NotFoundException:
            return
        storage.update_volume(volume.id, metadata={**volume.metadata, KEPT: now().isoformat()})

    def remove(self, identity: str) -> None:
        """Remove the volume, once its server has let go of it."""
        from openstack import exceptions as sdk

        storage = self.conn.block_storage

        def delete() -> None:
            try:
                storage.delete_volume(identity, ignore_missing=True)
            except sdk.BadRequestException as error:  # it is still being detached
                raise sdk.ConflictException(str(error)) from None

        until_gone(delete, lambda: storage.get_volume(identity))


def _belongs(metadata: Mapping[str, str], uid: str) -> bool:
    return metadata.get("provision_uid") == uid and not metadata.get(KEPT)


def _as_resource(volume: Any) -> Resource:
    return Resource(kind=DATA_VOLUME, id=volume.id, name=volume.name or "", details={"gigabytes": str(volume.size)})


def _as_volume(volume: Any, user: str) -> DataVolume:
    marks = volume.metadata or {}
    return DataVolume(
        name=volume.name or volume.id,
        id=volume.id,
        gigabytes=volume.size,
        platform=str(marks.get("provision_platform", "")),
        uid=str(marks.get("provision_uid", "")),
        owner=str(marks.get("provision_owner", "")),
        mine=marks.get("provision_user") == user,
        created=time_of(volume.created_at),
        kept=bool(marks.get(KEPT)),
    )
