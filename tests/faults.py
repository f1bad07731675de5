"""Faults of a cloud: a transport that makes chosen calls of the SDK fail, over a real cloud.

`OS_CLIENT_CONFIG_FILE=clouds.yaml python -m tests.faults CLOUD` tries every call of sign-in, create, scale, stop,
start, resize and delete with every kind of fault, and writes the table of docs/faults.md as it goes. That takes hours;
`python -m tests.faults CLOUD PART...` tries some of PARTS only, so that several projects share the work. The suite
tries the dangerous ones, several in one command, and compares.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import requests
from keystoneauth1.session import TCPKeepAliveAdapter

from provision.clouds.base import Offer, Platform, Step
from provision.clouds.openstack import OpenStackCloud
from provision.errors import ProvisionError
from provision.plan import Plan, make_plan, undo
from provision.record import DATA_VOLUME, Home, Resource
from provision.scale import Scale
from provision.spec import PlatformSpec
from tests.conftest import REPOSITORY, Silent
from tests.devcloud.fixtures import TestCloud, connect, listing

PAGE = REPOSITORY / "docs" / "faults.md"
KINDS = {
    "error": "it answers with an error (503), and nothing was done",
    "broken": "the connection breaks, and nothing was done",
    "lost": "the work is done, and the connection breaks before the answer",
    "late": "no answer comes in time, and the work is done later, when the command has looked and asks again",
}
"""Kinds of fault. A call that only reads has no work that could be done or not: it has two of them."""
READ_KINDS = ("error", "late")
COMPLETES, NEXT = "completes", "next command"
WORKER = "worker-1"

_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}|(?<=/)[0-9a-f]{32}\b")
_NAME = re.compile(r"provision-[a-z0-9-]+")


def call_of(request: requests.PreparedRequest) -> str:
    """The call without what is different each time: method, path with `{id}` for each identifier, and action."""
    path = _NAME.sub("{name}", _ID.sub("{id}", str(request.path_url).partition("?")[0]))
    action = ""
    if path.endswith("/action") and request.body:
        action = f" {next(iter(json.loads(request.body)))}"
    return f"{request.method} {path}{action}"


@dataclass
class Faults:
    """What is to fail, and what did.

    Args:
        kind: one of KINDS.
        lasting: whether the calls go on failing, or each fails once.
        spared: calls that do not fail.
        most: how many different calls fail; the first ones that are not spared.
        reads: whether calls that only read fail, too.

    Attributes:
        hit: the calls that failed.
    """

    kind: str
    lasting: bool
    spared: frozenset[str] = frozenset()
    most: int = 1
    reads: bool = True
    hit: list[str] = field(default_factory=list)
    _late: dict[str, Callable[[], object]] = field(default_factory=dict)

    def send(self, request: requests.PreparedRequest, forward: Callable[[], requests.Response]) -> requests.Response:
        """Answer a request, or not."""
        call = call_of(request)
        if late := self._late.pop(call, None):
            late()
        reads = request.method == "GET"
        if (reads and not self.reads) or not self._fails(call):
            return forward()
        if self.kind == "error":
            return _unavailable(request)
        if self.kind == "lost":
            forward().close()
        if self.kind == "late":
            if not reads:
                self._late[call] = lambda: forward().close()
            raise requests.exceptions.ReadTimeout
        raise requests.exceptions.ConnectionError("Connection reset by peer")

    def _fails(self, call: str) -> bool:
        if call in self.hit:
            return self.lasting
        if call in self.spared or len(self.hit) == self.most:
            return False
        self.hit.append(call)
        return True

    def settle(self) -> None:
        """Have done what is still to be done late."""
        while self._late:
            self._late.pop(next(iter(self._late)))()


def _unavailable(request: requests.PreparedRequest) -> requests.Response:
    answer = requests.Response()
    answer.status_code, answer.reason = 503, "Service Unavailable"
    answer.request, answer.url = request, str(request.url)
    answer.headers["Content-Type"] = "text/plain"
    answer._content = b"out of service"  # requests has no other way to make an answer
    return answer


@contextmanager
def failing(faults: Faults) -> Iterator[Faults]:
    """While it lasts, all requests of the SDK in this process go through the faults."""
    real = TCPKeepAliveAdapter.send

    def send(adapter: Any, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> requests.Response:
        return faults.send(request, lambda: real(adapter, request, *args, **kwargs))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TCPKeepAliveAdapter, "send", send)
        yield faults
    faults.settle()


Outcomes = dict[tuple[str, str], dict[str, str]]
"""By operation and call, and then by mode (`error`, `error, lasting`, ...), what became of it."""


@dataclass(frozen=True)
class Operation:
    """Something that a command does.

    `run` does it or, after a failure, the rest of it; `restore` makes it necessary again; `check` looks whether more
    or less is there than ought to be, with `done` telling whether the operation has come to its end.
    """

    name: str
    run: Callable[[], object]
    restore: Callable[[], object] = lambda: None
    check: Callable[[bool], None] = lambda done: None


def try_one_at_a_time(operation: Operation, kind: str, lasting: bool, outcomes: Outcomes) -> None:
    """Have every call of the operation fail in a run of its own; each is followed by a run without faults."""
    spared: set[str] = set()
    while True:
        faults = Faults(kind, lasting, frozenset(spared), reads=kind in READ_KINDS)
        outcome = _outcome(operation, faults)
        if not faults.hit:
            return
        operation.check(outcome == COMPLETES)
        if outcome == NEXT:
            operation.run()
            operation.check(True)
        operation.restore()
        spared |= set(faults.hit)
        _note(outcomes, operation, faults, outcome)


def try_writing(operation: Operation, kind: str, most: int, outcomes: Outcomes) -> None:
    """Have the operation's first writing calls fail once each, all in one run, which has to come to its end."""
    faults = Faults(kind, lasting=False, most=most, reads=False)
    outcome = _outcome(operation, faults)
    operation.check(True)
    _note(outcomes, operation, faults, outcome)


