"""What of a cloud serves a spec: image, flavor and network, and the quotas that they take."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any

from provision.clouds._glance import DIGEST
from provision.clouds.base import Choice, Offer, Platform, Quota
from provision.clouds.flavors import SYSTEMS, Flavor, Image, fits_baked, flavor_choices, image_choices
from provision.errors import ProvisionError
from provision.spec import PlatformSpec

Limits = dict[str, tuple[int | None, int]]
"""Limit (None: unlimited) and present use of each quota; memory in MiB."""

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


class Choosing:
    """Chooses; writes nothing.

    Args:
        cloud: its name, for the sentences.
        connection: gives the SDK's connection.
    """

    def __init__(self, cloud: str, connection: Callable[[], Any]) -> None:
        self.name = cloud
        self._connection = connection

    @property
    def conn(self) -> Any:
        """The SDK's connection."""
        return self._connection()

    def offer(self, spec: PlatformSpec, baked: str = "") -> Offer:
        """See the contract's `check`."""
        image, images = self._choose_image(spec, baked)
        is_baked = fits_baked(image, baked)
        network = self._choose_network(spec)
        limits = self._limits()
        workers: list[Flavor] = []
        if spec.workers and spec.worker_flavor:
            workers = [self._named_flavor(spec.worker_flavor, image)] * spec.workers
            limits_left = _without(limits, workers)
            flavor, flavors = self._choose_flavor(spec, image, limits_left)
        else:
            flavor, flavors = self._choose_flavor(spec, image, limits, 1 + spec.workers)
            workers = [flavor] * spec.workers
        quotas = _quotas([flavor, *workers], limits, network)
        self._refuse_exceeded(quotas)
        return Offer(
            facts={
                "flavor": f"{flavor.name} ({flavor})",
                "image": f"{image.name} ({image}{', baked' * is_baked})",
                "network": network["words"],
                **({"worker flavor": f"{workers[0].name} ({workers[0]}), {len(workers)} times"} if workers else {}),
            },
            choices=(*flavors, *images),
            quotas=tuple(quotas),
            values={
                "flavor": flavor.id,
                "image": image.id,
                **({"baked": image.name} if is_baked else {}),
                **({"worker_flavor": workers[0].id} if workers else {}),
                **network,
            },
        )

    def size(self, spec: PlatformSpec, server: Any) -> Offer:
        """The flavor for a server that is there, within the quotas of the difference; see `check_size`."""
        flavors = self._flavors()
        present = _present(server, flavors)
        limits = self._limits()
        freed = {"CPUs": present.vcpus, "memory": present.ram}
        without = limits | {name: (limits[name][0], limits[name][1] - amount) for name, amount in freed.items()}
        refused = {f.id: words for f in flavors if (words := _smaller_disk(f, present) or _over_quota(f, without))}
        refused.pop(present.id, None)
        flavor, choices = flavor_choices(flavors, spec, self._image_of(server), refused)
        if flavor is None:
            raise ProvisionError(
                f"The cloud {self.name!r} has no flavor for {server.name} with {_wish(spec)}.",
                f"It has: {_list(f'{c.name} ({c.properties}): {c.verdict}' for c in choices)}.",
            )
        needed = {"CPUs": flavor.vcpus - present.vcpus, "memory": flavor.ram - present.ram}
        return Offer(
            facts={"flavor": f"{flavor.name} ({flavor})"},
            choices=tuple(choices),
            quotas=tuple(Quota(name, *limits[name], amount) for name, amount in needed.items()),
            values={"flavor": flavor.id},
        )

    def workers(self, platform: Platform, spec: PlatformSpec) -> Offer:
        """The flavor of a platform's workers, within the quotas of those that are to come; see `check_workers`."""
        values, limits = platform.record.values, self._limits()
        wanted = values.get("worker_flavor") or spec.worker_flavor or values["flavor"]
        flavor = next((flavor for flavor in self._flavors() if wanted in (flavor.id, flavor.name)), None)
        if flavor is None:
            raise ProvisionError(f"The cloud {self.name!r} has no flavor {wanted!r} any more.")
        more = spec.workers - platform.record.spec.workers
        needed = {"servers": more, "CPUs": more * flavor.vcpus, "memory": more * flavor.ram, "ports": more}
        quotas = tuple(Quota(name, *limits[name], amount) for name, amount in needed.items())
        self._refuse_exceeded(quotas)
        return Offer(
            facts={"worker flavor": f"{flavor.name} ({flavor}), {spec.workers} times"},
            quotas=quotas,
            values={"worker_flavor": flavor.id},
        )

    def _refuse_exceeded(self, quotas: Iterable[Quota]) -> None:
        if over := [quota for quota in quotas if quota.exceeded]:
            words = ", ".join(f"{q.name} {q.used} of {q.limit} used and {q.needed} more needed" for q in over)
            raise ProvisionError(
                f"The quota of the cloud {self.name!r} is exceeded: {words}.",
                "Ask for less, delete what is not needed, or ask the cloud's administrators for more.",
            )

    def system(self, spec: PlatformSpec, server: Any, baked: str = "") -> Offer:
        """The image on which a server that is there could be rebuilt; see `check_image`."""
        present = _present(server, self._flavors())
        image, choices = self._choose_image(spec, baked)
        if _too_small(present, image) and not spec.image and fits_baked(image, baked):
            image, choices = self._choose_image(spec)  # a plain one needs less
        if _too_small(present, image):
            raise ProvisionError(
                f"The image {image.name} needs {image.min_disk} GB disk and {image.min_ram / 1024:g} GB memory;"
                f" {server.name} has {present}.",
                f"Choose another image, or first: `provision resize {server.name}`.",
            )
        is_baked = fits_baked(image, baked)
        return Offer(
            facts={"image": f"{image.name} ({image}{', baked' * is_baked})"},
            choices=tuple(choices),
            values={"image": image.id, "baked": image.name if is_baked else ""},
        )

    def _image_of(self, server: Any) -> Image:
        """The server's image, or what serves in its place when the cloud has it no more."""
        from openstack import exceptions as sdk

        identity = (server.image or {}).get("id")
        with suppress(sdk.NotFoundException, sdk.ForbiddenException):
            if identity:
                return _image(self.conn.image.get_image(identity))
        return Image("", "the former image", "", "", 0, 0, "")

    def _flavors(self) -> list[Flavor]:
        return [_flavor(found) for found in self.conn.compute.flavors(details=True, get_extra_specs=True)]

    def plain_image(self) -> Image:
        """The image of a platform without particular wishes, where none is baked for it."""
        return self._choose_image(PlatformSpec(name="any"))[0]

    def _choose_image(self, spec: PlatformSpec, baked: str = "") -> tuple[Image, list[Choice]]:
        project = self.conn.current_project_id
        images = [_image(found, project) for found in self.conn.image.images(status="active")]
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
        image, choices = image_choices(images, baked)
        if image is None:
            systems = ", ".join(" ".join(system) for system in SYSTEMS)
            raise ProvisionError(
                f"No image of the cloud {self.name!r} tells by os_distro and os_version that it is one of {systems}.",
                f"Name an image of such a system with --image: {_list(i.name for i in images)}.",
            )
        return image, choices

    def _named_flavor(self, name: str, image: Image) -> Flavor:
        flavors = self._flavors()
        found = next((flavor for flavor in flavors if name in (flavor.id, flavor.name)), None)
        if found is None:
            raise ProvisionError(
                f"The cloud {self.name!r} has no flavor {name!r}.", f"It has: {_list(f.name for f in flavors)}."
            )
        if found.disk < image.min_disk or found.ram < image.min_ram:
            raise ProvisionError(f"The flavor {name} ({found}) is too small for {image.name}.", "Name a larger one.")
        return found

    def _choose_flavor(
        self, spec: PlatformSpec, image: Image, limits: Limits, count: int = 1
    ) -> tuple[Flavor, list[Choice]]:
        """The flavor of `count` machines."""
        flavors = self._flavors()
        unaffordable = {f.id: words for f in flavors if (words := _over_quota(f, limits, count))}
        flavor, choices = flavor_choices(flavors, spec, image, unaffordable)
        if flavor is not None:
            return flavor, choices
        if any(choice.verdict in unaffordable.values() for choice in choices):
            words = _list(f"{c.name} ({c.verdict})" for c in choices if c.verdict in unaffordable.values())
            raise ProvisionError(
                f"The quota of the cloud {self.name!r} admits no flavor that serves: {words}.",
                "Ask for less, delete what is not needed, or ask the cloud's administrators for more.",
            )
        raise ProvisionError(
            f"The cloud {self.name!r} has no flavor with {_wish(spec)}.",
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

    def next_flavor(self, platform: Platform, image_id: str, present: str) -> Flavor | None:
        """The smallest flavor that serves and that the quota admits, but for the present one."""
        image = _image(self.conn.image.get_image(image_id))
        others = [flavor for flavor in self._flavors() if flavor.id != present]
        limits = self._limits()
        unaffordable = {f.id: words for f in others if (words := _over_quota(f, limits))}
        return flavor_choices(others, platform.spec, image, unaffordable)[0]


def _wish(spec: PlatformSpec) -> str:
    gpus = f" and {spec.gpu}" if spec.gpu else ""
    return f"{spec.cpus} CPU, {spec.memory:g} GB memory, {spec.disk:g} GB disk{gpus}"


def _present(server: Any, flavors: list[Flavor]) -> Flavor:
    """The server's flavor, also when the cloud offers it no more; newer clouds tell its name, older ones its id."""
    told = server.flavor
    found = next((flavor for flavor in flavors if told.id in (flavor.id, flavor.name)), None)
    return found or Flavor("", told.name or told.id, told.vcpus or 0, told.ram or 0, told.disk or 0)


def _too_small(present: Flavor, image: Image) -> bool:
    return bool(present.disk) and (present.disk < image.min_disk or present.ram < image.min_ram)


def _smaller_disk(flavor: Flavor, present: Flavor) -> str:
    return f"only {flavor.disk} GB disk, and a disk cannot shrink" if flavor.disk < present.disk else ""


def _without(limits: Limits, machines: list[Flavor]) -> Limits:
    """The limits as they are when there are these machines too."""
    used = {"CPUs": sum(flavor.vcpus for flavor in machines), "memory": sum(flavor.ram for flavor in machines)}
    return limits | {name: (limits[name][0], limits[name][1] + amount) for name, amount in used.items()}


def _over_quota(flavor: Flavor, limits: Limits, count: int = 1) -> str:
    for name, needed in (("CPUs", count * flavor.vcpus), ("memory", count * flavor.ram)):
        quota = Quota(name, *limits[name], needed)
        if quota.exceeded:
            return f"over the quota of {name}: {quota.used} of {quota.limit} used and {needed} more needed"
    return ""


def _quotas(machines: list[Flavor], limits: Limits, network: dict[str, str]) -> list[Quota]:
    new = 1 if network["mode"] == "new" else 0
    needed = {
        "servers": len(machines),
        "CPUs": sum(flavor.vcpus for flavor in machines),
        "memory": sum(flavor.ram for flavor in machines),
        "security groups": 1,
        "floating IPs": 1 if network["external"] else 0,
        "networks": new,
        "subnets": new,
        "routers": new,
        "ports": len(machines) + 3 * new,  # a new network has a DHCP port, and its router a port on either side
    }
    return [Quota(name, *limits[name], count) for name, count in needed.items()]


def _network(
    mode: str, network: str, external: str, words: str, gateway: str = "", ipv6_only: bool = False
) -> dict[str, str]:
    found = {"mode": mode, "network": network, "external": external, "words": words, "gateway": gateway}
    return found | ({"ipv6_only": "yes"} if ipv6_only else {})


def _flavor(found: Any) -> Flavor:
    return Flavor(found.id, found.name, found.vcpus, found.ram, found.disk, dict(found.extra_specs or {}))


def _image(found: Any, project: str = "") -> Image:
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
        baked=str(properties.get(DIGEST) or ""),
        ours=found.owner == project,
    )


def _list(names: Iterator[str] | Any, most: int = 12) -> str:
    words = sorted({str(name) for name in names})
    return ", ".join(words[:most]) + (f" and {len(words) - most} more" if len(words) > most else "") or "none"
