"""Data volumes of this computer: folders that outlive the machines which see them.

Beside the folder lies `volume.json`, which says whose it is, as metadata do in a cloud.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path

from provision.clouds import _computer
from provision.clouds.base import DataVolume, Platform
from provision.errors import ProvisionError
from provision.record import DATA_VOLUME, Resource, now, write_private
from provision.spec import PlatformSpec

MARKER = ".data-volume"
"""A file in a volume with its id: a machine sees by it that the right one is mounted."""


class LocalVolumes:
    """The data volumes below a folder.

    Args:
        folder: where they lie.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def all(self) -> list[DataVolume]:
        """Every one, by name."""
        return [_read(path) for path in sorted(self.folder.glob("*/volume.json"))]

    def ours(self, uid: str) -> DataVolume | None:
        """The one that belongs to the platform."""
        return next((volume for volume in self.all() if volume.uid == uid and not volume.kept), None)

    def data(self, volume: DataVolume) -> Path:
        """The folder that a machine sees."""
        return self.folder / volume.name / "data"

    def chosen(self, spec: PlatformSpec) -> DataVolume | None:
        """The one that a spec names; None where it asks for a new one, or for none.

        Raises ProvisionError when there is none of that name, or another platform has it.
        """
        if not isinstance(spec.data_volume, str):
            return None
        free = ", ".join(volume.name for volume in self.all() if volume.kept) or "none"
        found = next((volume for volume in self.all() if volume.name == spec.data_volume), None)
        if found is None:
            raise ProvisionError(f"This computer has no data volume {spec.data_volume!r}.", f"Kept are: {free}.")
        if not found.kept:
            raise ProvisionError(
                f"The data volume {found.name!r} belongs to the platform {found.platform}.",
                f"Delete that platform first; its volume is kept. Kept are: {free}.",
            )
        return found

    def offer(self, spec: PlatformSpec) -> tuple[dict[str, str], dict[str, str]]:
        """Facts and values of the volume that is asked for."""
        if spec.data_volume is None:
            return {}, {}
        if volume := self.chosen(spec):
            words = f"{volume.name}, kept of {volume.platform}"
            return {DATA_VOLUME: words}, {"volume": volume.name, "volume_gb": str(volume.gigabytes)}
        size = math.ceil(float(spec.data_volume))
        words = f"a new folder of this computer, whose disk it shares; {size} GB are not its limit"
        return {DATA_VOLUME: words}, {"volume": "", "volume_gb": str(size)}

    def find(self, platform: Platform) -> Resource | None:
        """The platform's volume, as a resource."""
        volume = self.ours(platform.uid)
        return _as_resource(volume) if volume and (self.data(volume) / MARKER).exists() else None

    def make(self, platform: Platform, values: dict[str, str]) -> Resource:
        """A new folder, or the one that was kept."""
        name = values["volume"] or f"provision-{platform.name}-{platform.uid}"
        record = self.folder / name / "volume.json"
        before = _read(record) if record.exists() else None
        if before and before.uid != platform.uid and not before.kept:
            raise ProvisionError(
                f"The platform {before.platform} has taken the data volume {name} since {platform.name} was planned.",
                f"Delete {platform.name} and create it with another volume.",
            )
        if values["volume"] and before is None:
            raise ProvisionError(f"The data volume {name} is gone.", f"Run: provision delete {platform.name}")
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        volume = DataVolume(
            name=name,
            id=name,
            gigabytes=int(values["volume_gb"]),
            platform=platform.name,
            uid=platform.uid,
            owner=platform.record.owner,
            mine=True,
            created=before.created if before else now(),
        )
        data = self.data(volume)
        data.mkdir(mode=0o755, parents=True, exist_ok=True)
        self._write(volume)
        (data / MARKER).write_text(f"{name}\n")
        return _as_resource(volume)

    def keep(self, resource: Resource) -> None:
        """Have it belong to no platform."""
        record = self.folder / resource.id / "volume.json"
        if record.exists():
            self._write(replace(_read(record), kept=True))

    def remove(self, name: str) -> None:
        """Remove it with all data; half of one is none."""
        folder, gone = self.folder / name, self.folder / f"{name}.gone"
        _computer.remove_tree(gone)
        if folder.exists():
            (folder / "volume.json").unlink(missing_ok=True)
            folder.rename(gone)
        _computer.remove_tree(gone)

    def _write(self, volume: DataVolume) -> None:
        words = asdict(volume) | {"created": volume.created.isoformat() if volume.created else ""}
        write_private(self.folder / volume.name / "volume.json", json.dumps(words, indent=1).encode())


def _read(path: Path) -> DataVolume:
    words = json.loads(path.read_text(encoding="utf-8"))
    return DataVolume(**words | {"created": datetime.fromisoformat(words["created"])})


def _as_resource(volume: DataVolume) -> Resource:
    return Resource(kind=DATA_VOLUME, id=volume.id, name=volume.name, details={"gigabytes": str(volume.gigabytes)})
