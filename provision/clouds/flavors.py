"""Requirements choose the flavor and the image; a name is never guessed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from provision.clouds.base import Choice
from provision.spec import Gpu, PlatformSpec

SYSTEMS = (("debian", "12"), ("debian", "13"), ("ubuntu", "24.04"), ("ubuntu", "22.04"))
"""The operating systems that the roles serve, best first: values of the image properties os_distro and os_version."""

_ALIAS = re.compile(r"([^,:]+)(?::(\d+))?")


@dataclass(frozen=True)
class Flavor:
    """A flavor as the cloud tells it; `ram` in MiB, `disk` in GiB, as in Nova."""

    id: str
    name: str
    vcpus: int
    ram: int
    disk: int
    extra_specs: Mapping[str, str] = field(default_factory=dict)

    @property
    def gpus(self) -> int:
        """How many GPUs its extra specs tell of."""
        specs = self.extra_specs
        for key in ("gpu_number", "Accelerator:Number", "resources:VGPU", "resources:PGPU"):
            if str(specs.get(key, "")).isdigit():
                return int(specs[key])
        aliases = [int(count or 1) for _, count in _ALIAS.findall(specs.get("pci_passthrough:alias", ""))]
        if aliases:
            return sum(aliases)
        return 1 if specs.get("gpu_model") or "gpu" in specs.get("Accelerator:Type", "").lower() else 0

    @property
    def gpu_model(self) -> str:
        """The model of its GPUs, as far as it is told."""
        for key in ("gpu_model", "Accelerator:Model", "pci_passthrough:alias"):
            if self.extra_specs.get(key):
                return re.sub(r":\d+$", "", self.extra_specs[key])
        return ""

    def __str__(self) -> str:
        gpus = f", {self.gpus} x {self.gpu_model or 'GPU'}" if self.gpus else ""
        return f"{self.vcpus} CPU, {self.ram / 1024:g} GB memory, {self.disk} GB disk{gpus}"


@dataclass(frozen=True)
class Image:
    """An image as the cloud tells it; `min_ram` in MiB, `min_disk` in GiB.

    `baked` is the digest of an image that a toolkit has baked, `ours` whether it belongs to the user's own project.
    """

    id: str
    name: str
    distribution: str
    version: str
    min_disk: int
    min_ram: int
    created_at: str
    snapshot: bool = False
    baked: str = ""
    ours: bool = False

    def __str__(self) -> str:
        return f"{self.distribution or 'unknown system'} {self.version}".strip()


def objection_to_flavor(flavor: Flavor, spec: PlatformSpec, image: Image) -> str:
    """Why the flavor does not serve the spec, or nothing."""
    if flavor.vcpus < spec.cpus:
        return f"only {flavor.vcpus} CPU"
    if flavor.ram < spec.memory * 1024:
        return f"only {flavor.ram / 1024:g} GB memory"
    if flavor.disk < spec.disk:
        return f"only {flavor.disk} GB disk"
    if flavor.disk < image.min_disk or flavor.ram < image.min_ram:
        return f"too small for {image.name}"
    return _objection_to_gpus(flavor, spec.gpu)


def _objection_to_gpus(flavor: Flavor, gpu: Gpu | None) -> str:
    if gpu is None:
        return f"has {flavor.gpus} GPU that nobody asked for" if flavor.gpus else ""
    if flavor.gpus < gpu.count:
        return f"only {flavor.gpus} GPU" if flavor.gpus else "no GPU"
    if gpu.model and gpu.model.lower() not in flavor.gpu_model.lower():
        return f"GPU is {flavor.gpu_model or 'of an untold model'}"
    return ""


def flavor_choices(
    flavors: Iterable[Flavor], spec: PlatformSpec, image: Image, unaffordable: Mapping[str, str]
) -> tuple[Flavor | None, list[Choice]]:
    """Take the smallest flavor that serves (fewest GPUs, then CPUs, memory, disk) and that the quota admits.

    `unaffordable` tells, by flavor id, which quota would be exceeded.
    """
    ordered = sorted(flavors, key=lambda f: (f.gpus, f.vcpus, f.ram, f.disk, f.name))
    chosen: Flavor | None = None
    choices = []
    for flavor in ordered:
        verdict = objection_to_flavor(flavor, spec, image) or unaffordable.get(flavor.id, "")
        take = not verdict and chosen is None
        if take:
            chosen, verdict = flavor, "smallest that serves"
        choices.append(Choice("flavor", flavor.name, str(flavor), verdict or "larger than needed", take))
    return chosen, choices


def image_choices(images: Iterable[Image], baked: str = "") -> tuple[Image | None, list[Choice]]:
    """Take the newest image of the system that stands first in SYSTEMS, before all one baked with the digest `baked`.

    What another project has baked is not taken: whoever made an image is root on its machines.
    """

    def rank(image: Image) -> tuple[bool, int, str]:
        system = (image.distribution, image.version)
        place = len(SYSTEMS) - SYSTEMS.index(system) if _served(image) else 0
        return fits_baked(image, baked), place, image.created_at

    ordered = sorted(images, key=rank, reverse=True)
    chosen = next(
        (image for image in ordered if _served(image) and fits_baked(image, baked) == bool(image.baked)), None
    )
    choices = []
    for image in ordered:
        if image is chosen:
            verdict = "baked: has all that the roles install" if image.baked else "newest of the preferred system"
        elif image.snapshot:
            verdict = "a snapshot of a machine"
        elif image.baked and _served(image):
            verdict = _objection_to_baked(image, baked)
        elif _served(image):
            plain = chosen is not None and chosen.baked
            verdict = "plain, and a baked one serves" if plain else "a system further down the list, or older"
        else:
            verdict = (
                "a system that the roles do not serve" if image.distribution else "does not tell its system (os_distro)"
            )
        choices.append(Choice("image", image.name, str(image), verdict, image is chosen))
    return chosen, choices


def fits_baked(image: Image, baked: str) -> bool:
    """Whether it is an image of the user's own project that was baked with that digest."""
    return bool(baked) and image.baked == baked and image.ours


def _objection_to_baked(image: Image, baked: str) -> str:
    if not baked:
        return "baked, and no roles are asked for"
    if not image.ours:
        return "baked in another project"
    return "baked, and older" if image.baked == baked else "baked of other roles or packages than are wanted"


def _served(image: Image) -> bool:
    return (image.distribution, image.version) in SYSTEMS and not image.snapshot
