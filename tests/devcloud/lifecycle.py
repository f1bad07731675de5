"""Up, down, status and outages: the life of the cloud as a whole."""

from __future__ import annotations

import os
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

from tests.devcloud import configuration, databases, guest, network, packages, processes, seed, services, state
from tests.devcloud.commands import DevcloudError, attempt, output
from tests.devcloud.progress import stage, until
from tests.devcloud.services import SERVICES
from tests.devcloud.state import CLOUDS, DATA, DIR, GROUP, IS_UP, LOG, RABBITMQ

DOWN = 3  # exit status of `status`, as systemctl has it
_APIS = ("placement", "glance", "neutron-server", "nova-api", "nova-metadata", "cinder-api")
_BEHIND_APIS = ("nova-conductor", "nova-scheduler", "cinder-workers", "libvirtd")
_AGENTS = tuple(f"neutron-{name}-agent" for name in services.NEUTRON_AGENTS)


def up() -> None:
    """From nothing, or from what `down` left, to a cloud that boots servers.

    Raises:
        DevcloudError: this computer cannot have it, or a service does not start; `down` cleans up.
    """
    if IS_UP.exists() and services.running():
        stopped = [name for name in SERVICES if name not in services.running()]
        print(f"up already: {CLOUDS}" + (f" (stopped: {' '.join(stopped)}; see `start`)" if stopped else ""))
        return
    begin = datetime.now(UTC)
    with stage("checks"):
        _check()
        route, external = network.default_route(), network.external_range()
        stamp = state.stamp(packages.openstack_versions(), str(external))
        new = not state.is_complete(stamp)
        if new:
            state.wipe()
    with stage(f"configuration, {external} by {route.device}"):
        _configure(route, external)
    if new:
        _start_new(begin, external)
        state.completed(stamp)
    else:
        _start_again(begin)
    IS_UP.touch()
    print(f"{'up':<36}{(datetime.now(UTC) - begin).total_seconds():6.1f} s\n{CLOUDS}")


def _check() -> None:
    """Check everything first, so that a cloud which cannot be is not half made."""
    packages.debian_codename()
    if todo := packages.missing():
        raise DevcloudError(f"{len(todo)} packages are missing ({' '.join(todo[:4])} ...): run `install`")
    if not guest.is_built():
        raise DevcloudError("there is no guest image: run `image`")
    if not re.fullmatch(r"[\w./+-]{1,80}", str(DIR)):
        raise DevcloudError(f"choose a shorter or plainer DEVCLOUD_DIR than {DIR}: sockets and scripts take its name")
    if services.running() or processes.strays():
        raise DevcloudError("a part of the cloud runs, left by an `up` that did not end: run `down` first")
    for name, service in SERVICES.items():
        if service.port is not None and services.listening(service.port):
            raise DevcloudError(f"port {service.port} of 127.0.0.1, which {name} needs, is in use")
    network.check_free()


def _configure(route: network.DefaultRoute, external: IPv4Network) -> None:
    shutil.rmtree(RABBITMQ, ignore_errors=True)  # messages of an earlier life
    state.make_directories()
    for path in LOG.glob("*"):
        if path.name not in ("install.log", "image.log"):
            path.unlink()
    configuration.render(route)
    network.open_bridge(route, external)


def _start_new(begin: datetime, external: IPv4Network) -> None:
    """Start the services on empty databases and fill those, as much as possible at the same time."""
    with ThreadPoolExecutor() as pool:
        with stage("mariadb, rabbitmq"):
            services.start("rabbitmq")
            databases.make_files()
            services.start("mariadb")
            services.wait_for("mariadb")
        with stage("keystone"):
            filling = [pool.submit(databases.fill_nova), pool.submit(databases.fill_others)]
            databases.fill_keystone()
            services.start("keystone")
            services.wait_for("keystone")
        with stage("users, catalog"):
            seed.identity()
        with stage("databases"):
            for task in filling:
                task.result()
            services.wait_for("rabbitmq")
        with stage("APIs"):
            services.start(*_APIS, *_BEHIND_APIS)
            services.wait_for(*_APIS)
        uploading = pool.submit(seed.image)
        with stage("nova-compute, Neutron's agents"):
            _start_workers(begin)
            databases.map_compute_host()
        with stage("image into Glance"):
            uploading.result()
    with stage("flavors, networks, clouds.yaml"):
        seed.flavors_and_quotas()
        seed.networks(external)
        seed.clouds_yaml()


def _start_again(begin: datetime) -> None:
    """Start the services on what an earlier life left; Nova starts the servers that were running."""
    with stage("mariadb, rabbitmq"):
        services.start("mariadb", "rabbitmq")
        services.wait_for("mariadb", "rabbitmq")
    with stage("keystone, APIs"):
        services.start("keystone", *_APIS, *_BEHIND_APIS)
        services.wait_for("keystone", *_APIS)
    with stage("nova-compute, Neutron's agents"):
        _start_workers(begin)


