"""Images that are baked once, on a machine of this computer, so that a creation installs nothing."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from provision import __version__
from provision.clouds._baked import BakedImage, Images, clean
from provision.clouds.base import Platform
from provision.clouds.local import LocalCloud
from provision.configure import NOT_BAKED, image_digest, image_variables, run_playbook
from provision.errors import UsageError
from provision.framework import Framework, find_framework
from provision.plan import Progress, make_plan, undo
from provision.record import Folder, Home, now
from provision.spec import PlatformSpec


@dataclass(frozen=True)
class Baking:
    """An image that could be made: what it will have, for which wishes, and where it will be."""

    image: BakedImage
    wishes: PlatformSpec
    framework: Framework
    images: Images
    home: Home

    @property
    def present(self) -> BakedImage | None:
        """The same image, where there is one already."""
        return next((image for image in self.images.all() if image.usable and image.name == self.image.name), None)

    @property
    def folder(self) -> Folder:
        """The folder of the machine of which the image is made; `provision list` shows it while it is there."""
        return self.home.folder(f"baking-{self.image.digest[:8]}")

    def bake(self, progress: Progress) -> BakedImage:
        """Make the image, unless it is there by now; returns it.

        What a kill has left is removed by the next call: a machine that is half cleaned lets nobody in. After a failure
        the machine stays to be looked at, as after that of a creation.
        """
        with self.folder.lock():
            if self.present:
                return self.present
            local = LocalCloud(self.home)
            if self.folder.record_file.exists():
                undo(local, Platform(self.folder.load(), self.folder), progress)
            made = self._bake(local, progress)
            undo(local, Platform(self.folder.load(), self.folder), progress)
            return made

    def _bake(self, local: LocalCloud, progress: Progress) -> BakedImage:
        plan = make_plan(PlatformSpec(name=self.folder.name), self.home, bare=True)
        # an image for a cloud begins with that of this computer, where there is one
        begun = local.images().find(self.image.digest)
        if begun:
            plan.offer = replace(plan.offer, values={**plan.offer.values, "baked": begun.name})
        plan.execute(progress)
        if not begun:
            variables = image_variables(self.wishes, self.framework)
            with progress.stage("roles, but for what is a machine's own") as stage:
                run_playbook(self.folder, "platform.yml", variables, stage.note, skip_tags=NOT_BAKED)
        if self.images.playbook:
            with progress.stage("what a server of the cloud needs") as stage:
                run_playbook(self.folder, self.images.playbook, {}, stage.note)
        with progress.stage("stop of the machine, and all of its own taken from it"):
            local.stop(plan.platform)
            root = local.root(self.folder)
            clean(root, self.image.digest)
        with progress.stage(f"image {self.image.name} {self.images.place}"):
            return self.images.add(root, self.image)


def plan_image(wishes: PlatformSpec, images: Images, home: Home) -> Baking:
    """The image for platforms of these wishes; nothing is made yet.

    Of the wishes `gpu`, `frameworks` and `mlaas4hep` decide. Raises ProvisionError or UsageError where this computer
    cannot make machines, or the cloud could not boot it.
    """
    local = LocalCloud(home)
    local.check(PlatformSpec(name="baking"))
    images.check()
    framework = find_framework(wishes.mlaas4hep, home.cache)
    digest = image_digest(wishes, framework)
    system = str(local.recipe.release)
    frameworks = tuple(Path(name).name for name in wishes.frameworks)
    image = BakedImage(
        name=f"mlaas4hep-{framework.version}-{system}-{digest[:8]}",
        digest=digest,
        system=system,
        mlaas4hep=framework.version,
        frameworks=frameworks,
        gpu=wishes.gpu is not None,
        toolkit=__version__,
        created_at=now(),
    )
    return Baking(image, wishes, framework, images, home)


def is_current(image: BakedImage, home: Home) -> bool:
    """Whether a creation now, with the wishes that the image was made for, would take it as far as it knows.

    One that was made with wheels is taken by creations that name the same files, which only they know.
    """
    mine = find_framework("", home.cache), Framework(None, image.mlaas4hep)
    try:
        wishes = PlatformSpec.model_validate(
            {"name": "any", "frameworks": image.frameworks, "gpu": "any" if image.gpu else None}
        )
        return image.usable and image.digest in [image_digest(wishes, framework) for framework in mine]
    except (ValueError, UsageError):  # a wheel that is not here, or a framework that this toolkit does not know
        return False
