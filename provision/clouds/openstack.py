"""OpenStack: any cloud of the user's clouds.yaml.

Every resource bears the platform's mark from the moment of its creation: network resources in their description,
servers in their metadata, key pairs in their name; tags are added where the service has them. What bears the mark is
ours, and nothing else is ever changed or removed.
"""

from __future__ import annotations

import base64
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from provision.clouds import _explain
from provision.clouds._credentials import agent_account, connect, explained, parted, read_entry
from provision.clouds._lease import Lease
from provision.clouds._marks import (
    COLLECTIONS,
    HOST_KEY,
    found_platforms,
    is_tagged,
    mark,
    metadata,
    resource_name,
    tags,
)
from provision.clouds._retry import API_SECONDS, PAUSES, insist
from provision.clouds._usage import usage
from provision.clouds.base import LOGIN_USER, Choice, Cloud, Found, MachineState, Offer, Platform, Quota, Step, Usage
from provision.clouds.flavors import SYSTEMS, Flavor, Image, flavor_choices, image_choices
from provision.errors import ProvisionError
from provision.record import Access, Resource, now
from provision.remote import has_route
from provision.share import share
from provision.spec import PlatformSpec

BOOT_SECONDS = 600
REMOVE_SECONDS = 180
POLL_SECONDS = 0.5
PRIVATE_RANGE = "10.142.0.0/24"
"""Addresses of a network that is made for a platform; it stands alone behind its own router."""

_log = logging.getLogger("provision")

Limits = dict[str, tuple[int | None, int]]
"""Limit (None: unlimited) and present use of each quota; memory in MiB."""

