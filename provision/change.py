"""What changes of a machine that is there have in common: see `resize` and `rebuild`.

The ledger's entry of a change is `intended` from before its first step until the record is true again, and has all
that was chosen: so the same command completes what a kill has interrupted.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from provision.clouds.base import Cloud, Offer, Platform, Step
from provision.errors import UsageError
from provision.plan import ensure_unchanging
from provision.record import Record, Resource
from provision.spec import PlatformSpec


@dataclass
class Change:
    """A change; nothing has been written when it is made.

    Attributes:
        cloud: where the machine is.
        platform: the platform as it is.
        cache: where wheels are.
        spec: the wishes afterwards.
        offer: what the cloud has chosen.
        roles: whether the roles are applied afterwards.
        resumed: whether it was begun already.
    """

    cloud: Cloud
    platform: Platform
    cache: Path
    spec: PlatformSpec
    offer: Offer
    roles: bool
    resumed: bool

    @property
    def wanted(self) -> Platform:
        """The platform as it will be."""
        record = self.platform.record
        after = {
            "spec": self.spec,
            "facts": record.facts | self.offer.facts,
            "values": record.values | self.offer.values,
        }
        return replace(self.platform, record=record.model_copy(update=after))

    def keep(self) -> None:
        """The record is true with the new wishes from now on, and the cloud's marks are."""
        record, wanted = self.platform.record, self.wanted.record
        record.spec, record.facts, record.values = wanted.spec, wanted.facts, wanted.values
        self.platform.folder.save(record)
        self.cloud.publish(self.platform)

    def begin(self, step: str, kind: str, wishes: str, **more: str) -> None:
        """Write into the ledger what was chosen, before anything is changed; `kind` is what becomes another one."""
        if self.resumed:
            return
        details = more | {
            "wishes": wishes,
            "facts": json.dumps(self.offer.facts),
            "values": json.dumps(self.offer.values),
            "roles": "yes" if self.roles else "no",
        }
        chosen = next(iter(self.offer.facts.values()), "")
        record = self.platform.record
        record.note(step, "intended", Resource(kind=kind, id=chosen, ours=False, details=details))
        self.platform.folder.save(record)

    def end(self, step: str) -> None:
        """Write into the ledger that it is done."""
        self.platform.record.note(step, "done")
        self.platform.folder.save(self.platform.record)


def begun(record: Record, step: str) -> dict[str, str]:
    """The details of the change of that kind that is unfinished; empty when there is none."""
    entry = record.entry(step)
    return dict(entry.resource.details) if entry and entry.resource and record.unfinished == step else {}


def chosen(details: dict[str, str]) -> tuple[Offer, bool]:
    """What was chosen for a change that was begun: the cloud's offer, and whether roles are applied."""
    return Offer(facts=json.loads(details["facts"]), values=json.loads(details["values"])), details["roles"] == "yes"


def ensure_complete(record: Record, change: str) -> None:
    """Raise UsageError when the platform's creation or another change than this one is unfinished."""
    ensure_unchanging(record, change)
    if record.state not in ("ready", "bare") and record.unfinished != change:
        raise UsageError(
            f"The platform {record.name} is not ready ({record.state}).",
            f"`provision create {record.name}` with the same options makes it so.",
        )


def always(title: str, seconds: int, act: Callable[[], None]) -> Step:
    """A step that looks itself what of it is done."""

    def make() -> Resource:
        act()
        return Resource(kind="change", id=title, ours=False)

    return Step(title, title, seconds, lambda: None, make)
