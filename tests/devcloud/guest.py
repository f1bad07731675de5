"""The image of the servers: a plain Debian 12 with cloud-init, as a cloud offers it, for a system container.

It reaches package registries as this computer does: it gets the same apt sources, apt acquisition settings, CA
certificates and pip settings.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from tests.devcloud.commands import PATH, attempt, output, run
from tests.devcloud.packages import debian_codename
from tests.devcloud.progress import stage
from tests.devcloud.state import GUEST_IMAGE, GUEST_IMAGE_STAMP, HERE, IMAGE, LOG

NAME = "debian-12"
# What Debian's own cloud images hold, less what a container has no use for (kernel, boot loader, udev)
GUEST_PACKAGES = [
    *("systemd-sysv", "dbus", "cloud-init", "openssh-server", "sudo", "ca-certificates"),
    *("ifupdown", "isc-dhcp-client", "iproute2", "iputils-ping"),
    *("netbase", "python3", "python3-apt", "curl", "less", "procps"),
]
# They only delay the boot of a container; ifupdown-pre waits for udev
MASKED_UNITS = [
    *("systemd-udevd.service", "systemd-udev-trigger.service", "systemd-udevd-kernel.socket"),
    *("systemd-udevd-control.socket", "console-getty.service", "getty@tty1.service", "fstrim.timer"),
    *("ifupdown-pre.service", "systemd-networkd.service", "systemd-timesyncd.service", "systemd-resolved.service"),
    *("apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer"),
    *("e2scrub_reap.service", "e2scrub_all.timer"),
]
BUILD = 1  # raise it to make every cached image stale


@dataclass(frozen=True)
class HostSettings:
    """What makes downloads work on this computer: files to repeat in a guest, and which of them are apt's."""

    files: dict[str, bytes]
    apt_sources: list[str]
    apt_options: list[str]


def host_settings() -> HostSettings:
    """Read the settings of this computer."""
    sources, options = _apt_sources(), _apt_options()
    keys = [key for path in sources for key in re.findall(r"(?i:signed-by[:=]\s*)(/[^\s\]]+)", path.read_text())]
    files = {str(path): path.read_bytes() for path in [*sources, *options, *map(Path, keys)]}
    for directory in ("/etc/apt/auth.conf.d", "/etc/apt/trusted.gpg.d", "/usr/local/share/ca-certificates"):
        files |= {str(path): path.read_bytes() for path in sorted(Path(directory).rglob("*")) if path.is_file()}
    files["/etc/pip.conf"] = _pip_settings().encode()
    return HostSettings(files, [str(path) for path in sources], [str(path) for path in options])


