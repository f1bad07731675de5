"""The contract of a cloud: a few verbs, so that plan, undo and resume are written once for all clouds."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

from provision.errors import UsageError
from provision.record import Access, Folder, Record, Resource, worker_name
from provision.spec import PlatformSpec

if TYPE_CHECKING:
    from provision.clouds._baked import Images

MachineState = Literal["running", "stopped", "released", "starting", "error", "missing"]
"""`released` is stopped without holding anything of the cloud but a disk image and an address."""

LOGIN_USER = "physicist"
"""The account, with password-less sudo, of every machine that the toolkit makes."""


@dataclass(frozen=True)
class Platform:
    """What a cloud needs to know of the platform that it makes or removes, or of one of its workers.

    `worker` is 0 for the platform and its own machine, else the number of the worker that is meant. `public_key` and
    `host_public_key` are OpenSSH lines; `host_private_key` is the private half of the host key of the first contact
    (OpenSSH PEM), empty once the machine has a key of its own.
    """

    record: Record
    folder: Folder
    public_key: str = ""
    host_private_key: str = ""
    host_public_key: str = ""
    worker: int = 0

    @property
    def spec(self) -> PlatformSpec:
        """The wishes for the machine."""
        return self.record.spec.of_worker() if self.worker else self.record.spec

    def of_worker(self, number: int) -> Platform:
        """One of the workers, with the host key of its first contact where there is one."""
        folder = self.folder.worker(number)
        private, public = "", ""
        if folder.first_host_key.exists():
            private = folder.first_host_key.read_text()
            public = folder.first_host_key.with_suffix(".pub").read_text().strip()
        return Platform(self.record, self.folder, self.public_key, private, public, number)

    @property
    def workers(self) -> list[Platform]:
        """All workers."""
        return [self.of_worker(number) for number in range(1, self.record.spec.workers + 1)]

    @property
    def machines(self) -> list[Platform]:
        """The platform's own machine and those of its workers."""
        return [self, *self.workers]

    @property
    def machine_name(self) -> str:
        """The machine's name, for its host and for ssh."""
        return worker_name(self.name, self.worker) if self.worker else self.name

    @property
    def machine_folder(self) -> Folder:
        """Where the machine's own ssh files are."""
        return self.folder.worker(self.worker) if self.worker else self.folder

    @property
    def uid(self) -> str:
        """The mark of the platform's resources."""
        return self.record.uid

    @property
    def name(self) -> str:
        """The platform's name."""
        return self.record.name


@dataclass(frozen=True)
class Step:
    """One step of a plan.

    `find` asks the cloud itself whether the step is done and returns its resource, or None; `make` does it. Both may be
    called again after a kill at any moment: `make` is only called when `find` returned None.
    """

    key: str
    title: str
    seconds: int
    find: Callable[[], Resource | None]
    make: Callable[[], Resource]


@dataclass(frozen=True)
class Choice:
    """A candidate that was considered (a flavor, an image) and, if it was not taken, why not."""

    kind: str
    name: str
    properties: str
    verdict: str
    chosen: bool = False


@dataclass(frozen=True)
class Quota:
    """Use of one quota; `limit` is None when it is unlimited or unknown."""

    name: str
    limit: int | None
    used: int
    needed: int

    @property
    def exceeded(self) -> bool:
        """True when the platform does not fit."""
        return self.limit is not None and self.used + self.needed > self.limit


@dataclass(frozen=True)
class Check:
    """One thing that was looked at: what was found, whether that serves, and what would."""

    name: str
    found: str
    good: bool
    needed: str