def try_all_lasting(operation: Operation, kind: str, outcomes: Outcomes) -> None:
    """Have one call after the other fail lastingly; each run goes on where the one before has ended, to the end."""
    spared: set[str] = set()
    while True:
        faults = Faults(kind, lasting=True, spared=frozenset(spared), reads=kind in READ_KINDS)
        outcome = _outcome(operation, faults)
        operation.check(outcome == COMPLETES)
        if not faults.hit:
            return
        if outcome == COMPLETES:
            operation.restore()
        spared |= set(faults.hit)
        _note(outcomes, operation, faults, outcome)


def try_each_once(operation: Operation, kind: str, outcomes: Outcomes) -> None:
    """Have every call of the operation fail once, all in one run, which has to come to its end."""
    faults = Faults(kind, lasting=False, most=100, reads=kind in READ_KINDS)
    outcome = _outcome(operation, faults)
    operation.check(True)
    _note(outcomes, operation, faults, outcome)


def _outcome(operation: Operation, faults: Faults) -> str:
    try:
        with failing(faults):
            operation.run()
    except ProvisionError as error:
        assert faults.lasting, f"{operation.name}: {error}"
        assert str(error).count("\n") == 0
        return NEXT
    return COMPLETES


def _note(outcomes: Outcomes, operation: Operation, faults: Faults, outcome: str) -> None:
    mode = f"{faults.kind}, lasting" if faults.lasting else faults.kind
    for call in faults.hit:
        print(operation.name, call, mode, outcome, sep="; ", file=sys.stderr)
        outcomes[operation.name, call][mode] = outcome


class CloudPlan(Plan):
    """A plan of which only the steps in the cloud are taken, or one of them."""

    key = ""

    def steps(self, note: Callable[[str], None]) -> list[Step]:
        """Those steps."""
        del note
        steps = self.cloud.steps(self.platform, self.offer)
        return [step for step in steps if self.key in ("", step.key)]


def cloud_plan(spec: PlatformSpec, home: Home, pauses: tuple[float, ...]) -> CloudPlan:
    """A plan with a network of its own, also where the project has one: so that there are all steps."""
    planned = make_plan(spec, home, bare=True)
    if not planned.resumed:
        planned.offer.values.update(mode="new", network="", gateway=planned.offer.values["external"])
        planned.record.values = planned.offer.values
    cloud = OpenStackCloud(spec.cloud, pauses)
    return CloudPlan(cloud, planned.platform, home.cache, planned.offer, bare=True, resumed=planned.resumed)


