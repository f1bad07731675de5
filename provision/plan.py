"""The plan: ordered, costed steps from a spec to a ready platform, and back.

The same list is shown, executed, resumed and undone. Each step first asks the cloud, or the machine, whether it is
done; the ledger says `intended` before anything is made. A kill at any moment leaves what the next command completes or
removes.
"""

from __future__ import annotations

import getpass
import json
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from provision import __version__
from provision.clouds import open_cloud
from provision.clouds.base import Choice, Cloud, Offer, Platform, Step
from provision.configure import IMAGE_MARKER, MARKER, image_digest, personal_tags, platform_variables, run_playbook
from provision.errors import ProvisionError, UsageError
from provision.framework import find_framework
from provision.record import DATA_VOLUME, Folder, Home, Record, Resource, new_uid, now
from provision.remote import (
    AWAIT_CLOUD_INIT,
    MAKE_HOST_KEY,
    TAKE_HOST_KEY,
    ConnectionLostError,
    Remote,
    include_in_user_config,
    make_key,
    write_known_hosts,
    write_ssh_config,
)
from provision.spec import REGISTERED, PlatformSpec
from provision.volumes import forget_kept, note_kept

SSH_SECONDS = 300


class Stage(Protocol):
    """Where a step in progress tells what it is doing."""

    def note(self, text: str) -> None:
        """Show what is happening now."""


class Progress(Protocol):
    """Shows the steps as they are taken."""

    def stage(self, title: str) -> AbstractContextManager[Stage]:
        """A step: shown while it lasts, and kept as a line with its duration."""

    def skipped(self, title: str) -> None:
        """A step that was done already."""


@dataclass
class Plan:
    """The steps for one platform; nothing has been written when it is made."""

    cloud: Cloud
    platform: Platform
    cache: Path
    offer: Offer
    bare: bool
    resumed: bool

    @property
    def record(self) -> Record:
        """The platform's record."""
        return self.platform.record

    @property
    def seconds(self) -> int:
        """What the steps usually take in all."""
        return sum(step.seconds for step in self.steps(lambda _: None))

    def steps(self, note: Callable[[str], None]) -> list[Step]:
        """All steps; those of the cloud, then those on the machine."""
        baked = bool(self.offer.values.get("baked"))
        steps = self.cloud.steps(self.platform, self.offer)
        machines = [MachineSteps(self.cloud, platform, self.cache, note, baked) for platform in self.platform.machines]
        for machine in machines:
            steps += machine.reached()
        if not self.bare:
            steps.append(machines[0].configuration())
        return steps

    def explain(self) -> str:
        """The plan as a script of the cloud's own commands; raises UsageError for a cloud that has none."""
        if self.resumed:
            raise UsageError(
                f"The platform {self.record.name} is there already, whole or in part.",
                f"`provision show {self.record.name}` shows it; a new name can be explained.",
            )
        return self.cloud.explain(self.platform, self.offer, self.steps(lambda _: None))

    def execute(self, progress: Progress) -> Record:
        """Take every step that is not done yet; returns the record of the ready platform."""
        record, folder = self.record, self.platform.folder
        folder.save(record)
        self.platform = with_keys(self.cloud, self.platform)
        stages: list[Stage] = []

        def note(text: str) -> None:
            stages[-1].note(text)

        for step in self.steps(note):
            started = time.monotonic()
            found = step.find()
            if found is not None:
                progress.skipped(step.title)
            else:
                record.note(step.key, "intended")
                folder.save(record)
                with progress.stage(step.title) as stage:
                    stages.append(stage)
                    found = step.make()
            record.note(step.key, "done", found)
            if found.kind == DATA_VOLUME:
                forget_kept(Home(folder.path.parents[1]), found.id)
            entry = record.entry(step.key)
            if entry:
                entry.seconds = round(time.monotonic() - started, 2)
            folder.save(record)
        for machine in self.platform.machines:
            forget_first_host_key(machine.machine_folder)
        if not self.bare:
            record.state = "ready"
        elif record.state != "ready":
            record.state = "bare"
        folder.save(record)
        return record