@dataclass(frozen=True)
class Offer:
    """What a cloud offers for a spec: the outcome of all checks, before anything is written.

    `facts` are lines for the plan (`flavor` -> `m1.small: 1 CPU, 1 GB, 10 GB`); `checks` are of a machine that was
    there before; `values` are the cloud's own, for its
    steps.
    """

    facts: dict[str, str] = field(default_factory=dict)
    choices: tuple[Choice, ...] = ()
    quotas: tuple[Quota, ...] = ()
    checks: tuple[Check, ...] = ()
    values: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Found:
    """A platform that a cloud knows by the marks of its resources, whether or not this computer has a record of it.

    Attributes:
        name, uid: as in the marks.
        owner: `user@computer` that made it, "" where that is not told.
        mine: whether the present credentials are of the cloud's user that made it.
        newest: when its newest resource was made, as far as the cloud tells.
        machine: whether it has a machine.
        resources: how many of its resources were seen.
        wishes: fields of its record (`spec`, `facts`, `values`) as the machine's metadata has them.
        host_key: the machine's SSH host key, an OpenSSH line, "" where that is not told.
        worker_keys: those of its workers, by their numbers.
    """

    name: str
    uid: str
    owner: str = ""
    mine: bool = False
    newest: datetime | None = None
    machine: bool = False
    resources: int = 0
    wishes: dict[str, Any] = field(default_factory=dict)
    host_key: str = ""
    worker_keys: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Usage:
    """How long a machine has been used.

    Attributes:
        since: since when it runs; None when it does not, or where that is not told.
        hours: how long it has run in all, None where that is not told.
        former: of these hours, those with each size that it had before the present one, the oldest first.
    """

    since: datetime | None = None
    hours: float | None = None
    former: tuple[float, ...] = ()


@dataclass(frozen=True)
class DataVolume:
    """A volume that holds a platform's data.

    Attributes:
        name, id: in its cloud.
        gigabytes: its size.
        platform, uid: of the platform that has it, or had it last.
        owner: `user@computer` that made that platform.
        mine: whether the present credentials are of the cloud's user that made it.
        created: when it was made, as far as the cloud tells.
        kept: whether its platform was deleted, so that another one may take it.
    """

    name: str
    id: str
    gigabytes: int
    platform: str
    uid: str
    owner: str = ""
    mine: bool = False
    created: datetime | None = None
    kept: bool = False


