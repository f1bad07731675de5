"""OpenStack: any cloud of the user's clouds.yaml.

Every resource bears the platform's mark from the moment of its creation: network resources in their description,
servers in their metadata, key pairs in their name; tags are added where the service has them. What bears the mark is
ours, and nothing else is ever changed or removed.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from provision.clouds import _explain
from provision.clouds._marks import COLLECTIONS, HOST_KEY, found_platforms, mark, metadata, resource_name, tags
from provision.clouds.base import LOGIN_USER, Choice, Cloud, Found, MachineState, Offer, Platform, Quota, Step
from provision.clouds.flavors import SYSTEMS, Flavor, Image, flavor_choices, image_choices
from provision.errors import ProvisionError, UsageError
from provision.record import Access, Resource
from provision.redact import register
from provision.share import share
from provision.spec import PlatformSpec

BOOT_SECONDS = 600
REMOVE_SECONDS = 180
POLL_SECONDS = 0.5
PRIVATE_RANGE = "10.142.0.0/24"
"""Addresses of a network that is made for a platform; it stands alone behind its own router."""

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


@contextmanager
def explained(cloud: str) -> Iterator[None]:
    """Turn the SDK's exceptions into one sentence and a remedy."""
    from keystoneauth1 import exceptions as keystone
    from openstack import exceptions as sdk

    try:
        yield
    except keystone.Unauthorized:
        raise _not_accepted(cloud) from None
    except (keystone.MissingRequiredOptions, keystone.MissingAuthPlugin, keystone.NoMatchingPlugin) as error:
        raise UsageError(f"The entry {cloud!r} of clouds.yaml is incomplete: {_words(error)}.") from None
    except (keystone.ConnectFailure, keystone.DiscoveryFailure, keystone.RetriableConnectionFailure) as error:
        raise ProvisionError(
            f"The cloud {cloud!r} cannot be reached: {_words(error)}.",
            "Check auth_url in clouds.yaml, your network or VPN, and whether the site is up.",
        ) from None
    except keystone.EndpointNotFound as error:
        raise ProvisionError(f"The cloud {cloud!r} lacks a service that is needed: {_words(error)}.") from None
    except sdk.ForbiddenException as error:
        hint = "Ask for more quota, choose less, or delete what is not needed." if "uota" in _words(error) else ""
        raise ProvisionError(f"The cloud {cloud!r} forbids it: {_words(error)}.", hint) from None
    except (sdk.SDKException, keystone.ClientException) as error:
        raise ProvisionError(f"The cloud {cloud!r} answered with an error: {_words(error)}.") from None


def _not_accepted(cloud: str) -> ProvisionError:
    return ProvisionError(
        f"The cloud {cloud!r} does not accept the credentials: they are wrong or have expired.",
        "Renew them in clouds.yaml (application credential, password or token) and try again.",
    )


def _words(error: Exception) -> str:
    text = str(getattr(error, "details", None) or getattr(error, "message", None) or error)
    return " ".join(text.partition(": HTTPConnectionPool")[0].partition(": HTTPSConnectionPool")[0].split()).rstrip(
        "."
    )[:400]