def make_plan(spec: PlatformSpec, home: Home, bare: bool = False) -> Plan:
    """Plan a platform on one cloud, see `plan_among`."""
    return plan_among([spec], home, bare)


def plan_among(specs: Sequence[PlatformSpec], home: Home, bare: bool = False) -> Plan:
    """Plan a platform: a new one on the first cloud that serves, or the rest of one whose creation was interrupted.

    Args:
        specs: the same wishes for each cloud, in the order in which the clouds are asked (`spec.make_specs`).
        home: where records are.
        bare: whether the machine is left without roles.

    Raises UsageError when a cloud is not known, or the name is taken by a platform with other wishes; for one cloud
    whatever its checks find, for several ProvisionError with what each said.
    """
    if specs[0].client_id == REGISTERED:
        raise UsageError(
            "Only the PaaS orchestrator registers a client at the issuer for a platform.",
            "Register one there, with the redirect URI https://DOMAIN/login/callback, and give its name as client_id.",
        )
    folder = home.folder(specs[0].name)
    if folder.record_file.exists():
        record = folder.load()
        spec = next((spec for spec in specs if spec.cloud == record.spec.cloud), specs[0])
        _same_wishes(record, spec)
        cloud = open_cloud(spec.cloud, home)
        offer = Offer(facts=record.facts, values=record.values)
        return Plan(cloud, Platform(record, folder), home.cache, offer, bare, resumed=True)
    baked = "" if bare else image_digest(specs[0], find_framework(specs[0].mlaas4hep, home.cache))
    cloud, spec, offer = _first_that_serves(specs, home, baked)
    record = Record(
        name=spec.name,
        uid=new_uid(),
        owner=f"{getpass.getuser()}@{socket.gethostname()}",
        toolkit=__version__,
        spec=spec,
        facts=offer.facts,
        values=offer.values,
        expires_at=now() + spec.ttl if spec.ttl else None,
    )
    return Plan(cloud, Platform(record, folder), home.cache, offer, bare, resumed=False)


def _first_that_serves(specs: Sequence[PlatformSpec], home: Home, baked: str) -> tuple[Cloud, PlatformSpec, Offer]:
    """The first cloud whose checks pass; its offer tells what became of the others."""
    clouds = [open_cloud(spec.cloud, home) for spec in specs]
    if len(clouds) == 1:
        return clouds[0], specs[0], clouds[0].check(specs[0], baked=baked)
    for cloud in clouds:
        cloud.ensure_known()
    refused: list[Choice] = []
    for cloud, spec in zip(clouds, specs, strict=True):
        try:
            offer = cloud.check(spec, baked=baked)
        except ProvisionError as error:
            refused.append(Choice("cloud", spec.cloud, "", error.message))
            continue
        taken = Choice("cloud", spec.cloud, next(iter(offer.facts.values()), ""), "the first that serves", True)
        rest = [
            Choice("cloud", later.cloud, "", f"not asked: {spec.cloud} serves") for later in specs[len(refused) + 1 :]
        ]
        return cloud, spec, replace(offer, choices=(*refused, taken, *rest, *offer.choices))
    raise ProvisionError(
        f"None of the clouds {', '.join(spec.cloud for spec in specs)} serves.",
        "Ask for less, or name another cloud.",
        details="\n".join(f"{choice.name}: {choice.verdict}" for choice in refused),
    )


def _same_wishes(record: Record, spec: PlatformSpec) -> None:
    if record.state == "deleting":
        raise UsageError(
            f"The platform {record.name} is half deleted.", f"End that first: `provision delete {record.name}`."
        )
    ensure_unchanging(record)
    if fields := record.spec.differences(spec):
        raise UsageError(
            f"The name {record.name} is taken: that platform was created with another {', '.join(fields)}.",
            f"Choose another name, or delete it first: `provision delete {record.name}`.",
        )