class Trial:
    """A platform, without roles and SSH, whose life is tried.

    Args:
        cloud: where.
        home: where its record is.
    """

    def __init__(self, cloud: TestCloud, home: Home) -> None:
        self.observer = connect(cloud)
        spec = PlatformSpec(name="faulty", cloud=cloud.name, cpus=1, memory=1, disk=10, workers=1)
        if self.observer.has_service("block-storage"):
            spec = spec.model_copy(update={"data_volume": 1.0})
        self.cloud = OpenStackCloud(cloud.name, pauses=(0.0,) * 4)
        planned = cloud_plan(spec, home, pauses=())
        self.name = cloud.name
        self.cache = home.cache
        self.offer: Offer = planned.offer
        self.platform: Platform = planned.platform
        self.hasty = OpenStackCloud(cloud.name, pauses=(0.0,))
        for opened in (self.cloud, self.hasty):
            opened.check(spec)  # so that it has signed in, and knows the services
        self.steps = [step.key for step in self.cloud.steps(self.platform, self.offer)]

    def count(self, key: str) -> int:
        """How many things the project has of what the step makes."""
        network, compute = self.observer.network, self.observer.compute
        project = {"project_id": self.observer.current_project_id}
        listings: dict[str, Callable[[], Any]] = {
            "keypair": compute.keypairs,
            "server": compute.servers,
            WORKER: compute.servers,
            "data-volume": self._volumes,
            "volume-attachment": lambda: [entry for volume in self._volumes() for entry in volume.attachments],
            "router-interface": lambda: network.ports(**project, device_owner="network:router_interface"),
            "floating-ip": lambda: network.ips(**project),
        }
        usual = getattr(network, f"{key.replace('-', '_')}s", None)
        return len(list(listings[key]() if key in listings else usual(**project)))

    def _volumes(self) -> list[Any]:
        return list(self.observer.block_storage.volumes())

    def make(self, key: str, **values: str) -> None:
        """Take the step as `provision create` does; `values` are what was chosen otherwise than in the offer."""
        offer = replace(self.offer, values=self.offer.values | values)
        plan = CloudPlan(self.cloud, self.platform, self.cache, offer, bare=True, resumed=True)
        plan.key = key
        plan.execute(Silent())
        self.platform = plan.platform

    def remove(self, key: str) -> None:
        """Remove what the step has made, as `provision delete` does."""
        if key == "volume-attachment":
            self._detach()
        else:
            self.cloud.remove(self.platform, self._resource(key))

    def _resource(self, key: str) -> Resource:
        entry = self.platform.record.entry(key)
        assert entry is not None and entry.resource is not None, key
        return entry.resource

    def _detach(self) -> None:
        """What no command does: a volume is let go of when its server goes."""
        server, volume = self._resource("volume-attachment").id.split("/")
        self.observer.compute.delete_volume_attachment(server, volume)
        storage = self.observer.block_storage
        storage.wait_for_status(storage.get_volume(volume), "available", interval=0.5)

    def creation(self, key: str) -> Operation:
        """The step's making, where its thing is not there."""
        expected = self.count(key) + 1
        return Operation(
            f"create: {key}",
            lambda: self.make(key),
            lambda: self.remove(key),
            lambda done: _expect(self.count(key), expected, key, done),
        )

    def removal(self, key: str) -> Operation:
        """The removal of the step's thing, where it is there."""
        expected = self.count(key) - 1
        return Operation(
            f"delete: {key}",
            lambda: self.remove(key),
            lambda: self.make(key),
            lambda done: _expect(self.count(key), expected, key, done),
        )

    def life(self, key: str) -> Iterator[Operation]:
        """How the step's thing comes and goes; each operation is made when the one before has been done."""
        yield self.creation(key)
        if key == "data-volume":
            yield self.keeping()
            yield self.taking()
        if key == WORKER:
            yield self.fewer()
        elif key != "volume-attachment":
            yield self.removal(key)

    def _is_kept(self) -> bool:
        identity = self._resource("data-volume").id
        return next(volume.kept for volume in self.cloud.volumes() if volume.id == identity)

    def keeping(self) -> Operation:
        """The deletion that keeps the data volume."""
        take, check = self._taking()
        return Operation(f"delete: {DATA_VOLUME} kept", self._keep, take, lambda done: check(done, True))

    def taking(self) -> Operation:
        """The creation that takes the volume that was kept."""
        take, check = self._taking()
        return Operation(f"create: {DATA_VOLUME} kept before", take, self._keep, lambda done: check(done, False))

    def _keep(self) -> None:
        self.cloud.keep_volume(self.platform, self._resource("data-volume"))

    def _taking(self) -> tuple[Callable[[], None], Callable[[bool, bool], None]]:
        """How the volume is taken, and what looks whether it is kept (or not) and no other was made."""
        identity, expected = self._resource("data-volume").id, self.count("data-volume")

        def check(done: bool, kept: bool) -> None:
            _expect(self._is_kept(), kept, "kept", done)
            _expect(self.count("data-volume"), expected, "data volumes", done)

        return lambda: self.make("data-volume", volume=identity), check

    def fewer(self) -> Operation:
        """The removal of the worker by `provision scale`, where it is there."""
        spec = self.platform.spec.model_copy(update={"workers": 0})
        expected = self.count(WORKER) - 1

        def run() -> None:
            change = Scale(self.cloud, self.platform, self.cache, spec, Offer({}), roles=False, resumed=False)
            change._remove(self.platform.of_worker(1))

        return Operation(
            "scale: one worker fewer",
            run,
            lambda: self.make(WORKER),
            lambda done: _expect(self.count(WORKER), expected, WORKER, done),
        )

    def power(self, verb: str) -> Operation:
        """`provision stop` or `start`, in the cloud."""
        other = "start" if verb == "stop" else "stop"
        state = "stopped" if verb == "stop" else "running"
        return Operation(
            verb,
            lambda: getattr(self.cloud, verb)(self.platform),
            lambda: getattr(self.cloud, other)(self.platform),
            lambda done: _expect(self.cloud.state(self.platform), state, verb, done),
        )

    def sizing(self) -> Iterator[Operation]:
        """A resize, its end, and its being taken back; between flavors with disks of the same size at last."""
        flavors = self.observer.compute.flavors(details=True)
        other, larger = [flavor.id for flavor in sorted(flavors, key=lambda f: f.name) if flavor.vcpus == 2][:2]
        present = self.platform.record.values

        def wanted() -> Platform:
            return replace(self.platform, record=self.platform.record.model_copy(update={"values": {"flavor": larger}}))

        def again() -> None:
            nonlocal larger, other
            present["flavor"], larger, other = larger, other, larger
            self.cloud.resize(wanted())

        def expect(resizing: bool) -> Callable[[bool], None]:
            return lambda done: _expect(self.cloud.resizing(self.platform), resizing, "resizing", done)

        def resize() -> None:
            self.cloud.resize(wanted())

        def take_back() -> None:
            self.cloud.restore_size(self.platform)

        yield Operation("resize", resize, take_back, expect(True))
        resize()
        yield Operation("resize: taken back", take_back, resize, expect(False))
        yield Operation("resize: kept", lambda: self.cloud.keep_size(wanted()), again, expect(False))
        self.cloud.keep_size(wanted())

    def repeatable(self) -> list[Operation]:
        """What changes nothing when it is done twice; tried again once only, to save time."""
        two = self.platform.spec.model_copy(update={"workers": 2})
        return [
            Operation("every command: sign-in", lambda: OpenStackCloud(self.name, (0.0,)).state(self.platform)),
            Operation("every command: its turn", self._take_turn),
            Operation("create: plan", lambda: self.hasty.check(self.platform.spec)),
            Operation("create: address for SSH", lambda: self.hasty.access(self.platform)),
            Operation("create: host-key", lambda: self.hasty.publish_host_key(self.platform, "ssh-ed25519 AAAA")),
            Operation("delete: what is there", lambda: self.hasty.discover(self.platform)),
            Operation("scale: plan", lambda: self.hasty.check_workers(self.platform, two)),
            Operation("scale, resize: record", lambda: self.hasty.publish(self.platform)),
        ]

    def _take_turn(self) -> None:
        with self.hasty.exclusively(self.platform, print):
            pass


