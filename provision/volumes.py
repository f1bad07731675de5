"""Data volumes that were kept: what this computer remembers of them, and their removal."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from provision.errors import ProvisionError, UsageError
from provision.record import Home, Record, Resource, now, write_private

if TYPE_CHECKING:
    from provision.clouds.base import Cloud, DataVolume


class KeptVolume(BaseModel):
    """A volume whose platform was deleted from this computer."""

    model_config = ConfigDict(frozen=True)

    name: str
    id: str
    cloud: str
    gigabytes: int
    owner: str
    kept_at: datetime


_NOTES = TypeAdapter(list[KeptVolume])


def kept_volumes(home: Home) -> list[KeptVolume]:
    """Those that this computer remembers, by name; asks no cloud. Raises ProvisionError for a damaged file."""
    try:
        return _NOTES.validate_json(_file(home).read_bytes())
    except FileNotFoundError:
        return []
    except ValidationError as error:
        raise ProvisionError(
            f"{_file(home)} cannot be read: {error.errors()[0]['msg']}.",
            "Remove it: `provision volume list --cloud NAME` still shows what a cloud has.",
        ) from None


def _file(home: Home) -> Path:
    return home.path / "kept-volumes.json"


def note_kept(home: Home, record: Record, volume: Resource) -> None:
    """Remember a volume that was kept."""
    kept = KeptVolume(
        name=volume.name,
        id=volume.id,
        cloud=record.spec.cloud,
        gigabytes=int(volume.details.get("gigabytes", 0)),
        owner=record.owner,
        kept_at=now(),
    )
    _write(home, [*(other for other in kept_volumes(home) if other.id != kept.id), kept])


def forget_kept(home: Home, identity: str) -> None:
    """Remember it no more: a platform has taken it, or it was removed."""
    volumes = kept_volumes(home)
    left = [volume for volume in volumes if volume.id != identity]
    if left != volumes:
        _write(home, left)


def _write(home: Home, volumes: list[KeptVolume]) -> None:
    write_private(_file(home), _NOTES.dump_json(sorted(volumes, key=lambda volume: volume.name), indent=1))


def find_unused(cloud: Cloud, home: Home, wanted: str) -> DataVolume:
    """The volume of that name or id, that no platform has; raises UsageError when it must not be removed."""
    volumes = cloud.volumes()
    found = [volume for volume in volumes if wanted in (volume.id, volume.name)]
    if len(found) != 1:
        names = ", ".join(volume.name for volume in volumes) or "none"
        raise UsageError(f"There are {len(found)} data volumes {wanted!r}.", f"Name one, or its id: {names}.")
    recorded = {folder.load().uid: folder.name for folder in home.folders()}
    if not found[0].kept and found[0].uid in recorded:
        raise UsageError(
            f"The data volume {wanted!r} belongs to the platform {recorded[found[0].uid]}.",
            f"`provision delete {recorded[found[0].uid]} --delete-data` removes both.",
        )
    if not found[0].mine:
        raise UsageError(f"The data volume {wanted!r} was made by another user of the cloud ({found[0].owner}).")
    return found[0]
