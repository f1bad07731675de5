"""A machine's system is made anew, on the same address: planned, made, and verified as after a creation."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from provision.change import Change, always, begun, chosen, ensure_complete
from provision.clouds.base import Cloud, Platform, Step
from provision.configure import image_digest
from provision.errors import UsageError
from provision.framework import find_framework
from provision.plan import MachineSteps, Progress, carry_out, forget_first_host_key, with_keys
from provision.record import Folder, Record
from provision.remote import make_key

_STEP = "rebuild"


class Rebuild(Change):
    """A system that is made anew.

    The record is `creating` from the first step until the roles are there again.
    """

    def steps(self, note: Callable[[str], None]) -> list[Step]:
        """What is done, in this order."""
        baked = bool(self.offer.values.get("baked"))
        machine = MachineSteps(self.cloud, self.platform, self.cache, note, baked)
        steps = [always("record", 1, self.keep)]
        if not self._made:
            image = next(iter(self.offer.facts.values()), "")
            system = always(f"new system: {image}", 60, lambda: self.cloud.rebuild(self.wanted))
            own_key = [machine.host_key()] if self.cloud.host_key_in_user_data else []
            steps = [system, machine.ssh(), *own_key, *steps]
        return [*steps, machine.configuration()] if self.roles else steps

    @property
    def _made(self) -> bool:
        """Whether the new system is there and has its own host key: then the key of the first contact is forgotten."""
        return self.resumed and not self.platform.folder.first_host_key.exists()

    def execute(self, progress: Progress) -> Record:
        """Do it, or the rest of it; returns the record."""
        record, folder = self.platform.record, self.platform.folder
        if not self.resumed:
            if not folder.first_host_key.exists():
                forget_first_host_key(folder)  # a kill may have left its public half
            make_key(folder.first_host_key, f"first host key of {record.name}")
        record.state = "creating"
        self.begin(_STEP, "system", self.spec.image or "", former=_digest(folder))
        if not self._made and _digest(folder) == begun(record, _STEP)["former"]:
            folder.known_hosts.unlink(missing_ok=True)  # the new system has other keys
        self.platform = with_keys(self.cloud, self.platform)
        carry_out(self.steps, progress)
        forget_first_host_key(folder)
        record.state = "ready" if self.roles else "bare"
        self.end(_STEP)
        return record


def _digest(folder: Folder) -> str:
    """Of the host keys that are accepted."""
    keys = folder.known_hosts.read_bytes() if folder.known_hosts.exists() else b""
    return hashlib.sha256(keys).hexdigest()


def plan_rebuild(cloud: Cloud, record: Record, folder: Folder, cache: Path, image: str | None) -> Rebuild:
    """Plan a new system, or the rest of one that was interrupted.

    Args:
        cloud: where the machine is.
        record: the platform's record.
        folder: its folder.
        cache: where wheels are.
        image: name or id of an image; None for the one that was asked for before, else what a creation would take: one
            that was baked for such a platform, or the newest that the roles serve.

    Raises UsageError when another change is unfinished; ProvisionError when the cloud cannot.
    """
    ensure_complete(record, _STEP)
    platform = Platform(record, folder)
    if before := begun(record, _STEP):
        if image not in (None, before["wishes"] or None):
            raise UsageError(
                f"A rebuild of {record.name} on another image is unfinished.",
                f"End that first: `provision rebuild {record.name}`.",
            )
        offer, roles = chosen(before)
        spec = record.spec.model_copy(update={"image": before["wishes"] or None})
        return Rebuild(cloud, platform, cache, spec, offer, roles, resumed=True)
    spec = record.spec.model_copy(update={"image": image or record.spec.image})
    roles = record.state == "ready"
    baked = image_digest(spec, find_framework(spec.mlaas4hep, cache)) if roles else ""
    offer = cloud.check_image(platform, spec, baked=baked)
    return Rebuild(cloud, platform, cache, spec, offer, roles, resumed=False)