_STATES: dict[str, MachineState] = {
    "ACTIVE": "running",
    "REBOOT": "running",
    "SHUTOFF": "stopped",
    "SHELVED": "stopped",
    "SHELVED_OFFLOADED": "stopped",
    "SUSPENDED": "stopped",
    "PAUSED": "stopped",
    "BUILD": "starting",
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
    def check(self, spec: PlatformSpec) -> Offer:
        """See the contract."""
        image, images = self._choose_image(spec)
        network = self._choose_network(spec)
        limits = self._limits()
        flavor, flavors = self._choose_flavor(spec, image, limits)
        quotas = _quotas(flavor, limits, network)
        if over := [quota for quota in quotas if quota.exceeded]:
            words = ", ".join(f"{q.name} {q.used} of {q.limit} used and {q.needed} more needed" for q in over)
            raise ProvisionError(
                f"The quota of the cloud {self.name!r} is exceeded: {words}.",
                "Ask for less, delete what is not needed, or ask the cloud's administrators for more.",
            )
        return Offer(
            facts={
                "flavor": f"{flavor.name} ({flavor})",
                "image": f"{image.name} ({image})",
                "network": network["words"],
            },
            choices=(*flavors, *images),
            quotas=tuple(quotas),
            values={"flavor": flavor.id, "image": image.id, **network},
        )

    def _choose_image(self, spec: PlatformSpec) -> tuple[Image, list[Choice]]:
        images = [_image(found) for found in self.conn.image.images(status="active")]
        if spec.image:
            found = [image for image in images if spec.image in (image.id, image.name)]
            if not found:
                raise ProvisionError(
                    f"The cloud {self.name!r} has no image {spec.image!r}.", f"It has: {_list(i.name for i in images)}."
                )
            if len(found) > 1:
                raise ProvisionError(
                    f"The cloud {self.name!r} has {len(found)} images named {spec.image!r}.",
                    f"Name one by its id: {_list(i.id for i in found)}.",
                )
            return found[0], [Choice("image", found[0].name, str(found[0]), "asked for", True)]
        image, choices = image_choices(images)
        if image is None:
            systems = ", ".join(" ".join(system) for system in SYSTEMS)
            raise ProvisionError(
                f"No image of the cloud {self.name!r} tells by os_distro and os_version that it is one of {systems}.",
                f"Name an image of such a system with --image: {_list(i.name for i in images)}.",
            )
        return image, choices

    def _choose_flavor(self, spec: PlatformSpec, image: Image, limits: Limits) -> tuple[Flavor, list[Choice]]:
        flavors = [_flavor(found) for found in self.conn.compute.flavors(details=True, get_extra_specs=True)]
        unaffordable = {f.id: words for f in flavors if (words := _over_quota(f, limits))}
        flavor, choices = flavor_choices(flavors, spec, image, unaffordable)
        if flavor is not None:
            return flavor, choices
        if any(choice.verdict in unaffordable.values() for choice in choices):
            words = _list(f"{c.name} ({c.verdict})" for c in choices if c.verdict in unaffordable.values())
            raise ProvisionError(
                f"The quota of the cloud {self.name!r} admits no flavor that serves: {words}.",
                "Ask for less, delete what is not needed, or ask the cloud's administrators for more.",
            )
        wish = f"{spec.cpus} CPU, {spec.memory:g} GB memory, {spec.disk:g} GB disk" + (
            f" and {spec.gpu}" if spec.gpu else ""
        )
        raise ProvisionError(
            f"The cloud {self.name!r} has no flavor with {wish}.",
            f"It has: {_list(f'{c.name} ({c.properties})' for c in choices)}.",
        )

    def _limits(self) -> Limits:
        """Limit (None: unlimited) and use of each quota."""
        compute = self.conn.compute.get_limits().absolute
        limits = {
            "servers": (compute.instances, compute.instances_used),
            "CPUs": (compute.total_cores, compute.total_cores_used),
            "memory": (compute.total_ram, compute.total_ram_used),
        }
        network = self.conn.network.get_quota(self.conn.current_project_id, details=True)
        for name, field in _NETWORK_QUOTAS.items():
            quota = getattr(network, field) or {}
            limits[name] = (quota.get("limit"), int(quota.get("used") or 0))
        return {
            name: (None if limit is None or limit < 0 else int(limit), int(used or 0))
            for name, (limit, used) in limits.items()
        }

    def _choose_network(self, spec: PlatformSpec) -> dict[str, str]:
        """How the machine is reached: `mode` is new, shared (floating IP or jump host) or direct."""
        neutron = self.conn.network
        if spec.network:
            network = neutron.find_network(spec.network, ignore_missing=True)
            if network is None:
                names = _list(n.name for n in neutron.networks())
                raise ProvisionError(f"The cloud {self.name!r} has no network {spec.network!r}.", f"It has: {names}.")
            if network.is_router_external:
                families = self._families(network)
                words = f"{network.name}, with an {'IPv6 address' if families == {6} else 'address'} of its own"
                return _network("direct", network.id, "", words, ipv6_only=families == {6})
            return self._behind(network, spec)
        own = neutron.networks(project_id=self.conn.current_project_id, is_router_external=False)
        for network in sorted(own, key=lambda n: str(n.created_at)):
            if (network.description or "").startswith("provision ") or 4 not in self._families(network):
                continue
            if external := self._way_out(network):
                return self._reached(network, external, spec)
        external = self._external_network()
        if spec.jump:
            return _network(
                "new", "", "", f"a new one behind {external.name}, reached through {spec.jump}", external.id
            )
        return _network("new", "", external.id, f"a new one, with a floating IP of {external.name}", external.id)

    def _behind(self, network: Any, spec: PlatformSpec) -> dict[str, str]:
        external = self._way_out(network)
        if not spec.jump and external is None:
            raise ProvisionError(
                f"The network {network.name} has no router to an external network: the machine could not be reached.",
                "Name another network, or a host that reaches it with --jump USER@HOST.",
            )
        return self._reached(network, external, spec)

    def _reached(self, network: Any, external: Any, spec: PlatformSpec) -> dict[str, str]:
        families = self._families(network)
        if not families:
            raise ProvisionError(
                f"The network {network.name} has no subnet: the machine would have no address.",
                "Make a subnet in it, or name another network.",
            )
        if spec.jump:
            words = f"{network.name}{', with an IPv6 address' if 6 in families else ''}, reached through {spec.jump}"
            return _network("shared", network.id, "", words, ipv6_only=families == {6})
        if families == {6}:
            words = f"{network.name}, with an IPv6 address of its own, routed through {external.name}"
            return _network("direct", network.id, "", words, ipv6_only=True)
        words = f"{network.name}, with a floating IP of {external.name}" + (" and IPv6" if 6 in families else "")
        return _network("shared", network.id, external.id, words)

    def _families(self, network: Any) -> set[int]:
        """The versions of IP that the network's subnets have; those of an external network are often not shown."""
        return {subnet.ip_version for subnet in self.conn.network.subnets(network_id=network.id)}

    def _way_out(self, network: Any) -> Any:
        """The external network that a router joins this network to, or None."""
        neutron = self.conn.network
        for port in neutron.ports(network_id=network.id):
            if port.device_owner in _ROUTER_PORTS:
                router = neutron.find_router(port.device_id, ignore_missing=True)
                gateway = (router.external_gateway_info or {}) if router else {}
                if gateway.get("network_id"):
                    return neutron.get_network(gateway["network_id"])
        return None

    def _external_network(self) -> Any:
        networks = sorted(self.conn.network.networks(is_router_external=True), key=lambda n: (not n.is_default, n.name))
        if not networks:
            raise ProvisionError(
                f"The cloud {self.name!r} has no external network, so no address for the machine can be had.",
                "Name a network that you reach with --network, or a jump host with --jump.",
            )
        return networks[0]

    # ------------------------------------------------------------------ making

    def steps(self, platform: Platform, offer: Offer) -> list[Step]:
        """See the contract."""
        values = offer.values

        def step(
            key: str,
            title: str,
            seconds: int,
            find: Callable[[Platform, dict[str, str]], Resource | None],
            make: Callable[[Platform, dict[str, str]], Resource],
        ) -> Step:
            def make_again() -> Resource:
                # what failed may have been done, or be done only now: the last look removes what is double
                if found := find(platform, values):
                    return found
                made = make(platform, values)
                return find(platform, values) or made

            def look() -> Resource | None:
                if self._lease is not None:
                    self._lease.renew()
                return find(platform, values)

            return Step(
                key,
                title,
                seconds,
                lambda: self.insist(look),
                lambda: self.insist(lambda: make(platform, values), make_again),
            )

        plan = [
            step("keypair", "key pair", 1, self._find_keypair, self._make_keypair),
            step("security-group", "security group that admits SSH", 2, self._find_group, self._make_group),
        ]
        if values["mode"] == "new":
            plan += [
                step("network", "private network", 1, self._find_network, self._make_network),
                step("subnet", f"subnet {PRIVATE_RANGE}", 1, self._find_subnet, self._make_subnet),
                step("router", "router", 2, self._find_router, self._make_router),
                step(
                    "router-interface",
                    "router's interface in the subnet",
                    2,
                    self._find_interface,
                    self._make_interface,
                ),
            ]
        plan.append(step("server", "server", 20, self._find_server, self._make_server))
        if values["external"]:
            plan.append(step("floating-ip", "floating IP", 3, self._find_address, self._make_address))
        return plan

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
            rules=_rules(platform.spec),
            subnet=PRIVATE_RANGE,
            user_data=_user_data(_explain.with_placeholders(platform)),
        )
        return _explain.script(subject, steps)

    def _find_keypair(self, platform: Platform, _: dict[str, str]) -> Resource | None:
        found = self.conn.compute.find_keypair(resource_name(platform), ignore_missing=True)
        return Resource(kind="key pair", id=found.name, name=found.name) if found else None

    def _make_keypair(self, platform: Platform, _: dict[str, str]) -> Resource:
        made = self.conn.compute.create_keypair(name=resource_name(platform), public_key=platform.public_key)
        return Resource(kind="key pair", id=made.name, name=made.name)

    def _find_group(self, platform: Platform, _: dict[str, str]) -> Resource | None:
        found = self._only("security_groups", platform)
        if found is None or _missing_rules(found, platform.spec) or not is_tagged(found, platform):
            return None
        return _resource("security group", found)

    def _make_group(self, platform: Platform, _: dict[str, str]) -> Resource:
        neutron = self.conn.network
        group = self._ours("security_groups", platform) or neutron.create_security_group(
            name=resource_name(platform), description=mark(platform)
        )
        for port, family in _missing_rules(group, platform.spec):
            neutron.create_security_group_rule(
                security_group_id=group.id,
                direction="ingress",
                ethertype=family,
                protocol="tcp",
                port_range_min=port,
                port_range_max=port,
                description=mark(platform),
            )
        return self._tagged("security group", group, platform)

    def _find_network(self, platform: Platform, _: dict[str, str]) -> Resource | None:
        return self._find_tagged("network", "networks", platform)

    def _make_network(self, platform: Platform, _: dict[str, str]) -> Resource:
        network = self._ours("networks", platform) or self.conn.network.create_network(
            name=resource_name(platform), description=mark(platform)
        )
        return self._tagged("network", network, platform)

    def _find_subnet(self, platform: Platform, _: dict[str, str]) -> Resource | None:
        return self._find_tagged("subnet", "subnets", platform)

    def _make_subnet(self, platform: Platform, _: dict[str, str]) -> Resource:
        subnet = self._ours("subnets", platform) or self.conn.network.create_subnet(
            name=resource_name(platform),
            description=mark(platform),
            network_id=self._needed("networks", platform).id,
            cidr=PRIVATE_RANGE,
            ip_version=4,
        )
        return self._tagged("subnet", subnet, platform)

    def _find_router(self, platform: Platform, _: dict[str, str]) -> Resource | None:
        return self._find_tagged("router", "routers", platform)

    def _make_router(self, platform: Platform, values: dict[str, str]) -> Resource:
        router = self._ours("routers", platform) or self.conn.network.create_router(
            name=resource_name(platform),
            description=mark(platform),
            external_gateway_info={"network_id": values["gateway"]},
        )
        return self._tagged("router", router, platform)

    def _find_interface(self, platform: Platform, _: dict[str, str]) -> Resource | None:
        return next(iter(self._interfaces(platform)), None)

    def _make_interface(self, platform: Platform, _: dict[str, str]) -> Resource:
        router, subnet = self._needed("routers", platform), self._needed("subnets", platform)
        self.conn.network.add_interface_to_router(router, subnet_id=subnet.id)
        return Resource(kind="router interface", id=f"{router.id}/{subnet.id}", name=router.name)

    def _find_server(self, platform: Platform, _: dict[str, str]) -> Resource | None:
        server = self._only_server(platform)
        return _resource("server", server) if server and server.status == "ACTIVE" else None

    def _make_server(self, platform: Platform, values: dict[str, str]) -> Resource:
        server = self._only_server(platform)
        if server and server.status == "ERROR":
            self._remove_server(server.id)
            server = None
        if server is None:
            server = self._create_server(platform, values)
        elif server.status == "SHUTOFF" and not server.task_state:
            self.conn.compute.start_server(server)
        try:
            return _resource("server", self._wait_for(server, "ACTIVE"))
        except _NotRunError as error:
            return self._make_second_server(platform, values, server, error)

    def _create_server(self, platform: Platform, values: dict[str, str]) -> Any:
        return self.conn.compute.create_server(
            name=platform.name,
            flavor_id=values["flavor"],
            image_id=values["image"],
            key_name=resource_name(platform),
            networks=[{"uuid": values["network"] or self._needed("networks", platform).id}],
            security_groups=[{"name": self._needed("security_groups", platform).id}],
            metadata=metadata(platform, self.conn.current_user_id),
            user_data=base64.b64encode(_user_data(platform).encode()).decode(),
            # most images ask for it by IPv4 only
            **({"config_drive": True} if values.get("ipv6_only") else {}),
        )

    def _make_second_server(
        self, platform: Platform, values: dict[str, str], first: Any, error: _NotRunError
    ) -> Resource:
        """Once more: with the next flavor that serves where no host has room for this one, else on whatever host.

        Raises the first server's error when there is no other flavor, and leaves that server for the user to see.
        """
        if error.no_host:
            flavor = self._next_flavor(platform, values)
            if flavor is None:
                raise error
            record, before = platform.record, platform.record.facts.get("flavor", "").partition(" (")[0]
            record.values["flavor"] = values["flavor"] = flavor.id
            record.facts["flavor"] = f"{flavor.name} ({flavor}), as no host had room for {before}"
            platform.folder.save(record)
            how = f"with the flavor {flavor.name} ({flavor})"
        else:
            how = "with the same flavor"
        _log.warning("%s Trying once more, %s.", error.message, how)
        self._remove_server(first.id)
        return _resource("server", self._wait_for(self._create_server(platform, values), "ACTIVE"))

    def _next_flavor(self, platform: Platform, values: dict[str, str]) -> Flavor | None:
        """The smallest flavor that serves and that the quota admits, but for the present one."""
        image = _image(self.conn.image.get_image(values["image"]))
        found = self.conn.compute.flavors(details=True, get_extra_specs=True)
        others = [_flavor(flavor) for flavor in found if flavor.id != values["flavor"]]
        limits = self._limits()
        unaffordable = {f.id: words for f in others if (words := _over_quota(f, limits))}
        return flavor_choices(others, platform.spec, image, unaffordable)[0]

    def _find_address(self, platform: Platform, _: dict[str, str]) -> Resource | None:
        found = self._only("ips", platform)
        if found and found.port_id and is_tagged(found, platform):
            return Resource(kind="floating IP", id=found.id, name=found.floating_ip_address)
        return None

    def _make_address(self, platform: Platform, values: dict[str, str]) -> Resource:
        neutron = self.conn.network
        port = self._port(platform)
        address = self._ours("ips", platform)
        if address is None:
            address = neutron.create_ip(
                floating_network_id=values["external"], port_id=port.id, description=mark(platform)
            )
        elif address.port_id != port.id:
            address = neutron.update_ip(address, port_id=port.id)
        made = self._tagged("floating IP", address, platform)
        return made.model_copy(update={"name": address.floating_ip_address})

    # ------------------------------------------------------------------ looking

    @_insistent
    def access(self, platform: Platform) -> Access:
        """See the contract."""
        floating = self._ours("ips", platform)
        if floating:
            return Access(host=floating.floating_ip_address, user=LOGIN_USER)
        # IPv4 first; a machine behind a jump host is not reached from here, whatever routes this computer has
        hosts = sorted((a["ip_address"] for a in self._port(platform).fixed_ips), key=lambda host: ":" in host)
        routed = hosts if platform.spec.jump else [host for host in hosts if has_route(host)]
        return Access(host=(routed or hosts)[0], user=LOGIN_USER, jump=platform.spec.jump)

    def _all(self, collection: str, platform: Platform) -> list[Any]:
        """The network resources of a kind that bear the platform's mark, first the one that belongs to it.

        There are more only if a request came to its end after it had been given up, and repeated.
        """
        found = getattr(self.conn.network, collection)(
            description=mark(platform), project_id=self.conn.current_project_id
        )
        return _first_of(found, platform)

    def _ours(self, collection: str, platform: Platform) -> Any:
        """The network resource that belongs to the platform, or None."""
        return next(iter(self._all(collection, platform)), None)

    def _only(self, collection: str, platform: Platform) -> Any:
        """The same; what is double is removed, unless it is in use."""
        from openstack import exceptions as sdk

        found = self._all(collection, platform)
        for extra in found[1:]:
            with suppress(sdk.ConflictException):
                getattr(self.conn.network, f"delete_{collection.removesuffix('s')}")(extra, ignore_missing=True)
        return found[0] if found else None

    def _find_tagged(self, kind: str, collection: str, platform: Platform) -> Resource | None:
        found = self._only(collection, platform)
        return _resource(kind, found) if found and is_tagged(found, platform) else None

    def _needed(self, collection: str, platform: Platform) -> Any:
        found = self._ours(collection, platform)
        if found is None:
            raise ProvisionError(
                f"Somebody removed one of the {collection.replace('_', ' ')} of {platform.name} during its creation.",
                "Run the same command again.",
            )
        return found

    def _servers(self, platform: Platform) -> list[Any]:
        """All servers of the platform, first the one that belongs to it; see `_all`."""
        found = [
            server
            for server in self.conn.compute.servers(details=True, name=f"^{platform.name}$")
            if (server.metadata or {}).get("provision_uid") == platform.uid
        ]
        return _first_of(found, platform)

    def _server(self, platform: Platform) -> Any:
        return next(iter(self._servers(platform)), None)

    def _only_server(self, platform: Platform) -> Any:
        found = self._servers(platform)
        for extra in found[1:]:
            self._remove_server(extra.id)
        return found[0] if found else None

    def _port(self, platform: Platform) -> Any:
        server = self._server(platform)
        port = next(iter(self.conn.network.ports(device_id=server.id)), None) if server else None
        if port is None:
            raise ProvisionError(f"{platform.name} has no server with a network port in the cloud {self.name!r}.")
        return port

    @_insistent
    def discover(self, platform: Platform) -> list[Resource]:
        """See the contract."""
        pair = self._find_keypair(platform, {})
        found = [pair] if pair else []
        for kind, collection in COLLECTIONS[:4]:
            found += [_resource(kind, one) for one in self._all(collection, platform)]
        found += self._interfaces(platform)
        found += [_resource("server", server) for server in self._servers(platform)]
        return found + [_resource("floating IP", one) for one in self._all("ips", platform)]

    def _interfaces(self, platform: Platform) -> list[Resource]:
        """The platform's routers' interfaces in its subnets."""
        subnets = {subnet.id for subnet in self._all("subnets", platform)}
        return [
            Resource(kind="router interface", id=f"{router.id}/{address['subnet_id']}", name=router.name)
            for router in (self._all("routers", platform) if subnets else ())
            for port in self.conn.network.ports(device_id=router.id)
            for address in port.fixed_ips
            if address["subnet_id"] in subnets
        ]

    @_insistent
    def platforms(self) -> list[Found]:
        """See the contract."""
        return found_platforms(self.conn)

    @_insistent
    def publish_host_key(self, platform: Platform, public_key: str) -> None:
        """See the contract."""
        server = self._server(platform)
        if server is not None:
            self.conn.compute.set_server_metadata(server, **{HOST_KEY: public_key})

    @_insistent
    def state(self, platform: Platform) -> MachineState:
        """See the contract."""
        server = self._server(platform)
        return _STATES.get(server.status, "error") if server else "missing"

    @contextmanager
    def exclusively(self, platform: Platform, say: Callable[[str], None]) -> Iterator[None]:
        """See the contract."""

        def find() -> Any:
            return self._ours("security_groups", platform)

        def rename(group: Any, name: str) -> None:
            self.conn.network.update_security_group(group, if_revision=group.revision_number, name=name)

        self._lease = Lease(platform, find, rename, self.insist)
        with explained(self.name), self._lease.held(say):
            yield

    @_insistent
    def usage(self, platform: Platform) -> Usage:
        """See the contract."""
        server = self._server(platform)
        return usage(self.conn, server, now()) if server else Usage()

    def console(self, platform: Platform) -> str:
        """See the contract."""
        from keystoneauth1 import exceptions as keystone
        from openstack import exceptions as sdk

        try:
            server = self._server(platform)
            log = self.conn.compute.get_server_console_output(server, length=40) if server else None
        except (sdk.SDKException, keystone.ClientException):
            return ""
        return str(log.get("output") or "") if log else ""

    # ------------------------------------------------------------------ changing

    def start(self, platform: Platform) -> None:
        """See the contract."""
        self._power(platform, "ACTIVE", "start_server")

    def stop(self, platform: Platform) -> None:
        """See the contract."""
        self._power(platform, "SHUTOFF", "stop_server")

    @_insistent
    def _power(self, platform: Platform, status: str, verb: str) -> None:
        server = self._server(platform)
        if server is None:
            raise ProvisionError(f"{platform.name} has no server in the cloud {self.name!r} any more.")
        if server.status != status:
            # a server with a task is on its way already: an answer was lost, or somebody else has asked for it
            if not server.task_state:
                getattr(self.conn.compute, verb)(server)
            self._wait_for(server, status)

    def _wait_for(self, server: Any, status: str) -> Any:
        end = time.monotonic() + BOOT_SECONDS
        identity = server.id
        while True:
            server = self.insist(lambda: self.conn.compute.get_server(identity))
            if server.status == status:
                return server
            if server.status == "ERROR":
                raise _NotRunError(self.name, server)
            if time.monotonic() > end:
                raise ProvisionError(
                    f"The server {server.name} is still {server.status} after {BOOT_SECONDS} s.",
                    "Run the same command again to go on waiting, or delete the platform.",
                )
            time.sleep(POLL_SECONDS)

    @_insistent
    def remove(self, platform: Platform, resource: Resource) -> None:
        """See the contract."""
        self._removers()[resource.kind](resource.id)

    def _removers(self) -> dict[str, Callable[[str], None]]:
        neutron = self.conn.network

        def remover(collection: str) -> Callable[[str], None]:
            delete, get = getattr(neutron, f"delete_{collection}"), getattr(neutron, f"get_{collection}")
            return lambda identity: _until_gone(lambda: delete(identity, ignore_missing=True), lambda: get(identity))

        return {
            "key pair": self._remove_keypair,
            "security group": remover("security_group"),
            "network": remover("network"),
            "subnet": remover("subnet"),
            "router": remover("router"),
            "router interface": self._remove_interface,
            "server": self._remove_server,
            "floating IP": remover("ip"),
        }

    def _remove_keypair(self, name: str) -> None:
        self.conn.compute.delete_keypair(name, ignore_missing=True)

    def _remove_interface(self, identity: str) -> None:
        from openstack import exceptions as sdk

        router, subnet = identity.split("/")
        neutron = self.conn.network

        def delete() -> None:
            neutron.remove_interface_from_router(router, subnet_id=subnet)

        def get() -> None:
            ports = neutron.ports(device_id=router)
            if not any(a["subnet_id"] == subnet for port in ports for a in port.fixed_ips):
                raise sdk.NotFoundException("gone")

        _until_gone(delete, get)

    def _remove_server(self, identity: str) -> None:
        compute = self.conn.compute
        _until_gone(lambda: compute.delete_server(identity, ignore_missing=True), lambda: compute.get_server(identity))
        end = time.monotonic() + REMOVE_SECONDS
        # Nova forgets a server before Neutron has removed its port, which keeps groups and subnets from being removed
        while list(self.conn.network.ports(device_id=identity)) and time.monotonic() < end:
            time.sleep(POLL_SECONDS)

    def _tagged(self, kind: str, made: Any, platform: Platform) -> Resource:
        self.conn.network.set_tags(made, tags(platform, self.conn.current_user_id))
        return _resource(kind, made)


