"""The cloud `local`: a machine on this computer, a system container with systemd as PID 1.

Its root folder lies in the platform's folder, its network is a namespace of its own, and both bear the platform's uid.
It shares the kernel with this computer and is no security boundary. See docs/local-machine.md.
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from provision.clouds import _computer, _container, _image, _network
from provision.clouds._baked import BakedImage, LocalImages
from provision.clouds._local_volumes import LocalVolumes
from provision.clouds.base import LOGIN_USER, Cloud, DataVolume, MachineState, Offer, Platform, Quota, Step, Usage
from provision.errors import ProvisionError, UsageError
from provision.record import DATA_VOLUME, Access, Folder, Home, Record, Resource, write_private
from provision.spec import Gpu, PlatformSpec

CONSOLE_LINES = 60
STARTING_SECONDS = 5

_DRIVER_LIBRARY = re.compile(r"lib(cuda|nvcuvid|nvoptix|nvidia-[\w-]+)\.so")


class LocalCloud(Cloud):
    """Machines on this computer."""

    kind = "local"

    def __init__(self, home: Home) -> None:
        self.home = home
        self.data_volumes = LocalVolumes(home.path / "volumes")

    @cached_property
    def recipe(self) -> _image.Recipe:
        """What the root image is made of, read once."""
        return _image.Recipe(_computer.release(), _image.read_settings())

    def images(self) -> LocalImages:
        """See the contract."""
        return LocalImages(self.home.path / "images", self.recipe.digest)

    def root(self, folder: Folder) -> Path:
        """Where the root folder of a machine lies."""
        return _root(folder)

    def check(self, spec: PlatformSpec, made: Record | None = None, *, baked: str = "") -> Offer:
        """See that this computer can make the machine and has room for it; writes nothing."""
        _check_wishes(spec)
        _computer.require_maker()
        recipe = self.recipe
        self._check_image(spec)
        _check_file_system(self.home.path)
        volume_facts, volume_values = self.data_volumes.offer(spec)
        quotas = _affordable(_quotas(spec, self.home, made))
        gpus = _gpus(spec.gpu) if spec.gpu else []
        _network.default_route()
        space = _network.choose_range(recipe.settings.hosts())
        image = self.images().find(baked) if baked else None
        facts = {**self._facts(spec, space, gpus), **self._image(baked, image), **volume_facts}
        values = {"range": str(space), **volume_values} | ({"baked": image.name} if image else {})
        return Offer(facts=facts, quotas=quotas, values=values)

    def _facts(self, spec: PlatformSpec, space: ipaddress.IPv4Network, gpus: list[_Card]) -> dict[str, str]:
        facts = {
            **_size(spec, gpus),
            **self._image(),
            "address range": str(space),
            "limits": f"{_container.limits()}; disk shared with this computer",
        }
        if spec.open_ports:
            ports = ", ".join(map(str, spec.open_ports))
            facts["ports"] = f"{ports}: open to this computer, which alone reaches the machine"
        return facts

    def _check_image(self, spec: PlatformSpec) -> None:
        release = self.recipe.release
        if spec.image not in (None, str(release)):
            raise UsageError(
                f"There is no image {spec.image!r} here: a machine on this computer has the computer's release,"
                f" {release}.",
                f"Leave out --image, or write --image {release}.",
            )

    def _image(self, wanted: str = "", baked: BakedImage | None = None) -> dict[str, str]:
        """Which image a machine is made of, and why not of one that was baked."""
        if baked:
            return {"image": f"{baked.name}, baked {baked.created_at:%Y-%m-%d %H:%M}: has all that the roles install"}
        cached = self.recipe.path(self.home.cache).exists()
        words = "cached" if cached else "made of this computer's package sources, about a minute"
        if wanted and (others := self.images().all()):
            same = any(other.digest == wanted for other in others)
            what = "with other settings of this computer" if same else "of other roles or packages"
            words += f"; not {others[0].name}, which was baked {what}"
        return {"image": f"{self.recipe.release}, {words}"}

    def steps(self, platform: Platform, offer: Offer) -> list[Step]:
        """Image, then of each machine root folder, network, boot."""
        local = _Local(self, platform, offer.values.get("baked", ""))
        volume = Step(
            "data-volume",
            DATA_VOLUME,
            1,
            lambda: self.data_volumes.find(platform),
            lambda: self.data_volumes.make(platform, offer.values),
        )
        title = "baked image" if local.baked else "root image of this computer's packages"
        steps = [Step("image", title, 60, local.find_image, local.make_image)]
        if offer.values.get("volume_gb"):
            steps.append(volume)
        for machine in platform.machines:
            steps += self._machine_steps(machine, offer)
        return steps

    def _machine_steps(self, platform: Platform, offer: Offer) -> list[Step]:
        local = _Local(self, platform, offer.values.get("baked", ""))
        prefix, of = (f"worker-{platform.worker}-", f" of {platform.machine_name}") if platform.worker else ("", "")
        return [
            Step(f"{prefix}root", f"root folder{of}", 15 if local.baked else 5, local.find_root, local.make_root),
            Step(
                f"{prefix}network",
                f"network namespace, address and NAT{of}",
                1,
                local.find_network,
                lambda: local.make_network(offer.values["range"]),
            ),
            Step(f"{prefix}machine", f"boot{of or ' of the machine'}", 2, local.find_machine, local.make_machine),
        ]

    def access(self, platform: Platform) -> Access:
        """The machine's address, once it has one."""
        wire = _Local(self, platform).wire()
        if wire is None:
            raise ProvisionError(
                f"The machine {platform.machine_name} has no address yet.", f"Run: provision start {platform.name}"
            )
        return Access(host=wire.address, user=LOGIN_USER)

    def discover(self, platform: Platform) -> list[Resource]:
        """What this computer holds of the platform, complete or not, without a look at the record."""
        volume = self.data_volumes.find(platform)
        found = [resource for local in self._all(platform) for resource in local.resources()]
        return [*([volume] if volume else []), *found]

    def _all(self, platform: Platform) -> list[_Local]:
        """Every machine whose folder is there; that of a worker is made before, and removed after all else of it."""
        if platform.worker:
            return [_Local(self, platform)]
        told = (path.name.rpartition("-w")[2] for path in sorted(platform.folder.workers.glob(f"{platform.name}-w*")))
        numbers = [0, *sorted(int(number) for number in told if number.isdigit())]
        return [_Local(self, platform.of_worker(number) if number else platform) for number in numbers]

    def remove(self, platform: Platform, resource: Resource) -> None:
        """Remove a machine, its network, its root folder or the data volume."""
        if resource.kind == DATA_VOLUME:
            self.data_volumes.remove(resource.id)
            return
        removers = {
            (found.kind, found.id): remover for local in self._all(platform) for found, remover in local.removers()
        }
        if resource.kind not in ("machine", "network", "root"):
            raise ProvisionError(f"A machine of this computer has no {resource.kind}; {resource} is left alone.")
        # one that is none of them has gone with its folder
        removers.get((resource.kind, resource.id), lambda: None)()

    def volumes(self) -> list[DataVolume]:
        """See the contract."""
        return self.data_volumes.all()

    def keep_volume(self, platform: Platform, resource: Resource) -> None:
        """See the contract."""
        del platform
        self.data_volumes.keep(resource)

    def remove_volume(self, volume: DataVolume) -> None:
        """See the contract."""
        self.data_volumes.remove(volume.name)

    def state(self, platform: Platform) -> MachineState:
        """As the computer's processes say; `error` is a machine without its systemd-nspawn, which `start` repairs."""
        local = _Local(self, platform)
        first, starting = _container.init(local.machine), _container.starting(local.machine)
        if first:
            return "running" if starting else "error"
        if starting:
            return "starting"
        return "stopped" if local.find_root() else "missing"

    def usage(self, platform: Platform) -> Usage:
        """Since when the machine runs; this computer keeps no account of the time before."""
        first = _container.init(_Local(self, platform).machine)
        return Usage(first.started_at if first else None)

    def start(self, platform: Platform) -> None:
        """Start the machine; its network is made again where it is gone, as after a restart of this computer."""
        local = _Local(self, platform)
        if not local.find_root():
            raise ProvisionError(
                f"The machine {platform.machine_name} is gone: there is no root folder {local.root}.",
                f"Run: provision delete {platform.name}",
            )
        if not local.find_network():
            _container.halt(local.machine)
            local.make_network(str(_network.choose_range(self.recipe.settings.hosts())))
        if not local.find_machine():
            local.make_machine()

    def stop(self, platform: Platform) -> None:
        """Shut the machine down; its network stays, so that it keeps its address."""
        _container.halt(_Local(self, platform).machine)

    def check_size(self, platform: Platform, spec: PlatformSpec) -> Offer:
        """See that this computer has enough; the disk is shared with it, so that only the wish changes."""
        gpus = _gpus(spec.gpu) if spec.gpu else []
        quotas = _affordable(_quotas(spec, self.home, platform.record))
        facts = _size(spec, gpus)
        if "gpu" in platform.record.facts:
            facts.setdefault("gpu", "none")
        return Offer(facts=facts, quotas=quotas)

    def resize(self, wanted: Platform) -> None:
        """Boot the machine with other limits."""
        self.stop(wanted)
        self.start(wanted)

    def restore_size(self, platform: Platform) -> None:
        """Boot the machine with its former limits."""
        self.resize(platform)

    def check_workers(self, platform: Platform, spec: PlatformSpec) -> Offer:
        """See that this computer has enough for those that are to come."""
        more = max(spec.workers - platform.record.spec.workers, 0)
        quotas = tuple(
            quota for quota in _quotas(spec.model_copy(update={"workers": more - 1}), self.home, None) if more
        )
        return Offer(facts=_size(spec, _gpus(spec.gpu) if spec.gpu else []), quotas=_affordable(quotas))

    def check_image(self, platform: Platform, spec: PlatformSpec, *, baked: str = "") -> Offer:
        """The computer's release is the only system there is, plain or baked."""
        del platform
        _computer.require_maker()
        self._check_image(spec)
        image = self.images().find(baked) if baked else None
        return Offer(facts=self._image(baked, image), values={"baked": image.name if image else ""})

    def rebuild(self, platform: Platform) -> None:
        """Make the root folder anew; the network stays, and with it the address."""
        _Local(self, platform, platform.record.values.get("baked", "")).renew_root()
        self.start(platform)

    def console(self, platform: Platform) -> str:
        """The end of what the machine has written since it was started."""
        return _computer.end(_Local(self, platform).machine.console, CONSOLE_LINES)