class OpenStackCloud(Cloud):
    """One entry of clouds.yaml."""

    kind = "openstack"
    host_key_in_user_data = True

    def __init__(self, name: str) -> None:
        self.name = name
        self._conn: Any = None

    @property
    def conn(self) -> Any:
        """The SDK's connection, made and authorised at first use."""
        if self._conn is None:
            self._conn = self._connect()
        return self._conn

    def _connect(self) -> Any:
        import openstack
        from keystoneauth1 import exceptions as keystone
        from openstack import config

        try:
            loader = config.OpenStackConfig()
            known = sorted(loader.get_cloud_names()) if loader.config_filename else []
            if self.name not in known:
                raise UsageError(
                    f"There is no cloud {self.name!r}; clouds.yaml has: {', '.join(known) or 'nothing'}.",
                    "`--cloud local` makes the platform on this computer.",
                )
            region = loader.get_one(cloud=self.name)
            for key in ("password", "application_credential_secret", "access_token", "token"):
                register(region.config.get("auth", {}).get(key))
            conn = openstack.connection.Connection(config=region, app_name="provision")
        except openstack.exceptions.ConfigException as error:
            raise UsageError(f"clouds.yaml cannot be used for {self.name!r}: {_words(error)}.") from None
        try:
            conn.session.get_token()
        except keystone.NotFound as error:
            # Keystone's answer to a deleted application credential and to a revoked token
            if "application credential" in str(error).lower() or "token" in str(error).lower():
                raise _not_accepted(self.name) from None
            raise
        return conn

    # ------------------------------------------------------------------ checks

    def check(self, spec: PlatformSpec) -> Offer:
        """See the contract."""
        with explained(self.name):
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
                return _network("direct", network.id, "", f"{network.name}, with an address of its own")
            return self._behind(network, spec)
        own = neutron.networks(project_id=self.conn.current_project_id, is_router_external=False)
        for network in sorted(own, key=lambda n: str(n.created_at)):
            if not (network.description or "").startswith("provision ") and (external := self._way_out(network)):
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
        if spec.jump:
            return _network("shared", network.id, "", f"{network.name}, reached through {spec.jump}")
        return _network("shared", network.id, external.id, f"{network.name}, with a floating IP of {external.name}")

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

        def step(key: str, title: str, seconds: int, find: Callable[..., Any], make: Callable[..., Any]) -> Step:
            return Step(
                key, title, seconds, self._explained(find, platform, values), self._explained(make, platform, values)
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
        with explained(self.name):
            user = str(self.conn.current_user_id)
        subject = _explain.Subject(
            platform=platform,
            values=offer.values,
            words=offer.facts,
            user=user,
            cloud=self.name,
            region="",
            rules=_rules(platform.spec),
            subnet=PRIVATE_RANGE,
            user_data=_user_data(_explain.with_placeholders(platform)),
        )
        return _explain.script(subject, steps)

    def _explained(self, call: Callable[..., Any], platform: Platform, values: dict[str, str]) -> Callable[[], Any]:
        def run() -> Any:
            with explained(self.name):
                return call(platform, values)

        return run

    def _find_keypair(self, platform: Platform, _: dict[str, str]) -> Resource | None:
        found = self.conn.compute.find_keypair(resource_name(platform), ignore_missing=True)
        return Resource(kind="key pair", id=found.name, name=found.name) if found else None

    def _make_keypair(self, platform: Platform, _: dict[str, str]) -> Resource:
        made = self.conn.compute.create_keypair(name=resource_name(platform), public_key=platform.public_key)
        return Resource(kind="key pair", id=made.name, name=made.name)

    def _find_group(self, platform: Platform, _: dict[str, str]) -> Resource | None:
        found = self._ours("security_groups", platform)
        return _resource("security group", found) if found and not _missing_rules(found, platform.spec) else None

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
        found = self._ours("networks", platform)
        return _resource("network", found) if found else None

    def _make_network(self, platform: Platform, _: dict[str, str]) -> Resource:
        made = self.conn.network.create_network(name=resource_name(platform), description=mark(platform))
        return self._tagged("network", made, platform)

    def _find_subnet(self, platform: Platform, _: dict[str, str]) -> Resource | None:
        found = self._ours("subnets", platform)
        return _resource("subnet", found) if found else None

    def _make_subnet(self, platform: Platform, _: dict[str, str]) -> Resource:
        network = self._needed("networks", platform)
        made = self.conn.network.create_subnet(
            name=resource_name(platform),
            description=mark(platform),
            network_id=network.id,
            cidr=PRIVATE_RANGE,
            ip_version=4,
        )
        return self._tagged("subnet", made, platform)

    def _find_router(self, platform: Platform, _: dict[str, str]) -> Resource | None:
        found = self._ours("routers", platform)
        return _resource("router", found) if found else None

    def _make_router(self, platform: Platform, values: dict[str, str]) -> Resource:
        made = self.conn.network.create_router(
            name=resource_name(platform),
            description=mark(platform),
            external_gateway_info={"network_id": values["gateway"]},
        )
        return self._tagged("router", made, platform)

    def _find_interface(self, platform: Platform, _: dict[str, str]) -> Resource | None:
        router, subnet = self._ours("routers", platform), self._ours("subnets", platform)
        if not router or not subnet:
            return None
        for port in self.conn.network.ports(device_id=router.id):
            if any(address["subnet_id"] == subnet.id for address in port.fixed_ips):
                return Resource(kind="router interface", id=f"{router.id}/{subnet.id}", name=router.name)
        return None

    def _make_interface(self, platform: Platform, _: dict[str, str]) -> Resource:
        router, subnet = self._needed("routers", platform), self._needed("subnets", platform)
        self.conn.network.add_interface_to_router(router, subnet_id=subnet.id)
        return Resource(kind="router interface", id=f"{router.id}/{subnet.id}", name=router.name)

    def _find_server(self, platform: Platform, _: dict[str, str]) -> Resource | None:
        server = self._server(platform)
        return _resource("server", server) if server and server.status == "ACTIVE" else None

    def _make_server(self, platform: Platform, values: dict[str, str]) -> Resource:
        server = self._server(platform)
        if server and server.status == "ERROR":
            self._remove_server(server.id)
            server = None
        if server is None:
            network = values["network"] or self._needed("networks", platform).id
            server = self.conn.compute.create_server(
                name=platform.name,
                flavor_id=values["flavor"],
                image_id=values["image"],
                key_name=resource_name(platform),
                networks=[{"uuid": network}],
                security_groups=[{"name": self._needed("security_groups", platform).id}],
                metadata=metadata(platform, self.conn.current_user_id),
                user_data=base64.b64encode(_user_data(platform).encode()).decode(),
            )
        elif server.status == "SHUTOFF":
            self.conn.compute.start_server(server)
        return _resource("server", self._wait_for(server, "ACTIVE"))

    def _find_address(self, platform: Platform, _: dict[str, str]) -> Resource | None:
        found = self._ours("ips", platform)
        if found and found.port_id:
            return Resource(kind="floating IP", id=found.id, name=found.floating_ip_address)
        return None

    def _make_address(self, platform: Platform, values: dict[str, str]) -> Resource:
        neutron = self.conn.network
        port = self._port(platform)
        address = self._ours("ips", platform)
        if address:
            address = neutron.update_ip(address, port_id=port.id)
        else:
            address = neutron.create_ip(
                floating_network_id=values["external"], port_id=port.id, description=mark(platform)
            )
        made = self._tagged("floating IP", address, platform)
        return made.model_copy(update={"name": address.floating_ip_address})

    # ------------------------------------------------------------------ looking

    def access(self, platform: Platform) -> Access:
        """See the contract."""
        with explained(self.name):
            floating = self._ours("ips", platform)
            if floating:
                return Access(host=floating.floating_ip_address, user=LOGIN_USER)
            fixed = self._port(platform).fixed_ips
            host = next((a["ip_address"] for a in fixed if "." in a["ip_address"]), fixed[0]["ip_address"])
            return Access(host=host, user=LOGIN_USER, jump=platform.spec.jump)

    def _ours(self, collection: str, platform: Platform) -> Any:
        """The network resource that bears the platform's mark, or None."""
        found = getattr(self.conn.network, collection)(
            description=mark(platform), project_id=self.conn.current_project_id
        )
        return next(iter(found), None)

    def _needed(self, collection: str, platform: Platform) -> Any:
        found = self._ours(collection, platform)
        if found is None:
            raise ProvisionError(
                f"Somebody removed one of the {collection.replace('_', ' ')} of {platform.name} during its creation.",
                "Run the same command again.",
            )
        return found

    def _servers(self, platform: Platform) -> list[Any]:
        """All servers of the platform, oldest first: more than one only if a request was repeated after a kill."""
        found = [
            server
            for server in self.conn.compute.servers(details=True, name=f"^{platform.name}$")
            if (server.metadata or {}).get("provision_uid") == platform.uid
        ]
        return sorted(found, key=lambda server: str(server.created_at))

    def _server(self, platform: Platform) -> Any:
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

    def discover(self, platform: Platform) -> list[Resource]:
        """See the contract."""
        with explained(self.name):
            values: dict[str, str] = {}
            found = [self._find_keypair(platform, values)]
            found += [self._marked(kind, collection, platform) for kind, collection in COLLECTIONS[:4]]
            found.append(self._find_interface(platform, values))
            found += [_resource("server", server) for server in self._servers(platform)]
            found.append(self._marked(*COLLECTIONS[4], platform))
            return [resource for resource in found if resource is not None]

    def _marked(self, kind: str, collection: str, platform: Platform) -> Resource | None:
        found = self._ours(collection, platform)
        return _resource(kind, found) if found else None

    def platforms(self) -> list[Found]:
        """See the contract."""
        with explained(self.name):
            return found_platforms(self.conn)

    def publish_host_key(self, platform: Platform, public_key: str) -> None:
        """See the contract."""
        with explained(self.name):
            server = self._server(platform)
            if server is not None:
                self.conn.compute.set_server_metadata(server, **{HOST_KEY: public_key})

    def state(self, platform: Platform) -> MachineState:
        """See the contract."""
        with explained(self.name):
            server = self._server(platform)
            return _STATES.get(server.status, "error") if server else "missing"

    def console(self, platform: Platform) -> str:
        """See the contract."""
        from openstack import exceptions as sdk

        try:
            server = self._server(platform)
            log = self.conn.compute.get_server_console_output(server, length=40) if server else None
        except sdk.SDKException:
            return ""
        return str(log.get("output") or "") if log else ""

    # ------------------------------------------------------------------ changing

    def start(self, platform: Platform) -> None:
        """See the contract."""
        self._power(platform, "ACTIVE", "start_server")

    def stop(self, platform: Platform) -> None:
        """See the contract."""
        self._power(platform, "SHUTOFF", "stop_server")

    def _power(self, platform: Platform, status: str, verb: str) -> None:
        with explained(self.name):
            server = self._server(platform)
            if server is None:
                raise ProvisionError(f"{platform.name} has no server in the cloud {self.name!r} any more.")
            if server.status != status:
                getattr(self.conn.compute, verb)(server)
                self._wait_for(server, status)

    def _wait_for(self, server: Any, status: str) -> Any:
        end = time.monotonic() + BOOT_SECONDS
        while True:
            server = self.conn.compute.get_server(server.id)
            if server.status == status:
                return server
            if server.status == "ERROR":
                fault = (getattr(server, "fault", None) or {}).get("message", "no reason given")
                raise ProvisionError(
                    f"The cloud {self.name!r} could not run the server {server.name}: {' '.join(str(fault).split())}.",
                    "Run the same command again (it makes the server anew), or delete the platform.",
                )
            if time.monotonic() > end:
                raise ProvisionError(
                    f"The server {server.name} is still {server.status} after {BOOT_SECONDS} s.",
                    "Run the same command again to go on waiting, or delete the platform.",
                )
            time.sleep(POLL_SECONDS)

    def remove(self, platform: Platform, resource: Resource) -> None:
        """See the contract."""
        with explained(self.name):
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


def _network(mode: str, network: str, external: str, words: str, gateway: str = "") -> dict[str, str]:
    return {"mode": mode, "network": network, "external": external, "words": words, "gateway": gateway}


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
