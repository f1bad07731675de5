"""The marks by which a platform's resources in an OpenStack are known, written and read.

======================  ================================================================================
network resources       description `provision NAME UID`; tags with the cloud's user, owner, digest, version, time
servers                 metadata: the same, and the record's wishes as JSON in pieces of 255 characters
key pairs               name `provision-NAME-UID`; they belong to the user, not to the project
======================  ================================================================================
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from provision.clouds.base import Found, Platform

HOST_KEY = "provision_host_key"
KEPT = "provision_kept"
"""Since when a data volume belongs to no platform; empty while it does."""
FIRST_HOST_KEY = "provision_first_host_key"
"""Digest of the host key of the first contact, of a server whose system was made anew."""
COLLECTIONS = (
    ("security group", "security_groups"),
    ("network", "networks"),
    ("subnet", "subnets"),
    ("router", "routers"),
    ("floating IP", "ips"),
)
_DESCRIPTION = re.compile(r"provision ([a-z][a-z0-9-]{0,29}) ([0-9a-f]{10})")
_NAME = re.compile(r"provision-([a-z][a-z0-9-]{0,29})-([0-9a-f]{10})")
_UID = "provision-uid="
_USER = "provision-user="
_OWNER = "provision-owner="
_WORKER = "provision_worker"
_WISHES = "provision_wishes_"
_PIECE = 255  # characters of a value of Nova's metadata
_MOST_TAG = 60  # characters of a tag in older versions of Neutron


def mark(platform: Platform) -> str:
    """The description of everything that belongs to a platform."""
    return f"provision {platform.name} {platform.uid}"


def resource_name(platform: Platform) -> str:
    """The name of everything that belongs to a platform, but for the server, which has the platform's own."""
    return f"provision-{platform.name}-{platform.uid}"


def tags(platform: Platform, user: str) -> list[str]:
    """The tags of a network resource, which people and other tools may search by."""
    record = platform.record
    found = [
        "provision",
        f"{_UID}{platform.uid}",
        f"provision-name={platform.name}",
        f"{_USER}{user}",
        f"{_OWNER}{record.owner}",
        f"provision-spec={platform.spec.digest()}",
        f"provision-toolkit={record.toolkit}",
        f"provision-created={record.created_at:%Y-%m-%dT%H:%MZ}",
    ]
    # a comma separates tags where they are searched for
    return [tag.replace(",", ";")[:_MOST_TAG] for tag in found]


def is_tagged(resource: Any, platform: Platform) -> bool:
    """Whether a network resource has its tags; a kill or a fault may have come between them and its creation."""
    return f"{_UID}{platform.uid}" in (resource.tags or ())


def metadata(platform: Platform, user: str) -> dict[str, str]:
    """The metadata of a server, from which a lost record can be made again."""
    record = platform.record
    portable = record.spec.portable()
    text = json.dumps({"spec": portable, "facts": record.facts, "values": record.values}, separators=(",", ":"))
    # those of a platform with workers stand with its own machine
    text = "" if platform.worker else text
    pieces = [text[first : first + _PIECE] for first in range(0, len(text), _PIECE)]
    facts = {
        "provision_uid": platform.uid,
        "provision_platform": platform.name,
        "provision_user": user,
        "provision_owner": record.owner,
        "provision_toolkit": record.toolkit,
        "provision_spec": record.spec.digest(),
        "provision_created": record.created_at.isoformat(),
        **({_WORKER: str(platform.worker)} if platform.worker else {}),
    }
    return {name: value[:_PIECE] for name, value in facts.items()} | {
        f"{_WISHES}{number:02}": piece for number, piece in enumerate(pieces)
    }


def image_metadata(platform: Platform) -> dict[str, str]:
    """The properties by which an image of the platform's server is known as its own, together with its name."""
    return {"provision_uid": platform.uid, "provision_platform": platform.name}


def volume_metadata(platform: Platform, user: str) -> dict[str, str]:
    """The metadata of a data volume."""
    record = platform.record
    facts = {
        "provision_uid": platform.uid,
        "provision_platform": platform.name,
        "provision_user": user,
        "provision_owner": record.owner,
        "provision_toolkit": record.toolkit,
        KEPT: "",
    }
    return {name: value[:_PIECE] for name, value in facts.items()}