class _NotRunError(ProvisionError):
    """A server that the cloud could not run; `no_host` tells that none had room for its flavor."""

    def __init__(self, cloud: str, server: Any) -> None:
        fault = " ".join(str((server.fault or {}).get("message") or "no reason given").split()).rstrip(".")
        super().__init__(
            f"The cloud {cloud!r} could not run the server {server.name}: {fault}.",
            "Run the same command again (it makes the server anew), or delete the platform.",
        )
        self.no_host = "no valid host" in fault.lower()


def _first_of(found: Iterator[Any] | list[Any], platform: Platform) -> list[Any]:
    """First the resource that the ledger knows, else the oldest, as a creation that is repeated would go on with it."""
    known = {entry.resource.id for entry in platform.record.ledger if entry.resource}
    return sorted(found, key=lambda one: (one.id not in known, str(one.created_at), str(one.id)))


def _until_gone(delete: Callable[[], object], get: Callable[[], object]) -> None:
    """Delete, again while it is still in use, until the cloud says that it does not exist."""
    from openstack import exceptions as sdk

    end = time.monotonic() + REMOVE_SECONDS
    asked = False
    while True:
        try:
            if not asked:
                delete()
                asked = True
            get()
        except sdk.NotFoundException:
            return
        except sdk.ConflictException:
            if time.monotonic() > end:
                raise
        if time.monotonic() > end:
            raise ProvisionError("The cloud has not removed it in time.", "Run the same command again.")
        time.sleep(POLL_SECONDS)