def _apt_sources() -> list[Path]:
    places = [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*"))]
    files = [path for path in places if path.suffix in (".list", ".sources") and path.is_file()]
    return [path for path in files if re.search(r"^\s*(deb\s|URIs:)", path.read_text(), re.M)]


def _apt_options() -> list[Path]:
    """The files of apt.conf.d that concern downloads."""
    found = []
    for path in sorted(Path("/etc/apt/apt.conf.d").glob("*")):
        text = re.sub(r"^\s*(//|#).*$", "", path.read_text(), flags=re.M)
        if re.search(r"^\s*Acquire\b", text, re.M) and not re.search("Invoke|IndexTargets", text):
            found.append(path)
    return found


def _pip_settings() -> str:
    """pip.conf of this computer, without what names a place on its own disk."""
    settings: dict[str, str] = {}
    for place in ("/etc/pip.conf", "~/.pip/pip.conf", "~/.config/pip/pip.conf"):
        path = Path(place).expanduser()
        if path.is_file():
            settings.update(re.findall(r"^\s*([a-z-]+)\s*=\s*(.+)$", path.read_text(), re.M))
    lines = ["[global]"]
    for key, value in settings.items():
        words = [word for word in value.split() if key == "cert" or not word.startswith(("/", "file:"))]
        if words:
            lines.append(f"{key} = {' '.join(words)}")
    return "\n".join(lines) + "\n"


def build(anew: bool = False) -> None:
    """Build the image, unless it is there and nothing that goes into it has changed."""
    codename, settings = debian_codename(), host_settings()
    fingerprint = _fingerprint(settings)
    if not anew and is_built() and GUEST_IMAGE_STAMP.read_text() == fingerprint:
        print(f"cached: {GUEST_IMAGE} ({GUEST_IMAGE.stat().st_size} bytes)")
        return
    for directory in (IMAGE, LOG):
        directory.mkdir(parents=True, exist_ok=True)
    root, log = IMAGE / "root", LOG / "image.log"
    _remove(root)
    log.unlink(missing_ok=True)
    with stage("image: packages"):
        options = [f"--aptopt={path}" for path in settings.apt_options]
        mmdebstrap = ("mmdebstrap", "--mode=root", "--format=directory", "--variant=apt", *options)
        what = ("--include=" + ",".join(GUEST_PACKAGES), codename, root, *settings.apt_sources)
        run(*mmdebstrap, *what, log=log, env={**os.environ, "PATH": PATH})
    with stage("image: configuration"):
        _configure(root, settings, log)
    with stage("image: file system"):
        GUEST_IMAGE_STAMP.unlink(missing_ok=True)
        _write_file_system(root, log)
        GUEST_IMAGE_STAMP.write_text(fingerprint)
    print(f"{GUEST_IMAGE} ({GUEST_IMAGE.stat().st_size} bytes)")


def is_built() -> bool:
    """Whether there is an image, made to its end."""
    return GUEST_IMAGE.exists() and GUEST_IMAGE_STAMP.exists()


def _own_files() -> dict[str, bytes]:
    """Files of the image that this project brings; the empty ones are filled by the guest at its boot."""
    etc = HERE / "etc/guest"
    return {
        "/etc/network/interfaces": (etc / "interfaces").read_bytes(),
        "/etc/cloud/cloud.cfg.d/90_devcloud.cfg": (etc / "cloud.cfg").read_bytes(),
        "/etc/resolv.conf": b"",
        "/etc/machine-id": b"",
        "/etc/fstab": b"",
    }


def _fingerprint(settings: HostSettings) -> str:
    inputs = (sorted(settings.files.items()), sorted(_own_files().items()), GUEST_PACKAGES, MASKED_UNITS, BUILD)
    return hashlib.sha256(repr(inputs).encode()).hexdigest()


def _remove(root: Path) -> None:
    """Delete a root directory; an mmdebstrap that was killed may have left /proc, /sys and /dev mounted in it."""
    mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    for mount in reversed([place for place in mounts if place.startswith(f"{root}/")]):
        attempt("umount", "-l", mount)
    if root.exists():
        shutil.rmtree(root)


def _configure(root: Path, settings: HostSettings, log: Path) -> None:
    for path in (root / "etc/apt/sources.list.d").glob("*"):
        path.unlink()  # mmdebstrap's own names; the sources come under the names they have here
    for name, data in ({"/etc/apt/sources.list": b""} | settings.files | _own_files()).items():
        path = root / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)  # it may be a link to somewhere
        path.write_bytes(data)
        path.chmod(0o644)
    for path in [root / "etc/hostname", *(root / "etc/ssh").glob("ssh_host_*")]:
        path.unlink(missing_ok=True)
    run("chroot", root, "update-ca-certificates", log=log)
    run("chroot", root, "systemctl", "mask", *MASKED_UNITS, log=log)


def _write_file_system(root: Path, log: Path) -> None:
    """Turn the directory into an unpartitioned ext4, which a container mounts as it is.

    It is as small as it goes, with a small journal: Nova grows it to the flavor's disk, and its download of the image
    writes every zero.
    """
    new = IMAGE / "new.raw"
    new.unlink(missing_ok=True)
    run("truncate", "-s", "1G", new, log=log)
    run("mke2fs", "-q", "-t", "ext4", "-J", "size=16", "-L", "rootfs", "-d", root, new, log=log)
    run("resize2fs", "-M", new, log=log)
    header = dict(re.findall(r"^([A-Z][\w ]+):\s+(\d+)$", output("dumpe2fs", "-h", new), re.M))
    os.truncate(new, int(header["Block count"]) * int(header["Block size"]))
    shutil.rmtree(root)
    new.rename(GUEST_IMAGE)
