"""The clouds: a contract (`base`) and one module for each kind; `open_cloud` is the one place that knows them all."""

from __future__ import annotations

from provision.clouds.base import Cloud
from provision.record import Home


def open_cloud(cloud: str, home: Home) -> Cloud:
    """The cloud that a spec names: `local`, `ssh:USER@HOST[:PORT]`, `paas:URL` or an entry of clouds.yaml.

    Raises UsageError for an unknown entry. Reads configuration only; nothing is asked of the cloud yet.
    """
    if cloud == "local":
        from provision.clouds.local import LocalCloud

        return LocalCloud(home)
    if cloud.startswith("ssh:"):
        from provision.clouds.existing import ExistingHost

        return ExistingHost(cloud, home)
    if cloud.startswith("paas:"):
        from provision.tosca.deployed import DeployedHost

        return DeployedHost(cloud, home)
    from provision.clouds.openstack import OpenStackCloud

    return OpenStackCloud(cloud)