def ensure_unchanging(record: Record, but: str = "") -> None:
    """Raise UsageError while a change of the machine is unfinished, other than `but`."""
    if record.unfinished not in ("", but):
        raise UsageError(
            f"A {record.unfinished} of the platform {record.name} is unfinished.",
            f"End that first: `provision {record.unfinished} {record.name}`.",
        )


def with_keys(cloud: Cloud, platform: Platform) -> Platform:
    """The platform with its keys, made if they are not there; before a machine has one, also its first host key."""
    folder, record = platform.folder, platform.record
    public = make_key(folder.key, f"{record.owner} {record.name}")
    for machine in platform.machines if cloud.kind != "existing" else ():
        own = machine.machine_folder
        if not own.known_hosts.exists():
            host_key = make_key(own.first_host_key, f"first host key of {machine.machine_name}")
            write_known_hosts(own, record.uid, host_key)
    private, host_public = "", ""
    if folder.first_host_key.exists():
        private = folder.first_host_key.read_text()
        host_public = folder.first_host_key.with_suffix(".pub").read_text().strip()
    return Platform(record, folder, public, private, host_public)


def forget_first_host_key(folder: Folder) -> None:
    """Remove the host key of the first contact from this computer; the machine has its own by now, or for good."""
    folder.first_host_key.unlink(missing_ok=True)
    folder.first_host_key.with_suffix(".pub").unlink(missing_ok=True)


def connect(cloud: Cloud, platform: Platform) -> None:
    """Write the ssh configuration for the machine's present address, as its cloud tells it."""
    record, folder = platform.record, platform.folder
    access = cloud.access(platform)
    if platform.worker:
        write_ssh_config(platform.machine_folder, record.uid, access, gateway=folder)
        if record.access and "Include" not in folder.ssh_config.read_text(encoding="utf-8"):
            write_ssh_config(folder, record.uid, record.access)
        return
    if access != record.access or not folder.ssh_config.exists():
        record.access = access
        folder.save(record)
        write_ssh_config(folder, record.uid, access)
    include_in_user_config(folder.path.parent, wanted=True)


def carry_out(make_steps: Callable[[Callable[[str], None]], Sequence[Step]], progress: Progress) -> None:
    """Take steps that are not done yet, without a ledger: whoever changes a machine has one entry for the whole.

    `make_steps` gets the function by which a step tells what it is doing.
    """
    stages: list[Stage] = []

    def note(text: str) -> None:
        stages[-1].note(text)

    for step in make_steps(note):
        if step.find() is not None:
            progress.skipped(step.title)
            continue
        with progress.stage(step.title) as stage:
            stages.append(stage)
            step.make()


