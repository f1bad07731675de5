"""Platforms that a cloud has and this computer has no record of: records are made again, orphans are removed.

A record can be lost with its computer, and a platform can have been made on another one. What bears a platform's marks
tells enough to go on: the record is as one whose creation was interrupted, so that `provision create` completes it and
`provision delete` removes it.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from provision import __version__
from provision.clouds.base import Cloud, Found, Platform
from provision.errors import UsageError
from provision.plan import Progress, undo
from provision.record import Home, Record, now
from provision.remote import write_known_hosts
from provision.spec import PlatformSpec


@dataclass(frozen=True)
class Verdict:
    """What becomes of a platform that is not recorded here; `orphan` tells that it may be removed."""

    found: Found
    orphan: bool
    words: str


def unrecorded(cloud: Cloud, home: Home) -> list[Found]:
    """The platforms that bear marks in the cloud and have no record on this computer."""
    known = {folder.load().uid for folder in home.folders()}
    return [found for found in cloud.platforms() if found.uid not in known]


def judge(platforms: Iterable[Found], oldest: timedelta, with_machines: bool) -> list[Verdict]:
    """Say of each platform whether it is an orphan, and why not.

    Args:
        platforms: those that are not recorded here.
        oldest: what is younger may still be in the making on another computer.
        with_machines: whether platforms with a machine count as well.
    """
    return [_judged(found, oldest, with_machines) for found in platforms]


def _judged(found: Found, oldest: timedelta, with_machines: bool) -> Verdict:
    if not found.mine:
        return Verdict(found, False, "made by another user of the cloud")
    if found.newest is not None and now() - found.newest < oldest:
        return Verdict(found, False, f"younger than {oldest}: it may be in the making elsewhere")
    if found.machine and not with_machines:
        return Verdict(found, False, "has a machine: adopt it, or remove it with --with-machines")
    return Verdict(found, True, "orphan")


def adopt(found: Found, cloud_name: str, home: Home, identity: Path | None = None) -> Record:
    """Make the record of a platform again from what its cloud tells.

    Args:
        found: the platform.
        cloud_name: the cloud, as in a spec.
        home: where the record goes; under the platform's name, or with its uid where that name is taken.
        identity: the platform's private key (OpenSSH), kept or brought from the computer that made it; without one the
            platform can be shown, stopped, started and deleted, but not be logged in to.

    Raises UsageError for a file that is no private key.
    """
    folder = home.folder(found.name)
    if folder.record_file.exists():
        folder = home.folder(f"{found.name}-{found.uid}")
    record = Record(
        name=found.name,
        uid=found.uid,
        owner=found.owner or "unknown",
        toolkit=__version__,
        spec=_spec(found, cloud_name),
        facts=_words(found.wishes.get("facts")),
        values=_words(found.wishes.get("values")),
    )
    public = _public_half(identity) if identity else ""
    folder.save(record)
    if identity:
        shutil.copyfile(identity, folder.key)
        folder.key.chmod(0o600)
        folder.key.with_suffix(".pub").write_text(f"{public}\n", encoding="utf-8")
    if found.host_key:
        write_known_hosts(folder, found.uid, found.host_key)
    for number, key in found.worker_keys.items():
        worker = folder.worker(number)
        worker.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_known_hosts(worker, found.uid, key)
    return record


def remove(
    found: Found, cloud: Cloud, cloud_name: str, home: Home, progress: Progress, say: Callable[[str], None]
) -> None:
    """Remove an orphan; a kill in the middle leaves a record, with which `provision delete` goes on."""
    record = adopt(found, cloud_name, home)
    folder = next(folder for folder in home.folders() if folder.load().uid == record.uid)
    platform = Platform(record, folder)
    with folder.lock(), cloud.exclusively(platform, say):
        undo(cloud, platform, progress)


def _spec(found: Found, cloud_name: str) -> PlatformSpec:
    """The wishes as the metadata has them, or none but the name: anybody in the project could have changed them."""
    told = found.wishes.get("spec")
    wishes = dict(told) if isinstance(told, dict) else {}
    try:
        return PlatformSpec.model_validate({**wishes, "name": found.name, "cloud": cloud_name})
    except ValidationError:
        return PlatformSpec(name=found.name, cloud=cloud_name)


def _words(told: Any) -> dict[str, str]:
    return {str(name): str(value) for name, value in told.items()} if isinstance(told, dict) else {}


def _public_half(identity: Path) -> str:
    made = subprocess.run(
        ["ssh-keygen", "-y", "-P", "", "-f", str(identity)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode:
        raise UsageError(
            f"{identity} is no private key without a passphrase: {made.stderr.strip()}.",
            "Name the file id_ed25519 of the platform's folder on the computer that made it.",
        )
    return made.stdout.strip()