class _Local:
    """One machine of a platform on this computer: where it lies, and its steps."""

    def __init__(self, cloud: LocalCloud, platform: Platform, baked: str = "") -> None:
        self.cloud = cloud
        self.platform = platform
        self.baked = baked
        self.uid = _image.machine_uid(platform)
        self.folder = platform.machine_folder.machine
        self.root = _root(platform.machine_folder)
        self.machine = _container.Machine(
            uid=self.uid, root=self.root, network=_network.path(self.uid), console=self.folder / "console.log"
        )

    def image(self) -> Path:
        """What the root folder is made of; the plain image where the baked one has gone since it was chosen."""
        baked = self.cloud.images().path(self.baked) if self.baked else None
        return baked if baked and baked.exists() else self.cloud.recipe.path(self.cloud.home.cache)

    def find_image(self) -> Resource | None:
        image = self.image()
        return _shared(image) if image.exists() or self.find_root() else None

    def make_image(self) -> Resource:
        return _shared(_image.build(self.cloud.recipe, self.cloud.home.cache))

    def root_resource(self) -> Resource:
        return Resource(kind="root", id=str(self.root))

    def find_root(self) -> Resource | None:
        return self.root_resource() if _image.marked(self.root, self.uid) else None

    def _built_image(self) -> Path:
        image = self.image()
        return image if image.exists() else _image.build(self.cloud.recipe, self.cloud.home.cache)

    def make_root(self) -> Resource:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _image.make_root(self._built_image(), self.root, self.platform, _network.resolver())
        return self.root_resource()

    def renew_root(self) -> None:
        """Put a new root folder in the place of one whose host key is not the platform's."""
        former = self.root.with_name("root.former")
        if self.find_root() and not _image.has_host_key(self.root, self.platform.host_public_key):
            self._built_image()  # before anything is lost
            _container.halt(self.machine)
            _computer.remove_tree(former)
            self.root.rename(former)
        if not self.find_root():
            self.make_root()
        _computer.remove_tree(former)

    @property
    def places(self) -> list[Path]:
        """The machine's folder, and the name that it bears while it is removed: half a root is none."""
        return [self.folder, self.folder.with_name(f"{self.folder.name}.gone")]

    def remove_root(self) -> None:
        """Remove the machine's folder; refuses while the machine runs or something is mounted there."""
        if _container.traces(self.machine):
            raise ProvisionError(f"{self.folder} is not removed: the machine is still there.", "Stop it first.")
        folder, gone = self.places
        _computer.remove_tree(gone)
        if folder.exists() and not _computer.mounts_below(folder):
            folder.rename(gone)
        for place in (folder, gone):
            _computer.remove_tree(place)

    def resources(self) -> list[Resource]:
        """What there is of it, in the order in which it was made."""
        (root, _), (network, _), (machine, _) = self.removers()
        found = [root] if any(place.exists() for place in self.places) else []
        found += [network] if _network.traces(self.uid) else []
        return found + ([machine] if _container.traces(self.machine) else [])

    def removers(self) -> list[tuple[Resource, Callable[[], None]]]:
        """How each of the things that it can have is removed."""
        network = Resource(kind="network", id=_network.namespace(self.uid))
        machine = Resource(kind="machine", id=self.machine.name)
        return [
            (self.root_resource(), self.remove_root),
            (network, lambda: _network.disconnect(self.uid)),
            (machine, lambda: _container.halt(self.machine)),
        ]

    @property
    def wire_file(self) -> Path:
        return self.folder / "network.json"

    def wire(self) -> _network.Wire | None:
        try:
            network = json.loads(self.wire_file.read_text())["network"]
        except FileNotFoundError:
            return None
        return _network.Wire(self.uid, ipaddress.IPv4Network(network))

    def network_resource(self, wire: _network.Wire) -> Resource:
        details = {"address": wire.address, "gateway": wire.gateway, "link": _network.link(self.uid)}
        return Resource(kind="network", id=_network.namespace(self.uid), details=details)

    def find_network(self) -> Resource | None:
        wire = self.wire()
        return self.network_resource(wire) if wire and _network.connected(wire) else None

    def make_network(self, space: str) -> Resource:
        wire = _network.connect(self.uid, ipaddress.IPv4Network(space), self.wire())
        write_private(self.wire_file, json.dumps({"network": str(wire.network)}).encode())
        return self.network_resource(wire)

    def machine_resource(self, first: _computer.Process) -> Resource:
        details = {"pid": str(first.pid), "start": str(first.start), "boot": _computer.boot_id()}
        return Resource(kind="machine", id=self.machine.name, details=details)

    def find_machine(self) -> Resource | None:
        """The machine, if it runs in its network; one that is only just starting is waited for."""
        end = time.monotonic() + STARTING_SECONDS
        while _container.starting(self.machine):
            first = _container.init(self.machine)
            if first and _container.in_network(first, self.machine.network):
                return self.machine_resource(first)
            if time.monotonic() > end:
                break
            time.sleep(0.05)
        return None

    def make_machine(self) -> Resource:
        _container.halt(self.machine)
        _image.replace_file(self.root, "etc/resolv.conf", _network.resolver(), 0o644)
        spec = self.platform.spec
        paths = _driver(_gpus(spec.gpu)) if spec.gpu else []
        # the folder of data that a worker shares is a file system in user space
        paths += ["/dev/fuse"] if self.platform.worker else []
        share = _container.Share(spec.cpus, spec.memory, paths, self._data())
        return self.machine_resource(_container.boot(self.machine, share))

    def _data(self) -> Path | None:
        """The data volume; raises ProvisionError when the machine should have one and it is gone."""
        if self.platform.spec.data_volume is None:
            return None
        volume = self.cloud.data_volumes.ours(self.uid)
        if volume is None or not self.cloud.data_volumes.data(volume).is_dir():
            raise ProvisionError(
                f"The data volume of {self.platform.name} is gone: there is none of it in"
                f" {self.cloud.data_volumes.folder}.",
                "Bring that folder back from a backup, or delete the platform.",
            )
        return self.cloud.data_volumes.data(volume)


