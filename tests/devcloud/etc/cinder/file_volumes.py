"""Volumes of the development cloud: a sparse file each, and a loop device while a server has it.

Cinder's own drivers need device-mapper, iSCSI or NFS, which not every kernel has. This one runs on the computer of the
servers, so a connection is the path of a device. That path is a link that stays the same, because the number of a loop
device does not survive `down` and `up`.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

from cinder import interface
from cinder.volume import driver
from oslo_config import cfg

_GIB = 1024**3


@interface.volumedriver
class FileVolumes(driver.VolumeDriver):
    """The contract of cinder.interface.volume_driver.CoreDriver, and no more."""

    VERSION = "1"
    CI_WIKI_NAME = "none"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._folder = Path(cfg.CONF.state_path)

    @staticmethod
    def get_driver_options() -> list[Any]:
        """Options of its own: none."""
        return []

    def do_setup(self, context: Any) -> None:
        """Make its folders."""
        for name in ("files", "devices"):
            (self._folder / name).mkdir(parents=True, exist_ok=True)

    def check_for_setup_error(self) -> None:
        """Nothing can be wrong that do_setup has not told."""

    def _update_volume_stats(self) -> None:
        free = os.statvfs(self._folder)
        self._stats = {
            "volume_backend_name": self.configuration.safe_get("volume_backend_name"),
            "vendor_name": "devcloud",
            "driver_version": self.VERSION,
            "storage_protocol": "local",
            "total_capacity_gb": free.f_blocks * free.f_frsize / _GIB,
            "free_capacity_gb": free.f_bavail * free.f_frsize / _GIB,
            "reserved_percentage": 0,
            "thin_provisioning_support": True,
            "max_over_subscription_ratio": "20.0",
            "provisioned_capacity_gb": 0,
            "multiattach": False,
        }

    def _file(self, name: str) -> Path:
        return self._folder / "files" / name

    def _link(self, name: str) -> Path:
        return self._folder / "devices" / name

    def create_volume(self, volume: Any) -> None:
        """Make the file; it takes no room until something is written."""
        with self._file(volume.name).open("xb") as file:
            file.truncate(volume.size * _GIB)

    def delete_volume(self, volume: Any) -> None:
        """Remove device and file."""
        self.remove_export(None, volume)
        self._file(volume.name).unlink(missing_ok=True)

    def extend_volume(self, volume: Any, new_size: int) -> None:
        """Make file and device larger."""
        os.truncate(self._file(volume.name), new_size * _GIB)
        if self._link(volume.name).is_symlink():
            subprocess.run(["losetup", "--set-capacity", self._link(volume.name)], check=True)

    def _copy(self, source: str, target: str) -> None:
        subprocess.run(["cp", "--sparse=always", self._file(source), self._file(target)], check=True)

    def create_snapshot(self, snapshot: Any) -> None:
        """Copy the file."""
        self._copy(snapshot.volume.name, snapshot.name)

    def delete_snapshot(self, snapshot: Any) -> None:
        """Remove the copy."""
        self._file(snapshot.name).unlink(missing_ok=True)

    def create_volume_from_snapshot(self, volume: Any, snapshot: Any) -> None:
        """Copy the copy, in the size that is wanted."""
        self._copy(snapshot.name, volume.name)
        os.truncate(self._file(volume.name), volume.size * _GIB)

    def create_cloned_volume(self, volume: Any, src_vref: Any) -> None:
        """Copy the file, in the size that is wanted."""
        self._copy(src_vref.name, volume.name)
        os.truncate(self._file(volume.name), volume.size * _GIB)

    def ensure_export(self, context: Any, volume: Any) -> None:
        """Give a volume in use its device again, after `down` and `up`."""
        if self._link(volume.name).is_symlink():
            self.create_export(context, volume, None)

    def create_export(self, context: Any, volume: Any, connector: Any) -> None:
        """Make the device, unless it is there."""
        file, link = self._file(volume.name), self._link(volume.name)
        words = ["losetup", "--associated", file, "--noheadings", "--output", "NAME"]
        devices = subprocess.run(words, check=True, capture_output=True, text=True).stdout.split()
        if not devices:
            words = ["losetup", "--find", "--show", file]
            devices = subprocess.run(words, check=True, capture_output=True, text=True).stdout.split()
        link.unlink(missing_ok=True)
        link.symlink_to(devices[0])

    def remove_export(self, context: Any, volume: Any) -> None:
        """Remove the device."""
        link = self._link(volume.name)
        if link.is_symlink():
            subprocess.run(["losetup", "--detach", link], check=False)
            link.unlink()

    def initialize_connection(self, volume: Any, connector: Any) -> dict[str, Any]:
        """Tell Nova where the device is."""
        path = str(self._link(volume.name))
        return {"driver_volume_type": "local", "data": {"device_path": path, "volume_id": volume.id}}

    def terminate_connection(self, volume: Any, connector: Any, **kwargs: Any) -> None:
        """The device is removed by remove_export."""

    def retype(self, context: Any, volume: Any, new_type: Any, diff: Any, host: Any) -> bool:
        """All types are the same."""
        return True
