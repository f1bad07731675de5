"""nova-compute, whose servers are containers, attaches volumes, and lets them mount file systems in user space.

Nova names the bus of a container's disks `lxc`. libvirt does not know that word and refuses the disk, and Nova has no
setting for it. libvirt-lxc does not look at the bus at all, so any word that it knows serves.

A virtual machine's kernel has FUSE; a container has the device only when its definition names it.
"""

from __future__ import annotations

import sys
from typing import Any

from nova.cmd import compute  # patches the standard library for eventlet, so it comes first
from nova.virt.libvirt import blockinfo, config

_FUSE = "<hostdev mode='capabilities' type='misc'><source><char>/dev/fuse</char></source></hostdev>"

blockinfo.SUPPORTED_DEVICE_BUSES["lxc"].append("virtio")
_bus_of_others = blockinfo.get_disk_bus_for_device_type


def _bus(instance: object, virt_type: str, image_meta: object, device_type: str = "disk") -> str | None:
    bus: str | None = _bus_of_others(instance, virt_type, image_meta, device_type)
    return "virtio" if bus == "lxc" else bus


_devices_of_others = config.LibvirtConfigGuest._format_devices


def _devices(guest: object, root: Any) -> None:
    _devices_of_others(guest, root)
    root.find("devices").append(config.etree.fromstring(_FUSE))


blockinfo.get_disk_bus_for_device_type = _bus
config.LibvirtConfigGuest._format_devices = _devices
sys.argv[0] = "nova-compute"  # the name of its log
compute.main()
