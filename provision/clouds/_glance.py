"""Baked images in a cloud: private images of the user's project, found by their properties."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from provision.clouds._baked import BakedImage, Images, file_system, forget_passwords, kind_of_image
from provision.clouds._computer import release
from provision.clouds.flavors import Image
from provision.errors import ProvisionError

DIGEST = "mlaas4hep_digest"
"""The image property that marks a baked image and tells what it has."""

GIGABYTE = 2**30
_HEAD_BYTES = 2048
_ARCHITECTURES = {"amd64": "x86_64", "arm64": "aarch64"}


class CloudImages(Images):
    """The baked images of one OpenStack project.

    What is uploaded is a file system, which clouds boot whose servers are system containers. Hypervisors need a disk
    with a boot loader, and such clouds are refused.

    Args:
        cloud: its name.
        connection: gives the SDK's connection.
        insist: calls a function again after a passing failure of the cloud.
        plain: gives the image that a platform would have without a baked one.
    """

    playbook = "cloud_image.yml"

    def __init__(
        self,
        cloud: str,
        connection: Callable[[], Any],
        insist: Callable[[Callable[[], Any]], Any],
        plain: Callable[[], Image],
    ) -> None:
        self.cloud = cloud
        self.place = f"in the cloud {cloud!r}"
        self._connection = connection
        self._insist = insist
        self._plain = plain

    @property
    def _glance(self) -> Any:
        return self._connection().image

    def check(self) -> None:
        """See that the cloud's own images are file systems, as the one would be that is made here."""
        plain = self._insist(self._plain)
        if kind_of_image(self._insist(lambda: self._head(plain))) != "file system":
            raise ProvisionError(
                f"The cloud {self.cloud!r} boots disks: its image {plain.name!r} is no plain file system.",
                "Images are made for clouds of system containers so far (docs/images.md); platforms there are made"
                " of its plain images.",
            )

    def _head(self, image: Image) -> bytes:
        with self._glance.download_image(image.id, stream=True) as answer:
            return bytes(next(answer.iter_content(_HEAD_BYTES), b""))

    def all(self) -> list[BakedImage]:
        """See the contract."""
        images: list[BakedImage] = self._insist(self._all)
        return images

    def _all(self) -> list[BakedImage]:
        project = self._connection().current_project_id
        found = [image for image in self._glance.images(owner=project) if (image.properties or {}).get(DIGEST)]
        return sorted((_described(image) for image in found), key=lambda image: image.created_at, reverse=True)

    def add(self, root: Path, image: BakedImage) -> BakedImage:
        """See the contract."""
        forget_passwords(root)
        disk = root.with_name("disk.raw")
        file_system(root, disk)
        made: BakedImage = self._insist(lambda: self._upload(disk, image))
        return made

    def _upload(self, disk: Path, image: BakedImage) -> BakedImage:
        distribution, _, version = image.system.partition("-")
        size = disk.stat().st_size
        queued = self._glance.create_image(
            name=image.name,
            allow_duplicates=True,
            disable_vendor_agent=False,
            disk_format="raw",
            container_format="bare",
            visibility="private",
            min_disk=size // GIGABYTE + 1,
            os_distro=distribution,
            os_version=version,
            architecture=_ARCHITECTURES[release().architecture],
            **_properties(image),
        )
        try:
            with disk.open("rb") as data:
                queued.data = data
                queued.upload(self._glance)
            made = self._glance.wait_for_status(self._glance.get_image(queued.id), "active", failures=["killed"])
        except BaseException:
            self._glance.delete_image(queued.id)
            raise
        return _described(made)

    def remove(self, image: BakedImage) -> None:
        """See the contract."""
        self._insist(lambda: self._remove(image))

    def _remove(self, image: BakedImage) -> None:
        project = self._connection().current_project_id
        for found in self._glance.images(owner=project, name=image.name):
            if (found.properties or {}).get(DIGEST) == image.digest:
                self._glance.delete_image(found.id)


def _properties(image: BakedImage) -> dict[str, str]:
    return {
        DIGEST: image.digest,
        "mlaas4hep_version": image.mlaas4hep,
        "mlaas4hep_frameworks": " ".join(image.frameworks),
        "mlaas4hep_gpu": "yes" if image.gpu else "no",
        "mlaas4hep_toolkit": image.toolkit,
        "mlaas4hep_created": image.created_at.isoformat(),
    }


def _described(found: Any) -> BakedImage:
    properties = found.properties
    return BakedImage(
        name=found.name or found.id,
        digest=properties[DIGEST],
        system=f"{found.os_distro or ''}-{found.os_version or ''}",
        mlaas4hep=properties.get("mlaas4hep_version", ""),
        frameworks=tuple(properties.get("mlaas4hep_frameworks", "").split()),
        gpu=properties.get("mlaas4hep_gpu") == "yes",
        toolkit=properties.get("mlaas4hep_toolkit", ""),
        created_at=datetime.fromisoformat(str(found.created_at)),
        size=found.size or 0,
        usable=found.status == "active",
    )