class MachineSteps:
    """The steps on the machine itself, the same for every cloud."""

    def __init__(
        self, cloud: Cloud, platform: Platform, cache: Path, note: Callable[[str], None], baked: bool = False
    ) -> None:
        self.cloud = cloud
        self.platform = platform
        self.cache = cache
        self.note = note
        self.baked = baked

    @property
    def folder(self) -> Folder:
        """The machine's folder."""
        return self.platform.machine_folder

    def _step(
        self, key: str, title: str, seconds: int, find: Callable[[], Resource | None], make: Callable[[], Resource]
    ) -> Step:
        if self.platform.worker:
            key, title = f"worker-{self.platform.worker}-{key}", f"{title} of {self.platform.machine_name}"
        return Step(key, title, seconds, find, make)

    def reached(self) -> list[Step]:
        """All until the machine is reached by a connection that nobody else could have opened."""
        return [self.ssh(), *([self.host_key()] if self.cloud.host_key_in_user_data else [])]

    def ssh(self) -> Step:
        """The first verified connection, and the ssh configuration for it."""
        return self._step("ssh", "verified SSH connection", 15, self._find_ssh, self._make_ssh)

    def _ssh_resource(self) -> Resource:
        access = self.platform.record.access
        name = self.platform.machine_name
        host = access.host if access and not self.platform.worker else ""
        return Resource(kind="ssh", id=host, name=name, ours=False)

    def _find_ssh(self) -> Resource | None:
        connect(self.cloud, self.platform)
        with Remote(self.folder) as remote:
            return self._ssh_resource() if remote.answers() else None

    def _make_ssh(self) -> Resource:
        try:
            with Remote(self.folder) as remote:
                remote.wait(SSH_SECONDS, self._still_running)
        except ConnectionLostError as error:
            error.details = _tail(self.cloud.console(self.platform)) or error.details
            raise
        return self._ssh_resource()

    def _still_running(self) -> None:
        state = self.cloud.state(self.platform)
        if state not in ("running", "starting"):
            raise ProvisionError(
                f"The machine {self.platform.machine_name} is not running any more ({state}).",
                details=_tail(self.cloud.console(self.platform)),
            )

    def host_key(self) -> Step:
        """A host key that only the machine knows, in place of the one that went through the cloud."""
        return self._step("host-key", "host key of the machine's own", 2, self._find_host_key, self._make_host_key)

    def _wait_for_cloud_init(self) -> None:
        """Until cloud-init has ended, and the machine answers."""
        end = time.monotonic() + SSH_SECONDS
        while True:
            try:
                with Remote(self.folder) as remote:
                    remote.wait(SSH_SECONDS, self._still_running)
                    remote.run(["sh", "-c", AWAIT_CLOUD_INIT], check=False)
                return
            except ConnectionLostError:
                if time.monotonic() > end:
                    raise

    def _find_host_key(self) -> Resource | None:
        if self.folder.first_host_key.exists():
            return None
        return Resource(kind="host key", id=self.platform.uid, ours=False)

    def _make_host_key(self) -> Resource:
        first = self.platform.host_public_key
        uid = self.platform.uid
        self._wait_for_cloud_init()
        with Remote(self.folder) as remote:
            # a machine that boots beside others may be too busy to answer each time that it is asked
            remote.wait(SSH_SECONDS, self._still_running)
            public = remote.run(["sudo", "sh", "-c", MAKE_HOST_KEY]).strip()
            write_known_hosts(self.folder, uid, first, public)
            remote.run(["sudo", "sh", "-c", TAKE_HOST_KEY])
        write_known_hosts(self.folder, uid, public)
        with Remote(self.folder) as remote:
            remote.wait(SSH_SECONDS)
        self.cloud.publish_host_key(self.platform, public)
        forget_first_host_key(self.folder)
        return Resource(kind="host key", id=uid, ours=False)

    def configuration(self) -> Step:
        """All roles applied, on all machines: GPU driver, XRootD client, framework, and what else was chosen."""
        spec = self.platform.spec
        roles = ["base", "GPU driver", "XRootD client", "framework"]
        roles += ["Slurm"] if spec.slurm else []
        roles += ["web proxy"] if spec.service == "shared" else []
        title = f"roles: {', '.join(roles)}" + "; only what is the machine's own" * self.baked
        title += f"; on {1 + spec.workers} machines" * (spec.workers > 0)
        return Step("configure", title, 15 if self.baked else 90, self._find_roles, self._make_roles)

    def configuration_of(self, title: str, seconds: int, tags: Sequence[str]) -> Step:
        """Only the roles with these tags, whatever the machines are configured with."""

        def make() -> Resource:
            variables = self._variables()
            run_playbook(self.folder, "platform.yml", variables, self.note, tags=tags, workers=self._workers)
            return Resource(kind="configuration", id=str(variables["platform_digest"]), ours=False)

        return Step("configure", title, seconds, lambda: None, make)

    @property
    def _workers(self) -> list[str]:
        return [worker.machine_name for worker in self.platform.workers]

    def _variables(self) -> dict[str, object]:
        record = self.platform.record
        return platform_variables(record, find_framework(record.spec.mlaas4hep, self.cache))

    def _find_roles(self) -> Resource | None:
        wanted = str(self._variables()["platform_digest"])
        if not all(_digest_of(told) == wanted for told in self._told(["cat", MARKER])):
            return None
        return Resource(kind="configuration", id=wanted, ours=False)

    def _told(self, words: Sequence[str]) -> Iterator[str]:
        """What a command prints on each of the platform's machines."""
        for machine in self.platform.machines:
            with Remote(machine.machine_folder) as remote:
                remote.wait(SSH_SECONDS)
                yield remote.run(words, check=False)

    def _make_roles(self) -> Resource:
        variables = self._variables()
        tags = personal_tags(self.platform.spec) if self._is_of_baked_image() else ()
        run_playbook(self.folder, "platform.yml", variables, self.note, tags=tags, workers=self._workers)
        return Resource(kind="configuration", id=str(variables["platform_digest"]), ours=False)

    def _is_of_baked_image(self) -> bool:
        """Whether no machine was ever configured, and their image has all that the roles would install."""
        spec = self.platform.spec
        wanted = image_digest(spec, find_framework(spec.mlaas4hep, self.cache))
        return all(
            told.strip() == wanted for told in self._told(["sh", "-c", f"test -e {MARKER} || cat {IMAGE_MARKER}"])
        )