def changed_metadata(platform: Platform, user: str, present: Mapping[str, str]) -> dict[str, str]:
    """The same for a server that has metadata: pieces that there are no more become empty."""
    new = metadata(platform, user)
    return {name: "" for name in present if name.startswith(_WISHES) and name not in new} | new


@dataclass
class _Marked:
    owner: str = ""
    user: str = ""
    newest: datetime | None = None
    machine: bool = False
    resources: int = 0
    wishes: dict[str, Any] = field(default_factory=dict)
    host_key: str = ""
    worker_keys: dict[int, str] = field(default_factory=dict)

    def seen(self, at: Any) -> None:
        self.resources += 1
        when = time_of(at)
        if when and (self.newest is None or when > self.newest):
            self.newest = when


def found_platforms(conn: Any) -> list[Found]:
    """Every platform whose marks are in the project, by name; with no other platform's resources among them."""
    platforms: dict[tuple[str, str], _Marked] = {}

    def of(name: str, uid: str) -> _Marked:
        return platforms.setdefault((name, uid), _Marked())

    for resource in _of_network(conn):
        if matched := _DESCRIPTION.fullmatch(resource.description or ""):
            marked = of(matched[1], matched[2])
            marked.seen(getattr(resource, "created_at", None))
            known = [str(tag) for tag in resource.tags or []]
            marked.user = marked.user or _value(known, _USER)
            marked.owner = marked.owner or _value(known, _OWNER)
    for server in conn.compute.servers(details=True):
        facts = server.metadata or {}
        number = str(facts.get(_WORKER, ""))
        name = server.name.removesuffix(f"-w{number}") if number else server.name
        if not (matched := _NAME.fullmatch(f"provision-{name}-{facts.get('provision_uid', '')}")):
            continue
        marked = of(matched[1], matched[2])
        marked.seen(server.created_at)
        marked.machine = True
        marked.user = str(facts.get("provision_user", "")) or marked.user
        marked.owner = str(facts.get("provision_owner", "")) or marked.owner
        if not number:
            marked.wishes, marked.host_key = _wishes(facts), str(facts.get(HOST_KEY, ""))
        elif number.isdigit() and facts.get(HOST_KEY):
            marked.worker_keys[int(number)] = str(facts[HOST_KEY])
    for pair in conn.compute.keypairs():
        if matched := _NAME.fullmatch(pair.name):
            marked = of(matched[1], matched[2])
            marked.seen(conn.compute.get_keypair(pair.name).created_at)
            marked.user = marked.user or conn.current_user_id
    return [
        Found(
            name,
            uid,
            owner=marked.owner,
            mine=marked.user[: _MOST_TAG - len(_USER)] == conn.current_user_id[: _MOST_TAG - len(_USER)],
            newest=marked.newest,
            machine=marked.machine,
            resources=marked.resources,
            wishes=marked.wishes,
            host_key=marked.host_key,
            worker_keys=marked.worker_keys,
        )
        for (name, uid), marked in sorted(platforms.items())
    ]


def _of_network(conn: Any) -> Iterator[Any]:
    for _, collection in COLLECTIONS:
        yield from getattr(conn.network, collection)(project_id=conn.current_project_id)


def _value(known: list[str], prefix: str) -> str:
    return next((tag.removeprefix(prefix) for tag in known if tag.startswith(prefix)), "")


def _wishes(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What `metadata` wrote; nothing where it is damaged, as anybody in the project can change it."""
    text = "".join(str(facts[name]) for name in sorted(facts) if name.startswith(_WISHES))
    try:
        found = json.loads(text or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def time_of(text: Any) -> datetime | None:
    """A time as OpenStack writes it, UTC where it does not say; None where there is none."""
    try:
        when = datetime.fromisoformat(str(text))
    except ValueError:
        return None
    return when if when.tzinfo else when.replace(tzinfo=UTC)