def _start_workers(begin: datetime) -> None:
    """Start what does the work on this computer, and wait until each has reported itself since `begin`."""
    services.start(*_AGENTS)
    log = processes.log_file("libvirtd")
    until("libvirtd", lambda: "Using library" in services.virsh("version"), log)
    until("devices of volumes", _volumes_have_devices, LOG / "cinder.log")  # Nova starts servers at once
    services.start("nova-compute")
    cloud = seed.connect()

    def compute_reports() -> bool:
        found = cloud.compute.services(binary="nova-compute")
        return any(entry.state == "up" and _since(begin, entry.updated_at) for entry in found)

    def agents_report() -> bool:
        found = [entry for entry in cloud.network.agents() if entry.is_alive]
        return len([entry for entry in found if _since(begin, entry.last_heartbeat_at)]) == len(_AGENTS)

    until("nova-compute", compute_reports, LOG / "nova-compute.log", every=1)
    until("Neutron's agents", agents_report, LOG / "neutron-server.log", every=1)


def _volumes_have_devices() -> bool:
    """Whether Cinder has given each volume in use its loop device again."""

    def backing(link: Path) -> str:
        file = Path("/sys/block") / link.readlink().name / "loop/backing_file"
        return file.read_text().strip() if file.exists() else ""

    volumes = DATA / "cinder"
    return all(backing(link) == str(volumes / "files" / link.name) for link in (volumes / "devices").glob("*"))


def _since(begin: datetime, report: Any) -> bool:
    """Whether a service reported after `begin`; the cloud writes UTC, to the second, without saying so."""
    return bool(report) and datetime.fromisoformat(report).replace(tzinfo=UTC) >= begin.replace(microsecond=0)


def down() -> None:
    """Stop servers and services, and give the network of this computer back; the state is kept."""
    with stage("servers"):
        processes.stop("nova-compute")  # or it would report them as shut down by somebody else
        for name in services.servers():
            services.virsh("destroy", name)
    with stage("processes"):
        others = [name for name in SERVICES if name not in ("mariadb", "rabbitmq")]
        processes.end(lambda: set().union(*map(processes.family, others)))
        processes.end(lambda: processes.family("rabbitmq") | processes.family("mariadb"), patience=20)
        processes.end(processes.strays)
        processes.forget_all()
        IS_UP.unlink(missing_ok=True)
    with stage("network, mounts, loop devices"):
        network.close()
        _release_disks()
        _remove_groups()


def _release_disks() -> None:
    """Unmount what a killed service left below the state directory, and detach loop devices from its files."""
    mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    for place in reversed([place for place in mounts if place.startswith(f"{DIR}/")]):
        attempt("umount", "-l", place)
    for line in output("losetup", "--list", "--noheadings", "--output", "NAME,BACK-FILE").splitlines():
        device, _, file = line.partition(" ")
        if file.strip().startswith(f"{DIR}/"):
            attempt("losetup", "--detach", device)


def _remove_groups() -> None:
    """Remove the cloud's control groups, in which nothing runs any more."""

    def gone(group: Path) -> bool:
        for folder, _, _ in os.walk(group, topdown=False):
            with suppress(OSError):  # for a moment, processes that are gone still keep their group busy
                Path(folder).rmdir()
        return not group.exists()

    for group in Path("/sys/fs/cgroup").glob(f"*/{GROUP}"):
        until(f"{group} is removed", partial(gone, group), processes.log_file("libvirtd"))


def purge() -> None:
    """`down`, and delete the state; the guest image stays."""
    down()
    with stage("state"):
        state.wipe()


def status() -> int:
    """Show the services; returns the exit status, 0 when the cloud is up."""
    families = {name: processes.family(name) for name in SERVICES}
    for name, family in families.items():
        pid, port = processes.pid(name), SERVICES[name].port
        columns = f"{'running' if pid else 'stopped':<9}{pid or '-':>8}{processes.memory(family):>7} MiB"
        print(f"{name:<28}{columns}" + (f"  :{port}" if port else ""))
    members: set[int] = set().union(*families.values())
    helpers = processes.strays() - members
    print(f"{'helpers (dnsmasq, haproxy ...)':<37}{len(helpers):>8}{processes.memory(helpers):>7} MiB")
    used = output("du", "-sh", DIR).split()[0] if DIR.exists() else "0"
    memory = processes.memory(members | helpers)
    print(f"servers running: {len(services.servers())}; memory of the services: {memory} MiB; state: {used} in {DIR}")
    running = len(services.running())
    is_up = IS_UP.exists() and running > 0
    if is_up:
        print("the cloud is up" + ("" if running == len(SERVICES) else ", with stopped services"))
    else:
        print("the cloud is " + ("partly up: run `down`" if running or helpers else "down"))
    return 0 if is_up else DOWN


def _check_up() -> None:
    if not IS_UP.exists():
        raise DevcloudError("the cloud is not up")


def stop_service(name: str) -> None:
    """Begin an outage."""
    _check_up()
    with stage(f"stop {name}"):
        processes.stop(name)


def start_service(name: str) -> None:
    """End an outage: start the service and wait until it answers."""
    _check_up()
    with stage(f"start {name}"):
        if processes.pid(name) is None:
            services.start(name)
        services.wait_for(name)