def _digest_of(marker: str) -> object:
    """What a machine says that it was configured with."""
    try:
        told = json.loads(marker or "{}")
    except ValueError:
        return None
    return told.get("digest") if isinstance(told, dict) else None


def to_remove(cloud: Cloud, platform: Platform) -> list[Resource]:
    """What a deletion would remove, in that order: what the cloud says is ours, and what only the ledger knows of.

    A data volume is among it; whether it is kept, the deletion decides.
    """
    found = cloud.discover(platform)
    known = {(resource.kind, resource.id) for resource in found}
    done = [e.resource for e in platform.record.ledger if e.state == "done" and e.resource and e.resource.ours]
    resources = [*found, *(resource for resource in done if (resource.kind, resource.id) not in known)]
    # what was made last goes first; where the ledger does not tell, the cloud's order does
    order = list(dict.fromkeys([*(resource.kind for resource in done), *(resource.kind for resource in found)]))
    return sorted(resources, key=lambda resource: order.index(resource.kind), reverse=True)


def undo(cloud: Cloud, platform: Platform, progress: Progress, keep_data: bool = True) -> None:
    """Remove exactly what was made, have the cloud confirm it, and forget the platform.

    A data volume is kept, and belongs to no platform then, unless `keep_data` is false.

    Raises ProvisionError when the cloud still shows something of it; the record stays, and the same command goes on.
    """
    record, folder = platform.record, platform.folder
    record.state = "deleting"
    folder.save(record)
    for resource in to_remove(cloud, platform):
        kept = keep_data and resource.kind == DATA_VOLUME
        with progress.stage(f"{'keeping' if kept else 'removing'} {resource}"):
            (cloud.keep_volume if kept else cloud.remove)(platform, resource)
        if kept:
            note_kept(Home(folder.path.parents[1]), record, resource)
        for entry in record.ledger:
            if entry.resource == resource:
                entry.state = "removed"
        folder.save(record)
    if left := cloud.discover(platform):
        raise ProvisionError(
            f"The cloud still shows {', '.join(str(resource) for resource in left)}.",
            f"Run `provision delete {platform.name}` again.",
        )
    folder.remove()
    if not list(folder.path.parent.glob("*/record.json")):
        include_in_user_config(folder.path.parent, wanted=False)


def _tail(text: str, lines: int = 25) -> str:
    return "\n".join(text.strip().splitlines()[-lines:])