def _expect(found: object, expected: object, what: str, done: bool) -> None:
    assert not done or found == expected, f"{what}: {found} in place of {expected}"


def some(trial: Trial) -> Outcomes:
    """What is dangerous: lost answers of all that writes, late ones of creations, and for some steps lasting errors."""
    outcomes: Outcomes = defaultdict(dict)
    for key in trial.steps:
        if key == WORKER:
            continue  # made and removed as the server is
        if key == "server":
            try_all_lasting(trial.creation(key), "error", outcomes)
            try_all_lasting(trial.removal(key), "error", outcomes)
        for operation in trial.life(key):
            try_writing(operation, "lost", 4, outcomes)
            if key.startswith("router"):
                break  # Neutron takes seconds for what concerns routers
        else:
            if key == "volume-attachment":
                trial.remove(key)
            try_writing(trial.creation(key), "late", 1, outcomes)
    for operation in trial.repeatable():
        # the others are many calls, all of them reading, or as those before
        if not operation.name.startswith(("create: plan", "delete: what is there", "scale")):
            try_one_at_a_time(operation, "error", True, outcomes)
    for verb in ("stop", "start"):
        try_all_lasting(trial.power(verb), "error", outcomes)
    for kind in ("lost", "late"):
        for verb in ("stop", "start"):
            try_writing(trial.power(verb), kind, 1, outcomes)
    return outcomes


