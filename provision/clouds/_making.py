"""The steps from nothing to a server that boots in a cloud."""

from __future__ import annotations

import base64
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from provision.clouds._belongings import Belongings, NotRunError, as_resource
from provision.clouds._choosing import Choosing
from provision.clouds._cinder import Volumes
from provision.clouds._marks import is_tagged, mark, metadata, resource_name, tags
from provision.clouds.base import LOGIN_USER, Offer, Platform, Step
from provision.record import DATA_VOLUME, VOLUME_ATTACHMENT, Resource
from provision.share import share
from provision.spec import PlatformSpec

PRIVATE_RANGE = "10.142.0.0/24"
"""Addresses of a network that is made for a platform; it stands alone behind its own router."""
FAMILIES = ("IPv4", "IPv6")

_log = logging.getLogger("provision")


class Making:
    """Finds and makes, step by step.

    Args:
        belongings: what there is already.
        choosing: chooses another flavor where no host has room for the first one.
        volumes: makes and attaches a data volume.
        connection: gives the SDK's connection.
        insist: calls the first function that it is given, and the second one after each passing failure of the cloud.
        renew: called at each step, for as long as it takes somebody else is kept off the platform.
    """

    def __init__(
        self,
        belongings: Belongings,
        choosing: Choosing,
        volumes: Volumes,
        connection: Callable[[], Any],
        insist: Callable[..., Any],
        renew: Callable[[], None],
    ) -> None:
        self.belongings = belongings
        self.choosing = choosing
        self.volumes = volumes
        self._connection = connection
        self._insist = insist
        self._renew = renew

    @property
    def conn(self) -> Any:
        """The SDK's connection."""
        return self._connection()

    def steps(self, platform: Platform, offer: Offer) -> list[Step]:
        """See the contract of a cloud."""
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
                self._renew()
                return find(platform, values)

            return Step(
                key,
                title,
                seconds,
                lambda: self._insist(look),
                lambda: self._insist(lambda: make(platform, values), make_again),
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
        if size := values.get("volume_gb"):
            title = f"{DATA_VOLUME} of {size} GB{', kept before' if values['volume'] else ''}"
            plan.append(step("data-volume", title, 5, self.volumes.find, self.volumes.make))
        plan.append(step("server", "server", 20, self._find_server, self._make_server))
        if values.get("volume_gb"):
            attach = (self.volumes.find_attachment, self.volumes.make_attachment)
            plan.append(step("volume-attachment", VOLUME_ATTACHMENT, 10, *attach))
        if values["external"]:
            plan.append(step("floating-ip", "floating IP", 3, self._find_address, self._make_address))
        for worker in platform.workers:
            plan.append(
                step(
                    f"worker-{worker.worker}",
                    f"server {worker.machine_name}",
                    20,
                    partial(self._find_worker, worker.worker),
                    partial(self._make_worker, worker.worker),
                )
            )
        return plan

    def _find_worker(self, number: int, platform: Platform, values: dict[str, str]) -> Resource | None:
        return self._find_server(platform.of_worker(number), values)

    def _make_worker(self, number: int, platform: Platform, values: dict[str, str]) -> Resource:
        return self._make_server(platform.of_worker(number), values)

    def _find_keypair(self, platform: Platform, _: dict[str, str]) -> Resource | None:
        return self.belongings.keypair(platform)

    def _make_keypair(self, platform: Platform, _: dict[str, str]) -> Resource:
        made = self.conn.compute.create_keypair(name=resource_name(platform), public_key=platform.public_key)
        return Resource(kind="key pair", id=made.name, name=made.name)

    def _find_group(self, platform: Platform, _: dict[str, str]) -> Resource | None:
        found = self.belongings.only("security_groups", platform)
        if found is None or not is_tagged(found, platform):
            return None
        if _missing_rules(found, platform.spec) or _missing_inner(found, platform.spec):
            return None
        return as_resource("security group", found)

    def _make_group(self, platform: Platform, _: dict[str, str]) -> Resource:
        neutron = self.conn.network
        group = self.belongings.ours("security_groups", platform) or neutron.create_security_group(
            name=resource_name(platform), description=mark(platform)
        )
        for family in _missing_inner(group, platform.spec):
            # all between the machines of the platform, and nobody else's
            neutron.create_security_group_rule(
                security_group_id=group.id,
                direction="ingress",
                ethertype=family,
                remote_group_id=group.id,
                description=mark(platform),
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
        return self.belongings.find_tagged("network", "networks", platform)

    def _make_network(self, platform: Platform, _: dict[str, str]) -> Resource:
        network = self.belongings.ours("networks", platform) or self.conn.network.create_network(
            name=resource_name(platform), description=mark(platform)
        )
        return self._tagged("network", network, platform)

    def _find_subnet(self, platform: Platform, _: dict[str, str]) -> Resource | None:
        return self.belongings.find_tagged("subnet", "subnets", platform)

    def _make_subnet(self, platform: Platform, _: dict[str, str]) -> Resource:
        subnet = self.belongings.ours("subnets", platform) or self.conn.network.create_subnet(
            name=resource_name(platform),
            description=mark(platform),
            network_id=self.belongings.needed("networks", platform).id,
            cidr=PRIVATE_RANGE,
            ip_version=4,
        )
        return self._tagged("subnet", subnet, platform)

    def _find_router(self, platform: Platform, _: dict[str, str]) -> Resource | None:
        return self.belongings.find_tagged("router", "routers", platform)

    def _make_router(self, platform: Platform, values: dict[str, str]) -> Resource:
        router = self.belongings.ours("routers", platform) or self.conn.network.create_router(
            name=resource_name(platform),
            description=mark(platform),
            external_gateway_info={"network_id": values["gateway"]},
        )
        return self._tagged("router", router, platform)

    def _find_interface(self, platform: Platform, _: dict[str, str]) -> Resource | None:
        return next(iter(self.belongings.interfaces(platform)), None)

    def _make_interface(self, platform: Platform, _: dict[str, str]) -> Resource:
        router, subnet = self.belongings.needed("routers", platform), self.belongings.needed("subnets", platform)
        self.conn.network.add_interface_to_router(router, subnet_id=subnet.id)
        return Resource(kind="router interface", id=f"{router.id}/{subnet.id}", name=router.name)

    def _find_server(self, platform: Platform, _: dict[str, str]) -> Resource | None:
        server = self.belongings.only_server(platform)
        return as_resource("server", server) if server and server.status == "ACTIVE" else None

    def _make_server(self, platform: Platform, values: dict[str, str]) -> Resource:
        server = self.belongings.only_server(platform)
        if server and server.status == "ERROR":
            self.belongings.remove_server(server.id)
            server = None
        if server is None:
            server = self._create_server(platform, values)
        elif server.status == "SHUTOFF" and not server.task_state:
            self.conn.compute.start_server(server)
        try:
            return as_resource("server", self.belongings.wait_for(server, "ACTIVE"))
        except NotRunError as error:
            return self._make_second_server(platform, values, server, error)

    def _create_server(self, platform: Platform, values: dict[str, str]) -> Any:
        return self.conn.compute.create_server(
            name=platform.machine_name,
            flavor_id=values[_flavor_of(platform)],
            image_id=values["image"],
            key_name=resource_name(platform),
            networks=[{"uuid": values["network"] or self.belongings.needed("networks", platform).id}],
            security_groups=[{"name": self.belongings.needed("security_groups", platform).id}],
            metadata=metadata(platform, self.conn.current_user_id),
            user_data=base64.b64encode(user_data(platform).encode()).decode(),
            # most images ask for it by IPv4 only
            **({"config_drive": True} if values.get("ipv6_only") else {}),
        )

    def _make_second_server(
        self, platform: Platform, values: dict[str, str], first: Any, error: NotRunError
    ) -> Resource:
        """Once more: with the next flavor that serves where no host has room for this one, else on whatever host.

        Raises the first server's error when there is no other flavor, and leaves that server for the user to see.
        """
        if error.no_host:
            kind = _flavor_of(platform)
            flavor = self.choosing.next_flavor(platform, values["image"], values[kind])
            if flavor is None:
                raise error
            fact = kind.replace("_", " ")
            record, before = platform.record, platform.record.facts.get(fact, "").partition(" (")[0]
            record.values[kind] = values[kind] = flavor.id
            record.facts[fact] = f"{flavor.name} ({flavor}), as no host had room for {before}"
            platform.folder.save(record)
            how = f"with the flavor {flavor.name} ({flavor})"
        else:
            how = "with the same flavor"
        _log.warning("%s Trying once more, %s.", error.message, how)
        self.belongings.remove_server(first.id)
        return as_resource("server", self.belongings.wait_for(self._create_server(platform, values), "ACTIVE"))

    def _find_address(self, platform: Platform, _: dict[str, str]) -> Resource | None:
        found = self.belongings.only("ips", platform)
        if found and found.port_id and is_tagged(found, platform):
            return Resource(kind="floating IP", id=found.id, name=found.floating_ip_address)
        return None

    def _make_address(self, platform: Platform, values: dict[str, str]) -> Resource:
        neutron = self.conn.network
        port = self.belongings.port(platform)
        address = self.belongings.ours("ips", platform)
        if address is None:
            address = neutron.create_ip(
                floating_network_id=values["external"], port_id=port.id, description=mark(platform)
            )
        elif address.port_id != port.id:
            address = neutron.update_ip(address, port_id=port.id)
        made = self._tagged("floating IP", address, platform)
        return made.model_copy(update={"name": address.floating_ip_address})

    def _tagged(self, kind: str, made: Any, platform: Platform) -> Resource:
        self.conn.network.set_tags(made, tags(platform, self.conn.current_user_id))
        return as_resource(kind, made)


def _flavor_of(platform: Platform) -> str:
    """Which of the offer's values is the machine's flavor."""
    return "worker_flavor" if platform.worker else "flavor"


def _missing_rules(group: Any, spec: PlatformSpec) -> list[tuple[int, str]]:
    """Ports (SSH and those asked for) and address families that the group does not admit yet."""
    have = {
        (rule["port_range_min"], rule["ethertype"])
        for rule in group.security_group_rules
        if rule["direction"] == "ingress" and rule["protocol"] == "tcp"
    }
    return [rule for rule in rules(spec) if rule not in have]


def _missing_inner(group: Any, spec: PlatformSpec) -> list[str]:
    """Address families that the group does not admit yet between the machines that are in it."""
    have = {rule["ethertype"] for rule in group.security_group_rules if rule.get("remote_group_id") == group.id}
    # the default rules of some clouds have them already, for one family or both
    return [family for family in FAMILIES if spec.workers and family not in have]


def rules(spec: PlatformSpec) -> list[tuple[int, str]]:
    """Port and address family of each rule of the security group."""
    return [(port, family) for port in (22, *spec.open_ports) for family in FAMILIES]


def user_data(platform: Platform) -> str:
    """What cloud-init is told at the first boot."""
    import jinja2

    template = Path(share() / "templates" / "cloud-init" / "user-data.yaml.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False, keep_trailing_newline=True)  # noqa: S701  (YAML; every value goes through tojson)
    return environment.from_string(template).render(
        name=platform.machine_name,
        user=LOGIN_USER,
        public_key=platform.public_key,
        host_private_key=platform.host_private_key,
        host_public_key=platform.host_public_key,
    )
