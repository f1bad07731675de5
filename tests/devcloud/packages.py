"""The Debian packages that the cloud is made of."""

from __future__ import annotations

import fcntl
import os
import platform
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.devcloud.commands import PATH, DevcloudError, attempt, output, run
from tests.devcloud.progress import stage
from tests.devcloud.state import LOG

PACKAGES = [
    *("mariadb-server", "rabbitmq-server", "keystone", "glance", "glance-api", "placement-api"),
    *("nova-api", "nova-conductor", "nova-scheduler", "nova-compute", "nova-compute-qemu"),
    *("neutron-server", "neutron-linuxbridge-agent"),
    *("neutron-dhcp-agent", "neutron-l3-agent", "neutron-metadata-agent"),
    *("cinder-api", "cinder-scheduler", "cinder-volume"),
    *("libvirt-daemon-system", "libvirt-clients", "libvirt-daemon-driver-lxc"),
    *("uwsgi-core", "uwsgi-plugin-python3", "python3-pymysql"),
    *("iproute2", "iptables", "ebtables", "ipset", "conntrack", "dnsmasq-base", "dnsmasq-utils", "haproxy"),
    *("util-linux", "e2fsprogs", "mmdebstrap"),
]
# Maintainer scripts ask this program whether they may start a service (invoke-rc.d(8)); 101 means no
_POLICY = Path("/usr/sbin/policy-rc.d")
_NO_SERVICES = "#!/bin/sh\n# made by mlaas4hep's development cloud for the time of an installation\nexit 101\n"


def debian_codename() -> str:
    """Codename of this Debian.

    Raises:
        DevcloudError: this computer has another system than Debian 12.
    """
    try:
        release = platform.freedesktop_os_release()
    except OSError:
        release = {"ID": "", "PRETTY_NAME": platform.system()}
    if (release["ID"], release.get("VERSION_ID")) != ("debian", "12"):
        system = release["PRETTY_NAME"]
        raise DevcloudError(f"the development cloud is made of Debian 12 packages; this computer has {system}")
    return release["VERSION_CODENAME"]


def missing(names: Sequence[str] = PACKAGES) -> list[str]:
    """Packages that are not installed."""
    listing = attempt("dpkg-query", "-W", "-f", "${Package} ${db:Status-Status}\n", *names)
    there = {line.split()[0] for line in listing.splitlines() if line.endswith(" installed")}
    return [name for name in names if name not in there]


def install(names: Sequence[str] = PACKAGES) -> None:
    """Install what is missing; none of it is started."""
    debian_codename()
    todo = missing(names)
    if not todo:
        print(f"all {len(names)} packages are installed")
        return
    LOG.mkdir(parents=True, exist_ok=True)
    # nothing but a crash of this computer asks for each file to be on the disk before the next one is unpacked
    apt = ("apt-get", "-q", "-o", "DPkg::Lock::Timeout=600", "-o", "Dpkg::Options::=--force-unsafe-io")
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "PATH": PATH}
    with stage(f"{len(todo)} packages"), _alone(), _no_service_starts():
        run(*apt, "update", log=LOG / "install.log", env=env)
        run(*apt, "install", "-y", "--no-install-recommends", *todo, log=LOG / "install.log", env=env)


@contextmanager
def _alone() -> Iterator[None]:
    """One installation at a time: the end of one would lift the policy of another."""
    with (LOG / "install.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def _no_service_starts() -> Iterator[None]:
    """Forbid services to start; a policy that somebody else made stays as it is."""
    if _POLICY.exists() and _POLICY.read_text() != _NO_SERVICES:
        yield
        return
    _POLICY.write_text(_NO_SERVICES)
    _POLICY.chmod(0o755)
    try:
        yield
    finally:
        _POLICY.unlink()


def openstack_versions() -> str:
    """Versions of the OpenStack packages, on which the databases' schemas depend."""
    return output(
        "dpkg-query", "-W", *(p for p in PACKAGES if re.match("keystone|glance|placement|nova|neutron|cinder", p))
    )