PARTS = ("keypair", "security-group", "network", "subnet", "router", "router-interface", "data-volume", "server")
PARTS += ("volume-attachment", "floating-ip", WORKER, "commands", "stop", "start")
PARTS += ("resize", "resize: taken back", "resize: kept")
"""What can be tried alone: steps, what commands do besides, and changes of power and size."""
SLOW = ("router", "router-interface", "server", WORKER)
_ALL_MODES = [(kind, lasting) for kind in KINDS for lasting in (False, True)]


def all_of_them(trial: Trial, parts: Sequence[str], keep: Callable[[Outcomes], object]) -> None:
    """All calls of these parts, each with every kind of fault, once and lasting; `keep` gets the outcomes so far.

    What is quick is done anew for each; see `try_together` for the rest.
    """
    outcomes: Outcomes = defaultdict(dict)

    def every_mode(operations: Callable[[], Iterable[Operation]]) -> None:
        for mode in _ALL_MODES:
            for operation in operations():
                try_one_at_a_time(operation, *mode, outcomes)
                keep(outcomes)

    def life(key: str) -> Iterator[Operation]:
        yield from trial.life(key)
        if key == "volume-attachment":
            trial.remove(key)

    def together(operations: Iterable[Operation]) -> None:
        for operation in operations:
            try_together(operation, outcomes)
            keep(outcomes)

    for key in trial.steps:
        if key in parts and key in SLOW:
            together([trial.creation(key)])
            trial.make(key)
            together([trial.fewer() if key == WORKER else trial.removal(key)])
        elif key in parts:
            every_mode(partial(life, key))
        trial.make(key)
    if "commands" in parts:
        every_mode(trial.repeatable)
    for verb in ("stop", "start"):
        if verb in parts:
            together([trial.power(verb)])
        trial.power(verb).run()
    if any(part.startswith("resize") for part in parts):
        together(operation for operation in trial.sizing() if operation.name in parts)


def try_together(operation: Operation, outcomes: Outcomes) -> None:
    """A slow operation with every kind of fault: several calls fail in one run, or one after the other in those of
    commands that go on."""
    for kind in KINDS:
        if kind == "late":  # the second one would end the command
            try_one_at_a_time(operation, kind, False, outcomes)
        else:
            try_each_once(operation, kind, outcomes)
        operation.restore()
        try_all_lasting(operation, kind, outcomes)
        operation.restore()


MODES = [mode for kind in KINDS for mode in (kind, f"{kind}, lasting")]
_FIRST = "| during | call |"


def table(outcomes: Outcomes) -> str:
    """The outcomes as a table of the page."""
    lines = [f"{_FIRST} {' | '.join(MODES)} |", f"|{'---|' * (len(MODES) + 2)}"]
    for (operation, call), found in outcomes.items():
        lines.append(f"| {operation} | `{call}` | {' | '.join(found.get(mode, '-') for mode in MODES)} |")
    return "\n".join(lines) + "\n"


def read_table(page: str) -> Outcomes:
    """The outcomes that the page has."""
    outcomes: Outcomes = defaultdict(dict)
    for line in page[page.index(_FIRST) :].splitlines()[2:]:
        operation, call, *found = [cell.strip() for cell in line.strip("|").split("|")]
        outcomes[operation, call.strip("`")] = {m: o for m, o in zip(MODES, found, strict=True) if o != "-"}
    return outcomes


def write_table(outcomes: Outcomes) -> None:
    """Write these outcomes into the table of the page, which several processes may do in turn."""
    with PAGE.open("r+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        page = file.read()
        known = read_table(page)
        for row, found in outcomes.items():
            known[row] |= found
        file.seek(0)
        file.write(page[: page.index(_FIRST)] + table(known))
        file.truncate()


def main(cloud: TestCloud, parts: Sequence[str]) -> None:
    """Try these parts, and write what becomes of them into the table of the page."""
    before = listing(cloud)
    with tempfile.TemporaryDirectory() as folder:
        trial = Trial(cloud, Home(Path(folder)))
        try:
            all_of_them(trial, parts, write_table)
        finally:
            undo(trial.cloud, trial.platform, Silent(), keep_data=False)
    assert listing(cloud) == before


if __name__ == "__main__":
    main(TestCloud(sys.argv[1], Path(os.environ["OS_CLIENT_CONFIG_FILE"]), development=False), sys.argv[2:] or PARTS)