class Cloud(ABC):
    """One cloud, region or computer that can hold platforms.

    What concerns one machine (`access`, `state`, `start`, `stop`, `release`, `usage`, `console`, `publish_host_key`) is
    asked of a worker by the platform `of_worker`; `check`, `steps`, `discover` and `remove` are of all machines.
    """

    kind: str
    host_key_in_user_data = False
    """True when the first host key was handed over through the cloud, so that the machine has to make another."""

    def ensure_known(self) -> None:  # noqa: B027  (most clouds are where their name says)
        """Raise UsageError when the user's configuration knows no such cloud; nothing is asked of the cloud."""

    @abstractmethod
    def check(self, spec: PlatformSpec, *, baked: str = "") -> Offer:
        """Check credentials, quota and requirements; choose. Writes nothing.

        `baked` is the digest of an image that has all that the roles would install; it is taken where there is one, and
        the offer's value `baked` then names it.

        Asked once for a platform: a creation that is resumed goes on with what was chosen. Raises ProvisionError or
        UsageError with the remedy.
        """

    @abstractmethod
    def steps(self, platform: Platform, offer: Offer) -> list[Step]:
        """The ordered steps from nothing to a machine that boots."""

    def explain(self, platform: Platform, offer: Offer, steps: Sequence[Step]) -> str:
        """The steps as a script of the cloud's own commands, that makes the same; raises UsageError without such."""
        del offer, steps
        raise UsageError(
            f"The cloud {platform.spec.cloud} has no commands of its own to explain the plan by.",
            "--dry-run shows the plan.",
        )

    def images(self) -> Images:
        """The images that were baked for platforms here; raises UsageError where machines are made of none."""
        raise UsageError("A machine that was there before is made of no image.", "Name another cloud.")

    @abstractmethod
    def access(self, platform: Platform) -> Access:
        """Where the machine listens for SSH, once all steps are done."""

    @abstractmethod
    def discover(self, platform: Platform) -> list[Resource]:
        """Every resource in the cloud that bears the platform's mark, in the order in which it was made."""

    @abstractmethod
    def remove(self, platform: Platform, resource: Resource) -> None:
        """Remove one resource and return when the cloud confirms that it is gone; one that is gone already is fine."""

    def volumes(self) -> list[DataVolume]:
        """Every data volume that bears the toolkit's marks, by name; none where the cloud has no volumes."""
        return []

    def keep_volume(self, platform: Platform, resource: Resource) -> None:
        """Have a data volume belong to no platform any more; `discover` does not show it then."""
        raise _not_ours(platform)

    def remove_volume(self, volume: DataVolume) -> None:
        """Remove a data volume that was kept, and return when the cloud confirms it."""
        raise UsageError(f"The data volume {volume.name} was not made by the toolkit.")

    @abstractmethod
    def state(self, platform: Platform) -> MachineState:
        """The machine's state, asked of the cloud now."""

    @abstractmethod
    def start(self, platform: Platform) -> None:
        """Start the machine and return when the cloud says that it runs."""

    @abstractmethod
    def stop(self, platform: Platform) -> None:
        """Stop the machine and return when the cloud says that it does not run any more."""

    def release(self, platform: Platform) -> None:
        """Stop the machine so that it holds nothing but its disk and its address; `start` brings it back.

        Raises ProvisionError where that is impossible, with the machine stopped and nothing lost.
        """
        self.stop(platform)

    def check_size(self, platform: Platform, spec: PlatformSpec) -> Offer:
        """See that the machine can become as the spec says, and choose how; writes nothing.

        Quotas are those of the difference. Raises ProvisionError or UsageError with the remedy.
        """
        del spec
        raise _not_ours(platform)

    def resize(self, wanted: Platform) -> None:
        """Give the machine the size that its record says; returns when it boots with it, or raises ProvisionError.

        May be called again after a kill at any moment. Until `keep_size`, the former size can be had back.
        """
        raise _not_ours(wanted)

    def resizing(self, platform: Platform) -> bool:
        """Whether a resize was begun that is neither kept nor restored."""
        del platform
        return False

    def keep_size(self, platform: Platform) -> None:  # noqa: B027  (most clouds keep it without being told)
        """Make the new size final."""

    def restore_size(self, platform: Platform) -> None:
        """Give the machine, whose new size is not kept yet, the one back that its record says."""
        raise _not_ours(platform)

    def check_workers(self, platform: Platform, spec: PlatformSpec) -> Offer:
        """See that there can be as many workers as the spec says, and choose how; writes nothing.

        Quotas are those of the difference. Raises ProvisionError or UsageError with the remedy.
        """
        del spec
        raise _not_ours(platform)

    def check_image(self, platform: Platform, spec: PlatformSpec, *, baked: str = "") -> Offer:
        """Choose the image that the machine could be rebuilt on; writes nothing. For `baked`, see `check`."""
        del spec, baked
        raise _not_ours(platform)

    def rebuild(self, platform: Platform) -> None:
        """Make the machine's system anew, of the image that its record says and with the platform's keys.

        May be called again after a kill at any moment: the first host key tells whether the system is the new one.
        """
        raise _not_ours(platform)

    def publish(self, platform: Platform) -> None:  # noqa: B027  (some clouds have no marks)
        """Have the cloud tell the platform's present wishes to whoever adopts it."""

    def exclusively(self, platform: Platform, say: Callable[[str], None]) -> AbstractContextManager[None]:
        """Keep commands of other computers off the platform for as long as the context lasts; waits for them first.

        Nothing is to be done where a platform can be managed from one computer only: there its lock file serves.

        Args:
            platform: what is worked on.
            say: told for whom is waited.
        """
        del platform, say
        return nullcontext()

    def usage(self, platform: Platform) -> Usage:
        """How long the machine has run, as far as the cloud tells; nothing is known where it does not."""
        del platform
        return Usage()

    def platforms(self) -> list[Found]:
        """Every platform whose marks this cloud shows; none where the records are all that there is."""
        return []

    def publish_host_key(self, platform: Platform, public_key: str) -> None:
        """Have the cloud tell the machine's own SSH host key to whoever adopts the platform.

        Asked of clouds with `host_key_in_user_data` only.
        """
        raise NotImplementedError

    def console(self, platform: Platform) -> str:
        """The end of the machine's console log, or nothing where the cloud gives none."""
        return ""


def _not_ours(platform: Platform) -> UsageError:
    return UsageError(f"The machine of {platform.name} was not made by the toolkit.", "Change it where it was made.")