def _missing_rules(group: Any, spec: PlatformSpec) -> list[tuple[int, str]]:
    """Ports (SSH and those asked for) and address families that the group does not admit yet."""
    have = {
        (rule["port_range_min"], rule["ethertype"])
        for rule in group.security_group_rules
        if rule["direction"] == "ingress" and rule["protocol"] == "tcp"
    }
    return [rule for rule in _rules(spec) if rule not in have]


def _rules(spec: PlatformSpec) -> list[tuple[int, str]]:
    return [(port, family) for port in (22, *spec.open_ports) for family in ("IPv4", "IPv6")]


def _user_data(platform: Platform) -> str:
    import jinja2

    template = Path(share() / "templates" / "cloud-init" / "user-data.yaml.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False, keep_trailing_newline=True)  # noqa: S701  (YAML; every value goes through tojson)
    return environment.from_string(template).render(
        name=platform.name,
        user=LOGIN_USER,
        public_key=platform.public_key,
        host_private_key=platform.host_private_key,
        host_public_key=platform.host_public_key,
    )


def _over_quota(flavor: Flavor, limits: Limits) -> str:
    for name, needed in (("CPUs", flavor.vcpus), ("memory", flavor.ram)):
        quota = Quota(name, *limits[name], needed)
        if quota.exceeded:
            return f"over the quota of {name}: {quota.used} of {quota.limit} used and {needed} more needed"
    return ""


def _quotas(flavor: Flavor, limits: Limits, network: dict[str, str]) -> list[Quota]:
    new = 1 if network["mode"] == "new" else 0
    needed = {
        "servers": 1,
        "CPUs": flavor.vcpus,
        "memory": flavor.ram,
        "security groups": 1,
        "floating IPs": 1 if network["external"] else 0,
        "networks": new,
        "subnets": new,
        "routers": new,
        "ports": 1 + 3 * new,  # a new network has a DHCP port, and its router a port on either side
    }
    return [Quota(name, *limits[name], count) for name, count in needed.items()]


def _network(
    mode: str, network: str, external: str, words: str, gateway: str = "", ipv6_only: bool = False
) -> dict[str, str]:
    found = {"mode": mode, "network": network, "external": external, "words": words, "gateway": gateway}
    return found | ({"ipv6_only": "yes"} if ipv6_only else {})


def _resource(kind: str, found: Any) -> Resource:
    return Resource(kind=kind, id=found.id, name=found.name or "")


def _flavor(found: Any) -> Flavor:
    return Flavor(found.id, found.name, found.vcpus, found.ram, found.disk, dict(found.extra_specs or {}))


def _image(found: Any) -> Image:
    properties = found.properties or {}
    return Image(
        id=found.id,
        name=found.name or "",
        distribution=str(found.os_distro or "").lower(),
        version=str(found.os_version or ""),
        min_disk=found.min_disk or 0,
        min_ram=found.min_ram or 0,
        created_at=str(found.created_at),
        snapshot=properties.get("image_type") == "snapshot",
    )


def _list(names: Iterator[str] | Any, most: int = 12) -> str:
    words = sorted({str(name) for name in names})
    return ", ".join(words[:most]) + (f" and {len(words) - most} more" if len(words) > most else "") or "none"


_NETWORK_QUOTAS = {
    "security groups": "security_groups",
    "floating IPs": "floating_ips",
    "networks": "networks",
    "subnets": "subnets",
    "routers": "routers",
    "ports": "ports",
}

_ROUTER_PORTS = {
    "network:router_interface",
    "network:router_interface_distributed",
    "network:ha_router_replicated_interface",
}
