"""What the platforms of this computer's user do now, and what they cost: the rows of `provision list`.

A file `prices.toml` in the toolkit's folder says what an hour of a machine costs, in money or in hours of a quota:

    unit = "EUR"
    [flavors]
    "m1.large" = 0.12
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from provision.clouds import open_cloud
from provision.clouds.base import Platform, Usage
from provision.errors import ProvisionError, UsageError
from provision.record import Folder, Home, Record
from provision.remote import Remote

ACTIVITY = "/run/platform/activity.json"
"""What the role `base` has the machine write of itself, and when it was idle since."""

_AT_ONCE = 8
_FORMER = "former flavors"
"""The fact that names them, oldest first: among a cloud's marks, so that an adopted platform has it too."""


def flavor_of(facts: Mapping[str, str]) -> str:
    """The flavor's name, of the facts of a record or an offer; nothing where the cloud has none."""
    return facts.get("flavor", "").partition(" (")[0]


def former_flavors(facts: Mapping[str, str]) -> list[str]:
    """The flavors that the machine had before the present one."""
    return [name for name in facts.get(_FORMER, "").split(", ") if name]


def with_former(facts: Mapping[str, str], chosen: Mapping[str, str]) -> dict[str, str]:
    """The facts after a change of size to what was `chosen`; the flavor until then is remembered, once."""
    before, after = flavor_of(facts), flavor_of(chosen)
    remembered = {_FORMER: ", ".join([*former_flavors(facts), before])} if before and after not in ("", before) else {}
    return {**facts, **chosen, **remembered}


class Prices(BaseModel):
    """What an hour of a machine costs, by flavor, in `unit`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    unit: str = ""
    flavors: dict[str, float] = Field(default_factory=dict)

    def cost(self, record: Record, usage: Usage, workers: Sequence[Usage] = ()) -> str:
        """The estimate for a platform and its workers, each hour at the price of the flavor that it had then.

        Nothing where a price or the hours are not known, or the machine had sizes that the record does not know.
        """
        flavors = [*former_flavors(record.facts), flavor_of(record.facts)]
        if usage.hours is None or len(flavors) != len(usage.former) + 1 or not set(flavors) <= set(self.flavors):
            return ""
        hours = (*usage.former, usage.hours - sum(usage.former))
        total = sum(time * self.flavors[flavor] for time, flavor in zip(hours, flavors, strict=True))
        worker = record.facts.get("worker flavor", "").partition(" (")[0]
        if workers:
            if worker not in self.flavors or any(one.hours is None for one in workers):
                return ""
            total += self.flavors[worker] * sum(one.hours or 0.0 for one in workers)
        return f"{total:.2f} {self.unit}".strip()


def read_prices(path: Path) -> Prices:
    """Read the file; no prices where it is missing. Raises UsageError for a file that is damaged."""
    try:
        return Prices.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return Prices()
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is no TOML: {error}.") from None
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}.") from None


@dataclass(frozen=True)
class Status:
    """One platform now.

    Attributes:
        record: its record.
        machine: the machine's state, `unknown` where the cloud does not tell.
        usage: since when it runs and for how long it has run, as far as its cloud tells.
        busy: what uses it, nothing when it is idle or does not tell.
        idle_since: since when nobody uses it.
        workers: state and usage of each worker.
    """

    record: Record
    machine: str
    usage: Usage = field(default_factory=Usage)
    busy: str = ""
    idle_since: datetime | None = None
    workers: tuple[tuple[str, Usage], ...] = ()


def statuses(home: Home, log: Callable[[str], None]) -> list[Status]:
    """Ask clouds and machines, several at once; what does not answer is `unknown`, and why goes to the log."""

    def status(folder: Folder) -> Status | None:
        try:
            return status_of(folder, home, log)
        except UsageError:  # deleted in the meantime, by another command
            return None

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return [found for found in pool.map(status, home.folders()) if found]


def status_of(folder: Folder, home: Home, log: Callable[[str], None]) -> Status:
    """Ask the cloud and the machine of one platform; why one does not answer goes to the log."""
    record = folder.load()
    try:
        cloud = open_cloud(record.spec.cloud, home)
        platform = Platform(record, folder)
        machine = cloud.state(platform)
        usage = cloud.usage(platform)
        workers = tuple((str(cloud.state(worker)), cloud.usage(worker)) for worker in platform.workers)
    except ProvisionError as error:
        log(str(error))
        return Status(record, "unknown")
    if machine != "running" or record.state != "ready" or not folder.ssh_config.exists():
        return Status(record, machine, usage, workers=workers)
    try:
        with Remote(folder) as remote:
            told = json.loads(remote.run(["cat", ACTIVITY], check=False) or "{}")
    except (ProvisionError, ValueError) as error:
        log(f"{record.name}: {error}")
        told = {}
    return Status(record, machine, usage, *_activity(told), workers)


def _activity(told: object) -> tuple[str, datetime | None]:
    """What uses the machine, and since when nobody does; whoever is root there may have written it."""
    if not isinstance(told, Mapping):
        return "", None
    since = told.get("idle_since")
    idle = datetime.fromtimestamp(since, UTC) if isinstance(since, int) and 0 < since < 2**32 else None
    return str(told.get("busy") or "")[:80], idle
