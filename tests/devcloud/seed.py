"""What a new cloud holds: the catalog, two projects with a user each, the image, flavors, networks and quotas.

Everything is made once, on an empty cloud; see `state.is_complete`.
"""

from __future__ import annotations

import secrets
from ipaddress import IPv4Network
from typing import Any

import yaml

from tests.devcloud import guest
from tests.devcloud.commands import DevcloudError
from tests.devcloud.configuration import KEYSTONE
from tests.devcloud.services import CINDER_PORT, GLANCE_PORT, NEUTRON_PORT, NOVA_PORT, PLACEMENT_PORT
from tests.devcloud.state import CLOUDS, GUEST_IMAGE

# Name in clouds.yaml: user, whose password is the same word, and project
USERS = {"devcloud-admin": ("admin", "admin"), "devcloud": ("alice", "physics"), "devcloud-other": ("mallory", "other")}
SERVICE_TYPES = {
    "image": ("glance", f"http://127.0.0.1:{GLANCE_PORT}"),
    "compute": ("nova", f"http://127.0.0.1:{NOVA_PORT}/v2.1"),
    "placement": ("placement", f"http://127.0.0.1:{PLACEMENT_PORT}"),
    "network": ("neutron", f"http://127.0.0.1:{NEUTRON_PORT}"),
    "volumev3": ("cinder", f"http://127.0.0.1:{CINDER_PORT}/v3"),
}
# vCPUs, MiB of memory, GiB of disk, extra specs; x1.huge is over every quota, g1.medium boots as a normal server
FLAVORS: dict[str, tuple[int, int, int, dict[str, str]]] = {
    "m1.small": (1, 1024, 10, {}),
    "m1.medium": (2, 4096, 20, {}),
    "g1.medium": (2, 4096, 20, {"gpu_number": "1", "gpu_model": "T4", "gpu_vendor": "NVIDIA"}),
    "x1.huge": (64, 262144, 100, {}),
}
COMPUTE_QUOTA = {"instances": 4, "cores": 8, "ram": 16384, "key_pairs": 10}
NETWORK_QUOTA = {
    "floatingip": 4,
    "security_group": 10,
    "security_group_rule": 60,
    "network": 4,
    "subnet": 4,
    "router": 3,  # Neutron counts one in the making twice for a moment, and the tests make two at once
    "port": 30,
}


def auth_of(cloud: str) -> dict[str, str]:
    """The `auth` section of this cloud of clouds.yaml."""
    user, project = USERS[cloud]
    return {
        "auth_url": KEYSTONE,
        "username": user,
        "password": user,
        "project_name": project,
        "user_domain_name": "Default",
        "project_domain_name": "Default",
    }


def connect(cloud: str = "devcloud-admin") -> Any:
    """A connection (openstack.connection.Connection) that reads neither files nor the environment."""
    import openstack

    settings = {"region_name": "RegionOne", "load_yaml_config": False, "load_envvars": False}
    return openstack.connect(auth=auth_of(cloud), **settings)


def identity() -> None:
    """Service users, the catalog, and the two projects with their users."""
    keystone = connect().identity
    role = {
        name: keystone.find_role(name) or keystone.create_role(name=name) for name in ("admin", "member", "service")
    }

    def member(user: str, password: str, project: Any, *roles: str) -> None:
        account = keystone.create_user(name=user, password=password, default_project_id=project.id, domain_id="default")
        for name in roles:
            keystone.assign_project_role_to_user(project, account, role[name])

    services = keystone.create_project(name="service", domain_id="default")
    for kind, (name, url) in SERVICE_TYPES.items():
        member(name, "svc", services, "admin", "service")
        service = keystone.create_service(name=name, type=kind)
        for interface in ("public", "internal", "admin"):
            keystone.create_endpoint(service_id=service.id, interface=interface, url=url, region_id="RegionOne")
    for user, project in (USERS["devcloud"], USERS["devcloud-other"]):
        member(user, user, keystone.create_project(name=project, domain_id="default"), "member")


def image() -> None:
    """Upload the guest image."""
    connect().create_image(
        guest.NAME,
        filename=str(GUEST_IMAGE),
        disk_format="raw",
        container_format="bare",
        visibility="public",
        min_disk=2,
        min_ram=512,
        wait=True,
        timeout=300,
        os_distro="debian",
        os_version="12",
        os_type="linux",
        os_admin_user="debian",
        architecture="x86_64",
    )


def flavors_and_quotas() -> None:
    """Flavors for everybody, and limits for the project physics."""
    cloud = connect()
    for name, (vcpus, ram, disk, extra_specs) in FLAVORS.items():
        flavor = cloud.compute.create_flavor(name=name, vcpus=vcpus, ram=ram, disk=disk)
        if extra_specs:
            cloud.compute.create_flavor_extra_specs(flavor, extra_specs)
    cloud.set_compute_quotas("physics", **COMPUTE_QUOTA)
    cloud.set_network_quotas("physics", **NETWORK_QUOTA)


def networks(external: IPv4Network) -> None:
    """The external network, and one with a router in the project other; physics has only Neutron's defaults."""
    admin = connect().network
    public = admin.create_network(
        name="public",
        is_router_external=True,
        provider_network_type="flat",
        provider_physical_network="physnet1",
    )
    admin.create_subnet(
        name="public-v4",
        network_id=public.id,
        cidr=str(external),
        ip_version=4,
        gateway_ip=str(external[1]),
        is_dhcp_enabled=False,
        allocation_pools=[{"start": str(external[10]), "end": str(external[-10])}],
    )
    other = connect("devcloud-other").network
    private = other.create_network(name="other-net")
    subnet = other.create_subnet(name="other-v4", network_id=private.id, cidr="10.20.0.0/24", ip_version=4)
    router = other.create_router(name="other-router", external_gateway_info={"network_id": public.id})
    other.add_interface_to_router(router, subnet_id=subnet.id)


def clouds_yaml() -> None:
    """Write clouds.yaml, with an application credential of alice made for it."""
    common = {"region_name": "RegionOne", "identity_api_version": 3, "interface": "public"}
    clouds: dict[str, object] = {name: {"auth": auth_of(name), **common} for name in USERS}
    credential = _application_credential()
    clouds["devcloud-appcred"] = {"auth_type": "v3applicationcredential", "auth": credential, **common}
    CLOUDS.touch(mode=0o600)
    text = yaml.safe_dump({"clouds": dict(sorted(clouds.items()))}, sort_keys=False)
    CLOUDS.write_text(f"# made by `up` of the development cloud\n{text}")


def _application_credential() -> dict[str, str]:
    alice, secret = connect("devcloud"), secrets.token_urlsafe(32)
    credential = alice.identity.create_application_credential(
        user=alice.current_user_id, name="devcloud", secret=secret, description="for clouds.yaml"
    )
    if not credential.id:
        raise DevcloudError("Keystone made no application credential")
    return {
        "auth_url": KEYSTONE,
        "application_credential_id": credential.id,
        "application_credential_secret": secret,
    }
