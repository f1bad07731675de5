"""What exists: the record of a platform and the ledger of every resource made for it, kept on the user's computer.

No step of a plan writes to a cloud before its ledger entry says `intended`; files are replaced atomically, so that a
kill at any moment leaves a record that the next command understands.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from provision.errors import ProvisionError, UsageError
from provision.spec import PlatformSpec

DATA_VOLUME, VOLUME_ATTACHMENT = "data volume", "volume attachment"
"""Kinds of resources. The first outlives the others of a platform, unless its removal was asked for."""
CHANGES = ("resize", "rebuild", "scale")
"""Steps of the ledger that change a machine which is there."""


def now() -> datetime:
    """The present time, in UTC, to the second."""
    return datetime.now(UTC).replace(microsecond=0)


class Resource(BaseModel):
    """One thing of a cloud. `ours` is false for what was there before and must never be removed."""

    model_config = ConfigDict(frozen=True)

    kind: str
    id: str
    name: str = ""
    ours: bool = True
    details: dict[str, str] = Field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.kind} {self.name or self.id}"


class Entry(BaseModel):
    """A line of the ledger: what a step of the plan did, or was about to do."""

    step: str
    state: Literal["intended", "done", "removed"]
    resource: Resource | None = None
    at: datetime = Field(default_factory=now)
    seconds: float | None = None


class Access(BaseModel):
    """How the machine is reached by SSH.

    `jump` is the jump host (`USER@HOST[:PORT]`); `identities` are the user's own key files, for a machine that was not
    made by the toolkit (empty: the platform's own key).
    """

    model_config = ConfigDict(frozen=True)

    host: str
    user: str
    port: int = 22
    jump: str | None = None
    identities: tuple[str, ...] = ()


class Record(BaseModel):
    """Everything known of one platform, as it stands in its `record.json`. Holds no secret.

    `facts` and `values` are what the cloud offered when the platform was planned (see `clouds.base.Offer`).
    """

    version: Literal[1] = 1
    name: str
    uid: str
    owner: str
    created_at: datetime = Field(default_factory=now)
    expires_at: datetime | None = None
    toolkit: str
    spec: PlatformSpec
    state: Literal["creating", "bare", "ready", "deleting"] = "creating"
    facts: dict[str, str] = Field(default_factory=dict)
    values: dict[str, str] = Field(default_factory=dict)
    access: Access | None = None
    ledger: list[Entry] = Field(default_factory=list)

    def entry(self, step: str) -> Entry | None:
        """The ledger's entry of that step, or None."""
        return next((entry for entry in self.ledger if entry.step == step), None)

    def resource(self, kind: str) -> Resource | None:
        """The resource of that kind that a step made or found, or None."""
        found = (e.resource for e in self.ledger if e.state == "done" and e.resource and e.resource.kind == kind)
        return next(found, None)

    @property
    def unfinished(self) -> str:
        """The change of the machine (of CHANGES) that was begun and has not come to its end, or nothing."""
        return next((entry.step for entry in self.ledger if entry.step in CHANGES and entry.state == "intended"), "")

    def note(self, step: str, state: Literal["intended", "done", "removed"], resource: Resource | None = None) -> None:
        """Write the step's state (and its resource) into the ledger, in place of what stood there."""
        entry = self.entry(step)
        if entry is None:
            self.ledger.append(Entry(step=step, state=state, resource=resource))
            return
        entry.state, entry.at = state, now()
        entry.resource = resource or entry.resource


class Folder:
    """The folder of one platform: record, keys, ssh files and logs."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.name

    @property
    def record_file(self) -> Path:
        """Where the record stands."""
        return self.path / "record.json"

    @property
    def key(self) -> Path:
        """The private key that opens the platform (mode 600); the public one stands beside it."""
        return self.path / "id_ed25519"

    @property
    def first_host_key(self) -> Path:
        """The host key of the first contact, private half (mode 600), until the machine has made its own."""
        return self.path / "first_host_key"

    @property
    def known_hosts(self) -> Path:
        """The host keys that are accepted for this platform, and no others."""
        return self.path / "known_hosts"

    @property
    def ssh_config(self) -> Path:
        """The ssh configuration of this platform alone."""
        return self.path / "ssh_config"

    @property
    def workers(self) -> Path:
        """Folder of the folders of the platform's workers."""
        return self.path / "workers"

    def worker(self, number: int) -> WorkerFolder:
        """The folder of a worker (it need not exist)."""
        return WorkerFolder(self, number)

    @property
    def logs(self) -> Path:
        """Folder of the full logs."""
        return self.path / "logs"

    @property
    def machine(self) -> Path:
        """Folder for a machine of this computer (root file system, state)."""
        return self.path / "machine"

    def load(self) -> Record:
        """Read the record; raises ProvisionError when it is damaged or of a later toolkit."""
        try:
            return Record.model_validate_json(self.record_file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UsageError(f"There is no platform {self.name!r}.", "`provision list` shows what there is.") from None
        except ValidationError as error:
            raise ProvisionError(
                f"The record {self.record_file} cannot be read: {error.errors()[0]['msg']}.",
                "Was it written by a later version of the toolkit?",
            ) from None

    def save(self, record: Record) -> None:
        """Replace the record atomically and durably."""
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_private(self.record_file, record.model_dump_json(indent=1).encode())

    def remove(self) -> None:
        """Forget the platform: keys, record and logs."""
        shutil.rmtree(self.path)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Exclude other commands on this platform, on this computer; waits, and says for which one."""
        locks = self.path.parent.parent / "locks"
        locks.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (locks / self.name).open("a+", encoding="utf-8") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                handle.seek(0)
                holder = handle.read(200) or "it has just begun"
                print(f"Waiting for another command on {self.name} ({holder}) ...", file=sys.stderr, flush=True)
                fcntl.flock(handle, fcntl.LOCK_EX)
            handle.truncate(0)
            handle.write(f"{' '.join([Path(sys.argv[0]).name, *sys.argv[1:2]])}, process {os.getpid()}")
            handle.flush()
            yield


class WorkerFolder(Folder):
    """The folder of a worker: what is its own of ssh files and, on this computer, its machine.

    Args:
        front: the folder of the platform, whose key opens the worker too.
        number: the worker's, from 1.
    """

    def __init__(self, front: Folder, number: int) -> None:
        super().__init__(front.workers / worker_name(front.name, number))
        self.front = front

    @property
    def key(self) -> Path:
        """The platform's."""
        return self.front.key


def worker_name(platform: str, number: int) -> str:
    """The name of a worker's machine."""
    return f"{platform}-w{number}"


class Home:
    """The toolkit's folder on the user's computer: `$PROVISION_HOME`, else `$XDG_DATA_HOME/provision`."""

    def __init__(self, path: Path | None = None) -> None:
        data = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share")
        self.path = (path or Path(os.environ.get("PROVISION_HOME") or data / "provision")).absolute()

    @property
    def cache(self) -> Path:
        """What can be made again: root images of local machines, built wheels; `$PROVISION_CACHE` may name another."""
        return Path(os.environ.get("PROVISION_CACHE") or self.path / "cache")

    @property
    def prices(self) -> Path:
        """The file that says what machines cost."""
        return self.path / "prices.toml"

    def folder(self, name: str) -> Folder:
        """The folder of the platform of that name (it need not exist)."""
        return Folder(self.path / "platforms" / name)

    def folders(self) -> list[Folder]:
        """The folders of all recorded platforms, by name."""
        return [Folder(path.parent) for path in sorted((self.path / "platforms").glob("*/record.json"))]


def new_uid() -> str:
    """A short identifier that marks every resource of one platform in its cloud."""
    return secrets.token_hex(5)


def write_private(path: Path, data: bytes) -> None:
    """Replace `path` by `data` with mode 600, atomically and durably."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as handle:
        handle.write(data)
        handle.flush()
        os.fsync(handle.fileno())
    temporary.replace(path)
