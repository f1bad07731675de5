"""Baked images: a machine's root with all that the roles install, cleaned of what is a machine's own."""

from __future__ import annotations

import os
import re
import shutil
from abc import ABC, abstractmethod
from datetime import datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from provision.clouds._computer import TIED, remove_tree, run
from provision.clouds._image import MARK, replace_file
from provision.clouds.base import LOGIN_USER
from provision.errors import ProvisionError, UsageError
from provision.record import write_private

_ROOT_HOME = "/root"  # of the image
# What a machine has made for itself, or says of it. Patterns of `find -path`, each with all that is below
_OWN = (
    f"/{MARK}",
    "/etc/hostname",
    "/etc/mlaas4hep/*",
    "/etc/ssh/ssh_host_*",
    "/etc/ssl/private/*",
    f"{_ROOT_HOME}/.*",
    f"/home/{LOGIN_USER}/.ssh",
    f"/home/{LOGIN_USER}/.ansible",
    f"/home/{LOGIN_USER}/.cache",
    "/run/*",
    "/tmp/*",  # noqa: S108  (of the image)
    "/var/cache/apt/*.bin",
    "/var/cache/apt/archives/*.deb",
    "/var/lib/apt/lists/*",
    "/var/lib/apt/periodic/*",
    "/var/lib/cloud/*",
    "/var/lib/dbus/machine-id",
    "/var/lib/mlaas4hep/jobs/*",
    "/var/lib/mlaas4hep/store/*",
    "/var/lib/systemd/credential.secret",
    "/var/lib/systemd/random-seed",
    "/var/lib/systemd/timers/*",
    "/var/log/journal/*",
    "/var/tmp/*",  # noqa: S108  (of the image)
)
_KEPT = (f"{_ROOT_HOME}/.bashrc", f"{_ROOT_HOME}/.profile")
_HOSTS = "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n"
_DIGEST = "etc/mlaas4hep/image"
_PASSWORD = re.compile(r"(?<=://)[^/\s@]+@")


class BakedImage(BaseModel):
    """What is known of one baked image.

    `digest` tells what the roles have installed there (`configure.image_digest`), `settings` of which root image of
    this computer it is made (empty in a cloud). `size` is in bytes, as it lies there; `usable` is False for
    what a broken upload has left, and for what is made of another root image than machines of this computer are now.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    digest: str
    system: str
    mlaas4hep: str
    frameworks: tuple[str, ...] = ()
    gpu: bool = False
    toolkit: str
    created_at: datetime
    settings: str = ""
    size: int = 0
    usable: bool = True

    def __str__(self) -> str:
        words = [self.system, f"mlaas4hep {self.mlaas4hep}", *self.frameworks, *(["for GPUs"] if self.gpu else [])]
        return ", ".join(words)


class Images(ABC):
    """The baked images of one cloud."""

    place: str
    """Where they are, in words."""

    playbook = ""
    """What the machine of which an image is made needs besides, for machines of this cloud."""

    @abstractmethod
    def all(self) -> list[BakedImage]:
        """All of the toolkit's own images there, the newest first."""

    def check(self) -> None:  # noqa: B027  (this computer takes what it makes)
        """See that an image could be put there and would boot; raises ProvisionError or UsageError with the remedy."""

    @abstractmethod
    def add(self, root: Path, image: BakedImage) -> BakedImage:
        """Make an image of the cleaned root folder, which may be changed; it is there whole, or not used."""

    @abstractmethod
    def remove(self, image: BakedImage) -> None:
        """Remove the image; one that is gone already is fine."""

    def named(self, name: str) -> BakedImage:
        """The image of that name; raises UsageError when there is none."""
        images = self.all()
        for image in images:
            if image.name == name:
                return image
        names = ", ".join(image.name for image in images) or "none"
        raise UsageError(f"There is no baked image {name!r} {self.place}.", f"There are: {names}.")