def _root(folder: Folder) -> Path:
    return folder.machine / "root"


def _shared(image: Path) -> Resource:
    return Resource(kind="image", id=str(image), ours=False)


def _check_wishes(spec: PlatformSpec) -> None:
    if spec.network:
        raise UsageError(
            f"A machine on this computer has a network of its own and joins no other ({spec.network!r}).",
            "Leave out --network.",
        )
    if spec.jump:
        raise UsageError("A machine on this computer is reached directly.", "Leave out the jump host.")


def _affordable(quotas: tuple[Quota, ...]) -> tuple[Quota, ...]:
    """The same; raises ProvisionError when the computer has less."""
    for quota in quotas:
        if quota.exceeded:
            raise ProvisionError(
                f"This computer has not enough for the machine: {quota.name} {quota.limit}, wanted {quota.needed}.",
                "Ask for less (--cpus, --memory, --disk) or use another cloud.",
            )
    return quotas


def _size(spec: PlatformSpec, gpus: list[_Card]) -> dict[str, str]:
    each = f", and as much for each of {spec.workers} workers" if spec.workers else ""
    size = f"{spec.cpus} CPU{'s' * (spec.cpus > 1)}, {spec.memory:g} GB"
    facts = {"machine": f"system container: {size} of this computer{each}"}
    if gpus:
        facts["gpu"] = ", ".join(card.model for card in gpus)
    return facts


