"""What all commands share: the home folder, the console, and the open platform."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from provision.console import Console
from provision.errors import UsageError

if TYPE_CHECKING:
    from provision.clouds.base import Cloud, Platform
    from provision.record import Folder, Home, Record
    from provision.remote import Remote


@cache
def home() -> Home:
    """The toolkit's folder on this computer."""
    from provision.record import Home

    return Home()


@cache
def console() -> Console:
    """The one console of the command."""
    return Console(home().path / "logs")


@dataclass(frozen=True)
class Opened:
    """A recorded platform and its cloud."""

    record: Record
    folder: Folder
    cloud: Cloud

    @property
    def platform(self) -> Platform:
        """The platform as its cloud knows it."""
        from provision.clouds.base import Platform

        return Platform(self.record, self.folder)


def open_platform(name: str) -> Opened:
    """Open the platform of that name; raises UsageError with near misses when there is none."""
    import difflib

    from provision.clouds import open_cloud

    folder = home().folder(name)
    if not folder.record_file.exists():
        names = [other.name for other in home().folders()]
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"Did you mean {near[0]!r}?" if near else "`provision list` shows what there is."
        raise UsageError(f"There is no platform {name!r}.", hint)
    record = folder.load()
    return Opened(record, folder, open_cloud(record.spec.cloud, home()))


@contextmanager
def alone(name: str) -> Iterator[Opened]:
    """The open platform of that name, with no other command on it at work, on this computer or on another."""
    with home().folder(name).lock():
        opened = open_platform(name)
        with opened.cloud.exclusively(opened.platform, console().say):
            yield opened


@contextmanager
def connected(name: str) -> Iterator[Remote]:
    """A connection to the ready platform of that name."""
    from provision.remote import Remote

    opened = open_platform(name)
    if opened.record.state != "ready":
        raise UsageError(
            f"The platform {name} is not ready ({opened.record.state}).",
            f"`provision create {name}` with the same options, without --bare, makes it so.",
        )
    with Remote(opened.folder) as remote:
        yield remote