class LocalImages(Images):
    """Images of this computer's machines, a folder for each.

    Args:
        folder: where they are.
        settings: digest of the root image that machines of this computer are made of now.
    """

    place = "on this computer"

    def __init__(self, folder: Path, settings: str) -> None:
        self.folder = folder
        self.settings = settings

    def path(self, name: str) -> Path:
        """The image's packed root folder."""
        return self.folder / name / "root.tar.zst"

    def all(self) -> list[BakedImage]:
        """See the contract."""
        found = []
        for facts in self.folder.glob("*/image.json"):
            try:
                image = BakedImage.model_validate_json(facts.read_text(encoding="utf-8"))
                size, usable = self.path(image.name).stat().st_size, image.settings == self.settings
                found.append(image.model_copy(update={"size": size, "usable": usable}))
            except (FileNotFoundError, ValidationError):  # it is being removed, or of a later toolkit
                continue
        return sorted(found, key=lambda image: image.created_at, reverse=True)

    def find(self, digest: str) -> BakedImage | None:
        """The image that a machine with that digest can be made of, or None."""
        return next((image for image in self.all() if image.usable and image.digest == digest), None)

    def add(self, root: Path, image: BakedImage) -> BakedImage:
        """See the contract."""
        made = image.model_copy(update={"settings": self.settings})
        part, folder = self.folder / f".{image.name}.part", self.folder / image.name
        remove_tree(part)
        part.mkdir(mode=0o700, parents=True)
        packed = part / "root.tar.zst"
        options = ("--numeric-owner", "--xattrs", "--xattrs-include=*", "--one-file-system")
        run(*TIED, "tar", "--use-compress-program=zstd -T0", *options, "-cf", packed, "-C", root, ".")
        with packed.open("rb") as written:
            os.fsync(written.fileno())
        write_private(part / "image.json", made.model_dump_json(indent=1).encode())
        remove_tree(folder)
        part.rename(folder)
        return made.model_copy(update={"size": self.path(image.name).stat().st_size})

    def remove(self, image: BakedImage) -> None:
        """See the contract."""
        remove_tree(self.folder / image.name)


def clean(root: Path, digest: str) -> None:
    """Take from the root folder of a stopped machine all that is the machine's own, and mark it as an image.

    No two machines of one image share a secret or an identity. Everything runs with `root` as its root folder: a link
    of the machine's leads to nothing of this computer.
    """
    wanted = [word for pattern in _OWN for word in ("-o", "-path", pattern)][1:]
    kept = [word for path in _KEPT for word in ("-not", "-path", path)]
    within = (*TIED, "chroot", root, "find")
    run(*within, "/", "-xdev", "(", *wanted, ")", *kept, "-prune", "-exec", "rm", "-rf", "--one-file-system", "{}", "+")
    run(*within, "/var/log", "-type", "f", "-delete")
    # else Ansible takes the lists for fresh that were just removed
    run(*TIED, "chroot", root, "touch", "--date=@0", "/var/lib/apt/lists")
    replace_file(root, "etc/hosts", _HOSTS, 0o644)
    replace_file(root, "etc/resolv.conf", "", 0o644)
    replace_file(root, "etc/machine-id", "", 0o444)
    (root / _DIGEST).parent.mkdir(mode=0o755, exist_ok=True)
    replace_file(root, _DIGEST, digest, 0o644)


def forget_passwords(root: Path) -> None:
    """Take this computer's passwords for package sources from a root folder that leaves it."""
    (root / "etc/apt/auth.conf").unlink(missing_ok=True)
    remove_tree(root / "etc/apt/auth.conf.d")  # raises where something stays
    files = [root / "etc/pip.conf", *(root / "etc/apt").rglob("*")]
    for path in files:
        if path.is_file() and not path.is_symlink() and path.suffix in (".conf", ".list", ".sources", ""):
            text = path.read_text(encoding="utf-8", errors="surrogateescape")
            if _PASSWORD.search(text):
                path.write_text(_PASSWORD.sub("", text), encoding="utf-8", errors="surrogateescape")


def file_system(root: Path, target: Path) -> None:
    """Write the root folder as one unpartitioned ext4, no larger than it must be, which a system container mounts.

    Raises ProvisionError when the disk is full or e2fsprogs are missing.
    """
    if not shutil.which("mke2fs", path="/usr/sbin:/sbin"):
        raise ProvisionError("The program mke2fs is missing.", "Install it: apt-get install e2fsprogs")
    target.unlink(missing_ok=True)
    used = int(run("du", "--summarize", "--one-file-system", "--block-size=1", root).split()[0])
    with target.open("wb") as handle:
        handle.truncate(used + used // 4 + 2**28)
    # a journal is written whole when the image is copied, and a small one does
    run(*TIED, "mke2fs", "-q", "-t", "ext4", "-i", "8192", "-J", "size=16", "-L", "rootfs", "-d", root, target)
    run(*TIED, "resize2fs", "-M", target)
    header = dict(re.findall(r"^([A-Z][\w ]+):\s+(\d+)$", run("dumpe2fs", "-h", target), re.MULTILINE))
    os.truncate(target, int(header["Block count"]) * int(header["Block size"]))


def kind_of_image(head: bytes) -> str:
    """What an image is, by its first 2048 bytes: `file system`, `disk`, or nothing when it cannot be told."""
    if head[1080:1082] == b"\x53\xef":
        return "file system"
    if head.startswith((b"QFI\xfb", b"KDMV", b"conectix")) or head[510:512] == b"\x55\xaa":
        return "disk"
    return ""
