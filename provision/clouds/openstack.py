"""OpenStack: any cloud of the user's clouds.yaml.

Every resource bears the platform's mark from the moment of its creation: network resources in their description,
servers in their metadata, key pairs in their name; tags are added where the service has them. What bears the mark is
ours, and nothing else is ever changed or removed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

from provision.clouds import _explain
from provision.clouds._baked import Images
from provision.clouds._belongings import Belongings
from provision.clouds._changing import Changing
from provision.clouds._choosing import Choosing
from provision.clouds._cinder import Volumes
from provision.clouds._credentials import agent_account, connect, explained, parted, read_entry
from provision.clouds._glance import CloudImages
from provision.clouds._lease import Lease
from provision.clouds._making import FAMILIES, PRIVATE_RANGE, Making, rules, user_data
from provision.clouds._marks import HOST_KEY, found_platforms
from provision.clouds._retry import API_SECONDS, PAUSES, insist
from provision.clouds._usage import usage
from provision.clouds.base import Cloud, DataVolume, Found, MachineState, Offer, Platform, Step, Usage
from provision.errors import UsageError
from provision.record import DATA_VOLUME, Access, Resource, now
from provision.spec import PlatformSpec

_STATES: dict[str, MachineState] = {
    "ACTIVE": "running",
    "REBOOT": "running",
    "SHUTOFF": "stopped",
    "SHELVED": "stopped",
    "SHELVED_OFFLOADED": "released",
    "SUSPENDED": "stopped",
    "PAUSED": "stopped",
    "BUILD": "starting",
    "REBUILD": "starting",
    "RESIZE": "starting",
    "REVERT_RESIZE": "starting",
    "VERIFY_RESIZE": "running",
    "ERROR": "error",
}


P = ParamSpec("P")
T = TypeVar("T")


def _insistent(
    method: Callable[Concatenate[OpenStackCloud, P], T],
) -> Callable[Concatenate[OpenStackCloud, P], T]:
    """A method that may be called again as it is after a passing failure; what fails for good is explained."""

    @wraps(method)
    def run(self: OpenStackCloud, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self.insist(lambda: method(self, *args, **kwargs))

    return run


class OpenStackCloud(Cloud):
    """One entry of clouds.yaml.

    Args:
        name: that entry.
        pauses: seconds before each further attempt where the cloud fails passingly.
    """

    kind = "openstack"
    host_key_in_user_data = True

    def __init__(self, name: str, pauses: tuple[float, ...] = PAUSES) -> None:
        self.name = name
        self._pauses = pauses
        self._conn: Any = None
        self._lease: Lease | None = None
        self._choosing = Choosing(name, lambda: self.conn)
        self._belongings = Belongings(name, lambda: self.conn, self.insist)
        self._volumes = Volumes(name, self._belongings, lambda: self.conn, self.insist)
        self._making = Making(
            self._belongings, self._choosing, self._volumes, lambda: self.conn, self.insist, self._renew_lease
        )
        self._changing = Changing(name, self._belongings, lambda: self.conn, self.insist, self._renew_lease)

    def insist(self, call: Callable[[], T], again: Callable[[], T] | None = None) -> T:
        """Call, and after a passing failure call `again`, by default the same; see `_retry.insist`.

        A cloud that was never reached is tried only once more: more often than not its address is wrong.
        """
        with explained(self.name):
            return insist(self.name, call, again or call, self._pauses if self._conn else self._pauses[:1])

    @property
    def conn(self) -> Any:
        """The SDK's connection, made and authorised at first use."""
        if self._conn is None:
            self._conn = connect(self.name, API_SECONDS)
        return self._conn

    # ------------------------------------------------------------------ checks

    def ensure_known(self) -> None:
        """See the contract."""
        read_entry(self.name)

    @_insistent
    def check(self, spec: PlatformSpec, *, baked: str = "") -> Offer:
        """See the contract."""
        facts, values, quotas = self._volumes.offer(spec)
        offer = self._choosing.offer(spec, baked)
        return replace(offer, facts=offer.facts | facts, values=offer.values | values, quotas=(*offer.quotas, *quotas))

    def images(self) -> Images:
        """See the contract."""
        return CloudImages(self.name, lambda: self.conn, self.insist, self._choosing.plain_image)

    # ------------------------------------------------------------------ making

    def steps(self, platform: Platform, offer: Offer) -> list[Step]:
        """See the contract."""
        return self._making.steps(platform, offer)

    def explain(self, platform: Platform, offer: Offer, steps: Sequence[Step]) -> str:
        """See the contract."""
        name, region = parted(self.name)
        with explained(self.name):
            user = str(self.conn.current_user_id)
        subject = _explain.Subject(
            platform=platform,
            values=offer.values,
            words=offer.facts,
            user=user,
            cloud=name,
            region=region,
            account=agent_account(self.conn.config.config),
            rules=rules(platform.spec),
            inner=FAMILIES if platform.workers else (),
            subnet=PRIVATE_RANGE,
            user_data=user_data,
        )
        return _explain.script(subject, steps)

    # ------------------------------------------------------------------ looking

    @_insistent
    def access(self, platform: Platform) -> Access:
        """See the contract."""
        return self._belongings.access(platform)

    @_insistent
    def discover(self, platform: Platform) -> list[Resource]:
        """See the contract."""
        return [*self._volumes.discover(platform), *self._belongings.discover(platform)]

    @_insistent
    def volumes(self) -> list[DataVolume]:
        """See the contract."""
        return self._volumes.all()

    @_insistent
    def keep_volume(self, platform: Platform, resource: Resource) -> None:
        """See the contract."""
        del platform
        self._volumes.keep(resource.id)

    @_insistent
    def remove_volume(self, volume: DataVolume) -> None:
        """See the contract."""
        self._volumes.remove(volume.id)

    @_insistent
    def platforms(self) -> list[Found]:
        """See the contract."""
        return found_platforms(self.conn)

    @_insistent
    def publish_host_key(self, platform: Platform, public_key: str) -> None:
        """See the contract."""
        server = self._belongings.server(platform)
        if server is not None:
            self.conn.compute.set_server_metadata(server, **{HOST_KEY: public_key})

    @_insistent
    def state(self, platform: Platform) -> MachineState:
        """See the contract."""
        server = self._belongings.server(platform)
        return _STATES.get(server.status, "error") if server else "missing"

    @contextmanager
    def exclusively(self, platform: Platform, say: Callable[[str], None]) -> Iterator[None]:
        """See the contract."""

        def find() -> Any:
            return self._belongings.ours("security_groups", platform)

        def rename(group: Any, name: str) -> None:
            self.conn.network.update_security_group(group, if_revision=group.revision_number, name=name)

        self._lease = Lease(platform, find, rename, self.insist)
        with explained(self.name), self._lease.held(say):
            yield

    def _renew_lease(self) -> None:
        if self._lease is not None:
            self._lease.renew()

    @_insistent
    def usage(self, platform: Platform) -> Usage:
        """See the contract."""
        server = self._belongings.server(platform)
        return usage(self.conn, server, now()) if server else Usage()

    def console(self, platform: Platform) -> str:
        """See the contract."""
        from keystoneauth1 import exceptions as keystone
        from openstack import exceptions as sdk

        try:
            server = self._belongings.server(platform)
            log = self.conn.compute.get_server_console_output(server, length=40) if server else None
        except (sdk.SDKException, keystone.ClientException):
            return ""
        return str(log.get("output") or "") if log else ""

    # ------------------------------------------------------------------ changing

    @_insistent
    def start(self, platform: Platform) -> None:
        """See the contract."""
        self._changing.start(platform)

    @_insistent
    def stop(self, platform: Platform) -> None:
        """See the contract."""
        self._changing.stop(platform)

    @_insistent
    def release(self, platform: Platform) -> None:
        """See the contract."""
        self._changing.release(platform)

    @_insistent
    def check_size(self, platform: Platform, spec: PlatformSpec) -> Offer:
        """See the contract."""
        return self._choosing.size(spec, self._changed_server(platform))

    @_insistent
    def check_workers(self, platform: Platform, spec: PlatformSpec) -> Offer:
        """See the contract."""
        return self._choosing.workers(platform, spec)

    @_insistent
    def resize(self, wanted: Platform) -> None:
        """See the contract."""
        self._changing.resize(wanted)

    @_insistent
    def resizing(self, platform: Platform) -> bool:
        """See the contract."""
        return self._changing.resizing(platform)

    @_insistent
    def keep_size(self, platform: Platform) -> None:
        """See the contract."""
        self._changing.keep_size(platform)

    @_insistent
    def restore_size(self, platform: Platform) -> None:
        """See the contract."""
        self._changing.restore_size(platform)

    @_insistent
    def check_image(self, platform: Platform, spec: PlatformSpec, *, baked: str = "") -> Offer:
        """See the contract."""
        return self._choosing.system(spec, self._changed_server(platform), baked)

    @_insistent
    def rebuild(self, platform: Platform) -> None:
        """See the contract."""
        self._changing.rebuild(platform)

    @_insistent
    def publish(self, platform: Platform) -> None:
        """See the contract."""
        self._changing.publish(platform)

    def _changed_server(self, platform: Platform) -> Any:
        """The server that is to be changed; raises UsageError while it is shelved, as it is on no host then."""
        server = self._changing.settled_server(platform)
        if server.status.startswith("SHELVED"):
            raise UsageError(
                f"The machine of {platform.name} is released.", f"Start it first: `provision start {platform.name}`."
            )
        return server

    @_insistent
    def remove(self, platform: Platform, resource: Resource) -> None:
        """See the contract."""
        del platform
        if resource.kind == DATA_VOLUME:
            self._volumes.remove(resource.id)
        else:
            self._belongings.remove(resource)
