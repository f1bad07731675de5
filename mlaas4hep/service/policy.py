"""The policy: who may do what, and how much of the platform they may use.

A TOML file, read again when it has changed:

    [everyone]                       # whoever has a valid token
    quota = { jobs = 2, disk = "10 GiB" }

    [groups."/cms/higgs"]
    roles = ["submit", "serve"]
    quota = { jobs = 8, cpus = 16, memory = "64 GiB", gpus = 1, disk = "500 GiB" }

    [scopes."compute.create"]        # of a token
    roles = ["submit"]

    [clients.nightly-robot]          # tokens that a client has for itself
    roles = ["submit"]

    [users.u0123456789abcdef]        # one person, by key
    roles = ["administer"]

Roles add up. A user's quota is, figure by figure, the largest of what applies.
"""

from __future__ import annotations

import logging
import time
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ByteSize, ConfigDict, Field, ValidationError

from mlaas4hep.errors import UsageError
from mlaas4hep.service.identity import Role, User
from mlaas4hep.service.tokens import Claims

_LOOK_INTERVAL = 1.0  # seconds between two looks whether the file has changed
_LARGEST_FILE = 2**20  # bytes
_NO_LIMIT = 2**62
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Quota:
    """What one user may use at once.

    Attributes:
        jobs: queued and running jobs.
        cpus: processor cores of running jobs.
        memory: bytes of running jobs.
        gpus: whole GPUs of running jobs.
        disk: bytes of workspaces, jobs and models.
    """

    jobs: int = 4
    cpus: int = 4
    memory: int = 16 * 2**30
    gpus: int = 0
    disk: int = 20 * 2**30


_Count = Annotated[int, Field(strict=True, ge=0, le=_NO_LIMIT)]
_Bytes = Annotated[ByteSize, Field(ge=0, le=_NO_LIMIT)]
_Roles = frozenset[Role]


def _group(name: str) -> str:
    prefix, slash, path = name.partition("/")
    if not slash or not path or path != path.strip("/") or not (prefix == "" or prefix.endswith(":")):
        raise ValueError("must be written as /group or /group/subgroup")
    return name


class _Quotas(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    jobs: _Count | None = None
    cpus: _Count | None = None
    memory: _Bytes | None = None
    gpus: _Count | None = None
    disk: _Bytes | None = None


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    roles: _Roles = frozenset()
    quota: _Quotas = _Quotas()


class _ScopeEntry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    roles: _Roles


class Policy(BaseModel):
    """A policy as its file has it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    everyone: _Entry = _Entry()
    groups: dict[Annotated[str, AfterValidator(_group)], _Entry] = {}
    scopes: dict[str, _ScopeEntry] = {}
    clients: dict[str, _Entry] = {}
    users: dict[Annotated[str, Field(pattern="^u[0-9a-f]{16}$")], _Entry] = {}

    def user(self, claims: Claims) -> User:
        """The user that a verified token is of, with the roles that this policy gives."""
        who = User(claims.issuer, claims.subject, claims.name, claims.groups, client=claims.client)
        roles = {role for entry in self._entries(who) for role in entry.roles}
        roles |= {role for scope in claims.scopes if scope in self.scopes for role in self.scopes[scope].roles}
        return User(who.issuer, who.subject, who.name, who.groups, frozenset(roles), who.client)

    def quota(self, user: User) -> Quota:
        """What the user may use: of each figure the largest that applies."""
        quotas = [entry.quota for entry in self._entries(user)]
        names = [field.name for field in fields(Quota)]
        given = {name: [v for quota in quotas if (v := getattr(quota, name)) is not None] for name in names}
        return Quota(**{name: int(max(values)) for name, values in given.items() if values})

    def _entries(self, user: User) -> Iterator[_Entry]:
        yield self.everyone
        for table, names in ((self.groups, user.groups), (self.clients, (user.client,)), (self.users, (user.key,))):
            yield from (table[name] for name in names if name in table)


# of a personal platform: its machine is the limit
PERSONAL = Policy.model_validate(
    {"everyone": {"roles": list(Role), "quota": {field.name: _NO_LIMIT for field in fields(Quota)}}}
)


class PolicyFile:
    """The policy of a file, at any time."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        """Reads the file; raises UsageError."""
        self._path = path
        self._clock = clock
        self._looked = clock()
        self._seen = self._mark()
        self._policy = read_policy(path)

    def __call__(self) -> Policy:
        """The policy that holds now, the same object until it changes.

        A changed file that is wrong is told in the log, and the policy before it stays in force.
        """
        now = self._clock()
        if now - self._looked >= _LOOK_INTERVAL:
            self._looked = now
            self._look()
        return self._policy

    def _look(self) -> None:
        mark = self._mark()
        if mark == self._seen:
            return
        self._seen = mark
        try:
            self._policy = read_policy(self._path)
        except UsageError as error:
            _log.error("the policy stays as it was: %s", error)
        else:
            _log.info("the policy has been read again from %s", self._path)

    def _mark(self) -> tuple[int, ...]:
        try:
            facts = self._path.stat()
        except OSError:
            return ()
        return facts.st_mtime_ns, facts.st_size, facts.st_ino


def read_policy(path: Path) -> Policy:
    """Read and check a policy file; raises UsageError that names what is wrong in it."""
    try:
        with path.open("rb") as stream:
            text = stream.read(_LARGEST_FILE + 1)
        if len(text) > _LARGEST_FILE:
            raise UsageError(f"The policy {path} is larger than {_LARGEST_FILE} bytes.")
        return Policy.model_validate(tomllib.loads(text.decode()))
    except OSError as error:
        raise UsageError(f"The policy {path} cannot be read: {error.strerror}.") from error
    except ValidationError as error:
        raise UsageError(f"The policy {path} is wrong: {_sentence(error)}.") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"The policy {path} is no valid TOML: {error}.") from error


def _sentence(error: ValidationError) -> str:
    problem = error.errors()[0]
    place = ".".join(str(part) for part in problem["loc"] if part != "[key]")
    return f"{place}: {problem['msg'].removeprefix('Value error, ')}"