def _check_file_system(path: Path) -> None:
    """Refuse a file system on which a root folder would not work."""
    place = _computer.existing(path)
    flags = os.statvfs(place).f_flag
    wrong = [name for name in ("nosuid", "nodev", "noexec") if flags & getattr(os, f"ST_{name.upper()}")]
    if wrong:
        raise ProvisionError(
            f"{place} is mounted {','.join(wrong)}: a machine's root folder would not work there.",
            "Set PROVISION_HOME to a folder of another file system.",
        )


def _quotas(spec: PlatformSpec, home: Home, made: Record | None) -> tuple[Quota, ...]:
    """What the computer has, and what the machines need of it (whole gigabytes); a root that is there needs no more.

    CPUs are the computer's own for each machine, which get them in turn.
    """
    done = made is not None and _image.marked(_root(home.folder(made.name)), made.uid)
    machines = 1 + spec.workers
    disk = 0 if done else -int(-spec.disk * machines // 1)
    return (
        Quota("CPUs", _computer.cpus(), 0, spec.cpus),
        Quota("memory (GB)", int(_computer.memory()), 0, -int(-spec.memory * machines // 1)),
        Quota("free disk (GB)", int(_computer.free_disk(home.path)), 0, disk),
    )


@dataclass(frozen=True)
class _Card:
    """A GPU of this computer, as NVIDIA's kernel driver describes it."""

    model: str
    minor: str


def _gpus(wish: Gpu) -> list[_Card]:
    """The GPUs of this computer that fulfil the demand; raises ProvisionError when there are too few."""
    cards = []
    for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        facts = dict(line.partition(":")[::2] for line in path.read_text().splitlines())
        card = _Card(facts.get("Model", "").strip(), facts.get("Device Minor", "").strip())
        if wish.model.lower() in card.model.lower() and Path(f"/dev/nvidia{card.minor}").exists():
            cards.append(card)
    if len(cards) < wish.count:
        raise ProvisionError(
            f"This computer has {len(cards)} of the wanted GPUs ({wish}) with a loaded NVIDIA driver (/dev/nvidia*).",
            "Leave out --gpu, or use a cloud that has GPUs.",
        )
    return cards[: wish.count]


def _driver(cards: list[_Card]) -> list[str]:
    """Device files of the cards, and the libraries of the driver, which must be of the kernel module's version."""
    shared = ("nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "nvidia-modeset", "nvidia-caps")
    names = [*(f"nvidia{card.minor}" for card in cards), *shared]
    paths = [f"/dev/{name}" for name in names if Path("/dev", name).exists()]
    libraries = [line.rpartition("=> ")[2] for line in _computer.run("ldconfig", "-p").splitlines() if "=> " in line]
    paths += [library for library in libraries if _DRIVER_LIBRARY.match(Path(library).name)]
    return paths + ["/usr/bin/nvidia-smi"] * Path("/usr/bin/nvidia-smi").exists()
