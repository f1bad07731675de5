"""A machine that exists already and is reached by SSH, for instance one made in a cloud's dashboard.

Nothing is made but what the roles install, and deleting forgets the machine without touching it.
"""

from __future__ import annotations

import re
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from provision.clouds._precheck import PROBE, examine
from provision.clouds.base import Cloud, MachineState, Offer, Platform, Step
from provision.errors import ProvisionError, UsageError
from provision.record import Access, Home, Resource
from provision.remote import CONNECT_SECONDS, Remote, write_known_hosts
from provision.spec import PlatformSpec

_ADDRESS = re.compile(
    r"^ssh:(?P<user>[A-Za-z_][A-Za-z0-9._-]*)@(?P<host>[A-Za-z0-9][A-Za-z0-9.-]*|\[[0-9A-Fa-f:]+\])"
    r"(:(?P<port>\d{1,5}))?$"
)


@dataclass(frozen=True)
class _Settings:
    """What the user's own ssh configuration says of the host."""

    hostname: str
    port: int
    identities: tuple[str, ...]


class ExistingHost(Cloud):
    """One host, `ssh:USER@HOST[:PORT]`, an IPv6 address in brackets; the user's ssh configuration holds."""

    kind = "existing"

    def __init__(self, cloud: str, home: Home) -> None:
        found = _ADDRESS.match(cloud)
        if not found:
            raise UsageError(f"{cloud!r} names no host.", "Write ssh:USER@HOST or ssh:USER@HOST:PORT.")
        self.user, self.host, self.port = found["user"], found["host"].strip("[]"), int(found["port"] or 0)
        self.home = home

    def check(self, spec: PlatformSpec, *, baked: str = "") -> Offer:
        """See the contract: the host's key is known, and the roles can be applied to it (`_precheck`)."""
        if spec.data_volume:
            raise UsageError(
                "A machine that exists already gets no data volume: its disks are its owner's.",
                "Leave out --data-volume.",
            )
        if spec.image or spec.network or spec.ports:
            raise UsageError("image, network and ports cannot be chosen for a machine that exists already.")
        self._taken(spec)
        self._host_keys(self._settings())
        jump = ["-J", spec.jump] if spec.jump else []
        command = ["ssh", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=yes", *jump]
        command += ["-o", f"ConnectTimeout={CONNECT_SECONDS}", *(["-p", str(self.port)] if self.port else [])]
        before = time.time()
        done = subprocess.run(
            [*command, f"{self.user}@{self.host}", "--", "sh"], input=PROBE, capture_output=True, text=True, check=False
        )
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no answer"])[-1]
            raise ProvisionError(
                f"{self.user}@{self.host} cannot be used: {reason}.",
                f"`ssh {self.user}@{self.host} sudo -n true` must work without any question.",
            )
        host = examine(done.stdout, before, time.time())
        if bad := [check for check in host.checks if not check.good]:
            words = "; ".join(f"{check.name}: {check.found} ({check.needed})" for check in bad)
            raise ProvisionError(
                f"{self.user}@{self.host} cannot be used: {words}.",
                "Mend that on the machine, or choose another one.",
                details="\n".join(f"{'ok ' if c.good else 'BAD'} {c.name}: {c.found}" for c in host.checks),
            )
        return Offer(facts={"machine": f"{self.host}: {host.facts}"}, checks=host.checks)

    def _taken(self, spec: PlatformSpec) -> None:
        for folder in self.home.folders():
            if folder.load().spec.cloud == spec.cloud:
                raise UsageError(f"{self.user}@{self.host} is the platform {folder.name} already.")

    def _settings(self) -> _Settings:
        command = ["ssh", "-G", *(["-p", str(self.port)] if self.port else []), f"{self.user}@{self.host}"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        pairs = [line.partition(" ")[::2] for line in done.stdout.splitlines()]
        words = dict(pairs)
        keys = tuple(v for k, v in pairs if k == "identityfile" and Path(v).expanduser().exists())
        return _Settings(words["hostname"], int(words["port"]), keys)

    def _host_keys(self, settings: _Settings) -> list[str]:
        """The host's keys as the user's known_hosts has them; they are the only ones that are accepted."""
        names = {self.host, settings.hostname}
        if settings.port != 22:
            names = {f"[{name}]:{settings.port}" for name in names}
        keys = []
        for name in sorted(names):
            done = subprocess.run(["ssh-keygen", "-F", name], capture_output=True, text=True, check=False)
            keys += [
                " ".join(line.split()[1:3]) for line in done.stdout.splitlines() if line and not line.startswith("#")
            ]
        if not keys:
            port = f"-p {settings.port} " if settings.port != 22 else ""
            raise ProvisionError(
                f"The host key of {self.host} is not known on this computer: any machine could answer for it.",
                f"Connect once by hand and compare the fingerprint: `ssh {port}{self.user}@{self.host}`.",
            )
        return sorted(set(keys))

    def steps(self, platform: Platform, offer: Offer) -> list[Step]:
        """See the contract."""
        del offer

        def find() -> Resource | None:
            return self._resource() if platform.folder.known_hosts.exists() else None

        def make() -> Resource:
            write_known_hosts(platform.folder, platform.uid, *self._host_keys(self._settings()))
            return self._resource()

        return [Step("host", f"known host key of {self.host}", 1, find, make)]

    def _resource(self) -> Resource:
        return Resource(kind="host", id=self.host, name=self.host, ours=False)

    def access(self, platform: Platform) -> Access:
        """See the contract."""
        settings = self._settings()
        identities = settings.identities or ("~/.ssh/id_ed25519",)
        return Access(
            host=settings.hostname, user=self.user, port=settings.port, jump=platform.spec.jump, identities=identities
        )

    def discover(self, platform: Platform) -> list[Resource]:
        """Nothing of the machine was made by the toolkit."""
        return []

    def remove(self, platform: Platform, resource: Resource) -> None:
        """Nothing of the machine is removed."""

    def state(self, platform: Platform) -> MachineState:
        """See the contract; a host that does not answer may be stopped or out of reach."""
        with Remote(platform.folder) as remote:
            return "running" if remote.answers() else "stopped"

    def start(self, platform: Platform) -> None:
        """Refuse: the machine is not ours to start."""
        raise UsageError(f"{self.host} was not made by the toolkit; start it where it was made.")

    def stop(self, platform: Platform) -> None:
        """Refuse: the machine is not ours to stop."""
        raise UsageError(f"{self.host} was not made by the toolkit; stop it where it was made.")
