"""Commands of several computers on one platform exclude each other: the platform's security group says who is at work.

Its name is `provision-NAME-UID`, and while somebody works `provision-NAME-UID in use by OWNER KEY until TIME`. Neutron
changes it only if nobody else has in the meantime (extension `revision-if-match`), so that of two commands one waits. A
command that dies leaves its lease, which ends by itself; the same computer takes it over at once, for there the lock
file tells that the command is gone.
"""

from __future__ import annotations

import getpass
import hashlib
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from provision.clouds._marks import resource_name, time_of
from provision.clouds.base import Platform
from provision.record import now

LEASE = timedelta(minutes=30)
_RENEW = timedelta(minutes=5)  # before this, a lease is not worth a call
_LOOK_SECONDS = 3.0
_NAME = re.compile(r"(?P<name>\S+) in use by (?P<owner>\S+) (?P<key>[0-9a-f]{8}) until (?P<until>\S+)")


@dataclass(frozen=True)
class _Held:
    owner: str
    key: str
    until: datetime

    @classmethod
    def read(cls, name: str) -> _Held | None:
        """What the group's name says, nothing where somebody else has given it another one."""
        found = _NAME.fullmatch(name)
        until = time_of(found["until"]) if found else None
        return cls(found["owner"], found["key"], until) if found and until else None


class Lease:
    """The lease of one command on one platform.

    Args:
        find: asks the cloud for the platform's security group (None before it is made and after it is removed).
        rename: gives the group another name; raises `openstack.exceptions.PreconditionFailedException` when it was
            changed since it was found.
        insist: calls what it is given, again after passing failures of the cloud.
    """

    def __init__(
        self,
        platform: Platform,
        find: Callable[[], Any],
        rename: Callable[[Any, str], object],
        insist: Callable[[Callable[[], _Held | None]], _Held | None],
    ) -> None:
        self._plain = resource_name(platform)
        self._platform = platform.name
        self._find = find
        self._rename = rename
        self._insist = insist
        computer = socket.gethostname()
        # of people by a name, and exactly by where the record lies
        self._owner = re.sub(r"\s", "_", f"{getpass.getuser()}@{computer}")[:64]
        self._key = hashlib.sha256(f"{computer} {_machine_id()} {platform.folder.path}".encode()).hexdigest()[:8]
        self._until: datetime | None = None

    @contextmanager
    def held(self, say: Callable[[str], None]) -> Iterator[None]:
        """Have it for as long as this lasts; says once for whom it waits."""
        told = ""
        while (held := self._insist(self._take)) is not None:
            words = (
                f"Waiting for {held.owner}, who works on {self._platform} (until {held.until:%H:%M} UTC at most) ..."
            )
            if words != told:
                say(words)
                told = words
            time.sleep(_LOOK_SECONDS)
        try:
            yield
        finally:
            self._give_back()

    def renew(self) -> None:
        """Hold it for longer, at a step of a long command; one that was lost to another computer is not taken back."""
        if self._until is not None and self._until - now() < LEASE - _RENEW:
            self._take()

    def _take(self) -> _Held | None:
        """Take or renew it; returns who has it otherwise."""
        from openstack import exceptions as sdk

        while (group := self._find()) is not None:
            held = _Held.read(group.name or "")
            if held and held.key != self._key and held.until > now():
                return held
            until = now() + LEASE
            # changed, or removed with the platform, since it was found
            with suppress(sdk.PreconditionFailedException, sdk.NotFoundException):
                self._rename(group, f"{self._plain} in use by {self._owner} {self._key} until {until.isoformat()}")
                self._until = until
                return None
        return None

    def _give_back(self) -> None:
        from keystoneauth1 import exceptions as keystone
        from openstack import exceptions as sdk

        if self._until is None:
            return
        self._until = None
        # whatever went wrong before must be told, and not that the lease now has to end by itself
        with suppress(sdk.SDKException, keystone.ClientException):
            group = self._find()
            held = _Held.read(group.name or "") if group else None
            if held and held.key == self._key:
                self._rename(group, self._plain)


def _machine_id() -> str:
    try:
        return Path("/etc/machine-id").read_text().strip()
    except OSError:
        return ""
