"""A cluster gets more workers, or fewer: planned, made, and completed by the same command after a kill."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

from provision.change import Change, always, begun, chosen, ensure_complete
from provision.clouds.base import Cloud, Offer, Platform, Step
from provision.errors import UsageError
from provision.framework import find_framework
from provision.plan import MachineSteps, Plan, Progress, carry_out
from provision.record import Folder, Record
from provision.remote import Remote
from provision.spec import MOST_WORKERS

_STEP = "scale"
_POLL_SECONDS = 2
_CLUSTER = ("shared_folder", "slurm", "cluster")
"""Tags of the roles and tasks that know which machines a cluster has."""


class Scale(Change):
    """Another number of workers.

    Attributes:
        impatient: whether jobs on the workers that go are ended instead of waited for.
    """

    impatient = False

    @property
    def fewer(self) -> bool:
        """Whether workers go."""
        return bool(self._leaving)

    @property
    def _leaving(self) -> list[Platform]:
        """The workers that go, the last one first; those of a change that was interrupted may have gone already."""
        now = max(self.platform.record.spec.workers, int(self._before.get("former", 0)))
        return [self.platform.of_worker(number) for number in range(now, self.spec.workers, -1)]

    @property
    def _before(self) -> dict[str, str]:
        return begun(self.platform.record, _STEP)

    def steps(self, note: Callable[[str], None]) -> list[Step]:
        """What is done, in this order."""
        if not self.fewer:
            return self._grown.steps(note)
        steps = [always("no more jobs for the workers that go", 10, lambda: self._drain(note))] if self.roles else []
        steps += [
            always(f"removing {worker.machine_name}", 10, partial(self._remove, worker)) for worker in self._leaving
        ]
        steps.append(always("record", 1, self.keep))
        if self.roles:
            machine = MachineSteps(self.cloud, self.wanted, self.cache, note)
            steps.append(machine.configuration_of("the cluster's settings", 60, _CLUSTER))
        return steps

    @property
    def _grown(self) -> Plan:
        """The creation of the platform with its new workers, of which the rest is there."""
        offer = Offer(facts=self.wanted.record.facts, values=self.wanted.record.values)
        return Plan(self.cloud, self.wanted, self.cache, offer, bare=not self.roles, resumed=True)

    def execute(self, progress: Progress) -> Record:
        """Do it, or the rest of it; returns the record."""
        record = self.platform.record
        self.begin(_STEP, "workers", str(self.spec.workers), former=str(record.spec.workers))
        if self.fewer:
            carry_out(self.steps, progress)
        else:
            # from here on they belong to the platform, whatever becomes of this command
            self.keep()
            replace(self._grown, platform=self.platform).execute(progress)
            self._resume_nodes()
        self.end(_STEP)
        return record

    def _drain(self, note: Callable[[str], None]) -> None:
        """Have Slurm start nothing more on the workers that go, and wait until nothing runs there."""
        names = ",".join(worker.machine_name for worker in self._leaving)
        with Remote(self.platform.folder) as remote:
            state = [f"NodeName={names}", "State=DRAIN", "Reason=scale"]
            # a node that Slurm does not know any more has no jobs
            remote.run(["sudo", "scontrol", "update", *state], check=False)
            if self.impatient:
                remote.run(["sudo", "scancel", f"--nodelist={names}"], check=False)
            queue = ["squeue", "--noheader", "--format=%j", f"--nodelist={names}"]
            while jobs := remote.run(queue, check=False).split():
                note(f"waiting for {', '.join(jobs[:3])}")
                time.sleep(_POLL_SECONDS)

    def _remove(self, worker: Platform) -> None:
        record, folder = self.platform.record, self.platform.folder
        for resource in reversed(self.cloud.discover(worker)):
            self.cloud.remove(self.platform, resource)
        for entry in record.ledger:
            if entry.step == f"worker-{worker.worker}" or entry.step.startswith(f"worker-{worker.worker}-"):
                entry.state = "removed"
        folder.save(record)
        # it may have gone before a kill; one that stays would be taken for a machine
        with suppress(FileNotFoundError):
            shutil.rmtree(worker.machine_folder.path)

    def _resume_nodes(self) -> None:
        """A worker of the same name may have been drained before."""
        if not self.roles:
            return
        with Remote(self.platform.folder) as remote:
            for worker in self.platform.workers:
                state = [f"NodeName={worker.machine_name}", "State=RESUME"]
                remote.run(["sudo", "scontrol", "update", *state], check=False)


def plan_scale(cloud: Cloud, record: Record, folder: Folder, cache: Path, workers: int | None) -> Scale:
    """Plan another number of workers, or the rest of a change that was interrupted.

    Args:
        cloud: where the machines are.
        record: the platform's record.
        folder: its folder.
        cache: where wheels are.
        workers: how many there are to be; None goes on with an interrupted change.

    Raises UsageError for a number that cannot be, or when another change is unfinished; ProvisionError when the cloud
    cannot.
    """
    ensure_complete(record, _STEP)
    platform = Platform(record, folder)
    if before := begun(record, _STEP):
        if workers not in (None, int(before["wishes"])):
            raise UsageError(
                f"A change of {record.name} to {before['wishes']} workers is unfinished.",
                f"End that first: `provision scale {record.name}`.",
            )
        offer, roles = chosen(before)
        spec = record.spec.model_copy(update={"workers": int(before["wishes"])})
        return Scale(cloud, platform, cache, spec, offer, roles, resumed=True)
    if workers is None:
        raise UsageError("No number of workers was named.", f"Write for instance `provision scale {record.name} 2`.")
    if not 1 <= workers <= MOST_WORKERS:
        raise UsageError(
            f"A cluster has 1 to {MOST_WORKERS} workers.", f"`provision delete {record.name}` removes all of it."
        )
    if workers == record.spec.workers:
        raise UsageError(f"{record.name} has {workers} workers already.", "Name another number.")
    if cloud.kind == "existing":
        raise UsageError("A host that existed before has no workers.", "Create a platform in a cloud.")
    spec = record.spec.model_copy(update={"workers": workers})
    offer = cloud.check_workers(platform, spec)
    if record.state == "ready":
        find_framework(spec.mlaas4hep, cache)
    return Scale(cloud, platform, cache, spec, offer, record.state == "ready", resumed=False)
