"""A machine gets another size: planned, made, kept when the machine answers by SSH, and taken back when it does not."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from provision.change import Change, always, begun, chosen, ensure_complete
from provision.clouds.base import Cloud, Platform, Step
from provision.errors import ProvisionError, UsageError
from provision.framework import find_framework
from provision.plan import MachineSteps, Progress, carry_out, connect
from provision.record import Folder, Record, Resource
from provision.spec import PlatformSpec, make_spec
from provision.usage import with_former

SIZES = ("cpus", "memory", "disk", "gpu")
"""The fields of a spec that a resize changes."""
_STEP = "resize"
_NO_GPU = "none"


class Resize(Change):
    """A change of size."""

    @property
    def wanted(self) -> Platform:
        """The platform as it will be; its hours until now keep the price of the flavor that it has now."""
        record = super().wanted.record.model_copy(
            update={"facts": with_former(self.platform.record.facts, self.offer.facts)}
        )
        return replace(self.platform, record=record)

    def steps(self, note: Callable[[str], None]) -> list[Step]:
        """What is done, in this order."""
        machine = MachineSteps(self.cloud, self.wanted, self.cache, note)
        size = next(iter(self.offer.facts.values()), "new size")
        steps = [
            always(f"machine with {size}", 60, lambda: self.cloud.resize(self.wanted)),
            replace(machine.ssh(), find=lambda: None, make=self._answered(machine)),
            always("the new size is kept", 10, lambda: self.cloud.keep_size(self.wanted)),
            always("record", 1, self.keep),
        ]
        return [*steps, replace(machine.configuration(), find=lambda: None)] if self.roles else steps

    def execute(self, progress: Progress) -> Record:
        """Do it, or the rest of it; returns the record.

        Raises ProvisionError when the machine does not answer with the new size; it has the former one again then.
        """
        self.begin(_STEP, "size", _wishes(self.spec))
        carry_out(self.steps, progress)
        self.end(_STEP)
        return self.platform.record

    def _answered(self, machine: MachineSteps) -> Callable[[], Resource]:
        """Wait for the machine's SSH; without an answer the former size comes back, unless the new one is kept."""
        record, folder = self.platform.record, self.platform.folder

        def make() -> Resource:
            connect(self.cloud, self.platform)
            try:
                return machine.ssh().make()
            except ProvisionError as error:
                if record.spec == self.spec:
                    raise
                self.cloud.restore_size(self.platform)
                record.note(_STEP, "removed")
                folder.save(record)
                raise ProvisionError(
                    f"{record.name} did not answer with its new size, and has its former one again. {error.message}",
                    "Choose another size.",
                    details=error.details,
                ) from None

        return make


def plan_resize(cloud: Cloud, record: Record, folder: Folder, cache: Path, changes: dict[str, Any]) -> Resize:
    """Plan a change of size, or the rest of one that was interrupted.

    Args:
        cloud: where the machine is.
        record: the platform's record.
        folder: its folder.
        cache: where wheels are.
        changes: fields of SIZES and their new values, as `provision create` takes them; `gpu` may be `none`. Nothing
            at all goes on with an interrupted change.

    Raises UsageError when nothing is named, or another change is unfinished; ProvisionError when the cloud cannot.
    """
    ensure_complete(record, _STEP)
    platform = Platform(record, folder)
    before = begun(record, _STEP)
    if before and not changes:
        changes = json.loads(before["wishes"])
    if not changes:
        raise UsageError("No size was named.", "Name what is to change: --cpus, --memory, --disk or --gpu.")
    spec = _with_sizes(record.spec, changes)
    if before and before["wishes"] == _wishes(spec):
        offer, roles = chosen(before)
        return Resize(cloud, platform, cache, spec, offer, roles, resumed=True)
    if before and cloud.resizing(platform):
        raise UsageError(
            f"Another resize of {record.name} is unfinished.", f"End that first: `provision resize {record.name}`."
        )
    offer = cloud.check_size(platform, spec)
    # a GPU needs its driver, and Slurm has to know what the machine has
    roles = record.state == "ready" and (spec.gpu != record.spec.gpu or spec.slurm)
    if roles:
        find_framework(spec.mlaas4hep, cache)
    return Resize(cloud, platform, cache, spec, offer, roles, resumed=False)


def _with_sizes(spec: PlatformSpec, changes: dict[str, Any]) -> PlatformSpec:
    """The spec with other sizes; its files may have gone since, and are not asked for."""
    given = {field: None if field == "gpu" and value == _NO_GPU else value for field, value in changes.items()}
    read = make_spec({"name": spec.name, **given})
    return spec.model_copy(update={field: getattr(read, field) for field in given})


def _wishes(spec: PlatformSpec) -> str:
    return json.dumps(spec.model_dump(mode="json", include=set(SIZES)), sort_keys=True)
