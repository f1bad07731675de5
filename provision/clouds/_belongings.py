"""What belongs to a platform in a cloud, known by its marks: found, waited for and removed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from provision.clouds._marks import COLLECTIONS, is_tagged, mark, resource_name
from provision.clouds.base import LOGIN_USER, Platform
from provision.errors import ProvisionError
from provision.record import Access, Resource
from provision.remote import has_route

BOOT_SECONDS = 600
REMOVE_SECONDS = 180
POLL_SECONDS = 0.5


class Belongings:
    """Looks up, waits for and removes.

    Args:
        cloud: its name, for the sentences.
        connection: gives the SDK's connection.
        insist: calls what it is given, again after passing failures of the cloud.
    """

    def __init__(self, cloud: str, connection: Callable[[], Any], insist: Callable[[Callable[[], Any]], Any]) -> None:
        self.name = cloud
        self._connection = connection
        self._insist = insist

    @property
    def conn(self) -> Any:
        """The SDK's connection."""
        return self._connection()

    def access(self, platform: Platform) -> Access:
        """See the contract of a cloud."""
        if platform.worker:
            hosts = sorted((a["ip_address"] for a in self.port(platform).fixed_ips), key=lambda host: ":" in host)
            return Access(host=hosts[0], user=LOGIN_USER)
        floating = self.ours("ips", platform)
        if floating:
            return Access(host=floating.floating_ip_address, user=LOGIN_USER)
        # IPv4 first; a machine behind a jump host is not reached from here, whatever routes this computer has
        hosts = sorted((a["ip_address"] for a in self.port(platform).fixed_ips), key=lambda host: ":" in host)
        routed = hosts if platform.spec.jump else [host for host in hosts if has_route(host)]
        return Access(host=(routed or hosts)[0], user=LOGIN_USER, jump=platform.spec.jump)

    def all(self, collection: str, platform: Platform) -> list[Any]:
        """The network resources of a kind that bear the platform's mark, first the one that belongs to it.

        There are more only if a request came to its end after it had been given up, and repeated.
        """
        found = getattr(self.conn.network, collection)(
            description=mark(platform), project_id=self.conn.current_project_id
        )
        return first_of(found, platform)

    def ours(self, collection: str, platform: Platform) -> Any:
        """The network resource that belongs to the platform, or None."""
        return next(iter(self.all(collection, platform)), None)

    def only(self, collection: str, platform: Platform) -> Any:
        """The same; what is double is removed, unless it is in use."""
        from openstack import exceptions as sdk

        found = self.all(collection, platform)
        for extra in found[1:]:
            with suppress(sdk.ConflictException):
                getattr(self.conn.network, f"delete_{collection.removesuffix('s')}")(extra, ignore_missing=True)
        return found[0] if found else None

    def find_tagged(self, kind: str, collection: str, platform: Platform) -> Resource | None:
        """The network resource, once it has its tags."""
        found = self.only(collection, platform)
        return as_resource(kind, found) if found and is_tagged(found, platform) else None

    def needed(self, collection: str, platform: Platform) -> Any:
        """The network resource that an earlier step has made."""
        found = self.ours(collection, platform)
        if found is None:
            raise ProvisionError(
                f"Somebody removed one of the {collection.replace('_', ' ')} of {platform.name} during its creation.",
                "Run the same command again.",
            )
        return found

    def servers(self, platform: Platform) -> list[Any]:
        """All servers that are the platform's machine (or the worker), first the one that belongs to it; see `all`."""
        return self._servers(platform, platform.machine_name)

    def _servers(self, platform: Platform, names: str) -> list[Any]:
        found = [
            server
            for server in self.conn.compute.servers(details=True, name=f"^{names}$")
            if (server.metadata or {}).get("provision_uid") == platform.uid
        ]
        return first_of(found, platform)

    def server(self, platform: Platform) -> Any:
        """The server that belongs to the platform, or None."""
        return next(iter(self.servers(platform)), None)

    def only_server(self, platform: Platform) -> Any:
        """The same; those that are double are removed."""
        found = self.servers(platform)
        for extra in found[1:]:
            self.remove_server(extra.id)
        return found[0] if found else None

    def port(self, platform: Platform) -> Any:
        """The server's network port."""
        server = self.server(platform)
        port = next(iter(self.conn.network.ports(device_id=server.id)), None) if server else None
        if port is None:
            raise ProvisionError(
                f"{platform.machine_name} has no server with a network port in the cloud {self.name!r}."
            )
        return port

    def interfaces(self, platform: Platform) -> list[Resource]:
        """The platform's routers' interfaces in its subnets."""
        subnets = {subnet.id for subnet in self.all("subnets", platform)}
        return [
            Resource(kind="router interface", id=f"{router.id}/{address['subnet_id']}", name=router.name)
            for router in (self.all("routers", platform) if subnets else ())
            for port in self.conn.network.ports(device_id=router.id)
            for address in port.fixed_ips
            if address["subnet_id"] in subnets
        ]

    def keypair(self, platform: Platform) -> Resource | None:
        """The platform's key pair."""
        found = self.conn.compute.find_keypair(resource_name(platform), ignore_missing=True)
        return Resource(kind="key pair", id=found.name, name=found.name) if found else None

    def images(self, platform: Platform) -> list[Resource]:
        """Images that were made of the platform's server."""
        found = self.conn.image.images(name=resource_name(platform))
        return [
            as_resource("image", image)
            for image in found
            if (image.properties or {}).get("provision_uid") == platform.uid
        ]

    def discover(self, platform: Platform) -> list[Resource]:
        """See the contract of a cloud."""
        if platform.worker:
            return [as_resource("server", server) for server in self.servers(platform)]
        pair = self.keypair(platform)
        found = [pair] if pair else []
        for kind, collection in COLLECTIONS[:4]:
            found += [as_resource(kind, one) for one in self.all(collection, platform)]
        found += self.interfaces(platform)
        found += self.images(platform)
        found += [as_resource("server", server) for server in self._servers(platform, f"{platform.name}(-w[0-9]+)?")]
        return found + [as_resource("floating IP", one) for one in self.all("ips", platform)]

    def wait_for(self, server: Any, status: str) -> Any:
        """Wait until the server has that status; raises NotRunError when it has failed."""
        end = time.monotonic() + BOOT_SECONDS
        identity = server.id
        while True:
            server = self._insist(lambda: self.conn.compute.get_server(identity))
            if server.status == status:
                return server
            if server.status == "ERROR":
                raise NotRunError(self.name, server)
            if time.monotonic() > end:
                raise ProvisionError(
                    f"The server {server.name} is still {server.status} after {BOOT_SECONDS} s.",
                    "Run the same command again to go on waiting, or delete the platform.",
                )
            time.sleep(POLL_SECONDS)

    def remove(self, resource: Resource) -> None:
        """Remove it and return when the cloud confirms that it is gone."""
        self._removers()[resource.kind](resource.id)

    def _removers(self) -> dict[str, Callable[[str], None]]:
        neutron = self.conn.network

        def remover(collection: str) -> Callable[[str], None]:
            delete, get = getattr(neutron, f"delete_{collection}"), getattr(neutron, f"get_{collection}")
            return lambda identity: until_gone(lambda: delete(identity, ignore_missing=True), lambda: get(identity))

        return {
            "key pair": self._remove_keypair,
            "image": self._remove_image,
            "security group": remover("security_group"),
            "network": remover("network"),
            "subnet": remover("subnet"),
            "router": remover("router"),
            "router interface": self._remove_interface,
            "server": self.remove_server,
            "floating IP": remover("ip"),
        }

    def _remove_keypair(self, name: str) -> None:
        self.conn.compute.delete_keypair(name, ignore_missing=True)

    def _remove_image(self, identity: str) -> None:
        image = self.conn.image
        until_gone(lambda: image.delete_image(identity, ignore_missing=True), lambda: image.get_image(identity))

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

        until_gone(delete, get)

    def remove_server(self, identity: str) -> None:
        """Remove the server, with its ports."""
        compute = self.conn.compute
        until_gone(lambda: compute.delete_server(identity, ignore_missing=True), lambda: compute.get_server(identity))
        end = time.monotonic() + REMOVE_SECONDS
        # Nova forgets a server before Neutron has removed its port, which keeps groups and subnets from being removed
        while list(self.conn.network.ports(device_id=identity)) and time.monotonic() < end:
            time.sleep(POLL_SECONDS)


class NotRunError(ProvisionError):
    """A server that the cloud could not run; `no_host` tells that none had room for its flavor."""

    def __init__(self, cloud: str, server: Any) -> None:
        fault = " ".join(str((server.fault or {}).get("message") or "no reason given").split()).rstrip(".")
        super().__init__(
            f"The cloud {cloud!r} could not run the server {server.name}: {fault}.",
            "Run the same command again (it makes the server anew), or delete the platform.",
        )
        self.no_host = "no valid host" in fault.lower()


def first_of(found: Iterator[Any] | list[Any], platform: Platform) -> list[Any]:
    """First the resource that the ledger knows, else the oldest, as a creation that is repeated would go on with it."""
    known = {entry.resource.id for entry in platform.record.ledger if entry.resource}
    return sorted(found, key=lambda one: (one.id not in known, str(one.created_at), str(one.id)))


def until_gone(delete: Callable[[], object], get: Callable[[], object]) -> None:
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


def as_resource(kind: str, found: Any) -> Resource:
    """What the ledger notes of something found."""
    return Resource(kind=kind, id=found.id, name=found.name or "")
